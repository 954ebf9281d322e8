"""Owns `Framing`: receives of an exact length, or up to a separator, over chunks that come as they come.

The bytes of a chunk are copied into `unread` in the very step that takes the chunk, so a receive that is cancelled
has taken nothing from the stream: what it gathered is what the next receive of any kind begins with.  For a plain
receive they stand, as one element, where `Receiving` looks first; a stream that is never framed pays nothing.
"""

from asyncio import IncompleteReadError, LimitOverrunError
from collections import deque
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

from aiouring._buffer_ring import ProvidedBuffer, private_copy
from aiouring._errors import ResourceBusyError

if TYPE_CHECKING:
    from collections.abc import Coroutine

#: Bytes that may come before a separator, where the caller says nothing; as in asyncio's streams.
LIMIT = 64 * 1024


class Chunks(Protocol):
    """What can be framed: the receiving half of a connection, plain or TLS's."""

    _early: deque[Any]  # where it looks for a chunk before anything else

    def __anext__(self) -> "Coroutine[Any, Any, ProvidedBuffer]":
        """The next chunk; cancelling it takes nothing."""


class _Front(deque[Any]):
    """What a receive looks into first: an element stands for all unread bytes, which are copied when it is taken."""

    __slots__ = ("_unread",)

    def __init__(self, unread: bytearray) -> None:
        super().__init__()
        self._unread = unread

    def popleft(self) -> ProvidedBuffer:
        """All that is unread, as one chunk that lies in no group's buffer."""
        super().popleft()
        chunk = private_copy(bytes(self._unread))
        self._unread.clear()
        return chunk


class Framing:
    """The framed receives of one stream; made by the first of them."""

    __slots__ = ("_front", "_receiving", "busy", "unread")

    def __init__(self, receiving: Chunks) -> None:
        self._receiving = receiving
        self.unread = bytearray()
        self.busy = False  # a task is in one of the methods below
        while receiving._early:
            with receiving._early.popleft() as chunk:
                self.unread += chunk.view
        self._front = receiving._early = _Front(self.unread)
        self._settle()

    def __repr__(self) -> str:
        return f"<Framing {len(self.unread)} unread>"

    async def exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        if index(count) < 0:
            raise ValueError(f"count={count} is negative")
        self._begin()
        try:
            while len(self.unread) < count:
                if not await self._more():
                    raise IncompleteReadError(self._take(len(self.unread)), count)
            return self._take(count)
        finally:
            self._end()

    async def until(self, separator: bytes, limit: int) -> bytes:
        """The next bytes up to `separator`, and with it; no more than `limit` may come before it."""
        if not isinstance(separator, bytes | bytearray | memoryview):
            raise TypeError(f"a separator is bytes, not {type(separator).__name__}")
        if not separator:
            raise ValueError("the separator is empty")
        if limit < 1:
            raise ValueError(f"limit={limit} is less than 1")
        self._begin()
        try:
            return self._take(await self._find(separator, limit) + len(separator))
        finally:
            self._end()

    async def _find(self, separator: bytes, limit: int) -> int:
        """Where `separator` begins."""
        unread, start = self.unread, 0
        while True:
            at = unread.find(separator, start)
            if at > limit:
                raise LimitOverrunError(f"the separator comes after {at} bytes, and limit={limit}", at)
            if at >= 0:
                return at
            start = max(0, len(unread) + 1 - len(separator))  # it may have begun
            if start > limit:
                raise LimitOverrunError(f"no separator in {len(unread)} bytes, and limit={limit}", start)
            if not await self._more():
                raise IncompleteReadError(self._take(len(unread)), None)

    async def some(self, most: int) -> bytes:
        """What is there, at least one byte and at most `most`; empty at the end of the stream."""
        self._begin()
        try:
            if not self.unread:
                await self._more()
            return self._take(min(most, len(self.unread)))
        finally:
            self._end()

    async def rest(self) -> bytes:
        """Everything to the end of the stream."""
        self._begin()
        try:
            while await self._more():
                pass
            return self._take(len(self.unread))
        finally:
            self._end()

    def take_unread(self, count: int | None = None) -> bytes:
        """The first `count` of the unread bytes, or all, at once."""
        data = self._take(len(self.unread) if count is None else count)
        self._settle()
        return data

    def move(self, receiving: Chunks) -> bytes:
        """Go on with another stream; returns what of the old one is unread, which that one may begin with."""
        self.check_free()
        data = self.take_unread()
        self._receiving._early, receiving._early = receiving._early, self._front
        self._receiving = receiving
        return data

    def check_free(self) -> None:
        """Raise where a task is in one of the methods above: two would share the bytes in an undefined way."""
        if self.busy:
            raise ResourceBusyError("another task is already receiving from this connection")

    def _begin(self) -> None:
        self.check_free()
        self.busy = True
        self._front.clear()  # or the receive that follows would take what is unread

    def _end(self) -> None:
        self.busy = False
        self._settle()

    def _settle(self) -> None:
        """Put what is unread where a plain receive looks first."""
        self._front.clear()
        if self.unread:
            self._front.append(None)

    async def _more(self) -> bool:
        """Wait for a chunk and add it to what is unread; False at the end of the stream."""
        try:
            chunk = await self._receiving.__anext__()
        except StopAsyncIteration:
            return False
        with chunk:  # where it is a copy already, no view need be made of it
            self.unread += chunk.view if chunk._home.is_group else chunk.contents()
        return True

    def _take(self, count: int) -> bytes:
        unread = self.unread
        data = bytes(unread) if count == len(unread) else bytes(unread[:count])
        del unread[:count]
        return data
