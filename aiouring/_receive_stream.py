"""Owns `ReceiveStream` and `MessageStream`: `async for` over what arrives at a socket, by bytes or by messages."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiouring._bundle import ProvidedBundle
    from aiouring._multishot import Receiving
    from aiouring._provided_buffer import ProvidedBuffer
    from aiouring._received_message import ReceivedMessage

Chunk = TypeVar("Chunk", bound="ProvidedBuffer | ProvidedBundle | ReceivedMessage")


class ReceiveStream(Generic[Chunk]):
    """Chunks as they arrive, each a lent buffer, or a bundle of them; ends at the end of the stream.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.  Whatever
    arrived and was not taken goes to the next receive on the socket.
    """

    __slots__ = ("_forget", "_next", "_receiving")

    def __init__(
        self,
        receiving: "Receiving",
        following: "Callable[[], Coroutine[None, None, Chunk]]",
        forget: Callable[[], object],
    ) -> None:
        self._receiving = receiving
        self._next = following
        self._forget = forget

    def __repr__(self) -> str:
        return f"<ReceiveStream of {self._receiving!r}>"

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> "Coroutine[None, None, Chunk]":
        """The next chunk.  Cancelling it loses nothing: what arrives stays here.

        Raises:
            StopAsyncIteration: the stream has ended.
            OSError: what ended it, after everything that came before.
            ResourceBusyError: another task is already waiting for the next chunk.
            BuffersExhaustedError: the group is empty, and was registered with on_empty="raise".
        """
        return self._next()

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


class MessageStream(ReceiveStream["ReceivedMessage"]):
    """Messages as they arrive, each with its sender's address and its control data, in a lent buffer.

    Leaving the `async for` drops the stream, which ends it as `aclose()` does, without waiting.  Whatever arrived and
    was not taken goes to the next receive on the socket, whole.
    """

    __slots__ = ()
