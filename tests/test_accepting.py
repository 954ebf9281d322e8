"""Tests of Accepting on a simulated kernel: what each answer leads to, and what takes the place of the accept."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from simulated_kernel import LATER, STOPPED, CancelOutcome
from simulated_stage import Stage, stage

import aiouring
from aiouring import _features
from aiouring._setup import TaskRun
from aiouring._uring import lib

ACCEPT, TIMEOUT, MORE = lib.AU_OP_ACCEPT, lib.AU_OP_TIMEOUT, lib.AU_CQE_F_MORE


@pytest.fixture(autouse=True)
def everything_is_here() -> None:
    """The features are those of the real kernel; the simulated one is not asked."""
    _features.ask()


@asynccontextmanager
async def accepting(profile: TaskRun, **options: Any) -> AsyncIterator[tuple[Stage, aiouring.AcceptStream]]:
    """A stage whose socket is accepted from; every cancel stops its target."""
    async with stage(profile) as at:
        at.kernel.next_cancels.extend([CancelOutcome(0, STOPPED)] * 1000)
        async with at.ring.accept_multishot(at.socket, **options) as stream:
            await at.moments()
            assert in_flight(at) == [ACCEPT]
            yield at, stream
        assert in_flight(at) == []


def in_flight(at: Stage) -> list[int]:
    """The operations that the kernel has."""
    return [operation.opcode for operation in at.kernel.pending]


async def answer(at: Stage, result: int, flags: int = 0) -> None:
    """A completion of the one request that is in flight."""
    (operation,) = at.kernel.pending
    if not flags & MORE:
        at.kernel.pending.remove(operation)
    at.kernel._post(operation.user_data, result, flags)
    await at.moments(8)


def connection() -> int:
    """A descriptor as the kernel makes one."""
    return socket.socket().detach()


async def test_armed_again_whenever_the_kernel_ends_it(profile: TaskRun) -> None:
    """A completion without F_MORE ends the kernel's request, whether it has a connection or not."""
    async with accepting(profile) as (at, stream):
        for flags in (MORE, MORE, 0, MORE, 0, 0):
            fd = connection()
            await answer(at, fd, flags)
            assert in_flight(at) == [ACCEPT]
            assert (await anext(stream)).detach() == fd
            os.close(fd)
        before = at.ring.statistics().submitted
        for error in (errno.EINTR, errno.EAGAIN):
            await answer(at, -error)
            assert in_flight(at) == [ACCEPT]
        assert at.ring.statistics().submitted == before + 2


