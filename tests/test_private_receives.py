"""Tests of receivers that find the group empty and fall back: nothing is lost or spins, and the group comes first."""

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


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Ten pairs of connected stream sockets: receiving, sending."""
    made = [socket.socketpair() for _ in range(10)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def take_all(ring: aiouring.AsyncRing, group: aiouring.BufferRing, pair: Pair) -> list[aiouring.ProvidedBuffer]:
    """Lend every buffer of the group."""
    chunks = []
    for _ in range(len(group)):
        pair[1].send(b"x")
        chunks.append(await ring.recv(pair[0], group))
    return chunks


async def turns(ring: aiouring.AsyncRing, count: int = 5) -> None:
    """Give what is in flight its turns."""
    for _ in range(count):
        await ring.nop()


def release(chunks: list[aiouring.ProvidedBuffer]) -> None:
    """Give all of them back."""
    while chunks:
        chunks.pop().release()


# ---- recv() ------------------------------------------------------------------------------------


async def test_d5_recv_falls_back(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """With every buffer lent, a receive returns a private one, and the group's again when it has some."""
    group = ring.register_buffer_ring(count=2, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    pairs[1][1].send(b"private")
    with await ring.recv(pairs[1][0], group) as chunk:
        assert (bytes(chunk.view), chunk.buffer_id, len(chunk)) == (b"private", None, 7)
        found = group.statistics()
        assert (found.private, found.fallbacks, found.in_use, found.starved) == (1, 1, 2, 0)
    assert group.statistics().private == 0
    release(held)
    pairs[1][1].send(b"of the group")
    with await ring.recv(pairs[1][0], group) as chunk:
        assert (bytes(chunk.view), chunk.buffer_id) == (b"of the group", chunk.number)
    assert group.statistics().fallbacks == 1


async def test_d5_idle_receives_hold_nothing(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receives without data hold no private buffer and do not spin; those whose data comes get one."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    tasks = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[1:]]
    await turns(ring, 40)
    assert (group.statistics().private, group.statistics().waiting) == (0, 0)
    before = ring.statistics()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert ring.statistics() == before
    for number in (9, 3):
        pairs[number][1].send(b"data")
        with await tasks[number - 1] as chunk:
            assert (bytes(chunk.view), chunk.buffer_id) == (b"data", None)
    release(held)
    await turns(ring)
    pairs[5][1].send(b"data")  # a buffer of the group has come back since it was armed
    with await tasks[4] as chunk:
        assert (bytes(chunk.view), chunk.buffer_id) == (b"data", 0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_bound_and_whoever_comes_back_first(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Beyond as many private buffers as the group has, receivers wait in order, and take whatever comes back."""
    group = ring.register_buffer_ring(count=2, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:]:
        pair[1].send(b"data")
    private = [await ring.recv(pair[0], group) for pair in pairs[1:3]]
    order: list[int] = []

    async def receive(number: int) -> aiouring.ProvidedBuffer:
        chunk = await ring.recv(pairs[number][0], group)
        order.append(number)
        return chunk

    tasks = []
    for number in range(3, 7):
        tasks.append(asyncio.create_task(receive(number)))
        await turns(ring)
    found = group.statistics()
    assert (found.private, found.waiting, found.fallbacks) == (2, 4, 2)
    private.pop().release()
    private.append(await tasks[0])
    held.pop().release()
    held.append(await tasks[1])
    assert (private[-1].buffer_id, held[-1].number) == (None, held[-1].buffer_id)
    release(private)
    private += [await tasks[2], await tasks[3]]
    assert order == [3, 4, 5, 6]
    release(private)
    release(held)


async def test_those_who_wait_are_not_content(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """`on_empty` of one call counts: who said "wait" gets the group's, "raise" raises, "fallback" falls back."""
    group = ring.register_buffer_ring(count=1, size=16)
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:]:
        pair[1].send(b"data")
    waiting = asyncio.create_task(ring.recv(pairs[1][0], group))
    await turns(ring)
    private = await ring.recv(pairs[2][0], group, on_empty="fallback")
    content = asyncio.create_task(ring.recv(pairs[3][0], group, on_empty="fallback"))
    await turns(ring)
    with pytest.raises(aiouring.BuffersExhaustedError):
        await ring.recv(pairs[4][0], group, on_empty="raise")
    assert group.statistics().waiting == 2
    private.release()
    with await content as chunk:
        assert chunk.buffer_id is None
    assert not waiting.done()
    release(held)
    with await waiting as chunk:
        assert chunk.buffer_id == 0


async def test_newcomer_without_data_does_not_spin_in_line(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Those in line whose sockets are empty pass a private buffer on, once each, and are armed."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for number in (1, 2):
        pairs[number][1].send(b"data")
    private = await ring.recv(pairs[1][0], group)
    refused = asyncio.create_task(ring.recv(pairs[2][0], group))
    await turns(ring)
    idle = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[3:]]  # there is a line: they join it
    await turns(ring)
    assert group.statistics().waiting == 8
    private.release()
    (await refused).release()
    await turns(ring, 60)
    assert (group.statistics().waiting, group.statistics().private) == (0, 0)
    before = ring.statistics()
    for _ in range(200):
        await asyncio.sleep(0)
    assert ring.statistics() == before
    for pair in pairs[3:]:
        pair[1].send(b"late")
    for task in idle:
        with await task as chunk:
            assert bytes(chunk.view) == b"late"
    release(held)


async def test_end_and_error(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """The end of a stream, and an error, are told without a buffer, and take none with them."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    pairs[1][1].close()
    assert not await ring.recv(pairs[1][0], group)
    with socket.socket() as unconnected, pytest.raises(OSError) as caught:
        await ring.recv(unconnected, group)
    assert caught.value.errno == errno.ENOTCONN
    found = group.statistics()
    assert (found.private, found.fallbacks) == (0, 0)
    release(held)


async def test_a4_cancelled_anywhere(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A receive that is cancelled at any point of falling back loses no byte, and leaves no buffer behind."""
    group = ring.register_buffer_ring(count=1, size=8, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    sent = got = b""
    random = Random(5)
    for number in range(200):
        data = b"%d " % number
        early = random.random() < 0.5
        if early:
            pairs[1][1].send(data)
        task = asyncio.create_task(ring.recv(pairs[1][0], group))
        for _ in range(number % 9):
            await asyncio.sleep(0)
        if not early:
            pairs[1][1].send(data)
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
        sent += data
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            with task.result() as chunk:
                got += bytes(chunk.view)
        assert group.statistics().private == 0
    while len(got) < len(sent):
        with await ring.recv(pairs[1][0], group) as chunk:
            got += bytes(chunk.view)
    assert got == sent
    release(held)


async def test_cancelled_in_line(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """One that was handed a private buffer and is cancelled in that moment passes it on."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:4]:
        pair[1].send(b"data")
    private = await ring.recv(pairs[1][0], group)
    tasks = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[2:4]]
    await turns(ring)
    private.release()
    tasks[0].cancel()
    with await tasks[1] as chunk:
        assert bytes(chunk.view) == b"data"
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    with await ring.recv(pairs[2][0], group) as chunk:
        assert bytes(chunk.view) == b"data"
    release(held)


async def test_h1_closed_in_line(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """One whose socket was closed while it stood in line passes its private buffer on."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:4]:
        pair[1].send(b"data")
    private = await ring.recv(pairs[1][0], group)
    tasks = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[2:4]]
    await turns(ring)
    pairs[2][0].close()
    private.release()
    with await tasks[1] as chunk:
        assert bytes(chunk.view) == b"data"
    with pytest.raises(OSError, match="Bad file descriptor"):
        await tasks[0]
    release(held)


async def test_datagrams_keep_their_boundaries(ring: aiouring.AsyncRing) -> None:
    """A datagram that falls back is whole, and is followed by the next one, an empty one too."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    with left, right:
        right.send(b"first")
        held = await ring.recv(left, group)
        for data in (b"second", b"", b"third"):
            right.send(data)
        async with ring.recv_multishot(left, group) as stream:
            got = []
            for _ in range(3):
                with await anext(stream) as chunk:
                    got.append(bytes(chunk.view))
            assert got == [b"second", b"", b"third"]
        held.release()


async def test_unregistered_meanwhile(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Unregistering ends those that fall back as it ends all others; a private chunk stays valid."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    pairs[1][1].send(b"data")
    private = await ring.recv(pairs[1][0], group)
    armed = asyncio.create_task(ring.recv(pairs[2][0], group))
    pairs[3][1].send(b"more")
    in_line = asyncio.create_task(ring.recv(pairs[3][0], group))
    await turns(ring)
    group.unregister()
    for task in (armed, in_line):
        with pytest.raises(aiouring.RingClosedError):
            await task
    with pytest.raises(aiouring.RingClosedError):
        await ring.recv(pairs[4][0], group)
    assert bytes(private.view) == b"data"
    private.release()
    release(held)


async def test_a_view_of_a_private_chunk(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """It is released, refused and reported as any other chunk."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    pairs[1][1].send(b"data")
    chunk = await ring.recv(pairs[1][0], group)
    part = chunk.view[1:]
    with pytest.raises(BufferError):
        chunk.release()
    assert bytes(part) == b"ata"
    del part
    chunk.release()
    with pytest.raises(ValueError, match="released already"):
        chunk.release()
    pairs[1][1].send(b"data")
    with pytest.warns(ResourceWarning, match="never released"):
        await ring.recv(pairs[1][0], group)
    assert group.statistics().private == 0
    release(held)


# ---- read_provided() ---------------------------------------------------------------------------


async def test_read_falls_back(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A file's read falls back at an offset and at the file's own position, and at the end."""
    group = ring.register_buffer_ring(count=1, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    file = os.memfd_create("numbers")
    try:
        os.write(file, b"0123456789")
        os.lseek(file, 0, os.SEEK_SET)
        for offset, expected in ((6, b"6789"), (None, b"0123"), (None, b"4567"), (None, b"89"), (None, b"")):
            with await ring.read_provided(file, group, offset) as chunk:
                assert (bytes(chunk.view), chunk.buffer_id) == (expected, None)
        with await ring.read_provided(file, group, 3, length=2) as chunk:
            assert bytes(chunk.view) == b"34"
        assert (group.statistics().fallbacks, group.statistics().private) == (5, 0)
    finally:
        os.close(file)
    release(held)


async def test_cancelled_read_of_a_pipe(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A pipe's read that falls back waits with its buffer; cancelled, it gives it back and loses nothing."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    reading, writing = os.pipe()
    try:
        task = asyncio.create_task(ring.read_provided(reading, group))
        await turns(ring)
        assert group.statistics().private == 1
        os.write(writing, b"data")
        task.cancel()
        await asyncio.wait([task])
        assert group.statistics().private == 0
        with await ring.read_provided(reading, group) as chunk:
            assert bytes(chunk.view) == b"data"
    finally:
        os.close(reading)
        os.close(writing)
    release(held)


# ---- streams -----------------------------------------------------------------------------------


async def test_d5_stream_falls_back_and_returns(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A stream goes on in private buffers while the group is empty, in order, and returns to the group's."""
    group = ring.register_buffer_ring(count=2, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    async with ring.recv_multishot(pairs[1][0], group) as stream:
        pairs[1][1].send(b"aaaabbbbcccc")
        for expected in (b"aaaa", b"bbbb"):
            with await anext(stream) as chunk:
                assert (bytes(chunk.view), chunk.buffer_id) == (expected, None)
        release(held)
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"cccc"
        await turns(ring)
        pairs[1][1].send(b"dddd")
        with await anext(stream) as chunk:
            assert (bytes(chunk.view), chunk.buffer_id) == (b"dddd", chunk.number)
        assert 2 <= group.statistics().fallbacks <= 3


async def test_d5_idle_streams_do_not_spin(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Streams without data on an empty group wait in the kernel, and hold nothing."""
    group = ring.register_buffer_ring(count=1, size=16, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    streams = [ring.recv_multishot(pair[0], group) for pair in pairs[1:]]
    await turns(ring, 40)
    before = ring.statistics()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert ring.statistics() == before
    assert (group.statistics().private, group.statistics().waiting) == (0, 0)
    pairs[4][1].send(b"data")
    with await anext(streams[3]) as chunk:
        assert (bytes(chunk.view), chunk.buffer_id) == (b"data", None)
    release(held)
    for stream in streams:
        await stream.aclose()


async def test_d7_firehose_is_bounded(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A stream that nobody reads takes max_pending private chunks and one more, then rests."""
    group = ring.register_buffer_ring(count=16, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    async with ring.recv_multishot(pairs[1][0], group, max_pending=4) as stream:
        pairs[1][1].send(b"data" * 50)
        await turns(ring, 60)
        assert stream.pending <= 5
        assert group.statistics().private == stream.pending
        before = ring.statistics().submitted
        await turns(ring)
        assert ring.statistics().submitted == before + 5
        for _ in range(50):
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"data"
    release(held)


async def test_d6_left_streams_keep_what_came(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """What a stream had in private buffers when it was left is what the next receive on the socket returns."""
    group = ring.register_buffer_ring(count=4, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for pause in range(8):
        data = b"0123456789" * 3
        pairs[1][1].send(data)
        async with ring.recv_multishot(pairs[1][0], group, max_pending=2):
            await turns(ring, pause)
        assert group.statistics().private == 0
        got = b""
        while len(got) < len(data):
            with await ring.recv(pairs[1][0], group) as chunk:
                got += bytes(chunk.view)
        assert got == data
    release(held)


async def test_connection_falls_back(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A connection echoes private chunks as any other, keeps framing, and gives them back when it is aborted."""
    group = ring.register_buffer_ring(count=4, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for sock in pairs[1]:
        sock.setblocking(False)
    async with (
        aiouring.Connection(ring, pairs[1][0], group, max_pending=2) as server,
        aiouring.Connection(ring, pairs[1][1], group, max_pending=2) as client,
    ):
        await client.send(b"line one\nrest")
        assert await server.receive_until(b"\n") == b"line one\n"
        echoed = 0
        while echoed < 4:
            chunk = await server.receive()
            echoed += len(chunk)
            server.write(chunk)
        assert await client.receive_exactly(4) == b"rest"
        await client.send(b"nobody will take this")
        await turns(ring, 40)
        server.abort()
    await turns(ring)
    assert group.statistics().private == 0
    release(held)


async def test_closing_the_ring(new_ring: RingFactory, pairs: list[Pair]) -> None:
    """With receives falling back, in line and armed, the ring closes, and everybody hears of it."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=1, size=4, on_empty="fallback")
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:4]:
        pair[1].send(b"datadata")
    streams = [ring.recv_multishot(pair[0], group) for pair in pairs[1:6]]
    tasks = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[6:]]
    await turns(ring)
    chunks = [await anext(streams[0])]
    await ring.aclose()
    for task in tasks:
        with pytest.raises(aiouring.RingClosedError):
            await task
    release(chunks)
    for stream in streams:
        await stream.aclose()
    release(held)
    assert group.statistics().private == 0


@pytest.mark.deadline(10)
async def test_d6_many_streams_on_few_buffers(ring: aiouring.AsyncRing) -> None:
    """Whatever is held, left and cancelled at random, every stream gets all its bytes in order."""
    random = Random(11)
    group = ring.register_buffer_ring(count=2, size=16, on_empty="fallback")
    pairs = [socket.socketpair() for _ in range(8)]
    data = [Random(number).randbytes(600) for number in range(8)]

    async def read(number: int) -> bytes:
        whole = b""
        held: list[aiouring.ProvidedBuffer] = []
        sock = pairs[number][0]
        while len(whole) < len(data[number]):
            if random.random() < 0.3:
                try:
                    async with asyncio.timeout(random.choice([0, 0.001, 0.01])):
                        chunk = await ring.recv(sock, group, on_empty=random.choice([None, "wait"]))
                    whole += bytes(chunk.view)
                    held.append(chunk)
                except TimeoutError:
                    release(held)
            else:
                async with ring.recv_multishot(sock, group, max_pending=2) as stream:
                    for _ in range(random.randrange(4)):
                        if len(whole) == len(data[number]):
                            break
                        try:
                            async with asyncio.timeout(0.001):
                                chunk = await anext(stream)
                        except TimeoutError:
                            continue
                        whole += bytes(chunk.view)
                        held.append(chunk)
            if len(held) > random.randrange(3):
                release(held)
        release(held)
        return whole

    for number, (_, right) in enumerate(pairs):
        right.send(data[number])
    assert await asyncio.gather(*(read(number) for number in range(8))) == data
    assert group.statistics().fallbacks > 0
    for pair in pairs:
        for sock in pair:
            sock.close()
