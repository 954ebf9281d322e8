"""Owns `TLSReceiving`: what arrives on a TLS connection, decrypted; and the connection's handshake.

How this fits together

1. The `Receiving` below brings ciphertext, and tells us instead of a reader (we stand where its reader's future would).
   A reader of ours that waits is woken, and decrypts when it runs; where nobody waits, a callback does.  So what the
   peer says about TLS itself (tickets, key updates, alerts, its end) is always heard, and a reader that is cancelled
   has taken nothing.
2. Each chunk of ciphertext goes back to its group at once, and makes at most one chunk of plaintext, in memory of its
   own; with what is there right behind it, up to a record more: so a buffer's worth and the little that TLS adds to
   it are one chunk.  As many as the stream's `max_pending` may wait here; then nothing is taken from below, where as
   many may wait again before the kernel is told to stop.
3. The end is the peer's close-notify, which ends nothing but this direction.  Whatever comes after it is nobody's, so
   the receive below is stopped then, as it is after an error.
"""

import contextlib
import errno
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from aiouring._buffer_ring import ProvidedBuffer, private_copy
from aiouring._errors import BuffersExhaustedError, ResourceBusyError, kernel_error
from aiouring._line import wake
from aiouring._tls import RECORD, Engine
from aiouring._tls_sending import TLSSending
from aiouring._uring import lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiouring._driver import Driver
    from aiouring._multishot import Receiving

_SHIFT = lib.AU_CQE_BUFFER_SHIFT


