"""Owns `TLSSending`: what is written on a TLS connection, until it is ciphertext in its `Sending`.

How this fits together

1. What is written in one turn of the loop is encrypted together, just before the turn's submission (see `Turns.due`):
   small parts share a record.  As soon as there is a whole record's worth it is encrypted at once.
2. No more is encrypted than FULL bytes ahead of the kernel.  The rest is kept as it was written, and goes on when half
   of that is sent.  Meanwhile the C core's sender is *held*: `drain()` asks us, whatever its own queue may be.
3. Nobody else writes to the `Sending` below, so ciphertext is sent in the order in which it was made.
"""

import asyncio
import contextlib
import errno
import fcntl
import socket
import ssl
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Any

from aiouring._errors import failure, kernel_error
from aiouring._lease import Lease
from aiouring._line import wake
from aiouring._sending import LOW_WATER, WRONG_CONTEXT
from aiouring._tls import RECORD, Engine
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._driver import Driver
    from aiouring._sending import Sending

#: Bytes of ciphertext queued above which no more is made, and at which it goes on.
FULL = 4 * lib.AU_HIGH_WATER
HALF = FULL // 2

#: The first byte of tcp(7)'s TCP_INFO, of a connection that is over; see linux/tcp.h and include/net/tcp_states.h.
_TCP_CLOSE = 7

#: Bytes of plaintext that are encrypted at a time.
CHUNK = 4 * RECORD


