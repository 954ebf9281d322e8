"""Tests that TLS connections keep the contract of streams: a server's, and those that became TLS by start_tls()."""

import asyncio
import socket
import ssl
from contextlib import suppress

import pytest
from stream_contract import Stream, check_stream
from stream_faces import streams
from tls_certificates import NAME, client_context, server_context

from aiouring import AsyncRing, Connection, open_connection, start_server


@pytest.mark.parametrize("size", [512, 16384])
async def test_started_on_a_pair(ring: AsyncRing, size: int) -> None:
    """start_tls() at both ends of a pair of Unix sockets, with buffers smaller than a record and with larger ones."""
    group = ring.register_buffer_ring(count=64, size=size)
    server, client = server_context(), client_context()

    async def make_pair() -> tuple[Stream, Stream]:
        left, right = (Connection(ring, sock, group) for sock in socket.socketpair())
        await asyncio.gather(left.start_tls(server, server_side=True), right.start_tls(client, server_hostname=NAME))
        return left, right

    await check_stream(make_pair)


async def test_readers_and_writers(ring: AsyncRing) -> None:
    """`StreamReader` and `StreamWriter` on connections that became TLS."""
    group = ring.register_buffer_ring(count=64, size=16384)
    server, client = server_context(), client_context()

    async def make_pair() -> tuple[Stream, Stream]:
        left, right = (Connection(ring, sock, group) for sock in socket.socketpair())
        await asyncio.gather(left.start_tls(server, server_side=True), right.start_tls(client, server_hostname=NAME))
        return streams(left), streams(right)

    await check_stream(make_pair)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_connections_of_a_server(ring: AsyncRing, version: str) -> None:
    """What open_connection() and start_server() make with ssl=, over TCP, in both versions of TLS."""
    arrivals: asyncio.Queue[Connection] = asyncio.Queue()
    server_side, client_side = server_context(), client_context()
    client_side.maximum_version = client_side.minimum_version = ssl.TLSVersion[version]

    async def hand_over(connection: Connection) -> None:
        arrivals.put_nowait(connection)
        with suppress(ConnectionError):
            await connection.wait_closed()

    async with await start_server(hand_over, "127.0.0.1", 0, ring=ring, ssl=server_side) as server:

        async def make_pair() -> tuple[Stream, Stream]:
            address = server.sockets[0].getsockname()
            return await open_connection(*address, ring=ring, ssl=client_side), await arrivals.get()

        await check_stream(make_pair)
