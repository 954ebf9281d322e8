"""Tests of chains: each request after the one before it, all or none submitted, each result known."""

import asyncio
import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import open_files
from registered_slots import opened

import aiouring
from aiouring import AsyncRing


@pytest.fixture
def number(tmp_path: Path) -> Iterator[int]:
    """An empty file, open for reading and writing."""
    made = opened(tmp_path / "file", b"")
    yield made
    os.close(made)


async def test_write_then_flush(ring: AsyncRing, number: int) -> None:
    """The example: both are done, in one submission, and each has its result."""
    enters = ring.statistics().enters
    async with ring.chain() as chain:
        wrote = chain.write(number, b"record", 0)
        flushed = chain.fdatasync(number)
        assert not wrote.done
    assert (wrote.result, flushed.result, len(chain)) == (6, 0, 2)
    assert wrote.done
    assert flushed.done
    assert os.pread(number, 10, 0) == b"record"
    assert ring.statistics().enters - enters <= 4
    assert ring.statistics().in_flight == 0


async def test_everything_that_can_be_linked(ring: AsyncRing, number: int) -> None:
    """Reads, writes and their fixed forms, and a flush; what is read shows that the order was kept."""
    with ring.register_buffers(count=2, size=8) as buffers, buffers[0] as first, buffers[1] as second:
        first.view[:] = b"12345678"
        memory = bytearray(4)
        async with ring.chain() as chain:
            chain.write(number, b"abcd", 0, flags=aiouring.ReadWriteFlags.DSYNC)
            chain.write_fixed(number, first, 4, start=2, length=4)
            chain.read(number, memory, 2)
            chain.read_fixed(number, second, 0)
            chain.write(number, b"x", 0)
            chain.fsync(number)
        assert [link.result for link in chain] == [4, 4, 4, 8, 1, 0]
        assert memory == b"cd34"
        assert bytes(second.view) == b"abcd3456"
        assert os.pread(number, 9, 0) == b"xbcd3456"


async def test_nothing_follows_a_flush(ring: AsyncRing, number: int, pipe: tuple[int, int]) -> None:
    """The kernel would go on after one that failed: what is added behind it is refused, and the rest is as it was."""
    data = bytearray(b"data")
    async with ring.chain() as chain:
        chain.write(number, b"first", 0)
        chain.fdatasync(number)
        with pytest.raises(ValueError, match="a flush is the last of a chain"):
            chain.write(number, data, 0)
        with pytest.raises(ValueError, match="a flush is the last of a chain"):
            chain.fsync(number)
        data.append(1)
    assert [link.result for link in chain] == [5, 0]
    with pytest.raises(OSError) as caught:
        async with ring.chain() as chain:
            wrote = chain.write(number, b"x", 0)
            chain.fsync(pipe[0])
    assert caught.value.errno == errno.EINVAL
    assert wrote.result == 1


async def test_a_failure_ends_the_chain(ring: AsyncRing, number: int, tmp_path: Path) -> None:
    """What comes before it is done, what comes after is not; its error is raised, and every result is there."""
    read_only = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        async with ring.chain() as chain:
            first = chain.write(number, b"one", 0)
            bad = chain.write(read_only, b"two", 3)
            never = chain.write(number, b"three", 3)
            flush = chain.fsync(number)
    assert caught.value.errno == errno.EBADF
    assert first.result == 3
    assert bad.error is caught.value
    for link in (never, flush):
        assert not link.done
        with pytest.raises(OSError) as cancelled:
            link.result
        assert cancelled.value.errno == errno.ECANCELED
    assert os.pread(number, 9, 0) == b"one"
    os.close(read_only)


