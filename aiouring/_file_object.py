"""Owns `FileObject`: what open files of bytes and of text have in common, and the order of their operations."""

import asyncio
import io
import os
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Generic, NoReturn, Self, TypeVar
from weakref import WeakSet

S = TypeVar("S", bytes, str)

#: Those that a fork's child takes over, and may not use.
_made: "WeakSet[FileObject[Any]]" = WeakSet()


class InOrder:
    """Lets one task after the other in, as they come; `users` are those who are in, or wait.

    Args:
        check_here: raises where a task cannot come in at all: it is another thread's, or another loop's.
    """

    __slots__ = ("_check_here", "_lock", "users")

    def __init__(self, check_here: Callable[[], None]) -> None:
        self._check_here = check_here
        self._lock = asyncio.Lock()
        self.users = 0

    async def __aenter__(self) -> None:
        self._check_here()
        self.users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.users -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self.users -= 1
        self._lock.release()


class FileObject(Generic[S]):
    """An open file of lines: `async with` closes it, `async for` reads its lines."""

    def __init__(self, mode: str, check_here: Callable[[], None]) -> None:
        self._mode = mode
        self._thread = get_ident()  # 0 in a fork's child; what needs no request looks at this alone: it is the fastest
        self._order = InOrder(check_here)
        _made.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self._mode!r}{' closed' if self.closed else ''}>"

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        self._check()
        return self

    async def __anext__(self) -> S:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    @property
    def name(self) -> Any:
        """The path it was opened with, or the descriptor."""
        raise NotImplementedError

    @property
    def mode(self) -> str:
        """The mode it was opened with."""
        return self._mode

    @property
    def closed(self) -> bool:
        """Whether it is closed, or being closed."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor.  Raises `ValueError` when the file is closed."""
        raise NotImplementedError

    async def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.fileno())

    def detach(self) -> NoReturn:
        """Not supported, unlike the built-in's: what reads ahead and writes behind could not let go at once.

        Raises:
            io.UnsupportedOperation: always; the text says what to do instead.
        """
        raise io.UnsupportedOperation(
            "a file that reads ahead and writes behind cannot be taken apart: to keep its descriptor, open that with "
            "closefd=False, or flush() and os.dup(file.fileno()); the bytes of a text file are file.buffer"
        )

    def _check(self, what: str = "") -> None:
        """Raise `ValueError` where the file is closed, and where its mode is not for "read" or "write"."""
        raise NotImplementedError

    async def readline(self, size: int | None = -1) -> S:
        """Read a line."""
        raise NotImplementedError

    async def readlines(self, hint: int | None = -1) -> list[S]:
        """Read all lines, or until they are longer than `hint` together."""
        lines: list[S] = []
        total = 0
        async for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    async def write(self, data: S) -> int:
        """Write all of it."""
        raise NotImplementedError

    async def writelines(self, lines: Iterable[S]) -> None:
        """Write each of `lines`, without adding anything."""
        for line in lines:
            await self.write(line)

    async def close(self) -> None:
        """Close."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """As `close()`."""
        await self.close()


def _forked() -> None:
    for file in _made:
        file._thread = 0


os.register_at_fork(after_in_child=_forked)
