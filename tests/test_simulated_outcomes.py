"""Tests of single outcomes that a real kernel has but rarely shows, scripted on the simulated kernel."""

import asyncio
import errno
import os
import shutil
import socket
import threading

import pytest
from injected_faults import run_python
from simulated_kernel import DONE, LATER, STOPPED, CancelOutcome, SimulatedKernel
from simulated_stage import stage

import aiouring
from aiouring._setup import TaskRun
from aiouring._uring import lib

OUTCOMES = [
    CancelOutcome(code, target, first)
    for code in (0, -errno.ENOENT, -errno.EALREADY)
    for target in (STOPPED, DONE, LATER)
    for first in (False, True)
]


@pytest.mark.parametrize("arrival", ["never", "before", "after"])
async def test_a1_every_outcome_of_a_cancel(profile: TaskRun, arrival: str) -> None:
    """Whatever a cancel answers, CancelledError waits for the target's end, and no byte is lost or doubled."""
    for outcome in OUTCOMES:
        async with stage(profile) as at:
            memory = bytearray(8)
            task = await at.started(at.ring.recv_into(at.socket, memory))
            if arrival == "before":
                at.arrived += b"hello"
            at.kernel.next_cancels.append(outcome)
            task.cancel()
            await at.moments()
            assert task.done() == (outcome.target != LATER), outcome
            if not task.done():
                with pytest.raises(BufferError):
                    memory.extend(b"!")  # the kernel may still write
            if arrival == "after":
                at.arrived += b"hello"
            await at.end(task)
            assert task.cancelled()
            memory.extend(b"!")
            before = bytes(memory)
            at.arrived += b" world"
            expected = b" world" if arrival == "never" else b"hello world"
            assert await at.received(len(expected)) == expected, outcome
            assert memory == before
            assert at.ring.statistics().in_flight == 0


async def test_a2_data_in_the_same_turn_as_the_cancel(profile: TaskRun) -> None:
    """A receive that completed before its task could run, and was cancelled then, leaves its bytes to the next."""
    async with stage(profile) as at:
        task = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        at.arrived += b"hello"
        at.kernel.finish(at.kernel.pending[0])
        assert at.ring._driver is not None
        at.ring._driver._turn(0)
        task.cancel()
        await at.end(task)
        assert task.cancelled()
        assert await at.received(5) == b"hello"


async def test_a3_detached_request_keeps_its_memory(profile: TaskRun) -> None:
    """A request the kernel does not stop is given up on in time, keeps its memory, and its bytes are not lost."""
    async with stage(profile, cancel_timeout=0.01) as at:
        memory = bytearray(5)
        at.kernel.next_cancels += [CancelOutcome(-errno.EALREADY, LATER)] * 2
        task = await at.started(at.ring.recv_into(at.socket, memory))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert at.ring.statistics().detached == at.ring.statistics().in_flight == 1
        with pytest.raises(BufferError):
            memory.extend(b"!")
        other = await at.started(at.ring.nop())
        at.kernel.finish(at.kernel.pending[-1])
        await other
        at.arrived += b"hello"
        await at.end(await at.started(at.ring.nop()))
        assert at.ring.statistics().in_flight == 0
        assert await at.received(5) == b"hello"


async def test_a6_second_cancel_submits_nothing(profile: TaskRun) -> None:
    """Cancelling a task again while its first cancel is under way neither submits another nor ends it sooner."""
    async with stage(profile) as at:
        task = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        at.kernel.next_cancels.append(CancelOutcome(-errno.EALREADY, LATER))
        before = at.ring.statistics().submitted
        for _ in range(3):
            task.cancel()
            await at.moments()
        assert at.ring.statistics().submitted == before + 1
        assert not task.done()
        await at.end(task)
        assert task.cancelled()


