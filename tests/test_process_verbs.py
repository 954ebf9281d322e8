"""Tests of waitid(): every state of a child is told once, whatever is cancelled and whoever else waits."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import RESTRICTED, RingFactory

import aiouring
from aiouring import AsyncRing, Opcode, Restrictions

pytestmark = pytest.mark.needs("waiting for children")


@pytest.fixture
async def waiting(new_ring: RingFactory) -> AsyncRing:
    """A ring that may wait for children, also where rings are restricted."""
    options = {"restrictions": Restrictions.default(Opcode.WAITID)} if RESTRICTED else {}
    made: AsyncRing = await new_ring(**options)
    return made


class Child:
    """A process that ends with 7 when it is told to."""

    def __init__(self, group: int | None = None) -> None:
        self.process = subprocess.Popen(["/bin/sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE, process_group=group)
        self.pid = self.process.pid

    def end(self) -> None:
        """Have it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def forget(self) -> None:
        """Somebody has reaped it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()  # finds nothing, and takes that for the end


@pytest.fixture
def child() -> Iterator[Child]:
    """One such process."""
    made = Child()
    yield made
    made.forget()


async def test_exit_by_every_name(waiting: AsyncRing) -> None:
    """By process, group, descriptor and any: what os.waitid() would have returned, and the child is reaped."""
    for name in ("pid", "group", "pidfd", "all"):
        child = Child(group=0 if name == "group" else None)
        pidfd = os.pidfd_open(child.pid)
        idtype, number = {
            "pid": (os.P_PID, child.pid),
            "group": (os.P_PGID, child.pid),
            "pidfd": (os.P_PIDFD, pidfd),
            "all": (os.P_ALL, 0),
        }[name]
        task = asyncio.create_task(waiting.waitid(idtype, number, os.WEXITED))
        await waiting.nop()
        assert not task.done()
        child.end()
        found = await task
        assert found == os.waitid_result((child.pid, os.getuid(), signal.SIGCHLD, 7, os.CLD_EXITED))
        with pytest.raises(ChildProcessError):
            await waiting.waitid(os.P_PID, child.pid, os.WEXITED)
        child.forget()
        os.close(pidfd)


async def test_stopped_continued_and_killed(waiting: AsyncRing, child: Child) -> None:
    """Each state is told by its own option."""
    os.kill(child.pid, signal.SIGSTOP)
    found = await waiting.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert found is not None
    assert (found.si_code, found.si_status) == (os.CLD_STOPPED, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGCONT)
    found = await waiting.waitid(os.P_PID, child.pid, os.WCONTINUED | os.WEXITED)
    assert found is not None
    assert found.si_code == os.CLD_CONTINUED
    os.kill(child.pid, signal.SIGKILL)
    found = await waiting.waitid(os.P_PID, child.pid, os.WEXITED)
    assert found is not None
    assert (found.si_code, found.si_status) == (os.CLD_KILLED, signal.SIGKILL)


async def test_nohang_and_nowait(waiting: AsyncRing, child: Child) -> None:
    """WNOHANG does not wait, WNOWAIT leaves the child for the next; bad options are EINVAL."""
    assert await waiting.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG) is None
    child.end()
    looked = await waiting.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert looked == await waiting.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
    with pytest.raises(OSError, match="Invalid argument"):
        await waiting.waitid(os.P_PID, child.pid, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await waiting.waitid(os.P_PIDFD, 9999, os.WEXITED)
    with pytest.raises(TypeError, match="goes with a number"):
        await waiting.waitid(os.P_PID, sys.stdin, os.WEXITED)


async def test_a1_a_cancelled_wait_reaps_nobody(waiting: AsyncRing) -> None:
    """Whenever a wait is cancelled, also when the child has just ended: its state is there for the next."""
    for turns in range(12):
        child = Child()
        task = asyncio.create_task(waiting.waitid(os.P_PID, child.pid, os.WEXITED))
        await waiting.nop()
        child.end()
        if turns % 2:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and the loop does not know yet
        for _ in range(turns // 3):
            await asyncio.sleep(0)
        task.cancel()
        try:
            found = await task
        except asyncio.CancelledError:
            found = await waiting.waitid(os.P_PID, child.pid, os.WEXITED)
        assert found is not None
        assert (found.si_pid, found.si_status) == (child.pid, 7)
        child.forget()


async def test_somebody_else_reaps(waiting: AsyncRing, child: Child) -> None:
    """One child that another has reaped is ChildProcessError; a wait for any goes on with the rest."""
    second = Child()
    one = asyncio.create_task(waiting.waitid(os.P_PID, child.pid, os.WEXITED))
    everybody = asyncio.create_task(waiting.waitid(os.P_ALL, 0, os.WEXITED))
    await waiting.nop()
    child.end()
    os.waitpid(child.pid, 0)
    with pytest.raises(ChildProcessError):
        await one
    assert not everybody.done()
    second.end()
    found = await everybody
    assert found is not None
    assert found.si_pid == second.pid
    second.forget()


async def test_beside_asyncio(waiting: AsyncRing) -> None:
    """asyncio reaps its own processes; WNOWAIT beside it takes nothing from it."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(3)")
    try:
        found = await waiting.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        found = None  # asyncio was quicker
    assert found is None or found.si_status == 3
    assert await process.wait() == 3


async def test_not_by_default(profile: str) -> None:
    """The default restrictions have no waiting for children; an older kernel says since when there is."""
    async with AsyncRing(task_run=profile, restrictions=True) as ring:  # type: ignore[arg-type]
        with pytest.raises(PermissionError, match="WAITID"):
            await ring.waitid(os.P_ALL, 0, os.WEXITED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aiouring._features._here", frozenset())
            with pytest.raises(aiouring.UnsupportedKernelError, match="6.7"):
                await ring.waitid(os.P_ALL, 0, os.WEXITED)
