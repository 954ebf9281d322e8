"""Tests of closing: it always ends, every awaiter hears of it, and memory outlives the kernel's use."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import textwrap
import warnings
import weakref

import pytest
from conftest import RingFactory, open_files

import aiouring
from aiouring._driver import GRAVEYARD
from aiouring._setup import TaskRun


async def test_b1_close_with_requests_in_flight(new_ring: RingFactory) -> None:
    """Everybody who waits gets RingClosedError, and everything is reaped before memory is freed."""
    ring = await new_ring()
    pairs = [socket.socketpair() for _ in range(40)]
    memory = [bytearray(8) for _ in pairs]
    waiting = [asyncio.create_task(ring.recv_into(left, m)) for (left, _), m in zip(pairs, memory, strict=True)]
    waiting.append(asyncio.create_task(ring.timeout(1000)))
    await ring.nop()
    await ring.aclose()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, aiouring.RingClosedError), result
    for (left, right), m in zip(pairs, memory, strict=True):
        m.extend(b"free")
        right.send(b"late")
        assert left.recv(8) == b"late"
        left.close()
        right.close()
    assert all(m == bytes(8) + b"free" for m in memory)


async def test_b1_close_wakes_those_in_line(new_ring: RingFactory) -> None:
    """Whoever waits for a buffer gets RingClosedError too."""
    ring = await new_ring()
    buffers = ring.register_buffers(count=1, size=64)
    group = ring.register_buffer_ring(count=1, size=64)
    left, right = socket.socketpair()
    right.send(b"data")
    held = await buffers.acquire()
    chunk = await ring.recv(left, group)
    right.send(b"more")
    tasks = [asyncio.create_task(buffers.acquire()), asyncio.create_task(ring.recv(left, group))]
    while not group.statistics().waiting:
        await ring.nop()
    await ring.aclose()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, aiouring.RingClosedError), result
    assert bytes(chunk.view) == b"data", "a lent buffer stays valid after close"
    held.release()
    chunk.release()
    left.close()
    right.close()


@pytest.mark.leaves_things
async def test_b2_close_is_bounded_and_keeps_the_memory(new_ring: RingFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its deadline close() ends, warns, and keeps what the kernel may still write to for ever."""
    ring = await new_ring(close_timeout=0.05)
    reader, writer = os.pipe()
    monkeypatch.setattr(ring._driver, "cancel_soon", lambda request: None)  # a kernel that cannot stop it
    task = asyncio.create_task(ring.read(reader, memory := bytearray(16)))
    await ring.nop()
    buried = len(GRAVEYARD)
    with pytest.warns(ResourceWarning, match="1 request"):
        await ring.aclose()
    assert len(GRAVEYARD) == buried + 1
    with pytest.raises(aiouring.RingClosedError):
        await task
    with pytest.raises(BufferError):
        memory.extend(b"x")
    os.close(reader)
    os.close(writer)


async def test_b7_close_twice_and_use_after_close(new_ring: RingFactory) -> None:
    """aclose() is idempotent, also when called concurrently; afterwards every verb says the ring is closed."""
    ring = await new_ring()
    await asyncio.gather(ring.aclose(), ring.aclose(), ring.aclose())
    await ring.aclose()
    for verb in (ring.nop(), ring.read(0, bytearray(1)), ring.timeout(0), ring.close(0)):
        with pytest.raises(aiouring.RingClosedError):
            await verb
    for register in (ring.register_buffers, ring.register_buffer_ring):
        with pytest.raises(aiouring.RingClosedError):
            register(count=1, size=64)
    assert "closed" in repr(ring)


async def test_b7_close_before_use() -> None:
    """A ring that was never used closes without a loop's help."""
    files = open_files()
    ring = aiouring.AsyncRing()
    await ring.aclose()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await ring.nop()
    assert open_files() == files


