"""Tests of Shortage: who is called from a group's line, and with what."""

import asyncio
import socket

import pytest

import aiouring
from aiouring._shortage import OnEmpty


async def lend_all(ring: aiouring.AsyncRing, group: aiouring.BufferRing) -> list[aiouring.ProvidedBuffer]:
    """Lend every buffer of the group."""
    left, right = socket.socketpair()
    with left, right:
        right.send(b"x" * len(group) * group.size)
        return [await ring.recv(left, group) for _ in range(len(group))]


async def test_the_content_take_what_comes_first(ring: aiouring.AsyncRing) -> None:
    """Those who wait for the group and those who are content share a line; each call goes to the first it suits."""
    group = ring.register_buffer_ring(count=2, size=1)
    held = await lend_all(ring, group)
    private = [group.draw_private("fallback"), group.draw_private("fallback")]
    calls: list[tuple[int, bool]] = []

    async def wait(number: int) -> aiouring.ProvidedBuffer | None:
        on_empty: OnEmpty = "fallback" if number % 2 else "wait"
        spare = await group.wait_in_line(group.draw_ticket(), number, on_empty=on_empty, refused=True)
        calls.append((number, spare is not None))
        return spare

    tasks = [asyncio.create_task(wait(number)) for number in range(6)]
    await ring.nop()
    assert group.statistics().waiting == 6
    for spare in private:
        assert spare is not None
        spare.release()
    await ring.nop()
    assert calls == [(1, True), (3, True)]
    for chunk in held:
        chunk.release()
    for _ in range(4):
        await ring.nop()
    assert calls[2:] == [(0, False), (2, False), (4, False), (5, False)]
    assert group.statistics().enobufs == 6
    for task in tasks:
        if (given := await task) is not None:
            given.release()


async def test_declined_calls_go_on(ring: aiouring.AsyncRing) -> None:
    """What is handed to one who leaves in that moment goes to the next."""
    group = ring.register_buffer_ring(count=1, size=1, on_empty="fallback")
    (held,) = await lend_all(ring, group)
    private = group.draw_private("fallback")
    assert private is not None
    waiting = [asyncio.create_task(group.wait_in_line(at, at, on_empty=None, refused=True)) for at in (1, 2)]
    await asyncio.sleep(0)
    private.release()
    waiting[0].cancel()
    spare = await waiting[1]
    assert spare is not None
    assert waiting[0].cancelled()
    spare.release()
    held.release()


async def test_nothing_after_unregister(ring: aiouring.AsyncRing) -> None:
    """A group that is gone lends nothing, privately neither."""
    group = ring.register_buffer_ring(count=1, size=1, on_empty="fallback")
    group.unregister()
    with pytest.raises(aiouring.RingClosedError, match="has been unregistered"):
        group.draw_private("fallback")
    with pytest.raises(aiouring.RingClosedError, match="has been unregistered"):
        group.join_line(1, None, "fallback")
