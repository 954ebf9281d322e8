"""Owns `Path`: a path whose methods on files are coroutines, with the names that `pathlib.Path` has."""

import stat as status
from collections.abc import AsyncIterator, Callable
from pathlib import PurePosixPath
from typing import Any, Self

from aiouring import _path_functions as functions
from aiouring._open import BinaryMode, Opening, TextMode
from aiouring._open import open as open_file
from aiouring._paths import StrPath
from aiouring._stat import StatxResult
from aiouring._verbs import Bytes


class Path(PurePosixPath):
    """A path as `pathlib` has it; what asks or changes the file system is awaited, on the running loop's own ring.

    Everything that needs no file system (`/`, `parent`, `name`, `suffix`, `with_name()`, `relative_to()` ...) is
    `pathlib.PurePosixPath`'s, and gives a `Path` again.
    """

    __slots__ = ()

    def open(
        self,
        mode: TextMode | BinaryMode = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **options: Any,
    ) -> Opening[Any]:
        """Open the file; see `aiouring.open()`."""
        return open_file(self, str(mode), buffering, encoding, errors, newline, **options)

    async def read_bytes(self) -> bytes:
        """Read the whole file."""
        return await functions.read_bytes(self)

    async def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the whole file of text."""
        return await functions.read_text(self, encoding, errors)

    async def write_bytes(self, data: Bytes, *, atomic: bool = False) -> int:
        """Make `data` all that the file has; see `aiouring.write_bytes()`."""
        return await functions.write_bytes(self, data, atomic=atomic)

    async def write_text(
        self,
        text: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        atomic: bool = False,
    ) -> int:
        """Make `text` all that the file has; see `aiouring.write_bytes()`."""
        return await functions.write_text(self, text, encoding, errors, newline, atomic=atomic)

    async def stat(self, *, follow_symlinks: bool = True) -> StatxResult:
        """What the file is."""
        return await functions.stat(self, follow_symlinks=follow_symlinks)

    async def lstat(self) -> StatxResult:
        """What the file is; a symbolic link itself, where it is one."""
        return await functions.stat(self, follow_symlinks=False)

    async def exists(self) -> bool:
        """Whether there is such a file."""
        return await functions.exists(self)

    async def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return await self._is(status.S_ISREG)

    async def is_dir(self) -> bool:
        """Whether it is a directory, or a link to one."""
        return await self._is(status.S_ISDIR)

    async def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return await self._is(status.S_ISLNK, follow_symlinks=False)

    async def _is(self, kind: Callable[[int], bool], *, follow_symlinks: bool = True) -> bool:
        try:
            return kind((await functions.stat(self, follow_symlinks=follow_symlinks)).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False

    async def iterdir(self) -> AsyncIterator[Self]:
        """The paths in the directory; they are listed in a thread, since io_uring has no operation for it."""
        for name in await functions.listdir(self):
            yield self / name

    async def rename(self, target: StrPath) -> Self:
        """Give the file another name; returns the new path."""
        await functions.rename(self, target)
        return type(self)(target)  # type: ignore[arg-type]  # bytes are refused there

    async def replace(self, target: StrPath) -> Self:
        """As `rename()`."""
        return await self.rename(target)

    async def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        """Remove the name."""
        try:
            await functions.remove(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self) -> None:
        """Remove the empty directory."""
        await functions.rmdir(self)

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Make the directory; with `parents` those above it, too."""
        if parents:
            await functions.makedirs(self, mode, exist_ok)
            return
        try:
            await functions.mkdir(self, mode)
        except OSError:
            if not exist_ok or not await self.is_dir():
                raise

    async def symlink_to(self, target: StrPath) -> None:
        """Make this a symbolic link that leads to `target`."""
        await functions.symlink(target, self)

    async def hardlink_to(self, target: StrPath) -> None:
        """Make this one more name of the file `target`."""
        await functions.link(target, self)

    async def truncate(self, length: int) -> None:
        """Make the file `length` bytes long."""
        await functions.truncate(self, length)
