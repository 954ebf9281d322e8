"""Tests of recvmsg_multishot: what comes with each message, what is cut off, its bounds, and who owns what came."""

import asyncio
import errno
import gc
import os
import socket
import struct
import sys
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from conftest import RingFactory, open_files, until
from socket_ends import Pair, make_ends

import aiouring
from aiouring._receiving_messages import room_for

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
IP_PKTINFO = 8  # the socket module has it since Python 3.12
ROOM = socket.CMSG_SPACE(4)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected Unix datagram sockets."""
    yield from make_ends("unnamed", Path())


def group_of(ring: aiouring.AsyncRing, count: int = 8, size: int = 256) -> aiouring.BufferRing:
    """A group whose buffers have room for messages."""
    return ring.register_buffer_ring(count=count, size=size)


async def test_as_the_standard_library(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Payload, control data, flags and address are what socket.recvmsg() gives, on every kind of socket."""
    left, right = ends
    left.send(b"hello")
    expected = right.recvmsg(100)
    async with ring.recvmsg_multishot(right, group_of(ring)) as stream:
        left.send(b"hello")
        with await anext(stream) as message:
            found = bytes(message.view), message.ancillary, message.flags, message.address
            assert found == expected
            assert (len(message), message.size) == (5, 5)
            assert message
    with pytest.raises(ValueError, match="released"):
        _ = message.view
    assert message.address == expected[3]  # outlives the buffer


