"""Tests of groups that give out their buffers in parts: offsets, order, counts, and the end of it all (fault D16)."""

import asyncio
import errno
import gc
import os
import socket
import warnings
from collections.abc import Iterator

import pytest
from conftest import RingFactory

import aiouring
from aiouring import CompletionFlags, Connection, Opcode
from aiouring._uring import ffi, lib

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Three pairs of connected sockets that do not block."""
    made = [socket.socketpair() for _ in range(3)]
    for pair in made:
        for end in pair:
            end.setblocking(False)
    yield made
    for pair in made:
        for end in pair:
            end.close()


def group_of(ring: aiouring.AsyncRing, count: int = 2, size: int = 64) -> aiouring.BufferRing:
    """An incremental group."""
    return ring.register_buffer_ring(count=count, size=size, incremental=True)


async def text(chunk: aiouring.ProvidedBuffer) -> bytes:
    """What is in a chunk, which is released."""
    with chunk:
        return bytes(chunk.view)


async def test_d16_messages_of_several_sockets_share_a_buffer(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Each gets the next part, keeps it while others come, and gives it back in any order."""
    group = group_of(ring)
    held = []
    for round_ in range(2):
        for number, pair in enumerate(pairs):
            pair[1].send(b"%d.%d" % (round_, number))
            held.append(await ring.recv(pair[0], group))
    assert [chunk.offset for chunk in held] == [0, 3, 6, 9, 12, 15]
    assert {chunk.buffer_id for chunk in held} == {0}
    assert [bytes(chunk.view) for chunk in held] == [b"0.0", b"0.1", b"0.2", b"1.0", b"1.1", b"1.2"]
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.parts) == (2, 0, 6)
    for at in (3, 0, 3, 1, 1, 0):
        held.pop(at).release()
    assert group.statistics().parts == 0
    pairs[0][1].send(b"next")
    with await ring.recv(pairs[0][0], group) as chunk:
        assert (chunk.buffer_id, chunk.offset) == (0, 18)  # nothing goes back before all of it is used


