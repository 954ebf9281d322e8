"""Tests of direct files: any offset and length, the same bytes as through the page cache, on every file system."""

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_systems import mounted

import aiouring
from aiouring import _direct_file
from aiouring._block_pool import SIZE
from aiouring._direct_file import DirectFile, together
from aiouring._raw_file import RawFile
from aiouring._request import Request

#: Bytes of the identity check; AIOURING_IDENTITY_MIB=1024 is what FAULTS.md asks for.
IDENTITY = int(os.environ.get("AIOURING_IDENTITY_MIB", "16")) << 20
CONTENT = random.Random(10).randbytes(3 * SIZE + 1234)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of known bytes, which ends within a page."""
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own on a loop device, where misalignment is refused (G5)."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    image, directory = tmp_path / "image", tmp_path / "ext4"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(directory)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


async def test_g5_any_offset_and_length(ring: aiouring.AsyncRing, ext4: Path) -> None:
    """Reads and writes that begin and end anywhere move exactly their bytes; the file is never longer than they say."""
    path = ext4 / "file"
    model = bytearray()
    choose = random.Random(11)
    async with aiouring.open(path, "w+b", direct=True, ring=ring) as file:
        assert isinstance(file._raw, DirectFile)
        edges = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, SIZE - 1, SIZE, SIZE + 1]
        for _ in range(120):
            offset = choose.choice([choose.choice(edges), len(model), choose.randrange(2 * SIZE)])
            data = choose.randbytes(choose.choice([choose.choice(edges), choose.randrange(9000)]))
            assert await file.write_at(data, offset) == len(data)
            if data:
                model[len(model) : offset] = bytes(max(0, offset - len(model)))
                model[offset : offset + len(data)] = data
            assert path.stat().st_size == len(model)
            offset, size = choose.choice([*edges, choose.randrange(len(model) + 1)]), choose.choice(edges)
            assert await file.read_at(size, offset) == model[offset : offset + size]
        await file.sync()
        assert path.read_bytes() == model


async def test_writes_that_share_pages(ring: aiouring.AsyncRing, ext4: Path) -> None:
    """Tasks that write neighbouring parts of one page at once do not undo each other's."""
    sizes = [random.Random(12).randrange(1, 9000) for _ in range(200)]
    data = random.Random(13).randbytes(sum(sizes))
    async with aiouring.open(ext4 / "file", "wb", direct=True, ring=ring) as file:
        at = 0
        writes = []
        for size in sizes:
            writes.append(file.write_at(data[at : at + size], at))
            at += size
        random.Random(14).shuffle(writes)
        await asyncio.gather(*writes)
    assert (ext4 / "file").read_bytes() == data