async def test_one_request_for_many_messages(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A reader that keeps up needs one submission; an empty datagram costs one more, and is a message."""
    async with ring.recvmsg_multishot(pair[0], group_of(ring)) as stream:
        await ring.nop()
        before = ring.statistics().submitted
        for number in range(20):
            pair[1].send(b"%d" % number)
            with await anext(stream) as message:
                assert bytes(message.view) == b"%d" % number
        assert ring.statistics().submitted == before
        for data in (b"", b"", b"after"):
            pair[1].send(data)
        for data in (b"", b"", b"after"):
            with await anext(stream) as message:
                assert bytes(message.view) == data
                assert bool(message) == bool(data)


async def test_what_is_cut_off_is_told(ring: aiouring.AsyncRing) -> None:
    """MSG_TRUNC and the whole size for a payload, MSG_CTRUNC for control data, the bytes of a name; else nothing."""
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        right.bind(("127.0.0.1", 0))
        left.bind(("127.0.0.1", 0))
        right.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        group = group_of(ring, size=16 + 16 + 32 + 10)
        async with ring.recvmsg_multishot(right, group, ancillary_size=32) as stream:
            for size in (9, 10, 11, 1000):
                left.sendto(bytes(size), right.getsockname())
                with await anext(stream) as message:
                    cut = socket.MSG_TRUNC if size > 10 else 0
                    assert (len(message), message.size, message.flags) == (min(size, 10), size, cut)
                    [(level, kind, data)] = message.ancillary
                    assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
                    assert struct.unpack("=I4s4s", data)[2] == socket.inet_aton("127.0.0.1")
        async with ring.recvmsg_multishot(right, group, ancillary_size=15, name_size=7) as stream:
            left.sendto(b"x", right.getsockname())
            with await anext(stream) as message:
                assert message.flags == socket.MSG_CTRUNC
                assert (
                    message.address
                    == struct.pack("=H", socket.AF_INET)
                    + struct.pack("!H", left.getsockname()[1])
                    + (socket.inet_aton("127.0.0.1")[:3])
                )
        async with ring.recvmsg_multishot(right, group, name_size=0) as stream:
            left.sendto(b"x", right.getsockname())
            with await anext(stream) as message:
                assert message.address is None


async def test_timestamps(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Other control data comes through as it is: the time at which the kernel got the message."""
    pair[0].setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    async with ring.recvmsg_multishot(pair[0], group_of(ring), ancillary_size=socket.CMSG_SPACE(16)) as stream:
        pair[1].send(b"x")
        with await anext(stream) as message:
            [(level, kind, data)] = message.ancillary
            assert (level, kind, len(data)) == (socket.SOL_SOCKET, 35, 16)


@pytest.mark.parametrize("ends", ["stream", "TCP", "seqpacket"], indirect=True)
async def test_the_end_of_a_connection(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Where there is an end the stream ends, after what came before, and every buffer is back."""
    left, right = ends
    group = group_of(ring)
    async with ring.recvmsg_multishot(right, group) as stream:
        left.send(b"one")
        with await anext(stream) as message:
            assert bytes(message.view) == b"one"
        left.send(b"two")
        left.shutdown(socket.SHUT_WR)
        found = []
        async for message in stream:
            with message:
                found.append(bytes(message.view))
        assert found == [b"two"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_packet_without_bytes_is_told_from_the_end(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """An empty packet with descriptors beside it is a message."""
    for left, right in make_ends("seqpacket", tmp_path):
        async with ring.recvmsg_multishot(right, group_of(ring), ancillary_size=ROOM) as stream:
            socket.send_fds(left, [b""], [left.fileno()])
            left.send(b"after")
            with await anext(stream) as message:
                assert len(message) == 0
                [(_, _, data)] = message.ancillary
                os.close(array("i", data)[0])
            with await anext(stream) as message:
                assert bytes(message.view) == b"after"


async def test_buffers_that_are_too_small(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Where nothing would be left for a payload it is a ValueError with the numbers; one byte is enough."""
    assert room_for(group_of(ring, size=127), socket.AF_UNIX, None, 0) == (110, 0)
    with pytest.raises(ValueError, match="buffers of 126 bytes .* 16 bytes, 110 for .* 0 for .* at least 127"):
        ring.recvmsg_multishot(pair[0], group_of(ring, size=126))
    for options in ({"name_size": 129}, {"name_size": -1}, {"ancillary_size": -1}, {"ancillary_size": 2**21}):
        with pytest.raises(ValueError, match="outside 0 to"):
            ring.recvmsg_multishot(pair[0], group_of(ring), **options)
    with pytest.raises(TypeError, match="BufferRing"):
        ring.recvmsg_multishot(pair[0], bytearray(9))  # type: ignore[arg-type]
    with pytest.raises(OSError) as caught:
        ring.recvmsg_multishot(0, group_of(ring))
    assert caught.value.errno == errno.ENOTSOCK
    async with ring.recvmsg_multishot(pair[0], group_of(ring, size=127)) as stream:
        pair[1].send(b"xyz")
        with await anext(stream) as message:
            assert bytes(message.view) == b"x"


@pytest.mark.needs("incremental buffer rings")
async def test_groups_that_give_out_parts(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A message takes a whole buffer: a group that gives out parts is refused at once, by its number."""
    group = ring.register_buffer_ring(count=2, size=4096, incremental=True)
    with pytest.raises(ValueError, match=f"group {group.group_id} gives out its buffers in parts, and a message"):
        ring.recvmsg_multishot(pair[0], group)
    with pytest.raises(ValueError, match=f"group {group.group_id} gives out its buffers in parts, and a message"):
        await ring.recvmsg(pair[0], group)


async def test_one_reader(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A socket has one receive at a time, and a stream one reader."""
    group = group_of(ring)
    async with ring.recvmsg_multishot(pair[0], group) as stream:
        with pytest.raises(aiouring.ResourceBusyError):
            ring.recvmsg_multishot(pair[0], group)
        with pytest.raises(aiouring.ResourceBusyError):
            await ring.recvmsg(pair[0], group)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError):
            await anext(stream)
        pair[1].send(b"x")
        (await waiting).release()


async def test_back_pressure_and_going_on(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Above max_pending the kernel's request ends; the rest stays in the socket, in order, and comes later."""
    group = group_of(ring, count=64)
    pair[1].setblocking(True)
    async with ring.recvmsg_multishot(pair[0], group, max_pending=4) as stream:
        pair[1].settimeout(0)
        sent = 0
        while True:
            try:
                pair[1].send(b"%d" % sent)
            except BlockingIOError:
                break
            sent += 1
        for _ in range(10):
            await ring.nop()
        assert stream.pending > 4
        for number in range(sent):
            with await anext(stream) as message:
                assert bytes(message.view) == b"%d" % number
    assert group.statistics().in_use == 0


async def test_a_flood_does_not_hold_the_group(ring: aiouring.AsyncRing, pair: Pair, tmp_path: Path) -> None:
    """It keeps max_pending buffers and no more; others are served meanwhile, and nothing of it is lost or moved."""
    group = group_of(ring, count=16)
    for left, right in make_ends("IPv4", tmp_path):
        for number in range(100):
            left.send(b"%d" % number)
        async with ring.recvmsg_multishot(right, group, max_pending=3) as flood:
            for _ in range(10):
                await ring.nop()
            assert flood.pending > 3, "this did not test a flood"
            found = group.statistics()
            assert (found.in_use, found.with_kernel) == (3, 13)
            pending, submitted = flood.pending, ring.statistics().submitted
            async with ring.recvmsg_multishot(pair[0], group) as other:
                for _ in range(20):
                    pair[1].send(b"x")
                    (await anext(other)).release()
            assert flood.pending == pending, "it went on without a reader"
            assert ring.statistics().submitted < submitted + 10
            for number in range(50):
                with await anext(flood) as message:
                    assert (bytes(message.view), message.address) == (b"%d" % number, left.getsockname())
        assert group.statistics().in_use == 0
        for number in range(50, 100):
            assert (await ring.recvfrom(right, 9))[0] == b"%d" % number


async def test_a_flood_of_descriptors(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Descriptors of what was copied are passed on with their messages, or closed."""
    group = group_of(ring)
    writers = []
    for _ in range(8):
        writers.append(passed(pair))
    async with ring.recvmsg_multishot(pair[0], group, ancillary_size=ROOM, max_pending=1) as stream:
        for _ in range(5):
            await ring.nop()
        assert group.statistics().in_use == 1
        assert not any(map(broken, writers))
        for _ in range(3):
            with await anext(stream) as message:
                os.close(array("i", message.ancillary[0][2])[0])
        for _ in range(3):
            (await anext(stream)).release()
        assert list(map(broken, writers)) == [True] * 6 + [False] * 2
    await ring.close(pair[0])
    assert all(map(broken, writers))
    for writer in writers:
        os.close(writer)


async def test_d6_empty_group_parks_the_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """With every buffer lent the stream waits in line, without spinning, and goes on when one returns."""
    group = group_of(ring, count=2)
    async with ring.recvmsg_multishot(pair[0], group, max_pending=8) as stream:
        for data in (b"a", b"b", b"c"):
            pair[1].send(data)
        held = [await anext(stream), await anext(stream)]
        waiting = asyncio.ensure_future(anext(stream))
        for _ in range(5):
            await ring.nop()
        assert group.statistics().waiting == 1
        quiet = ring.statistics().enters
        await asyncio.sleep(0.02)
        assert ring.statistics().enters == quiet
        held.pop(0).release()
        with await waiting as message:
            assert bytes(message.view) == b"c"
        held.pop().release()


async def test_e5_overflow_ends_the_kernels_request(new_ring: RingFactory, pair: Pair) -> None:
    """A completion queue that is too small ends the multishot with a message (KERNEL.md C4); nothing is lost."""
    ring = await new_ring(entries=4, cq_entries=4)
    group = group_of(ring, count=64)
    async with ring.recvmsg_multishot(pair[0], group, max_pending=64) as stream:
        for number in range(10):
            pair[1].send(b"%d" % number)
        for number in range(10):
            with await anext(stream) as message:
                assert bytes(message.view) == b"%d" % number


@pytest.mark.parametrize("ends", ["IPv4", "IPv6", "Unix", "abstract", "seqpacket"], indirect=True)
async def test_a8_what_nobody_took_is_the_next_receives(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Leaving the stream keeps its messages whole, apart and in order, for whatever receives next."""
    left, right = ends
    group = group_of(ring, count=16)
    left.send(b"expected")
    _, _, _, sender = right.recvmsg(100)
    async with ring.recvmsg_multishot(right, group, max_pending=16) as stream:
        for number in range(6):
            left.send(b"message %d" % number)
        while stream.pending < 6:
            await ring.nop()
    assert group.statistics().in_use == 0
    assert await ring.recvfrom(right, 100) == (b"message 0", sender)
    memory = bytearray(4)
    assert await ring.recvmsg(right, [memory]) == (4, [], socket.MSG_TRUNC, sender)
    with (await ring.recvfrom(right, group))[0] as message:
        assert (bytes(message.view), message.address) == (b"message 2", sender)
    async with ring.recvmsg_multishot(right, group) as stream:
        assert stream.pending == 3
        with await anext(stream) as message:
            assert (bytes(message.view), message.address, message.size) == (b"message 3", sender, 9)
    async with ring.recv_multishot(right, group) as chunks:
        with await anext(chunks) as chunk:
            assert bytes(chunk.view) == b"message 4"
        with await anext(chunks) as chunk:
            assert bytes(chunk.view) == b"message 5"


async def test_a8_seqpacket_of_recv_multishot_stays_apart(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What recv_multishot() did not hand out of a socket for packets is kept packet by packet."""
    for left, right in make_ends("seqpacket", tmp_path):
        async with ring.recv_multishot(right, group_of(ring), max_pending=8) as stream:
            for data in (b"one", b"two"):
                left.send(data)
            while stream.pending < 2:
                await ring.nop()
        assert (await ring.recvfrom(right, 100))[0] == b"one"
        assert (await ring.recvfrom(right, 100))[0] == b"two"


async def test_a8_an_empty_datagram_is_kept_as_well(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A datagram without bytes that nobody took is a message for the next recvmsg()."""
    async with ring.recvmsg_multishot(pair[0], group_of(ring), max_pending=8) as stream:
        pair[1].send(b"")
        pair[1].send(b"x")
        while stream.pending < 2:
            await ring.nop()
    assert (await ring.recvfrom(pair[0], 9))[0] == b""
    assert (await ring.recvfrom(pair[0], 9))[0] == b"x"


async def test_bytes_of_a_stream_are_joined(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Of a stream of bytes what nobody took is one run of bytes again; descriptors stay where they were."""
    for left, right in make_ends("stream", tmp_path):
        group = group_of(ring, size=300)
        async with ring.recvmsg_multishot(right, group, max_pending=8, ancillary_size=ROOM) as stream:
            left.send(bytes(range(100)))
            await ring.nop()
            socket.send_fds(left, [b"with"], [left.fileno()])
            while stream.pending < 2:
                await ring.nop()
        assert (await ring.recvmsg(right, [bytearray(60)]))[0] == 60
        assert (await ring.recvmsg(right, [bytearray(60)]))[0] == 40
        count, [(_, _, data)], _, _ = await ring.recvmsg(right, [bytearray(60)], ancillary_size=ROOM)
        assert count == 4
        os.close(array("i", data)[0])


# ---- descriptors -----------------------------------------------------------------------------------


def passed(pair: Pair) -> int:
    """Send a pipe's reading end, and return the writing one: it breaks when nobody has the other any more."""
    reader, writer = os.pipe()
    socket.send_fds(pair[1], [b"x"], [reader])
    os.close(reader)
    os.set_blocking(writer, False)
    return writer


def broken(writer: int) -> bool:
    """Whether nobody can read the pipe any more."""
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return True
    return False


async def test_descriptors_are_the_readers(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Whoever reads `ancillary` has the descriptors, close-on-exec, and they outlive the message."""
    async with ring.recvmsg_multishot(pair[0], group_of(ring), ancillary_size=ROOM) as stream:
        writer = passed(pair)
        with await anext(stream) as message:
            [(level, kind, data)] = message.ancillary
            assert (level, kind) == RIGHTS
        [reader] = array("i", data)
        assert not os.get_inheritable(reader)
        assert not broken(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        assert broken(writer)
        os.close(writer)


async def test_descriptors_that_nobody_took_are_closed(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """With the message, whether it is released or dropped; they are not in `ancillary` afterwards."""
    async with ring.recvmsg_multishot(pair[0], group_of(ring), ancillary_size=ROOM) as stream:
        writer = passed(pair)
        with await anext(stream) as message:
            assert not broken(writer)
        assert broken(writer)
        assert message.ancillary == []
        os.close(writer)
        writer = passed(pair)
        message = await anext(stream)
        with pytest.raises(ZeroDivisionError), message:
            _ = 1 / 0
        assert broken(writer)
        os.close(writer)
        writer = passed(pair)
        message = await anext(stream)
        with pytest.warns(ResourceWarning, match="never released"):
            del message
            gc.collect()
        assert broken(writer)
        os.close(writer)


async def test_descriptors_of_what_nobody_took(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """They go to the next receive with their message, and are closed with the socket's number."""
    group = group_of(ring)
    writers = []
    async with ring.recvmsg_multishot(pair[0], group, ancillary_size=ROOM, max_pending=8) as stream:
        for _ in range(3):
            writers.append(passed(pair))
        while stream.pending < 3:
            await ring.nop()
    assert not any(map(broken, writers))
    with await ring.recvmsg(pair[0], group) as message:
        [(_, _, data)] = message.ancillary
        os.close(array("i", data)[0])
    assert list(map(broken, writers)) == [True, False, False]
    async with ring.recvmsg_multishot(pair[0], group, ancillary_size=ROOM) as stream:
        (await anext(stream)).release()
    assert list(map(broken, writers)) == [True, True, False]
    await ring.close(pair[0])
    assert all(map(broken, writers))
    for writer in writers:
        os.close(writer)


async def test_descriptors_when_the_ring_is_closed(new_ring: RingFactory, pair: Pair) -> None:
    """A stream that is left behind by its ring closes what nobody took when it is dropped."""
    ring = await new_ring()
    stream = ring.recvmsg_multishot(pair[0], group_of(ring), ancillary_size=ROOM, max_pending=8)
    writer = passed(pair)
    while not stream.pending:
        await ring.nop()
    await ring.aclose()
    del stream
    gc.collect()
    del ring
    assert until(lambda: broken(writer))
    os.close(writer)


# ---- in flight -------------------------------------------------------------------------------------


async def test_cancelled_reader_takes_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A reader that is cancelled when the message comes leaves it to the next."""
    async with ring.recvmsg_multishot(pair[0], group_of(ring)) as stream:
        for _ in range(20):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            pair[1].send(b"x")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with await anext(stream) as message:
                assert bytes(message.view) == b"x"


async def test_cancel_and_close_of_the_socket(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What stops all requests on the file ends the stream, after what came before, with ECANCELED."""
    for stop in (ring.cancel, ring.close):
        stream = ring.recvmsg_multishot(pair[0], group_of(ring))
        pair[1].send(b"x")
        while not stream.pending:
            await ring.nop()
        await stop(pair[0])
        (await anext(stream)).release()
        with pytest.raises(OSError) as caught:
            await anext(stream)
        assert caught.value.errno == errno.ECANCELED
        await stream.aclose()


async def test_unregistered_group(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Unregistering the group ends the stream; the message stays in the socket."""
    group = group_of(ring)
    async with ring.recvmsg_multishot(pair[0], group) as stream:
        await ring.nop()
        group.unregister()
        with pytest.raises(aiouring.RingClosedError, match="unregistered"):
            await anext(stream)
    pair[1].send(b"x")
    assert pair[0].recv(9) == b"x"


async def test_a_direct_descriptor(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A slot of the ring's table does as well as a socket."""
    with ring.register_files([pair[0]]) as files:
        async with ring.recvmsg_multishot(files[0], group_of(ring), ancillary_size=ROOM) as stream:
            writer = passed(pair)
            with await anext(stream) as message:
                assert bytes(message.view) == b"x"
            assert broken(writer)
            os.close(writer)
        pair[1].send(b"y")
        with await ring.recvmsg(files[0], group_of(ring)) as message:
            assert bytes(message.view) == b"y"


async def test_messages_are_sent_as_they_are(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """A received message is its payload for every verb that sends, not what lies before it in the buffer."""
    left, right = ends
    async with ring.recvmsg_multishot(right, group_of(ring), ancillary_size=ROOM) as stream:
        left.send(b"hello")
        with await anext(stream) as message:
            await ring.send(right, message)
            assert left.recv(9) == b"hello"
            await ring.send_all(right, message)
            assert left.recv(9) == b"hello"
            await ring.sendmsg(right, [b"<", message, b">"])
            assert left.recv(9) == b"<hello>"
            if right.family != socket.AF_UNIX:
                await ring.send_zc(right, message)
                assert left.recv(9) == b"hello"


async def test_a_connection_sends_a_message(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Sending a message of the connection's own group sends the payload, and gives the buffer back."""
    group = group_of(ring)
    near, far = socket.socketpair()
    near.setblocking(False)
    async with aiouring.Connection(ring, near, group) as connection:
        async with ring.recvmsg_multishot(pair[0], group) as stream:
            pair[1].send(b"hello")
            await connection.send(await anext(stream))
            assert far.recv(9) == b"hello"
    far.close()


async def test_messages_do_not_fall_back(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A group that falls back has messages wait all the same: what comes beside them needs a buffer of the group."""
    group = ring.register_buffer_ring(count=1, size=256, on_empty="fallback")
    async with ring.recvmsg_multishot(pair[0], group) as stream:
        for data in (b"one", b"two"):
            pair[1].send(data)
        first = await anext(stream)
        second = asyncio.ensure_future(anext(stream))
        while group.statistics().waiting == 0:
            await asyncio.sleep(0)
        first.release()
        with await second as message:
            assert bytes(message.view) == b"two"
    pair[1].send(b"three")
    with await ring.recv(pair[0], group):
        pair[1].send(b"four")
        waiting = asyncio.ensure_future(ring.recvmsg(pair[0], group))
        while group.statistics().waiting == 0:
            await asyncio.sleep(0)
    with await waiting as message:
        assert bytes(message.view) == b"four"
    assert group.statistics().fallbacks == 0


# ---- liburing's behaviours, and chance -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "TCP"])
async def test_mshot_shutdown_race(ring: aiouring.AsyncRing, kind: str, tmp_path: Path) -> None:
    """What is sent right before the sender shuts down comes before the end, whatever the receive is just doing."""
    group = group_of(ring, count=64)
    for turn in range(60):
        for left, right in make_ends(kind, tmp_path):
            left.settimeout(20)

            def send(left: socket.socket = left, count: int = turn % 4) -> None:
                for number in range(count):
                    left.send(b"%d;" % number)
                left.shutdown(socket.SHUT_WR)

            async with ring.recvmsg_multishot(right, group) as stream:
                if turn % 2:
                    await ring.nop()
                thread = threading.Thread(target=send)
                thread.start()
                whole = b""
                async for message in stream:
                    with message:
                        whole += bytes(message.view)
                thread.join()
            assert whole == b"".join(b"%d;" % number for number in range(turn % 4))


@pytest.mark.parametrize("kind", ["IPv4", "unnamed"])
async def test_shutdown_of_datagrams(ring: aiouring.AsyncRing, kind: str, tmp_path: Path) -> None:
    """Datagrams have no end: a shutdown on either side wakes nobody, again and again, and the stream can be left."""
    for left, right in make_ends(kind, tmp_path):
        async with ring.recvmsg_multishot(right, group_of(ring)) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await ring.nop()
            left.shutdown(socket.SHUT_WR)
            right.shutdown(socket.SHUT_RD)
            await ring.nop()
            quiet = ring.statistics().completed
            await asyncio.sleep(0.02)
            assert ring.statistics().completed == quiet
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_an_error_of_the_network(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A port that nobody has is an error of the stream, after what came before; a new stream goes on."""
    for left, right in make_ends("IPv4", tmp_path):
        group = group_of(ring)
        address = left.getsockname()
        async with ring.recvmsg_multishot(right, group) as stream:
            left.send(b"before")
            while not stream.pending:
                await ring.nop()
            left.close()
            right.send(b"x")  # refused
            (await anext(stream)).release()
            with pytest.raises(ConnectionRefusedError):
                await anext(stream)
        with socket.socket(type=socket.SOCK_DGRAM) as again:
            again.bind(address)
            again.connect(right.getsockname())
            again.send(b"after")
            async with ring.recvmsg_multishot(right, group) as stream:
                with await anext(stream) as message:
                    assert bytes(message.view) == b"after"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["unnamed", "seqpacket"])
async def test_random_life(ring: aiouring.AsyncRing, kind: str, seed: int, tmp_path: Path) -> None:
    """Streams, one-shot receives and cancellations in any order: each message comes once, in order, with its own."""
    files = open_files()
    for ends in make_ends(kind, tmp_path):
        life = Life(ring, *ends, Random(seed))
        for _ in range(60):
            life.send()
            await life.step()
        while life.sent:
            await life.receive()
    await ring.nop()
    assert life.group.statistics().in_use == 0
    assert open_files().keys() <= files.keys()


class Life:
    """A socket that is received from in every way, and what is still to come from it."""

    def __init__(self, ring: aiouring.AsyncRing, left: socket.socket, right: socket.socket, random: Random) -> None:
        self.ring, self.left, self.right, self.random = ring, left, right, random
        self.group = group_of(ring, count=4, size=400)
        self.sent: deque[tuple[bytes, bool]] = deque()
        self.number = 0

    def send(self) -> None:
        """Send a few messages, some with a descriptor."""
        for _ in range(self.random.randrange(6)):
            data = b"%d " % self.number + bytes(self.random.randrange(200))
            rights = bool(self.random.randrange(2))
            self.number += 1
            with suppress(BlockingIOError):
                if rights:
                    socket.send_fds(self.left, [data], [self.left.fileno()])
                else:
                    self.left.send(data)
                self.sent.append((data, rights))

    def check(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        """This must be the next message."""
        expected, rights = self.sent.popleft()
        assert data == expected
        assert len(ancillary) == rights
        for _, _, passed in ancillary:
            os.close(array("i", passed)[0])

    async def receive(self) -> None:
        """Receive one message."""
        if self.random.randrange(2):
            with await self.ring.recvmsg(self.right, self.group, ancillary_size=ROOM) as message:
                self.check(bytes(message.view), message.ancillary)
        else:
            memory = bytearray(300)
            count, ancillary, _, _ = await self.ring.recvmsg(self.right, [memory], ancillary_size=ROOM)
            self.check(bytes(memory[:count]), ancillary)

    async def step(self) -> None:
        """Receive one, or cancel that, or take some of a stream and leave it."""
        choice = self.random.randrange(4)
        if choice == 0 and self.sent:
            await self.receive()
        elif choice == 1:
            task = asyncio.ensure_future(self.receive())
            for _ in range(self.random.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        else:
            most = self.random.choice((None, 1, 4))
            stream = self.ring.recvmsg_multishot(self.right, self.group, ancillary_size=ROOM, max_pending=most)
            async with stream:
                for _ in range(self.random.randrange(len(self.sent) + 1)):
                    with await anext(stream) as message:
                        self.check(bytes(message.view), message.ancillary)


async def test_descriptors_of_a_stream_stay_with_the_bytes_they_came_with(ring: aiouring.AsyncRing) -> None:
    """What nobody took is kept: bytes that came alone, behind those with a descriptor, do not cost that."""
    group = ring.register_buffer_ring(count=8, size=256)
    left, right = socket.socketpair()
    with left, right, open(os.devnull, "rb") as passed:
        async with ring.recvmsg_multishot(left, group, ancillary_size=64) as stream:
            await ring.nop()
            socket.send_fds(right, [b"one"], [passed.fileno()])
            await ring.nop()
            right.send(b"two")
            while stream.pending < 2:
                await ring.nop()
        with await ring.recvmsg(left, group, ancillary_size=64) as message:
            assert bytes(message.view) == b"one"
            [(_, kind, data)] = message.ancillary
            assert kind == socket.SCM_RIGHTS
            os.close(int.from_bytes(data, sys.byteorder))
        with await ring.recvmsg(left, group, ancillary_size=64) as message:
            assert bytes(message.view) == b"two"
