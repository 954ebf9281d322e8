"""Tests of the reads of a binary file at its position: all of its bytes, once, whatever is cancelled or read ahead."""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring._read_ahead import ReadAhead

CONTENT = random.Random(1).randbytes(700_000)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    return path


async def test_a2_cancelled_reads_move_nothing(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Whenever a read is cancelled, the next one begins where it would have."""
    choose = random.Random(2)
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        found = b""
        while len(found) < len(CONTENT):
            verb = choose.choice([file.read, file.readline, file.read1, file.read])
            task = asyncio.create_task(verb(choose.choice([1, 100, 5000, 200_000])))
            for _ in range(choose.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                found += await task
            except asyncio.CancelledError:
                assert await file.tell() == len(found)
                found += await file.read(1)
        assert found == CONTENT


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_readinto(ring: aiouring.AsyncRing, numbers: Path, direct: bool, buffering: int) -> None:
    """Whatever is there already, being read, in the page cache or not, the memory gets the bytes, and no other does."""
    choose = random.Random(8)
    memory = bytearray(800_000)
    sizes = [1, 100, 20_000, 32 * 1024, 70_000, 300_000, 512 * 1024, 520_000, 700_000]
    async with aiouring.open(numbers, "rb", buffering, direct=direct, ring=ring) as file:
        for _ in range(80):
            place = choose.choice([choose.randrange(len(CONTENT)), await file.tell(), await file.tell(), 0])
            await file.seek(place)
            before = await file.read(choose.choice([0, 0, 1, 5000]))
            assert before == CONTENT[place : place + len(before)]
            place += len(before)
            if choose.randrange(3) == 0:
                fd = file.fileno()
                os.posix_fadvise(fd, choose.randrange(len(CONTENT)), 50_000, os.POSIX_FADV_DONTNEED)
            start, size = choose.randrange(1000), choose.choice(sizes)
            memory[:] = bytes(len(memory))
            count = await file.readinto(memoryview(memory)[start : start + size])
            assert count == min(size, len(CONTENT) - place)
            assert await file.tell() == place + count
            assert memory == bytes(start) + CONTENT[place : place + count] + bytes(len(memory) - start - count)


@pytest.mark.parametrize("size", [32 * 1024, 256 * 1024])
async def test_readinto_takes_no_detour(
    ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """What the page cache has is copied once: by the kernel, into the caller's memory."""
    monkeypatch.delattr(ReadAhead, "read_blocks")
    memory = bytearray(size)
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        for at in range(0, len(CONTENT) - size, size):
            assert await file.readinto(memory) == size
            assert memory == CONTENT[at : at + size]


async def test_b5_what_is_read_into_cannot_be_resized(ring: aiouring.AsyncRing) -> None:
    """While a read is in flight, its bytearray is held."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", 0, ring=ring) as file:
        memory = bytearray(100)
        task = asyncio.create_task(file.readinto(memory))
        await asyncio.sleep(0)
        with pytest.raises(BufferError):
            memory.extend(b"more")
        os.write(writer, b"data")
        assert await task == 4
        memory.extend(b"more")
        assert memory[:4] == b"data"
        os.close(writer)


async def test_peek_and_read1(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """peek() does not move, read1() takes what is there, and both are empty at the end."""
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        there = await file.peek(10)
        assert there == CONTENT[: len(there)]
        assert len(there) >= 10
        assert await file.read1(5) == CONTENT[:5]
        assert await file.read1() == there[5:]
        assert await file.read1(0) == b""
        await file.seek(0, os.SEEK_END)
        assert await file.peek() == b""
        assert await file.read1() == b""
        assert await file.read() == b""
        assert await file.readall() == b""


async def test_unbuffered(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """With buffering=0 each call is a request: what others write meanwhile is seen, and what is written is there."""
    async with aiouring.open(numbers, "r+b", 0, ring=ring) as file:
        assert await file.read(5) == CONTENT[:5]
        with numbers.open("r+b") as other:
            other.write(b"0123456789")
        assert await file.read(5) == b"56789"
        await file.write(b"abc")
        assert numbers.read_bytes()[:13] == b"0123456789abc"
        assert await file.readline() == CONTENT[13:].split(b"\n")[0] + b"\n"


@pytest.mark.parametrize("how", ["read", "readlines", "text"])
async def test_read_again_from_the_beginning(ring: aiouring.AsyncRing, tmp_path: Path, how: str) -> None:
    """A file that was read to its end, and is read again, gives what it has now: so are files of /proc watched."""
    path = tmp_path / "file"
    path.write_bytes(b"12\n")
    mode: Any = "r" if how == "text" else "rb"
    async with aiouring.open(path, mode, ring=ring) as file:
        for content in (b"12\n", b"34\n", b"5\n", b"67\n8"):
            path.write_bytes(content)
            await file.seek(0)
            if how == "readlines":
                assert b"".join(await file.readlines()) == content
            else:
                assert await file.read() in (content, content.decode())


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_a_pipe_read_in_every_way(ring: aiouring.AsyncRing, buffering: int) -> None:
    """What a line, a look or a cancelled read left behind is read next, with buffering and without."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    choose = random.Random(9)
    sent = found = b""
    async with aiouring.open(reader, "rb", buffering, ring=ring) as source:
        for _ in range(500):
            data = choose.randbytes(choose.randrange(1, 50)).replace(b"\1", b"\n")
            sent += data
            size = choose.randrange(1, 60)
            memory = bytearray(size)
            filling = choose.random() < 0.3
            verb: Any = (
                source.readinto(memory) if filling else choose.choice([source.read, source.read1, source.peek])(size)
            )
            task: asyncio.Future[Any] = asyncio.ensure_future(verb)
            for _ in range(choose.randrange(3)):
                await asyncio.sleep(0)
            os.write(writer, data)
            for _ in range(choose.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and getattr(verb, "__name__", "read") != "peek":
                found += memory[: task.result()] if filling else task.result()
            if choose.randrange(5) == 0:
                async with asyncio.timeout(5):
                    found += await source.readline(
                        choose.randrange(1, len(sent) - len(found) + 1) if sent > found else 0
                    )
            assert found == sent[: len(found)]
        os.close(writer)
        assert found + await source.read() == sent
