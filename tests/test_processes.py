"""Tests of threads, forks and signals: one ring, one thread, one process, and no lost completion."""

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from types import FrameType

import pytest
from conftest import RingFactory

import aiouring
from aiouring._turns import Turns


def run_script(script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, with development checks on."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


async def test_c1_wrong_thread(ring: aiouring.AsyncRing) -> None:
    """Another thread gets WrongContextError from everything, and the ring is as it was."""
    buffers = ring.register_buffers(count=2, size=64)
    group = ring.register_buffer_ring(count=2, size=64)
    left, right = socket.socketpair()
    right.send(b"data")
    chunk = await ring.recv(left, group)
    held = await buffers.acquire()
    before = ring.statistics()
    errors: list[BaseException] = []

    async def use() -> None:
        for verb in (ring.nop(), ring.read(left, bytearray(1)), ring.aclose()):
            try:
                await verb
            except aiouring.WrongContextError as error:
                errors.append(error)

    def work() -> None:
        asyncio.run(use())
        for attempt in (chunk.release, held.release, buffers.unregister, group.unregister):
            try:
                attempt()
            except aiouring.WrongContextError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
    thread.join()
    assert len(errors) == 7, errors
    assert "thread" in str(errors[0])
    assert ring.statistics() == before
    assert bytes(chunk.view) == b"data"
    chunk.release()
    held.release()
    await ring.nop()
    left.close()
    right.close()


async def test_c1_wrong_threads_never_share_a_number(ring: aiouring.AsyncRing) -> None:
    """Callers in wrong threads, however they race, take no request of the ring's own thread out of the table."""
    refused = 0
    done = threading.Event()

    def misuse() -> None:
        nonlocal refused
        while not done.is_set():
            with pytest.raises(aiouring.WrongContextError):
                ring.nop().send(None)
            refused += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=misuse) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            async with asyncio.timeout(20):
                await asyncio.gather(*(ring.nop() for _ in range(20)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert refused
    assert ring.statistics().strays == 0


async def test_c2_ring_made_in_a_thread_that_died(profile: str) -> None:
    """A ring belongs to whoever uses it first, not to whoever made it."""
    made: list[aiouring.AsyncRing] = []
    thread = threading.Thread(target=lambda: made.append(aiouring.AsyncRing(task_run=profile)))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    async with made[0] as ring:
        await ring.nop()
    sync: list[aiouring.Ring] = []
    thread = threading.Thread(target=lambda: sync.append(aiouring.Ring(8, disabled=True)))
    thread.start()
    thread.join()
    sync[0].enable()
    sync[0].prepare(aiouring.Opcode.NOP, user_data=7)
    assert [completion.user_data for completion in sync[0].wait()] == [7]
    sync[0].close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_c4_c5_fork(loop: str, profile: str) -> None:
    """In a forked child the ring is dead and says so; the parent's is untouched, and nothing keeps it open."""
    done = run_script(
        """
        import asyncio, os, socket, sys, uvloop, aiouring

        def rings():  # libuv may have some of its own
            links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
            return sum("io_uring" in link for link in links)

        async def in_child(ring, chunk, before):
            for verb in (ring.nop, lambda: ring.recv_into(0, bytearray(4))):
                try:
                    await verb()
                except aiouring.WrongContextError as error:
                    assert "fork" in str(error), error
                else:
                    return 2
            try:
                chunk.release()
            except aiouring.WrongContextError:
                pass
            else:
                return 3
            return 4 if rings() > before else 0

        async def main():
            before = rings()
            async with aiouring.AsyncRing(task_run=sys.argv[1]) as ring:
                left, right = socket.socketpair()
                other, far = socket.socketpair()
                buffers = ring.register_buffers(count=1, size=4096)
                group = ring.register_buffer_ring(count=2, size=64)
                right.send(b"held")
                chunk = await ring.recv(left, group)
                memory = bytearray(8)
                pending = asyncio.create_task(ring.recv_into(other, memory))
                await ring.nop()
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        coroutine = in_child(ring, chunk, before)
                        try:
                            coroutine.send(None)
                        except StopIteration as stop:
                            status = stop.value
                    finally:
                        os._exit(status)
                while True:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        break
                    await ring.nop()
                assert os.waitstatus_to_exitcode(status) == 0, status
                far.send(b"parent's")
                assert await pending == 8 and memory == b"parent's"
                right.send(b"more")
                with await ring.recv(left, group) as second:
                    assert bytes(second.view) == b"more"
                assert bytes(chunk.view) == b"held"
                chunk.release()
                for s in (left, right, other, far):
                    await ring.close(s)

        (asyncio if sys.argv[2] == "asyncio" else uvloop).run(main())
        """,
        profile,
        loop,
    )
    assert done.returncode == 0, done.stderr


def test_c4_parent_closes_while_the_child_lives(profile: str) -> None:
    """A child that goes on living does not keep the parent's requests alive (KERNEL.md E3)."""
    done = run_script(
        """
        import asyncio, os, signal, socket, sys, aiouring

        async def main():
            left, right = socket.socketpair()
            async with aiouring.AsyncRing(task_run=sys.argv[1]) as ring:
                memory = bytearray(8)
                task = asyncio.create_task(ring.recv_into(left, memory))
                await ring.nop()
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                    os._exit(0)
            try:
                await task
            except aiouring.RingClosedError:
                pass
            right.send(b"late")
            assert left.recv(8) == b"late"
            assert memory == bytes(8)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            left.close(); right.close()

        asyncio.run(main())
        """,
        profile,
    )
    assert done.returncode == 0, done.stderr


def _child(connection: object) -> None:
    """A multiprocessing child makes a ring of its own."""

    async def use() -> None:
        async with aiouring.AsyncRing() as ring:
            await ring.nop()

    asyncio.run(use())


def test_c4_multiprocessing_fork() -> None:
    """A child made by multiprocessing (fork) under a live ring can have a ring of its own."""
    with aiouring.Ring(8) as ring:
        process = multiprocessing.get_context("fork").Process(target=_child, args=(None,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        ring.prepare(aiouring.Opcode.NOP, user_data=1)
        assert len(ring.wait()) == 1


async def test_c7_subprocess_inherits_nothing(ring: aiouring.AsyncRing) -> None:
    """A program started while requests are in flight sees neither the ring nor its eventfd."""
    left, right = socket.socketpair()
    memory = bytearray(8)
    pending = asyncio.create_task(ring.recv_into(left, memory))
    await ring.nop()
    code = "import os; print([os.readlink('/proc/self/fd/'+n) for n in os.listdir('/proc/self/fd') if int(n) > 2])"
    process = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    # The listing's own descriptor is gone by the time it is read: readlink fails unless it lists only itself.
    assert "io_uring" not in process.stdout
    assert "eventfd" not in process.stdout
    right.send(b"unharmed")
    assert await pending == 8
    left.close()
    right.close()
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_c8_ctrl_c_at_random_moments(loop: str, profile: str) -> None:
    """Ctrl-C at any moment is one KeyboardInterrupt from asyncio's Runner; the ring is closed, nothing is lost."""
    done = run_script(
        """
        import asyncio, os, random, signal, socket, sys, uvloop, aiouring
        choose = random.Random(8)

        async def use(left, right, memory):
            global ring
            async with aiouring.AsyncRing(task_run=sys.argv[1]) as ring:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(0.0001, 0.004))
                while True:
                    await asyncio.gather(*(ring.nop() for _ in range(10)))
                    right.send(b"ping")
                    await ring.recv_into(left, memory)

        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        factory = asyncio.new_event_loop if sys.argv[2] == "asyncio" else uvloop.new_event_loop
        files = len(os.listdir("/proc/self/fd"))
        interrupts = 0
        for _ in range(200):
            left, right = socket.socketpair()
            memory = bytearray(64)
            try:
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(use(left, right, memory))
            except KeyboardInterrupt:
                interrupts += 1
            assert ring.statistics().in_flight == 0, ring.statistics()
            memory.extend(b"free")
            left.close(); right.close()
        assert interrupts == 200, interrupts
        del ring
        assert len(os.listdir("/proc/self/fd")) <= files + 2  # libuv opens two for good
        """,
        profile,
        loop,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_c8_interrupt_at_every_line_of_a_turn(profile: str) -> None:
    """A KeyboardInterrupt at any line of a turn loses no completion: the next turn goes on where it struck."""
    loop = asyncio.SelectorEventLoop()

    async def setup() -> aiouring.AsyncRing:
        ring = aiouring.AsyncRing(task_run=profile)  # type: ignore[arg-type]
        await ring.nop()
        return ring

    ring = loop.run_until_complete(setup())
    driver = ring._driver
    assert driver is not None
    code = {part.__code__ for part in (Turns._prepare, Turns._check_files, Turns._interrupted, Turns._settle)}
    left, right = socket.socketpair()
    at = lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if frame.f_code not in code:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    async def work() -> bytes:
        memory = bytearray(8)
        right.send(b"%08d" % at)
        *_, count = await asyncio.gather(ring.nop(), ring.nop(), ring.recv_into(left, memory))
        return bytes(memory[:count])

    for at in range(1, 60):
        lines = 0
        task = loop.create_task(work())
        interrupts = 0
        while not task.done():
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                loop.run_until_complete(task)
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                sys.settrace(None)
        assert task.result() == b"%08d" % at
        assert ring.statistics().in_flight == 0
        if not interrupts:
            break
    assert at > 15, at
    loop.run_until_complete(ring.aclose())
    left.close()
    right.close()
    loop.close()


async def test_c9_signal_storm(ring: aiouring.AsyncRing) -> None:
    """A signal each millisecond does not harm the data."""
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1

    before = signal.signal(signal.SIGUSR1, count)
    done = threading.Event()

    def storm() -> None:
        while not done.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.001)

    thread = threading.Thread(target=storm)
    thread.start()
    left, right = socket.socketpair()
    payload = os.urandom(1 << 20)
    memory = bytearray(len(payload))

    async def receive() -> None:
        at = 0
        while at < len(memory):
            at += await ring.recv_into(left, memoryview(memory)[at:])

    await asyncio.gather(receive(), ring.send_all(right, payload))
    done.set()
    thread.join()
    signal.signal(signal.SIGUSR1, before)
    assert memory == payload
    left.close()
    right.close()


async def test_c10_broken_pipe_does_not_kill(new_ring: RingFactory) -> None:
    """Sends use MSG_NOSIGNAL: with SIGPIPE at its default a broken connection is EPIPE, not death."""
    ring = await new_ring()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    left, right = socket.socketpair()
    right.close()
    for verb in (ring.send(left, b"x"), ring.send_all(left, b"x")):
        with pytest.raises(BrokenPipeError):
            await verb
    signal.signal(signal.SIGPIPE, before)
    left.close()
