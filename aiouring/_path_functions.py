"""Owns the functions on files by name, as `os`, `os.path` and `pathlib` have them, awaited.

Each takes `ring=`; without it, the running loop's own is used.  Errors are those of the functions of the same names,
with the names of the files.  What io_uring cannot do is done in a thread, and its docstring says so.
"""

import asyncio
import contextlib
import os
import pathlib
import secrets
import stat as status
from typing import TYPE_CHECKING

from aiouring._default_ring import default_ring
from aiouring._file_flags import AtFlags
from aiouring._open import open as open_file
from aiouring._open import open_raw
from aiouring._text_file import check_text, encoding_of
from aiouring._thread_descriptor import ThreadDescriptor

if TYPE_CHECKING:
    from aiouring._async_ring import AsyncRing
    from aiouring._paths import StrPath
    from aiouring._stat import StatxResult
    from aiouring._verbs import Bytes, File

_ACCESS_LIST = "system.posix_acl_access"


# ---- whole files -----------------------------------------------------------------------------------


async def read_bytes(path: "StrPath", *, ring: "AsyncRing | None" = None) -> bytes:
    """Read a whole file."""
    async with open_file(path, "rb", ring=ring) as file:
        return await file.read()


async def read_text(
    path: "StrPath", encoding: str | None = None, errors: str | None = None, *, ring: "AsyncRing | None" = None
) -> str:
    """Read a whole file of text; see `open()` for `encoding` and `errors`."""
    async with open_file(path, "r", encoding=encoding, errors=errors, ring=ring) as file:
        return await file.read()


async def write_bytes(path: "StrPath", data: "Bytes", *, atomic: bool = False, ring: "AsyncRing | None" = None) -> int:
    """Make `data` all that a file has; returns how many bytes that is.

    Args:
        path: the file, which is made if it is not there.
        data: any C-contiguous buffer.
        atomic: whatever happens, power cuts included, the file has all of its old contents or all of the new: these
            are written to a temporary file beside it, which is flushed to its device and takes the file's place; then
            the directory is flushed.  Permissions, access control list, owner and group stay; where the process may not
            give files away, the new one is its own, without set-user-ID and set-group-ID, and where it may not set the
            group, that may do no more than others.  Extended attributes do not stay, and other names (hard links) keep
            the old contents.  A symbolic link is followed, in a thread.
        ring: whose requests do it.

    Raises:
        OSError: without `atomic`, `bytes_written(error)` says how many bytes the file has.
    """
    if atomic:
        return await _write_atomically(path, data, ring or default_ring())
    async with open_file(path, "wb", 0, ring=ring) as file:
        return await file.write(data)


async def write_text(
    path: "StrPath",
    text: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    atomic: bool = False,
    ring: "AsyncRing | None" = None,
) -> int:
    """Make `text` all that a file has; returns how many characters that is.  See `write_bytes()` and `open()`."""
    if not isinstance(text, str):
        raise TypeError(f"text is a str, not {type(text).__name__}")
    encoding, errors = encoding_of(encoding), errors or "strict"
    check_text(encoding, errors, newline)
    ended = text.replace("\n", newline) if newline else text
    await write_bytes(path, ended.encode(encoding, errors), atomic=atomic, ring=ring)
    return len(text)


