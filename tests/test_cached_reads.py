"""Tests of reads without a request: the same bytes and errors, never a wait, and nobody else kept waiting for long."""

import asyncio
import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring import _cached_reads
from aiouring._open import open_raw
from aiouring._raw_file import PIECE, RawFile
from aiouring._uring import ffi, lib

CONTENT = random.Random(11).randbytes(3 * PIECE + 12_345)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that was just written, and so is in the page cache."""
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


async def submitted(ring: aiouring.AsyncRing, work: Any) -> tuple[int, Any]:
    """How many requests something took, and what it returned."""
    before = ring._bound().ring.raw.submitted
    result = await work
    return ring._bound().ring.raw.submitted - before, result


async def test_what_is_in_the_page_cache_takes_no_request(ring: aiouring.AsyncRing, path: Path) -> None:
    """Positional reads and large ones at the position are answered at once; the end of the file needs a request."""
    async with aiouring.open(path, "rb", ring=ring) as file:
        await ring.nop()  # a turn, which opening need not have ended with
        assert await submitted(ring, file.read_at(5000, 77)) == (0, CONTENT[77:5077])
        assert await submitted(ring, file.read(65_536)) == (0, CONTENT[:65_536])
        assert await submitted(ring, file.read(65_536)) == (0, CONTENT[65_536:131_072])
        count, data = await submitted(ring, file.read_at(5000, len(CONTENT) - 10))
        assert (count, data) == (1, CONTENT[-10:])
        assert await file.read_at(10, len(CONTENT)) == b""
        await file.seek(0)
        assert await file.read() == CONTENT


async def test_others_have_their_turn(ring: aiouring.AsyncRing, path: Path) -> None:
    """A task that only reads lets the loop go on after AU_CACHED_MAX bytes, however small its reads."""
    async with aiouring.open(path, "rb", ring=ring) as file:
        at: list[int] = []
        reads = 0

        async def others() -> None:
            while True:
                at.append(reads)
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        for size, count in ((100, 4000), (65_536, 200)):
            at.clear()
            reads = 0
            for reads in range(count):
                assert len(await file.read_at(size, 100 * (reads % 1000))) == size
            steps = [after - before for before, after in itertools.pairwise(at)]
            assert steps
            assert max(steps) <= lib.AU_CACHED_MAX // size + 2
            assert max(steps) <= lib.AU_CACHED_MAX // 4096 + 2
        at.clear()
        for _ in range(300):
            reads += 1
            if not await file.read(65_536):
                await file.seek(0)
        steps = [after - before for before, after in itertools.pairwise(at)]
        assert steps
        assert max(steps) <= lib.AU_CACHED_MAX // 65_536 + 2
        task.cancel()


async def test_what_waits_for_its_turn_needs_no_request(ring: aiouring.AsyncRing, path: Path) -> None:
    """More than one turn gives away, by one reader and by many: the page cache has all of it."""
    size = 100_000
    async with aiouring.open(path, "rb", ring=ring) as file:
        await ring.nop()

        async def read() -> None:
            for number in range(20):
                offset = number * size % (len(CONTENT) - size)
                assert await file.read_at(size, offset) == CONTENT[offset : offset + size]

        assert await submitted(ring, read()) == (0, None)
        assert (await submitted(ring, asyncio.gather(*(read() for _ in range(8)))))[0] == 0


async def test_h2_closed_while_it_waits_for_its_turn(ring: aiouring.AsyncRing, path: Path, tmp_path: Path) -> None:
    """The number is another file's by then, and is read by nobody."""
    (tmp_path / "other").write_bytes(b"secret" * 100_000)
    raw = RawFile(ring, os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path), os.O_RDONLY)
    await raw.look()
    for _ in range(5):
        await asyncio.sleep(0)  # no turn is due any more
    memory = ffi.new("char[]", 65_536)
    while raw.take_cached(memory, 65_536, 0, 65_536, 0) != lib.AU_FULL:
        pass
    reading = [asyncio.create_task(read(100, 0)) for read in (raw.read_at, raw.read_some)]
    await asyncio.sleep(0)
    number = raw.fd
    raw._close_at_once()
    other = os.open(tmp_path / "other", os.O_RDONLY)
    assert other == number
    for task in reading:
        with pytest.raises(ValueError, match="closed file"):
            await task
    os.close(other)


def unreliable(choose: random.Random) -> Callable[..., int]:
    """A page cache that has now this and now that."""

    def read(ring: Any, fd: int, memory: Any, capacity: int, start: int, length: int, offset: int, waited: bool) -> int:
        answer = choose.choice([0, -errno.EAGAIN, -errno.EINTR, -errno.EIO, lib.AU_FULL, 1, 1, 1, 1])
        if answer <= 0:
            return answer
        return lib.au_read_cached(ring, fd, memory, capacity, start, choose.randint(1, length), offset, waited)

    return read


