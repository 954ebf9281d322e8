"""Tests of cloned tables: whole and in part, into gaps and in place; what they share with their source and what not."""

import asyncio
import errno
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RingFactory, pinned_kilobytes

import aiouring
from aiouring import Opcode, Ring
from aiouring._registered_buffers import clone_error
from aiouring._setup import TaskRun


class Memory(bytearray):
    """A bytearray that can be watched going away."""


@pytest.fixture
def file() -> Iterator[int]:
    """A file of 4096 bytes x."""
    number = os.memfd_create("file")
    os.write(number, b"x" * 4096)
    yield number
    os.close(number)


async def texts(ring: aiouring.AsyncRing, table: aiouring.RegisteredBuffers) -> list[Any]:
    """What the kernel finds in each slot of a table, by writing it to a file; None where it is empty."""
    found: list[Any] = []
    file = os.memfd_create("found")
    for index, size in enumerate(table.sizes):
        if not size:
            found.append(None)
            continue
        with table[index] as buffer:
            assert await ring.write_fixed(file, buffer, 0) == size
        found.append(os.pread(file, size, 0))
    os.close(file)
    return found


# ---- the whole ---------------------------------------------------------------------------------


async def test_clone_of_a_table(new_ring: RingFactory, file: int) -> None:
    """A clone has the same memory under the same numbers, and pins nothing anew."""
    first, second = await new_ring(), await new_ring()
    memories = [bytearray(b"%d" % number * 10) for number in range(3)]
    with first.register_buffers(memories) as source:
        pinned = pinned_kilobytes()
        with second.clone_buffers(source) as clone:
            assert pinned_kilobytes() == pinned
            assert (clone.sizes, clone.pinned_bytes) == (source.sizes, source.pinned_bytes)
            assert await texts(second, clone) == memories
            with clone[1] as buffer:
                assert await second.read_fixed(file, buffer, 0, length=3) == 3
            assert memories[1] == b"xxx1111111"
            assert await texts(first, source) == memories


async def test_clone_outlives_its_source(new_ring: RingFactory, file: int) -> None:
    """The clone is good after the source was unregistered, its ring closed and everything else dropped."""
    first, second = await new_ring(), await new_ring()
    memory = Memory(b"memory")
    gone = weakref.ref(memory)
    source = first.register_buffers([memory])
    clone = second.clone_buffers(source)
    await source.unregister().wait()
    assert await texts(second, clone) == [b"memory"]
    with pytest.raises(BufferError):
        memory.append(1)
    await first.aclose()
    del source, memory, first
    gc.collect()
    with clone[0] as buffer:
        assert await second.read_fixed(file, buffer, 0) == 6
        assert bytes(buffer.view) == b"xxxxxx"
    assert gone() is not None
    clone.unregister()
    del buffer
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None


async def test_clone_of_an_arena_outlives_it(new_ring: RingFactory, file: int) -> None:
    """So is the clone of memory that was made by the source's ring."""
    first, second = await new_ring(), await new_ring()
    source = first.register_buffers(count=3, size=5000)
    clone = second.clone_buffers(source)
    source.unregister()
    await first.aclose()
    del source, first
    gc.collect()
    async with await clone.acquire() as buffer:
        assert await second.read_fixed(file, buffer, 0) == 4096
        assert bytes(buffer.view) == b"x" * 4096 + bytes(904)
    clone.unregister()


async def test_source_outlives_its_clone(new_ring: RingFactory, file: int) -> None:
    """Unregistering the clone takes nothing from the source."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers(count=2, size=10) as source:
        second.clone_buffers(source).unregister()
        second.clone_buffers(source)
        await second.aclose()
        with source[1] as buffer:
            assert await first.read_fixed(file, buffer, 0) == 10


async def test_clone_in_flight(new_ring: RingFactory) -> None:
    """A request on the clone ends in its memory, whatever became of both tables."""
    first, second = await new_ring(), await new_ring()
    reading, writing = os.pipe()
    memory = bytearray(10)
    source = first.register_buffers([memory])
    clone = second.clone_buffers(source)
    with clone[0] as buffer:
        task = asyncio.create_task(second.read_fixed(reading, buffer))
        await second.nop()
        await source.unregister().wait()
        clone.unregister()
        with pytest.raises(BufferError):
            memory.append(1)
        os.write(writing, b"data")
        assert await task == 4
        assert memory[:4] == b"data"
    memory.append(1)
    os.close(reading)
    os.close(writing)


async def test_each_table_lends_by_itself(new_ring: RingFactory) -> None:
    """Source and clone know nothing of each other's leases, views and waiters: the same bytes can be lent in both."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers([bytearray(b"same")]) as source, second.clone_buffers(source) as clone:
        with source[0] as one, clone[0] as other:
            one.view[0] = ord("S")
            assert bytes(other.view) == b"Same"
            assert (source.statistics().in_use, clone.statistics().in_use) == (1, 1)
            part = other.view[1:]
            with pytest.raises(BufferError):
                other.release()
            part.release()
            del part
        with source[0] as one:
            with pytest.raises(ValueError, match="no such buffer on this ring"):
                await second.read_fixed(0, one, 0)


