"""Tests of what RegisteredBuffers refuses: sizes, ranges, owners, and what the kernel's limits forbid."""

import errno
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import RingFactory, open_files, pinned_kilobytes

import aiouring
from aiouring._uring import lib

SIZES: list[tuple[Any, Any, type[Exception], str]] = [
    (0, 1, ValueError, "count=0 is outside 1 to 16384"),
    (-1, 1, ValueError, "count=-1 is outside 1 to 16384"),
    (16385, 1, ValueError, "count=16385 is outside 1 to 16384"),
    (1 << 64, 1, ValueError, "count=18446744073709551616 is outside 1 to 16384"),
    (1, 0, ValueError, "size=0 is outside 1 to 1073741824"),
    (1, -4096, ValueError, "size=-4096 is outside 1 to 1073741824"),
    (1, (1 << 30) + 1, ValueError, "size=1073741825 is outside 1 to 1073741824"),
    (1, 1 << 64, ValueError, "size=18446744073709551616 is outside 1 to 1073741824"),
    ("4", 1, TypeError, "count must be an int, not str"),
    (4.0, 1, TypeError, "count must be an int, not float"),
    (None, 1, TypeError, "count must be an int, not NoneType"),
    (1, "4096", TypeError, "size must be an int, not str"),
    (1, 4096.0, TypeError, "size must be an int, not float"),
    (1, b"data", TypeError, "size must be an int, not bytes"),
]


async def test_m6_sizes(ring: aiouring.AsyncRing, register_calls: list[int]) -> None:
    """A size that the kernel would refuse is refused with the rule, before any system call."""
    files, pinned = open_files(), pinned_kilobytes()
    for count, size, kind, text in SIZES:
        with pytest.raises(kind, match=text):
            ring.register_buffers(count=count, size=size)
    assert register_calls == []
    assert (open_files(), pinned_kilobytes()) == (files, pinned)
    with ring.register_buffers(count=1, size=1):
        assert register_calls == [lib.AU_REGISTER_BUFFERS2]


async def test_m6_second_table(ring: aiouring.AsyncRing, register_calls: list[int]) -> None:
    """A second table is refused before any system call; the first one stays."""
    with ring.register_buffers(count=1, size=10) as table:
        register_calls.clear()
        with pytest.raises(aiouring.ResourceBusyError):
            ring.register_buffers(count=1, size=10)
        assert register_calls == []
        assert table.registered


async def test_m6_as_many_as_there_may_be(ring: aiouring.AsyncRing) -> None:
    """The largest table the kernel knows can be had, and its last buffer used."""
    reading, writing = os.pipe()
    with ring.register_buffers(count=16384, size=1) as table:
        leases = [await table.acquire() for _ in range(16384)]
        last = max(leases, key=lambda lease: lease.index)
        assert last.index == 16383
        os.write(writing, b"x")
        assert await ring.read_fixed(reading, last) == 1
        assert bytes(last.view) == b"x"
        for lease in leases:
            lease.release()
    os.close(reading)
    os.close(writing)


async def test_pinning(ring: aiouring.AsyncRing) -> None:
    """Registration pins the buffers' pages, and unregistration lets go of them."""
    before = pinned_kilobytes()
    with ring.register_buffers(count=4, size=5000):
        assert pinned_kilobytes() - before == 4 * 8
    assert pinned_kilobytes() == before


RANGES = [(0, 101), (1, 100), (100, 1), (101, 0), (-1, 5), (0, -1), (50, -1), (1 << 62, 1 << 62)]


async def test_m7_ranges(ring: aiouring.AsyncRing) -> None:
    """A range outside the buffer is refused with its numbers, and nothing reaches the kernel."""
    with ring.register_buffers(count=2, size=100) as table, await table.acquire() as buffer:
        before = ring.statistics()
        for start, length in RANGES:
            for verb in (ring.read_fixed, ring.write_fixed):
                for offset in (0, None):
                    with pytest.raises(ValueError, match=f"start={start} and length={length} "):
                        await verb(0, buffer, offset, start=start, length=length)
        assert buffer.pins == 0
        await ring.nop()
        assert ring.statistics().submitted == before.submitted + 1


async def test_m7_text_names_the_size(ring: aiouring.AsyncRing) -> None:
    """The text says how large the buffer is."""
    with ring.register_buffers(count=1, size=100) as table, await table.acquire() as buffer:
        with pytest.raises(ValueError, match="start=1 and length=100 reach beyond the memory of 100 bytes"):
            await ring.read_fixed(0, buffer, 0, start=1, length=100)


async def test_m7_default_length(ring: aiouring.AsyncRing) -> None:
    """Without a length the range reaches to the buffer's end, and a start behind it is refused."""
    with ring.register_buffers(count=1, size=100) as table, await table.acquire() as buffer:
        for start in (101, -1):
            with pytest.raises(ValueError, match=f"start={start} "):
                await ring.read_fixed(0, buffer, 0, start=start)
        with open("/dev/zero", "rb") as zeros:
            assert await ring.read_fixed(zeros, buffer, 0, start=99) == 1
            assert await ring.read_fixed(zeros, buffer, 0, start=100) == 0


