"""Tests of Standing: the queue that is full when it is renewed, a ring that breaks, and a loop that is gone."""

import asyncio
import errno
import gc
import socket
from typing import Any

import pytest
from simulated_kernel import LATER, STOPPED, CancelOutcome
from simulated_stage import stage
from test_accepting import accepting, answer, connection, fill, in_flight

import aiouring
from aiouring import _features
from aiouring._accepting import Accepting
from aiouring._setup import TaskRun
from aiouring._uring import lib

ACCEPT, MORE = lib.AU_OP_ACCEPT, lib.AU_CQE_F_MORE


@pytest.fixture(autouse=True)
def everything_is_here() -> None:
    """The features are those of the real kernel; the simulated one is not asked."""
    _features.ask()


@pytest.mark.parametrize("how", ["aclose", "cancel", "not at all"])
async def test_e1_stopped_while_its_renewal_waits_for_room(
    profile: TaskRun, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled before the renewal was filled: it is never armed, and the end is heard of."""
    room = True

    def sometimes_full(*arguments: Any) -> int:
        return lib.au_prepare(*arguments) if room else lib.AU_FULL

    def operate(self: Accepting) -> None:
        self._start(sometimes_full, self.opcode, self.fd, 0, 0, 0, 0, self._how)

    monkeypatch.setattr(Accepting, "_operate", operate)
    async with stage(profile) as at:
        driver = at.ring._bound()
        stream = at.ring.accept_multishot(at.socket)
        await at.moments()
        room = False
        (operation,) = at.kernel.pending
        at.kernel.finish(operation, -errno.EINTR)
        while not driver._starts_due:
            await asyncio.sleep(0)
        assert in_flight(at) == []
        at.kernel.next_cancels.extend([CancelOutcome(0, STOPPED)] * 20)
        if how == "not at all":
            room = True
            await at.moments()
            assert in_flight(at) == [ACCEPT]
            await stream.aclose()
            return
        ending = await at.started(stream.aclose() if how == "aclose" else at.ring.cancel(at.socket))
        assert ending.done()
        assert in_flight(at) == []
        if how == "cancel":
            with pytest.raises(OSError, match="cancel"):
                await anext(stream)
        await stream.aclose()


async def test_cancelled_by_both_at_once(profile: TaskRun) -> None:
    """The stream stops itself because it is full, and the listener is cancelled before that came back: it is over."""
    async with accepting(profile, max_pending=1) as (at, stream):
        at.kernel.next_cancels.appendleft(CancelOutcome(0, LATER))
        await fill(at, 2)
        cancelling = asyncio.ensure_future(at.ring.cancel(at.socket))
        await at.moments()
        assert in_flight(at) == []
        assert await cancelling == 1
        for _ in range(2):
            (await anext(stream)).close()
        with pytest.raises(OSError) as caught:
            await anext(stream)
        assert caught.value.errno == errno.ECANCELED


@pytest.mark.leaves_things
async def test_e10_the_ring_breaks(profile: TaskRun) -> None:
    """Whoever waits gets the ring's error; what came before can still be taken; closing does not hang."""
    async with stage(profile) as at:
        stream = at.ring.accept_multishot(at.socket)
        await at.moments()
        await answer(at, connection(), MORE)
        at.kernel.next_enters.append(-errno.EPERM)
        with pytest.raises(PermissionError):
            await at.ring.nop()
        (await anext(stream)).close()
        with pytest.raises(PermissionError):
            await anext(stream)
        await stream.aclose()
        at.kernel.pending.clear()
        with pytest.warns(ResourceWarning):
            await at.ring.aclose()


def test_b3_the_loop_is_gone() -> None:
    """A stream and its ring that are dropped after their loop ended: the accept is cancelled, nothing is left open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[object] = []

        async def leave() -> None:
            ring = aiouring.AsyncRing()
            stream = ring.accept_multishot(listener)
            client = socket.create_connection(listener.getsockname())
            while not stream.pending:
                await ring.nop()
            client.close()
            kept.extend([ring, stream])

        asyncio.run(leave())
        with pytest.warns(ResourceWarning):
            kept.clear()
            gc.collect()
