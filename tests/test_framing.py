"""Tests of framed receives: exact lengths and separators, mixed with plain receives, cancelled, and at the end."""

import asyncio
import socket
from random import Random

import pytest
import pytest_asyncio

import aiouring
from aiouring import AsyncRing, BufferRing, Connection

Pair = tuple[socket.socket, socket.socket]


@pytest_asyncio.fixture
async def group(ring: AsyncRing) -> BufferRing:
    """Buffers so small that a message takes several."""
    return ring.register_buffer_ring(count=8, size=8)


async def test_exactly(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """Exact lengths, across chunks and within one, none included; the end in between has what there was."""
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"0123456789abcdefghijkl")
        assert await connection.receive_exactly(0) == b""
        assert await connection.receive_exactly(3) == b"012"
        assert await connection.receive_exactly(17) == b"3456789abcdefghij"
        pair[1].close()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await connection.receive_exactly(3)
        assert (caught.value.partial, caught.value.expected) == (b"kl", 3)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await connection.receive_until(b"\n")
        assert caught.value.partial == b""
        assert not await connection.receive()
        assert await connection.receive_exactly(0) == b""


async def test_until(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """Separators of one byte or several, across the edge of a chunk too; at the end, what there was."""
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"one\ntwo\r\n12345\r\n\r\n\rest")
        assert await connection.receive_until(b"\n") == b"one\n"
        assert await connection.receive_until(b"\r\n") == b"two\r\n"
        assert await connection.receive_until(b"\r\n\r\n") == b"12345\r\n\r\n"
        pair[1].shutdown(socket.SHUT_WR)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await connection.receive_until(b"\n")
        assert (caught.value.partial, caught.value.expected) == (b"\rest", None)


@pytest.mark.parametrize("before", [b"01234", b"0123456789abcdef"])
async def test_limit(ring: AsyncRing, group: BufferRing, pair: Pair, before: bytes) -> None:
    """More than `limit` bytes before the separator, found or not, is an error that consumes nothing."""
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"0123\n" + before)
        assert await connection.receive_until(b"\n", limit=4) == b"0123\n"
        for end in (b"", b"\n"):
            pair[1].send(end)
            with pytest.raises(asyncio.LimitOverrunError, match="limit=4") as caught:
                await connection.receive_until(b"\n", limit=4)
            assert 4 < caught.value.consumed <= len(before)
        assert await connection.receive_until(b"\n", limit=len(before)) == before + b"\n"


async def test_bad_arguments(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """Numbers and separators that make no sense are refused, and the stream is as it was."""
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"hello")
        with pytest.raises(ValueError, match="count=-1"):
            await connection.receive_exactly(-1)
        with pytest.raises(ValueError, match="empty"):
            await connection.receive_until(b"")
        with pytest.raises(ValueError, match="limit=0"):
            await connection.receive_until(b"\n", limit=0)
        with pytest.raises(TypeError):
            await connection.receive_until("\n")  # type: ignore[arg-type]
        assert await connection.receive_exactly(5) == b"hello"