async def test_a9_stale_completion_is_ignored(profile: TaskRun) -> None:
    """A completion for a request that ended long ago, or never was, reaches nobody, and is counted."""
    async with stage(profile) as at:
        first = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        ended = at.kernel.pending[0].user_data
        at.kernel.finish(at.kernel.pending[0], -errno.ECONNRESET)
        await at.moments()
        with pytest.raises(ConnectionResetError):
            await first
        second = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        for user_data in (ended, ended, 2**40, 2**64 - 1):
            at.kernel.post_stray(user_data)
        await at.moments()
        assert not second.done()
        assert at.ring.statistics().strays == 4
        at.arrived += b"hello"
        await at.end(second)
        assert second.result() > 0


async def test_a9_completion_twice_in_one_batch(profile: TaskRun) -> None:
    """The same completion twice in one batch completes the request once."""
    async with stage(profile) as at:
        task = await at.started(at.ring.nop())
        at.kernel.post_stray(at.kernel.pending[0].user_data)
        at.kernel._post(at.kernel.pending.pop().user_data, 0)
        await at.moments()
        assert task.done()
        assert at.ring.statistics().strays == 1
        if not task.cancelled():
            task.exception()  # the first of the two was it


async def test_uninvited_ecanceled_is_an_oserror(profile: TaskRun) -> None:
    """ECANCELED that nobody asked for is the kernel's error, not a cancellation of the task."""
    async with stage(profile) as at:
        task = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        at.kernel.finish(at.kernel.pending[0], -errno.ECANCELED)
        await at.moments()
        with pytest.raises(OSError) as caught:
            await task
        assert caught.value.errno == errno.ECANCELED


async def test_e2_overflow_does_not_signal(profile: TaskRun) -> None:
    """Completions that overflow a small queue are all fetched although the kernel signals only the first."""
    async with stage(profile, entries=8, cq_entries=8) as at:
        at.arrived += b"."
        tasks = [asyncio.ensure_future(at.ring.poll(at.socket)) for _ in range(200)]
        await at.moments(20)
        for operation in list(at.kernel.pending):
            at.kernel.finish(operation)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert at.ring.statistics().overflow_flushes > 0


@pytest.mark.parametrize("script", [[0], [1, 1, 1], [0, 0, 2], [-errno.EINTR] * 3, [-errno.EAGAIN] * 5, [0] * 9])
async def test_e4_e5_scripted_enters(profile: TaskRun, script: list[int]) -> None:
    """Short submissions and transient errors, in any sequence, delay requests and lose none."""
    async with stage(profile) as at:
        at.kernel.next_enters.extend(script)
        tasks = [asyncio.ensure_future(at.ring.nop()) for _ in range(10)]
        while at.kernel.next_enters or len(at.kernel.pending) < len(tasks):
            await asyncio.sleep(0)
        await at.end(*tasks)
        assert [task.exception() for task in tasks] == [None] * 10


async def test_e4_error_beside_completions(profile: TaskRun) -> None:
    """A turn that delivers completions and fails to submit is followed by another without any event."""
    async with stage(profile) as at:
        first = await at.started(at.ring.nop())
        at.kernel.next_enters.append(-errno.EAGAIN)
        loop, operation = asyncio.get_running_loop(), at.kernel.pending[0]
        # It completes in the turn that submits the second.
        loop.call_soon(lambda: loop.call_soon(at.kernel.finish, operation))
        second = asyncio.ensure_future(at.ring.nop())
        async with asyncio.timeout(10):
            await first
            while not at.kernel.pending:
                await asyncio.sleep(0)
            at.kernel.finish(at.kernel.pending[0])
            await second


