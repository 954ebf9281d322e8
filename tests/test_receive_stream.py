"""Tests of ReceiveStream: leaving it in every way loses nothing, and the socket is free for the next receive."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

import aiouring

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets that do not block."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


async def test_async_for_until_the_end(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The loop ends with the stream."""
    group = ring.register_buffer_ring(count=8, size=4)
    pair[1].send(b"aaaabbbbcc")
    pair[1].shutdown(socket.SHUT_WR)
    got = []
    async for chunk in ring.recv_multishot(pair[0], group):
        with chunk:
            got.append(bytes(chunk.view))
    assert b"".join(got) == b"aaaabbbbcc"


@pytest.mark.parametrize("leave", ["break", "aclose", "with"])
async def test_what_was_not_taken_is_the_next_receives(ring: aiouring.AsyncRing, pair: Pair, leave: str) -> None:
    """Leaving the loop early, by any door, keeps what arrived, in order, for the next receive of any kind."""
    group = ring.register_buffer_ring(count=8, size=4)
    pair[1].send(b"aaaabbbbcccc")
    if leave == "break":
        async for chunk in ring.recv_multishot(pair[0], group):
            chunk.release()
            break
    elif leave == "aclose":
        stream = ring.recv_multishot(pair[0], group)
        (await anext(stream)).release()
        await stream.aclose()
        await stream.aclose()
    else:
        async with ring.recv_multishot(pair[0], group) as stream:
            (await anext(stream)).release()
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"bbbb"
    memory = bytearray(8)
    assert await ring.recv_into(pair[0], memory) == 4
    assert memory[:4] == b"cccc"
    pair[1].send(b"dddd")
    async with ring.recv_multishot(pair[0], group) as stream:
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"dddd"
    assert group.statistics().in_use == 0


async def test_a9_timeouts_lose_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Waiting with a timeout, over and over, sees every byte once."""
    group = ring.register_buffer_ring(count=8, size=16)
    whole = b""
    async with ring.recv_multishot(pair[0], group) as stream:
        for number in range(50):
            try:
                async with asyncio.timeout(0):
                    chunk = await anext(stream)
            except TimeoutError:
                pair[1].send(b"%03d " % number)
            else:
                with chunk:
                    whole += bytes(chunk.view)
        pair[1].shutdown(socket.SHUT_WR)
        async for chunk in stream:
            with chunk:
                whole += bytes(chunk.view)
    assert whole == b"".join(b"%03d " % number for number in range(50) if b"%03d " % number in whole)
    assert whole.split() == sorted(whole.split())


async def test_the_socket_is_busy(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """While a stream has the socket, other receives, streams and connections are refused; two readers as well."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0], group) as stream:
        with pytest.raises(aiouring.ResourceBusyError):
            await ring.recv(pair[0], group)
        with pytest.raises(aiouring.ResourceBusyError):
            await ring.recv_into(pair[0], bytearray(4))
        with pytest.raises(aiouring.ResourceBusyError):
            ring.recv_multishot(pair[0], group)
        with pytest.raises(aiouring.ResourceBusyError):
            aiouring.Connection(ring, pair[0], group)
        first = asyncio.ensure_future(anext(stream))
        await ring.nop()
        with pytest.raises(aiouring.ResourceBusyError):
            await anext(stream)
        pair[1].send(b"x")
        (await first).release()


async def test_a_bare_descriptor(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A number is as good as a socket."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0].fileno(), group) as stream:
        pair[1].send(b"hello")
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"hello"


async def test_cancel_and_close_of_the_socket_end_the_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """ring.cancel() and ring.close() on the socket are heard of by the reader."""
    group = ring.register_buffer_ring(count=8, size=16)
    stream = ring.recv_multishot(pair[0], group)
    await ring.nop()
    assert await ring.cancel(pair[0]) == 1
    with pytest.raises(OSError, match="cancel"):
        await anext(stream)
    await stream.aclose()
    stream = ring.recv_multishot(pair[0], group)
    await ring.nop()
    await ring.close(pair[0])
    with pytest.raises(OSError, match="cancel"):
        await anext(stream)
    await stream.aclose()


@pytest.mark.parametrize("wrong", [0, -1])
async def test_bad_max_pending(ring: aiouring.AsyncRing, pair: Pair, wrong: int) -> None:
    """At least one chunk must be able to wait."""
    group = ring.register_buffer_ring(count=8, size=16)
    with pytest.raises(ValueError, match=f"max_pending={wrong}"):
        ring.recv_multishot(pair[0], group, max_pending=wrong)
    with pytest.raises(TypeError, match="BufferRing"):
        ring.recv_multishot(pair[0], "group")  # type: ignore[arg-type]