async def test_d16_receives_that_complete_together(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receives whose tasks run late, or in another order, have the parts that their completions brought."""
    group = group_of(ring)
    tasks = [asyncio.ensure_future(ring.recv(pair[0], group)) for pair in pairs]
    await ring.nop()
    for number in (2, 0, 1):
        pairs[number][1].send(b"%d" % number * (number + 1))
    assert [await text(await task) for task in tasks] == [b"0", b"11", b"222"]
    assert group.statistics().parts == 0


async def test_d16_a_message_that_straddles_two_buffers(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """It comes as two chunks, in order; the first buffer is in use until both of its parts are released."""
    group = group_of(ring)
    pairs[0][1].send(b"a" * 40)
    first = await ring.recv(pairs[0][0], group)
    pairs[0][1].send(b"b" * 24 + b"c" * 6)
    second, third = await ring.recv(pairs[0][0], group), await ring.recv(pairs[0][0], group)
    assert [(chunk.buffer_id, chunk.offset, len(chunk)) for chunk in (first, second, third)] == [
        (0, 0, 40),
        (0, 40, 24),
        (1, 0, 6),
    ]
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.parts, found.published) == (1, 1, 3, 2)
    second.release()
    assert group.statistics().in_use == 1
    assert bytes(first.view) == b"a" * 40
    first.release()
    await ring.nop()
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.parts, found.published) == (2, 0, 1, 3)
    assert group.available() == 2
    third.release()


async def test_d16_a_buffer_that_comes_back_is_whole(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """The kernel has rewritten its entry: lap after lap, each byte of each buffer is used."""
    group = group_of(ring, count=2, size=8)
    seen = []
    for lap in range(50):
        message = bytes([lap]) * 5
        pairs[0][1].send(message)
        got = b""
        while len(got) < 5:
            with await ring.recv(pairs[0][0], group) as chunk:
                seen.append((chunk.buffer_id, chunk.offset, len(chunk)))
                got += bytes(chunk.view)
        assert got == message
    used = [
        buffer_id * 8 + at
        for buffer_id, start, length in seen
        for at in range(start or 0, (start or 0) + length)
        if buffer_id is not None
    ]
    assert used == [at % 16 for at in range(250)]


async def test_releases_of_parts_are_single(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Releasing twice, or reading afterwards, is an error although other parts of the buffer are lent."""
    group = group_of(ring)
    pairs[0][1].send(b"one")
    first = await ring.recv(pairs[0][0], group)
    pairs[0][1].send(b"two")
    second = await ring.recv(pairs[0][0], group)
    first.release()
    for mistake in (first.release, lambda: first.view, first.memory, lambda: group.add(first)):
        with pytest.raises(ValueError, match="buffer 0 has been released already"):
            mistake()
    assert group.statistics().parts == 1
    assert await text(second) == b"two"
    with pytest.raises(ValueError, match="buffer 0 is not lent"):
        group.take_back(0)
    with pytest.raises(ValueError, match="buffer 5 is not lent|no such buffer"):
        group.take_back(5)


async def test_slices_of_a_part_hold_it(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A slice of one part's view keeps that lease, and no other; afterwards all of them end."""
    group = group_of(ring)
    chunks = []
    for message in (b"one", b"two"):
        pairs[0][1].send(message)
        chunks.append(await ring.recv(pairs[0][0], group))
    kept = chunks[0].view[1:]
    assert bytes(chunks[1].view) == b"two"
    chunks[1].release()
    for _ in range(2):
        with pytest.raises(BufferError, match="a slice of buffer 0's view"):
            chunks[0].release()
    chunks[0].view[1:2] = b"N"
    assert bytes(kept) == b"Ne"
    kept.release()
    assert await text(chunks[0]) == b"oNe"


async def test_a_part_that_is_dropped_comes_back(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A chunk that is garbage warns and comes back; one with living views, when they die."""
    group = group_of(ring)
    views = []
    for message in (b"one", b"two"):
        pairs[0][1].send(message)
        chunk = await ring.recv(pairs[0][0], group)
        if message == b"two":
            views.append(chunk.view[1:])
        with pytest.warns(ResourceWarning, match="ProvidedPart 0 3 bytes> was never released"):
            del chunk
            gc.collect()
    assert group.statistics().parts == 1
    assert bytes(views[0]) == b"wo"
    views.clear()
    assert group.statistics().parts == 0


async def test_d16_ends_and_errors_take_nothing(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """The end of a stream, a cancelled receive and a reset leave the next part where it was."""
    group = group_of(ring)
    pairs[0][1].send(b"abc")
    assert await text(await ring.recv(pairs[0][0], group)) == b"abc"
    waiting = asyncio.ensure_future(ring.recv(pairs[0][0], group))
    await ring.nop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pairs[0][1].close()
    assert not await ring.recv(pairs[0][0], group)
    read, write = os.pipe()
    os.write(write, b"pipe")
    with await ring.read_provided(read, group) as chunk:
        assert (bytes(chunk.view), chunk.offset) == (b"pipe", 3)
    os.close(write)
    for _ in range(3):
        assert not await ring.read_provided(read, group)  # names the buffer, with F_BUF_MORE
    os.close(read)
    pairs[1][1].send(b"x" * 60)
    first, second = await ring.recv(pairs[1][0], group), await ring.recv(pairs[1][0], group)
    assert [(first.buffer_id, first.offset, len(first)), (second.buffer_id, second.offset, len(second))] == [
        (0, 7, 57),
        (1, 0, 3),
    ]
    first.release()
    second.release()


async def test_d16_a_cancelled_receive_that_had_data(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """What came with the cancellation is the next receive's, and its part comes back."""
    group = group_of(ring, count=1, size=8)
    for number in range(20):
        task = asyncio.ensure_future(ring.recv(pairs[0][0], group))
        await ring.nop()
        pairs[0][1].send(b"%04d" % number)
        for _ in range(number % 3):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        chunk = await ring.recv(pairs[0][0], group) if task.cancelled() else task.result()
        assert await text(chunk) == b"%04d" % number
    assert group.statistics().parts == 0


async def test_d16_streams_share_a_group(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Armed receives of several sockets, some chunks held: every byte is where it belongs, and stays."""
    group = group_of(ring, count=4, size=128)
    held: list[tuple[aiouring.ProvidedBuffer, bytes]] = []
    streams = [ring.recv_multishot(pair[0], group) for pair in pairs]
    for lap in range(60):
        for number, pair in enumerate(pairs):
            message = bytes([lap, number]) * (1 + (lap * 7 + number * 3) % 20)
            pair[1].send(message)
            got = b""
            while len(got) < len(message):
                chunk = await anext(streams[number])
                got += bytes(chunk.view)
                held.append((chunk, bytes(chunk.view)))
            assert got == message
        while len(held) > 5:
            chunk, content = held.pop((lap * 5) % len(held))
            assert bytes(chunk.view) == content
            chunk.release()
    for chunk, content in held:
        assert bytes(chunk.view) == content
        chunk.release()
    for stream in streams:
        await stream.aclose()
    assert group.statistics().high_water >= 1


async def test_d16_an_empty_group(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Used up and held, it is empty: receivers wait in line, and go on when the last part of a buffer is released."""
    group = group_of(ring, count=1, size=8)
    pairs[0][1].send(b"12345678rest")
    first = await ring.recv(pairs[0][0], group)
    assert (group.statistics().with_kernel, group.available()) == (0, 0)
    with pytest.raises(aiouring.BuffersExhaustedError, match="1 lent"):
        await ring.recv(pairs[0][0], group, on_empty="raise")
    waiting = asyncio.ensure_future(ring.recv(pairs[0][0], group))
    for _ in range(3):
        await ring.nop()
    assert group.statistics().waiting == 1
    assert bytes(first.view) == b"12345678"
    first.release()
    with await waiting as chunk:
        assert (bytes(chunk.view), chunk.offset) == (b"rest", 0)


async def test_d16_a_stream_parks_on_an_empty_group(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """An armed receive that meets no buffer waits in line without spinning, and loses nothing."""
    group = group_of(ring, count=2, size=8)
    async with ring.recv_multishot(pairs[0][0], group) as stream:
        data = bytes(range(64))
        pairs[0][1].send(data)
        got, held = b"", [await anext(stream)]
        while len(held) < 2:
            held.append(await anext(stream))
        waiting = asyncio.ensure_future(anext(stream))
        for _ in range(5):
            await ring.nop()
        assert not waiting.done()
        quiet = ring.statistics().enters
        await asyncio.sleep(0.02)
        assert ring.statistics().enters == quiet
        for chunk in held:
            got += await text(chunk)
        got += await text(await waiting)
        while len(got) < len(data):
            got += await text(await anext(stream))
        assert got == data


async def test_d16_a_stream_that_is_left(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """What it brought and nobody took is the next receive's; its parts come back."""
    group = group_of(ring)
    async with ring.recv_multishot(pairs[0][0], group) as stream:
        for number in range(5):
            pairs[0][1].send(b"%d" % number)
            await ring.nop()
        assert await text(await anext(stream)) == b"0"
    assert group.statistics().parts == 0
    assert await text(await ring.recv(pairs[0][0], group)) == b"1234"


async def test_d16_a_slow_reader_is_bounded(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """One stream that nobody reads takes an eighth of the group's bytes, or a few chunks more; others go on."""
    group = group_of(ring, count=32, size=64)
    async with ring.recv_multishot(pairs[0][0], group) as stream:
        pairs[0][1].send(b"x" * 4096)
        for _ in range(10):
            await ring.nop()
        assert group.statistics().with_kernel >= 8
        pairs[1][1].send(b"quick")
        assert await text(await ring.recv(pairs[1][0], group)) == b"quick"
        count = 0
        while count < 4096:
            count += len(await text(await anext(stream)))


@pytest.mark.parametrize("way", ["stream", "receives"])
async def test_d16_unregistered_while_parts_are_out(ring: aiouring.AsyncRing, pairs: list[Pair], way: str) -> None:
    """Parts stay readable; what had completed is still taken in its order; releases do nothing."""
    group = group_of(ring)
    pairs[0][1].send(b"held")
    held = await ring.recv(pairs[0][0], group)
    if way == "stream":
        stream = ring.recv_multishot(pairs[1][0], group)
        await ring.nop()
        pairs[1][1].send(b"late")
        group.unregister()
        await ring.nop()
        with pytest.raises((aiouring.RingClosedError, StopAsyncIteration)):
            while True:
                assert await text(await anext(stream)) == b"late"
        await stream.aclose()
    else:
        tasks = [asyncio.ensure_future(ring.recv(pair[0], group)) for pair in pairs[1:]]
        await ring.nop()
        for number, pair in enumerate(pairs[1:]):
            pair[1].send(b"%d" % number * 3)
        group.unregister()
        for number, task in enumerate(tasks):
            try:
                assert await text(await task) == b"%d" % number * 3
            except aiouring.RingClosedError:
                with ring.register_buffer_ring(count=1, size=64) as other:
                    assert await text(await ring.recv(pairs[1 + number][0], other)) == b"%d" % number * 3
    assert bytes(held.view) == b"held"
    held.release()
    with pytest.raises(ValueError, match="released already"):
        held.release()
    again = ring.register_buffer_ring(count=2, size=16, group_id=group.group_id)
    pairs[2][1].send(b"another")
    assert await text(await ring.recv(pairs[2][0], again)) in (b"another", b"111another")


async def test_d16_completions_found_after_unregistering(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receives that had their bytes when the group was unregistered have them, each its own."""
    group = group_of(ring)
    for number, pair in enumerate(pairs):
        pair[1].send(b"%d" % number * (number + 2))
    tasks = [asyncio.ensure_future(ring.recv(pair[0], group)) for pair in pairs]
    await asyncio.sleep(0)
    lib.au_ring_wait(ring._driver.ring.raw, 3, -1, 0, 0)  # type: ignore[union-attr]  # completed, and not drained
    group.unregister()
    assert [await text(await task) for task in tasks] == [b"00", b"111", b"2222"]
    assert group.statistics().parts == 0


async def test_a_closed_ring_leaves_parts_readable(new_ring: RingFactory, pairs: list[Pair]) -> None:
    """A part outlives its ring, as any lent buffer does."""
    ring = await new_ring()
    group = group_of(ring)
    pairs[0][1].send(b"kept")
    chunk = await ring.recv(pairs[0][0], group)
    await ring.aclose()
    assert bytes(chunk.view) == b"kept"
    chunk.release()


async def test_parts_are_written_as_they_are(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A connection sends each part from where it begins, and gives it back; nothing is copied."""
    group = group_of(ring, count=2, size=64)
    loop = asyncio.get_running_loop()
    async with Connection(ring, pairs[0][0], group) as connection:
        for number in range(40):
            message = bytes([number]) * (1 + number % 30)
            await loop.sock_sendall(pairs[0][1], message)
            got = 0
            while got < len(message):
                chunk = await connection.receive()
                got += len(chunk)
                connection.write(chunk)
                with pytest.raises(ValueError, match="released already"):
                    chunk.release()
            back = b""
            while len(back) < len(message):
                back += await loop.sock_recv(pairs[0][1], 100)
            assert back == message
        pairs[1][1].send(b"from elsewhere")
        connection.write(await ring.recv(pairs[1][0], group))
        connection.write(b", and bytes")
        await connection.send()
        assert pairs[0][1].recv(100) == b"from elsewhere, and bytes"
    assert group.statistics().parts == 0


async def test_parts_are_sent_by_verbs(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """send_all() of a part sends its bytes; the part cannot be released meanwhile."""
    group = group_of(ring)
    for message in (b"first", b"second"):
        pairs[0][1].send(message)
        with await ring.recv(pairs[0][0], group) as chunk:
            await ring.send_all(pairs[1][0], chunk)
    assert pairs[1][1].recv(100) == b"firstsecond"


async def test_writing_to_a_part_stays_within_it(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Each view ends where its part does."""
    group = group_of(ring)
    chunks = []
    for message in (b"aaa", b"bbb", b"ccc"):
        pairs[0][1].send(message)
        chunks.append(await ring.recv(pairs[0][0], group))
    assert [len(chunk.view) for chunk in chunks] == [3, 3, 3]
    chunks[1].view[:] = b"XXX"
    with pytest.raises(IndexError):
        chunks[1].view[3] = 0
    assert [await text(chunk) for chunk in chunks] == [b"aaa", b"XXX", b"ccc"]


async def test_framed_receives(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Lines and records of a connection come whole, whichever buffers they lie in."""
    group = group_of(ring, count=2, size=16)
    async with Connection(ring, pairs[0][0], group) as connection:
        pairs[0][1].send(b"a line that is longer than a buffer\nshort\n0123456789")
        assert await connection.receive_until(b"\n") == b"a line that is longer than a buffer\n"
        assert await connection.receive_until(b"\n") == b"short\n"
        assert await connection.receive_exactly(10) == b"0123456789"


async def test_datagrams(ring: aiouring.AsyncRing) -> None:
    """Datagrams lie behind one another; one that meets a remainder too small for it is cut, as recv() cuts it."""
    group = group_of(ring, count=2, size=32)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        for message in (b"twelve bytes", b"twelve more!", b"8 fit, 4 lost"):
            right.send(message)
        found = [await ring.recv(left, group) for _ in range(3)]
        assert [(bytes(chunk.view), chunk.buffer_id, chunk.offset) for chunk in found] == [
            (b"twelve bytes", 0, 0),
            (b"twelve more!", 0, 12),
            (b"8 fit, 4", 0, 24),
        ]
        for chunk in found:
            chunk.release()


# ---- what is refused, and what a kernel may do ---------------------------------------------------


async def test_d16_reads_from_files_are_refused(ring: aiouring.AsyncRing) -> None:
    """A file's read takes what it asks for, not what it gets: it would leave a gap, or overtake others."""
    group = group_of(ring)
    file = os.memfd_create("file")
    try:
        with pytest.raises(ValueError, match="only receives of bytes, and reads from pipes and sockets"):
            await ring.read_provided(file, group)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            await ring.read_provided(1 << 20, group)
    finally:
        os.close(file)
    assert ring.statistics().in_flight == 0


async def test_d16_messages_are_refused(ring: aiouring.AsyncRing) -> None:
    """The kernel gives up a remainder that is too small for a message's header, and no completion says so."""
    group = group_of(ring, size=512)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        right.send(b"message")
        with pytest.raises(ValueError, match="gives out its buffers in parts"):
            await ring.recvmsg(left, group)
        with pytest.raises(ValueError, match="gives out its buffers in parts"):
            ring.recvmsg_multishot(left, group)
        assert await text(await ring.recv(left, group)) == b"message"


async def test_d16_what_the_refusal_is_for() -> None:
    """The kernel, asked by hand: a read of 100 that finds 10 moves on by 100, and one by a worker takes the rest."""
    with aiouring.Ring() as ring:
        group = ring.register_buffer_ring(count=2, size=256, incremental=True, group_id=0)
        file = os.memfd_create("file")
        os.write(file, b"0123456789")
        select = lib.AU_SQE_BUFFER_SELECT
        assert lib.au_prepare(ring.raw, 1, lib.AU_OP_READ, file, 0, 0, 100, 0, select) == 0
        ring.wait()
        ours, theirs = socket.socketpair()
        theirs.send(b"xy")
        assert lib.au_prepare(ring.raw, 1, lib.AU_OP_RECV, ours.fileno(), 0, 0, 0, 0, select) == 0
        ring.wait()
        whole = bytes(group.arena.exporters[0][:])
        assert (whole[:10], whole[100:102]) == (b"0123456789", b"xy")
        theirs.send(b"z")
        assert lib.au_prepare(ring.raw, 1, lib.AU_OP_RECV, ours.fileno(), 0, 0, 0, 0, select | lib.AU_SQE_ASYNC) == 0
        (found,) = ring.wait()
        assert (found.result, found.flags & CompletionFlags.BUF_MORE, group.available()) == (1, 0, 1)
        ours.close()
        theirs.close()
        os.close(file)


@pytest.mark.parametrize("left", [32, 22])
def test_d16_what_the_refusal_of_messages_is_for(left: int) -> None:
    """The kernel, asked by hand: a message that begins near a buffer's end is cut off there, or is not received at all.

    Where less is left than its header takes, 6.18 fails with EFAULT; later kernels go on in the next buffer, and no
    completion says what they gave up.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, aiouring.Ring() as ring:
        ring.register_buffer_ring(count=4, size=256, incremental=True, group_id=0)
        head = ffi.new("uint64_t[7]", [0, 16])  # a struct msghdr with room for a name of 16 bytes, and nothing else
        how = lib.AU_SQE_BUFFER_SELECT | lib.AU_RECV_MULTISHOT << 16
        address = int(ffi.cast("uintptr_t", head))
        assert lib.au_prepare(ring.raw, 1, lib.AU_OP_RECVMSG, ours.fileno(), 0, address, 1, 0, how) == 0
        ring.submit()
        found: list[tuple[int, int]] = []
        for size in (80, 112 - left, 20):  # and 32 bytes of header each
            if not found or found[-1][0] > 0:
                theirs.send(bytes(size))
                found += [(completion.result, completion.flags >> 16) for completion in ring.wait()]
        assert found[:2] == [(112, 0), (144 - left, 0)]
        if left == 32:
            assert found[2] == (32, 0)  # its header, and none of its bytes
        else:
            assert found[2] in ((-errno.EFAULT, 0), (52, 1))


async def test_d16_a_kernel_that_gives_out_too_much(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A completion with more bytes than a buffer has left is an error, and no view of what lies behind."""
    group = group_of(ring)
    pairs[0][1].send(b"good")
    chunk = await ring.recv(pairs[0][0], group)
    group._shares[0].used = 62
    pairs[0][1].send(b"bad")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await ring.recv(pairs[0][0], group)
    chunk.release()
    group.unregister()


def test_d16_by_hand() -> None:
    """take() sums up by itself; add() says whether there is a buffer to advance over."""
    ours, theirs = socket.socketpair()
    with ours, theirs, aiouring.Ring() as ring:
        group = ring.register_buffer_ring(count=2, size=8, incremental=True)
        chunks = []
        for message in (b"abc", b"defgh", b"ij"):
            theirs.send(message)
            ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
            (completion,) = ring.wait()
            more = bool(completion.flags & CompletionFlags.BUF_MORE)
            chunks.append(group.take(completion.flags, completion.result))
            assert (bytes(chunks[-1].view), more) == (message, message != b"defgh")
        assert [(chunk.buffer_id, chunk.offset) for chunk in chunks] == [(0, 0), (0, 3), (1, 0)]
        found = group.statistics()
        assert (found.with_kernel, found.in_use, found.parts) == (1, 1, 3)
        assert (group.head(), group.available()) == (1, 1)  # a buffer used in part has not been taken yet
        assert [group.add(chunk) for chunk in chunks] == [False, True, False]
        found = group.statistics()
        assert (found.with_kernel, found.added, found.in_use, found.parts) == (1, 1, 0, 0)
        with pytest.raises(ValueError, match="there are only"):
            group.advance(2)
        group.advance(1)
        assert (group.head(), group.available(), group.statistics().added) == (1, 2, 0)
        with pytest.raises(AssertionError, match="it did not have"):
            group.take(completion.flags, 9)
        with pytest.raises(ValueError, match="gives out its buffers in parts"):
            ring.prepare_select(Opcode.SEND, group, user_data=1, fd=ours.fileno())
        with open(os.devnull, "rb") as file, pytest.raises(ValueError, match="gives out its buffers in parts"):
            ring.prepare_select(Opcode.READ, group, user_data=1, fd=file.fileno())
        assert not group.take(CompletionFlags.BUFFER, 0)  # an empty datagram


def test_d16_a_buffer_that_the_kernel_gives_up_early() -> None:
    """Without F_BUF_MORE the kernel is done with a buffer, whatever is left of it: as a worker's receive leaves it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, aiouring.Ring() as ring:
        group = ring.register_buffer_ring(count=2, size=8, incremental=True, group_id=0)
        theirs.send(b"abc")
        how = lib.AU_SQE_BUFFER_SELECT | lib.AU_SQE_ASYNC
        assert lib.au_prepare(ring.raw, 1, lib.AU_OP_RECV, ours.fileno(), 0, 0, 0, 0, how) == 0
        (completion,) = ring.wait()
        assert not completion.flags & CompletionFlags.BUF_MORE
        chunk = group.take(completion.flags, completion.result)
        found = group.statistics()
        assert (found.with_kernel, found.in_use, group.available()) == (1, 1, 1)
        assert bytes(chunk.view) == b"abc"
        chunk.release()
        ring.submit()
        assert group.available() == 2
        for number, message in enumerate((b"12345678", b"ijklmnop")):  # the second in all of the one given up
            theirs.send(message)
            ring.prepare_select(Opcode.RECV, group, user_data=number, fd=ours.fileno())
            (completion,) = ring.wait()
            with group.take(completion.flags, completion.result) as chunk:
                assert (bytes(chunk.view), chunk.buffer_id, chunk.offset) == (message, 1 - number, 0)


def test_an_older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not know it, the error says which does."""
    monkeypatch.setattr("aiouring._features._here", frozenset({"buffer rings"}))
    with aiouring.Ring() as ring, pytest.raises(aiouring.UnsupportedKernelError, match=r"incremental.*6\.12"):
        ring.register_buffer_ring(count=2, size=8, incremental=True)


async def test_plain_groups_have_no_parts(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Their buffers begin at 0, and a part of one cannot be named."""
    group = ring.register_buffer_ring(count=2, size=8)
    assert (group.incremental, group_of(ring).incremental) == (False, True)
    pairs[0][1].send(b"abc")
    with await ring.recv(pairs[0][0], group) as chunk:
        assert (chunk.offset, chunk.buffer_id, group.statistics().parts) == (0, 0, 1)
        with pytest.raises(ValueError, match="no such buffer"):
            group.take_back(1 << lib.AU_BUFFER_ID_BITS)
    assert lib.au_group_take_part(group.raw, 0, 1) == lib.AU_BAD_INDEX


async def test_no_cycle_and_no_warning(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Parts that are released leave no garbage to collect."""
    group = group_of(ring)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            pairs[0][1].send(b"some")
            await text(await ring.recv(pairs[0][0], group))
    assert ffi.sizeof("struct au_share") == 12
    assert gc.collect() < 20


async def test_a_group_of_parts_grows_and_falls_back(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """New buffers are given out in parts as well; a chunk in memory of its own, in the end, is whole."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=4, on_empty="fallback", incremental=True)
    chunks = []
    for number in range(9):
        pairs[0][1].send(b"%08d" % number)
        async with asyncio.timeout(5):
            chunks.append(await ring.recv(pairs[0][0], group))
    assert [chunk.buffer_id for chunk in chunks] == [0, 0, 1, 1, 2, 2, 3, 3, None]
    found = group.statistics()
    assert (found.count, found.growths, found.fallbacks, found.private) == (4, 2, 1, 1)
    assert [bytes(chunk.view) for chunk in chunks] == [b"%08d" % number for number in range(9)]
    for chunk in chunks:
        chunk.release()
