"""Owns `aiouring.open()`: what the built-in `open()` takes, a ring, and what becomes of the two."""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from aiouring._async_ring import AsyncRing
from aiouring._binary_file import BinaryFile
from aiouring._default_ring import default_ring
from aiouring._direct_file import DirectFile
from aiouring._errors import failure
from aiouring._raw_file import RawFile
from aiouring._text_file import TextFile, check_text, encoding_of
from aiouring._uring import lib
from aiouring._verbs import File

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int
TextMode: TypeAlias = Literal[
    "r", "r+", "+r", "rt", "tr", "rt+", "r+t", "w", "w+", "+w", "wt", "tw", "wt+", "w+t",
    "a", "a+", "+a", "at", "ta", "at+", "a+t", "x", "x+", "+x", "xt", "tx", "xt+", "x+t",
]  # fmt: skip
BinaryMode: TypeAlias = Literal[
    "rb", "br", "rb+", "r+b", "+rb", "wb", "bw", "wb+", "w+b", "+wb",
    "ab", "ba", "ab+", "a+b", "+ab", "xb", "bx", "xb+", "x+b", "+xb",
]  # fmt: skip

T = TypeVar("T", bound=BinaryFile | TextFile)


class Opening(Generic[T]):
    """A file being opened: await it, or enter it with `async with`, which closes the file at the end."""

    _file: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> T:
        self._file = await self._coroutine
        return self._file

    async def __aexit__(self, *_: object) -> None:
        await self._file.aclose()


@overload
def open(  # noqa: A001
    path: Path,
    mode: TextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,  # noqa: FBT001, FBT002
    opener: Callable[[Any, int], int] | None = None,
    *,
    ring: AsyncRing | None = None,
    direct: bool = False,
    background: bool | None = None,
    flags: int = 0,
    dir_fd: File | None = None,
) -> Opening[TextFile]: ...


@overload
def open(  # noqa: A001
    path: Path,
    mode: BinaryMode,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,  # noqa: FBT001, FBT002
    opener: Callable[[Any, int], int] | None = None,
    *,
    ring: AsyncRing | None = None,
    direct: bool = False,
    background: bool | None = None,
    flags: int = 0,
    dir_fd: File | None = None,
) -> Opening[BinaryFile]: ...


@overload
def open(  # noqa: A001
    path: Path,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,  # noqa: FBT001, FBT002
    opener: Callable[[Any, int], int] | None = None,
    *,
    ring: AsyncRing | None = None,
    direct: bool = False,
    background: bool | None = None,
    flags: int = 0,
    dir_fd: File | None = None,
) -> Opening[BinaryFile | TextFile]: ...


def open(  # noqa: A001 - the built-in's name, and what it takes
    path: Path,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,  # noqa: FBT001, FBT002 - the built-in's
    opener: Callable[[Any, int], int] | None = None,
    *,
    ring: AsyncRing | None = None,
    direct: bool = False,
    background: bool | None = None,
    flags: int = 0,
    dir_fd: File | None = None,
) -> Any:
    """Open a file as the built-in `open()` does; await it, or enter it with `async with`.

    Args:
        path: the file, or an open descriptor.
        mode: as the built-in takes it: one of "r", "w", "x", "a", and "b" for bytes, "+" for reading and writing.
        buffering: bytes in a block; 0, for bytes only, does one request for one call; 1, for text, writes what ends
            with a line; -1 takes what was measured to be good.
        encoding: of text; None is the locale's.
        errors: what is done about what cannot be decoded or encoded, as `codecs` names it; None is "strict".
        newline: how lines end, as the built-in takes it.
        closefd: False leaves a descriptor open that was given as `path`; it is then where the file's position was.
        opener: makes the descriptor from the path and the flags; called in a thread, since it may block.
        ring: what to read and write with; None is the running loop's own ring, see `default_ring()`.
        direct: go around the page cache (O_DIRECT), with registered buffers.  What is read and written need not be
            aligned to anything: what is not, goes through the page cache.
        background: hand each read and write to a worker of the kernel at once, see `AsyncRing.read()`; None does so
            where the file system would hold up the loop: on FUSE.
        flags: more flags for open(2), such as `os.O_NOFOLLOW`.
        dir_fd: an open directory that `path` is relative to.

    Returns:
        A `BinaryFile` where `mode` has a "b", else a `TextFile`.  A FIFO waits for its other end, as the built-in does,
        but in a worker of the kernel, and can be cancelled.

    Raises:
        ValueError: what the built-in raises it for; a descriptor of an io_uring.
        OSError: FileNotFoundError and so on, with the path as `filename`; EINVAL where the file system has no O_DIRECT.
        RingUnavailableError: io_uring is blocked here; the text says by what.

    Since Linux 5.11.  See open(2).
    """
    access = _flags_of(mode)
    _check(path, mode, buffering, encoding, errors, newline, opener, dir_fd, closefd=closefd, direct=direct)
    if "b" not in mode:
        encoding, errors = encoding_of(encoding), errors or "strict"
        check_text(encoding, errors, newline)
    opening = partial(
        open_raw, path, access | flags, ring, opener, dir_fd, direct=direct, closefd=closefd, background=background
    )
    if encoding is None or errors is None:
        return Opening(_as_bytes(opening, mode, buffering))
    return Opening(_as_text(opening, mode, buffering, encoding, errors, newline))