async def test_it_goes_around_the_page_cache(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Whole pages are read with registered buffers from a descriptor that is O_DIRECT, the rest of a write is not."""
    async with aiouring.open(numbers, "r+b", direct=True, ring=ring) as file:
        raw = file._raw
        assert isinstance(raw, DirectFile)
        flags = [_flags_of(fd) for fd in (file.fileno(), raw._cached.fd)]
        assert [bool(flag & os.O_DIRECT) for flag in flags] == [True, False]
        assert await file.read() == CONTENT
        assert ring._driver is not None
        assert ring._driver.registry.buffers is not None
        assert ring._driver.registry.buffers.statistics().high_water > 1


def _flags_of(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


async def test_long_reads_and_their_end(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Many blocks at once give the bytes in order, up to the end of the file wherever that is."""
    async with aiouring.open(numbers, "rb", direct=True, ring=ring) as file:
        assert await file.read_at(1 << 24, 1) == CONTENT[1:]
        assert await file.read_at(1 << 24, SIZE + 5) == CONTENT[SIZE + 5 :]
        assert await file.read_at(1 << 24, len(CONTENT)) == b""
        memory = bytearray(len(CONTENT) + 50)
        assert await file.readinto(memory) == len(CONTENT)
        assert memory == CONTENT + bytes(50)
        os.truncate(numbers, 5000)
        assert await file.read_at(1 << 24, 0) == CONTENT[:5000]


async def test_appending(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """What is appended is at the end, whoever else appends."""
    async with aiouring.open(numbers, "a+b", direct=True, ring=ring) as file:
        await file.write(b"one")
        await file.flush()
        with numbers.open("ab") as other:
            other.write(b"two")
        await file.write(b"three")
        assert await file.tell() == len(CONTENT) + 11
        await file.seek(len(CONTENT) - 1)
        assert await file.read() == CONTENT[-1:] + b"onetwothree"


async def test_g1_disk_full(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """The error says exactly how many bytes are in the file, aligned or not."""
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1500k") as small:
        for offset in (0, 100):
            async with aiouring.open(small / "file", "wb", direct=True, ring=ring) as file:
                with pytest.raises(OSError) as caught:
                    await file.write_at(bytes(3 << 20), offset)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(small / "file")
            assert aiouring.bytes_written(caught.value) == (small / "file").stat().st_size - offset


async def test_where_there_is_no_direct(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A file system without O_DIRECT is named as the reason; pipes and descriptors are refused."""
    with mounted("ramfs", tmp_path / "ramfs") as ramfs:
        with pytest.raises(OSError, match="may have no O_DIRECT") as caught:
            await aiouring.open(ramfs / "file", "wb", direct=True, ring=ring)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.filename == str(ramfs / "file")
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/null", tmp_path / "fifo"):
        with pytest.raises(OSError, match="may have no O_DIRECT"):
            await aiouring.open(path, "r+b", direct=True, ring=ring)
    with pytest.raises(ValueError, match="needs its path"):
        aiouring.open(0, "rb", direct=True, ring=ring)


async def test_an_error_gives_the_block_back(
    ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed or cancelled read leaves no block lent, and the file as it was."""
    async with aiouring.open(numbers, "rb", direct=True, ring=ring) as file:
        raw = file._raw
        for _ in range(30):
            task = asyncio.create_task(file.read_at(1 << 20, 7))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await file.read_at(100, 7) == CONTENT[7:107]
        assert ring._driver is not None

        async def failing(*_: Any) -> int:
            raise OSError(errno.EIO, "bad block")

        monkeypatch.setattr(raw._driver, "perform", failing)
        with pytest.raises(OSError, match="bad block"):
            await file.read_at(1 << 20, 0)
        monkeypatch.undo()
        assert await file.read() == CONTENT


@pytest.mark.parametrize("bad", [512, 1536, 4096, SIZE + 512, None])
async def test_g4_short_before_a_bad_block(
    ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch, bad: int | None
) -> None:
    """A direct read that comes back short is no end of the file: what follows is read, copied, or is its error."""
    move, read = DirectFile._move, RawFile._read
    choose = random.Random(12)

    def fail() -> int:
        raise OSError(errno.EIO, "bad block")

    async def short(raw: DirectFile, kind: type[Request], block: Any, start: int, length: int, offset: int) -> int:
        if kind is Request:
            if bad is not None and offset <= bad < offset + length:
                length = bad - offset or fail()
            elif choose.randrange(2):
                length = max(512, choose.randrange(length) // 512 * 512)
        if kind is not Request:
            return await move(raw, kind, block, start, length, offset)
        # The kernel takes whole pages; of those, so much is said to have come.
        return min(length, await move(raw, kind, block, start, -(-length // 4096) * 4096, offset))

    async def cached(raw: RawFile, memory: Any, capacity: int, start: int, length: int, offset: int) -> int:
        if bad is not None and offset <= bad < offset + length:
            length = bad - offset or fail()
        return await read(raw, memory, capacity, start, length, offset)

    monkeypatch.setattr(DirectFile, "_move", short)
    monkeypatch.setattr(RawFile, "_read", cached)
    for offset in (0, 100, 513, 1024, 1600, 5000, SIZE + 1000):
        async with aiouring.open(numbers, "rb", direct=True, ring=ring) as file:
            await file.seek(offset)
            if bad is not None and bad >= offset:
                with pytest.raises(OSError, match="bad block"):
                    await file.read()
                with pytest.raises(OSError, match="bad block"):
                    await file.read_at(len(CONTENT), offset)
            elif bad is None or bad % 4096:  # else the page that it begins in cannot be read at all
                assert await file.read() == CONTENT[offset:]
                assert await file.read_at(SIZE, offset) == CONTENT[offset : offset + SIZE]
    copying = aiouring.copy_file(numbers, numbers.with_name("copy"), direct=True, ring=ring)
    if bad is None:
        assert await copying == len(CONTENT)
        assert numbers.with_name("copy").read_bytes() == CONTENT
    else:
        with pytest.raises(OSError, match="bad block"):
            await copying


async def test_together() -> None:
    """The first error of several ends the rest, and comes as it is."""
    started = []

    async def work() -> None:
        started.append(1)
        if len(started) == 2:
            raise OSError(errno.EIO, "the second")
        await asyncio.sleep(100)

    with pytest.raises(OSError, match="the second"):
        await together(work, 3)


@pytest.mark.deadline(600)
async def test_g10_identity(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Direct, fixed and buffered writes at random places, read back each way: the same bytes everywhere."""
    path = tmp_path / "identity"
    model = bytearray(IDENTITY)
    path.write_bytes(model)
    choose = random.Random(15)
    pool = random.Random(16).randbytes(1 << 20)
    async with (
        aiouring.open(path, "r+b", direct=True, ring=ring) as direct,
        aiouring.open(path, "r+b", ring=ring) as cached,
    ):
        assert ring._driver is not None
        table = ring._driver.registry.buffers
        assert table is not None

        async def fixed_write(data: bytes, offset: int) -> int:
            with await table.acquire() as buffer:
                buffer.view[: len(data)] = data
                return await ring.write_fixed(cached, buffer, offset, length=len(data))

        async def fixed_read(size: int, offset: int) -> bytes:
            with await table.acquire() as buffer:
                return bytes(buffer.view[: await ring.read_fixed(cached, buffer, offset, length=size)])

        for _ in range(IDENTITY // (64 << 10)):
            batch = []
            # Regions that do not share a page: what two write to one page at once, each its own way, is undefined.
            for region in choose.sample(range(IDENTITY // (SIZE + 4096)), 6):
                size = choose.randrange(1, SIZE - 4096)
                offset = region * (SIZE + 4096) + choose.randrange(4096)
                start = choose.randrange(len(pool) - size)
                data = pool[start : start + size]
                model[offset : offset + size] = data
                batch.append(choose.choice([direct.write_at, cached.write_at, fixed_write])(data, offset))
            await asyncio.gather(*batch)
            offset, size = choose.randrange(IDENTITY), choose.randrange(SIZE)
            for read in (direct.read_at, cached.read_at, fixed_read):
                assert await read(size, offset) == model[offset : offset + size], (read, offset, size)
        for file in (direct, cached):
            await file.seek(0)
            place = 0
            while part := await file.read(1 << 20):
                assert part == model[place : place + len(part)]
                place += len(part)
            assert place == IDENTITY
    assert path.read_bytes() == model


def test_the_depth() -> None:
    """One long read or write does not take all registered blocks of its ring."""
    assert _direct_file.DEPTH * 2 == 16