NUMBERS: list[tuple[Any, Any, Any, type[Exception]]] = [
    (0, 1 << 70, 0, ValueError),
    (1 << 70, 1, 0, ValueError),
    (0, 1, 1 << 70, ValueError),
    (0, 1, -1, ValueError),
    (0, 1, -2, ValueError),
    (0.0, 1, 0, TypeError),
    (0, "1", 0, TypeError),
    (0, 1, "0", TypeError),
]


async def test_m7_numbers(ring: aiouring.AsyncRing) -> None:
    """Numbers that fit no register, negative offsets and what is no number are refused, and pin nothing."""
    with ring.register_buffers(count=1, size=100) as table, await table.acquire() as buffer:
        for start, length, offset, kind in NUMBERS:
            with pytest.raises(kind):
                await ring.read_fixed(0, buffer, offset, start=start, length=length)
            assert buffer.pins == 0
            assert ring.statistics().in_flight == 0


async def test_m7_released_buffer(ring: aiouring.AsyncRing) -> None:
    """A buffer that was released is refused, although its number is in the table."""
    with ring.register_buffers(count=2, size=100) as table:
        buffer = await table.acquire()
        buffer.release()
        for verb in (ring.read_fixed, ring.write_fixed):
            with pytest.raises(ValueError, match=f"buffer {buffer.index} has been released already"):
                await verb(0, buffer, 0)


async def test_m7_buffer_of_another_ring(new_ring: RingFactory) -> None:
    """A buffer belongs to its ring's table, whatever another ring has under that number."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers(count=1, size=100) as table, second.register_buffers(count=1, size=100):
        with await table.acquire() as buffer:
            with pytest.raises(ValueError, match="no such buffer on this ring"):
                await second.read_fixed(0, buffer, 0)
            assert buffer.pins == 0


async def test_m7_core_checks_the_owner(ring: aiouring.AsyncRing) -> None:
    """The C core itself fills no request for a buffer that is not lent, or that does not exist."""
    with ring.register_buffers(count=2, size=100) as table, await table.acquire() as buffer:
        raw = ring._ring.raw
        for index, code in (
            (1 - buffer.index, lib.AU_NOT_LENT),
            (2, lib.AU_BAD_INDEX),
            ((1 << 32) - 1, lib.AU_BAD_INDEX),
        ):
            assert lib.au_prepare_fixed(raw, 1, lib.AU_OP_READ_FIXED, 0, table.raw, index, 0, 1, 0, 0) == code
        assert lib.au_ring_unsubmitted(raw) == 0


async def test_m7_not_a_registered_buffer(ring: aiouring.AsyncRing) -> None:
    """Only a lent buffer will do."""
    others: list[Any] = [bytearray(10), memoryview(bytearray(10)), 0, None]
    for other in others:
        with pytest.raises(TypeError, match=f"a FixedBuffer .* is needed, not {type(other).__name__}"):
            await ring.read_fixed(0, other, 0)


# A user without CAP_IPC_LOCK and with little RLIMIT_MEMLOCK; its number is its own, as the kernel counts per user.
UNPRIVILEGED = """
import asyncio, os, resource
import aiouring

def status():
    pinned = [line for line in open("/proc/self/status") if line.startswith("VmPin")]
    return pinned, [number for number in range(64) if os.path.exists(f"/proc/self/fd/{number}")]

async def main(task_run):
    async with aiouring.AsyncRing(8, cq_entries=16, task_run=task_run) as ring:
        with open("/dev/zero", "rb") as zeros:
            before = status()
            for _ in range(3):
                try:
                    ring.register_buffers(count=4, size=1 << 18)
                except OSError as error:
                    print(error.errno, type(error).__name__, error)
                assert status() == before, (before, status())
                with ring.register_buffers(count=2, size=4096) as table, await table.acquire() as buffer:
                    assert await ring.read_fixed(zeros, buffer, 0) == 4096
                assert status() == before, (before, status())

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(60_000 + os.getpid() % 5000)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
for task_run in ("coop", "defer"):
    asyncio.run(main(task_run))
"""


def test_m9_memlock_limit() -> None:
    """Beyond RLIMIT_MEMLOCK the error names the limit, the bytes and the cure; below it all works."""
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith(f"{errno.ENOMEM} OSError ")
        assert "4 buffers of 262144 bytes" in line
        assert "1048576 bytes would be locked" in line
        assert "RLIMIT_MEMLOCK allows this user 65536 bytes" in line
        assert "ulimit -l" in line
        assert "LimitMEMLOCK=" in line
        assert "--ulimit memlock" in line