async def test_cancelled_it_loses_nothing(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """What a cancelled receive had gathered is what the next of any kind begins with."""
    async with Connection(ring, pair[0], group) as connection:
        for number in range(3):
            waiting = asyncio.ensure_future(
                connection.receive_exactly(100) if number % 2 else connection.receive_until(b"\n")
            )
            pair[1].send(b"abcdefghijk")
            async with asyncio.timeout(10):
                while connection.framing().unread != b"abcdefghijk":
                    await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert connection.statistics().pending == 1
            if number == 0:
                assert await connection.receive_exactly(11) == b"abcdefghijk"
            elif number == 1:
                with await connection.receive() as chunk:
                    assert bytes(chunk.view) == b"abcdefghijk"
            else:
                connection.write(await anext(aiter(connection)))
                await connection.send()
                assert pair[1].recv(100) == b"abcdefghijk"


async def test_one_receive_at_a_time(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """A second receive of any kind is refused while one waits, which then has everything."""
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"abc")
        waiting = asyncio.ensure_future(connection.receive_exactly(6))
        async with asyncio.timeout(10):
            while connection.framing().unread != b"abc":
                await asyncio.sleep(0)
        for receive in (connection.receive, lambda: connection.receive_exactly(1), lambda: anext(aiter(connection))):
            with pytest.raises(aiouring.ResourceBusyError):
                await receive()
        pair[1].send(b"defghi")
        assert await waiting == b"abcdef"
        with await connection.receive() as chunk:
            assert bytes(chunk.view) == b"ghi"
        plain = asyncio.ensure_future(connection.receive())
        await ring.nop()
        with pytest.raises(aiouring.ResourceBusyError):
            await connection.receive_until(b"\n")
        pair[1].send(b"j")
        with await plain as chunk:
            assert bytes(chunk.view) == b"j"


async def test_closed_meanwhile(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """A close ends the receive that waits, with its error; what it had gathered goes with the connection."""
    connection = Connection(ring, pair[0], group)
    pair[1].send(b"abc")
    waiting = asyncio.ensure_future(connection.receive_exactly(6))
    async with asyncio.timeout(10):
        while connection.framing().unread != b"abc":
            await asyncio.sleep(0)
        connection.abort()
        with pytest.raises(ConnectionAbortedError):
            await waiting
    await connection.aclose()


async def test_a_reset_comes_after_what_came_before(ring: AsyncRing, group: BufferRing) -> None:
    """After an error in the middle of a framed receive, what there was can still be had, and then the error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    async with Connection(ring, server, group) as connection:
        client.send(b"abc")
        waiting = asyncio.ensure_future(connection.receive_exactly(6))
        async with asyncio.timeout(10):
            while connection.framing().unread != b"abc":
                await asyncio.sleep(0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        with pytest.raises(ConnectionResetError):
            await waiting
        assert await connection.receive_exactly(3) == b"abc"
        with pytest.raises(ConnectionResetError):
            await connection.receive()


async def test_it_begins_with_what_an_earlier_receive_left(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """Bytes that came for a stream which ended before the connection was made come first."""
    pair[1].send(b"hello, world")
    async with ring.recv_multishot(pair[0], group):
        await ring.nop()
    async with Connection(ring, pair[0], group) as connection:
        assert connection.statistics().pending
        assert await connection.receive_exactly(12) == b"hello, world"


async def test_send_takes_lists(ring: AsyncRing, group: BufferRing, pair: Pair) -> None:
    """Parts come as arguments or in lists; one that has no bytes is refused before anything is written."""
    async with Connection(ring, pair[0], group) as connection:
        await connection.send([b"a", bytearray(b"b")], b"c", (memoryview(b"d"), b""))
        with pytest.raises(TypeError, match="str"):
            await connection.send([b"never", "sent"])
        await connection.send([])
        assert pair[1].recv(100) == b"abcd"


@pytest.mark.parametrize("seed", range(6))
async def test_any_order(ring: AsyncRing, pair: Pair, seed: int) -> None:
    """Receives of every kind in any order, some of them cancelled, have every byte once and in order."""
    random = Random(seed)
    group = ring.register_buffer_ring(count=random.choice((2, 8)), size=random.choice((3, 16, 64)))
    data = bytes(random.choice(b"abc\n") for _ in range(5000))
    at = 0

    async def feed() -> None:
        sent = 0
        while sent < len(data):
            size = random.choice((1, 7, 40, 300))
            await asyncio.get_running_loop().sock_sendall(pair[1], data[sent : sent + size])
            sent += size
            for _ in range(random.choice((0, 0, 2, 5))):
                await asyncio.sleep(0)
        pair[1].shutdown(socket.SHUT_WR)

    async def plain(receive: str) -> bytes:
        try:
            with await (connection.receive() if receive == "receive" else anext(aiter(connection))) as chunk:
                return bytes(chunk.view)
        except StopAsyncIteration:
            return b""

    async def receive() -> bytes:
        way = random.choice(("exactly", "until", "receive", "anext"))
        try:
            if way == "exactly":
                return await connection.receive_exactly(random.choice((1, 2, 10, 100)))
            if way == "until":
                got = await connection.receive_until(b"\n", limit=random.choice((1, 5, 1000)))
                assert got.index(b"\n") == len(got) - 1
                return got
            return await plain(way)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError:
            return b""

    async with Connection(ring, pair[0], group) as connection, asyncio.timeout(30):
        feeding = asyncio.ensure_future(feed())
        while at < len(data):
            task = asyncio.ensure_future(receive())
            for _ in range(random.choice((0, 1, 1, 4))):
                await asyncio.sleep(0)
            if random.random() < 0.3:
                task.cancel()
            await asyncio.wait([task])
            got = b"" if task.cancelled() else task.result()
            assert got == data[at : at + len(got)], f"at byte {at}"
            at += len(got)
        assert await plain("receive") == b""
        await feeding
