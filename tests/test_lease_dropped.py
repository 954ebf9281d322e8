"""Tests of leases that nobody released, and of leases, views and slices that outlive their ring."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import RingFactory
from test_lease import EXPORTS, Shelf, fail_inside, pin

import aiouring
from aiouring._lease import Lease


def drop_in_another_thread(held: list[Lease]) -> None:
    """Let go of the last reference to a lease where the garbage collector might: anywhere."""
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()


def test_never_released() -> None:
    """A lease that is dropped warns, and its buffer comes back."""
    shelf = Shelf()
    with pytest.warns(ResourceWarning, match="<Lease 1 256 bytes> was never released"):
        shelf.lend(1)
    assert shelf.returned == [1]


def test_never_released_with_a_view() -> None:
    """The lease's own view does not keep a dropped buffer away."""
    shelf = Shelf()
    lease = shelf.lend(1)
    view = lease.view
    with pytest.warns(ResourceWarning, match="never released"):
        del lease
    with pytest.raises(ValueError, match="released memoryview"):
        view[0]
    assert shelf.returned == [1]


@pytest.mark.parametrize("name", EXPORTS)
def test_never_released_with_an_export(name: str) -> None:
    """A dropped buffer whose memory somebody still looks at comes back when nobody does."""
    shelf = Shelf()
    lease = shelf.lend(1)
    export = EXPORTS[name](lease.view)
    with pytest.warns(ResourceWarning, match="never released"):
        del lease
    assert shelf.returned == []
    del export
    assert shelf.returned == [1]


def test_never_released_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under -W error the warning cannot be raised out of a finalizer, and the buffer comes back as well."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_type))
    shelf = Shelf()
    shelf.lend(1)  # the oracle's filter makes errors of warnings
    assert seen == [ResourceWarning]
    assert shelf.returned == [1]


def test_dropped_in_another_thread() -> None:
    """A lease that the garbage collector drops elsewhere is handed to the ring's thread."""
    shelf = Shelf()
    held = [shelf.lend(1)]
    with pytest.warns(ResourceWarning, match="never released"):
        drop_in_another_thread(held)
    assert shelf.returned == []
    assert len(shelf.clerk.asked) == 1
    shelf.clerk.asked[0]()
    assert shelf.returned == [1]


def test_ended_in_a_cycle() -> None:
    """A lease in a reference cycle comes back with the garbage collector."""
    shelf = Shelf()
    cycle: list[object] = [shelf.lend(1)]
    cycle.append(cycle)
    del cycle
    with pytest.warns(ResourceWarning, match="never released"):
        gc.collect()
    assert shelf.returned == [1]


def test_dropped_while_another_is_taken_back() -> None:
    """A lease may be dropped (by the collector) while the home takes another one back."""

    class Busy(Shelf):
        def take_back(self, number: int) -> None:
            super().take_back(number)
            dropped.clear()

    shelf = Busy()
    leases = [shelf.lend(0), shelf.lend(1)]
    dropped = [shelf.lend(2)]
    for lease in leases:
        with pytest.raises(KeyError):
            fail_inside(lease, pin)
        lease.pins -= 1
    with pytest.warns(ResourceWarning, match="never released"):
        for lease in leases:
            lease.unpinned()
    assert sorted(shelf.returned) == [0, 1, 2]


async def loop_until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the condition never came true")


async def test_registered_buffer_dropped_in_another_thread(ring: aiouring.AsyncRing) -> None:
    """A registered buffer that is dropped elsewhere goes, by way of the loop, to who waits for it."""
    with ring.register_buffers(count=1, size=100) as table:
        held: list[Lease] = [await table.acquire()]
        waiter = asyncio.create_task(table.acquire())
        await asyncio.sleep(0)
        with pytest.warns(ResourceWarning, match="<FixedBuffer 0 100 bytes> was never released"):
            drop_in_another_thread(held)
        assert table.statistics().in_use == 1
        with await waiter as buffer:
            assert buffer.index == 0
        assert table.statistics().in_use == 0


async def test_provided_buffer_dropped_in_another_thread(ring: aiouring.AsyncRing) -> None:
    """A provided buffer that is dropped elsewhere goes back to the kernel by way of the loop."""
    group = ring.register_buffer_ring(count=2, size=16)
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.send(b"data")
        held: list[Lease] = [await ring.recv(receiving, group)]
        with pytest.warns(ResourceWarning, match="<ProvidedBuffer 0 4 bytes> was never released"):
            drop_in_another_thread(held)
        assert group.statistics().in_use == 1
        await loop_until(lambda: group.statistics().in_use == 0)
        await loop_until(lambda: group.raw.with_kernel == 2)


async def test_wrong_thread_may_try_again(ring: aiouring.AsyncRing) -> None:
    """A release in another thread raises, names the rule and changes nothing; the right thread may release."""
    group = ring.register_buffer_ring(count=2, size=16)
    table = ring.register_buffers(count=2, size=16)
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.send(b"data")
        leases = [await ring.recv(receiving, group), await table.acquire()]
        for lease in leases:
            with pytest.raises(aiouring.WrongContextError, match="call_soon_threadsafe"):
                await asyncio.to_thread(lease.release)
        assert group.statistics().in_use == table.statistics().in_use == 1
        assert bytes(leases[0].view) == b"data"
        for lease in leases:
            lease.release()
        await asyncio.get_running_loop().shutdown_default_executor()


