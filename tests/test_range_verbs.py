"""Tests of the verbs on ranges of files: reserving, cutting, flushing, announcing."""

import asyncio
import errno
import mmap
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from registered_slots import opened

import aiouring
from aiouring import AsyncRing, FallocateFlags, SyncFileRangeFlags


@pytest.fixture
def number(tmp_path: Path) -> Iterator[int]:
    """A file of 10,000 letters, open for reading and writing."""
    made = opened(tmp_path / "letters", b"a" * 10_000)
    yield made
    os.close(made)


async def test_ftruncate(ring: AsyncRing, number: int) -> None:
    """Cuts off and extends with zeros, by descriptor, object and slot."""
    await ring.ftruncate(number, 10)
    assert os.fstat(number).st_size == 10
    with open(number, "r+b", closefd=False) as file:
        await ring.ftruncate(file, 20)
    assert os.pread(number, 30, 0) == b"a" * 10 + bytes(10)
    with ring.register_files([number]) as files:
        await ring.ftruncate(files[0], 0)
    assert os.fstat(number).st_size == 0
    await ring.ftruncate(number, 2**40)
    assert os.fstat(number).st_size == 2**40


async def test_fallocate(ring: AsyncRing, number: int) -> None:
    """Reserves, extends, punches, zeroes, collapses and inserts."""
    await ring.fallocate(number, 0, 20_000)
    assert os.fstat(number).st_size == 20_000
    await ring.fallocate(number, 0, 1 << 20, FallocateFlags.KEEP_SIZE)
    assert os.fstat(number).st_size == 20_000
    assert os.fstat(number).st_blocks * 512 >= 1 << 20
    await ring.fallocate(number, 0, 4096, FallocateFlags.PUNCH_HOLE | FallocateFlags.KEEP_SIZE)
    assert os.pread(number, 4097, 0) == bytes(4096) + b"a"
    await ring.fallocate(number, 4096, 10, FallocateFlags.ZERO_RANGE)
    assert os.pread(number, 11, 4096) == bytes(10) + b"a"
    block = os.fstatvfs(number).f_bsize
    await ring.fallocate(number, 0, block, FallocateFlags.COLLAPSE_RANGE)
    assert os.fstat(number).st_size == 20_000 - block
    await ring.fallocate(number, 0, block, FallocateFlags.INSERT_RANGE)
    assert os.fstat(number).st_size == 20_000


async def test_flushing(ring: AsyncRing, number: int) -> None:
    """fdatasync and sync_file_range go to the device and come back, many at once."""
    os.pwrite(number, b"b" * 10_000, 0)
    await ring.sync_file_range(number, 0, 4096, SyncFileRangeFlags.WRITE)
    everything = SyncFileRangeFlags.WAIT_BEFORE | SyncFileRangeFlags.WRITE | SyncFileRangeFlags.WAIT_AFTER
    await ring.sync_file_range(number, flags=everything)
    await asyncio.gather(*(ring.fdatasync(number) for _ in range(20)))
    with pytest.raises(OSError) as caught:
        await ring.sync_file_range(number, flags=1 << 10)
    assert caught.value.errno == errno.EINVAL


async def test_fadvise(ring: AsyncRing, number: int) -> None:
    """The advice is taken, for a part, to the end, and for more than 4 GiB."""
    for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_NORMAL):
        for length in (0, 4096, 2**32, 2**40):
            await ring.fadvise(number, 0, length, advice)
    with pytest.raises(OSError) as caught:
        await ring.fadvise(number, 0, 0, 99)
    assert caught.value.errno == errno.EINVAL


async def test_m2_numbers_that_cannot_be(ring: AsyncRing, number: int) -> None:
    """Negative and too large numbers are refused before they are submitted, by name."""
    submitted = ring.statistics().submitted
    for verb, text in (
        (ring.ftruncate(number, -1), "length=-1"),
        (ring.ftruncate(number, 2**63), "length=9223372036854775808"),
        (ring.fallocate(number, -1, 5), "offset=-1"),
        (ring.fallocate(number, 0, 0), "length=0 is outside 1 to"),
        (ring.fadvise(number, -5, 0, 0), "offset=-5"),
        (ring.sync_file_range(number, 0, 2**32), "length=4294967296"),
        (ring.sync_file_range(number, -1), "offset=-1"),
        (ring.fallocate(number, 0, 5, -1), "does not fit"),
    ):
        with pytest.raises(ValueError, match=text):
            await verb
    assert ring.statistics().submitted == submitted