async def test_cancelled_close_still_closes(new_ring: RingFactory) -> None:
    """Cancelling aclose() does not stop the closing; CancelledError leaves when it is done."""
    ring = await new_ring()
    left, right = socket.socketpair()
    waiting = asyncio.create_task(ring.recv_into(left, bytearray(1)))
    await ring.nop()
    closing = asyncio.create_task(ring.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(aiouring.RingClosedError):
        await waiting
    with pytest.raises(aiouring.RingClosedError):
        await ring.nop()
    left.close()
    right.close()


def test_b3_loop_ends_without_close(profile: str) -> None:
    """A ring that its loop outlived warns when it is collected, leaves no descriptor, and a new one works."""

    async def forget() -> aiouring.AsyncRing:
        ring = aiouring.AsyncRing(task_run=profile)  # type: ignore[arg-type]
        await ring.nop()
        return ring

    files = open_files()
    with asyncio.Runner() as runner:
        ring = runner.run(forget())
        second = runner.run(forget())
    with pytest.warns(ResourceWarning, match="never closed"):
        del ring, second
        gc.collect()
    assert open_files() == files

    async def use() -> None:
        async with aiouring.AsyncRing() as fresh:
            await fresh.nop()

    asyncio.run(use())


def test_b3_ring_of_another_loop(profile: str) -> None:
    """A ring says so when it is used on a loop that is not its own, and goes on working on its own."""

    async def make() -> aiouring.AsyncRing:
        ring = aiouring.AsyncRing(task_run=profile)  # type: ignore[arg-type]
        await ring.nop()
        return ring

    async def misuse(ring: aiouring.AsyncRing) -> None:
        for verb in (ring.nop(), ring.aclose()):
            with pytest.raises(aiouring.WrongContextError, match="event loop"):
                await verb
        with pytest.raises(aiouring.WrongContextError, match="event loop"):
            ring.register_buffers(count=1, size=64)

    with asyncio.Runner() as own, asyncio.Runner() as other:
        ring = own.run(make())
        other.run(misuse(ring))
        own.run(ring.nop())
        own.run(ring.aclose())


async def test_b4_collected_ring_never_frees_what_is_in_flight(profile: str) -> None:
    """Collecting a live ring warns; what was in flight is reaped or kept, and late data touches nothing."""
    left, right = socket.socketpair()
    ring = aiouring.AsyncRing(task_run=profile)  # type: ignore[arg-type]
    memory = bytearray(8)
    coroutine = ring.recv_into(left, memory)
    await ring.nop()
    coroutine.send(None)
    await ring.nop()
    coroutine.close()
    reference = weakref.ref(ring)
    with pytest.warns(ResourceWarning, match="never closed"):
        del coroutine, ring
        gc.collect()
    assert reference() is None
    right.send(b"late")
    assert left.recv(8) == b"late"
    assert memory == bytes(8)
    left.close()
    right.close()


async def test_b5_buffer_dropped_before_the_request_ends(ring: aiouring.AsyncRing) -> None:
    """The request holds the caller's buffer: dropping or resizing it in flight is safe."""
    reader, writer = os.pipe()
    memory = bytearray(8)
    task = asyncio.create_task(ring.read(reader, memory))
    await ring.nop()
    with pytest.raises(BufferError):
        memory.extend(bytes(100))
    with pytest.raises(BufferError):
        memory.clear()
    del memory
    gc.collect()
    os.write(writer, b"12345678")
    assert await task == 8
    os.close(reader)
    os.close(writer)


ENDINGS = {
    "normal": ("", 0),
    "exit": ("sys.exit(5)", 5),
    "exception": ("raise KeyError('on purpose')", 1),
    "os_exit": ("os._exit(3)", 3),
    "left_open": ("await ring.aclose()", 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_b6_interpreter_ends_with_a_live_ring(ending: str, loop: str) -> None:
    """However the interpreter ends while a ring has requests in flight: same exit status, no hang, no crash."""
    statement, status = ENDINGS[ending]
    script = f"""
        import asyncio, os, socket, sys, uvloop, aiouring
        async def main():
            global ring, left, right, task
            ring = aiouring.AsyncRing()
            left, right = socket.socketpair()
            task = asyncio.create_task(ring.recv_into(left, bytearray(8)))
            buffers = ring.register_buffers(count=2, size=4096)
            group = ring.register_buffer_ring(count=2, size=4096)
            await ring.nop()
            {statement}
        {"asyncio" if loop == "asyncio" else "uvloop"}.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == status, done.stderr
    for bad in ("Fatal", "Segmentation", "Exception ignored", "AssertionError"):
        assert bad not in done.stderr, done.stderr
    if ending == "exception":
        assert "on purpose" in done.stderr


async def test_b9_callback_that_raises_does_not_stop_the_batch(ring: aiouring.AsyncRing) -> None:
    """A failing callback of one awaiter leaves the others of its batch alone."""
    loop = asyncio.get_running_loop()
    seen: list[object] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: seen.append(context["exception"]))
    tasks = [asyncio.ensure_future(ring.nop()) for _ in range(10)]

    def fail(_task: object) -> None:
        raise ZeroDivisionError

    tasks[3].add_done_callback(fail)
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    loop.set_exception_handler(before)
    assert [type(error) for error in seen] == [ZeroDivisionError]


async def test_b10_callback_that_closes_the_ring(new_ring: RingFactory) -> None:
    """Submitting and closing from an awaiter's callback neither loses nor doubles a completion."""
    ring = await new_ring()
    closing: list[asyncio.Task[None]] = []
    tasks = [asyncio.ensure_future(ring.nop()) for _ in range(20)]
    tasks[0].add_done_callback(lambda _: closing.append(asyncio.ensure_future(ring.aclose())))
    tasks[1].add_done_callback(lambda _: tasks.append(asyncio.ensure_future(ring.nop())))
    results = await asyncio.gather(*tasks[:20], return_exceptions=True)
    assert results == [None] * 20
    await closing[0]
    with pytest.raises(aiouring.RingClosedError):
        await tasks[20]


@pytest.mark.parametrize("waits", ["reader", "writer", "many"])
def test_b4_dropped_after_the_loop_was_closed(profile: TaskRun, waits: str) -> None:
    """A ring that is dropped when its loop is closed already lets go of everything, whoever was waiting."""
    pairs = [socket.socketpair() for _ in range(12)]
    before, buried = open_files(), len(GRAVEYARD)
    loop = asyncio.SelectorEventLoop()

    async def begin() -> list[object]:
        ring = aiouring.AsyncRing(entries=4, task_run=profile)
        group = ring.register_buffer_ring(count=4, size=64)
        held: list[object] = [ring]
        if waits == "writer":
            connection = aiouring.Connection(ring, pairs[0][0].dup(), group)
            connection.write(b"x" * 10_000_000)
            held += [connection, asyncio.ensure_future(connection.send())]
        else:
            streams = [ring.recv_multishot(left, group) for left, _ in pairs[: 1 if waits == "reader" else 12]]
            held += [*streams, *(asyncio.ensure_future(anext(stream)) for stream in streams[:1])]
        for _ in range(5):
            await ring.nop()
        return held

    held = loop.run_until_complete(begin())
    loop.close()
    pairs[0][1].send(b"x")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for thing in held:
            if isinstance(thing, asyncio.Task):
                thing._log_destroy_pending = False  # type: ignore[attr-defined]
        del held, thing
        gc.collect()
        assert any("never closed" in str(warning.message) for warning in found)
        found.clear()  # a warning keeps what it is about
        gc.collect()
    assert set(open_files()) <= set(before)
    assert len(GRAVEYARD) == buried
    for pair in pairs:
        for end in pair:
            end.close()
