"""Owns how names of files are handed to the kernel: their memory, the directories they start from, and their errors.

Ownership.  A request holds the memory of its names, and whatever else it points to, until its final completion.

A directory is looked up by its number when a worker of the kernel comes to the request, long after it was submitted:
of 200 requests whose descriptor was replaced right after the submission, 200 met the other file (Linux 6.18).  So a
directory is duplicated first; whatever becomes of the caller's descriptor, the request never meets another directory.
The duplicate is closed when the request has ended.
"""

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from aiouring._direct_descriptor import DirectDescriptor
from aiouring._request import Request
from aiouring._uring import ffi, lib
from aiouring._verbs import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiouring._driver import Driver
    from aiouring._verbs import File

StrPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def in_memory(name: StrPath, what: str = "path") -> Any:
    """A name as the kernel takes it: bytes of its own, up to a null byte."""
    encoded = os.fsencode(name)
    if b"\0" in encoded:
        raise ValueError(f"the {what} has a null byte in it: {name!r}")
    return ffi.new("char[]", encoded)


class Directory:
    """Where a name starts: our duplicate of an open directory, or the working directory."""

    __slots__ = ("number",)

    def __init__(self, dir_fd: "File | None") -> None:
        self.number: int = lib.AU_AT_FDCWD
        if isinstance(dir_fd, DirectDescriptor):
            raise TypeError(
                "the kernel takes no direct descriptor for dir_fd: get a descriptor with fixed_fd_install()"
            )
        if dir_fd is not None:
            self.number = os.dup(resolve(dir_fd)[0])

    @property
    def held(self) -> Self | None:
        """What a request on it holds: nothing, where it is the working directory."""
        return self if self.number >= 0 else None

    def fileno(self) -> int:
        """The duplicate's descriptor."""
        return self.number

    def close(self) -> None:
        """Close the duplicate."""
        number, self.number = self.number, lib.AU_AT_FDCWD
        if number >= 0:
            os.close(number)

    __del__ = close


class PathRequest(Request):
    """A request on names; `kept` is what it points to, or needs open."""

    __slots__ = ("kept",)
    events = 0  # nothing is there to be polled: a lease on the file, say, has to be given up by its holder

    def __init__(self, *kept: Any) -> None:
        super().__init__()
        self.kept = kept
        self.ended = True  # the kernel has nothing yet

    def let_go(self) -> None:
        """Close the duplicates of directories."""
        if self.ended:
            for each in self.kept:
                if isinstance(each, Directory):
                    each.close()
            super().let_go()


class Naming:
    """A `with` block around a request on names: its errors name them, and its directories are closed after it."""

    __slots__ = ("_directories", "_names", "_request")

    def __init__(self, request: Request, *names: StrPath, directories: tuple[Directory, ...]) -> None:
        self._request = request
        self._names = names
        self._directories = directories

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._request.ended:  # else it keeps them
            for directory in self._directories:
                directory.close()
        if isinstance(error, OSError) and error.filename is None:
            name_files(error, *self._names)


def name_files(error: OSError, *names: StrPath) -> None:
    """Put the names into an error, as the functions of `os` do."""
    error.filename = os.fspath(names[0])
    if len(names) > 1:
        error.filename2 = os.fspath(names[1])


async def perform_named(
    driver: "Driver", request: Request, names: "Sequence[StrPath]", directories: tuple[Directory, ...], *arguments: Any
) -> int:
    """Perform a request on names, which its error has; returns its result."""
    with Naming(request, *names, directories=directories):
        return await driver.perform(request, lib.au_prepare_path, *arguments, -1, 0)
