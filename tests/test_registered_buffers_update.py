"""Tests of sparse tables and in-place updates: filling, replacing, removing, and what a kernel that stops has done."""

import asyncio
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import settle

import aiouring
from aiouring import Opcode, Ring
from aiouring._setup import TaskRun


@pytest.fixture
def unpinnable(tmp_path: Path) -> Iterator[mmap.mmap]:
    """Memory that Python can write to and the kernel cannot pin: a shared mapping of a real file."""
    (tmp_path / "mapped").write_bytes(bytes(8192))
    with (tmp_path / "mapped").open("r+b") as file:
        if os.major(os.fstat(file.fileno()).st_dev) == 0:
            pytest.skip(f"{tmp_path} is not on a disk's file system")
        with mmap.mmap(file.fileno(), 8192) as mapping:
            yield mapping


# ---- sparse ------------------------------------------------------------------------------------


async def test_sparse_table(ring: aiouring.AsyncRing) -> None:
    """A sparse table starts empty, and its slots are filled in any order."""
    with ring.register_buffers_sparse(4) as table:
        assert repr(table) == "<RegisteredBuffers 4 x 0 bytes, 0 free>"
        assert table.try_acquire() is None
        assert table.update(2, [bytearray(b"two")]) == []
        assert table.update(0, [bytearray(b"zero"), None]) == []
        assert table.sizes == [4, 0, 3, 0]
        assert table.statistics() == aiouring.RegisteredBuffersStatistics(4, 4, in_use=0, high_water=0, waiting=0)
        with table[0] as zero, table[2] as two, open("/dev/zero", "rb") as zeros:
            assert (bytes(zero.view), bytes(two.view)) == (b"zero", b"two")
            assert await ring.read_fixed(zeros, two, 0) == 3
            assert bytes(two.view) == bytes(3)
            assert table.try_acquire() is None
        await table.remove(0).wait()
        with await table.acquire() as buffer:
            assert buffer.index == 2


async def test_filling_serves_who_waits(ring: aiouring.AsyncRing) -> None:
    """Who waits for a buffer of an empty table gets the one that fills a slot, in order."""
    with ring.register_buffers_sparse(2) as table:
        waiters = [asyncio.create_task(table.acquire()) for _ in range(3)]
        await settle(ring)
        table.update(0, [bytearray(1), bytearray(2)])
        first, second = await waiters[0], await waiters[1]
        assert {first.index, second.index} == {0, 1}
        assert not waiters[2].done()
        first.release()
        third = await waiters[2]
        third.release()
        second.release()


async def test_largest_sparse_table(ring: aiouring.AsyncRing) -> None:
    """16384 slots are the most, and the last of them can be used; beyond is refused before any system call."""
    for count in (0, 16385):
        with pytest.raises(ValueError, match=f"count={count} is outside 1 to 16384"):
            ring.register_buffers_sparse(count)
    with ring.register_buffers_sparse(16384) as table:
        with pytest.raises(aiouring.ResourceBusyError, match="one table"):
            ring.register_buffers_sparse(1)
        table.update(16383, [bytearray(b"data")])
        with table[16383] as buffer, open("/dev/zero", "rb") as zeros:
            assert await ring.read_fixed(zeros, buffer, 0, length=3) == 3
            assert bytes(buffer.view) == b"\0\0\0a"


# ---- replacing ---------------------------------------------------------------------------------


async def test_replacing(ring: aiouring.AsyncRing) -> None:
    """A slot's new buffer has its own memory and size; the neighbours stay."""
    memories = [bytearray(b"a"), bytearray(b"bb"), bytearray(b"ccc")]
    with ring.register_buffers(memories) as table:
        retired = table.update(1, [bytearray(b"four")])
        assert [list(each.indexes) for each in retired] == [[1]]
        assert table.sizes == [1, 4, 3]
        for index, text in enumerate((b"a", b"four", b"ccc")):
            with table[index] as buffer:
                assert bytes(buffer.view) == text
        await retired[0].wait()
        memories[1].append(1)


