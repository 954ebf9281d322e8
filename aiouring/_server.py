"""Owns `start_server()` and `Server`: connections are accepted, each served by a handler in a task of its own.

How this fits together

1. One task per listening socket accepts.  It ends when the server is closed; only then is its socket closed, so that
   no accept in the kernel can meet a descriptor that is another's by then.
2. A connection lives as long as its handler: it is closed when the handler returns (what was written is sent) and
   aborted when it raises.  What a handler raises is the exception handler's, not the server's.
3. `close()` only stops accepting.  `wait_closed()` waits for the handlers, too, however long they take;
   `close_clients()` and `abort_clients()` end their connections, and so, as a rule, them.
4. A machine that is short of descriptors or memory passes: `accept_multishot()` pauses, longer each time, and goes on.
"""

import asyncio
import contextvars
import logging
import os
import socket
import ssl as tls
from typing import Self, cast

from aiouring._async_ring import AsyncRing
from aiouring._buffer_ring import BufferRing
from aiouring._connection import Connection
from aiouring._default_ring import ring_and_group
from aiouring._errors import RingClosedError
from aiouring._framing import LIMIT
from aiouring._listening import Hosts, UnixListener, open_listeners
from aiouring._stream_adapter import Handler, StreamHandler, on_streams
from aiouring._tls import TLSSettings, settings_of

log = logging.getLogger("aiouring")


class Server:
    """What `start_server()` returns; it has the face of `asyncio.Server`.  Leaving `async with` closes it."""

    def __init__(
        self,
        ring: AsyncRing,
        group: BufferRing,
        handler: Handler,
        listeners: list[socket.socket],
        unix: UnixListener | None,
        max_pending: int | None,
        settings: TLSSettings | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._group = group
        self._handler = handler
        self._listeners = listeners
        self._unix = unix
        self._max_pending = max_pending
        self._settings = settings
        self._accepting: dict[asyncio.Task[None], socket.socket] = {}
        self._clients: dict[asyncio.Task[None], Connection] = {}
        self._dismissed: set[asyncio.Task[None]] = set()  # handlers whose connection the server has closed
        self._goodbyes: set[asyncio.Task[None]] = set()  # which close those connections
        self._forever: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._context = contextvars.copy_context()  # in which connections leave: a copy for each costs memory
        self._closed = False

    def __repr__(self) -> str:
        where = ", ".join(str(sock.getsockname()) for sock in self.sockets)
        return f"<Server {where or 'closed'}, {self._served()} connections>"

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets, to look at; they are the server's.  None after `close()`."""
        return () if self._closed else tuple(self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the server runs on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return bool(self._accepting) and not self._closed

    # ---- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    async def start_serving(self) -> None:
        """Begin to accept; idempotent.  For a server that was made with `start_serving=False`."""
        self._check_open()
        if not self._accepting:
            for listener in self._listeners:
                task = self._loop.create_task(self._accept(listener), name=f"aiouring accept {listener.fileno()}")
                self._accepting[task] = listener
                task.add_done_callback(self._accepted)

    async def serve_forever(self) -> None:
        """Accept until cancelled; then close the server, and wait for the handlers as `wait_closed()` does.

        `close()` ends it with `CancelledError`, too.

        Raises:
            RuntimeError: the server is closed, or a task is in here already.
        """
        if self._forever is not None:
            raise RuntimeError(f"a task is in serve_forever() of {self!r} already")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            try:
                self.close()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stop accepting; idempotent.  Handlers go on, see `wait_closed()`."""
        if self._closed:
            return
        self._closed = True
        if self._unix is not None:
            self._unix.remove_path()
        for task in self._accepting:
            task.cancel()
        if not self._accepting:
            for listener in self._listeners:
                listener.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._check_ended()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and every handler has ended."""
        await asyncio.shield(self._ended)

    def close_clients(self) -> None:
        """Close all connections: what was written is sent first.  Handlers that wait for data learn of it then.

        What a handler raises because of that, a `ConnectionAbortedError`, is not reported.
        """
        for task, connection in self._clients.items():
            self._dismissed.add(task)
            goodbye = self._loop.create_task(connection.aclose(), name="aiouring close client")
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._said_goodbye)

    def abort_clients(self) -> None:
        """Close all connections at once, without sending what was written; see `close_clients()`."""
        for task, connection in self._clients.items():
            self._dismissed.add(task)
            connection.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the server has been closed")

    def _said_goodbye(self, goodbye: "asyncio.Task[None]") -> None:
        self._goodbyes.discard(goodbye)
        self._check_ended()

    def _check_ended(self) -> None:
        if self._closed and not (self._accepting or self._served() or self._goodbyes or self._ended.done()):
            self._ended.set_result(None)

    def _served(self) -> int:
        """How many connections there are."""
        return len(self._clients)

    # ---- accepting -----------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        """Accept for ever; the stream knows what passes, and pauses while the machine is short of something."""
        async with self._ring.accept_multishot(listener) as connections:
            async for sock in connections:
                self._welcome(sock)

    def _accepted(self, task: "asyncio.Task[None]") -> None:
        """A listener's task has ended: its socket can be closed, and without any the server is."""
        listener = self._accepting.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RingClosedError):
            self._report(f"{listener!r} cannot accept any more", error)
        listener.close()
        if not self._accepting:
            self.close()
        self._check_ended()

    def _welcome(self, sock: socket.socket) -> None:
        """Give a connection its handler."""
        try:
            connection = Connection(self._ring, sock, self._group, max_pending=self._max_pending)
        except BaseException:
            sock.close()
            raise
        task = self._loop.create_task(self._serve(connection), name="aiouring connection")
        self._clients[task] = connection
        task.add_done_callback(self._left, context=self._context)

    async def _serve(self, connection: Connection) -> None:
        try:
            try:  # what `async with connection` does, which keeps a bound method for as long
                if self._settings is None or await self._shake_hands(connection, self._settings):
                    await self._handler(connection)
            except BaseException:
                connection.abort()
                raise
            finally:
                await connection.aclose()
        except Exception as error:
            if not (self._dismissed and asyncio.current_task() in self._dismissed and _is_goodbye(error)):
                self._report("unhandled exception in a connection's handler", error, connection=connection)

    async def _shake_hands(self, connection: Connection, settings: TLSSettings) -> bool:
        """Whether TLS has begun.  What a stranger makes of a handshake is no news: the log has it, for debugging."""
        try:
            await connection._start_tls(settings)
        except (OSError, RingClosedError) as error:
            log.debug("%r: a TLS handshake failed: %s", self, error)
            return False
        return True

    def _left(self, task: "asyncio.Task[None]") -> None:
        connection = self._clients.pop(task)
        connection.abort()  # of no effect, unless the task was cancelled before it began
        self._dismissed.discard(task)
        self._check_ended()

    def _report(self, message: str, error: BaseException, **context: object) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error, "server": self, **context})


