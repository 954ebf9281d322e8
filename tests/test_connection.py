"""Tests of Connection: echo, half close, abort, close, and what it owns."""

import asyncio
import gc
import socket
from random import Random
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring import Connection
from aiouring._sending import HIGH_WATER

Pair = tuple[socket.socket, socket.socket]


async def test_echo(ring: aiouring.AsyncRing) -> None:
    """Many connections echo many messages of mixed sizes through few buffers; every byte is compared."""
    group = ring.register_buffer_ring(count=8, size=512)

    async def echo(sock: socket.socket) -> None:
        async with Connection(ring, sock, group) as connection:
            async for chunk in connection:
                connection.write(chunk)
                await connection.drain()

    async def client(sock: socket.socket, seed: int) -> None:
        loop, random = asyncio.get_running_loop(), Random(seed)
        for _ in range(20):
            message = random.randbytes(random.choice((1, 100, 512, 513, 5000)))
            await loop.sock_sendall(sock, message)
            got = b""
            while len(got) < len(message):
                got += await loop.sock_recv(sock, len(message))
            assert got == message
        sock.close()

    async with asyncio.TaskGroup() as tasks:
        for seed in range(10):
            left, right = socket.socketpair()
            right.setblocking(False)
            tasks.create_task(echo(left))
            tasks.create_task(client(right, seed))
    assert group.statistics().in_use == 0
    assert ring.statistics().in_flight == 0


