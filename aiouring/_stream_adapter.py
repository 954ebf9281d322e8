"""Owns `StreamReader` and `StreamWriter`: the faces of asyncio's streams on a `Connection`.

A handler that was written for `asyncio.start_server()` works on them as it is.  Where they differ, they lose less:
a read that is cancelled, and what came before an error, can still be read.
"""

import asyncio
import contextlib
import errno
import inspect
import ssl
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from aiouring._connection import Connection
from aiouring._errors import RingClosedError
from aiouring._framing import LIMIT
from aiouring._sending import checked_parts
from aiouring._tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT
from aiouring._verbs import Bytes

#: What asyncio's SSL transports tell of themselves.
_OF_TLS: dict[str, Callable[[ssl.SSLObject], Any]] = {
    "ssl_object": lambda tls: tls,
    "sslcontext": lambda tls: tls.context,
    "peercert": ssl.SSLObject.getpeercert,
    "cipher": ssl.SSLObject.cipher,
    "compression": ssl.SSLObject.compression,
}


#: What a reader is told as the end of the stream, see `StreamReader`.
_ENDS = (ConnectionAbortedError, ssl.SSLEOFError)


def _failure(connection: Connection) -> OSError | None:
    """What the kernel says has become of the connection; closing it is no failure."""
    failure = connection._receiving._failure
    return failure if isinstance(failure, OSError) and not connection._closed else None


def extra_info(connection: Connection) -> dict[str, Any]:
    """What transports of asyncio know of their connection, by its names."""
    sock = connection._socket
    extra: dict[str, Any] = {"socket": TransportSocket(sock), "peername": None, "sockname": None}
    with contextlib.suppress(OSError):
        extra["sockname"] = sock.getsockname()
    with contextlib.suppress(OSError):
        extra["peername"] = sock.getpeername()
    return extra


