"""Tests that what is a stream keeps the contract of streams, over Unix sockets and over TCP."""

import asyncio
import socket
from contextlib import suppress

import pytest
from stream_contract import Stream, bad_receives, check_stream
from stream_faces import Face, Recording, RecordingBuffered, on_transport, streams

from aiouring import AsyncRing, Connection, StreamReader, StreamWriter, open_connection, start_server


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


@pytest.mark.parametrize("size", [512, 16384])
async def test_readers_and_writers(ring: AsyncRing, size: int) -> None:
    """`StreamReader` and `StreamWriter` on connections of Unix sockets."""
    group = ring.register_buffer_ring(count=64, size=size)

    async def make_pair() -> tuple[Stream, Stream]:
        left, right = (streams(Connection(ring, end, group)) for end in socket.socketpair())
        return left, right

    await check_stream(make_pair)


async def test_readers_and_writers_of_a_server(ring: AsyncRing) -> None:
    """What a handler is given by `start_server(..., streams=True)`, over TCP."""
    arrivals: asyncio.Queue[Face] = asyncio.Queue()

    async def hand_over(reader: StreamReader, writer: StreamWriter) -> None:
        arrivals.put_nowait(Face(reader, writer, lambda limit: StreamReader(reader._connection, limit=limit)))
        await writer.wait_closed()

    async with await start_server(hand_over, "127.0.0.1", 0, ring=ring, streams=True) as server:

        async def make_pair() -> tuple[Stream, Stream]:
            return streams(await open_connection(*server.sockets[0].getsockname(), ring=ring)), await arrivals.get()

        await check_stream(make_pair)


@pytest.mark.parametrize("kind", [Recording, RecordingBuffered])
@pytest.mark.parametrize("size", [512, 16384])
async def test_transports(ring: AsyncRing, size: int, kind: type[Recording]) -> None:
    """A `Transport` with asyncio's own streams for its protocol, which are told things in order, and each once.

    What their reader makes of bad arguments is asyncio's affair: it waits for 5.5 bytes for ever.
    """
    group = ring.register_buffer_ring(count=64, size=size)
    protocols: list[Recording] = []

    async def make_pair() -> tuple[Stream, Stream]:
        protocols[:] = kind(), kind()
        left, right = socket.socketpair()
        return (
            await on_transport(Connection(ring, left, group), protocols[0]),
            await on_transport(Connection(ring, right, group), protocols[1]),
        )

    await check_stream(make_pair, leaving_out=[bad_receives])
    assert [protocol.told[-1] for protocol in protocols] == ["lost", "lost"]


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
