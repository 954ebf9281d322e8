"""Tests of the turns: when the ring submits, when it drains, and what it does when it is idle."""

import asyncio
import os
import socket
from typing import Any

import pytest
from conftest import RingFactory, in_flight

import aiouring
from aiouring._driver import LIVE
from aiouring._request import Request
from aiouring._uring import lib


async def test_idle_costs_nothing(ring: aiouring.AsyncRing) -> None:
    """With a receive armed and nothing to do, no system call is made and no timer runs."""
    left, right = socket.socketpair()
    with ring.register_buffer_ring(count=2, size=64) as group:
        task = asyncio.create_task(ring.recv(left, group))
        await ring.nop()
        before = ring.statistics()
        await asyncio.sleep(0.1)
        assert ring.statistics() == before
        right.send(b"x")
        (await task).release()
        assert ring.statistics().wakeups == before.wakeups + 1
    left.close()
    right.close()


async def test_one_wakeup_per_event(ring: aiouring.AsyncRing) -> None:
    """E14: one event at a time is one wake-up and one completion, on every profile: none lost, none empty."""
    left, right = socket.socketpair()
    memory = bytearray(8)
    await ring.nop()
    before = ring.statistics()
    for _ in range(200):
        task = asyncio.create_task(ring.recv_into(left, memory))
        await asyncio.sleep(0.0001)  # armed, and the loop asleep in its poll
        right.send(b"x")
        await task
    after = ring.statistics()
    assert after.completed - before.completed == 200
    assert after.wakeups - before.wakeups <= 220
    left.close()
    right.close()


async def test_completion_at_submission_is_delivered_at_once(ring: aiouring.AsyncRing) -> None:
    """What completes inside the system call does not wait for the eventfd."""
    await ring.nop()
    before = ring.statistics().wakeups
    for _ in range(100):
        await ring.nop()
    assert ring.statistics().wakeups == before


async def test_what_the_woken_queue_is_submitted_in_their_turn(ring: aiouring.AsyncRing) -> None:
    """A task that a completion woke, and that awaits another request, costs the loop one turn, not two."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    for _ in range(3):
        await ring.nop()
        seen.append(ring.statistics().submitted)
        loop.call_soon(lambda: seen.append(ring.statistics().submitted))
        await ring.nop()
    assert [after - before for before, after in zip(seen[::2], seen[1::2], strict=True)] == [1, 1, 1]


async def test_failing_disposal_is_reported(ring: aiouring.AsyncRing) -> None:
    """An error while the result of a cancelled request is disposed of goes to the loop's exception handler."""

    class Broken(Request):
        __slots__ = ()

        def unclaimed(self, leftovers: object) -> None:
            raise ZeroDivisionError

    seen: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: seen.append(context))
    driver = ring._bound()
    task = asyncio.create_task(driver.perform(Broken(), lib.au_prepare, lib.AU_OP_NOP, -1, 0, 0, 0, 0, 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    loop.set_exception_handler(before)
    assert [type(context["exception"]) for context in seen] == [ZeroDivisionError]


async def test_in_flight_table_is_printed(ring: aiouring.AsyncRing) -> None:
    """I6: the deadline's dump names every request that is in flight."""
    reader, writer = os.pipe()
    task = asyncio.create_task(ring.read(reader, bytearray(1)))
    await ring.nop()
    assert f"<Read 2 fd={reader} awaited>" in in_flight()
    assert ring._driver in LIVE
    os.write(writer, b"x")
    await task
    os.close(reader)
    os.close(writer)


async def test_two_rings_on_one_loop(new_ring: RingFactory) -> None:
    """Rings are independent of each other."""
    first, second = await new_ring(), await new_ring()
    left, right = socket.socketpair()
    task = asyncio.create_task(first.recv_into(left, memory := bytearray(4)))
    await first.nop()
    await second.aclose()
    right.send(b"fine")
    assert await task == 4
    assert memory == b"fine"
    left.close()
    right.close()


async def test_few_attributes(ring: aiouring.AsyncRing, pair: tuple[socket.socket, socket.socket]) -> None:
    """CPython keeps 30 attributes of an object where each is found at once; more of them would make all slower."""
    group = ring.register_buffer_ring(count=4, size=64)
    task = asyncio.create_task(ring.recv(pair[0], group))
    await ring.nop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(vars(ring._bound())) <= 30


async def test_h1_a_file_that_cannot_say_its_number_any_more(
    ring: aiouring.AsyncRing, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Its request ends as that of a closed file does; the others of the turn are as ever."""

    class Failing:
        def __init__(self) -> None:
            self.asked = 0

        def fileno(self) -> int:
            self.asked += 1
            if self.asked > 1:
                raise OSError("gone")
            return pair[0].fileno()

    failing = asyncio.create_task(ring.write(Failing(), b"lost"))
    other = asyncio.create_task(ring.write(pair[0], b"kept"))
    assert await other == 4
    with pytest.raises(OSError, match="Bad file descriptor"):
        await failing
    assert pair[1].recv(10) == b"kept"
