"""Owns `ThreadDescriptor`: a descriptor for system calls that io_uring has not, which are made in threads; and files'.

Ownership.  The descriptor is this object's alone.  A thread may be using it when nobody waits any more, for a thread
cannot be cancelled; then the thread closes it, and not whoever has left: the number is another file's the moment it is
closed, and the call would go to that.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

T = TypeVar("T")


class ThreadDescriptor:
    """An open descriptor, closed at the end of a `with` block, or when a thread is done with it.

    Args:
        fd: what this object closes.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, now or when a thread is done with it; once."""
        with self._lock:
            self._closed = True
            self._close_if_unused()

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """`call(fd, *arguments)` in a thread."""
        return await asyncio.to_thread(self._run, call, *arguments)

    def _run(self, call: Callable[..., T], *arguments: Any) -> T:
        with self._lock:
            if self._closed:
                raise ValueError("I/O operation on closed file.")  # for nobody: whoever asked has left
            self._users += 1
        try:
            return call(self._fd, *arguments)
        finally:
            with self._lock:
                self._users -= 1
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and not self._users and self._fd >= 0:
            fd, self._fd = self._fd, -1  # first: the number is another file's the moment it is closed
            os.close(fd)


class InThreads:
    """The part of a file that makes system calls in threads.

    They use a duplicate, which is closed with the file and not before: closing any descriptor of a file ends the
    process's record locks on it (fcntl(2)).  A descriptor that stays its owner's is used itself, for the same reason.
    """

    fd: int
    owned: bool
    closed: bool
    cached: bool
    _beside: ThreadDescriptor | None = None

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """`call(fd, *arguments)` in a thread; `ValueError` when the file is closed."""
        fd = self.fileno()
        if not self.owned:
            return await asyncio.to_thread(call, fd, *arguments)
        if self._beside is None:
            self._beside = ThreadDescriptor(os.dup(fd))
        return await self._beside.run(call, *arguments)

    def shut(self) -> None:
        """Refuse to be used from here on; what threads use is closed when they are done with it."""
        self.closed = True
        self.cached = False
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def fileno(self) -> int:
        """The descriptor; `ValueError` when the file is closed."""
        raise NotImplementedError