class TLSSending:
    """Everything that is to be sent on one TLS connection, in order; it has the face of `Sending`."""

    __slots__ = (
        "_answers",
        "_below",
        "_current",
        "_deaf",
        "_driver",
        "_due",
        "_encrypted",
        "_engine",
        "_failure",
        "_parts",
        "_queued",
        "_said_eof",
        "_stalled",
        "_timeout",
        "_waiting",
        "raw",
    )

    def __init__(self, driver: "Driver", engine: Engine, below: "Sending", timeout: float) -> None:
        self._driver = driver
        self._engine = engine
        self._below = below
        self._timeout = timeout  # a peer may take nothing for so long, when the connection is being closed
        self._parts: deque[bytes] = deque()
        self._current: bytes | memoryview = b""  # the rest of what is being encrypted
        self._queued = 0  # bytes that are not encrypted yet, in both
        self._encrypted = 0  # bytes that are, ever
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._due = False  # before the next submission
        self._stalled = False  # until the kernel has taken more
        self._said_eof = False
        self._answers = 0  # bytes that the engine has answered with since all was sent
        self._deaf = False  # nothing will be heard of the peer any more
        self._failure: Exception | None = None
        self.raw = below.raw

    def __repr__(self) -> str:
        return f"<TLSSending {self.pending} bytes>"

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken, in plain or as ciphertext."""
        return self._queued + self._below.pending

    @property
    def has_room(self) -> bool:
        """Whether more ciphertext may be made."""
        return self.raw.pending < FULL or bool(self.raw.failure)

    def write(self, data: Any) -> None:
        """Queue `data` behind what is queued."""
        code = lib.au_ring_check(self._driver.ring.raw)
        if code in WRONG_CONTEXT:
            raise failure(code)
        if isinstance(data, Lease):
            data.hand_over()
            content = data.contents()
            data.give_back()  # also where the bytes are refused, as without TLS
        else:
            content = data if isinstance(data, bytes) else memoryview(data).tobytes()
        if code or self._failure is not None or self._said_eof or self.raw.failure:
            self._refuse(code)
        if not content:
            return
        self._parts.append(content)
        self._queued += len(content)
        if self._queued >= RECORD:
            self.encrypt()
        elif not self._due:
            self._due = True
            self._driver.due.append(self.encrypt)
            self._driver.ask_for_turn()

    async def drain(self) -> None:
        """Wait while too much is queued; raises what ended the sending."""
        if self.raw.crowded:
            await self.below(LOW_WATER)

    def _refuse(self, code: int) -> None:
        if self._failure is not None:
            raise self._failure
        if self._said_eof:
            raise kernel_error(errno.EPIPE, "nothing can be sent after send_eof()")
        raise self._below.reason() if self.raw.failure else failure(code)

    def encrypt(self) -> None:
        """Encrypt what is queued, as far as there is room; and send that, with what the engine has to say itself."""
        self._due = False
        engine = self._engine
        blocked = not engine.shaken or not self.has_room
        try:
            while self._queued and not blocked and self._failure is None:
                current = self._current or self._next()
                count = engine.encrypt(current if len(current) <= CHUNK else memoryview(current)[:CHUNK])
                self._current = memoryview(current)[count:] if count < len(current) else b""
                self._queued -= count
                self._encrypted += count
                blocked = not count
                if blocked and self._deaf:
                    raise kernel_error(errno.EPIPE, "the peer asked for a new handshake, and went")
                if self._queued and engine.to_send >= CHUNK:
                    self._below.write(engine.take())
                    blocked = blocked or not self.has_room
            if engine.to_send:
                self._below.write(engine.take())
        except Exception as error:  # the connection was lost: whoever writes next hears of it
            self.fail(error)
        if self._queued and not self.has_room:
            self._stall()
        if self._queued or self.raw.held:
            self._hold()
        if self._waiting:
            self._wake()

    def _hold(self) -> None:
        """Have `drain()` ask us, while there is more than the C core knows of."""
        raw = self.raw
        raw.held = self._queued > 0 or self._failure is not None
        raw.crowded = raw.held or raw.crowded

    def answer(self) -> None:
        """Send what the engine has to say to something that arrived.

        Raises `ssl.SSLError` where the peer has us answer all the time, and does not read the answers.
        """
        count = self._engine.to_send
        if count:
            self._answers = count + (self._answers if self.raw.pending else 0)
            if self._answers > FULL:
                text = f"the peer has not read {self._answers} bytes of answers that it has asked TLS for"
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, text)
            self.encrypt()
        elif self._queued and not self._stalled:
            self.encrypt()  # it may have waited for this

    def _next(self) -> bytes:
        """What to encrypt next: small parts together."""
        parts = self._parts
        first = parts.popleft()
        if not parts or len(first) >= RECORD:
            return first
        some, size = [first], len(first)
        while parts and size < RECORD:
            size += len(parts[0])
            some.append(parts.popleft())
        return b"".join(some)

    def _stall(self) -> None:
        if not self._stalled and not self.raw.failure:
            self._stalled = True
            self._below.reach(HALF).add_done_callback(self._go_on)

    def _go_on(self, _: "asyncio.Future[None]") -> None:
        self._stalled = False
        if self.raw.failure:
            self.fail(self._below.reason())
        else:
            self.encrypt()

    async def below(self, mark: int) -> None:
        """Wait until no more than `mark` bytes of what is queued now are left to send; raises what ended sending."""
        self.encrypt()
        if self._queued and self._failure is None:
            entry = (self._encrypted + self._queued, self._driver.new_future())
            self._waiting.append(entry)
            try:
                await entry[1]
            finally:
                if entry in self._waiting:  # it was cancelled
                    self._waiting.remove(entry)
        if self._failure is not None:
            raise self._failure
        await self._below.below(mark)

    def _wake(self) -> None:
        for entry in list(self._waiting):
            if self._encrypted >= entry[0] or self._failure is not None:
                wake(entry[1])
                self._waiting.remove(entry)

    async def send_eof(self, _: socket.socket) -> None:
        """Send what is queued, then close-notify: the end of this direction, and no more than that."""
        await self.below(0)
        while self._queued:  # others wrote meanwhile
            await self.below(0)
        self._said_eof = True
        self._engine.close_notify()
        await self.below(0)

    async def send_rest(self, sock: socket.socket) -> None:
        """Send what is queued and close-notify, or an alert where TLS failed; wait until the peer's machine has it.

        Raises:
            TimeoutError: no request to send (of FULL bytes at most) has ended for `ssl_shutdown_timeout` seconds.
        """
        while True:
            taken = self.raw.taken
            try:
                async with asyncio.timeout(self._timeout):
                    if self._failure is None:
                        await self.send_eof(sock)
                    else:  # what TLS failed with is told by an alert
                        await self._below.below(0)
                    break
            except TimeoutError:
                if self.raw.taken == taken:
                    text = (
                        f"the peer took nothing for {self._timeout} s (ssl_shutdown_timeout), of {self.pending} bytes"
                    )
                    raise TimeoutError(errno.ETIMEDOUT, text) from None
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            await self._acknowledged(sock)

    async def _acknowledged(self, sock: socket.socket) -> None:
        """Wait until the peer's TCP has everything, or has taken nothing for as long as that may take.

        A TLS peer sends what nobody waits for: tickets, after the handshake.  Where that arrives at a socket which is
        closed already, the kernel resets the connection and forgets what it has not sent yet.  Meanwhile the receive
        that is armed takes it.  The kernel has no event for this, but on a short way the first look finds all done.
        """
        sock.shutdown(socket.SHUT_WR)  # which the peer's machine acknowledges at once
        time = self._driver.loop.time
        left, pause, end = _unacknowledged(sock), 0.001, time() + self._timeout
        while left and time() < end:
            await asyncio.sleep(pause)
            before, left = left, _unacknowledged(sock)
            pause = min(2 * pause, 0.1)
            if left < before:
                end = time() + self._timeout

    def hear_no_more(self, failure: Exception | None) -> None:
        """Nothing more will be received, and nothing can be sent if TLS itself has failed."""
        self._deaf = True
        if isinstance(failure, ssl.SSLError) and not isinstance(failure, ssl.SSLEOFError):
            self.fail(failure)
        elif self._queued:
            self.encrypt()  # it may have waited for what will not come

    def fail(self, error: Exception) -> None:
        """Nothing more can be encrypted: `error` is for whoever waits or writes."""
        if self._engine.to_send:
            with contextlib.suppress(OSError, RuntimeError):  # an alert, that tells the peer why
                self._below.write(self._engine.take())
        self._failure = self._failure or error
        self._hold()
        self._parts.clear()
        self._current = b""
        self._queued = 0
        self._wake()

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the request in flight has ended; None if there is none.  After `drop()`."""
        return self._below.end()

    def drop(self, error: Exception) -> None:
        """Send nothing more: `error` is for whoever waits or writes; what the kernel has is cancelled."""
        self.fail(error)
        self._below.drop(error)

    def forget(self) -> None:
        """The connection is closed."""
        self._below.forget()


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer's TCP has not acknowledged; see tcp(7), SIOCOUTQ."""
    if sock.fileno() < 0:
        return 0  # somebody has aborted the connection meanwhile
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
        return 0  # all was acknowledged, or the peer's machine has reset it: then SIOCOUTQ stays what it was
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