class TLSReceiving:
    """The receiving half of one TLS connection; it has the face of `Receiving`."""

    __slots__ = (
        "_chunks",
        "_driver",
        "_early",
        "_engine",
        "_failure",
        "_feed",
        "_high",
        "_most",
        "_ready",
        "_receiving",
        "_scheduled",
        "_sending",
        "over",
    )

    def __init__(self, driver: "Driver", engine: Engine, receiving: "Receiving", sending: TLSSending) -> None:
        self._driver = driver
        self._engine = engine
        self._receiving = receiving
        self._sending = sending
        self._feed = engine.feed
        self._high = receiving._high
        self._most = receiving.group.size + RECORD
        self._chunks: deque[bytes] = deque()  # plaintext that nobody has taken
        self._early: deque[Any] = deque()  # for a `Framing`, which puts what it has not used here
        self._ready: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._scheduled = False
        self.over = False
        receiving._ready = cast("asyncio.Future[None]", self)
        self.set_result(None)  # there may be something already

    def __repr__(self) -> str:
        return f"<TLSReceiving {'over' if self.over else 'open'}, {len(self._chunks)} queued>"

    # ---- the reader ----------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProvidedBuffer:
        """The next chunk.  Cancelling this takes nothing.

        What ended the stream is raised after everything that came before.
        """
        if self._early:
            chunk: ProvidedBuffer = self._early.popleft()
            return chunk
        chunks = self._chunks
        while not chunks:
            if not self._pull():
                await self._wait()
        return private_copy(chunks.popleft())

    async def handshake(self) -> None:
        """Begin it, and wait until it is over; raises what it fails with."""
        try:
            self._decrypt()  # a client speaks first; to a server, the peer may have spoken already
            self._sending.answer()
        except ssl.SSLError as error:
            self._finish(error)
        while not self._engine.shaken:
            if not self._pull():
                await self._wait()

    async def _wait(self) -> None:
        """Nothing has arrived: wait until something does, or raise what ended the stream."""
        if self.over:
            self._raise()
        if self._ready is not None:
            raise ResourceBusyError("another task is already receiving from this connection")
        self._ready = ready = self._driver.new_future()
        try:
            await ready
        except BaseException:
            self._ready = None
            self.set_result(None)  # what it was woken for is another's, or the callback's
            raise
        self._ready = None

    def _raise(self) -> NoReturn:
        if self._failure is None:
            raise StopAsyncIteration
        raise self._failure

    # ---- what the receive below sees -----------------------------------------------------------

    def done(self) -> bool:
        """Never: we are told of everything that arrives."""
        return False

    def set_result(self, _: None) -> None:
        """Something has arrived, or the stream below is over."""
        ready = self._ready
        if ready is not None:
            if not ready.done():
                wake(ready)
        elif not self._scheduled and not self._driver.loop.is_closed():
            self._scheduled = True
            self._driver.loop.call_soon(self._pull_alone)

    def _pull_alone(self) -> None:
        """Nobody waits: what arrives may concern TLS itself."""
        self._scheduled = False
        with contextlib.suppress(BuffersExhaustedError):  # the next who receives will hear of it, or it has passed
            self._pull()
        if self._ready is not None:
            wake(self._ready)  # somebody does by now

    def _pull(self) -> bool:
        """Decrypt what has arrived, as far as there is room; whether anything had.

        Raises `BuffersExhaustedError` where nothing had; all else that is raised below ends the stream.
        """
        below, engine, sending = self._receiving, self._engine, self._sending
        chunks, some = self._chunks, False
        try:
            while not self.over and len(chunks) < self._high:
                if below.armed and not below._arrivals and not below._early and not below.over:
                    break  # nothing has
                if not self._take():
                    break
                some = True
                self._decrypt()
                if engine.to_send or sending._queued:
                    sending.answer()
        except BuffersExhaustedError:
            if not some:
                raise  # else what there is comes first; the next try may find one
        except Exception as error:
            some = True
            self._finish(error)
        if self.over:
            below.drop()  # what came after the end is nobody's
        return some

    def _decrypt(self) -> None:
        data = self._engine.decrypt()
        if data:
            self._chunks.append(data)
        if self._engine.ended or self._engine.failure is not None:
            self._finish(self._engine.failure)

    def _take(self) -> bool:
        """Feed the engine what has arrived next; False if nothing has."""
        if _pour(self._receiving, self._feed, self._most):
            return True
        try:
            self._receiving.__anext__().send(None)  # it does not wait: it would find us waiting
        except StopIteration as taken:
            with taken.value as chunk:
                self._feed(chunk.view)
        except StopAsyncIteration:
            self._engine.feed_eof()
        except ResourceBusyError:
            return False
        return True

    def _finish(self, failure: Exception | None) -> None:
        """Nothing more will come; the reader hears of it after what is queued."""
        self.over = True
        self._failure = failure
        self._sending.hear_no_more(failure)
        if not self._receiving.closing:
            self._receiving.stop(failure or kernel_error(errno.ECANCELED, "the peer has said goodbye"))
        if self._ready is not None:
            wake(self._ready)

    # ---- the end -------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Chunks that nobody has taken yet."""
        return len(self._chunks) + len(self._early)

    @property
    def armed(self) -> bool:
        """Whether the kernel has a receive armed."""
        return self._receiving.armed

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the kernel is done with the receive below; None if it has none."""
        return self._receiving.end()

    def stop(self, why: Exception) -> None:
        """Ask the kernel to end the receive below; `why` is what readers get."""
        if not self.over:
            self._finish(why)
        elif not self._receiving.closing:
            self._receiving.stop(why)

    def drop(self) -> None:
        """Forget what nobody took: the socket is being closed."""
        self._chunks.clear()
        while self._early:
            self._early.popleft().release()
        self._receiving._ready = None
        self._receiving.drop()


def _pour(receiving: "Receiving", into: "Callable[[memoryview], object]", most: int) -> bool:
    """Let `into` copy what is queued, chunk after chunk up to `most` bytes, and give the buffers back.

    It is what `__anext__()` does, without a lease.  False where nothing is queued, or no whole buffers of the group:
    then that has to be asked.
    """
    arrivals, group, total = receiving._arrivals, receiving.group, 0
    if receiving._early or group.lease is not ProvidedBuffer:
        return False
    exporters = group.arena.exporters
    while arrivals and arrivals[0][1] and (not total or total + arrivals[0][0] <= most):
        length, flags = arrivals.pop(0)
        total += length
        try:
            into(memoryview(exporters[flags >> _SHIFT])[:length])
        finally:
            group.take_back(flags >> _SHIFT)
    if total and not receiving.armed and len(arrivals) <= receiving._low:
        receiving._arm()
    return total > 0
