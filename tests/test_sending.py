"""Tests of Sending, the sending half of a connection: order, vectors, short sends, failure, and memory."""

import asyncio
import gc
import socket
import sys
from random import Random

import pytest
from conftest import RingFactory

import aiouring
from aiouring import Connection, _sending
from aiouring._driver import GRAVEYARD
from aiouring._sending import Sending
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]

COPIED = lib.AU_COPY_MAX
#: Bytes that are kept and not copied.
LARGE = COPIED + 1


async def receive_all(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    data, loop = b"", asyncio.get_running_loop()
    while len(data) < size and (piece := await loop.sock_recv(sock, size - len(data))):
        data += piece
    return data


async def test_what_one_turn_writes_is_one_request(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Parts written in one turn of the loop go in one submission, in order."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        await ring.nop()
        before = ring.statistics().submitted
        for part in (b"one ", bytearray(b"two "), memoryview(b"three "), b"", b"four"):
            connection.write(part)
        assert connection.statistics().to_send == 18
        await connection.send()
        assert await receive_all(pair[1], 18) == b"one two three four"
        assert ring.statistics().submitted == before + 1
        assert connection.statistics().to_send == 0


async def test_more_parts_than_a_vector_has(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Hundreds of parts of mixed sizes arrive complete and in order, in few requests."""
    random = Random(3)
    parts = [random.randbytes(random.randrange(1, 40)) for _ in range(300)]
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        for part in parts:
            connection.write(part)
        await connection.send()
        whole = b"".join(parts)
        assert await receive_all(pair[1], len(whole)) == whole


async def test_more_than_the_socket_takes(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """drain() waits while the peer does not read, and goes on when it does; nothing is lost on the way."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = Random(4).randbytes(1 << 20)
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        connection.write(data[:100])
        await connection.drain()
        connection.write(data[100:])
        draining = asyncio.ensure_future(connection.drain())
        await ring.nop()
        assert not draining.done()
        assert await receive_all(pair[1], len(data)) == data
        await draining
        assert connection.statistics().to_send < 64 * 1024
        await connection.send()


async def test_written_memory_is_free_when_it_is_sent(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A large part is let go of as soon as the kernel has it all."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        part = b"x" * LARGE
        before = sys.getrefcount(part)
        connection.write(part)
        assert sys.getrefcount(part) == before + 1
        await connection.send()
        assert sys.getrefcount(part) == before


async def test_a_few_bytes_are_copied(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Up to COPIED bytes are not kept; copies, kept memory and buffers arrive in the order of writing."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"a chunk")
        parts = [bytes([number]) * size for number, size in enumerate((1, COPIED, LARGE, 2 * LARGE, COPIED, 50_000, 7))]
        before = list(map(sys.getrefcount, parts))
        for number in range(len(parts)):
            connection.write(parts[number])
        kept = [now - then for now, then in zip(map(sys.getrefcount, parts), before, strict=True)]
        assert kept == [0, 0, 1, 1, 0, 1, 0]
        connection.write(await connection.receive())
        whole = b"".join(parts) + b"a chunk"
        assert await receive_all(pair[1], len(whole)) == whole


async def test_copies_of_an_aborted_connection(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What was copied and never sent is gone with the connection, and its memory."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    for _ in range(10):
        connection.write(b"x" * COPIED)
    connection.abort()
    await connection.aclose()
    assert pair[1].recv(1) == b""


async def test_a_lent_buffer_is_handed_over(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Writing a received chunk ends its lease, and its buffer returns to the group when it is sent."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"hello")
        chunk = await connection.receive()
        connection.write(chunk)
        with pytest.raises(ValueError, match="released already"):
            chunk.view
        with pytest.raises(ValueError, match="released already"):
            connection.write(chunk)
        assert group.statistics().in_use == 1
        await connection.send()
        assert group.statistics().in_use == 0
        assert await receive_all(pair[1], 5) == b"hello"


async def test_a_chunk_with_views_is_refused(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A chunk whose slice is alive cannot be handed over; nothing is queued, and the lease goes on."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"hello")
        with await connection.receive() as chunk:
            piece = chunk.view[1:3]
            with pytest.raises(BufferError, match="slice"):
                connection.write(chunk)
            assert bytes(piece) == b"el"
            piece.release()
            del piece
        assert connection.statistics().to_send == 0


async def test_a_buffer_of_another_group(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Leases that are not of the connection's group are sent, and go home, as well."""
    group, other = (ring.register_buffer_ring(count=2, size=64) for _ in range(2))
    left, right = socket.socketpair()
    with left, right, ring.register_buffers(count=1, size=16) as table:
        right.send(b"from another ")
        chunk = await ring.recv(left, other)
        fixed = await table.acquire()
        fixed.view[:] = b"and a registered"
        async with Connection(ring, pair[0], group) as connection:
            connection.write(chunk)
            connection.write(fixed)
            await connection.send()
            assert await receive_all(pair[1], 29) == b"from another and a registered"
            assert other.statistics().in_use == 0
            assert table.statistics().in_use == 0


async def test_a_peer_that_is_gone(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A send that fails is what every later write and drain raises; queued buffers go back."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"hello")
        chunk = await connection.receive()
        pair[1].close()
        with pytest.raises(BrokenPipeError):
            await connection.send(b"to nobody")
        with pytest.raises(BrokenPipeError):
            connection.write(b"more")
        with pytest.raises(BrokenPipeError):
            connection.write(chunk)
        with pytest.raises(BrokenPipeError):
            await connection.drain()
        assert group.statistics().in_use == 0


async def test_cancelled_send_is_still_sent(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Cancelling the wait takes nothing back."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        task = asyncio.ensure_future(connection.send(b"x" * 100_000))
        await ring.nop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        connection.write(b"end")
        assert await receive_all(pair[1], 100_003) == b"x" * 100_000 + b"end"


async def test_more_senders_than_the_queue_has_entries(new_ring: RingFactory) -> None:
    """Senders that find the submission queue full are served by the next rounds."""
    ring = await new_ring(entries=4)
    group = ring.register_buffer_ring(count=4, size=64)
    pairs = [socket.socketpair() for _ in range(50)]
    connections = [Connection(ring, left, group) for left, _ in pairs]
    for number, connection in enumerate(connections):
        connection.write(b"to %d" % number)
    await asyncio.gather(*(connection.send() for connection in connections))
    for number, (_, right) in enumerate(pairs):
        assert right.recv(100) == b"to %d" % number
        right.close()
    for connection in connections:
        await connection.aclose()
    assert not gc.garbage


async def test_who_writes_on_keeps_nobody_waiting(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """send() waits for what was written before it, not for what another task writes meanwhile."""
    group = ring.register_buffer_ring(count=4, size=64)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with Connection(ring, pair[0], group) as connection:

        async def flood() -> None:
            while not stop.is_set():
                connection.write(b"x" * 30_000)
                await connection.drain()
                await asyncio.sleep(0)

        async def sink() -> None:
            while await loop.sock_recv(pair[1], 10_000):
                pass

        flooding, sinking = asyncio.ensure_future(flood()), asyncio.ensure_future(sink())
        await ring.nop()
        async with asyncio.timeout(10):
            await connection.send(b"mine")
        stop.set()
        await flooding
    await sinking


async def test_abandoned_drains_leave_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A drain() that timed out is forgotten: polling with a timeout does not pile up waiters."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        connection.write(b"x" * 10_000_000)
        await ring.nop()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await connection.drain()
        assert not connection._sending._waiting
        connection.abort()


async def test_write_from_another_thread(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """It is refused, and nothing is lost: neither the lease nor the connection."""
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        pair[1].send(b"hello")
        chunk = await connection.receive()
        for data in (chunk, b"bytes"):
            with pytest.raises(aiouring.WrongContextError):
                await asyncio.to_thread(connection.write, data)
        await connection.send(chunk)
        assert pair[1].recv(10) == b"hello"
        await asyncio.get_running_loop().shutdown_default_executor()


async def test_senders_take_turns(new_ring: RingFactory) -> None:
    """With more senders than the queue has entries, those with a lot to send do not keep out the others."""
    ring = await new_ring(entries=2)
    group = ring.register_buffer_ring(count=4, size=64)
    pairs = [socket.socketpair() for _ in range(5)]
    connections = [Connection(ring, left, group) for left, _ in pairs]
    await ring.nop()
    for number, connection in enumerate(connections):
        for _ in range(1 if number == 0 else 200):  # the first to write is the first to be served
            connection.write(b"x")
    before = ring.statistics().submitted
    await connections[0].send()
    assert ring.statistics().submitted <= before + 8  # one turn's
    for connection in connections:
        await connection.send()
        await connection.aclose()
    for _, right in pairs:
        right.close()


@pytest.mark.leaves_things
async def test_closing_after_the_ring_gave_up_on_a_send(
    new_ring: RingFactory, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that the kernel would not stop in time is kept for ever; its connection closes all the same."""
    ring = await new_ring(close_timeout=0.0)
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    connection.write(b"x" * 10_000_000)
    await ring.nop()
    with monkeypatch.context() as patch, pytest.warns(ResourceWarning, match="would not stop"):
        patch.setattr(Sending, "drop", lambda *_: None)  # the kernel hears of no cancel
        await ring.aclose()
    async with asyncio.timeout(10):
        await connection.aclose()
    GRAVEYARD.pop()


@pytest.mark.needs("incremental buffer rings")
async def test_parts_of_buffers_go_to_the_core(ring: aiouring.AsyncRing) -> None:
    """A part of a buffer is handed over as a whole one is: nothing is kept here for it, and no event is needed."""
    near, far = socket.socketpair()
    near.setblocking(False)
    group = ring.register_buffer_ring(count=2, size=4096, incremental=True)
    async with aiouring.Connection(ring, near, group) as connection:
        far.send(b"hello")
        connection.write(await connection.receive())
        assert isinstance(connection._sending, Sending)
        assert connection._sending._kept is None
        await connection.send([])
        assert far.recv(9) == b"hello"
    far.close()


async def test_what_was_kept_and_never_written(
    ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt between keeping memory and queueing it costs neither what is written later, nor keeps that."""
    left, right = pair
    async with Connection(ring, left, ring.register_buffer_ring(count=2, size=64)) as connection:

        def interrupted(*_: object) -> int:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(_sending, "_add_memory", interrupted)
            with pytest.raises(KeyboardInterrupt):
                connection.write(b"n" * LARGE)
        for letter in b"abc":
            await connection.send(bytes([letter]) * LARGE)
            assert connection._sending._kept is None  # type: ignore[union-attr]
            assert right.recv(2 * LARGE, socket.MSG_WAITALL) == bytes([letter]) * LARGE


async def test_c8_interrupted_before_the_last_write(
    ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that was handed over, and not written any more, is given back when the connection is closed."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    group = ring.register_buffer_ring(count=4, size=64)
    buffers = ring.register_buffers(count=1, size=5000)
    lease = buffers.try_acquire()
    assert lease is not None
    connection = Connection(ring, pair[0], group)
    monkeypatch.setattr(_sending, "_add_memory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connection.write(lease)
    monkeypatch.undo()
    await connection.aclose()
    assert buffers.statistics().in_use == 0