async def test_g2_a_short_write_ends_the_chain(ring: AsyncRing, number: int) -> None:
    """A flush never vouches for a write that was cut short: ECANCELED with the numbers, and the count is there."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        with pytest.raises(OSError, match="request 0 of a chain moved 50 of 100 bytes, so the 1 behind it") as caught:
            async with ring.chain() as chain:
                wrote = chain.write(number, bytes(100), 0)
                flushed = chain.fdatasync(number)
        assert caught.value.errno == errno.ECANCELED
        assert (wrote.result, flushed.done) == (50, False)
        with pytest.raises(OSError) as too_large:
            async with ring.chain() as chain:
                chain.write(number, bytes(100), 50)
                chain.fdatasync(number)
        assert too_large.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    async with ring.chain() as chain:
        chain.write(number, b"x", 0)
        last = chain.read(number, bytearray(100), 0)
    assert last.result == 50, "the last may be short: nothing is behind it"


async def test_a1_a_cancelled_chain(ring: AsyncRing, number: int, pipe: tuple[int, int]) -> None:
    """Cancelled while its first request waits, nothing of it happens, and all its memory is free."""
    reader, _ = pipe
    memory, data = bytearray(3), bytearray(b"data")
    files = open_files()

    async def run() -> None:
        async with ring.chain() as chain:
            links.append(chain.read(reader, memory, 0))
            links.append(chain.write(number, data, 0))
            links.append(chain.fsync(number))

    links: list[aiouring.Link] = []
    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await ring.nop()
    assert ring.statistics().in_flight == 3
    with pytest.raises(BufferError):
        data.append(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ring.statistics().in_flight == 0
    assert os.fstat(number).st_size == 0
    assert not any(link.done for link in links)
    data.append(1)
    memory.append(1)
    assert open_files() == files


async def test_a2_cancelled_at_any_moment(ring: AsyncRing, number: int) -> None:
    """What the links say was done is what is in the file; nothing is done after CancelledError has left."""
    for turns in range(40):
        os.ftruncate(number, 0)
        links: list[aiouring.Link] = []

        async def run(links: list[aiouring.Link]) -> None:
            async with ring.chain() as chain:
                links += [chain.write(number, bytes([at]), at) for at in range(6)]

        task = asyncio.create_task(run(links))
        for _ in range(turns // 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        done = [link.done for link in links]
        assert done == sorted(done, reverse=True), "from the beginning, without gaps"
        assert os.fstat(number).st_size == sum(done)
        await ring.nop()
        assert os.fstat(number).st_size == sum(done)


async def test_closing_ends_a_chain(profile: Any, number: int, pipe: tuple[int, int]) -> None:
    """The ring's close ends a chain that waits, with RingClosedError; so does cancelling its file, with ECANCELED."""
    ring = AsyncRing(task_run=profile)
    chains = []
    for _ in range(2):

        async def run() -> None:
            async with ring.chain() as chain:
                chain.read(pipe[0], bytearray(1), 0)
                chain.write(number, b"x", 0)

        chains.append(asyncio.create_task(run()))
        await asyncio.sleep(0)
        await ring.nop()
        if len(chains) == 1:
            assert await ring.cancel(pipe[0]) == 1
            with pytest.raises(OSError, match="ancel"):
                await chains[0]
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await chains[1]
    with pytest.raises(aiouring.RingClosedError):
        async with ring.chain() as chain:
            chain.fsync(number)
    assert os.fstat(number).st_size == 0


async def test_an_exception_within_the_block(ring: AsyncRing, number: int) -> None:
    """Nothing is submitted, and the memory is free."""
    data = bytearray(b"data")
    submitted = ring.statistics().submitted
    with pytest.raises(KeyError):
        async with ring.chain() as chain:
            link = chain.write(number, data, 0)
            raise KeyError
    data.append(1)
    with pytest.raises(RuntimeError, match="not submitted"):
        link.result
    async with ring.chain():
        pass
    assert ring.statistics().submitted == submitted
    with pytest.raises(RuntimeError, match="within its `async with` block"):
        chain.write(number, data, 0)
    data.append(1)
    with pytest.raises(RuntimeError, match="used once"):
        async with chain:
            pass


async def test_what_cannot_be_linked(ring: AsyncRing, number: int) -> None:
    """Slots, the file's own position, bad ranges and released buffers are refused where they are added or submitted."""
    with ring.register_files([number]) as files:
        async with ring.chain() as chain:
            with pytest.raises(ValueError, match="cannot be linked"):
                chain.fsync(files[0])
            for wrong in (-1, 2**63):
                with pytest.raises(ValueError, match=f"offset={wrong}"):
                    chain.write(number, b"x", wrong)
            for flags in (0, aiouring.ReadWriteFlags.NOWAIT):
                with pytest.raises(BufferError):
                    chain.read(number, b"read-only", 0, flags=flags)
            with pytest.raises(TypeError):
                chain.read_fixed(number, bytearray(1), 0)  # type: ignore[arg-type]
    with ring.register_buffers(count=1, size=8) as buffers:
        with buffers[0] as buffer:
            data = bytearray(b"abc")
            with pytest.raises(ValueError, match="start=4 and length=5 reach beyond the memory of 8 bytes"):
                async with ring.chain() as chain:
                    chain.write(number, data, 0)
                    chain.write_fixed(number, buffer, 0, start=4, length=5)
            data.append(1)
            assert os.fstat(number).st_size == 0
    assert ring.statistics().in_flight == 0


async def test_m11_a_buffer_stays_lent(ring: AsyncRing, number: int, pipe: tuple[int, int]) -> None:
    """A registered buffer that a chain will use cannot be released before, and can afterwards."""
    with ring.register_buffers(count=1, size=8) as buffers:
        buffer = buffers[0]

        async def run() -> None:
            async with ring.chain() as chain:
                chain.read(pipe[0], bytearray(1), 0)
                chain.write_fixed(number, buffer, 0)

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError):
            buffer.release()
        os.write(pipe[1], b"x")
        await task
        buffer.release()
    assert os.fstat(number).st_size == 8
