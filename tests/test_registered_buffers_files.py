"""Tests of fixed reads and writes on real files: direct and buffered, short at the end, and across pages."""

import asyncio
import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiouring

BLOCK = 4096
CONTENTS = random.Random(5).randbytes(64 * BLOCK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 64 blocks of noise."""
    found = tmp_path / "file"
    found.write_bytes(CONTENTS)
    return found


@pytest.fixture
def direct(path: Path) -> Iterator[int]:
    """The file, opened around the page cache."""
    try:
        number = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"{path} cannot be opened with O_DIRECT: {error}")
    yield number
    os.close(number)


async def test_direct_reads_and_writes(ring: aiouring.AsyncRing, direct: int) -> None:
    """Around the page cache, fixed and vectored requests move the same bytes as plain ones do."""
    choose = random.Random(6)
    model = bytearray(CONTENTS)
    arena = mmap.mmap(-1, 16 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with ring.register_buffers([arena]) as table, table[0] as buffer:
        for _ in range(60):
            start, length = choose.randrange(8) * BLOCK, choose.randint(1, 8) * BLOCK
            offset = choose.randrange(56) * BLOCK
            if choose.random() < 0.5:
                assert await ring.read_fixed(direct, buffer, offset, start=start, length=length) == length
                assert arena[start : start + length] == model[offset : offset + length]
            else:
                ranges = [(start, length // 2 // BLOCK * BLOCK or BLOCK), (15 * BLOCK, BLOCK)]
                text = b"".join(arena[first : first + size] for first, size in ranges)
                assert await ring.writev_fixed(direct, buffer, ranges, offset) == len(text)
                model[offset : offset + len(text)] = text
        assert Path(f"/proc/self/fd/{direct}").read_bytes() == model


async def test_g5_direct_and_misaligned(ring: aiouring.AsyncRing, direct: int) -> None:
    """Direct reads that do not start or end on a block are the kernel's EINVAL; the buffer stays usable."""
    with ring.register_buffers(count=1, size=2 * BLOCK) as table, await table.acquire() as buffer:
        for start, length, offset in ((1, BLOCK, 0), (0, 100, 0), (0, BLOCK, 1)):
            with pytest.raises(OSError) as caught:
                await ring.read_fixed(direct, buffer, offset, start=start, length=length)
            assert caught.value.errno == errno.EINVAL
        assert await ring.read_fixed(direct, buffer, BLOCK) == 2 * BLOCK
        assert buffer.view == CONTENTS[BLOCK : 3 * BLOCK]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
async def test_short_read_at_the_end(ring: aiouring.AsyncRing, path: Path, flags: int) -> None:
    """A read that reaches beyond the end returns what is there; the rest is untouched, or zeroed by a direct read."""
    with path.open("ab") as file:
        file.write(b"tail" * 100)
    try:
        number = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        pytest.skip(f"{path} cannot be opened with O_DIRECT: {error}")
    with ring.register_buffers(count=1, size=4 * BLOCK) as table, await table.acquire() as buffer:
        buffer.view[:] = b"." * (4 * BLOCK)
        assert await ring.read_fixed(number, buffer, 63 * BLOCK) == BLOCK + 400
        assert buffer.view[BLOCK : BLOCK + 400] == b"tail" * 100
        assert bytes(buffer.view[2 * BLOCK :]) in (b"." * (2 * BLOCK), bytes(2 * BLOCK))
        assert flags or bytes(buffer.view[BLOCK + 400 :]) == b"." * (3 * BLOCK - 400)
        assert await ring.read_fixed(number, buffer, 64 * BLOCK, length=BLOCK) == 400
        assert await ring.read_fixed(number, buffer, 65 * BLOCK) == 0
    os.close(number)


async def test_append_and_modes(ring: aiouring.AsyncRing, path: Path) -> None:
    """A file opened for appending is appended to wherever the offset; one in the wrong mode is EBADF."""
    with ring.register_buffers([bytearray(b"more")]) as table, table[0] as buffer:
        with path.open("ab") as file:
            assert await ring.write_fixed(file, buffer, 0) == 4
            with pytest.raises(OSError) as caught:
                await ring.read_fixed(file, buffer, 0)
            assert caught.value.errno == errno.EBADF
        assert path.read_bytes() == CONTENTS + b"more"
        with path.open("rb") as file, pytest.raises(OSError) as caught:
            await ring.write_fixed(file, buffer, 0)
        assert caught.value.errno == errno.EBADF


async def test_devices_without_iterators(ring: aiouring.AsyncRing) -> None:
    """Character devices, which take memory in their own ways, work with fixed buffers too."""
    with ring.register_buffers(count=1, size=3 * BLOCK) as table, await table.acquire() as buffer:
        for name, reads in (("zero", 3 * BLOCK), ("null", 0), ("full", 3 * BLOCK)):
            with open(f"/dev/{name}", "r+b", buffering=0) as device:
                buffer.view[:] = b"x" * (3 * BLOCK)
                count = 0  # a device's read ends early where the kernel has something else to do
                while reads and count < reads:
                    count += await ring.read_fixed(device, buffer, 0, start=count)
                assert count or await ring.read_fixed(device, buffer, 0) == 0
                assert bytes(buffer.view[:reads]) == bytes(reads)
                if name == "full":
                    with pytest.raises(OSError) as caught:
                        await ring.write_fixed(device, buffer, 0)
                    assert caught.value.errno == errno.ENOSPC
                else:
                    assert await ring.write_fixed(device, buffer, 0) == 3 * BLOCK


async def test_every_start_and_end(ring: aiouring.AsyncRing, path: Path) -> None:
    """Buffers that start and end anywhere in their pages, many pages long, get exactly their bytes."""
    memory = mmap.mmap(-1, 40 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(memory)
    edges = [(1, 39 * BLOCK), (BLOCK - 1, BLOCK + 1), (7 * BLOCK + 5, 11 * BLOCK - 3), (0, 40 * BLOCK), (33, 34)]
    with path.open("rb") as file, ring.register_buffers([view[first:end] for first, end in edges]) as table:
        for index, (first, end) in enumerate(edges):
            for start, stop in ((0, end - first), (0, 1), ((end - first) // 2, end - first)):
                view[:] = b"." * len(view)
                with table[index] as buffer:
                    assert await ring.read_fixed(file, buffer, 17, start=start, length=stop - start) == stop - start
                low, high = first + start, first + stop
                assert view[low:high] == CONTENTS[17 : 17 + stop - start]
                assert bytes(view[:low]) == b"." * low
                assert bytes(view[high:]) == b"." * (len(view) - high)
    view.release()


async def test_m11_overlapping_parts(ring: aiouring.AsyncRing, path: Path) -> None:
    """Several requests into parts of one buffer may be in flight; parts that do not overlap come true."""
    with path.open("rb") as file, ring.register_buffers(count=1, size=32 * BLOCK) as table:
        async with await table.acquire() as buffer:
            parts = [
                asyncio.create_task(ring.read_fixed(file, buffer, at, start=at, length=100))
                for at in range(0, 3200, 100)
            ]
            await asyncio.sleep(0)
            assert buffer.pins == len(parts)
            assert sum(await asyncio.gather(*parts)) == 3200
            assert buffer.view[:3200] == CONTENTS[:3200]
            both = [ring.read_fixed(file, buffer, at, length=10) for at in (0, 1000)]
            assert await asyncio.gather(*both) == [10, 10]
            assert bytes(buffer.view[:10]) in (CONTENTS[:10], CONTENTS[1000:1010])
