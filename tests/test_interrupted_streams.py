"""Tests of streams under interrupts: a KeyboardInterrupt at any line of a delivery costs and doubles nothing."""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from types import FrameType

import pytest

import aiouring
from aiouring import BufferRing, Connection
from aiouring._inbox import Inbox
from aiouring._lease import Lease
from aiouring._multishot import Receiving
from aiouring._private_buffers import PrivateBuffers
from aiouring._private_receives import Shorthanded
from aiouring._receiving_messages import ReceivingMessages
from aiouring._sending import Sending
from aiouring._setup import TaskRun
from aiouring._turns import Turns

Work = Callable[[aiouring.AsyncRing, BufferRing, socket.socket, int], Coroutine[None, None, bytes]]

#: Where it strikes: all that a turn runs once it has completions.
CODE = {
    method.__code__
    for method in (
        Turns._of_a_sender,
        Receiving._concluded,
        Receiving._armed_no_more,
        Receiving._over_for_the_kernel,
        ReceivingMessages.arrived,
        ReceivingMessages._armed_no_more,
        Inbox.announced,
        Sending.arrived,
        Sending._wake,
        Shorthanded._arrived_privately,
        PrivateBuffers.settle,
        PrivateBuffers.take_back,
        Lease.release,
    )
}


def delivers(ring: aiouring.AsyncRing) -> bool:
    """Whether a delivery is going on, not the task itself: that one would be ended by its own interrupt."""
    driver = ring._driver
    return driver is not None and driver._undelivered


async def echo(ring: aiouring.AsyncRing, group: BufferRing, sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes and write them back, with the least that may wait, so that much is armed again."""
    got = b""
    async with Connection(ring, sock, group, max_pending=2) as connection:
        while len(got) < size:
            chunk = await connection.receive()
            got += bytes(chunk.view)
            if chunk.buffer_id is not None:
                connection.write(chunk)
            else:
                with chunk:  # a sender that is interrupted may keep memory of others too long
                    connection.write(bytes(chunk.view))
            await connection.drain()
    return got


async def echo_packets(ring: aiouring.AsyncRing, group: BufferRing, sock: socket.socket, size: int) -> bytes:
    """The same with packets, each of which takes a detour by the ring's inbox."""
    got = b""
    with sock:
        async with ring.recvmsg_multishot(sock, group, max_pending=1, name_size=0) as stream:
            async for message in stream:
                with message:
                    await ring.msg_ring(ring, bytes(message.view))
                    got += await anext(ring.messages())
                if len(got) == size:
                    sock.shutdown(socket.SHUT_RD)
        await ring.send_all(sock, got)
    return got


@pytest.mark.deadline(40)
@pytest.mark.parametrize(("work", "empty"), [(echo, False), (echo, True), (echo_packets, False)])
def test_c8_interrupt_at_every_line_of_a_delivery(profile: TaskRun, work: Work, empty: bool) -> None:
    """Whatever line it strikes, each byte comes once, in order, and every buffer goes back; private ones as well."""
    kind = socket.SOCK_STREAM if work is echo else socket.SOCK_SEQPACKET
    loop = asyncio.SelectorEventLoop()
    at = lines = 0

    async def setup() -> tuple[aiouring.AsyncRing, BufferRing]:
        ring = aiouring.AsyncRing(task_run=profile)
        ring.messages()
        size = 4 if work is echo else 16 + 8
        return ring, ring.register_buffer_ring(count=8, size=size, on_empty="fallback" if work is echo else "wait")

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if frame.f_code not in CODE or not delivers(ring):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    ring, group = loop.run_until_complete(setup())
    held: list[aiouring.ProvidedBuffer] = []
    while empty and len(held) < len(group):
        with (pair := socket.socketpair())[0], pair[1]:
            pair[1].send(b"held")
            held.append(loop.run_until_complete(ring.recv(pair[0], group)))
    for at in range(1, 1500):
        lines = interrupts = 0
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        left.setblocking(False)
        data = b"%08d" % at * (2 if empty else 5)
        for start in range(0, len(data), 8):
            right.send(data[start : start + 8])
        task = loop.create_task(work(ring, group, left, len(data)))
        while not task.done():
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                loop.run_until_complete(task)
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                sys.settrace(None)
        assert task.result() == data
        assert right.recv(100) == data
        right.close()
        assert (group.statistics().in_use, group.statistics().private) == (len(held), 0)
        assert empty == (group.statistics().fallbacks > 0)
        assert ring.statistics().in_flight == 0
        if not interrupts:
            break
    assert 40 < at < 1499, at
    while held:
        held.pop().release()
    loop.run_until_complete(ring.aclose())
    loop.close()


def test_c8_interrupt_at_every_line_of_a_senders_news(profile: TaskRun) -> None:
    """Whatever line it strikes, memory that was written is let go of once its bytes are sent: no more, and no less."""
    loop = asyncio.SelectorEventLoop()
    at = lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if frame.f_code is not Sending.arrived.__code__ or not delivers(ring):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    async def setup() -> tuple[aiouring.AsyncRing, BufferRing, aiouring.RegisteredBuffers]:
        ring = aiouring.AsyncRing(task_run=profile)
        return ring, ring.register_buffer_ring(count=2, size=64), ring.register_buffers(count=3, size=4096)

    async def write(sock: socket.socket) -> None:
        connection = Connection(ring, sock, group)
        for round_ in range(3):
            with await buffers.acquire() as buffer:
                buffer.view[:] = b"%d" % round_ * 4096
                connection.write(buffer)
            connection.write(b"!" * 4096)
            await connection.send()
        assert connection._sending._kept is None  # type: ignore[union-attr]
        assert buffers.statistics().in_use == 0
        await connection.aclose()

    ring, group, buffers = loop.run_until_complete(setup())
    for at in range(1, 200):
        lines = interrupts = 0
        left, right = socket.socketpair()
        task = loop.create_task(write(left))
        while not task.done():
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                loop.run_until_complete(task)
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                sys.settrace(None)
        task.result()
        with right, right.makefile("rb") as received:
            assert received.read() == b"".join(b"%d" % round_ * 4096 + b"!" * 4096 for round_ in range(3)), at
        if not interrupts:
            break
    assert 20 < at < 199, at
    loop.run_until_complete(ring.aclose())
    loop.close()
