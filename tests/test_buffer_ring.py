"""Tests of BufferRing: the kernel picks a buffer, the caller gives it back, and each buffer has one owner."""

import asyncio
import errno
import gc
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring._uring import ffi, lib

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def datagrams() -> Iterator[Pair]:
    """Two connected datagram sockets."""
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiving, sending:
        yield receiving, sending


def check_conserved(group: aiouring.BufferRing) -> None:
    """Every buffer has one owner, and the kernel has as many as we believe; for when nothing is in flight."""
    found = group.statistics()
    assert found.with_kernel + found.in_use == found.count
    if group.registered:
        assert (group.raw.tail - group.head()) % 65536 == group.raw.with_kernel


# ---- receiving ---------------------------------------------------------------------------------


async def test_recv(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A receive returns the bytes, in a buffer the kernel picked, until its release."""
    receiving, sending = pair
    with ring.register_buffer_ring(count=4, size=64) as group:
        assert (len(group), group.size, group.registered) == (4, 64, True)
        assert repr(group) == "<BufferRing 0: 4 x 64 bytes, 4 with the kernel>"
        sending.send(b"hello")
        chunk = await ring.recv(receiving, group)
        assert isinstance(chunk, aiouring.ProvidedBuffer)
        assert (bool(chunk), len(chunk), bytes(chunk.view), chunk.buffer_id) == (True, 5, b"hello", 0)
        assert (group.statistics().in_use, group.statistics().with_kernel) == (1, 3)
        chunk.release()
        assert (group.statistics().in_use, group.statistics().with_kernel) == (0, 4)
        await ring.nop()
        check_conserved(group)
    assert repr(group) == "<BufferRing 0: 4 x 64 bytes, unregistered>"


async def test_recv_waits_for_data(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A receive that waits holds no buffer."""
    with ring.register_buffer_ring(count=1, size=64) as group:
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        assert group.head() == 0
        pair[1].send(b"late")
        with await task as chunk:
            assert bytes(chunk.view) == b"late"


async def test_recv_from_a_bare_descriptor(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A descriptor's number does as well as a socket."""
    group = ring.register_buffer_ring(count=1, size=64)
    pair[1].send(b"data")
    with await ring.recv(pair[0].fileno(), group) as chunk:
        assert bytes(chunk.view) == b"data"


async def test_end_of_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """At the end of the stream the result is empty, falsy, and involves no buffer."""
    group = ring.register_buffer_ring(count=2, size=64)
    pair[1].close()
    for _ in range(5):
        with await ring.recv(pair[0], group) as chunk:
            assert (bool(chunk), len(chunk), chunk.buffer_id, bytes(chunk.view)) == (False, 0, None, b"")
    assert group.head() == 0
    check_conserved(group)


async def test_ends_of_two_streams(ring: aiouring.AsyncRing) -> None:
    """The ends of two streams have nothing to do with each other."""
    group = ring.register_buffer_ring(count=2, size=64)
    ends = []
    for _ in range(2):
        receiving, sending = socket.socketpair()
        sending.close()
        with receiving:
            ends.append(await ring.recv(receiving, group))
    views = [end.view for end in ends]
    assert [bytes(view) for view in views] == [b"", b""]
    for end in ends:
        end.release()


async def test_end_of_stream_needs_no_release(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """There is nothing to give back, and dropping it warns of nothing."""
    group = ring.register_buffer_ring(count=2, size=64)
    pair[1].close()
    assert not await ring.recv(pair[0], group)
    gc.collect()


async def test_empty_datagram(ring: aiouring.AsyncRing, datagrams: Pair) -> None:
    """An empty datagram is an empty result; the buffer it may have taken is back with the kernel."""
    receiving, sending = datagrams
    group = ring.register_buffer_ring(count=2, size=64)
    for _ in range(5):
        sending.send(b"")
        assert not await ring.recv(receiving, group)
    sending.send(b"full")
    with await ring.recv(receiving, group) as chunk:
        assert bytes(chunk.view) == b"full"
    await ring.nop()
    check_conserved(group)


async def test_d10_message_larger_than_a_buffer(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A stream's bytes keep their order over as many buffers as they need."""
    message = bytes(range(100))
    group = ring.register_buffer_ring(count=4, size=64)
    for _ in range(10):
        pair[1].send(message)
        for expected in (message[:64], message[64:]):
            with await ring.recv(pair[0], group) as chunk:
                assert bytes(chunk.view) == expected


async def test_two_receives_on_one_socket(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A second receive on a socket is refused while the first one waits."""
    group = ring.register_buffer_ring(count=2, size=64)
    task = asyncio.create_task(ring.recv(pair[0], group))
    await asyncio.sleep(0)
    with pytest.raises(aiouring.ResourceBusyError, match="another task is already receiving"):
        await ring.recv(pair[0], group)
    pair[1].send(b"data")
    with await task as chunk:
        assert bytes(chunk.view) == b"data"


async def test_group_of_another_ring(new_ring: RingFactory, pair: Pair) -> None:
    """A group serves its own ring only."""
    first, second = await new_ring(), await new_ring()
    group = first.register_buffer_ring(count=2, size=64)
    second.register_buffer_ring(count=2, size=64)
    with pytest.raises(ValueError, match="on this ring"):
        await second.recv(pair[0], group)


async def test_statistics(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The counts say where the buffers are and what happened."""
    group = ring.register_buffer_ring(count=4, size=64)
    start = group.statistics()
    assert (start.group_id, start.count, start.size) == (0, 4, 64)
    assert (start.with_kernel, start.in_use, start.high_water, start.published, start.advances) == (4, 0, 0, 4, 1)
    chunks = []
    for _ in range(3):
        pair[1].send(b"data")
        chunks.append(await ring.recv(pair[0], group))
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.high_water) == (1, 3, 3)
    for chunk in chunks:
        chunk.release()
    await ring.nop()
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.high_water, found.published) == (4, 0, 3, 7)
    assert (found.waiting, found.starved, found.enobufs) == (0, 0, 0)
    assert group.head() == 3


async def test_one_publication_per_turn(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """However many buffers are returned in a turn of the loop, the tail is stored once."""
    group = ring.register_buffer_ring(count=16, size=64)
    for rounds in range(1, 4):
        chunks = []
        for _ in range(12):
            pair[1].send(b"data")
            chunks.append(await ring.recv(pair[0], group))
        before = group.statistics()
        for chunk in chunks:
            chunk.release()
        assert group.statistics().advances == before.advances
        await ring.nop()
        after = group.statistics()
        assert (after.advances, after.published) == (before.advances + 1, before.published + 12)
        assert after.advances == 1 + rounds


async def test_release_is_published_before_the_loop_sleeps(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A release needs no other traffic on the ring to reach the kernel."""
    group = ring.register_buffer_ring(count=1, size=64)
    pair[1].send(b"data")
    (await ring.recv(pair[0], group)).release()
    for _ in range(2):
        await asyncio.sleep(0)
    assert group.raw.with_kernel == 1


# ---- one owner per buffer ----------------------------------------------------------------------


async def test_d1_released_twice(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The second release is refused, and the kernel's tail does not move by it."""
    group = ring.register_buffer_ring(count=4, size=64)
    pair[1].send(b"data")
    chunk = await ring.recv(pair[0], group)
    chunk.release()
    await ring.nop()
    before = group.raw.tail, group.statistics()
    for _ in range(5):
        with pytest.raises(ValueError, match="buffer 0 has been released already"):
            chunk.release()
        with pytest.raises(ValueError, match="buffer 0 is not lent to you"):
            group.take_back(0)
    await ring.nop()
    assert (group.raw.tail, group.statistics()) == before
    check_conserved(group)


async def test_d8_no_more_buffers_than_there_are(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Neither a buffer that is with the kernel nor one that does not exist can be given to it."""
    group = ring.register_buffer_ring(count=4, size=64)
    for number in (0, 1, 2, 3, 4, 65535):
        with pytest.raises(ValueError, match="buffer"):
            group.take_back(number)
    with pytest.raises(OverflowError):
        group.take_back(-1)
    pair[1].send(b"data")
    with await ring.recv(pair[0], group) as chunk:
        for number in {0, 1, 2, 3} - {chunk.number}:
            with pytest.raises(ValueError, match="not lent"):
                group.take_back(number)
    await ring.nop()
    assert group.statistics().published == 5
    check_conserved(group)


async def test_d8_the_kernel_is_checked_too(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A completion that names a buffer which the kernel did not have is a bug, and is called one."""
    group = ring.register_buffer_ring(count=2, size=64)
    pair[1].send(b"data")
    with await ring.recv(pair[0], group) as chunk:
        for number in (chunk.number, 2, 65535):
            with pytest.raises(AssertionError, match=f"the kernel gave out buffer {number}"):
                group.take(number << lib.AU_CQE_BUFFER_SHIFT, 1)
    check_conserved(group)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (8, 100), (64, 4096), (32768, 3)])
async def test_d13_entries_lie_in_the_arena(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    """Every entry the kernel is given names a buffer of the arena, once, with its length."""
    seen: list[tuple[int, int]] = []
    real = lib.au_kernel.do_register

    def spy(fd: int, opcode: int, argument: Any, number: int) -> int:
        if opcode == lib.AU_REGISTER_PBUF_RING:
            wanted = ffi.cast("struct au_buf_reg *", argument)
            seen.append((wanted.ring_addr, wanted.ring_entries))
        return int(real(fd, opcode, argument, number))

    callback = ffi.callback("int(int, unsigned, void *, unsigned)", spy)
    async with aiouring.AsyncRing() as ring:
        with monkeypatch.context() as patch:
            patch.setattr(lib.au_kernel, "do_register", callback)
            group = ring.register_buffer_ring(count=count, size=size)
        ((address, entries),) = seen
        base = int(ffi.cast("uintptr_t", group.arena.base))
        table = ffi.cast("struct au_buf *", address)
        found = sorted((table[at].bid, table[at].addr, table[at].len) for at in range(entries))
        assert found == [(number, base + number * size, size) for number in range(count)]
        assert table[0].reserved == count  # the tail


async def test_d12_group_id_taken(ring: aiouring.AsyncRing) -> None:
    """A group identifier the kernel has already is an error of the kernel's, which leaves nothing behind."""
    first = ring.register_buffer_ring(count=2, size=64)
    with pytest.raises(FileExistsError) as caught:
        aiouring.BufferRing(ring._ring, first._attendant, first.group_id, 2, 64, "wait")
    assert caught.value.errno == errno.EEXIST
    gc.collect()
    assert first.registered
    assert first.head() == 0