async def test_d4_release_after_close(new_ring: RingFactory) -> None:
    """After the ring was closed a lease is plain memory, and its release changes nothing and breaks nothing."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=2, size=16)
    table = ring.register_buffers(count=2, size=16)
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.send(b"data")
        received, fixed = await ring.recv(receiving, group), await table.acquire()
    advances = group.statistics().advances
    await ring.aclose()
    assert bytes(received.view) == b"data"
    fixed.view[:4] = b"more"
    for lease in (received, fixed):
        lease.release()
        with pytest.raises(ValueError, match="released already"):
            lease.release()
    assert group.statistics().in_use == table.statistics().in_use == 0
    assert group.statistics().advances == advances


async def test_d4_block_left_after_close(new_ring: RingFactory) -> None:
    """The ring may be closed inside the `with` blocks of its leases; slices are looked for all the same."""
    ring = await new_ring()
    table = ring.register_buffers(count=2, size=16)
    parts: list[memoryview] = []

    async def close_inside(buffer: aiouring.FixedBuffer) -> None:
        with buffer:
            await ring.aclose()
            buffer.view[:] = bytes(range(16))
            parts.append(buffer.view[2:])

    first, second = await table.acquire(), await table.acquire()
    with first:
        with pytest.raises(BufferError):
            await close_inside(second)
    assert first.ended
    assert bytes(parts[0]) == bytes(range(2, 16))
    parts.clear()
    second.release()
    assert table.statistics().in_use == 0


def run_python(script: str, **environment: str) -> str:
    """Run a script in a fresh interpreter in development mode; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# A ring, its table and its group, each with a lease that is never released; `keep` is called with both leases.
ABANDONED = """
import asyncio, ctypes, gc, socket, warnings
import aiouring

warnings.simplefilter("ignore", ResourceWarning)

async def main(keep, close=True):
    ring = aiouring.AsyncRing()
    await ring.nop()
    table = ring.register_buffers(count=2, size=8192)
    group = ring.register_buffer_ring(count=2, size=64)
    receiving, sending = socket.socketpair()
    with receiving, sending:
        sending.send(b"received")
        received, fixed = await ring.recv(receiving, group), await table.acquire()
    fixed.view[:] = b"x" * 8192
    kept = keep(received, fixed)
    if close:
        await ring.aclose()
    return kept
"""

# Freed memory is overwritten by the C library, so that its use shows.
PERTURBED = {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165"}


def test_slice_outlives_everything() -> None:
    """Slices that outlive lease, ring and arena still lie in memory of their own."""
    script = (
        ABANDONED
        + """
def slices(received, fixed):
    return received.view[2:], fixed.view[1:], (ctypes.c_char * 16).from_buffer(fixed.view)

first, second, third = asyncio.run(main(slices))
gc.collect()
noise = [bytearray(b"n" * 8192) for _ in range(1000)]
assert bytes(first) == b"ceived"
assert bytes(second) == b"x" * 8191
second[:] = b"y" * 8191
assert third.raw == b"x" + b"y" * 15
del first, second, third
gc.collect()
print("fine")
"""
    )
    assert run_python(script, **PERTURBED) == "fine\n"


def test_lease_outlives_the_ring() -> None:
    """Leases of a ring that was closed and collected can be read, written, released and dropped."""
    script = (
        ABANDONED
        + """
received, fixed = asyncio.run(main(lambda *leases: leases))
gc.collect()
assert bytes(received.view) == b"received"
fixed.view[:] = b"y" * 8192
fixed.release()
del received
gc.collect()
print("fine")
"""
    )
    assert run_python(script, **PERTURBED) == "fine\n"


def test_lease_at_interpreter_exit() -> None:
    """Leases and slices that are alive when the interpreter ends do not make it fail."""
    script = (
        ABANDONED
        + """
kept = asyncio.run(main(lambda received, fixed: (received, fixed, fixed.view[3:])))
print("fine")
"""
    )
    assert run_python(script, **PERTURBED).startswith("fine\n")


def test_b4_ring_and_groups_collected_together() -> None:
    """A ring that was never closed, with a group and a table, can be collected as one cycle."""
    script = (
        ABANDONED
        + """
gc.disable()
asyncio.run(main(lambda *_: None, close=False))
gc.collect()
print("fine")
"""
    )
    assert run_python(script, **PERTURBED) == "fine\n"


IN_A_CYCLE = """
import gc
from aiouring._lease import Arena

class Holder:
    def __init__(self, part):
        self.part, self.me = part, self

arena = Arena(4, 64, 64)
part = memoryview(arena.exporters[0])[1:]
del arena
holder = Holder(part)
del holder, part
gc.collect()
print("fine")
"""


def test_b4_slice_collected_in_a_cycle() -> None:
    """A slice that is all that is left of an arena can be collected as part of a cycle."""
    assert run_python(IN_A_CYCLE) == "fine\n"


WAITING_AT_THE_END = """
import os

async def wait():
    ring = aiouring.AsyncRing()
    await ring.nop()
    table = ring.register_buffers(count=1, size=64)
    held = await table.acquire()
    asyncio.ensure_future(table.acquire())
    await asyncio.sleep(0)
    return ring, held

loop = asyncio.new_event_loop()
ring, held = loop.run_until_complete(wait())
loop.close()
del {first}
gc.collect()
del {second}
gc.collect()
for number in range(3, 64):
    try:
        assert os.readlink("/proc/self/fd/%d" % number) != "anon_inode:[io_uring]"
    except FileNotFoundError:
        pass
print("fine")
"""


@pytest.mark.parametrize(("first", "second"), [("ring", "held"), ("held", "ring")])
def test_b3_loop_closed_with_a_line(first: str, second: str) -> None:
    """A ring and a lease that are dropped after their loop was closed end quietly, whoever stood in line."""
    script = ABANDONED + WAITING_AT_THE_END.format(first=first, second=second)
    assert "Exception ignored" not in run_python(script)