async def test_half_close(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """After send_eof() the peer sees the end, and what it answers still comes."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        connection.write(b"question")
        await connection.send_eof()
        assert pair[1].recv(100) == b"question"
        assert pair[1].recv(100) == b""
        pair[1].send(b"answer")
        with await connection.receive() as chunk:
            assert bytes(chunk.view) == b"answer"
        pair[1].shutdown(socket.SHUT_WR)
        assert not await connection.receive()
        assert not await connection.receive()


async def test_close_sends_what_was_written(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Leaving the block sends everything first; then the peer sees the end."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    connection.write(b"x" * 50_000)
    closing = asyncio.ensure_future(connection.aclose())
    loop, got = asyncio.get_running_loop(), b""
    while data := await loop.sock_recv(pair[1], 10_000):
        got += data
    await closing
    assert got == b"x" * 50_000
    await connection.aclose()
    with pytest.raises(ConnectionAbortedError):
        connection.write(b"late")


@pytest.mark.parametrize("way", ["abort", "cancelled close", "exception"])
async def test_h5_a_peer_that_never_reads(ring: aiouring.AsyncRing, pair: Pair, way: str) -> None:
    """A connection whose peer does not read is closed by abort(), by cancelling aclose(), or by an exception."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    pair[1].send(b"never taken")
    connection.write(b"x" * 10_000_000)
    await ring.nop()
    if way == "abort":
        connection.abort()
    elif way == "cancelled close":
        closing = asyncio.ensure_future(connection.aclose())
        await ring.nop()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    else:
        with pytest.raises(KeyError):
            async with connection:
                raise KeyError
    await connection.aclose()
    assert "closed" in repr(connection)
    assert ring.statistics().in_flight == 0
    assert group.statistics().in_use == 0
    while pair[1].recv(1_000_000):
        pass


async def test_h5_a_writer_is_held_back(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Who drains after each write has no more queued than the high mark and one message, and can be cancelled."""
    async with Connection(ring, pair[0], ring.register_buffer_ring(count=4, size=64)) as connection:
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(1000):
                connection.write(bytes(10_000))
                written += 10_000
                await connection.drain()

        writing = asyncio.ensure_future(write())
        while not connection.statistics().to_send > HIGH_WATER:
            await ring.nop()
        for _ in range(50):
            await ring.nop()
        assert HIGH_WATER < connection.statistics().to_send <= HIGH_WATER + 10_000
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        while written:
            written -= len(await asyncio.get_running_loop().sock_recv(pair[1], 1_000_000))


async def test_cancelled_receive_takes_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Whatever is cancelled while it waits, the next receive has every byte."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        for number in range(20):
            task = asyncio.ensure_future(connection.receive())
            await asyncio.sleep(0)
            pair[1].send(b"%d" % number)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            if task.done():
                chunk = task.result()
            else:
                task.cancel()
                await asyncio.wait([task])
                chunk = await connection.receive() if task.cancelled() else task.result()
            with chunk:
                assert bytes(chunk.view) == b"%d" % number


async def test_it_owns_its_socket(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The socket object is detached, so that nobody else can close the descriptor; addresses are still told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, address = listener.accept()
        group = ring.register_buffer_ring(count=4, size=64)
        with client:
            async with Connection(ring, server, group) as connection:
                assert server.fileno() == -1
                assert connection.local_address == listener.getsockname()
                assert connection.peer_address == address


async def test_what_is_refused(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Anything but a stream socket and a group is refused, and the socket is left as it was."""
    group = ring.register_buffer_ring(count=4, size=64)
    with pytest.raises(TypeError, match="BufferRing"):
        Connection(ring, pair[0], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_pending=0"):
        Connection(ring, pair[0], group, max_pending=0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="stream socket"):
            Connection(ring, datagrams, group)
        assert datagrams.fileno() >= 0
    assert pair[0].fileno() >= 0


async def test_dropped_without_closing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A connection that nobody holds any more says so, and is aborted: its peer sees the end."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    await ring.nop()
    with pytest.warns(ResourceWarning, match="never closed"):
        del connection
        gc.collect()
    assert await asyncio.get_running_loop().sock_recv(pair[1], 10) == b""
    assert ring.statistics().in_flight == 0


async def test_closing_the_ring_first(new_ring: RingFactory, pair: Pair) -> None:
    """A connection outlives its ring, useless: readers and writers get an error, and it can be closed."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    connection.write(b"x" * 10_000_000)
    reading = asyncio.ensure_future(connection.receive())
    sending = asyncio.ensure_future(connection.send())
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await reading
    with pytest.raises(aiouring.RingClosedError):
        await sending
    with pytest.raises(aiouring.RingClosedError):
        connection.write(b"more")
    await connection.aclose()


@pytest.mark.parametrize("way", ["abort", "aclose"])
async def test_closing_ends_a_reader(ring: aiouring.AsyncRing, pair: Pair, way: str) -> None:
    """Whoever waits for data when another task closes hears of it, and so does whoever comes later."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    reading = asyncio.ensure_future(connection.receive())
    await ring.nop()
    if way == "abort":
        connection.abort()
    await connection.aclose()
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionAbortedError):
            await reading
        with pytest.raises(ConnectionAbortedError):
            await connection.receive()


async def test_leftovers_that_nobody_reads(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What came for an earlier receive is dropped with the connection, without a warning."""
    group = ring.register_buffer_ring(count=4, size=64)
    pair[1].send(b"hello")
    async with ring.recv_multishot(pair[0], group):
        await ring.nop()
    connection = Connection(ring, pair[0], group)
    assert connection.statistics().pending == 1
    await connection.aclose()


async def test_a_group_that_raises_serves_again(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Want of a buffer is raised once; when one has come back the next receive has the data."""
    group = ring.register_buffer_ring(count=1, size=4, on_empty="raise")
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"aaaabbbb")
        with await connection.receive():
            for _ in range(2):
                with pytest.raises(aiouring.BuffersExhaustedError):
                    await connection.receive()
        async with asyncio.timeout(10):
            with await connection.receive() as chunk:
                assert bytes(chunk.view) == b"bbbb"


async def test_a_subclass_of_its_own(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What a subclass says instead of `write()` and `drain()` is what is called."""
    calls = []

    class Counted(Connection):
        """Notes what is called."""

        def write(self, data: Any) -> None:
            calls.append("write")
            super().write(data)

        async def drain(self) -> None:
            calls.append("drain")
            await super().drain()

    with ring.register_buffer_ring(count=2, size=64) as group:
        async with Counted(ring, pair[0], group) as connection:
            connection.write(b"data")
            await connection.drain()
            await connection.send()
            assert pair[1].recv(100) == b"data"
            assert calls == ["write", "drain"]
