"""Owns `ReceiveStream` and `MessageStream`: `async for` over what arrives at a socket, by bytes or by messages."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiouring._buffer_ring import ProvidedBuffer
    from aiouring._multishot import Receiving
    from aiouring._received_message import ReceivedMessage
    from aiouring._receiving_messages import ReceivingMessages


class ReceiveStream:
    """Chunks as they arrive, each a lent buffer; ends at the end of the stream.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.  Whatever
    arrived and was not taken goes to the next receive on the socket.
    """

    __slots__ = ("_forget", "_receiving")

    def __init__(self, receiving: "Receiving", forget: Callable[[], object]) -> None:
        self._receiving = receiving
        self._forget = forget

    def __repr__(self) -> str:
        return f"<ReceiveStream of {self._receiving!r}>"

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> "Coroutine[None, None, ProvidedBuffer]":
        """The next chunk.  Cancelling it loses nothing: what arrives stays here.

        Raises:
            StopAsyncIteration: the stream has ended.
            OSError: what ended it, after everything that came before.
            ResourceBusyError: another task is already waiting for the next chunk.
            BuffersExhaustedError: the group is empty, and was registered with on_empty="raise".
        """
        return self._receiving.__anext__()

    @property
    def pending(self) -> int:
        """Chunks that have arrived and that nobody has taken."""
        return self._receiving.pending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop receiving, and wait until the kernel has stopped; idempotent.

        What arrived and was not taken goes to the next receive on the socket.  Cancelled, it stops all the same.
        """
        self._receiving.retire(self._forget)
        end = self._receiving.end()
        if end is not None:
            await end

    def __del__(self) -> None:
        if not self._receiving.closing:
            self._receiving.retire_soon(self._forget)


class MessageStream(ReceiveStream):
    """Messages as they arrive, each with its sender's address and its control data, in a lent buffer.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.  Whatever arrived and
    was not taken goes to the next receive on the socket, whole.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __init__(self, receiving: ReceivingMessages, forget: Callable[[], object]) -> None:
            """A stream is made by `AsyncRing.recvmsg_multishot()`."""

        def __anext__(self) -> Coroutine[None, None, ReceivedMessage]:
            """The next message, see `ReceiveStream`; the stream of a socket of datagrams never ends by itself."""