async def _write_atomically(path: "StrPath", data: "Bytes", ring: "AsyncRing") -> int:
    place = await asyncio.to_thread(pathlib.Path(os.fsdecode(path)).resolve)
    temporary = str(place.with_name(f".{place.name[:50]}.{secrets.token_hex(8)}"))
    try:
        before = await ring.statx(place)
    except FileNotFoundError:
        before = None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        # What the old contents were hidden from, the new ones are from the first byte on.
        raw = await open_raw(temporary, flags, ring, mode=0o666 if before is None else 0o600)
        try:
            count = await raw.write_at(data, 0)
            if before is not None:
                with ThreadDescriptor(os.dup(raw.fileno())) as descriptor:
                    await descriptor.run(_take_after, before, place)
            await raw.sync(data_only=False)
        finally:
            await raw.aclose()
        await ring.renameat(temporary, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            await ring.unlinkat(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename, error.filename2 = os.fspath(path), None
        raise
    await sync_directory(place.parent, ring=ring)
    return count


def _take_after(fd: int, before: "StatxResult", place: pathlib.Path) -> None:
    """Give a new file the owner, group and permissions of the one whose place it takes, as far as that is allowed.

    Where there is an access control list, what the mode says of the group is the most that anybody named in the list
    may do; the group itself may do less.
    """
    mode, now = status.S_IMODE(before.st_mode), os.fstat(fd)
    of_group = True  # what the mode says of the group is right for the new file
    if now.st_gid != before.st_gid:
        try:
            os.fchown(fd, -1, before.st_gid)
        except OSError:  # it may not be, or the file system has no groups
            mode &= ~status.S_ISGID
            of_group = False
    if now.st_uid != before.st_uid:
        try:
            os.fchown(fd, before.st_uid, -1)
        except OSError:
            mode &= ~(status.S_ISUID | status.S_ISGID)
    if not (of_group and _take_list_after(fd, place)):
        mode &= ~0o070 | (mode & 0o007) << 3
    os.fchmod(fd, mode)  # last: a change of owner takes set-user-ID away


def _take_list_after(fd: int, place: pathlib.Path) -> bool:
    """Give a file the access control list of another, or none; returns whether that was allowed."""
    try:
        access = os.getxattr(place, _ACCESS_LIST)
    except OSError:  # it has none, or its file system knows of none
        with contextlib.suppress(OSError):
            os.removexattr(fd, _ACCESS_LIST)  # which the directory gave it
        return True
    try:
        os.setxattr(fd, _ACCESS_LIST, access)
    except OSError:
        return False
    return True


async def sync_directory(path: "StrPath", *, ring: "AsyncRing | None" = None) -> None:
    """Flush a directory to its device: the names in it, that is, not what the files hold."""
    raw = await open_raw(path, os.O_RDONLY | os.O_DIRECTORY, ring, directory=True)
    try:
        await raw.sync(data_only=False)
    finally:
        await raw.aclose()


async def truncate(path: "StrPath", length: int, *, ring: "AsyncRing | None" = None) -> None:
    """Cut a file off at `length` bytes, or extend it with zeros; before Linux 6.9 in a thread.  As `os.truncate()`."""
    raw = await open_raw(path, os.O_WRONLY, ring)
    try:
        await raw.truncate(length)
    finally:
        await raw.aclose()


# ---- asking ----------------------------------------------------------------------------------------


async def stat(
    path: "StrPath | File",
    *,
    dir_fd: "File | None" = None,
    follow_symlinks: bool = True,
    ring: "AsyncRing | None" = None,
) -> "StatxResult":
    """What a file is, as `os.stat()`, and more: see `StatxResult`, which has the fields of `os.stat_result`."""
    flags = AtFlags(0) if follow_symlinks else AtFlags.SYMLINK_NOFOLLOW
    return await (ring or default_ring()).statx(path, flags, dir_fd=dir_fd)


async def exists(path: "StrPath | File", *, ring: "AsyncRing | None" = None) -> bool:
    """Whether there is such a file; where a link leads to, if it is one.  As `os.path.exists()`: False if in doubt."""
    ring = ring or default_ring()
    try:
        await ring.statx(path)
    except (OSError, ValueError):
        return False
    return True


async def listdir(path: "StrPath" = ".") -> list[str]:
    """The names in a directory, as `os.listdir()`; in a thread, since io_uring has no operation for it."""
    return await asyncio.to_thread(os.listdir, os.fsdecode(path))


# ---- names -----------------------------------------------------------------------------------------


async def rename(
    source: "StrPath",
    destination: "StrPath",
    *,
    src_dir_fd: "File | None" = None,
    dst_dir_fd: "File | None" = None,
    ring: "AsyncRing | None" = None,
) -> None:
    """Give a file another name, atomically; what has that name already is replaced.  As `os.rename()`."""
    ring = ring or default_ring()
    await ring.renameat(source, destination, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


async def replace(
    source: "StrPath",
    destination: "StrPath",
    *,
    src_dir_fd: "File | None" = None,
    dst_dir_fd: "File | None" = None,
    ring: "AsyncRing | None" = None,
) -> None:
    """As `rename()`."""
    await rename(source, destination, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, ring=ring)


async def remove(path: "StrPath", *, dir_fd: "File | None" = None, ring: "AsyncRing | None" = None) -> None:
    """Remove a file's name, as `os.remove()`."""
    await (ring or default_ring()).unlinkat(path, dir_fd=dir_fd)


async def rmdir(path: "StrPath", *, dir_fd: "File | None" = None, ring: "AsyncRing | None" = None) -> None:
    """Remove an empty directory, as `os.rmdir()`."""
    await (ring or default_ring()).unlinkat(path, AtFlags.REMOVEDIR, dir_fd=dir_fd)


async def mkdir(
    path: "StrPath", mode: int = 0o777, *, dir_fd: "File | None" = None, ring: "AsyncRing | None" = None
) -> None:
    """Make a directory, as `os.mkdir()`.  Since Linux 5.15."""
    await (ring or default_ring()).mkdirat(path, mode, dir_fd=dir_fd)


async def makedirs(
    path: "StrPath",
    mode: int = 0o777,
    exist_ok: bool = False,  # noqa: FBT001, FBT002 - the library's
    *,
    ring: "AsyncRing | None" = None,
) -> None:
    """Make a directory and those above it that are missing, as `os.makedirs()`.  Since Linux 5.15."""
    ring = ring or default_ring()
    missing = [os.fsdecode(path)]
    rising = False  # what is above the last of them is there
    while missing:
        try:
            await ring.mkdirat(missing[-1], mode if len(missing) == 1 else 0o777)
        except FileNotFoundError:
            above = str(pathlib.PurePath(missing[-1]).parent)
            if rising or above == missing[-1]:
                raise  # /proc says so of names that it does not take
            missing.append(above)
            continue
        except OSError as error:
            if len(missing) > 1:
                there = isinstance(error, FileExistsError)  # if it is no directory, the next mkdir complains of it
            else:
                there = exist_ok and await _is_directory(missing[-1], ring)
            if not there:
                raise
        rising = True
        missing.pop()


async def _is_directory(path: str, ring: "AsyncRing") -> bool:
    try:
        return status.S_ISDIR((await ring.statx(path)).st_mode)
    except OSError:
        return False


async def symlink(
    target: "StrPath", path: "StrPath", *, dir_fd: "File | None" = None, ring: "AsyncRing | None" = None
) -> None:
    """Make a symbolic link at `path` that leads to `target`, as `os.symlink()`.  Since Linux 5.15."""
    await (ring or default_ring()).symlinkat(target, path, dir_fd=dir_fd)


async def link(
    source: "StrPath",
    destination: "StrPath",
    *,
    src_dir_fd: "File | None" = None,
    dst_dir_fd: "File | None" = None,
    ring: "AsyncRing | None" = None,
) -> None:
    """Give a file one more name, as `os.link()`; a symbolic link itself, not where it leads.  Since Linux 5.15."""
    ring = ring or default_ring()
    await ring.linkat(source, destination, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
