"""Owns `open_connection()` and `open_unix_connection()`: connections to whom the caller names."""

import asyncio
import os
import socket
import ssl as tls
from typing import Any, TypeAlias

from aiouring._async_ring import AsyncRing
from aiouring._buffer_ring import BufferRing
from aiouring._connection import Connection
from aiouring._default_ring import ring_and_group
from aiouring._tls import TLSSettings, settings_of

#: Family, type, protocol, canonical name and address, as `socket.getaddrinfo()` returns them.
AddressInfo: TypeAlias = tuple[int, int, int, str, Any]


async def find_addresses(
    host: str | None, port: int | str | None, *, family: int, proto: int, flags: int
) -> list[AddressInfo]:
    """The stream addresses of a host, by the loop's resolver; numeric ones need no resolver, and so no thread."""
    if isinstance(port, int) and not 0 <= port < 1 << 16:
        raise ValueError(f"port={port} is outside 0 to {(1 << 16) - 1}")
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        return list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, proto, flags | numeric))
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return list(
            await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, proto=proto, flags=flags)
        )


def send_at_once(sock: socket.socket) -> None:
    """Switch Nagle's algorithm off, as asyncio does; connections inherit that from whom they are accepted by."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto in (0, socket.IPPROTO_TCP):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def open_connection(
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
    ssl: tls.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> Connection:
    """Connect by TCP; each of the host's addresses is tried in its turn.

    Args:
        host: a name or a numeric address.
        port: a number, or a service's name.
        ring: None is the loop's own, see `default_ring()`.
        group: what received data comes in; None is the ring's own, see `default_group()`.
        family: AF_INET or AF_INET6 restricts the addresses to one kind.
        proto: the protocol, 0 is TCP.
        flags: for `getaddrinfo()`.
        local_addr: the host and port to connect from.
        max_pending: see `Connection`.
        ssl: an `ssl.SSLContext` to go on with by TLS, see `Connection.start_tls()`; True is one by
            `ssl.create_default_context()`.
        server_hostname: whom the certificate must name; None is `host`.
        ssl_handshake_timeout: seconds that the handshake may take; None is 60.
        ssl_shutdown_timeout: see `Connection.start_tls()`; None is 30.

    Raises:
        ssl.SSLError: the handshake failed.
        ConnectionAbortedError: it took too long.
        OSError: nobody could be connected to; the text says what became of each address.  If they all failed alike it
            has their errno, and is of their kind: `ConnectionRefusedError`, say.
        socket.gaierror: the host is not known.

    Cancelled, it connects to nobody.  Since Linux 6.0.  See io_uring_prep_connect(3).
    """
    settings = settings_of(
        context=ssl,
        server_side=False,
        host=host,
        server_hostname=server_hostname,
        handshake_timeout=ssl_handshake_timeout,
        shutdown_timeout=ssl_shutdown_timeout,
    )
    ring, group = ring_and_group(ring, group)
    found = await find_addresses(host, port, family=family, proto=proto, flags=flags)
    sources: list[AddressInfo] | None = None
    if local_addr is not None:
        sources = await find_addresses(*local_addr, family=family, proto=proto, flags=flags)
    failures: list[tuple[str, OSError]] = []
    for info in found:
        try:
            sock = await _connect(ring, info, sources)
        except OSError as error:
            failures.append((f"{info[4][0]} port {info[4][1]}", error))
        else:
            return await _take_over(ring, sock, group, max_pending, settings)
    raise _failure(f"cannot connect to {host!r} port {port!r}", failures)


async def open_unix_connection(
    path: str | bytes | os.PathLike[str],
    *,
    ring: AsyncRing | None = None,
    group: BufferRing | None = None,
    max_pending: int | None = None,
    ssl: tls.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> Connection:
    """Connect to the Unix socket at `path`; one that begins with a zero byte is abstract.

    Arguments and errors are those of `open_connection()`.  Since Linux 6.0.  See unix(7).
    """
    settings = settings_of(
        context=ssl,
        server_side=False,
        host=None,
        server_hostname=server_hostname,
        handshake_timeout=ssl_handshake_timeout,
        shutdown_timeout=ssl_shutdown_timeout,
    )
    ring, group = ring_and_group(ring, group)
    address = os.fspath(path)
    try:
        sock = await _connect(ring, (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address), None)
    except OSError as error:
        raise _failure("cannot connect", [(f"{address!r}", error)]) from None
    return await _take_over(ring, sock, group, max_pending, settings)


async def _connect(ring: AsyncRing, info: AddressInfo, sources: list[AddressInfo] | None) -> socket.socket:
    """A socket that is connected to one address, from one of `sources`."""
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)  # blocking, so that the kernel waits: for room in a Unix backlog, say
    try:
        send_at_once(sock)
        if sources is not None:
            _bind(sock, [source[4] for source in sources if source[0] == family])
        await ring.connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, addresses: list[Any]) -> None:
    """Bind to the first of `addresses` that can be had."""
    failures: list[tuple[str, OSError]] = []
    for address in addresses:
        try:
            return sock.bind(address)
        except OSError as error:
            failures.append((f"{address[0]} port {address[1]}", error))
    raise _failure("cannot bind to local_addr", failures)


async def _take_over(
    ring: AsyncRing, sock: socket.socket, group: BufferRing, max_pending: int | None, settings: TLSSettings | None
) -> Connection:
    try:
        connection = Connection(ring, sock, group, max_pending=max_pending)
    except BaseException:
        sock.close()
        raise
    if settings is not None:
        try:
            await connection._start_tls(settings)
        except BaseException:
            connection.abort()
            raise
    return connection


def _failure(doing: str, failures: list[tuple[str, OSError]]) -> OSError:
    """One error for all that failed: with their errno, and so of their kind, where that is the same for all."""
    if not failures:
        return OSError(f"{doing}: there is no address of that family")
    text = "; ".join(f"{where}: {error.strerror or error}" for where, error in failures)
    numbers = {error.errno for _, error in failures}
    number = numbers.pop()
    if numbers or number is None:
        return OSError(f"{doing}: {text}")
    return OSError(number, f"{doing}: {text}")
