"""Tests of poll_multishot: events are joined, none is lost, and a condition that lasts makes nothing spin."""

import asyncio
import errno
import os
import select
import socket

import pytest
from simulated_kernel import STOPPED, CancelOutcome
from simulated_stage import Stage, stage

import aiouring
from aiouring import _features
from aiouring._setup import TaskRun
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.needs("multishot poll")


async def test_events_of_one_request(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Each arrival is reported; one submission serves all."""
    async with ring.poll_multishot(pair[0]) as stream:
        await ring.nop()
        before = ring.statistics().submitted
        for number in range(20):
            pair[1].send(b"%d" % number)
            assert await anext(stream) & select.POLLIN
            assert pair[0].recv(9) == b"%d" % number
        assert ring.statistics().submitted == before
        pair[1].close()
        while not await anext(stream) & select.POLLHUP:
            pass


async def test_what_is_true_already(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A condition that holds when the poll begins is reported; different events come as one mask."""
    pair[1].send(b"x")
    async with ring.poll_multishot(pair[0].fileno(), select.POLLIN | select.POLLOUT) as stream:
        assert await anext(stream) == select.POLLIN | select.POLLOUT


async def test_direct_descriptor_and_pipe(ring: aiouring.AsyncRing) -> None:
    """A pipe in the table of registered files."""
    reader, writer = os.pipe()
    files = ring.register_files([reader])
    async with ring.poll_multishot(files[0]) as stream:
        os.write(writer, b"x")
        assert await anext(stream) & select.POLLIN
    os.close(reader)
    os.close(writer)


async def test_a5_timeouts_lose_no_event(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What happens while nobody waits is there for the next who does."""
    async with ring.poll_multishot(pair[0]) as stream:
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(stream)
            pair[1].send(b"%d" % number)
            assert await anext(stream) & select.POLLIN
            pair[0].recv(9)


async def test_closing_and_cancelling_are_heard_of(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """ring.cancel() and ring.close() on the file, and a second reader."""
    stream = ring.poll_multishot(pair[0])
    waiting = asyncio.ensure_future(anext(stream))
    await ring.nop()
    with pytest.raises(aiouring.ResourceBusyError):
        await anext(stream)
    assert await ring.cancel(pair[0]) == 1
    with pytest.raises(OSError, match="cancel"):
        await waiting
    await stream.aclose()
    stream = ring.poll_multishot(pair[0])
    await ring.nop()
    await ring.close(pair[0])
    with pytest.raises(OSError, match="cancel"):
        await anext(stream)
    del stream
    assert ring.statistics().in_flight == 0


@pytest.mark.parametrize("events", [0, -1, 1 << 16])
async def test_what_is_refused(ring: aiouring.AsyncRing, events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of nothing or of too much; a file that cannot be polled; an older kernel."""
    with pytest.raises(ValueError, match=f"events={events}"):
        ring.poll_multishot(0, events)
    monkeypatch.setattr(_features, "_here", frozenset())
    with pytest.raises(aiouring.UnsupportedKernelError, match=r"multishot poll: needs Linux 5\.13"):
        ring.poll_multishot(0)


async def answer(at: Stage, result: int, flags: int = 0) -> None:
    """A completion of the one request that is in flight."""
    (operation,) = at.kernel.pending
    if not flags & lib.AU_CQE_F_MORE:
        at.kernel.pending.remove(operation)
    at.kernel._post(operation.user_data, result, flags)
    await at.moments(8)


async def test_a_condition_that_lasts_makes_nothing_spin(profile: TaskRun) -> None:
    """Ended by the kernel with events that nobody takes, the poll rests until they are taken; joined, not lost."""
    _features.ask()
    async with stage(profile) as at:
        at.kernel.next_cancels.extend([CancelOutcome(0, STOPPED)] * 10)
        async with at.ring.poll_multishot(at.socket, select.POLLIN) as stream:
            await at.moments()
            await answer(at, select.POLLIN, lib.AU_CQE_F_MORE)
            await answer(at, select.POLLHUP)
            assert [operation.opcode for operation in at.kernel.pending] == [lib.AU_OP_TIMEOUT]
            assert await anext(stream) == select.POLLIN | select.POLLHUP
            await at.moments(8)
            assert [operation.opcode for operation in at.kernel.pending] == [lib.AU_OP_POLL_ADD]
            await answer(at, -errno.EIO)
            with pytest.raises(OSError) as caught:
                await anext(stream)
            assert caught.value.errno == errno.EIO
