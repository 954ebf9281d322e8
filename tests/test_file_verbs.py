"""Tests of the file verbs on real files, pipes and odd descriptors."""

import asyncio
import errno
import hashlib
import itertools
import os
import random
from pathlib import Path

import pytest
from conftest import RingFactory

import aiouring


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of 100,000 known bytes."""
    path = tmp_path / "numbers"
    path.write_bytes(random.Random(1).randbytes(100_000))
    return path


async def test_read_at_an_offset_and_at_the_position(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """offset= reads there and leaves the position; None reads at the position and moves it."""
    content = numbers.read_bytes()
    with numbers.open("rb", buffering=0) as file:
        memory = bytearray(1000)
        assert await ring.read(file, memory, 5000) == 1000
        assert memory == content[5000:6000]
        assert file.tell() == 0
        assert await ring.read(file, memory) == 1000
        assert await ring.read(file.fileno(), memory) == 1000
        assert memory == content[1000:2000]
        assert file.tell() == 2000


async def test_write_fsync_and_read_back(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What is written at offsets and at the position is in the file."""
    with (tmp_path / "out").open("w+b", buffering=0) as file:
        assert await ring.write(file, b"hello", 3) == 5
        assert await ring.write(file, memoryview(b"abc")) == 3
        await ring.fsync(file)
        await ring.fsync(file, data_only=True)
        assert file.tell() == 3
        assert (tmp_path / "out").read_bytes() == b"abchello"


async def test_fixed_buffers_identical_to_pread(ring: aiouring.AsyncRing, numbers: Path, tmp_path: Path) -> None:
    """G10: read_fixed and write_fixed at random offsets, starts and lengths move exactly these bytes."""
    content = numbers.read_bytes()
    copy = bytearray(len(content))
    choose = random.Random(3)
    with ring.register_buffers(count=8, size=5000) as buffers, numbers.open("rb") as source:
        with (tmp_path / "copy").open("w+b") as target:

            async def piece(offset: int, length: int) -> None:
                start = choose.randrange(5000 - length + 1)
                async with await buffers.acquire() as buffer:
                    assert await ring.read_fixed(source, buffer, offset, start=start, length=length) == length
                    copy[offset : offset + length] = buffer.view[start : start + length]
                    assert await ring.write_fixed(target, buffer, offset, start=start, length=length) == length

            offsets = [0, *sorted(choose.sample(range(1, len(content)), 80)), len(content)]
            pieces = []
            for first, last in itertools.pairwise(offsets):
                pieces += [(at, min(4000, last - at)) for at in range(first, last, 4000)]
            await asyncio.gather(*(piece(*p) for p in pieces))
            assert copy == content
            digest = hashlib.sha256((tmp_path / "copy").read_bytes()).digest()
            assert digest == hashlib.sha256(content).digest()