async def test_tags_are_not_cloned(new_ring: RingFactory) -> None:
    """The source's end is announced although the clone goes on; the clone's is not."""
    first, second = await new_ring(), await new_ring()
    source = first.register_buffers(count=2, size=10)
    with second.clone_buffers(source) as clone:
        async with asyncio.timeout(5):
            await source.unregister().wait()
        retired = clone.remove(0)
        assert retired.done is None
        with pytest.raises(ValueError, match="a clone's"):
            await retired.wait()
        clone.update(0, [bytearray(3)])
        await clone.remove(0).wait()


# ---- in part -----------------------------------------------------------------------------------


def numbered(count: int, first: int = 0) -> list[bytearray]:
    """Memories that say which they are."""
    return [bytearray(b"%03d" % number) for number in range(first, first + count)]


async def test_offsets(new_ring: RingFactory) -> None:
    """Any part of the source goes to any place; slots before it are empty."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers(numbered(6)) as source:
        for source_index, index, count, expected in (
            (0, 0, 2, [b"000", b"001"]),
            (4, 0, None, [b"004", b"005"]),
            (2, 3, 2, [None, None, None, b"002", b"003"]),
            (5, 1, 1, [None, b"005"]),
        ):
            with second.clone_buffers(source, index=index, source_index=source_index, count=count) as clone:
                assert await texts(second, clone) == expected


async def test_empty_slots_stay_empty(new_ring: RingFactory) -> None:
    """What is empty in the source is empty in the clone, and can be filled there."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers_sparse(3) as source:
        source.update(1, [bytearray(b"one")])
        with second.clone_buffers(source) as clone:
            assert await texts(second, clone) == [None, b"one", None]
            clone.update(0, [bytearray(b"nil")])
            assert await texts(second, clone) == [b"nil", b"one", None]
            assert source.sizes == [0, 3, 0]


async def test_replace(new_ring: RingFactory) -> None:
    """With replace the table stays the same object: slots in the range are replaced, the others stay, it grows."""
    first, second = await new_ring(), await new_ring()
    mine = numbered(4, 100)
    with first.register_buffers(numbered(6)) as source, second.register_buffers(mine) as table:
        lease = table[3]
        assert second.clone_buffers(source, index=1, source_index=2, count=2, replace=True) is table
        assert lease.index == 3
        lease.release()
        assert await texts(second, table) == [b"100", b"002", b"003", b"103"]
        assert second.clone_buffers(source, index=3, source_index=0, count=4, replace=True) is table
        assert await texts(second, table) == [b"100", b"002", b"003", b"000", b"001", b"002", b"003"]
        assert (len(table), table.statistics().in_use) == (7, 0)
        second.clone_buffers(source, index=9, count=1, replace=True)
        assert (await texts(second, table))[6:] == [b"003", None, None, b"000"]
        await second.nop()
        for memory in mine[1:]:
            memory.append(1)  # the kernel has let go of what was replaced
        with pytest.raises(BufferError):
            mine[0].append(1)
    assert second.statistics().strays == 0


async def test_replace_keeps_who_uses_the_old(new_ring: RingFactory) -> None:
    """A request on a buffer that a clone replaces ends in the old memory; its lease is plain memory from then on."""
    first, second = await new_ring(), await new_ring()
    reading, writing = os.pipe()
    mine = bytearray(4)
    with first.register_buffers(numbered(1)) as source, second.register_buffers([mine]) as table:
        lease = table[0]
        task = asyncio.create_task(second.read_fixed(reading, lease))
        await asyncio.sleep(0)  # queued, not yet submitted
        second.clone_buffers(source, replace=True)
        os.write(writing, b"data")
        assert await task == 4
        assert mine == b"data"
        with pytest.raises(ValueError, match="replaced or removed"):
            await second.read_fixed(reading, lease)
        lease.release()
        assert await texts(second, table) == [b"000"]
    os.close(reading)
    os.close(writing)


async def test_same_ring(ring: aiouring.AsyncRing) -> None:
    """A table can be cloned into itself, overlapping too; what was there before is what is copied."""
    with ring.register_buffers(numbered(4)) as table:
        with pytest.raises(aiouring.ResourceBusyError, match="replace=True"):
            ring.clone_buffers(table, index=2)
        assert ring.clone_buffers(table, index=1, source_index=0, count=3, replace=True) is table
        assert await texts(ring, table) == [b"000", b"000", b"001", b"002"]
        ring.clone_buffers(table, index=4, replace=True)
        assert await texts(ring, table) == [b"000", b"000", b"001", b"002"] * 2


async def test_clone_of_a_clone(new_ring: RingFactory, file: int) -> None:
    """A clone can be cloned, and the last of the chain is as good as the first."""
    rings = [await new_ring() for _ in range(4)]
    table = rings[0].register_buffers([bytearray(8)])
    for ring in rings[1:]:
        before, table = table, ring.clone_buffers(table)
        before.unregister()
    with table[0] as buffer:
        assert await rings[-1].read_fixed(file, buffer, 0) == 8
    table.unregister()


# ---- what is refused ---------------------------------------------------------------------------


