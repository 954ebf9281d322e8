"""Tests of Receiving: what one armed receive brings, its bounds, and its place in the group's line."""

import asyncio
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring._abi import Opcode
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]


async def test_one_request_for_many_chunks(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A reader that keeps up needs one submission for a whole stream."""
    group = ring.register_buffer_ring(count=8, size=64)
    async with ring.recv_multishot(pair[0], group) as stream:
        await ring.nop()
        before = ring.statistics().submitted
        for number in range(20):
            pair[1].send(b"%d" % number)
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"%d" % number
        assert ring.statistics().submitted == before


async def test_back_pressure_and_going_on(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Above max_pending the kernel stops; the rest stays in the socket, and comes when the reader goes on."""
    data = Random(1).randbytes(4000)
    group = ring.register_buffer_ring(count=64, size=16)
    async with ring.recv_multishot(pair[0], group, max_pending=4) as stream:
        pair[1].send(data)
        for _ in range(10):
            await ring.nop()
        assert stream.pending < 64
        whole = b""
        while len(whole) < len(data):
            with await anext(stream) as chunk:
                whole += bytes(chunk.view)
        assert whole == data
    assert group.statistics().in_use == 0


async def test_resumed_before_the_cancel_came_back(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Who takes all while the kernel is being told to stop gets what comes next, in order, without a stall."""
    group = ring.register_buffer_ring(count=16, size=4096)  # so that the kernel is stopped, and not by its own count
    overtaken = 0
    async with ring.recv_multishot(pair[0], group, max_pending=1) as stream:
        for first in range(0, 300, 3):
            for count in (1, 2):
                pair[1].send(b"%08d" % (first + count - 1))
                while not stream._receiving._stopping and stream.pending < count:
                    await asyncio.sleep(0)
            overtaken += stream._receiving._stopping
            for message in range(first, first + 3):
                if message == first + 2:  # all is taken, and the cancel is on its way
                    pair[1].send(b"%08d" % message)
                async with asyncio.timeout(5):
                    with await anext(stream) as chunk:
                        assert bytes(chunk.view) == b"%08d" % message
    assert overtaken > 50, "this did not test the race"


async def test_d6_empty_group_parks_the_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """With every buffer lent the stream waits in line, without spinning, and goes on when one returns."""
    group = ring.register_buffer_ring(count=2, size=4)
    async with ring.recv_multishot(pair[0], group, max_pending=8) as stream:
        pair[1].send(b"aaaabbbbccccdddd")
        held = [await anext(stream), await anext(stream)]
        waiting = asyncio.ensure_future(anext(stream))
        for _ in range(5):
            await ring.nop()
        assert group.statistics().waiting == 1
        quiet = ring.statistics().enters
        await asyncio.sleep(0.02)
        assert ring.statistics().enters == quiet
        held.pop(0).release()
        with await waiting as chunk:
            assert bytes(chunk.view) == b"cccc"
        held.pop().release()
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"dddd"


async def test_d6_streams_in_line_are_served_in_turn(ring: aiouring.AsyncRing) -> None:
    """Many streams on few buffers all get everything, in order."""
    group = ring.register_buffer_ring(count=2, size=16)
    pairs = [socket.socketpair() for _ in range(8)]
    data = [Random(number).randbytes(700) for number in range(8)]

    async def read(number: int) -> bytes:
        whole = b""
        async with ring.recv_multishot(pairs[number][0], group) as stream:
            async for chunk in stream:
                with chunk:
                    whole += bytes(chunk.view)
                await asyncio.sleep(0)
        return whole

    for number, (_, right) in enumerate(pairs):
        right.send(data[number])
        right.close()
    assert await asyncio.gather(*(read(number) for number in range(8))) == data
    for left, _ in pairs:
        left.close()


async def test_group_that_raises(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """With on_empty="raise" the reader gets BuffersExhaustedError after what came before."""
    group = ring.register_buffer_ring(count=1, size=4, on_empty="raise")
    async with ring.recv_multishot(pair[0], group) as stream:
        pair[1].send(b"aaaabbbb")
        with await anext(stream), pytest.raises(aiouring.BuffersExhaustedError):
            await anext(stream)
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"bbbb"


async def test_e5_overflow_ends_the_kernels_request(new_ring: RingFactory, pair: Pair) -> None:
    """A completion queue that is too small ends the multishot with data (KERNEL.md C4); nothing is lost."""
    ring = await new_ring(entries=4, cq_entries=4)
    group = ring.register_buffer_ring(count=64, size=4)
    data = Random(2).randbytes(200)
    async with ring.recv_multishot(pair[0], group, max_pending=64) as stream:
        pair[1].send(data)
        whole = b""
        while len(whole) < len(data):
            with await anext(stream) as chunk:
                whole += bytes(chunk.view)
        assert whole == data


async def test_datagrams_keep_their_boundaries(ring: aiouring.AsyncRing) -> None:
    """Each datagram is a chunk, an empty one too; none of them is the end."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    group = ring.register_buffer_ring(count=8, size=64)
    with left, right:
        async with ring.recv_multishot(left, group) as stream:
            for message in (b"one", b"", b"two", b"", b"", b"three"):
                right.send(message)
            got = []
            for _ in range(6):
                with await anext(stream) as chunk:
                    got.append(bytes(chunk.view))
            assert got == [b"one", b"", b"two", b"", b"", b"three"]


async def test_error_comes_after_the_data(ring: aiouring.AsyncRing) -> None:
    """A reset is raised after the bytes that arrived before it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    group = ring.register_buffer_ring(count=8, size=64)
    with server:
        async with ring.recv_multishot(server, group) as stream:
            client.send(b"last words")
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"last words"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            with pytest.raises(ConnectionResetError):
                await anext(stream)
            with pytest.raises(ConnectionResetError):
                await anext(stream)


async def test_closing_the_ring_ends_the_stream(new_ring: RingFactory, pair: Pair) -> None:
    """A reader that waits when the ring is closed gets RingClosedError."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=8, size=64)
    stream = ring.recv_multishot(pair[0], group)
    waiting = asyncio.ensure_future(anext(stream))
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await waiting
    await stream.aclose()


async def test_e12_number_closed_while_the_queue_is_full(new_ring: RingFactory, pair: Pair) -> None:
    """A stream that waits for room in the queue, and whose descriptor is closed meanwhile, ends with the error."""
    ring = await new_ring(entries=2)
    group = ring.register_buffer_ring(count=2, size=16)
    filling = [asyncio.ensure_future(ring.nop()) for _ in range(2)]
    await asyncio.sleep(0)
    number = os.dup(pair[0].fileno())
    stream = ring.recv_multishot(number, group)
    os.close(number)
    with pytest.raises(OSError) as caught:
        await anext(stream)
    assert caught.value.errno == errno.EBADF
    await stream.aclose()
    await asyncio.gather(*filling)


async def test_the_smallest_bound_holds(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """With max_pending=1 a firehose that nobody reads takes two or three buffers, not the whole group."""
    group = ring.register_buffer_ring(count=64, size=16)
    async with ring.recv_multishot(pair[0], group, max_pending=1) as stream:
        pair[1].send(b"x" * 16 * 60)
        for _ in range(20):
            await ring.nop()
        assert 1 <= stream.pending <= 3
        for _ in range(60):
            (await anext(stream)).release()


async def test_a_bound_of_more_bytes_than_the_kernel_counts(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """max_pending times the size may be more than 32 bits: then the kernel is told of no limit."""
    group = ring.register_buffer_ring(count=4, size=8192)
    async with ring.recv_multishot(pair[0], group, max_pending=1 << 20) as stream:
        pair[1].send(b"x")
        (await anext(stream)).release()


async def test_fed_streams_queue_up_anew(ring: aiouring.AsyncRing) -> None:
    """A stream that was called and got data waits behind the others next time."""
    group = ring.register_buffer_ring(count=1, size=4)
    pairs = [socket.socketpair() for _ in range(3)]
    streams = [ring.recv_multishot(left, group, max_pending=8) for left, _ in pairs]
    for _, right in pairs:
        right.send(b"aaaabbbbcccc")
    taken = dict.fromkeys(range(3), 0)

    async def read(number: int) -> None:
        while True:
            (await anext(streams[number])).release()
            taken[number] += 1
            assert max(taken.values()) <= min(taken.values()) + 2, taken

    readers = [asyncio.ensure_future(read(number)) for number in range(3)]
    while min(taken.values()) < 3 and not any(reader.done() for reader in readers):
        await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert taken == dict.fromkeys(range(3), 3)
    for stream, (left, right) in zip(streams, pairs, strict=True):
        await stream.aclose()
        left.close()
        right.close()


async def test_d6_who_leaves_the_line_leaves_no_place(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Streams that are closed while they wait for a buffer are not counted as waiting any more."""
    group = ring.register_buffer_ring(count=1, size=16)
    pair[1].send(b"x")
    with await ring.recv(pair[0], group):
        others = [socket.socketpair() for _ in range(5)]
        streams = [ring.recv_multishot(left, group) for left, _ in others]
        for _, right in others:
            right.send(b"y")
        for _ in range(3):
            await ring.nop()
        assert group.statistics().waiting == 5
        for stream in streams:
            await stream.aclose()
        assert group.statistics().waiting == 0
    for left, right in others:
        left.close()
        right.close()


async def test_several_groups_at_once(ring: aiouring.AsyncRing) -> None:
    """Each stream's buffers are taken from its own group's books, whatever their numbers are."""
    groups = [ring.register_buffer_ring(count=4, size=16, group_id=number) for number in (0, 7, 300)]
    pairs = [socket.socketpair() for _ in groups]
    streams = [ring.recv_multishot(left, group) for (left, _), group in zip(pairs, groups, strict=True)]
    for number in range(10):
        for (_, right), stream, group in zip(pairs, streams, groups, strict=True):
            right.send(b"%d" % number)
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"%d" % number
                assert [other.statistics().in_use for other in groups] == [int(other is group) for other in groups]
    for stream in streams:
        await stream.aclose()
    for left, right in pairs:
        left.close()
        right.close()


async def test_d11_group_unregistered_while_chunks_are_queued(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What had arrived is read, then the error; no buffer is lost in the books."""
    group = ring.register_buffer_ring(count=4, size=4)
    stream = ring.recv_multishot(pair[0], group, max_pending=4)
    pair[1].send(b"aaaabbbb")
    for _ in range(3):
        await ring.nop()
    group.unregister()
    got = []
    with pytest.raises(aiouring.RingClosedError):
        async for chunk in stream:
            with chunk:
                got.append(bytes(chunk.view))
    assert got == [b"aaaa", b"bbbb"]
    assert group.statistics().in_use == 0
    await stream.aclose()


async def test_a8_cancelled_in_the_turn_that_ends_the_kernels_request(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """cancel() ends a stream whose request ends by itself in that moment: it is not armed again behind its back."""
    group = ring.register_buffer_ring(count=8, size=4)
    for _ in range(20):
        async with ring.recv_multishot(pair[0], group, max_pending=1) as stream:
            await ring.nop()
            cancelling = asyncio.ensure_future(ring.cancel(pair[0]))
            await asyncio.sleep(0)
            pair[1].send(b"aaaa")  # as much as one request may bring: its completion is the last
            assert await cancelling == 1
            got = b""
            with pytest.raises(OSError) as caught:
                async for chunk in stream:
                    with chunk:
                        got += bytes(chunk.view)
            assert caught.value.errno == errno.ECANCELED
        if not got:
            with await ring.recv(pair[0], group) as chunk:
                got = bytes(chunk.view)
        assert got == b"aaaa"


# ---- what the kernel is told --------------------------------------------------------------------

_SELECT = lib.AU_SQE_BUFFER_SELECT
_MULTISHOT, _BUNDLE, _POLL_FIRST = lib.AU_RECV_MULTISHOT, lib.AU_RECVSEND_BUNDLE, lib.AU_RECVSEND_POLL_FIRST
_AT_ENTRIES = 0x10000000  # IORING_OFF_SQES


def entry_of_the_only_request(ring: aiouring.AsyncRing) -> tuple[int, int, int, int]:
    """Opcode, flags, ioprio and the operation's own flags, as they stand in the submission queue."""
    driver = ring._driver
    assert driver is not None
    [request] = driver.inflight.values()
    size = 64 * driver.ring.entries
    with mmap.mmap(driver.ring.fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_AT_ENTRIES) as entries:
        for at in range(0, size, 64):
            if struct.unpack_from("=Q", entries, at + 32)[0] == request.user_data:
                return (*struct.unpack_from("=BBH", entries, at), *struct.unpack_from("=I", entries, at + 28))
    raise AssertionError(f"{request!r} is in no entry")


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (lambda ring, sock, group: ring.recv_multishot(sock, group), (Opcode.RECV, _SELECT, _MULTISHOT, 0)),
        (
            lambda ring, sock, group: ring.recv_multishot(sock, group, bundle=True),
            (Opcode.RECV, _SELECT, _MULTISHOT | _BUNDLE, 0),
        ),
        (lambda ring, sock, group: ring.read_multishot(sock, group), (Opcode.READ_MULTISHOT, _SELECT, 0, 0)),
        (
            lambda ring, sock, group: ring.recvmsg_multishot(sock, group),
            (Opcode.RECVMSG, _SELECT, _MULTISHOT, socket.MSG_CMSG_CLOEXEC),
        ),
    ],
    ids=["recv", "bundles", "read", "recvmsg"],
)
async def test_entries_that_stay_armed(
    ring: aiouring.AsyncRing, pair: Pair, begin: Callable[..., aiouring.ReceiveStream[Any]], expected: tuple[int, ...]
) -> None:
    """Each kind of stream says what it is, with these flags and no others, also when it is armed again."""
    group = ring.register_buffer_ring(count=8, size=256)
    stream = begin(ring, pair[0], group)
    assert entry_of_the_only_request(ring) == expected
    await ring.nop()
    first = stream._receiving.user_data
    stream._receiving._driver.cancel_soon(stream._receiving)
    stream._receiving._stopping = True  # as where enough is queued
    while stream._receiving.user_data == first:
        await asyncio.sleep(0)
    assert entry_of_the_only_request(ring) == expected
    await stream.aclose()


@pytest.mark.parametrize("bundle", [False, True])
async def test_entries_that_take_the_place_of_one_refused(
    ring: aiouring.AsyncRing, pair: Pair, *, bundle: bool
) -> None:
    """A private receive selects no buffer, brings no bundle and does not wait; what follows it waits for data first."""
    group = ring.register_buffer_ring(count=1, size=64, on_empty="fallback")
    pair[0].send(b"x")
    with await ring.recv(pair[1], group):
        stream: aiouring.ReceiveStream[Any]
        sock = pair[0]
        stream = ring.recv_multishot(sock, group, bundle=True) if bundle else ring.recv_multishot(sock, group)
        receiving = stream._receiving
        while receiving._spare is None:
            await asyncio.sleep(0)
        assert entry_of_the_only_request(ring) == (Opcode.RECV, 0, 0, socket.MSG_DONTWAIT)
        while receiving._spare is not None:
            await asyncio.sleep(0)
        kind = _MULTISHOT | _POLL_FIRST | (_BUNDLE if bundle else 0)
        assert entry_of_the_only_request(ring) == (Opcode.RECV, _SELECT, kind, 0)
    await stream.aclose()


# ---- receives that could not begin, were called off, or may have more than there is ---------------


async def test_a_private_receive_that_cannot_begin_gives_its_memory_back(new_ring: RingFactory, pair: Pair) -> None:
    """The queue was full, and the descriptor is another file's by the time there is room."""
    ring = await new_ring(entries=1)
    group = ring.register_buffer_ring(count=2, size=1, on_empty="fallback")
    pair[0].send(b"xx")
    others = socket.socketpair()
    with await ring.recv(pair[1], group), await ring.recv(pair[1], group), others[0], others[1]:
        numbers = [os.dup(pair[0].fileno()), os.dup(others[0].fileno())]
        streams = [ring.recv_multishot(number, group) for number in numbers]
        for _ in range(20):
            await ring.nop()  # both wait for data by now
        pair[1].send(b"y")
        others[1].send(b"y")
        driver = ring._driver
        assert driver is not None
        while not driver._starts_due:
            await asyncio.sleep(0)
        assert group.statistics().private == 2
        for number in numbers:
            os.close(number)
        for stream in streams:
            with pytest.raises(OSError, match="closed|Bad file"):
                await anext(stream)
        assert group.statistics().private == 0
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("by_number", [False, True])
async def test_c9_a_parked_stream_is_cancelled_by_either_name(
    ring: aiouring.AsyncRing, pair: Pair, *, by_number: bool
) -> None:
    """Whoever waits in line for a buffer is found by the socket and by its number, however it was named."""
    group = ring.register_buffer_ring(count=1, size=64)
    pair[0].send(b"x")
    with await ring.recv(pair[1], group):
        pair[1].send(b"y")
        number = pair[0].fileno()
        stream = ring.recv_multishot(number if by_number else pair[0], group)
        waiting = asyncio.ensure_future(anext(stream))
        while not group.statistics().waiting:
            await ring.nop()
        assert await ring.cancel(pair[0] if by_number else number) == 1
        with pytest.raises(OSError, match="cancelled") as caught:
            await waiting
        assert caught.value.errno == errno.ECANCELED
        await stream.aclose()


async def test_the_default_of_a_growing_group_is_that_of_a_grown_one(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A stream that begins while a group is small is not kept short for ever."""
    groups = [ring.register_buffer_ring(count=count, size=64, max_count=512) for count in (8, 512)]
    assert [group.most_pending(None) for group in groups] == [64, 64]
