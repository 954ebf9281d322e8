"""Tests that what is a stream keeps the contract of streams, over Unix sockets and over TCP."""

import asyncio
import socket
from contextlib import suppress

import pytest
from stream_contract import Stream, check_stream

from aiouring import AsyncRing, Connection, open_connection, start_server


@pytest.mark.parametrize("size", [512, 16384])
async def test_connections_made_of_sockets(ring: AsyncRing, size: int) -> None:
    """A Connection over a pair of Unix sockets, with small buffers and with larger ones."""
    group = ring.register_buffer_ring(count=64, size=size)

    async def make_pair() -> tuple[Stream, Stream]:
        left, right = socket.socketpair()
        return Connection(ring, left, group), Connection(ring, right, group)

    await check_stream(make_pair)


async def test_connections_of_a_server(ring: AsyncRing) -> None:
    """What open_connection() and start_server() make, over TCP."""
    arrivals: asyncio.Queue[Connection] = asyncio.Queue()

    async def hand_over(connection: Connection) -> None:
        arrivals.put_nowait(connection)
        with suppress(ConnectionError):
            await connection.wait_closed()

    async with await start_server(hand_over, "127.0.0.1", 0, ring=ring) as server:

        async def make_pair() -> tuple[Stream, Stream]:
            return await open_connection(*server.sockets[0].getsockname(), ring=ring), await arrivals.get()

        await check_stream(make_pair)


async def test_the_contract_can_be_broken(ring: AsyncRing) -> None:
    """A stream that loses bytes when it is cancelled fails, and the failure says where."""
    group = ring.register_buffer_ring(count=64, size=4096)

    class Lossy(Connection):
        async def receive_exactly(self, count: int) -> bytes:
            try:
                return await super().receive_exactly(count)
            except asyncio.CancelledError:
                self.framing().take_unread()
                raise

    async def make_pair() -> tuple[Stream, Stream]:
        left, right = socket.socketpair()
        return Lossy(ring, left, group), Lossy(ring, right, group)

    with pytest.raises(AssertionError, match="at byte") as caught:
        await check_stream(make_pair)
    assert caught.value.__notes__ == ["in cancelled_receives()"]
