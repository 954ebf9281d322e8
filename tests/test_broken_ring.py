"""Tests of rings that break: submissions that fail for good, and what becomes of those who wait."""

import asyncio
import errno
import logging
import socket
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import turns
from injected_faults import ENTER, forbidden, real_enter, replaced, run_python

from aiouring import AsyncRing, Connection, Transport
from aiouring._setup import TaskRun

pytestmark = pytest.mark.leaves_things  # what the kernel may still write to is kept for ever


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    """A ring that breaks logs an error; here that is what is wanted."""
    caplog.set_level(logging.CRITICAL, "aiouring")


async def outcomes(*verbs: Any) -> list[Any]:
    """What each verb returns or raises."""
    return await asyncio.wait_for(asyncio.gather(*verbs, return_exceptions=True), 20)


@asynccontextmanager
async def breakable(profile: TaskRun, entries: int = 64, cancel_timeout: float = 5.0) -> AsyncIterator[AsyncRing]:
    """A ring that may be broken at the end, and is let go of then."""
    ring = AsyncRing(entries, task_run=profile, cancel_timeout=cancel_timeout, close_timeout=0.2)
    try:
        await ring.nop()
        yield ring
    finally:
        driver = ring._driver
        assert driver is not None
        if driver.broken:
            with warnings.catch_warnings(action="ignore"):
                driver.let_go()
        else:
            await ring.aclose()


async def test_e4_refusals_use_up_tries_slowly(profile: TaskRun) -> None:
    """A kernel that refuses for a fifth of a second does not break the ring, however much is asked meanwhile."""
    end = time.monotonic() + 0.2

    def enter(*arguments: Any) -> int:
        return -errno.EAGAIN if time.monotonic() < end else real_enter(*arguments)

    async with breakable(profile, 8) as ring:
        with replaced(enter=enter):
            await outcomes(*(ring.nop() for _ in range(100)))
            assert ring._driver is not None
            assert not ring._driver.broken


async def test_a12_submission_fails_for_good(profile: TaskRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses again and again is given up on: each awaiter gets the error, exactly once."""
    monkeypatch.setattr("aiouring._turns._LONGEST_BACKOFF", 0.001)
    async with breakable(profile) as ring:
        with replaced(enter=lambda *_: -errno.ENOMEM):
            results = await outcomes(*(ring.nop() for _ in range(20)))
            assert [type(result) for result in results] == [OSError] * 20
            assert {result.errno for result in results} == {errno.ENOMEM}
            assert 10 < ring.statistics().submit_errors < 40


@pytest.mark.parametrize("error", [errno.EBADR, errno.EPERM])
async def test_e3_e10_ring_breaks(profile: TaskRun, error: int) -> None:
    """An error that cannot pass breaks the ring: everybody who waits, or comes later, gets it, and once."""
    ours, theirs = socket.socketpair()
    async with breakable(profile) as ring:
        table = ring.register_buffers(count=1, size=16)
        group = ring.register_buffer_ring(count=1, size=16)
        buffer = await table.acquire()
        waiting = [table.acquire(), ring.recv(ours, group), ring.recv_into(theirs, bytearray(1))]
        tasks = [asyncio.ensure_future(verb) for verb in waiting]
        await turns()
        with replaced(enter=lambda *_: -error):
            results = await outcomes(ring.nop(), ring.nop(), *tasks)
            results += await outcomes(ring.nop(), ring.recv_into(theirs, bytearray(1)))
        for result in results:
            assert isinstance(result, OSError), result
            assert result.errno == error
            assert isinstance(result, PermissionError) == (error == errno.EPERM)
        buffer.release()
    ours.close()
    theirs.close()


async def test_e10_closing_a_broken_ring(profile: TaskRun) -> None:
    """Closing a broken ring ends at once, and says what memory it keeps."""
    async with breakable(profile) as ring:
        with replaced(enter=lambda *_: -errno.EPERM):
            await outcomes(ring.nop())
        with pytest.warns(ResourceWarning, match="that the kernel would not stop"):
            await asyncio.wait_for(ring.aclose(), 5)
        assert ring._ring.closed
        with pytest.raises(OSError):
            await ring.nop()


async def test_e10_cancelled_as_the_ring_breaks(profile: TaskRun) -> None:
    """A task that is cancelled in the turn in which the ring breaks ends at once: there is nothing to wait for."""
    async with breakable(profile, cancel_timeout=1) as ring:
        with replaced(enter=lambda *_: -errno.EPERM):
            task = asyncio.ensure_future(ring.nop())
            await asyncio.sleep(0)
            assert ring._driver is not None
            ring._driver._turn(0)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=0.5)
            await asyncio.wait({task})
    assert done


BREAKS = """
import asyncio, socket, warnings, logging, aiouring
logging.disable()
warnings.simplefilter("ignore")
async def main():
    async with aiouring.AsyncRing(task_run=PROFILE, close_timeout=0.2) as ring:
        ours, theirs = socket.socketpair()
        receive = asyncio.ensure_future(ring.recv_into(ours, bytearray(1)))
        await ring.nop()
        forbid(1, (ENTER,))
        for each in await asyncio.gather(receive, ring.nop(), ring.nop(), return_exceptions=True):
            assert isinstance(each, PermissionError), each
        ours.close()
        theirs.close()
asyncio.run(main())
print("closed")
"""


def test_e10_enter_is_forbidden_in_mid_life(profile: TaskRun) -> None:
    """A seccomp filter that forbids io_uring_enter from now on breaks the ring; the process ends as usual."""
    done = run_python(forbidden(0) + BREAKS.replace("PROFILE", repr(profile)).replace("ENTER", str(ENTER)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


async def test_a12_protocols_on_a_ring_that_breaks(profile: TaskRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lose their connections, each is told once, and the descriptors are closed."""
    monkeypatch.setattr("aiouring._turns._LONGEST_BACKOFF", 0.001)
    told: list[tuple[int, Exception | None]] = []

    class Notes(asyncio.Protocol):
        def __init__(self, number: int) -> None:
            self.number = number

        def connection_lost(self, exc: Exception | None) -> None:
            told.append((self.number, exc))

    pairs = [socket.socketpair() for _ in range(3)]
    async with breakable(profile) as ring:
        group = ring.register_buffer_ring(count=4, size=64)
        transports = [Transport(Connection(ring, pair[0], group), Notes(n)) for n, pair in enumerate(pairs)]
        await turns()
        transports[0].pause_reading()
        with replaced(enter=lambda *_: -errno.ENOMEM):
            for transport in transports:
                transport.write(b"never sent")
            while len(told) < 3:
                await asyncio.sleep(0.001)
        await turns()
    assert sorted(number for number, _ in told) == [0, 1, 2]
    assert {type(error) for _, error in told} == {OSError}
    for transport, (_, peer) in zip(transports, pairs, strict=True):
        assert transport.get_extra_info("socket").fileno() == -1
        peer.close()
