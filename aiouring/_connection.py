"""Owns `Connection`: a stream socket as most users want it, with nothing lost whatever is cancelled.

The kernel keeps one receive armed (see `_multishot`), so waiting for data is waiting on a queue, and a reader
that is cancelled has taken nothing.  Writing never waits: parts are queued, and one request per turn of the
loop sends them in order (see `_sending`); `drain()` waits when too much is queued.

The connection owns its socket: it takes the descriptor out of the socket object that it is made of, so nobody
else can close it, or receive from it, in between.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

from aiouring._async_ring import AsyncRing
from aiouring._buffer_ring import BufferRing, ProvidedBuffer, end_of_stream
from aiouring._errors import ResourceBusyError, RingClosedError, kernel_error
from aiouring._features import require
from aiouring._framing import LIMIT, Framing
from aiouring._multishot import Receiving
from aiouring._sending import Sending, checked_parts
from aiouring._tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT, Engine, TLSSettings
from aiouring._tls_receiving import TLSReceiving
from aiouring._tls_sending import TLSSending
from aiouring._verbs import Bytes


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """How a connection stands."""

    pending: int  # chunks that came and nobody has taken
    to_send: int  # bytes written that the kernel has not taken
    receiving: bool  # whether the kernel has a receive armed: not while it waits for a buffer, or for the reader


class Connection:
    """A connected stream socket on a ring; use it with `async with`, or `async for` its chunks.

    Args:
        ring: the ring of the running loop.
        sock: a connected stream socket.  The connection takes it over: the object is detached.
        group: the buffer ring that received data comes in.
        max_pending: chunks that may wait here for a reader before the kernel is told to stop receiving; None
            is an eighth of the group's buffers, at least one and at most 64.
        bundle: let one completion bring several chunks: less work where messages are larger than the buffers.  Since
            Linux 6.10.

    Received chunks are lent buffers: release them, use them in a `with` block, or `write()` them, which hands
    them over.  Since Linux 6.0.  See io_uring_prep_recv_multishot(3).
    """

    def __init__(
        self,
        ring: AsyncRing,
        sock: socket.socket,
        group: BufferRing,
        *,
        max_pending: int | None = None,
        bundle: bool = False,
    ) -> None:
        self._closed = True
        if not isinstance(group, BufferRing):
            raise TypeError(f"a BufferRing from register_buffer_ring() is needed, not {type(group).__name__}")
        if isinstance(sock, socket.socket) and sock.type != socket.SOCK_STREAM:
            raise ValueError(f"a connection is a stream socket, not {sock.type!r}")
        require("bundles" if bundle else "multishot receive")
        high = group.most_pending(max_pending)
        self._driver = driver = ring._claim(sock)
        self._socket = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        number = self._socket.fileno()
        self._receiving: Receiving | TLSReceiving = Receiving(
            driver, number, None, 0, group, high, keeps_boundaries=False, bundle=bundle
        )
        self._sending: Sending | TLSSending = Sending(driver, number, group)
        self._write_through(self._sending)
        self._engine: Engine | None = None
        self._framing: Framing | None = None
        self._gone: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Connection {'closed' if self._closed else f'fd={self._socket.fileno()}'}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        await self.aclose()

    # ---- receiving -----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[ProvidedBuffer]:
        return self._receiving

    async def receive(self) -> ProvidedBuffer:
        """The next chunk that arrived, lent; empty, and falsy, at the end of the stream.

        Cancelling it loses nothing.

        Raises:
            OSError: what ended the stream, after everything that came before; `ssl.SSLEOFError` where TLS was cut.
            ResourceBusyError: another task is receiving.
            BuffersExhaustedError: the group is empty, and was registered with on_empty="raise".
        """
        if self._framing is not None:
            self._framing.check_free()
        try:
            return await self._receiving.__anext__()
        except StopAsyncIteration:
            return end_of_stream()

    async def receive_exactly(self, count: int) -> bytes:
        """The next `count` bytes, as a copy.

        Cancelling it loses nothing: what it had gathered is what the next receive, of any kind, begins with.  So it
        is after an `OSError`.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; what there was is its `partial`.
            OSError, ResourceBusyError, BuffersExhaustedError: as `receive()`.
        """
        return await self.framing().exactly(count)

    async def receive_until(self, separator: bytes, *, limit: int = LIMIT) -> bytes:
        """The next bytes up to `separator` and with it, as a copy.  Cancelling it loses nothing, see above.

        Args:
            separator: one or more bytes.
            limit: how many bytes may come before it.

        Raises:
            asyncio.LimitOverrunError: more came before it; all of it can still be received.
            asyncio.IncompleteReadError: the stream ended before; what there was is its `partial`.
            OSError, ResourceBusyError, BuffersExhaustedError: as `receive()`.
        """
        return await self.framing().until(separator, limit)

    def framing(self) -> Framing:
        """What framed receives go through; for adapters."""
        framing = self._framing
        if framing is None:
            framing = self._framing = Framing(self._receiving)
        return framing

    # ---- sending -------------------------------------------------------------------------------

    def _write_through(self, sending: Sending | TLSSending) -> None:
        """Spare what is on every message's way a call; what a subclass has of its own stays."""
        if type(self).write is Connection.write:
            self.write = sending.write  # type: ignore[method-assign]
        if type(self).drain is Connection.drain:
            self.drain = sending.drain  # type: ignore[method-assign]

    def write(self, data: Bytes) -> None:
        """Queue bytes to be sent, behind what was written before; never waits, see `drain()`.

        A lent buffer is handed over: its lease ends, and it goes back to its pool when it is sent.  `bytes` are
        kept as they are until then; anything else is copied.

        Raises:
            OSError: an earlier send failed, or the connection has been closed.
            ValueError, ResourceBusyError, BufferError: a lent buffer that cannot be released cannot be handed over.
        """
        self._sending.write(data)

    async def drain(self) -> None:
        """Wait while too much is queued for sending; raises `OSError` if sending has failed."""
        await self._sending.drain()

    async def send(self, *parts: Bytes | list[Bytes] | tuple[Bytes, ...]) -> None:
        """Write all `parts`, and wait until the kernel has taken everything written so far.

        A list or tuple is taken as the parts it holds.  What others send meanwhile comes before or after all of them.
        Cancelling it takes nothing back: what was written is still sent.

        Raises:
            TypeError: one of them has no bytes; none of them is written.
            OSError and others: as `write()`.
        """
        pieces = (piece for part in parts for piece in (part if isinstance(part, list | tuple) else (part,)))
        for piece in checked_parts(pieces):
            self._sending.write(piece)
        await self._sending.below(0)

    async def send_eof(self) -> None:
        """Send what is queued, then tell the peer that nothing more will come; receiving goes on.

        With TLS by its close-notify, after which many a peer closes the connection.
        """
        await self._sending.send_eof(self._socket)

    # ---- TLS -----------------------------------------------------------------------------------

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float = HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    ) -> None:
        """Go on with TLS: from here on everything that is sent and received is encrypted, on the same connection.

        What was written before is sent as it is.  What arrived before and was not taken is TLS's, whatever it is: a
        byte that somebody put behind the last message in plain makes the handshake fail, and is never received as if
        it had come by TLS.  A loop over the chunks that was begun before has to be begun again.

        Args:
            sslcontext: what to offer and to demand; a server's has its certificate.
            server_side: whether this end answers the handshake that the peer begins.
            server_hostname: for a client, whom the certificate must name; needed unless the context checks no names.
            ssl_handshake_timeout: seconds that the handshake may take.
            ssl_shutdown_timeout: seconds that the peer has, when this is closed, for what is left to send, 256 KiB at a
                time; then it is closed all the same.

        Raises:
            ssl.SSLError: the handshake failed; `ssl.SSLCertVerificationError` is one.
            ConnectionAbortedError: it took too long, or the connection was closed meanwhile.
            ResourceBusyError: a task is receiving from the connection.
            RuntimeError: it is encrypted already.
            OSError: the connection was lost.

        After any of these but the last but one and two, and when it is cancelled, the connection is closed.
        """
        await self._start_tls(
            TLSSettings(sslcontext, server_side, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
        )

    async def _start_tls(self, settings: TLSSettings) -> None:
        receiving, sending = self._receiving, self._sending
        if not isinstance(receiving, Receiving) or not isinstance(sending, Sending):
            raise RuntimeError("the connection is encrypted already: TLS within TLS is not supported")
        if self._closed:
            raise kernel_error(errno.ECONNABORTED, "the connection has been closed")
        if receiving._ready or receiving.taker or (self._framing is not None and self._framing.busy):
            raise ResourceBusyError("a task is receiving from this connection: TLS cannot start in the middle of that")
        engine = Engine(settings)
        self._sending = encrypting = TLSSending(self._driver, engine, sending, settings.shutdown_timeout)
        self._receiving = decrypting = TLSReceiving(self._driver, engine, receiving, encrypting)
        self._write_through(encrypting)
        if self._framing is not None:
            engine.feed(self._framing.move(decrypting))
        self._engine = engine
        try:
            async with asyncio.timeout(settings.handshake_timeout) as deadline:
                await decrypting.handshake()
        except BaseException as error:
            try:
                if isinstance(error, ssl.SSLError):
                    with contextlib.suppress(OSError):  # an alert tells the peer why
                        async with asyncio.timeout(settings.shutdown_timeout):
                            await sending.below(0)
            finally:
                self.abort()
            if isinstance(error, Exception):
                await self.wait_closed()
            if isinstance(error, TimeoutError) and deadline.expired():
                text = f"the TLS handshake took longer than {settings.handshake_timeout} s (ssl_handshake_timeout)"
                raise ConnectionAbortedError(errno.ECONNABORTED, text) from None
            raise

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """What knows of the TLS connection: certificate, cipher, `selected_alpn_protocol()`; None where there is none.

        To look at: reading and writing are the connection's.
        """
        return None if self._engine is None else self._engine.object

    # ---- the end -------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Send what is queued, then close; idempotent.  A peer that does not read keeps this waiting: see `abort()`.

        With TLS it sends a close-notify, too, and does not wait longer than `ssl_shutdown_timeout`.

        Cancelled, it closes without sending the rest.
        """
        if not self._closed:
            try:
                with contextlib.suppress(OSError, RingClosedError):  # it was lost before; it is closed all the same
                    await self._sending.send_rest(self._socket)
            finally:
                self.abort()
        if self._gone is not None:
            await asyncio.shield(self._gone)

    def abort(self) -> None:
        """Close without sending what is queued, nor TLS's close-notify; idempotent.

        The descriptor is closed when the kernel is done with what is in flight, which `aclose()` waits for.
        """
        if self._closed:
            return
        self._closed = True
        self._receiving.stop(self._stop_sending())
        ends = [self._receiving.end(), self._sending.end()]
        self._gone = self._gone or self._driver.new_future()
        self._unended = [end for end in ends if end is not None]
        for end in self._unended:
            end.add_done_callback(self._ended)
        if not self._unended:
            self._close_socket()

    def _stop_sending(self) -> OSError:
        """Send nothing of what is queued, and nothing more."""
        error = kernel_error(errno.ECONNABORTED, "the connection has been closed")
        self._sending.drop(error)
        return error

    async def wait_closed(self) -> None:
        """Wait until the connection has been closed, by whomever; `aclose()` closes it."""
        if self._gone is None:
            self._gone = self._driver.new_future()
        await asyncio.shield(self._gone)

    def when_closed(self, what: Callable[[], object]) -> None:
        """Have `what` called soon after the connection was closed, by whomever; for servers."""
        if self._gone is None:
            self._gone = self._driver.new_future()
        self._gone.add_done_callback(lambda _: what())

    def _ended(self, end: "asyncio.Future[int]") -> None:
        self._unended.remove(end)
        if not self._unended:
            self._close_socket()

    def _close_socket(self) -> None:
        """Nothing is in flight any more: nothing can meet the descriptor's number when it is used again."""
        self._receiving.drop()
        self._sending.forget()
        self._socket.close()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def __del__(self) -> None:
        if self._closed:
            return
        warnings.warn(f"{self!r} was never closed: use 'async with', or await aclose()", ResourceWarning, 1, self)
        self._driver.ask_from_elsewhere(self.abort)

    # ---- about it ------------------------------------------------------------------------------

    @property
    def local_address(self) -> Any:
        """The address of this end, as `socket.getsockname()` says it."""
        return self._socket.getsockname()

    @property
    def peer_address(self) -> Any:
        """The address of the other end, as `socket.getpeername()` says it."""
        return self._socket.getpeername()

    def statistics(self) -> ConnectionStatistics:
        """What is queued in each direction."""
        return ConnectionStatistics(self._receiving.pending, self._sending.pending, self._receiving.armed)
