"""Owns the verbs on names of files: opening within bounds, asking what a file is, and changing names.

The kernel runs them in a worker, which never blocks the loop and costs a hand-over (5 us of the loop's thread instead
of 2, measured on Linux 6.18).  Only an open without O_CREAT and O_TRUNC, of a name that the kernel has in its cache,
is done within its submission.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any

from aiouring._direct_descriptor import DirectDescriptor
from aiouring._direct_verbs import DirectVerbs, make, refuse_cloexec
from aiouring._errors import kernel_error
from aiouring._features import require
from aiouring._file_flags import AtFlags, RenameFlags, ResolveFlags, StatxMask
from aiouring._paths import Directory, Naming, PathRequest, StrPath, in_memory, perform_named
from aiouring._request import identify
from aiouring._slot_requests import Install, Open
from aiouring._stat import StatxResult
from aiouring._uring import ffi, lib
from aiouring._verbs import File, resolve

#: What os.stat() has, when the file was made, its mount, and what O_DIRECT needs.
_DEFAULT_MASK = (
    StatxMask.TYPE | StatxMask.MODE | StatxMask.NLINK | StatxMask.UID | StatxMask.GID | StatxMask.ATIME
    | StatxMask.MTIME | StatxMask.CTIME | StatxMask.INO | StatxMask.SIZE | StatxMask.BLOCKS | StatxMask.BTIME
    | StatxMask.MNT_ID | StatxMask.DIOALIGN
)  # fmt: skip
_NO_FLAGS = AtFlags(0)
_REPLACE = RenameFlags(0)
_ANY_WAY = ResolveFlags(0)
_MADE = os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY


class OpenInBounds(Open):
    """An open that has an `au_open_how` beside the name."""

    __slots__ = ("way",)
    way: Any


class PathVerbs(DirectVerbs):
    """The part of `AsyncRing` that works on names of files.

    A path is relative to `dir_fd`, an open directory, or to the working directory.  Errors are the `OSError` of the
    functions in `os`, with `filename` and `filename2`.  A request that was cancelled may have been done all the same.
    """

    async def openat2(
        self,
        path: StrPath,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        resolve: ResolveFlags = _ANY_WAY,
        dir_fd: File | None = None,
        background: bool = False,
    ) -> int:
        """Open a file, and say how it may be found; returns a close-on-exec descriptor.

        Args:
            path: relative to `dir_fd`, or to the working directory.
            flags: `os.O_RDONLY` and the like; unlike `openat()`, the kernel refuses those it does not know (EINVAL).
            mode: permissions of a file that is created, less the umask.
            resolve: `ResolveFlags.BENEATH` and the like: what would lead elsewhere is EXDEV, a symbolic link that is
                not allowed ELOOP.
            dir_fd: an open directory.
            background: as for `openat()`.

        A descriptor that comes together with a cancellation is closed.  Since Linux 5.6.  See
        io_uring_prep_openat2(3) and openat2(2).
        """
        name, way, directory = in_memory(path), _how(flags | os.O_CLOEXEC, mode, resolve), Directory(dir_fd)
        request = OpenInBounds(directory.number, directory.held, name)
        request.way = way
        with Naming(request, path, directories=(directory,)):
            arguments = _opening(directory, name, way, -1, background=background)
            return await make(self._driver or self._bound(), request, "5.6", *arguments)

    async def openat2_direct(
        self,
        path: StrPath,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        resolve: ResolveFlags = _ANY_WAY,
        dir_fd: File | None = None,
        index: int | None = None,
        background: bool = False,
    ) -> DirectDescriptor:
        """Open a file as `openat2()` does, into the table of registered files as `openat_direct()` does.

        Since Linux 5.15, without `index` 5.19.  See io_uring_prep_openat2_direct(3).
        """
        refuse_cloexec(flags, os.O_CLOEXEC, "O_CLOEXEC")
        name, way, directory = in_memory(path), _how(flags, mode, resolve), Directory(dir_fd)
        driver, table = self._table()
        request = Install(table, index, directory.number, directory.held, (name, way))
        with Naming(request, path, directories=(directory,)):
            arguments = _opening(directory, name, way, request.slot, background=background)
            await make(driver, request, "5.15", *arguments)
        return request.claim()[0]

    async def statx(
        self,
        path: StrPath | File,
        flags: AtFlags = _NO_FLAGS,
        mask: StatxMask = _DEFAULT_MASK,
        *,
        dir_fd: File | None = None,
    ) -> StatxResult:
        """Ask what a file is: its kind, size, times ..., and what O_DIRECT needs.

        Args:
            path: its name; or an open file itself, as a descriptor or an object with fileno().
            flags: `AtFlags.SYMLINK_NOFOLLOW`: of a symbolic link itself.  `STATX_DONT_SYNC` takes what a network file
                system last heard, `STATX_FORCE_SYNC` asks its server.
            mask: what is wanted; the kernel may say more, or less: see the result's `mask`.
            dir_fd: an open directory that `path` is relative to.

        Raises:
            OSError: EBADF where the open file was closed while this ran, and its number may have been another's.

        Since Linux 5.6; when a file was made, its mount and the needs of O_DIRECT since 5.8 and 6.1.  See
        io_uring_prep_statx(3) and statx(2).
        """
        if not isinstance(path, str | bytes | os.PathLike):
            return await self._statx_open(path, flags, mask)
        name, found, directory = in_memory(path), ffi.new("struct au_statx *"), Directory(dir_fd)
        await self._on_names(
            lib.AU_OP_STATX, (path,), (directory,), directory.number, name, found, ffi.NULL, mask, flags
        )
        return StatxResult.from_kernel(found)

    async def _statx_open(self, file: File, flags: AtFlags, mask: StatxMask) -> StatxResult:
        """Of an open file.

        A duplicate, as of a directory, would cost the process its record locks on the file when it is closed
        (fcntl(2)).  So the worker may meet a file that took the number meanwhile: that is found out afterwards.
        """
        if isinstance(file, DirectDescriptor):
            raise TypeError("the kernel takes no direct descriptor for statx: get a descriptor with fixed_fd_install()")
        number, held, how = resolve(file)
        identity = identify(number) if held is None else None
        name, found = ffi.new("char[]", b""), ffi.new("struct au_statx *")
        request = PathRequest(name, found)
        request.fd, request.file = number, held
        at, wanted = flags | AtFlags.EMPTY_PATH, mask | StatxMask.INO
        driver, prepare = self._driver or self._bound(), lib.au_prepare_path
        await driver.perform(request, prepare, lib.AU_OP_STATX, number, name, found, ffi.NULL, wanted, at, -1, how)
        answer = StatxResult.from_kernel(found)
        if resolve(file)[0] != number or identity not in (None, (answer.st_dev, answer.st_ino)):
            raise kernel_error(errno.EBADF, "the file was closed while statx() was looking at it")
        return answer

    async def renameat(
        self,
        source: StrPath,
        destination: StrPath,
        flags: RenameFlags = _REPLACE,
        *,
        src_dir_fd: File | None = None,
        dst_dir_fd: File | None = None,
    ) -> None:
        """Give a file another name, atomically; what has that name already is replaced.

        Args:
            source: the present name.
            destination: the new one, in the same file system.
            flags: `RenameFlags.NOREPLACE` (FileExistsError instead of replacing), `EXCHANGE` (swap the two).
            src_dir_fd: an open directory that `source` is relative to.
            dst_dir_fd: an open directory that `destination` is relative to.

        Since Linux 5.11.  See io_uring_prep_renameat(3) and renameat2(2).
        """
        old, new = in_memory(source), in_memory(destination)
        start, goal = directories = Directory(src_dir_fd), Directory(dst_dir_fd)
        arguments = (start.number, old, new, ffi.NULL, goal.number & 0xFFFFFFFF, flags)
        await self._on_names(lib.AU_OP_RENAMEAT, (source, destination), directories, *arguments)

    async def unlinkat(self, path: StrPath, flags: AtFlags = _NO_FLAGS, *, dir_fd: File | None = None) -> None:
        """Remove a name; with `AtFlags.REMOVEDIR` an empty directory.

        Since Linux 5.11.  See io_uring_prep_unlinkat(3).
        """
        name, directory = in_memory(path), Directory(dir_fd)
        arguments = (directory.number, name, ffi.NULL, ffi.NULL, 0, flags)
        await self._on_names(lib.AU_OP_UNLINKAT, (path,), (directory,), *arguments)

    async def mkdirat(self, path: StrPath, mode: int = 0o777, *, dir_fd: File | None = None) -> None:
        """Make a directory, with the permissions `mode` less the umask.

        Since Linux 5.15.  See io_uring_prep_mkdirat(3).
        """
        require("making directories and links")
        name, directory = in_memory(path), Directory(dir_fd)
        arguments = (directory.number, name, ffi.NULL, ffi.NULL, mode, 0)
        await self._on_names(lib.AU_OP_MKDIRAT, (path,), (directory,), *arguments)

    async def linkat(
        self,
        source: StrPath,
        destination: StrPath,
        flags: AtFlags = _NO_FLAGS,
        *,
        src_dir_fd: File | None = None,
        dst_dir_fd: File | None = None,
    ) -> None:
        """Give a file one more name.

        Args:
            source: a present name.
            destination: the additional one, in the same file system.
            flags: `AtFlags.SYMLINK_FOLLOW`: where `source` is a symbolic link, of the file it leads to.
            src_dir_fd: an open directory that `source` is relative to.
            dst_dir_fd: an open directory that `destination` is relative to.

        Since Linux 5.15.  See io_uring_prep_linkat(3).
        """
        require("making directories and links")
        old, new = in_memory(source), in_memory(destination)
        start, goal = directories = Directory(src_dir_fd), Directory(dst_dir_fd)
        arguments = (start.number, old, new, ffi.NULL, goal.number & 0xFFFFFFFF, flags)
        await self._on_names(lib.AU_OP_LINKAT, (source, destination), directories, *arguments)

    async def symlinkat(self, target: StrPath, path: StrPath, *, dir_fd: File | None = None) -> None:
        """Make a symbolic link at `path` that leads to `target`.

        Since Linux 5.15.  See io_uring_prep_symlinkat(3).
        """
        require("making directories and links")
        leads, name, directory = in_memory(target, "target"), in_memory(path), Directory(dir_fd)
        arguments = (directory.number, leads, name, ffi.NULL, 0, 0)
        await self._on_names(lib.AU_OP_SYMLINKAT, (target, path), (directory,), *arguments)

    async def _on_names(
        self, opcode: int, names: Sequence[StrPath], directories: tuple[Directory, ...], *arguments: Any
    ) -> None:
        """Perform a request on names; it keeps what it points to."""
        request = PathRequest(*arguments, *directories)
        await perform_named(self._driver or self._bound(), request, names, directories, opcode, *arguments)


def _how(flags: int, mode: int, resolve: int) -> Any:
    """What openat2 is asked for; a mode is refused by the kernel where nothing is made."""
    made = flags & _MADE
    return ffi.new("struct au_open_how *", {"flags": flags, "mode": mode if made else 0, "resolve": resolve})


def _opening(directory: Directory, name: Any, way: Any, slot: int, *, background: bool) -> tuple[Any, ...]:
    size, how = ffi.sizeof("struct au_open_how"), lib.AU_SQE_ASYNC if background else 0
    return (lib.au_prepare_path, lib.AU_OP_OPENAT2, directory.number, name, way, ffi.NULL, size, 0, slot, how)
