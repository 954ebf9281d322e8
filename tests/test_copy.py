"""Tests of copying a file: the same bytes, whatever its length, and what happens when something goes wrong."""

import asyncio
import errno
import os
import random
import threading
from functools import partial
from pathlib import Path
from shutil import SameFileError

import pytest
from conftest import open_files
from file_systems import loop_device, mounted

import aiouring
from aiouring import _copy
from aiouring._copy import BLOCK
from aiouring._thread_descriptor import ThreadDescriptor

CONTENT = random.Random(20).randbytes(20 * BLOCK + 777)


def note(told: list[tuple[int, int]], done: int, total: int) -> None:
    """Progress."""
    told.append((done, total))


direct_or_not = pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])


@direct_or_not
async def test_lengths(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """Files of any length are copied whole, over what was there; progress is told, and gets to the end."""
    source, target = tmp_path / "source", tmp_path / "target"
    target.write_bytes(CONTENT + b"more")
    for size in (len(CONTENT), 0, 1, 511, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK):
        source.write_bytes(CONTENT[:size])
        told: list[tuple[int, int]] = []
        count = await aiouring.copy_file(source, target, direct=direct, ring=ring, progress=partial(note, told))
        assert count == size
        assert target.read_bytes() == CONTENT[:size]
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1:] == ([(size, size)] if size else [])
        assert len(told) == -(-size // BLOCK)


async def test_files_that_do_not_say_how_long_they_are(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Files of /proc are copied up to their end; pipes are refused."""
    count = await aiouring.copy_file("/proc/cpuinfo", tmp_path / "copy", ring=ring)
    assert count == (tmp_path / "copy").stat().st_size > 0
    os.mkfifo(tmp_path / "fifo")
    held = os.open(tmp_path / "fifo", os.O_RDWR)
    with pytest.raises(OSError, match="cannot seek") as caught:
        await aiouring.copy_file(tmp_path / "fifo", tmp_path / "copy", ring=ring)
    assert caught.value.filename == str(tmp_path / "fifo")
    os.close(held)


async def test_one_file(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A file is not copied onto itself, by whatever name: it would be lost."""
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(SameFileError):
            await aiouring.copy_file(tmp_path / "file", tmp_path / name, ring=ring)
    assert (tmp_path / "file").read_bytes() == b"12345"


@direct_or_not
async def test_g1_disk_full(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """The first error ends the copy, with the name of the file that is to blame, and both are closed."""
    (tmp_path / "source").write_bytes(CONTENT)
    before = len(open_files())
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1m") as small:
        with pytest.raises(OSError) as caught:
            await aiouring.copy_file(tmp_path / "source", small / "copy", direct=direct, ring=ring)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small / "copy"))
        with pytest.raises(FileNotFoundError) as missing:
            await aiouring.copy_file(small / "none", small / "copy", direct=direct, ring=ring)
        assert missing.value.filename == str(small / "none")
        with pytest.raises(IsADirectoryError):
            await aiouring.copy_file(tmp_path, small / "copy", direct=direct, ring=ring)
        assert len(open_files()) == before


@direct_or_not
async def test_progress_that_raises_and_cancellation(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """Either ends the copy at once, and everything is closed."""
    (tmp_path / "source").write_bytes(CONTENT)
    before = len(open_files())

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyError(done)

    with pytest.raises(KeyError):
        await aiouring.copy_file(tmp_path / "source", tmp_path / "copy", progress=stop, direct=direct, ring=ring)
    for turns in range(20):
        task = asyncio.create_task(aiouring.copy_file(tmp_path / "source", tmp_path / "copy", direct=direct, ring=ring))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert len(open_files()) == before


async def test_g6_the_source_becomes_shorter(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """The copy is as long as what was there to be read."""
    (tmp_path / "source").write_bytes(CONTENT)

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "source", 1000)

    count = await aiouring.copy_file(tmp_path / "source", tmp_path / "copy", progress=cut, ring=ring)
    assert count == (tmp_path / "copy").stat().st_size < len(CONTENT)


LAYOUTS = {
    "nothing": (40 * BLOCK + 5, []),
    "at the end": (3 * BLOCK + 99, [(3 * BLOCK, 99)]),
    "at both ends": (20 * BLOCK, [(0, 10), (20 * BLOCK - 4096, 4096)]),
    "small islands": (8 * BLOCK + 1, [(at * 65536, 4096) for at in range(32)]),
    "across blocks": (12 * BLOCK, [(BLOCK - 4096, 3 * BLOCK), (7 * BLOCK + 8192, 5), (9 * BLOCK, 2 * BLOCK)]),
    "large": (20 << 30, [(5 << 30, 100_000), (19 << 30, 1)]),
}


@direct_or_not
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_holes_stay_holes(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool, layout: str) -> None:
    """The copy of a sparse file reads the same, takes no more room, and is told of up to its end."""
    source, target = tmp_path / "source", tmp_path / "target"
    size, islands = LAYOUTS[layout]
    with source.open("wb") as made:
        made.truncate(size)
        for at, length in islands:
            made.seek(at)
            made.write(CONTENT[:length])
    target.write_bytes(CONTENT)
    told: list[tuple[int, int]] = []
    assert await aiouring.copy_file(source, target, direct=direct, ring=ring, progress=partial(note, told)) == size
    assert target.stat().st_size == size
    assert target.stat().st_blocks <= source.stat().st_blocks + 8
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (size, size)
    with source.open("rb") as one, target.open("rb") as other:
        for at in {0, size - 5000, *(at - 4000 for at, _ in islands)}:
            for file in (one, other):
                file.seek(max(at, 0))
            assert one.read(2 * BLOCK + 10_000) == other.read(2 * BLOCK + 10_000)


async def test_a_device_gets_its_zeros(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What is copied to a device is all there: holes are written, for something else may be in their place."""
    source, image = tmp_path / "source", tmp_path / "image"
    with source.open("wb") as file:
        file.truncate(8 * BLOCK)
    image.write_bytes(CONTENT[: 8 * BLOCK])
    with loop_device(image) as device:
        assert await aiouring.copy_file(source, device, ring=ring) == 8 * BLOCK
        await aiouring.sync_directory(tmp_path, ring=ring)
    assert image.read_bytes() == bytes(8 * BLOCK)


@direct_or_not
async def test_a_sparse_file_that_changes(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """One that is cut off meanwhile gives a copy as long as what was there; one that grows, all of it."""
    source, target = tmp_path / "source", tmp_path / "target"
    for become in (10, 5 * BLOCK + 7, 80 * BLOCK):
        with source.open("wb") as file:
            file.truncate(40 * BLOCK)
            for at in range(0, 40, 2):
                file.seek(at * BLOCK)
                file.write(CONTENT[:1000])
        once = [become]

        def change(done: int, total: int, once: list[int] = once) -> None:
            if once:
                os.truncate(source, once.pop())

        count = await aiouring.copy_file(source, target, progress=change, direct=direct, ring=ring)
        assert count == target.stat().st_size
        assert become <= count <= max(become, 40 * BLOCK)
        assert target.read_bytes()[:become] == source.read_bytes()


@direct_or_not
async def test_cut_off_before_an_island(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """Where the file ends before what was taken for data, the copy is as long as it says: the rest is a hole."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(9 * BLOCK)
        file.write(CONTENT[:5000])
        file.seek(8 * BLOCK)
        file.write(CONTENT[:5000])
    async with aiouring.open(source, "rb", direct=direct, ring=ring) as reader:
        async with aiouring.open(target, "wb", direct=direct, ring=ring) as writer:
            with ThreadDescriptor(os.open(source, os.O_RDONLY)) as seeking:
                copying = _copy._Copy(reader._raw, writer._raw, seeking, None)
                assert await copying._next() == (0, 8192)
                assert await copying._copy(0, 8192) == 8192
                piece = await copying._next()
                assert piece == (8 * BLOCK, 8192)
                os.truncate(source, 8192)
                assert await copying._copy(*piece) == 0
                assert writer._raw.size == 8192 == target.stat().st_size
                copying._end = 8 * BLOCK
                assert await copying.run() == 8 * BLOCK == target.stat().st_size
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_cancelled_while_it_asks_for_holes(
    ring: aiouring.AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is asking when the copy is cancelled keeps its descriptor, and closes it."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(fd: int, offset: int) -> tuple[int, int]:
        begun.set()
        go_on.wait(5)
        return os.lseek(fd, 0, os.SEEK_CUR), 5

    monkeypatch.setattr(_copy, "_data_from", slow)
    with (tmp_path / "source").open("wb") as file:
        file.truncate(BLOCK)
    task = asyncio.create_task(aiouring.copy_file(tmp_path / "source", tmp_path / "copy", ring=ring))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert str(tmp_path / "source") in open_files().values()
    go_on.set()
    while str(tmp_path / "source") in open_files().values():
        await asyncio.sleep(0.001)
    await asyncio.get_running_loop().shutdown_default_executor()