async def test_g2_beyond_the_largest_file(ring: AsyncRing, number: int) -> None:
    """RLIMIT_FSIZE is EFBIG, for cutting and for reserving; the file is as it was."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for verb in (ring.ftruncate(number, 20_001), ring.fallocate(number, 0, 20_001)):
            with pytest.raises(OSError) as caught:
                await verb
            assert caught.value.errno == errno.EFBIG
        await ring.ftruncate(number, 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert os.fstat(number).st_size == 20_000


async def test_g7_odd_descriptors(ring: AsyncRing, number: int, tmp_path: Path) -> None:
    """Directories, pipes, read-only, O_PATH and closed descriptors answer as the system calls do."""
    read_only, folder = os.open(tmp_path / "letters", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    path = os.open(tmp_path / "letters", os.O_PATH)
    reader, writer = os.pipe()
    closed = os.dup(number)
    os.close(closed)
    for verb, expected in (
        (ring.ftruncate(read_only, 1), errno.EINVAL),
        (ring.fallocate(read_only, 0, 1), errno.EBADF),
        (ring.ftruncate(folder, 1), errno.EINVAL),
        (ring.fallocate(folder, 0, 1), errno.EBADF),
        (ring.ftruncate(writer, 1), errno.EINVAL),
        (ring.fallocate(writer, 0, 1), errno.ESPIPE),
        (ring.fdatasync(writer), errno.EINVAL),
        (ring.sync_file_range(reader), errno.ESPIPE),
        (ring.fadvise(reader, 0, 0, 0), errno.ESPIPE),
        (ring.fdatasync(path), errno.EBADF),
        (ring.ftruncate(closed, 1), errno.EBADF),
        (ring.fdatasync(-1), errno.EBADF),
    ):
        with pytest.raises(OSError) as caught:
            await verb
        assert caught.value.errno == expected
    await ring.fdatasync(folder)
    for each in (read_only, folder, path, reader, writer):
        os.close(each)


async def test_e6_an_older_kernel(ring: AsyncRing, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no FTRUNCATE the error says since when there is one."""
    monkeypatch.setattr("aiouring._features._here", frozenset())
    with pytest.raises(aiouring.UnsupportedKernelError, match="needs Linux 6.9"):
        await ring.ftruncate(number, 1)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_g1_no_room(ring: AsyncRing, small: Path) -> None:
    """ENOSPC: reserving fails and changes nothing, a chain stops at the write that was cut short, and says where."""
    number = os.open(small / "file", os.O_CREAT | os.O_RDWR)
    with pytest.raises(OSError) as caught:
        await ring.fallocate(number, 0, 2 << 20)
    assert caught.value.errno == errno.ENOSPC
    assert os.fstat(number).st_size == 0
    await ring.fallocate(number, 0, 1 << 19)
    part = bytes(300 << 10)
    with pytest.raises(OSError, match="request 3 of a chain moved 126976 of 307200 bytes") as caught:
        async with ring.chain() as chain:
            for at in range(5):
                chain.write(number, part, at * len(part))
            chain.fdatasync(number)
    assert caught.value.errno == errno.ECANCELED
    assert [link.done for link in chain] == [True] * 4 + [False] * 2
    with pytest.raises(OSError) as caught:
        async with ring.chain() as chain:
            chain.write(number, part, 1 << 20)
            chain.fdatasync(number)
    assert caught.value.errno == errno.ENOSPC
    os.close(number)


# ---- memory --------------------------------------------------------------------------------------------


async def test_madvise(ring: AsyncRing) -> None:
    """Advice that keeps what is there is taken for parts of pages; DONTNEED empties exactly the pages it names."""
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 3 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * 3 * page
        await ring.madvise(memory, mmap.MADV_WILLNEED)
        await ring.madvise(memory, mmap.MADV_SEQUENTIAL, start=page, length=5)
        await ring.madvise(memoryview(memory), 22)
        await ring.madvise(memory, mmap.MADV_DONTNEED, start=page, length=page)
        assert memory[:] == b"x" * page + bytes(page) + b"x" * page
        with pytest.raises(OSError) as caught:
            await ring.madvise(memory, mmap.MADV_REMOVE)
        assert caught.value.errno == errno.EINVAL, "of anonymous private memory"


async def test_m1_madvise_stays_within_the_buffer(ring: AsyncRing) -> None:
    """Ranges off the pages or outside, read-only memory, the ring's own buffers and dangerous advice are refused."""
    page = mmap.PAGESIZE
    submitted = ring.statistics().submitted
    with mmap.mmap(-1, 2 * page) as memory, mmap.mmap(-1, page, prot=mmap.PROT_READ) as constant:
        for arguments, text in (
            ((mmap.MADV_WILLNEED, 1, 5), "start=1 is 1 bytes into a page"),
            ((mmap.MADV_DONTNEED, page, 5), "length=5 leaves 5"),
            ((mmap.MADV_WILLNEED, page, 2 * page), "reach beyond the memory"),
            ((mmap.MADV_DONTNEED, 2 * page, page), "reach beyond the memory"),
            ((mmap.MADV_WILLNEED, 0, -1), "reach beyond the memory"),
            ((mmap.MADV_DONTFORK, 0, page), "advice=10 is none"),
            ((100, 0, page), "advice=100 is none"),
        ):
            advice, start, length = arguments
            with pytest.raises(ValueError, match=text):
                await ring.madvise(memory, advice, start=start, length=length)
        with pytest.raises(BufferError):
            await ring.madvise(constant, mmap.MADV_DONTNEED)
        with ring.register_buffers(count=1, size=page) as buffers, buffers[0] as buffer:
            with pytest.raises(TypeError, match="memory of your own"):
                await ring.madvise(buffer, mmap.MADV_DONTNEED)
    assert ring.statistics().submitted == submitted