def _check(
    path: Path,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    opener: object,
    dir_fd: object,
    *,
    closefd: bool,
    direct: bool,
) -> None:
    """Raise what the built-in raises for arguments that do not go together."""
    if "b" in mode:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"binary mode doesn't take {'a' if name == 'newline' else 'an'} {name} argument")
    elif buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    if isinstance(path, int):
        if opener is not None or dir_fd is not None:
            raise ValueError("a descriptor is open already: opener= and dir_fd= are for paths")
        if direct:
            raise ValueError("direct=True opens the file twice, and needs its path")
    elif not closefd:
        raise ValueError("Cannot use closefd=False with file name")


def _flags_of(mode: str) -> int:
    """The flags for open(2)."""
    if not isinstance(mode, str):
        raise TypeError(f"mode is a string, not {type(mode).__name__}")
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) < len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" in letters and "t" in letters:
        raise ValueError("can't have text and binary mode at once")
    if len(letters & set("rwxa")) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    flags = os.O_RDWR if "+" in letters else os.O_RDONLY if "r" in letters else os.O_WRONLY
    return (
        flags
        | {
            "r": 0,
            "w": os.O_CREAT | os.O_TRUNC,
            "x": os.O_CREAT | os.O_EXCL,
            "a": os.O_CREAT | os.O_APPEND,
        }[(letters & set("rwxa")).pop()]
    )


async def open_raw(
    path: Path,
    flags: int,
    ring: AsyncRing | None,
    opener: Callable[[Any, int], int] | None = None,
    dir_fd: File | None = None,
    *,
    direct: bool = False,
    closefd: bool = True,
    background: bool | None = None,
    directory: bool = False,
    mode: int = 0o666,
) -> RawFile:
    """Open a file without a position; a directory only where `directory` is asked for; made with permissions `mode`."""
    ring = ring or default_ring()
    name = path if isinstance(path, int) else os.fspath(path)
    flags |= os.O_DIRECT if direct else 0
    fd = path if isinstance(path, int) else await _descriptor(os.fspath(path), flags, mode, ring, opener, dir_fd)
    at_end = flags & os.O_APPEND
    try:
        if opener is not None or fd == path:  # made elsewhere: whether it appends is the descriptor's to say
            _refuse_a_ring(fd)
            flags = flags & ~os.O_APPEND | fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        raw = (DirectFile if direct else RawFile)(ring, fd, name, flags, owned=closefd, background=background)
    except BaseException as error:
        if fd != path:
            os.close(fd)
        if isinstance(error, OSError):
            error.filename = name
        raise
    try:
        await raw.look()
        if stat.S_ISDIR(raw.kind) and not directory:
            raise raw.named(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    except BaseException:
        raw.owned = fd != path  # as the built-in, which leaves a descriptor alone that it could not make a file of
        await raw.aclose()
        raise
    if at_end and raw.seekable:
        raw.start = raw.size
    return raw


def _refuse_a_ring(fd: int) -> None:
    """Raise `ValueError` where a descriptor is an io_uring: a request on one never ends."""
    with contextlib.suppress(FileNotFoundError):  # there is no such descriptor, and others say so
        if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[io_uring]":  # noqa: PTH115 - the rest is on paths as given
            raise failure(lib.AU_RING_FD)


async def _descriptor(
    name: str | bytes,
    flags: int,
    mode: int,
    ring: AsyncRing,
    opener: Callable[[Any, int], int] | None,
    dir_fd: File | None,
) -> int:
    """Open the file; errors have its name."""
    try:
        if opener is None:
            return await ring.openat(name, flags, mode, dir_fd=dir_fd, background=True)  # which may wait, as for a FIFO
        return await _made_by(opener, name, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.filename is None:
            error.filename = name
        if flags & os.O_DIRECT and error.errno == errno.EINVAL:
            if stat.S_ISDIR((await ring.statx(name, dir_fd=dir_fd)).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name) from None
            error.strerror = f"{error.strerror}: the file system may have no O_DIRECT; try without direct=True"
        raise


async def _made_by(opener: Callable[[Any, int], int], name: str | bytes, flags: int) -> int:
    """Have a thread make the descriptor; one that comes when nobody waits any more is closed."""
    lock, made, given_up = threading.Lock(), list[int](), False

    def _make() -> int:
        fd = opener(name, flags)
        with lock:
            made.append(fd)
            if given_up:
                os.close(fd)
        return fd

    try:
        return await asyncio.to_thread(_make)
    except asyncio.CancelledError:
        with lock:
            given_up = True
            for fd in made:
                os.close(fd)
        raise


async def _as_bytes(opening: Callable[[], Awaitable[RawFile]], mode: str, buffering: int) -> BinaryFile:
    return BinaryFile(await opening(), mode, buffering)


async def _as_text(
    opening: Callable[[], Awaitable[RawFile]],
    mode: str,
    buffering: int,
    encoding: str,
    errors: str,
    newline: str | None,
) -> TextFile:
    buffer = BinaryFile(await opening(), mode, -1 if buffering == 1 else buffering)
    return TextFile(
        buffer,
        mode,
        encoding=encoding,
        errors=errors,
        newline=newline,
        line_buffering=buffering == 1 or (buffering < 0 and await buffer.isatty()),
    )