async def test_arena_slots_can_be_replaced(ring: aiouring.AsyncRing) -> None:
    """Memory of the ring's own making gives way to the caller's, buffer by buffer."""
    with ring.register_buffers(count=3, size=10) as table:
        table.update(0, [bytearray(b"mine")])
        async with await table.acquire() as one, await table.acquire() as two, await table.acquire() as three:
            assert sorted(len(buffer) for buffer in (one, two, three)) == [4, 10, 10]
        assert table.statistics().high_water == 3


async def test_m8_lease_of_a_replaced_buffer(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """It is plain memory: what is in flight lands there, `read` takes it, the fixed verbs do not; the slot is free."""
    old = bytearray(10)
    with ring.register_buffers([old]) as table:
        lease = table[0]
        task = asyncio.create_task(ring.read_fixed(pipe[0], lease))
        await settle(ring)
        (retired,) = table.update(0, [bytearray(b"new buffer")])
        with table[0] as fresh:
            for verb in (ring.read_fixed, ring.write_fixed):
                with pytest.raises(ValueError, match="buffer 0 has been replaced or removed"):
                    await verb(pipe[0], lease)
            with pytest.raises(ValueError, match="buffer 0 has been replaced or removed"):
                await ring.readv_fixed(pipe[0], lease, [(0, 1)])
            with pytest.raises(aiouring.ResourceBusyError, match="buffer 0 is in use by 1 request"):
                lease.release()
            os.write(pipe[1], b"data")
            assert await task == 4
            assert (bytes(old[:4]), bytes(fresh.view)) == (b"data", b"new buffer")
            os.write(pipe[1], b"more")
            assert await ring.read(pipe[0], lease) == 4
            assert old[:4] == b"more"
            lease.release()
            assert table.statistics().in_use == 1
            with pytest.raises(aiouring.ResourceBusyError, match="lent already"):
                table[0]
        await retired.wait()
        assert table.statistics().in_use == 0


async def test_held_up_views_of_a_replaced_buffer(ring: aiouring.AsyncRing) -> None:
    """A slice of the old buffer that outlives its lease does not hand the new buffer to anybody when it dies."""
    with ring.register_buffers([bytearray(4)]) as table:
        parts = []
        with pytest.raises(KeyError):
            with table[0] as lease:
                parts.append(lease.view[1:])
                raise KeyError
        table.update(0, [bytearray(5)])
        with table[0] as fresh:
            parts.clear()
            assert table.try_acquire() is None
            assert len(fresh) == 5
        assert table.statistics().in_use == 0


async def test_what_is_queued_goes_first(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A request of the same turn of the loop, not yet submitted, still gets the buffer it named."""
    (tmp_path / "file").write_bytes(b"data")
    with (tmp_path / "file").open("rb") as file:
        for leave in ("update", "remove", "unregister"):
            memory = bytearray(4)
            table = ring.register_buffers([memory])
            lease = table[0]
            task = asyncio.create_task(ring.read_fixed(file, lease, 0))
            await asyncio.sleep(0)
            if leave == "update":
                table.update(0, [bytearray(4)])
            elif leave == "remove":
                table.remove(0)
            else:
                table.unregister()
            assert await task == 4
            assert memory == b"data"
            lease.release()
            table.unregister()


async def test_no_number_is_enough(ring: aiouring.AsyncRing) -> None:
    """Many replacements of one slot, with memory of changing size, all come true."""
    file = os.memfd_create("file")
    os.write(file, b"x" * 100)
    with ring.register_buffers_sparse(1) as table:
        retired = []
        for size in [*range(1, 60), *range(60, 0, -1)]:
            retired += table.update(0, [bytearray(size)])
            with table[0] as buffer:
                assert await ring.read_fixed(file, buffer, 0) == size
                assert bytes(buffer.view) == b"x" * size
        for each in retired:
            await each.wait()
        assert len(retired) == 118
    os.close(file)


# ---- what is refused ---------------------------------------------------------------------------


async def test_slots_outside(ring: aiouring.AsyncRing) -> None:
    """Slots that the table does not have are refused with the numbers; so is removing from an empty one."""
    with ring.register_buffers_sparse(3) as table:
        for index, count in ((3, 1), (2, 2), (-1, 1), (0, 4), (1 << 40, 1), (0, 0)):
            with pytest.raises(ValueError, match=rf"index={index} and {count} buffer\(s\) are outside .* 3 slots"):
                table.update(index, [bytearray(1)] * count)
        for index in (0, 3, -1):
            with pytest.raises(ValueError, match=f"slot {index} has no buffer"):
                table.remove(index)
        assert table.sizes == [0, 0, 0]
    for use in (lambda: table.update(0, [bytearray(1)]), lambda: table.remove(0)):
        with pytest.raises(aiouring.RingClosedError, match="unregistered"):
            use()


async def test_partial_update(ring: aiouring.AsyncRing, unpinnable: mmap.mmap) -> None:
    """The kernel stops at the first it refuses: which slots changed, and what left them, is reported exactly."""
    before = [bytearray(b"%d" % number) for number in range(4)]
    table = ring.register_buffers(before)
    with pytest.raises(aiouring.PartlyUpdatedError, match="slot 2: Bad address: buffer 2 lies in a shared") as caught:
        table.update(0, [bytearray(b"new"), None, unpinnable, bytearray(b"never")])
    error = caught.value
    assert (error.errno, error.changed) == (errno.EFAULT, range(2))
    assert "slots 0 to 1 were replaced" in str(error)
    assert [list(each.indexes) for each in error.retired] == [[0], [1]]
    assert table.sizes == [3, 0, 1, 1]
    for each in error.retired:
        await each.wait()
    for index in (2, 3):
        with table[index] as buffer:
            assert bytes(buffer.view) == before[index]
        with pytest.raises(BufferError):
            before[index].append(1)
    before[0].append(1)
    assert table.statistics().in_use == 0
    del caught, error
    await table.unregister().wait()
    for memory in before:
        memory.append(1)


async def test_refused_update_changes_nothing(ring: aiouring.AsyncRing, unpinnable: mmap.mmap) -> None:
    """Where the kernel refuses the first buffer, nothing has changed, and the error is a plain OSError."""
    with ring.register_buffers([bytearray(b"old"), bytearray(b"too")]) as table:
        with pytest.raises(OSError, match="slot 1: Bad address: buffer 1 lies in") as caught:
            table.update(1, [unpinnable])
        assert type(caught.value) is OSError
        assert table.sizes == [3, 3]
        with table[1] as buffer:
            assert bytes(buffer.view) == b"too"
        del caught
    await settle(ring)
    assert ring.statistics().strays == 0


async def test_an_old_kernel(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.13 nothing can be replaced, and the error says so before anything has changed."""
    without = aiouring.Features(0)
    with ring.register_buffers(count=1, size=4) as table:
        monkeypatch.setattr(type(ring._ring), "features", property(lambda _: without))
        with pytest.raises(aiouring.UnsupportedKernelError, match=r"needs Linux 5\.13"):
            table.update(0, [bytearray(1)])
    with ring.register_buffers(count=1, size=4) as plain:
        assert plain._tags == [0]
        assert plain.unregister().done is None


# ---- on a ring without a loop ------------------------------------------------------------------


def test_without_a_loop(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """A Ring has the same tables; its caller reaps the requests."""
    with Ring(8, cq_entries=16, task_run=profile) as ring, ring.register_buffers_sparse(2) as table:
        memories: list[Any] = [bytearray(4), bytearray(4)]
        assert table.update(0, memories, tags=[0, 9]) == []
        with table[0] as first, table[1] as second:
            for number, buffer in enumerate((first, second)):
                ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=number, fd=pipe[0])
                ring.submit()
            (silent,), (tagged,) = table.update(0, [None]), table.update(1, [None])
            os.write(pipe[1], b"datamore")
            found = ring.wait(3)
            assert sorted(found[:2]) == [(0, 4, 0), (1, 4, 0)]
            assert found[2:] == [(9, 0, 0)]
            assert (silent.done, tagged.done) == (None, True)
            assert sorted(memories) == [b"data", b"more"]
