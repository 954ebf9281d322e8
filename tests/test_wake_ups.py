"""Tests of the eventfd: what wakes the loop, what does not, and that an idle ring costs nothing."""

import asyncio
import errno
import os
import re
import shutil
import socket
import threading
from pathlib import Path
from unittest import mock

import pytest
from conftest import open_files, turns, until
from injected_faults import Failing, no_more_descriptors, real_enter, replaced, run_python

import aiouring
from aiouring._setup import TaskRun


async def test_e12_no_descriptor_for_the_eventfd(profile: TaskRun) -> None:
    """A ring that gets no eventfd says so, leaves nothing, and can be used when there are descriptors again."""
    ring = aiouring.AsyncRing(task_run=profile)
    files = open_files()
    with no_more_descriptors(), pytest.raises(OSError) as caught:
        await ring.nop()
    assert caught.value.errno == errno.EMFILE
    assert open_files() == files
    async with ring:
        await ring.nop()


async def test_e11_loop_cannot_watch_the_eventfd(profile: TaskRun) -> None:
    """A loop that fails to watch the eventfd (epoll is full) leaves a ring that can be used later."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop's methods cannot be replaced")
    ring = aiouring.AsyncRing(task_run=profile)
    with mock.patch.object(loop, "add_reader", side_effect=OSError(errno.ENOSPC, "no room")):
        with pytest.raises(OSError, match="no room"):
            await ring.nop()
    try:
        await ring.nop()
    finally:
        await ring.aclose()


def sleeps_in_poll(thread: int) -> bool:
    """Whether a thread of this process sleeps in its event loop."""
    call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0]
    return call in ("22", "232", "281", "441")  # epoll_pwait elsewhere; epoll_wait, _pwait, _pwait2 on x86-64


async def test_e14_every_event_wakes_a_sleeping_loop(ring: aiouring.AsyncRing) -> None:
    """Data that arrives while the loop sleeps wakes it: the first time, and each time after that."""
    loop_thread, asleep = threading.get_native_id(), []
    ours, theirs = socket.socketpair()

    def speak() -> None:
        for number in range(50):
            theirs.recv(1)  # the other side has started over
            asleep.append(until(lambda: sleeps_in_poll(loop_thread)))
            theirs.send(bytes([number]))

    thread = threading.Thread(target=speak)
    thread.start()
    memory = bytearray(1)
    async with asyncio.timeout(20):
        for number in range(50):
            ours.send(b"?")
            assert await ring.recv_into(ours, memory) == 1
            assert memory[0] == number
    thread.join()
    ours.close()
    theirs.close()
    assert all(asleep)
    assert ring.statistics().wakeups >= 50


@pytest.mark.parametrize("delay", [0, 50, 200, 1000])
async def test_e15_an_event_at_the_end_of_a_turn(ring: aiouring.AsyncRing, delay: int) -> None:
    """Data that arrives just when a turn ends its silence and looks for the last time wakes the loop, too."""
    ours, theirs = socket.socketpair()
    rounds = 2000

    def echo() -> None:
        while data := theirs.recv(1):
            for _ in range(delay * data[0] // 128):  # shift the answer over the end of the turn
                pass
            theirs.send(data)

    thread = threading.Thread(target=echo)
    thread.start()
    memory = bytearray(1)
    async with asyncio.timeout(50):
        for number in range(rounds):
            receive = asyncio.ensure_future(ring.recv_into(ours, memory))
            await ring.send(ours, bytes([number % 256]))
            await receive
            assert memory[0] == number % 256
    ours.shutdown(socket.SHUT_WR)
    thread.join()
    ours.close()
    theirs.close()


async def test_e16_no_wake_up_after_close(profile: TaskRun) -> None:
    """Nobody watches the eventfd's number after close, whoever gets it next."""
    ring = aiouring.AsyncRing(task_run=profile)
    await ring.nop()
    number = ring._ring.raw.event_fd
    assert number >= 0
    await ring.aclose()
    before = ring.statistics()
    taken = os.eventfd(1)
    os.dup2(taken, number)
    try:
        assert not asyncio.get_running_loop().remove_reader(number)
        await turns()
        assert ring.statistics() == before
    finally:
        for fd in {taken, number}:
            os.close(fd)


async def test_idle_ring_enters_nothing(ring: aiouring.AsyncRing) -> None:
    """A ring that waits for its peer makes no system call, nor do the turns of a loop that is busy elsewhere."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receive = asyncio.ensure_future(ring.recv_into(ours, bytearray(1)))
        await turns()
        before = ring.statistics()
        with replaced(enter=(enter := Failing(real_enter))):
            await turns(1000)
            assert ring.statistics() == before
            assert enter.calls == 0
        theirs.send(b"!")
        await receive


IDLE = """
import asyncio, os, socket, sys, aiouring
async def main():
    async with aiouring.AsyncRing(task_run=sys.argv[1]) as ring:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            receive = asyncio.ensure_future(ring.recv_into(ours, bytearray(1)))
            await ring.nop()
            await asyncio.sleep(0.1)
            os.write(1, b"idle")
            await asyncio.sleep(0.5)
            os.write(1, b"over")
            theirs.send(b"!")
            await receive
asyncio.run(main())
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_idle_loop_sleeps(profile: TaskRun, tmp_path: Path) -> None:
    """While nothing happens the process makes no system call but the one in which its loop sleeps."""
    trace = tmp_path / "trace"
    done = run_python(IDLE, profile, before=("strace", "-f", "-qq", "-o", str(trace)), strict=False)
    assert done.returncode == 0, done.stderr
    calls = re.search(r'write\(1, "idle".*?\n(.*?)[^\n]*write\(1, "over"', trace.read_text(), flags=re.S)
    assert calls is not None
    names = re.findall(r"^\d+ (?:<\.\.\. )?(\w+)", calls[1], flags=re.M)
    assert set(names) <= {"epoll_wait", "epoll_pwait", "epoll_pwait2", "getpid"}, calls[1]  # getpid: CPython 3.11
    assert len(names) <= 4, calls[1]
