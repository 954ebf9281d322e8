"""Owns the verbs on extended attributes: `getxattr`, `setxattr`, and the same of an open file."""

import errno
from typing import Any

from aiouring._features import require
from aiouring._late_requests import Late
from aiouring._paths import PathRequest, StrPath, in_memory, perform_named
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, memory_of, resolve

#: As os.getxattr() does: most are short, and none is longer than XATTR_SIZE_MAX.
_SIZES = (256, 65536)


class AttributeVerbs(Verbs):
    """The part of `AsyncRing` that reads and sets extended attributes; io_uring cannot list or remove them."""

    async def getxattr(self, path: StrPath, name: StrPath) -> bytes:
        """The value of an extended attribute; symbolic links are followed.

        Args:
            path: the file's name, relative to the working directory.
            name: the attribute's, "user.comment".

        Raises:
            OSError: ENODATA where there is no such attribute, ENOTSUP where the file system has none.

        Since Linux 5.19.  See io_uring_prep_getxattr(3).
        """
        require("extended attributes")
        driver, given, asked = self._driver or self._bound(), in_memory(path), in_memory(name, "name")
        for size in _SIZES:
            value = ffi.new("char[]", size)
            request = PathRequest(given, asked, value)
            try:
                arguments = (lib.AU_OP_GETXATTR, -1, asked, value, given, size, 0)
                length = await perform_named(driver, request, (path,), (), *arguments)
                return bytes(ffi.buffer(value, length))
            except OSError as error:
                if not _too_short(error, size):
                    raise
        raise AssertionError("the last size returns or raises")

    async def setxattr(self, path: StrPath, name: StrPath, value: Bytes, flags: int = 0) -> None:
        """Set an extended attribute; symbolic links are followed.

        Args:
            path: the file's name, relative to the working directory.
            name: the attribute's.
            value: any buffer; held until the kernel is done.
            flags: `os.XATTR_CREATE` (FileExistsError where there is one), `os.XATTR_REPLACE` (ENODATA where not).

        Since Linux 5.19.  See io_uring_prep_setxattr(3).
        """
        require("extended attributes")
        driver, given, asked = self._driver or self._bound(), in_memory(path), in_memory(name, "name")
        memory, length, lease = memory_of(value, writable=False)
        request = PathRequest(given, asked)
        request.hold, request.lease = memory, lease
        arguments = (lib.AU_OP_SETXATTR, -1, asked, memory, given, length, flags)
        try:
            await perform_named(driver, request, (path,), (), *arguments)
        finally:
            request.let_go()

    async def fgetxattr(self, fd: File, name: StrPath) -> bytes:
        """The value of an extended attribute of an open file.

        Raises what `getxattr()` does.  Keep the file open until this returns.  Since Linux 5.19.  See
        io_uring_prep_fgetxattr(3).
        """
        require("extended attributes")
        asked = in_memory(name, "name")
        for size in _SIZES:
            value = ffi.new("char[]", size)
            try:
                length = await self._of_open(lib.AU_OP_FGETXATTR, fd, asked, value, size, None, 0)
                return bytes(ffi.buffer(value, length))
            except OSError as error:
                if not _too_short(error, size):
                    raise
        raise AssertionError("the last size returns or raises")

    async def fsetxattr(self, fd: File, name: StrPath, value: Bytes, flags: int = 0) -> None:
        """Set an extended attribute of an open file.

        Takes and raises what `setxattr()` does.  Keep the file open until this returns.  Since Linux 5.19.  See
        io_uring_prep_fsetxattr(3).
        """
        require("extended attributes")
        asked = in_memory(name, "name")
        memory, length, lease = memory_of(value, writable=False)
        await self._of_open(lib.AU_OP_FSETXATTR, fd, asked, memory, length, lease, flags)

    async def _of_open(self, opcode: int, fd: File, name: Any, memory: Any, length: int, lease: Any, flags: int) -> int:
        number, file, how = resolve(fd)
        driver = self._driver or self._bound()
        request = Late(number, file, memory, lease)
        request.kept = name
        try:
            return await driver.perform(
                request, lib.au_prepare_path, opcode, number, name, memory, ffi.NULL, length, flags, -1, how
            )
        finally:
            request.let_go()


def _too_short(error: OSError, size: int) -> bool:
    """Whether a longer buffer might do."""
    return error.errno == errno.ERANGE and size != _SIZES[-1]
