"""Tests of writing behind: bounded, in order where order matters, and no error swallowed."""

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from file_systems import mounted

import aiouring
from aiouring._errors import note_written
from aiouring._raw_file import RawFile
from aiouring._write_behind import BLOCK, LIMIT, WriteBehind


class Failing(RawFile):
    """A raw file whose writes can be held up, or fail from some place in the file on."""

    def __init__(self, ring: aiouring.AsyncRing, path: Path, flags: int = 0) -> None:
        flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        super().__init__(ring, os.open(path, flags), str(path), flags)
        self.full = 1 << 60
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = self.most = 0
        self.writes: list[tuple[int, int]] = []

    async def write_at(self, data: Any, offset: int) -> int:
        """As RawFile's."""
        self.writes.append((offset, len(data)))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            if offset + len(data) > self.full:
                fits = max(self.full - offset, 0)
                await super().write_at(memoryview(data)[:fits], offset)
                error = OSError(errno.ENOSPC, "full")
                note_written(error, fits)
                raise error
            return await super().write_at(data, offset)
        finally:
            self.now -= 1


@pytest.fixture
async def raw(ring: aiouring.AsyncRing, tmp_path: Path) -> Any:
    """An empty file."""
    file = Failing(ring, tmp_path / "file")
    await file.look()
    yield file
    await file.aclose()


async def test_small_writes_are_gathered(raw: Failing) -> None:
    """Many small writes become few large ones, and nothing is written before there is a block, or flush()."""
    behind = WriteBehind(raw)
    data = random.Random(7).randbytes(2 * BLOCK + 500)
    for at in range(0, len(data), 100):
        await behind.room()
        behind.accept(data[at : at + 100], at)
    assert len(raw.writes) == 0
    assert behind.unwritten == len(data)
    await behind.flush()
    assert len(raw.writes) == 3
    assert not behind.dirty
    assert Path(raw.name).read_bytes() == data


async def test_memory_of_the_callers(raw: Failing) -> None:
    """What is not bytes is copied: it may change when write() has returned."""
    behind = WriteBehind(raw)
    for size in (100, BLOCK):
        data = bytearray(b"a" * size)
        behind.accept(data, 0)
        data[:] = b"b" * size
        await behind.flush()
        assert Path(raw.name).read_bytes() == b"a" * size