async def test_read_fixed_at_the_position(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """offset=None with a registered buffer uses and moves the file's position."""
    content = numbers.read_bytes()
    with ring.register_buffers(count=1, size=4096) as buffers, numbers.open("rb", buffering=0) as file:
        with await buffers.acquire() as buffer:
            assert await ring.read_fixed(file, buffer, start=6, length=10) == 10
            assert bytes(buffer.view[6:16]) == content[:10]
            assert file.tell() == 10


async def test_fixed_buffers_on_pipes_and_sockets(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """Registered buffers work on a pipe, and one that is cancelled there loses no byte."""
    reader, writer = pipe
    with ring.register_buffers(count=2, size=64) as buffers:
        with await buffers.acquire() as source, await buffers.acquire() as target:
            source.view[:4] = b"pipe"
            assert await ring.write_fixed(writer, source, length=4) == 4
            task = asyncio.create_task(ring.read_fixed(reader, target))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await ring.read(reader, memory := bytearray(8)) == 4
            assert memory[:4] == b"pipe"


async def test_g6_end_of_file_and_truncation(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Past the end a read is short, then 0; a file truncated in between reads short as well."""
    with numbers.open("r+b", buffering=0) as file:
        memory = bytearray(200)
        assert await ring.read(file, memory, 99_900) == 100
        assert await ring.read(file, memory, 100_000) == 0
        assert await ring.read(file, memory, 1 << 40) == 0
        os.ftruncate(file.fileno(), 100)
        assert await ring.read(file, memory, 0) == 100
        assert await ring.read(file, memory, 150) == 0


async def test_g7_odd_descriptors(ring: aiouring.AsyncRing, numbers: Path, tmp_path: Path) -> None:
    """A directory, wrong modes, O_PATH and closed descriptors answer with the kernel's errno."""
    memory = bytearray(8)

    async def code(descriptor: int, *, write: bool = False) -> int | None:
        verb = ring.write(descriptor, b"x", 0) if write else ring.read(descriptor, memory, 0)
        with pytest.raises(OSError) as caught:
            await verb
        return caught.value.errno

    cases = [
        (os.open(tmp_path, os.O_RDONLY), False, errno.EISDIR),
        (os.open(numbers, os.O_WRONLY), False, errno.EBADF),
        (os.open(numbers, os.O_RDONLY), True, errno.EBADF),
        (os.open(numbers, os.O_PATH), False, errno.EBADF),
    ]
    for descriptor, write, expected in cases:
        assert await code(descriptor, write=write) == expected
        os.close(descriptor)
        assert await code(descriptor, write=write) == errno.EBADF
    assert await code(-1) == errno.EBADF
    assert await code(1 << 30) == errno.EBADF
    file = numbers.open("rb")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        await ring.read(file, memory, 0)


async def test_g7_ring_descriptors_are_refused(new_ring: RingFactory) -> None:
    """A request on an io_uring never completes, so it is a ValueError, this ring's descriptor or another's."""
    ring, other = await new_ring(), await new_ring()
    with aiouring.Ring(4) as third:
        for descriptor in (ring._ring.fd, other._ring.fd, third.fd):
            with pytest.raises(ValueError, match="io_uring"):
                await ring.read(descriptor, bytearray(1), 0)


async def test_close_of_a_descriptor(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """close() stops what is in flight on a descriptor, then closes it; closing it again is EBADF."""
    reader = os.dup(pipe[0])
    task = asyncio.create_task(ring.read(reader, bytearray(8)))
    await ring.nop()
    await ring.close(reader)
    with pytest.raises(OSError, match="ancel"):
        await task
    with pytest.raises(OSError) as caught:
        await ring.close(reader)
    assert caught.value.errno == errno.EBADF


async def test_h9_nonblocking_descriptors_pend(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """O_NONBLOCK does not surface as EAGAIN: reads wait, whether the kernel pends them or we poll."""
    reader, writer = pipe
    os.set_blocking(reader, False)
    task = asyncio.create_task(ring.read(reader, memory := bytearray(8)))
    await ring.nop()
    os.write(writer, b"there")
    assert await task == 5
    assert memory[:5] == b"there"
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    task = asyncio.create_task(ring.read(eventfd, memory))
    await ring.nop()
    os.eventfd_write(eventfd, 7)
    assert await task == 8
    assert int.from_bytes(memory, "little") == 7
    os.close(eventfd)


async def test_timeout_and_poll(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """timeout() waits as long as it says, poll() until a file is ready; both can be cancelled."""
    reader, writer = pipe
    loop = asyncio.get_running_loop()
    start = loop.time()
    await ring.timeout(0.05)
    assert loop.time() - start >= 0.04
    task = asyncio.create_task(ring.poll(reader))
    await ring.nop()
    assert not task.done()
    os.write(writer, b"x")
    assert await task & 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ring.timeout(100)
    with pytest.raises(ValueError, match="seconds=-1"):
        await ring.timeout(-1)


# ---- flags, and workers ------------------------------------------------------------------------------


async def test_flags(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """APPEND, NOAPPEND and the flushing flags reach the kernel, with and without registered buffers, and on a slot."""
    flags = aiouring.ReadWriteFlags
    number = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    appending = os.open(tmp_path / "file", os.O_WRONLY | os.O_APPEND)
    with ring.register_buffers(count=1, size=4) as buffers, ring.register_files([number]) as files:
        with buffers[0] as buffer:
            buffer.view[:] = b"abcd"
            assert await ring.write(number, b"0123", 0, flags=flags.DSYNC) == 4
            assert await ring.write(files[0], b"45", 0, flags=flags.APPEND | flags.SYNC) == 2
            assert await ring.write_fixed(number, buffer, 0, flags=flags.APPEND) == 4
            assert await ring.write_fixed(files[0], buffer, 0, flags=flags.APPEND, length=1) == 1
            assert await ring.write(appending, b"x", 0) == 1
            assert await ring.write(appending, b"y", 0, flags=flags.NOAPPEND) == 1
            assert (tmp_path / "file").read_bytes() == b"y12345abcdax"
            assert await ring.read_fixed(number, buffer, 1, flags=flags.NOWAIT) in (1, 2, 3, 4)
            for verb in (
                ring.write(number, b"x", 0, flags=1 << 8),
                ring.read_fixed(number, buffer, 0, flags=flags.HIPRI),
            ):
                with pytest.raises(ValueError, match="ReadWriteFlags"):
                    await verb
    for each in (number, appending):
        os.close(each)


async def test_nowait_does_not_wait(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """What would have to wait is a BlockingIOError, at once, and leaves the caller's memory free."""
    reader, writer = pipe
    flags, memory = aiouring.ReadWriteFlags, bytearray(4)
    with ring.register_buffers(count=1, size=4) as buffers, buffers[0] as buffer:
        for verb in (
            ring.read(reader, memory, flags=flags.NOWAIT),
            ring.read(reader, memory, 0, flags=flags.NOWAIT),
            ring.read_fixed(reader, buffer, flags=flags.NOWAIT),
        ):
            with pytest.raises(BlockingIOError) as caught:
                await verb
            assert caught.value.errno == errno.EAGAIN
            memory.append(0)
        os.write(writer, b"here")
        assert await ring.read(reader, memory, flags=flags.NOWAIT) == 4
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        for verb in (
            ring.write(writer, memory, flags=flags.NOWAIT),
            ring.write_fixed(writer, buffer, flags=flags.NOWAIT),
        ):
            with pytest.raises(BlockingIOError):
                await verb
    assert ring.statistics().in_flight == 0


async def test_in_the_background(ring: aiouring.AsyncRing, numbers: Path, pipe: tuple[int, int]) -> None:
    """A worker does the same as the submission would; a pipe's read waits and can be cancelled there too."""
    content = numbers.read_bytes()
    with numbers.open("r+b", buffering=0) as file, ring.register_buffers(count=1, size=100) as buffers:
        with buffers[0] as buffer:
            memory = bytearray(100)
            assert await ring.read(file, memory, 500, background=True) == 100
            assert memory == content[500:600]
            assert await ring.read_fixed(file, buffer, 700, background=True) == 100
            assert bytes(buffer.view) == content[700:800]
            assert await ring.write_fixed(file, buffer, 0, background=True) == 100
            assert await ring.write(file, b"z", 100, background=True) == 1
            assert numbers.read_bytes()[:102] == content[700:800] + b"z" + content[101:102]
            with ring.register_files([file]) as files, pytest.raises(ValueError, match="sent to a worker"):
                await ring.read(files[0], memory, 0, background=True)
    reader, writer = pipe
    task = asyncio.create_task(ring.read(reader, memory, background=True))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.write(writer, b"kept")
    assert await ring.read(reader, memory) == 4
