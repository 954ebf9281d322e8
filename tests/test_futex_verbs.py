"""Tests of the futex verbs: within a process, between processes, and with nobody's wake lost."""

import asyncio
import mmap
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory, settle

import aiouring
from aiouring import AsyncRing

pytestmark = pytest.mark.needs("futexes")


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    """A page that processes can share."""
    with mmap.mmap(-1, mmap.PAGESIZE) as made:
        yield made


@pytest.mark.parametrize("private", [False, True])
async def test_wait_and_wake(ring: AsyncRing, shared: mmap.mmap, private: bool) -> None:
    """A waiter sleeps until its word is told of; the count says how many were woken."""
    waiters = [asyncio.create_task(ring.futex_wait(shared, 0, offset=8, private=private)) for _ in range(3)]
    await settle(ring)
    assert await ring.futex_wake(shared, 5, offset=4, private=private) == 0, "another word"
    assert await ring.futex_wake(shared, 2, offset=8, private=private) == 2
    await settle(ring)
    assert [task.done() for task in waiters].count(True) == 2
    assert await ring.futex_wake(shared, 2**31 - 1, offset=8, private=private) == 1
    assert await asyncio.gather(*waiters) == [True] * 3


async def test_a_value_that_is_another(ring: AsyncRing, shared: mmap.mmap) -> None:
    """The word is compared before anybody sleeps, in 32 bits; values may be given with a sign."""
    struct.pack_into("=i", shared, 0, -5)
    assert await ring.futex_wait(shared, 0) is False
    assert await ring.futex_waitv([(shared, 0, 0), (shared, 4, 0)]) is None
    for value in (-5, 2**32 - 5):
        task = asyncio.create_task(ring.futex_wait(shared, value))
        await settle(ring)
        assert await ring.futex_wake(shared) == 1
        assert await task


async def test_masks(ring: AsyncRing, shared: mmap.mmap) -> None:
    """Only wakes that share a bit with the waiter's mask reach it."""
    first = asyncio.create_task(ring.futex_wait(shared, 0, mask=1))
    second = asyncio.create_task(ring.futex_wait(shared, 0, mask=2))
    await settle(ring)
    assert await ring.futex_wake(shared, 9, mask=2) == 1
    assert await second
    assert not first.done()
    assert await ring.futex_wake(shared, 9) == 1
    assert await first
    with pytest.raises(OSError, match="Invalid argument"):
        await ring.futex_wait(shared, 0, mask=0)


async def test_several_words(ring: AsyncRing, shared: mmap.mmap) -> None:
    """waitv says which of its words was told of, the last of 128 as well."""
    words = [(shared, 4 * at, 0) for at in range(128)]
    for at in (0, 5, 127):
        task = asyncio.create_task(ring.futex_waitv(words))
        await settle(ring)
        assert await ring.futex_wake(shared, offset=4 * at) == 1
        assert await task == at
    for wrong in ([], [*words, (shared, 0, 0)]):
        with pytest.raises(ValueError, match="words are outside 1 to 128"):
            await ring.futex_waitv(wrong)


async def test_m1_words_that_are_not_there(ring: AsyncRing, shared: mmap.mmap) -> None:
    """Offsets outside and between words, read-only memory and the ring's own are refused before they are submitted."""
    submitted = ring.statistics().submitted
    for offset, text in (
        (-4, "no word"),
        (mmap.PAGESIZE, "no word"),
        (mmap.PAGESIZE - 3, "no word"),
        (6, "multiple of 4"),
    ):
        for verb in (
            ring.futex_wait(shared, 0, offset=offset),
            ring.futex_wake(shared, offset=offset),
            ring.futex_waitv([(shared, 0, 0), (shared, offset, 0)]),
        ):
            with pytest.raises(ValueError, match=text):
                await verb
    with pytest.raises(BufferError):
        await ring.futex_wait(bytes(8), 0)
    with pytest.raises(ValueError, match="count=0"):
        await ring.futex_wake(shared, 0)
    with ring.register_buffers(count=1, size=8) as buffers, buffers[0] as buffer:
        with pytest.raises(TypeError, match="memory of your own"):
            await ring.futex_wait(buffer, 0)
    assert ring.statistics().submitted == submitted


async def test_b5_memory_is_held_while_somebody_waits(ring: AsyncRing) -> None:
    """An mmap cannot be closed under a waiter, and can when the wait was cancelled."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    tasks = [
        asyncio.create_task(ring.futex_wait(shared, 0)),
        asyncio.create_task(ring.futex_waitv([(shared, 4, 0), (shared, 8, 0)])),
    ]
    await settle(ring)
    for task in tasks:
        with pytest.raises(BufferError):
            shared.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    shared.close()


@pytest.mark.parametrize("several", [False, True])
async def test_a2_a_wake_is_never_lost(ring: AsyncRing, shared: mmap.mmap, several: bool) -> None:
    """Of two waiters one is cancelled in the moment of a single wake: the other has it, or the cancelled one had."""
    for turns in range(40):
        if several:
            first: asyncio.Task[object] = asyncio.create_task(ring.futex_waitv([(shared, 4, 0), (shared, 0, 0)]))
        else:
            first = asyncio.create_task(ring.futex_wait(shared, 0))
        await settle(ring)
        second = asyncio.create_task(ring.futex_wait(shared, 0))
        await settle(ring)
        wake = asyncio.create_task(ring.futex_wake(shared))
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert await wake == 1
        if not first.cancelled():
            assert await ring.futex_wake(shared) == 1
        async with asyncio.timeout(10):
            assert await second


CHILD = """
import asyncio, mmap, struct, sys, aiouring
async def main():
    with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        async with aiouring.AsyncRing() as ring:
            for number in range(100):
                struct.pack_into("=I", shared, 0, number + 1)
                await ring.futex_wake(shared)
                while await ring.futex_wait(shared, number, offset=4):
                    pass
asyncio.run(main())
"""


async def test_between_processes(ring: AsyncRing, tmp_path: Path) -> None:
    """Two processes take turns a hundred times over a file that both have mapped."""
    path = tmp_path / "shared"
    path.write_bytes(bytes(mmap.PAGESIZE))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        async with asyncio.timeout(30):
            for number in range(100):
                while struct.unpack_from("=I", shared, 0)[0] == number:
                    await ring.futex_wait(shared, number)
                struct.pack_into("=I", shared, 4, number + 1)
                await ring.futex_wake(shared, offset=4)
    assert child.wait(10) == 0


async def test_b1_close_with_waiters(new_ring: RingFactory, profile: str, shared: mmap.mmap) -> None:
    """The ring's close ends waits; an older kernel says since when there are any."""
    ring = AsyncRing(task_run=profile)  # type: ignore[arg-type]
    task = asyncio.create_task(ring.futex_wait(shared, 0))
    await asyncio.sleep(0)
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aiouring._features._here", frozenset())
        other = await new_ring()
        for verb in (other.futex_wait(shared, 0), other.futex_wake(shared), other.futex_waitv([(shared, 0, 0)])):
            with pytest.raises(aiouring.UnsupportedKernelError, match="futexes: needs Linux 6.7"):
                await verb
