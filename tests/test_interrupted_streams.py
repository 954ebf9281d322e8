"""Tests of connections under interrupts: a KeyboardInterrupt at any line of a delivery costs and doubles nothing."""

import asyncio
import socket
import sys
from types import FrameType

import pytest

import aiouring
from aiouring import BufferRing, Connection
from aiouring._multishot import Receiving
from aiouring._sending import Sending
from aiouring._setup import TaskRun
from aiouring._turns import Turns

#: Where it strikes: all that a turn runs once it has completions.
CODE = {
    method.__code__
    for method in (
        Turns._deliver,
        Turns._of_a_sender,
        Receiving.arrived,
        Receiving._armed_no_more,
        Receiving._over_for_the_kernel,
        Sending.arrived,
        Sending._wake,
    )
}


def delivers(frame: FrameType | None) -> bool:
    """Whether a delivery runs this, not the task itself: that one would be ended by its own interrupt."""
    while frame is not None and frame.f_code is not Turns._deliver.__code__:
        frame = frame.f_back
    return frame is not None


async def echo(ring: aiouring.AsyncRing, group: BufferRing, sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes and write them back, with the least that may wait, so that much is armed again."""
    got = b""
    async with Connection(ring, sock, group, max_pending=2) as connection:
        while len(got) < size:
            chunk = await connection.receive()
            got += bytes(chunk.view)
            connection.write(chunk)
            await connection.drain()
    return got


@pytest.mark.deadline(20)
def test_c8_interrupt_at_every_line_of_a_delivery(profile: TaskRun) -> None:
    """Whatever line it strikes, each byte comes once, in order, and every buffer goes back."""
    loop = asyncio.SelectorEventLoop()
    at = lines = 0

    async def setup() -> tuple[aiouring.AsyncRing, BufferRing]:
        ring = aiouring.AsyncRing(task_run=profile)
        return ring, ring.register_buffer_ring(count=8, size=4)

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if frame.f_code not in CODE or not delivers(frame):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    ring, group = loop.run_until_complete(setup())
    for at in range(1, 400):
        lines = interrupts = 0
        left, right = socket.socketpair()
        data = b"%08d" % at * 5
        right.send(data)
        task = loop.create_task(echo(ring, group, left, len(data)))
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
        assert group.statistics().in_use == 0
        assert ring.statistics().in_flight == 0
        if not interrupts:
            break
    assert 40 < at < 399, at
    loop.run_until_complete(ring.aclose())
    loop.close()