def _is_goodbye(error: Exception) -> bool:
    """Whether nothing else went wrong than that the connection had been closed."""
    if isinstance(error, ExceptionGroup):
        return error.split(ConnectionAbortedError)[1] is None
    return isinstance(error, ConnectionAbortedError)


async def start_server(
    handler: Handler | StreamHandler,
    host: Hosts = None,
    port: int | str | None = None,
    *,
    sock: socket.socket | None = None,
    path: str | bytes | os.PathLike[str] | None = None,
    ring: AsyncRing | None = None,
    group: BufferRing | None = None,
    max_pending: int | None = None,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    backlog: int = 100,
    reuse_address: bool = True,
    reuse_port: bool = False,
    start_serving: bool = True,
    streams: bool = False,
    limit: int = LIMIT,
    ssl: tls.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> Server:
    """Listen, and serve each connection with `handler(connection)`, in a task of its own.

    The connection is closed when the handler returns, and aborted when it raises; what it raises goes to the loop's
    exception handler.

    Args:
        handler: an `async` function of one `Connection`; or, with `streams=True`, one for `asyncio.start_server()`.
        host: one host, several, or None for all interfaces.  Each address has a socket of its own.
        port: a number, 0 for free ones, or a service's name.
        sock: instead of a host, a bound stream socket, which the server takes over and closes.
        path: instead, a Unix socket's path, removed when the server is closed; a socket that is there already is taken
            for a dead server's, and replaced.  One that begins with a zero byte is abstract.
        ring: None is the loop's own, see `default_ring()`.
        group: what received data comes in; None is the ring's own, see `default_group()`.
        max_pending: see `Connection`.
        family: AF_INET or AF_INET6 restricts the addresses to one kind.
        flags: for `getaddrinfo()`.
        backlog: connections that the kernel keeps until they are accepted.
        reuse_address: SO_REUSEADDR: listen although old connections to the port are still being forgotten.
        reuse_port: SO_REUSEPORT: let several processes listen on the port; the kernel shares out the connections.
        start_serving: whether to accept at once, or after `Server.start_serving()`.
        streams: whether the handler is called with a `StreamReader` and a `StreamWriter`, as asyncio's are.
        limit: bytes that those readers take for a line.
        ssl: an `ssl.SSLContext` with a certificate: connections are encrypted, and the handler is called after the
            handshake.  One that fails or takes too long is told the log `aiouring`, at its level DEBUG.
        ssl_handshake_timeout: seconds that a handshake may take; None is 60.
        ssl_shutdown_timeout: see `Connection.start_tls()`; None is 30.

    Raises:
        OSError: nobody can listen there; the text says where.
        ValueError: not exactly one of a host or port, `sock` and `path` is given.

    Since Linux 6.0.  See io_uring_prep_multishot_accept(3).
    """
    if not callable(handler):
        raise TypeError(f"a handler is an async function of a Connection, not {type(handler).__name__}")
    serve = on_streams(cast("StreamHandler", handler), limit) if streams else cast("Handler", handler)
    settings = settings_of(
        context=ssl,
        server_side=True,
        host=None,
        server_hostname=None,
        handshake_timeout=ssl_handshake_timeout,
        shutdown_timeout=ssl_shutdown_timeout,
    )
    ring, group = ring_and_group(ring, group)
    listeners, unix = await open_listeners(
        host,
        port,
        sock,
        path,
        family=family,
        flags=flags,
        backlog=backlog,
        reuse_address=reuse_address,
        reuse_port=reuse_port,
    )
    server = Server(ring, group, serve, listeners, unix, max_pending, settings)
    if start_serving:
        await server.start_serving()
    return server
