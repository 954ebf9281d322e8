"""Tests of reading ahead: how much is in flight, and that it is dropped where it must be."""

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring._raw_file import PIECE, RawFile
from aiouring._read_ahead import DEPTH, FIRST, LARGE, ReadAhead

CONTENT = random.Random(6).randbytes(16 * PIECE)


class Watched(RawFile):
    """A raw file that notes what it is asked for, and how much of that at once."""

    def __init__(self, ring: aiouring.AsyncRing, path: Path) -> None:
        super().__init__(ring, os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path), os.O_RDONLY)
        self.asked: list[tuple[int, int]] = []
        self.now = self.most = 0
        self.error: OSError | None = None

    async def read_some(self, size: int, offset: int) -> bytes:
        """As RawFile's."""
        self.asked.append((offset, size))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.error is not None:
                raise self.error
            return await super().read_some(size, offset)
        finally:
            self.now -= 1


@pytest.fixture
async def raw(ring: aiouring.AsyncRing, tmp_path: Path) -> Any:
    """A file of 8 MiB."""
    (tmp_path / "file").write_bytes(CONTENT)
    file = Watched(ring, tmp_path / "file")
    await file.look()
    file.cached = False
    yield file
    await file.aclose()


async def test_from_front_to_back(raw: Watched) -> None:
    """Blocks grow, several are in flight, no byte is asked for twice, and nothing beyond the end."""
    ahead = ReadAhead(raw)
    parts = [await ahead.read(at, 1000) for at in range(0, len(CONTENT), 1000)]
    assert b"".join(parts) == CONTENT
    assert await ahead.read(len(CONTENT), 1000) == b""
    assert raw.asked[:4] == [(0, FIRST), (FIRST, 4 * FIRST), (5 * FIRST, 16 * FIRST), (21 * FIRST, PIECE)]
    assert raw.most == DEPTH
    places = [offset for offset, _ in raw.asked]
    assert places.pop() == len(CONTENT)  # that it is the end, only a read tells
    assert places == sorted(set(places))


async def test_random_access(raw: Watched) -> None:
    """Elsewhere in the file one small block is read, and nothing ahead; nearby it is there already."""
    ahead = ReadAhead(raw)
    for position in (5_000_000, 100, 3_000_000):
        assert await ahead.read(position, 100) == CONTENT[position : position + 100]
        assert await ahead.read(position + 100, 100) == CONTENT[position + 100 : position + 200]
        assert raw.asked.pop() == (position, FIRST)
        assert not raw.asked
    assert raw.most == 1


async def test_large_reads_are_handed_on(raw: Watched) -> None:
    """Who reads a block of some size again and again gets the very bytes that were read, without a copy."""
    ahead = ReadAhead(raw)
    for at in range(0, len(CONTENT), LARGE):
        await ahead.read(at, LARGE)
        assert ahead.chunk == CONTENT[at : at + LARGE]
        assert ahead.take(at, LARGE) is ahead.chunk
    assert {size for _, size in raw.asked} == {LARGE}
    assert raw.most == DEPTH


async def test_fixed_blocks_and_no_depth(raw: Watched) -> None:
    """A block size that is given is used, and with depth=0 nothing is in flight that was not asked for."""
    ahead = ReadAhead(raw, 5000, 0)
    assert await ahead.read(0, 20_000) == CONTENT[:20_000]
    assert await ahead.read(20_000, 1) == CONTENT[20_000:20_001]
    assert raw.asked == [(0, 20_000), (20_000, 5000)]
    assert raw.most == 1


async def test_what_was_dropped_is_read_again(raw: Watched) -> None:
    """drop() under a reader that waits makes it start anew, with what the file holds by then."""
    ahead = ReadAhead(raw)
    task = asyncio.create_task(ahead.read(0, 300_000))
    for _ in range(7):
        await asyncio.sleep(0)
        ahead.drop()
    assert await task == CONTENT[:300_000]


async def test_a_short_block_ends_the_run(raw: Watched) -> None:
    """A file cut while blocks are in flight gives what is there, and what is appended later follows."""
    ahead = ReadAhead(raw)
    assert await ahead.read(0, 100_000) == CONTENT[:100_000]
    os.truncate(raw.name, 100_500)
    ahead.drop()
    assert await ahead.read(100_000, 9000) == CONTENT[100_000:100_500]
    with open(raw.name, "ab") as file:
        file.write(b"more")
    assert await ahead.read(100_500, 9000) == b"more"


async def test_an_error_is_tried_again(raw: Watched) -> None:
    """A block that failed is an error of whoever wants it, once; the next try reads again."""
    ahead = ReadAhead(raw)
    assert await ahead.read(0, FIRST) == CONTENT[:FIRST]
    ahead.drop()
    raw.error = OSError(errno.EIO, "bad block")
    for _ in range(2):
        with pytest.raises(OSError, match="bad block"):
            await ahead.read(FIRST, 100)
    raw.error = None
    assert await ahead.read(FIRST, 100) == CONTENT[FIRST : FIRST + 100]


async def test_find(raw: Watched) -> None:
    """A byte is found across blocks, from a place on."""
    ahead = ReadAhead(raw, 100, 0)
    for end in range(100, 1000, 100):
        await ahead.read(0, end)
    for start in (0, 99, 100, 550):
        assert ahead.find(b"\n", start) == CONTENT.find(b"\n", start, 900)
        assert ahead.find(CONTENT[899:900], 899) == 899
    assert ahead.find(b"\n", 900) == -1
