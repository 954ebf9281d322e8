"""Owns `AcceptStream` and `PollStream`: `async for` over the connections of a listener, or the events of a file."""

import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiouring._accepting import Accepting
from aiouring._polling import Polling
from aiouring._standing import Standing

if TYPE_CHECKING:
    from aiouring._verbs import File


class StandingStream:
    """What the streams have in common: leaving one in any way ends its request."""

    __slots__ = ("_forget", "_standing")

    def __init__(self, standing: Standing, forget: Callable[[], object]) -> None:
        self._standing = standing
        self._forget = forget

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._standing!r}>"

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, and wait until the kernel has stopped; idempotent.  Cancelled, it stops all the same."""
        self._standing.retire(self._forget)
        end = self._standing.ending()
        if end is not None:
            await end

    def __del__(self) -> None:
        if not self._standing.closing:
            self._standing.retire_soon(self._forget)


class AcceptStream(StandingStream):
    """Connections as they come, each a socket that is the taker's.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.  Connections that came
    and were not taken are closed: their peers see the end.
    """

    __slots__ = ("_accepting", "_listener")

    def __init__(self, accepting: Accepting, listener: "File", forget: Callable[[], object]) -> None:
        super().__init__(accepting, forget)
        self._accepting = accepting
        self._listener = listener

    async def __anext__(self) -> socket.socket:
        """The next connection.  Cancelling this loses none: it stays here.

        Raises:
            OSError: what ended it, after the connections that came before; ECANCELED where the stream was closed,
                or the listener closed or cancelled by way of the ring.
            ResourceBusyError: another task is already waiting for the next connection.
            RingClosedError: the ring was closed.
        """
        return connection_of(self._listener, await self._accepting.take())

    @property
    def pending(self) -> int:
        """Connections that have come and that nobody has taken."""
        return self._accepting.pending


class PollStream(StandingStream):
    """Events of a file as they become true, each a mask.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.
    """

    __slots__ = ("_polling",)

    def __init__(self, polling: Polling, forget: Callable[[], object]) -> None:
        super().__init__(polling, forget)
        self._polling = polling

    async def __anext__(self) -> int:
        """The events that have become true since the last time.  Cancelling this loses none.

        Raises:
            OSError: what ended it; ECANCELED where the stream was closed, or the file closed or cancelled by way of the
                ring.
            ResourceBusyError: another task is already waiting here.
            RingClosedError: the ring was closed.
        """
        return await self._polling.take()


def connection_of(listener: "File", fd: int) -> socket.socket:
    """The socket object of a connection that `listener` accepted; it does not block."""
    try:
        if isinstance(listener, socket.socket):
            connection = socket.socket(listener.family, listener.type, listener.proto, fileno=fd)
        else:
            connection = socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)  # nobody has it
        raise
    connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return connection