async def test_b1_close_waits_for_what_ends_late(profile: TaskRun) -> None:
    """Closing waits until the kernel is done with each request; whoever waited gets RingClosedError."""
    async with stage(profile) as at:
        memory = [bytearray(5) for _ in range(3)]
        socks = [socket.socket() for _ in memory]
        tasks = [asyncio.ensure_future(at.ring.recv_into(*pair)) for pair in zip(socks, memory, strict=True)]
        await at.moments()
        at.kernel.next_cancels += [CancelOutcome(0, STOPPED), CancelOutcome(-errno.EALREADY, LATER, True)] * 2
        closing = await at.started(at.ring.aclose())
        assert not closing.done()
        await at.end(closing, *tasks)
        assert [type(task.exception()) for task in tasks] == [aiouring.RingClosedError] * 3
        for sock in socks:
            sock.close()


async def test_d9_buffer_on_an_error_comes_back(profile: TaskRun) -> None:
    """A completion that is an error and names a buffer nevertheless costs no buffer."""
    async with stage(profile) as at:
        group = at.ring.register_buffer_ring(count=1, size=8)
        task = await at.started(at.ring.recv(at.socket, group))
        operation = at.kernel.pending.pop()
        number = at.kernel.groups[group.group_id].pick().bid
        flags = lib.AU_CQE_F_BUFFER | number << lib.AU_CQE_BUFFER_SHIFT
        at.kernel._post(operation.user_data, -errno.ECONNRESET, flags)
        await at.moments()
        with pytest.raises(ConnectionResetError):
            await task
        at.arrived += b"hello"
        await at.end(await at.started(at.ring.nop()))
        at.kernel.groups[group.group_id].look()
        assert at.kernel.groups[group.group_id].here == {number}


async def test_leftovers_reach_read_fixed(profile: TaskRun) -> None:
    """Bytes that arrived for a cancelled read_fixed on a socket or pipe are the next one's, wherever both begin."""
    async with stage(profile) as at:
        table = at.ring.register_buffers(count=1, size=16)
        with await table.acquire() as buffer:
            for start, next_start in ((0, 0), (3, 9), (11, 0)):
                task = await at.started(at.ring.read_fixed(at.socket, buffer, start=start))
                at.arrived += b"hello"
                at.kernel.next_cancels.append(CancelOutcome(-errno.ENOENT, DONE))
                task.cancel()
                await at.end(task)
                assert task.cancelled()
                found = b""
                while len(found) < 5:
                    task = await at.started(at.ring.read_fixed(at.socket, buffer, start=next_start, length=2))
                    await at.end(task)
                    found += buffer.view[next_start : next_start + task.result()]
                assert found == b"hello"


def hardware(kernel: SimulatedKernel, stopped: threading.Event) -> None:
    """What completes everything at once, from a thread of its own."""
    while not stopped.is_set():
        with kernel._lock:
            for operation in list(kernel.pending):
                kernel.finish(operation)


async def ask(profile: TaskRun, rounds: int, width: int) -> None:
    """Run `rounds` nops in each of `width` tasks, on hardware."""
    async with stage(profile) as at:

        async def ask_often() -> None:
            for _ in range(rounds):
                await at.ring.nop()

        stopped = threading.Event()
        thread = threading.Thread(target=hardware, args=(at.kernel, stopped))
        thread.start()
        try:
            await asyncio.wait_for(asyncio.gather(*(ask_often() for _ in range(width))), 20)
        finally:
            stopped.set()
            thread.join()
        assert at.ring.statistics().completed == rounds * width


async def test_e15_no_wake_up_is_lost(profile: TaskRun) -> None:
    """Completions posted by another thread at any moment of a turn are all noticed, with no other event to help."""
    await ask(profile, 1000, 5)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_e15_slow_read_of_the_eventfd() -> None:
    """A completion that is posted while a turn empties the eventfd is noticed: the turn looks again."""
    code = "import asyncio, test_simulated_outcomes as t; [asyncio.run(t.ask(p, 40, 2)) for p in ('coop', 'defer')]"
    strace = ("strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=read", "-e", "inject=read:delay_enter=1000")
    done = run_python(code, before=strace, strict=False)
    assert done.returncode == 0, done.stderr
