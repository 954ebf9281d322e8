"""Tests of ReceivedMessage by itself, and of recvmsg() and recvfrom() into a group's buffer."""

import asyncio
import errno
import os
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory
from socket_ends import Pair, make_ends

import aiouring
from aiouring._received_message import message_of
from aiouring._request import Kept

ROOM = socket.CMSG_SPACE(4)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected Unix datagram sockets."""
    yield from make_ends("unnamed", Path())


async def test_as_the_standard_library(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Payload, control data, flags and address are what socket.recvmsg() gives; what is too long is cut off."""
    left, right = ends
    group = ring.register_buffer_ring(count=4, size=8)
    for data in (b"hello", b"much too long"):
        left.send(data)
        expected = right.recvmsg(8)
        if right.type == socket.SOCK_STREAM and len(data) > 8:
            right.recv(100)
        left.send(data)
        with await ring.recvmsg(right, group) as message:
            found = bytes(message.view), message.ancillary, message.flags, message.address
            assert found == expected
            assert message.size == (len(data) if right.type != socket.SOCK_STREAM else min(8, len(data)))
            assert message.buffer_id is not None
        if right.type == socket.SOCK_STREAM and len(data) > 8:
            right.recv(100)


@pytest.mark.parametrize("ends", ["IPv4", "IPv6", "Unix", "abstract"], indirect=True)
async def test_recvfrom_into_a_group(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """The kernel picks the buffer when the datagram is there; its address comes beside it."""
    left, right = ends
    group = ring.register_buffer_ring(count=2, size=64)
    task = asyncio.ensure_future(ring.recvfrom(right, group))
    await ring.nop()
    assert group.statistics().in_use == 0
    left.send(b"hello")
    message, address = await task
    with message:
        assert (bytes(message.view), address) == (b"hello", left.getsockname())
        await ring.sendto(right, message, address)
    assert left.recv(9) == b"hello"


@pytest.mark.parametrize("ends", ["stream", "TCP", "seqpacket"], indirect=True)
async def test_the_end(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """At the end it is empty, as often as it is asked, and has no buffer."""
    left, right = ends
    group = ring.register_buffer_ring(count=2, size=64)
    left.close()
    for _ in range(5):
        message = await ring.recvmsg(right, group)
        assert not message
        assert message.buffer_id is None
    assert group.statistics().in_use == 0


async def test_empty_datagrams(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A datagram without bytes is one, and needs no buffer for longer than it takes."""
    group = ring.register_buffer_ring(count=2, size=64)
    for _ in range(5):
        pair[1].send(b"")
        assert len(await ring.recvmsg(pair[0], group)) == 0
    await ring.nop()
    assert group.statistics().with_kernel == 2


async def test_waits_for_a_buffer(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """While all buffers are lent it stands in line; with on_empty="raise" it says so."""
    group = ring.register_buffer_ring(count=1, size=64)
    with await _sent(ring, pair, group):
        task = asyncio.ensure_future(_sent(ring, pair, group))
        for _ in range(5):
            await ring.nop()
        assert group.statistics().waiting == 1
    (await task).release()
    strict = ring.register_buffer_ring(count=1, size=64, on_empty="raise")
    with await _sent(ring, pair, strict), pytest.raises(aiouring.BuffersExhaustedError):
        await _sent(ring, pair, strict)


async def _sent(ring: aiouring.AsyncRing, pair: Pair, group: aiouring.BufferRing) -> aiouring.ReceivedMessage:
    pair[1].send(b"x")
    return await ring.recvmsg(pair[0], group)


async def test_descriptors(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Control data comes too; descriptors that nobody took are closed with the message."""
    group = ring.register_buffer_ring(count=1, size=64)
    socket.send_fds(pair[1], [b"x"], [0])
    with await ring.recvmsg(pair[0], group, ancillary_size=ROOM) as message:
        [(_, _, data)] = message.ancillary
        os.close(array("i", data)[0])
    socket.send_fds(pair[1], [b"x"], [0])
    with await ring.recvmsg(pair[0], group, ancillary_size=ROOM):
        pass
    socket.send_fds(pair[1], [b"x"], [0])
    with await ring.recvmsg(pair[0], group) as message:
        assert message.flags == socket.MSG_CTRUNC


async def test_a8_cancelled_as_it_arrives(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A message that arrives with the cancellation is the next receive's, with its descriptors; no buffer is lost."""
    group = ring.register_buffer_ring(count=2, size=64)
    for number in range(20):
        task = asyncio.ensure_future(ring.recvmsg(pair[0], group, ancillary_size=ROOM))
        await ring.nop()
        socket.send_fds(pair[1], [b"%d" % number], [0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if number % 2:
            with await ring.recvmsg(pair[0], group, ancillary_size=ROOM) as message:
                assert bytes(message.view) == b"%d" % number
                [(_, _, data)] = message.ancillary
                os.close(array("i", data)[0])
        else:
            assert (await ring.recvfrom(pair[0], 9))[0] == b"%d" % number
    await ring.nop()
    assert group.statistics().with_kernel == 2


async def test_a8_unnoticed_empty_datagram(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """An empty datagram that arrives with the cancellation is kept as well, and its buffer comes back."""
    group = ring.register_buffer_ring(count=2, size=64)
    for _ in range(5):
        task = asyncio.ensure_future(ring.recvmsg(pair[0], group))
        await ring.nop()
        pair[1].send(b"")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pair[1].send(b"next")
        assert (await ring.recvfrom(pair[0], 9))[0] == b""
        assert (await ring.recvfrom(pair[0], 9))[0] == b"next"
    await ring.nop()
    assert group.statistics().with_kernel == 2


async def test_what_is_refused(new_ring: RingFactory, pair: Pair) -> None:
    """Flags, a group of another ring, a group that is gone, and a file that is no socket."""
    ring, other = await new_ring(), await new_ring()
    group = ring.register_buffer_ring(count=2, size=64)
    with pytest.raises(ValueError, match="none can be given with a group"):
        await ring.recvmsg(pair[0], group, flags=socket.MSG_PEEK)
    with pytest.raises(ValueError, match="on this ring"):
        await ring.recvmsg(pair[0], other.register_buffer_ring(count=2, size=64))
    with pytest.raises(ValueError, match="outside 0 to"):
        await ring.recvmsg(pair[0], group, ancillary_size=-1)
    with pytest.raises(OSError) as caught:
        await ring.recvmsg(0, group)
    assert caught.value.errno == errno.ENOTSOCK
    task = asyncio.ensure_future(ring.recvmsg(pair[0], group))
    await ring.nop()
    group.unregister()
    with pytest.raises(aiouring.RingClosedError, match="unregistered during a receive"):
        await task
    with pytest.raises(aiouring.RingClosedError):
        await ring.recvmsg(pair[0], group)


@pytest.mark.needs_no_ring
def test_what_was_kept_becomes_a_message() -> None:
    """A message that came earlier has its address, flags and size; plain bytes have none."""
    kept = Kept(b"hello")
    kept.name = socket.AF_UNIX.to_bytes(2, "little") + b"/path\0"
    kept.flags, kept.size, kept.whole = socket.MSG_TRUNC, 9, True
    with message_of(kept) as message:
        assert (bytes(message.view), message.address) == (b"hello", "/path")
        assert (message.flags, message.size) == (socket.MSG_TRUNC, 9)
        again = message_of(message.keepsake(whole=True))
    assert (bytes(again.view), again.address, again.size) == (b"hello", "/path", 9)
    again.release()
    with message_of(b"bytes") as message:
        assert (bytes(message.view), message.address, message.flags, message.size) == (b"bytes", None, 0, 5)
        assert repr(message) == "<ReceivedMessage 0 5 bytes>"
