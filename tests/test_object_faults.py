"""Regression tests of the types written in C."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring import AsyncRing, Connection
from aiouring._objects import FileRow, new_bytes
from aiouring._raw_file import RawFile

Pair = tuple[socket.socket, socket.socket]


class Told:
    """Stands where a reader's future would, as TLS does; as large as one."""

    __slots__ = ("times", *(f"_{n}" for n in range((asyncio.Future.__basicsize__ - 16) // 8 - 1)))

    def __init__(self) -> None:
        self.times = 0

    def set_result(self, _: None) -> None:
        """Something came."""
        self.times += 1


async def test_who_lies_where_a_future_lay_is_told(ring: AsyncRing, pair: Pair) -> None:
    """Whoever takes the reader's place, and the memory of its last future, hears of what comes: STARTTLS would hang."""
    with ring.register_buffer_ring(count=4, size=64) as group:
        async with Connection(ring, pair[0], group) as connection:
            receiving: Any = connection._receiving
            task = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)
            place = id(receiving._ready)
            pair[1].send(b"one")
            (await task).release()
            others: list[Told] = []
            while id(told := Told()) != place and len(others) < 100_000:
                others.append(told)
            if id(told) != place:
                pytest.skip("memory that was freed is not given out again here")
            receiving._ready = told
            pair[1].send(b"two")
            while not receiving.pending:
                await asyncio.sleep(0)
            receiving._ready = None
            assert told.times == 1
            (await connection.receive()).release()


class Whole:
    """What stands for an int without being one, as NumPy's integers do."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __lt__(self, other: int) -> bool:
        return self.value < other

    def __gt__(self, other: int) -> bool:
        return self.value > other


async def test_sizes_and_offsets_that_stand_for_ints(ring: AsyncRing, tmp_path: Path) -> None:
    """A file takes any whole number, as the built-in one does."""
    (tmp_path / "file").write_bytes(bytes(range(100)))
    async with aiouring.open(tmp_path / "file", "rb", ring=ring) as file:
        size: Any = Whole(10)
        offset: Any = Whole(20)
        assert await file.read_at(size, offset) == bytes(range(20, 30))
        assert len(new_bytes(size)) == 10


@pytest.mark.needs_no_ring
def test_an_offset_is_asked_for_its_value_only_where_there_is_a_size() -> None:
    """What cannot be a size is said so, whatever the offset is: no Python code runs with an exception on its way."""
    offset: Any = Whole(20)
    with pytest.raises(TypeError, match="str"):
        FileRow().read_at_once("10", offset)  # type: ignore[arg-type]
    assert FileRow().read_at_once(1 << 70, offset) == b""


@pytest.mark.parametrize("mode", ["rb", "r+b"])
async def test_what_is_not_there_is_not_looked_for_twice(
    ring: AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A read that the page cache does not answer has asked it once before it goes to the request's way."""
    (tmp_path / "file").write_bytes(bytes(100))
    asked = []
    ask = RawFile.read_at_once

    def note(file: RawFile, size: int, offset: int) -> bytes:
        asked.append(offset)
        return ask(file, size, offset)

    monkeypatch.setattr(RawFile, "read_at_once", note)
    async with aiouring.open(tmp_path / "file", mode, ring=ring) as file:
        assert isinstance(file, aiouring.BinaryFile)
        assert await file.read_at(100, 10) == bytes(90)
        assert asked == ([] if mode == "rb" else [10])  # that of a file that is only read is asked in C
