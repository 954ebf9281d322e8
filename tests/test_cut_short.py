"""Tests of writes that are cut short: how many bytes went out is known, and the rest can be sent."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from random import Random

import pytest
from conftest import RingFactory

import aiouring

Pair = tuple[socket.socket, socket.socket]
DATA = Random(14).randbytes(1 << 20)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets that do not block and take little at once."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    yield ends
    for end in ends:
        end.close()


def received(sock: socket.socket) -> bytes:
    """What has arrived."""
    whole = b""
    try:
        while data := sock.recv(1 << 20):
            whole += data
    except BlockingIOError:
        pass
    return whole


async def test_a14_send_all_tells_how_much_went_out(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Cancelled again and again, at any moment, the rest is sent from where the count says; nothing is lost."""
    random, whole, at, rounds = Random(1), b"", 0, 0

    async def send() -> int:
        try:
            await ring.send_all(pair[0], DATA[at:])
        except asyncio.CancelledError as error:
            count = aiouring.bytes_written(error)
            assert count is not None
            return count
        return len(DATA) - at

    while at < len(DATA):
        sending = asyncio.ensure_future(send())
        for _ in range(random.randrange(1, 6)):
            await asyncio.sleep(0)
            if not random.randrange(8):
                whole += received(pair[1])
        if sending.cancel():
            rounds += 1
        at += await sending
        whole += received(pair[1])
        assert len(whole) == at
    assert whole == DATA
    assert rounds > 3


async def test_a14_a_timeout_tells_as_well(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What asyncio.timeout() makes of the cancellation leads to the count."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.02):
            await ring.send_all(pair[0], DATA)
    count = aiouring.bytes_written(caught.value)
    assert count
    assert received(pair[1]) == DATA[:count]


@pytest.mark.parametrize("verb", ["send", "write", "sendmsg"])
async def test_a14_one_request(ring: aiouring.AsyncRing, pair: Pair, verb: str) -> None:
    """Of one that had to wait for room nothing went out; of one that was done when it was cancelled, all."""

    async def write(data: bytes) -> int | None:
        try:
            if verb == "sendmsg":
                return await ring.sendmsg(pair[0], [data])
            return await (ring.send if verb == "send" else ring.write)(pair[0], data)
        except asyncio.CancelledError as error:
            return aiouring.bytes_written(error)

    for before in (0, 1):
        writing = asyncio.ensure_future(write(b"hello"))
        await asyncio.sleep(0)
        if before:
            ring._driver._turn(0)  # type: ignore[union-attr] # it is done, and its task does not know
        writing.cancel()
        count = await writing
        assert count is not None
        assert received(pair[1]) == b"hello"[:count]
        assert count == 5 or not before
    while True:  # fill the socket
        try:
            pair[0].send(bytes(10_000))
        except BlockingIOError:
            break
    writing = asyncio.ensure_future(write(b"hello"))
    await ring.nop()
    writing.cancel()
    assert await writing == 0
    assert b"hello" not in received(pair[1])


async def test_a14_zero_copy(ring: aiouring.AsyncRing) -> None:
    """A zero-copy send that is cancelled tells it, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as left:
        right = listener.accept()[0]
        with right:
            right.setblocking(False)
            left.setblocking(False)

            async def send() -> int | None:
                try:
                    return (await ring.send_zc(left, b"hello")).sent
                except asyncio.CancelledError as error:
                    return aiouring.bytes_written(error)

            for _ in range(10):
                sending = asyncio.ensure_future(send())
                await asyncio.sleep(0)
                sending.cancel()
                count = await sending
                assert count is not None
                await ring.nop()
                assert received(right) == b"hello"[:count]


async def test_a14_an_error_half_way(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """send_all() that fails after some of it went out says how much."""
    sending = asyncio.ensure_future(ring.send_all(pair[0], DATA))
    await ring.nop()
    data = pair[1].recv(10_000)
    await ring.nop()
    pair[1].close()
    with pytest.raises(OSError) as caught:
        await sending
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)
    count = aiouring.bytes_written(caught.value)
    assert count is not None
    assert len(data) <= count < len(DATA)


async def test_a14_closing_the_ring(new_ring: RingFactory, pair: Pair) -> None:
    """Closing ends send_all() with the count as well."""
    ring = await new_ring()
    sending = asyncio.ensure_future(ring.send_all(pair[0], DATA))
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError) as caught:
        await sending
    assert aiouring.bytes_written(caught.value) == len(received(pair[1]))


@pytest.mark.needs_no_ring
def test_what_is_no_write() -> None:
    """Other exceptions have no count."""
    assert aiouring.bytes_written(ValueError()) is None
    assert aiouring.bytes_written(asyncio.CancelledError()) is None


async def test_a_read_has_no_count(ring: aiouring.AsyncRing) -> None:
    """A cancelled read is no write."""
    reader, writer = os.pipe()
    reading = asyncio.ensure_future(ring.read(reader, bytearray(1)))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await reading
    assert aiouring.bytes_written(caught.value) is None
    os.close(reader)
    os.close(writer)
