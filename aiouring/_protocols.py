"""Owns `create_server()` and `create_connection()`: protocols of asyncio on connections of ours, see `_transport`."""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from aiouring._async_ring import AsyncRing
from aiouring._buffer_ring import BufferRing
from aiouring._connection import Connection
from aiouring._default_ring import ring_and_group
from aiouring._line import wake
from aiouring._listening import Hosts, UnixListener, open_listeners
from aiouring._opening import open_connection, open_unix_connection
from aiouring._server import Server
from aiouring._transport import Transport, check_waits

P = TypeVar("P", bound=asyncio.BaseProtocol)


class _ProtocolServer(Server):
    """A server whose connections have a protocol each, and no task."""

    def __init__(
        self,
        ring: AsyncRing,
        group: BufferRing,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        listeners: list[socket.socket],
        unix: UnixListener | None,
        max_pending: int | None,
    ) -> None:
        super().__init__(ring, group, _never_called, listeners, unix, max_pending, None)
        self._protocol_factory = protocol_factory
        self._transports: set[Transport] = set()

    def _welcome(self, sock: socket.socket) -> None:
        """Give a connection its protocol.  One that cannot be had costs this connection, and no other."""
        try:
            protocol = self._protocol_factory()
        except Exception as error:
            self._report("the protocol of an incoming connection could not be made", error)
            sock.close()
            return
        try:
            connection = Connection(self._ring, sock, self._group, max_pending=self._max_pending)
        except BaseException:
            sock.close()
            raise
        transport = Transport(connection, protocol)
        self._transports.add(transport)
        connection.when_closed(partial(self._gone, transport))

    def _gone(self, transport: Transport) -> None:
        self._transports.discard(transport)
        self._check_ended()

    def _served(self) -> int:
        return len(self._transports)

    def close_clients(self) -> None:
        """Close all connections: what was written is sent first."""
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Close all connections at once, without sending what was written."""
        for transport in list(self._transports):
            transport.abort()


async def _never_called(connection: Connection) -> None:
    raise AssertionError(f"{connection!r} has a protocol")


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
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
) -> Server:
    """Listen, and run a protocol of asyncio on each connection: `loop.create_server()`, on the ring.

    Callbacks cost less than a task for each connection.  `protocol_factory` is called for each connection, and returns
    an `asyncio.Protocol` or `asyncio.BufferedProtocol`; the other arguments, and errors, are those of `start_server()`.

    The server's `wait_closed()` waits until every protocol has lost its connection; `close_clients()` and
    `abort_clients()` close them.  Since Linux 6.0.
    """
    if not callable(protocol_factory):
        raise TypeError(f"a protocol factory is called without arguments, not {type(protocol_factory).__name__}")
    ring, group = ring_and_group(ring, group)
    check_waits(group)
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
    server = _ProtocolServer(ring, group, protocol_factory, listeners, unix, max_pending)
    if start_serving:
        await server.start_serving()
    return server


async def create_connection(
    protocol_factory: Callable[[], P],
    host: str,
    port: int | str,
    *,
    ring: AsyncRing | None = None,
    group: BufferRing | None = None,
    family: int = socket.AF_UNSPEC,
    proto: int = 0,
    flags: int = 0,
    local_addr: tuple[str, int] | None = None,
    max_pending: int | None = None,
) -> tuple[Transport, P]:
    """Connect by TCP, and run a protocol on the connection: `loop.create_connection()`, on the ring.

    Returns the transport and the protocol, which has been told of the connection.  Arguments and errors are those of
    `open_connection()`.  Since Linux 6.0.
    """
    connection = await open_connection(
        host,
        port,
        ring=ring,
        group=group,
        family=family,
        proto=proto,
        flags=flags,
        local_addr=local_addr,
        max_pending=max_pending,
    )
    return await _with_protocol(connection, protocol_factory)


async def create_unix_connection(
    protocol_factory: Callable[[], P],
    path: str | bytes | os.PathLike[str],
    *,
    ring: AsyncRing | None = None,
    group: BufferRing | None = None,
    max_pending: int | None = None,
) -> tuple[Transport, P]:
    """Connect to the Unix socket at `path`, and run a protocol on the connection; see `create_connection()`.

    Since Linux 6.0.  See unix(7).
    """
    connection = await open_unix_connection(path, ring=ring, group=group, max_pending=max_pending)
    return await _with_protocol(connection, protocol_factory)


async def _with_protocol(connection: Connection, protocol_factory: Callable[[], P]) -> tuple[Transport, P]:
    """Wait until the protocol was told, or close."""
    try:
        protocol = protocol_factory()
        transport = Transport(connection, protocol)
    except BaseException:
        connection.abort()
        raise
    loop = asyncio.get_running_loop()
    told = loop.create_future()
    loop.call_soon(wake, told)
    try:
        await told
    except BaseException:
        transport.abort()
        raise
    return transport, protocol