@pytest.mark.parametrize(
    "error", ["ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"]
)
async def test_failed_connections_are_passed_over(profile: TaskRun, error: str) -> None:
    """What accept(2) says of one connection is nobody's error; many in a row make the accept rest."""
    number = getattr(errno, error)
    async with accepting(profile) as (at, stream):
        for _ in range(16):
            await answer(at, -number)
            assert in_flight(at) == [ACCEPT]
        await answer(at, -number)
        assert in_flight(at) == [TIMEOUT]
        await answer(at, -errno.ETIME)
        assert in_flight(at) == [ACCEPT]
        await answer(at, connection(), MORE)
        (await anext(stream)).close()


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
async def test_h7_a_shortage(profile: TaskRun, error: str, caplog: pytest.LogCaptureFixture) -> None:
    """The accept rests, longer each time and up to a second; a connection makes the next rest short again."""
    number = getattr(errno, error)

    async def rest_after_a_shortage(at: Stage) -> float:
        await answer(at, -number)
        assert in_flight(at) == [TIMEOUT]
        (request,) = at.ring._driver.inflight.values()  # type: ignore[union-attr]
        seconds: int = request.hold[0]
        nanoseconds: int = request.hold[1]
        await answer(at, -errno.ETIME)
        assert in_flight(at) == [ACCEPT]
        return round(seconds + nanoseconds / 1e9, 3)

    with caplog.at_level(logging.WARNING, "aiouring"):
        async with accepting(profile) as (at, stream):
            name = repr(at.socket)
            assert [await rest_after_a_shortage(at) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
            await answer(at, connection(), MORE)
            (await anext(stream)).close()
            assert await rest_after_a_shortage(at) == 0.1
    assert [record.message for record in caplog.records] == [
        f"cannot accept on {name}: {os.strerror(number)}; trying again soon"
    ]


async def test_other_errors_end_it(profile: TaskRun) -> None:
    """The taker gets them, after the connections that came before, and again if it asks again."""
    async with accepting(profile) as (at, stream):
        await answer(at, connection(), MORE)
        await answer(at, -errno.EIO)
        assert in_flight(at) == []
        (await anext(stream)).close()
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                await anext(stream)
            assert caught.value.errno == errno.EIO


async def test_e11_canceled_although_nobody_asked(profile: TaskRun) -> None:
    """It is an error, no cancellation."""
    async with accepting(profile) as (at, stream):
        await answer(at, -errno.ECANCELED)
        with pytest.raises(OSError) as caught:
            await anext(stream)
        assert caught.value.errno == errno.ECANCELED


async def fill(at: Stage, count: int) -> None:
    """As many connections, of the one accept."""
    for _ in range(count):
        await answer(at, connection(), MORE)


async def test_full_and_going_on(profile: TaskRun) -> None:
    """Above max_pending a rest takes the accept's place, until half of them are taken."""
    async with accepting(profile, max_pending=4) as (at, stream):
        await fill(at, 4)
        assert in_flight(at) == [ACCEPT]
        await fill(at, 1)
        assert in_flight(at) == [TIMEOUT]
        for left, expected in ((4, TIMEOUT), (3, TIMEOUT), (2, ACCEPT)):
            (await anext(stream)).close()
            await at.moments()
            assert (stream.pending, in_flight(at)) == (left, [expected])
        await fill(at, 3)
        assert in_flight(at) == [TIMEOUT]


async def test_connections_that_come_before_the_cancel(profile: TaskRun) -> None:
    """What the kernel accepts between the cancel and its answer is queued, above the bound."""
    async with accepting(profile, max_pending=1) as (at, stream):
        at.kernel.next_cancels.appendleft(CancelOutcome(-errno.EALREADY, LATER))
        await fill(at, 5)
        assert in_flight(at) == [ACCEPT]
        await answer(at, connection())  # the last, without F_MORE
        assert (stream.pending, in_flight(at)) == (6, [TIMEOUT])
        for _ in range(6):
            (await anext(stream)).close()
        await at.moments()
        assert in_flight(at) == [ACCEPT]


async def test_taken_before_the_cancel_came_back(profile: TaskRun) -> None:
    """The taker was faster than the cancel: the accept is armed again at once, and no rest comes between."""
    async with accepting(profile, max_pending=1) as (at, stream):
        at.kernel.next_cancels.appendleft(CancelOutcome(0, LATER))
        await fill(at, 2)
        for _ in range(2):
            (await anext(stream)).close()
        await answer(at, -errno.ECANCELED)
        assert in_flight(at) == [ACCEPT]


async def test_a_shortage_while_the_queue_is_full(profile: TaskRun) -> None:
    """Both reasons to rest at once: afterwards the queue's bound still holds."""
    async with accepting(profile, max_pending=1) as (at, stream):
        at.kernel.next_cancels.appendleft(CancelOutcome(-errno.EALREADY, LATER))
        await fill(at, 2)
        await answer(at, -errno.EMFILE)
        assert in_flight(at) == [TIMEOUT]
        await answer(at, -errno.ETIME)
        assert in_flight(at) == [TIMEOUT], "now for the queue"
        for _ in range(2):
            (await anext(stream)).close()
        await at.moments()
        assert in_flight(at) == [ACCEPT]


async def test_a7_connections_that_come_while_it_is_closed(profile: TaskRun) -> None:
    """They are closed at once, and closing waits for the kernel's last word."""
    async with stage(profile) as at:
        at.kernel.next_cancels.append(CancelOutcome(-errno.EALREADY, LATER))
        stream = at.ring.accept_multishot(at.socket)
        await at.moments()
        closing = asyncio.ensure_future(stream.aclose())
        await at.moments()
        late = [connection(), connection()]
        await answer(at, late[0], MORE)
        assert not closing.done()
        await answer(at, late[1])
        await closing
        for fd in late:
            with pytest.raises(OSError):
                os.fstat(fd)


async def test_the_same_completion_twice(profile: TaskRun) -> None:
    """Delivery that was interrupted begins again with the same completion: a connection is queued once."""
    async with accepting(profile) as (at, stream):
        fd = connection()
        await answer(at, fd, MORE)
        await answer(at, fd, MORE)
        assert stream.pending == 1
        (await anext(stream)).close()
        await answer(at, fd, MORE)
        assert stream.pending == 0