class StreamReader:
    """What `asyncio.StreamReader` is to its users, on a `Connection`.

    Args:
        connection: read by nobody else.
        limit: bytes that may come before a separator.

    Nothing is read ahead of the connection's `max_pending` chunks.  One who reads while the connection is closed gets
    the end of the stream, as with asyncio.  So is the end of TLS without a close-notify, which `exception()` tells:
    many peers leave like that, and handlers for asyncio do not expect to hear of it.  Since Linux 6.0.
    """

    def __init__(self, connection: Connection, *, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit} is less than 1")
        self._connection = connection
        self._framing = connection.framing()
        self._limit = limit

    def __repr__(self) -> str:
        return f"<StreamReader of {self._connection!r}>"

    async def read(self, n: int = -1) -> bytes:
        """What is there, at least one byte and at most `n`; with -1 everything to the end; empty at the end."""
        if n == 0:
            return b""
        try:
            return await (self._framing.rest() if n < 0 else self._framing.some(n))
        except _ENDS as error:
            return self._what_is_left(error)

    async def readexactly(self, n: int) -> bytes:
        """The next `n` bytes; raises `asyncio.IncompleteReadError` at the end of the stream."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        try:
            return await self._framing.exactly(n)
        except _ENDS as error:
            raise asyncio.IncompleteReadError(self._what_is_left(error), n) from None

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """The next bytes up to `separator`, and with it.

        Raises `asyncio.LimitOverrunError`, which consumes nothing, and `asyncio.IncompleteReadError`.
        """
        try:
            return await self._framing.until(separator, self._limit)
        except _ENDS as error:
            raise asyncio.IncompleteReadError(self._what_is_left(error), None) from None

    async def readline(self) -> bytes:
        """The next line with its end; without, or empty, at the end of the stream.

        Raises `ValueError` where a line is longer than `limit`; it is gone, or what had come of it.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            whole = self._framing.unread.startswith(b"\n", error.consumed)
            self._framing.take_unread(error.consumed + 1 if whole else None)
            raise ValueError(error.args[0]) from None

    def at_eof(self) -> bool:
        """Whether the end of the stream has come, and everything before it was read."""
        receiving = self._connection._receiving
        failure = _failure(self._connection)
        return receiving.over and not receiving.pending and (failure is None or isinstance(failure, ssl.SSLEOFError))

    def exception(self) -> OSError | None:
        """What became of the connection, if it was lost; `ssl.SSLEOFError` where TLS ended without a close-notify."""
        return _failure(self._connection)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next line."""
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def _what_is_left(self, error: OSError) -> bytes:
        """The end of the stream: that of a connection that we have closed, and a cut one, see above."""
        if not isinstance(error, ssl.SSLEOFError) and not self._connection._closed:
            raise error
        return self._framing.take_unread()


class StreamWriter:
    """What `asyncio.StreamWriter` is to its users, on a `Connection`; `transport` is the writer itself.

    Args:
        connection: written to by nobody else.
        server_side: which end `start_tls()` is; a server's handler gets a writer that is the server's.

    As with asyncio, `write()` after the connection was lost does nothing, and `drain()` raises.  `wait_closed()` does
    not raise.  Since Linux 6.0.
    """

    def __init__(self, connection: Connection, *, server_side: bool = False) -> None:
        self._connection = connection
        self._server_side = server_side
        self._loop = connection._driver.loop
        self._end_of_writing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._extra = extra_info(connection)

    def __repr__(self) -> str:
        return f"<StreamWriter of {self._connection!r}>"

    @property
    def transport(self) -> Self:
        """The writer, which has what handlers use of a transport, `abort()` and `get_write_buffer_size()` included."""
        return self

    def write(self, data: Bytes) -> None:
        """Queue bytes to be sent; never waits, see `drain()`."""
        if self._end_of_writing:
            raise RuntimeError("Cannot call write() after write_eof()")
        with contextlib.suppress(OSError, RingClosedError):  # it was lost: drain() tells
            self._connection.write(data)

    def writelines(self, data: Iterable[Bytes]) -> None:
        """Queue all of `data` to be sent; raises `TypeError` where one has no bytes, and queues none."""
        for part in checked_parts(data):
            self.write(part)

    async def drain(self) -> None:
        """Wait while too much is queued for sending; raises `OSError` if the connection was lost or closed."""
        failure = _failure(self._connection)
        if failure is not None and not isinstance(failure, ssl.SSLEOFError):  # after which writing may go on
            raise failure
        if self.is_closing():
            await asyncio.sleep(0)
        if self._connection._closed:
            raise ConnectionResetError(errno.ECONNRESET, "Connection lost")
        await self._connection.drain()

    def can_write_eof(self) -> bool:
        """True: TCP and Unix sockets can be half-closed, and so can TLS."""
        return True

    def write_eof(self) -> None:
        """Send what is queued, then the end of the stream; reading goes on.  Idempotent."""
        if self._end_of_writing or self.is_closing():
            return
        self._end_of_writing = self._loop.create_task(self._send_eof())

    async def _send_eof(self) -> None:
        with contextlib.suppress(OSError, RingClosedError):  # it was lost, or closed meanwhile
            await self._connection.send_eof()

    def close(self) -> None:
        """Send what is queued, then close; does not wait, see `wait_closed()`.  Idempotent."""
        if not self.is_closing():
            self._closing = self._loop.create_task(self._connection.aclose())

    def abort(self) -> None:
        """Close without sending what is queued; idempotent."""
        self._connection.abort()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or being closed."""
        return self._closing is not None or self._connection._closed

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        await self._connection.wait_closed()

    def get_write_buffer_size(self) -> int:
        """Bytes that are queued for sending."""
        return self._connection.statistics().to_send

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known by `name`: "peername", "sockname", or "socket", to look at and for its options.

        With TLS also "ssl_object", "sslcontext", "peercert", "cipher" and "compression".
        """
        tls = self._connection.ssl_object
        if tls is not None and name in _OF_TLS:
            return _OF_TLS[name](tls)
        return self._extra.get(name, default)

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Go on with TLS, as a server in a server's handler, else as a client; see `Connection.start_tls()`.

        What was read ahead is TLS's, and never the reader's.
        """
        await self._connection.start_tls(
            sslcontext,
            server_side=self._server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT if ssl_handshake_timeout is None else ssl_handshake_timeout,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT if ssl_shutdown_timeout is None else ssl_shutdown_timeout,
        )


Handler = Callable[[Connection], Awaitable[object]]
StreamHandler = Callable[[StreamReader, StreamWriter], Awaitable[object] | None]


def on_streams(handler: StreamHandler, limit: int = LIMIT) -> Handler:
    """A connection's handler that calls one which was written for `asyncio.start_server()`.

    As with asyncio, a plain function returns at once and closes the writer when it likes.  When a coroutine ends, the
    connection is closed, and what was written before is sent, although it may have raised.
    """
    if limit < 1:
        raise ValueError(f"limit={limit} is less than 1")

    async def serve(connection: Connection) -> None:
        """One connection's life."""
        serving = handler(StreamReader(connection, limit=limit), StreamWriter(connection, server_side=True))
        try:
            if inspect.isawaitable(serving):
                await serving
            else:
                await connection.wait_closed()
        except Exception:
            await connection.aclose()
            raise

    return serve