async def test_refused_before_any_call(new_ring: RingFactory) -> None:
    """Slots that are not there, a table that is, a source that is gone: each is refused with its rule."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers(numbered(3)) as source:
        cases: list[tuple[dict[str, Any], str]] = [
            ({"source_index": 3}, "source_index=3 is outside the source's slots, 0 to 2"),
            ({"source_index": -1}, "source_index=-1"),
            ({"count": 4}, "count=4 is outside 1 to 3"),
            ({"source_index": 2, "count": 2}, "count=2 is outside 1 to 1"),
            ({"count": 0}, "count=0 is outside 1 to 3"),
            ({"index": -1}, "index=-1 and count=3"),
            ({"index": 16382}, "index=16382 and count=3 are outside a table of at most 16384"),
            ({"index": 1 << 40}, "index=1099511627776"),
        ]
        for arguments, text in cases:
            for replace in (False, True):
                with pytest.raises(ValueError, match=text):
                    second.clone_buffers(source, **arguments, replace=replace)
        other: Any = second
        with pytest.raises(TypeError, match="RegisteredBuffers are needed to clone from, not list"):
            other.clone_buffers(numbered(3))
        with second.register_buffers(count=1, size=1):
            with pytest.raises(aiouring.ResourceBusyError, match="replace=True"):
                second.clone_buffers(source)
        second.clone_buffers(source, index=16381).unregister()
    with pytest.raises(aiouring.RingClosedError, match="to be cloned have been unregistered"):
        second.clone_buffers(source)


async def test_source_whose_ring_is_closed(new_ring: RingFactory) -> None:
    """Closing the source's ring unregisters it."""
    first, second = await new_ring(), await new_ring()
    source = first.register_buffers(numbered(1))
    await first.aclose()
    with pytest.raises(aiouring.RingClosedError):
        second.clone_buffers(source)


async def test_c1_source_of_another_thread(ring: aiouring.AsyncRing) -> None:
    """Both rings belong to the thread that clones; or the clone's ring is enabled later, by the thread that uses it."""
    results: list[Any] = []
    with ring.register_buffers(numbered(2)) as source:

        def clone_here() -> None:
            with Ring(2, cq_entries=4) as here:
                try:
                    here.clone_buffers(source)
                except aiouring.WrongContextError as error:
                    results.append(error)

        worker = Ring(2, cq_entries=4, disabled=True)
        clone = worker.clone_buffers(source, source_index=1)

        def use() -> None:
            worker.enable()
            with worker, clone[0] as buffer, open("/dev/zero", "rb") as zeros:
                worker.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=zeros.fileno(), offset=0)
                results.append(worker.wait())
                results.append(bytes(buffer.view))

        for work in (clone_here, use):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert isinstance(results[0], aiouring.WrongContextError)
        assert results[1:] == [[(1, 3, 0)], bytes(3)]


def test_without_a_loop(profile: TaskRun, file: int) -> None:
    """A Ring clones from a Ring, and replaces with tags of the caller's."""
    with Ring(4, cq_entries=8, task_run=profile) as first, Ring(4, cq_entries=8, task_run=profile) as second:
        source = first.register_buffers(numbered(2), tags=[5, 6])
        table = second.register_buffers(numbered(3, 100), tags=[7, 8, 9])
        assert second.clone_buffers(source, index=1, replace=True) is table
        assert sorted(completion.user_data for completion in second.submit()) == [8, 9]
        source.unregister()
        assert sorted(completion.user_data for completion in first.submit()) == [5, 6]
        with table[2] as buffer:
            second.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=file, offset=0)
            assert second.wait() == [(1, 3, 0)]
        table.unregister()
        assert second.submit() == [(7, 0, 0)]


# Two rings of one process that are charged differently: one made with CAP_IPC_LOCK, one without.
DIFFERENT_RIGHTS = """
import os
import aiouring

with aiouring.Ring(2, cq_entries=4) as first, first.register_buffers(count=1, size=1) as source:
    os.setgroups([])
    os.setresuid(60_000, 60_000, 0)
    with aiouring.Ring(2, cq_entries=4) as second:
        try:
            second.clone_buffers(source)
        except OSError as error:
            print(error.errno, error)
    os.setresuid(0, 0, 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_rings_of_different_rights() -> None:
    """What the kernel calls EINVAL is said in words: the two rings are not charged alike."""
    done = subprocess.run([sys.executable, "-c", DIFFERENT_RIGHTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{errno.EINVAL} ")
    assert "both rings must have been made by the same user" in done.stdout


def test_a_kernel_without_clones() -> None:
    """EINVAL from a kernel that does not know the call names the version; other errors stay the kernel's."""
    with Ring(2, cq_entries=4) as ring:
        assert isinstance(clone_error(ring, -errno.ENOMEM), OSError)
        assert isinstance(clone_error(ring, -errno.EINVAL), OSError)
        ring.close()  # no answer at all, as little as from an old kernel
        error = clone_error(ring, -errno.EINVAL)
        assert isinstance(error, aiouring.UnsupportedKernelError)
        assert "Linux 6.12" in str(error)