async def test_it_is_bounded(raw: Failing) -> None:
    """Above the limit a writer waits, and cancelled there it has written nothing; below it, it goes on."""
    raw.gate.clear()
    behind = WriteBehind(raw)
    for at in range(0, LIMIT, BLOCK):
        assert behind.ready
        behind.accept(bytes(BLOCK), at)
    assert not behind.ready
    waiting = asyncio.create_task(behind.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert raw.most == raw.depth
    waiting.cancel()
    await asyncio.wait([waiting])
    waiting = asyncio.create_task(behind.room())
    raw.gate.set()
    await waiting
    assert behind.ready
    await behind.flush()
    assert Path(raw.name).stat().st_size == LIMIT


async def test_several_wait_for_progress(raw: Failing) -> None:
    """Each of those who wait is woken, also where another of them is cancelled."""
    raw.gate.clear()
    behind = WriteBehind(raw)
    behind.accept(bytes(BLOCK), 0)
    tasks = [asyncio.create_task(behind.flush()) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    await asyncio.sleep(0)
    raw.gate.set()
    assert [type(done) for done in await asyncio.gather(*tasks, return_exceptions=True)] == [
        type(None), asyncio.CancelledError, type(None)
    ]  # fmt: skip


async def test_a14_an_error_is_told_once_and_the_bytes_are_kept(raw: Failing) -> None:
    """The next call raises, with the exact count; when there is room again, everything is written."""
    data = random.Random(8).randbytes(6 * BLOCK)
    raw.full = 2 * BLOCK + 1000
    behind = WriteBehind(raw)
    for at in range(0, len(data), BLOCK):
        behind.accept(data[at : at + BLOCK], at)
    with pytest.raises(OSError, match="full") as caught:
        await behind.flush()
    assert aiouring.bytes_written(caught.value) == raw.full
    assert behind.dirty
    assert not behind.ready
    with pytest.raises(OSError, match="full") as caught:
        await behind.flush()
    assert aiouring.bytes_written(caught.value) == raw.full
    with pytest.raises(OSError, match="full"):
        await behind.finish()
    raw.full = 1 << 60
    await behind.flush()
    assert Path(raw.name).read_bytes() == data
    assert behind.ready
    raw.full = len(data)
    behind.accept(b"x" * 50, len(data))
    with pytest.raises(OSError) as caught:
        await behind.flush()
    assert aiouring.bytes_written(caught.value) == 0  # of what came since the last flush


async def test_several_who_hear_of_an_error(raw: Failing) -> None:
    """One of those who wait is told; the others find the bytes unwritten still, and are told when they try."""
    raw.full = 0
    behind = WriteBehind(raw)
    for at in range(0, 3 * BLOCK, BLOCK):
        behind.accept(bytes(BLOCK), at)
    done = await asyncio.gather(*(behind.flush() for _ in range(4)), return_exceptions=True)
    assert [type(each) for each in done] == [OSError] * 4
    raw.full = 1 << 60
    await behind.finish()
    assert Path(raw.name).stat().st_size == 3 * BLOCK


async def test_an_error_that_solves_itself(raw: Failing) -> None:
    """finish() tries again, and has nothing to tell where that helps."""
    raw.full = 0
    behind = WriteBehind(raw)
    behind.accept(bytes(BLOCK), 0)
    while raw.now or not raw.writes:
        await asyncio.sleep(0)
    raw.full = 1 << 60
    await behind.finish()
    assert Path(raw.name).stat().st_size == BLOCK


async def test_in_order_where_order_matters(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What is appended is written one block after the other."""
    raw = Failing(ring, tmp_path / "log", os.O_APPEND)
    await raw.look()
    behind = WriteBehind(raw, 1000)
    data = random.Random(9).randbytes(100_000)
    for at in range(0, len(data), 777):
        await behind.room()
        behind.accept(data[at : at + 777], at)
    await behind.flush()
    assert raw.most == 1
    assert Path(raw.name).read_bytes() == data
    await raw.aclose()


async def test_a14_cancelled_tasks_double_nothing(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A loop that ends cancels every task, those that write as well; who closes the file then appends nothing twice."""
    choose, whole = random.Random(10), b""
    async with aiouring.open(tmp_path / "log", "ab", ring=ring, background=True) as file:
        for number in range(60):
            data = bytes([number]) * BLOCK
            await file.write(data)
            whole += data
            for _ in range(choose.randrange(3)):
                await asyncio.sleep(0)
            for task in list(file._raw._tasks):
                task.cancel()
    assert (tmp_path / "log").read_bytes() == whole


async def test_a14_tasks_cancelled_before_they_began(raw: Failing) -> None:
    """A block whose task never ran a line is kept, and written in the end."""
    behind = WriteBehind(raw)
    behind.accept(b"x" * BLOCK, 0)
    for task in list(raw._tasks):
        task.cancel()
    async with asyncio.timeout(5):
        await behind.flush()
    assert Path(raw.name).read_bytes() == b"x" * BLOCK


async def test_room_after_a_cancelled_task(raw: Failing) -> None:
    """Who waits for room has blocks tried again whose tasks were cancelled, and does not wait for ever."""
    raw.gate.clear()
    behind = WriteBehind(raw)
    for at in range(0, LIMIT, BLOCK):
        behind.accept(bytes(BLOCK), at)
    waiting = asyncio.create_task(behind.room())
    await asyncio.sleep(0.01)
    for task in list(raw._tasks):
        task.cancel()
    raw.gate.set()
    async with asyncio.timeout(5):
        await waiting
        await behind.flush()
    assert Path(raw.name).stat().st_size == LIMIT


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_g1_disk_full(ring: aiouring.AsyncRing, tmp_path: Path, buffering: int) -> None:
    """On a full disk a file's writes, flush and close raise ENOSPC with the name; what fits is there; it is closed.

    Where several blocks were in flight one behind the first that failed may have taken the last of the room: what
    `bytes_written()` counts is what is there without a gap.
    """
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1500k") as small:
        path = small / "file"
        file = await aiouring.open(path, "wb", buffering, ring=ring)
        with pytest.raises(OSError) as caught:
            for _ in range(30):
                await file.write(b"x" * 100_000)
            await file.flush()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
        if buffering:
            content = path.read_bytes()
            assert aiouring.bytes_written(caught.value) == len((content + b"\0").split(b"\0")[0]) > 0
            assert content.count(b"x") + file._behind.unwritten == file._behind._sequence
            with pytest.raises(OSError) as caught:
                await file.close()
            assert caught.value.errno == errno.ENOSPC
        await file.close()
        assert file.closed
        assert file._raw.closed


async def test_close_that_is_cancelled(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A close that waits for the disk can be cancelled: then the file is closed without the rest."""
    raw = Failing(ring, tmp_path / "file")
    await raw.look()
    raw.gate.clear()
    file = aiouring.BinaryFile(raw, "wb", -1)
    await file.write(bytes(BLOCK))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await file.close()
    assert raw.closed