async def test_g9_whatever_is_in_the_page_cache(
    ring: aiouring.AsyncRing, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts, nothing, or what older kernels took for the end of the file: the bytes are the right ones, all of them."""
    choose = random.Random(12)
    monkeypatch.setattr(_cached_reads, "_read_cached", unreliable(choose))
    async with aiouring.open(path, "rb", ring=ring) as file:
        position = 0
        for _ in range(300):
            size, offset = choose.choice([1, 4096, 40_000, PIECE, 2 * PIECE + 1]), choose.randrange(len(CONTENT))
            assert await file.read_at(size, offset) == CONTENT[offset : offset + size]
            if choose.random() < 0.1:
                position = await file.seek(choose.randrange(len(CONTENT)))
            data = await file.read(size)
            assert data == CONTENT[position : position + size]
            position += len(data)
            assert await file.tell() == position


async def test_what_is_not_there_is_fetched(ring: aiouring.AsyncRing, path: Path) -> None:
    """Pages that were dropped from the page cache are read by requests."""
    async with aiouring.open(path, "rb", ring=ring) as file:
        for _ in range(3):
            os.sync()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            offset = 200_000
            assert await file.read_at(300_000, offset) == CONTENT[offset : offset + 300_000]
            await file.seek(0)
            assert b"".join([await file.read(100_000) for _ in range(20)]) == CONTENT


async def test_what_is_always_requested(ring: aiouring.AsyncRing, path: Path) -> None:
    """Files around the page cache, those of workers, and those of file systems that cannot do it."""
    async with aiouring.open(path, "rb", ring=ring, background=True) as file:
        assert not file._raw.cached
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    async with aiouring.open(fd, "rb", ring=ring) as file:  # of its descriptor we know nothing
        assert not file._raw.cached
    async with aiouring.open("/proc/version", "rb", ring=ring) as file:
        assert file._raw.cached
        assert await file.read_at(5, 0) == b"Linux"
        assert not file._raw.cached


async def test_a_closed_file_is_not_read(ring: aiouring.AsyncRing, path: Path, tmp_path: Path) -> None:
    """The number may be another file's by then."""
    raw = RawFile(ring, os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path), os.O_RDONLY)
    await raw.look()
    await raw.aclose()
    (tmp_path / "other").write_bytes(b"secret")
    other = os.open(tmp_path / "other", os.O_RDONLY)
    for read in (raw.read_at(6, 0), raw.read_some(6, 0)):
        with pytest.raises(ValueError, match="closed file"):
            await read
    assert await raw.read_cached(6, 0) == b""
    os.close(other)


async def test_bounds(ring: aiouring.AsyncRing, path: Path) -> None:
    """The C core writes to no byte outside of the memory that it was given, and says what is wrong."""
    driver = ring._bound()
    memory = ffi.new("char[]", 10)
    with path.open("rb") as file:
        for start, length in ((-1, 5), (0, 11), (8, 3), (11, 0), (1, 1 << 62), (0, -1)):
            assert (
                lib.au_read_cached(driver.ring.raw, file.fileno(), memory, 10, start, length, 0, 0) == lib.AU_BAD_LENGTH
            )
        assert lib.au_read_cached(driver.ring.raw, file.fileno(), memory, 10, 0, 5, -1, 0) == lib.AU_BAD_OFFSET
        assert lib.au_read_cached(driver.ring.raw, file.fileno(), memory, 10, 3, 5, 0, 0) == 5
    assert bytes(ffi.buffer(memory, 10)) == bytes(3) + CONTENT[:5] + bytes(2)
    thread = asyncio.to_thread(lib.au_read_cached, driver.ring.raw, 0, memory, 10, 0, 5, 0, 0)
    assert await thread == lib.AU_WRONG_THREAD


async def test_h1_closed_while_it_is_looked_at(
    ring: aiouring.AsyncRing, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asked how long the file is hears that it was closed; nothing is read of who has the number by then."""
    raw = await open_raw(path, os.O_RDONLY, ring)
    fd, statx, closing = raw.fd, ring.statx, list[asyncio.Task[None]]()

    async def closed_meanwhile(*arguments: Any) -> Any:
        found = await statx(*arguments)
        closing.append(asyncio.create_task(raw.aclose()))
        while not raw.closed:
            await asyncio.sleep(0)
        return found

    monkeypatch.setattr(ring, "statx", closed_meanwhile)
    (tmp_path / "another").write_bytes(b"another's")
    with pytest.raises(ValueError, match="closed file"):
        await raw.look()
    await closing[0]
    with (tmp_path / "another").open("rb") as another:
        assert another.fileno() == fd
        with pytest.raises(ValueError, match="closed file"):
            await raw.read_at(9, 0)
