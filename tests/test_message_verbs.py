"""Tests of sendmsg, recvmsg, sendto and recvfrom: the same answers as the standard library's sockets, and no loss."""

import asyncio
import errno
import os
import socket
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, open_files
from socket_ends import Pair, make_ends

import aiouring
from aiouring._request import Kept

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected Unix datagram sockets."""
    yield from make_ends("unnamed", Path())


async def test_the_same_as_the_standard_library(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Several parts out, several parts in: count, flags and address are what socket.recvmsg_into() gives."""
    left, right = ends
    outcomes = []
    for ours in (True, False):
        array_, memory = bytearray(b"two "), [bytearray(3), bytearray(100)]
        if ours:
            assert await ring.sendmsg(left, [b"one ", array_, memoryview(b"a three")[2:]]) == 13
            array_.clear()
            outcome: Any = await ring.recvmsg(right, memory)
        else:
            left.sendmsg([b"one two three"])
            outcome = right.recvmsg_into(memory)
        assert memory[0] + memory[1][:10] == b"one two three"
        memory[0].clear()
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("ends", ["IPv4", "IPv6", "Unix", "abstract"], indirect=True)
async def test_to_and_from_an_address(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """A datagram goes where it is sent, and says where it came from."""
    _, right = ends
    with socket.socket(right.family, socket.SOCK_DGRAM) as third:
        third.bind("" if right.family == socket.AF_UNIX else (right.getsockname()[0], 0))
        right.connect(third.getsockname())
        assert await ring.sendto(third, b"hello", right.getsockname()) == 5
        data, address = await ring.recvfrom(right, 100)
        assert (data, address) == (b"hello", third.getsockname())
        await ring.sendmsg(third, [b"he", b"llo"], right.getsockname())
        memory = bytearray(4)
        assert await ring.recvfrom_into(right, memory) == (4, third.getsockname())
        assert memory == b"hell"


async def test_a_sender_without_an_address(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Of a Unix socket that is not bound the standard library gives None, and so do we."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(str(tmp_path / "socket"))
        await ring.sendto(nameless, b"x", receiver.getsockname())
        nameless.sendto(b"x", receiver.getsockname())
        assert await ring.recvfrom(receiver, 9) == receiver.recvfrom(9)


async def test_a_host_by_its_name(ring: aiouring.AsyncRing) -> None:
    """The loop resolves it, for a socket that is given by its number, too."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        for sock in (sender, sender.fileno()):
            await ring.sendto(sock, b"hello", ("localhost", receiver.getsockname()[1]))
            assert receiver.recv(9) == b"hello"
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_numbers_direct_descriptors_and_lent_buffers(new_ring: RingFactory, pair: Pair) -> None:
    """Every kind of file, and of memory."""
    ring = await new_ring()
    left, right = pair
    files = ring.register_files([left, right])
    group = ring.register_buffer_ring(count=2, size=64)
    await ring.sendmsg(files[0], [b"direct"])
    with await ring.recv(right, group) as chunk:
        await ring.sendmsg(left.fileno(), [chunk, b"!"])
    with ring.register_buffers(count=1, size=64) as table, table[0] as buffer:
        count, ancillary, flags, _ = await ring.recvmsg(files[1], [buffer])
        assert (bytes(buffer.view[:count]), ancillary, flags) == (b"direct!", [], 0)
    await ring.sendmsg(left, [])
    assert (await ring.recvmsg(right.fileno(), []))[0] == 0


async def test_too_long(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What does not fit is cut off, and MSG_TRUNC says so; with the flag MSG_TRUNC the count is the message's."""
    left, right = pair
    for _ in range(3):
        left.send(b"0123456789")
    assert (await ring.recvmsg(right, [bytearray(2), bytearray(2)]))[::2] == (4, socket.MSG_TRUNC)
    count, _, flags, _ = await ring.recvmsg(right, [bytearray(4)], flags=socket.MSG_TRUNC | socket.MSG_PEEK)
    assert (count, flags & socket.MSG_TRUNC) == (10, socket.MSG_TRUNC)
    assert (await ring.recvfrom(right, 10))[0] == b"0123456789"


async def test_descriptors_are_passed(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """They may be closed as soon as the send has begun, and arrive close-on-exec."""
    left, right = pair
    reader, writer = os.pipe()
    sending = asyncio.ensure_future(ring.sendmsg(left, [b"two"], ancillary=[(*RIGHTS, array("i", [reader, writer]))]))
    await asyncio.sleep(0)  # it is queued, and not submitted yet
    os.close(reader)
    os.close(writer)
    others = socket.socketpair()
    assert {reader, writer} & {each.fileno() for each in others}
    assert await sending == 3
    count, ancillary, flags, _ = await ring.recvmsg(right, [bytearray(9)], ancillary_size=socket.CMSG_SPACE(8))
    assert (count, flags) == (3, 0)
    ((level, kind, data),) = ancillary
    assert (level, kind) == RIGHTS
    received = array("i", data)
    assert not any(os.get_inheritable(number) for number in received)
    os.write(received[1], b"through the pipe")
    assert os.read(received[0], 99) == b"through the pipe"
    for number in received:
        os.close(number)
    for other in others:
        other.close()


async def test_control_data_that_does_not_fit(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """MSG_CTRUNC says so, and no descriptor is left behind."""
    left, right = pair
    files = len(open_files())
    await ring.sendmsg(left, [b"x"], ancillary=[(*RIGHTS, array("i", [0, 1]))])
    count, ancillary, flags, _ = await ring.recvmsg(right, [bytearray(9)])
    assert (count, ancillary, flags & socket.MSG_CTRUNC) == (1, [], socket.MSG_CTRUNC)
    assert len(open_files()) == files
    with pytest.raises(OSError) as caught:
        await ring.sendmsg(left, [b"x"], ancillary=[(*RIGHTS, array("i", [0, 987654]))])
    assert caught.value.errno == errno.EBADF
    assert len(open_files()) == files


async def cancelled_with(ring: aiouring.AsyncRing, receive: Any, send: Any) -> None:
    """Start to receive, then cancel in the same moment that something arrives."""
    task = asyncio.ensure_future(receive)
    await ring.nop()
    send()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("ends", ["IPv4", "Unix", "unnamed", "seqpacket", "stream"], indirect=True)
async def test_a8_cancelled_receives_lose_nothing(ring: aiouring.AsyncRing, ends: Pair) -> None:
    """Every message is seen once, in order, whole and with its sender, whichever verb receives it afterwards."""
    left, right = ends
    group = ring.register_buffer_ring(count=4, size=64)
    stream = right.type == socket.SOCK_STREAM
    sender = right.getpeername() if right.family == socket.AF_INET or left.getsockname() else None
    if stream or right.type == socket.SOCK_SEQPACKET:
        sender = None
    got = []
    for number in range(48):
        await cancelled_with(
            ring, ring.recvmsg(right, [bytearray(2), bytearray(9)]), partial(left.send, b"%06d" % number)
        )
        left.send(b"(more)")
        for _ in range(1 if stream else 2):
            memory = bytearray(12)
            if number % 3 == 0:
                data, address = await ring.recvfrom(right, 12)
                assert address == sender
            elif number % 3 == 1:
                data = bytes(memory[: await ring.recv_into(right, memory)])
            else:
                with await ring.recv(right, group) as chunk:
                    data = bytes(chunk.view)
            got.append(data)
            if stream and len(data) == 6:
                got.append((await ring.recvfrom(right, 12))[0])
    assert b"".join(got) == b"".join(b"%06d(more)" % number for number in range(48))
    assert stream or all(len(data) == 6 for data in got)


@pytest.mark.parametrize("first", ["recv", "recv_into", "read", "read_provided", "recvmsg", "recvmsg, group"])
@pytest.mark.parametrize("ends", ["IPv4", "IPv6", "Unix", "unnamed", "seqpacket"], indirect=True)
async def test_a8_an_empty_message_that_comes_with_a_cancellation(
    ring: aiouring.AsyncRing, ends: Pair, first: str
) -> None:
    """It is the next receive's, before the message behind it, whichever verbs they are; no buffer is lost."""
    left, right = ends
    group = ring.register_buffer_ring(count=4, size=256)

    async def leased(receiving: Any) -> bytes:
        with await receiving as chunk:
            return bytes(chunk.view)

    async def copied(verb: Callable[..., Any]) -> bytes:
        memory = bytearray(9)
        return bytes(memory[: await verb(right, memory)])

    async def streamed() -> bytes:
        async with ring.recv_multishot(right, group) as stream:
            return await leased(anext(stream))

    ways: dict[str, Callable[[], Any]] = {
        "recv": lambda: leased(ring.recv(right, group)),
        "recv_into": lambda: copied(ring.recv_into),
        "read": lambda: copied(ring.read),
        "read_provided": lambda: leased(ring.read_provided(right, group)),
        "recvmsg": lambda: copied(lambda sock, memory: first_of(ring.recvmsg(sock, [memory]))),
        "recvmsg, group": lambda: leased(ring.recvmsg(right, group)),
        "recv_multishot": streamed,
    }
    for second in ways:
        await cancelled_with(ring, ways[first](), partial(left.send, b""))
        left.send(b"behind")
        async with asyncio.timeout(5):
            assert [await ways[way]() for way in (second, "recv")] == [b"", b"behind"], second
        assert group.statistics().in_use == 0


async def first_of(receiving: Any) -> Any:
    """The number of bytes that recvmsg() returns."""
    return (await receiving)[0]


async def test_a8_messages_are_not_joined(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Two that were kept, one of them empty, come back as two, peeked at or not; the longer one is cut off."""
    _, right = pair
    await ring.nop()
    driver = ring._driver
    assert driver is not None
    empty = Kept()
    empty.whole = True
    driver.leftovers.keep(right.fileno(), empty)  # as a cancelled recvmsg() does, where the cancel was the slower
    driver.leftovers.keep(right.fileno(), b"0123456789")  # as a cancelled recv_into() does
    assert (await ring.recvmsg(right, [bytearray(4)]))[0] == 0
    peeked = await ring.recvmsg(right, [bytearray(4)], flags=socket.MSG_PEEK)
    assert peeked[::2] == (4, socket.MSG_TRUNC)
    count, _, flags, _ = await ring.recvmsg(right, [bytearray(4)], flags=socket.MSG_TRUNC)
    assert (count, flags & socket.MSG_TRUNC) == (10, socket.MSG_TRUNC)
    assert not driver.leftovers.kept


@pytest.mark.parametrize("then", ["taken", "too small", "close", "ring"])
async def test_a8_descriptors_that_come_with_a_cancellation(new_ring: RingFactory, pair: Pair, then: str) -> None:
    """They are the next receive's, or closed: with the socket, with the ring, or where they do not fit."""
    ring = await new_ring()
    left, right = pair
    files = len(open_files())
    await cancelled_with(
        ring,
        ring.recvmsg(right, [bytearray(9)], ancillary_size=socket.CMSG_SPACE(4)),
        lambda: left.sendmsg([b"one"], [(*RIGHTS, array("i", [left.fileno()]))]),
    )
    if then in ("taken", "too small"):
        room = socket.CMSG_SPACE(4) if then == "taken" else 0
        count, ancillary, flags, _ = await ring.recvmsg(right, [bytearray(9)], ancillary_size=room)
        assert count == 3
        if then == "taken":
            assert flags == 0
            (number,) = array("i", ancillary[0][2])
            assert os.path.sameopenfile(number, left.fileno())
            os.close(number)
        else:
            assert flags & socket.MSG_CTRUNC
    elif then == "close":
        await ring.close(right)
        files -= 1
    else:
        await ring.aclose()
        files = len(open_files())
        driver, ring._driver = ring._driver, None
        del driver
        return
    assert len(open_files()) == files


async def test_a8_a_peek_takes_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A cancelled peek keeps nothing: the message is still in the socket."""
    left, right = pair
    peek = ring.recvmsg(right, [bytearray(9)], flags=socket.MSG_PEEK)
    await cancelled_with(ring, peek, lambda: left.send(b"once"))
    assert await ring.recvfrom(right, 9) == (b"once", None)
    right.setblocking(False)
    with pytest.raises(BlockingIOError):
        right.recv(9)


async def test_b5_memory_is_held_until_the_end(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """While the receive waits its buffers cannot be resized; afterwards, and after an error, they can."""
    left, right = pair
    buffers = [bytearray(4), bytearray(4)]
    task = asyncio.ensure_future(ring.recvmsg(right, buffers))
    await ring.nop()
    for buffer in buffers:
        with pytest.raises(BufferError):
            buffer.extend(b"!")
    with pytest.raises(aiouring.ResourceBusyError):
        await ring.recvmsg(right, [bytearray(4)])
    left.send(b"data")
    await task
    await ring.cancel(right)
    for buffer in buffers:
        buffer.extend(b"!")
    closed = asyncio.ensure_future(ring.sendmsg(0, buffers))
    await asyncio.wait([closed])
    assert isinstance(closed.exception(), OSError)
    for buffer in buffers:
        buffer.clear()


async def test_h9_a_full_socket_is_waited_for(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A datagram for which there is no room goes when there is, whether the kernel waits by itself or says EAGAIN."""
    left, right = pair
    try:
        while True:
            left.send(b"x" * 1000)
    except BlockingIOError:
        pass
    task = asyncio.ensure_future(ring.sendmsg(left, [b"at ", b"last"]))
    await ring.nop()
    assert not task.done()
    while (data := (await ring.recvfrom(right, 2000))[0]) != b"at last":
        assert data == b"x" * 1000
    assert await task == 7


async def test_what_is_refused(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Flags after which the kernel would still need the memory, wrong memory, wrong control data."""
    left, right = pair
    zero_copy = 0x4000000
    for verb, error, text in (
        (ring.sendmsg(left, [b"x"], flags=zero_copy), ValueError, "0x4000000 cannot be given"),
        (ring.sendmsg(left, [b"x"], flags=-1), ValueError, "cannot be given"),
        (ring.recvmsg(right, [bytearray(1)], flags=socket.MSG_ERRQUEUE), ValueError, "cannot be given"),
        (ring.sendmsg(left, [b"x"] * 1025), ValueError, "1025 parts"),
        (ring.recvmsg(right, [b"read only"]), (BufferError, TypeError), "writable|read-only"),
        (ring.recvmsg(right, [bytearray(1)], ancillary_size=-1), ValueError, "ancillary_size=-1"),
        (ring.recvmsg(right, [bytearray(1)], ancillary_size=1 << 21), ValueError, "ancillary_size=2097152"),
        (ring.sendmsg(left, [b"x"], ancillary=[(*RIGHTS, b"abc")]), ValueError, "3 bytes"),
        (ring.sendmsg(left, [b"x"], ancillary=[(1, 2, bytes(1 << 20))]), ValueError, "reach beyond"),
        (ring.sendto(left, b"x", 7), TypeError, "int"),
        (ring.recvfrom(right, -1), ValueError, "negative"),
    ):
        with pytest.raises(error, match=text):
            await verb
