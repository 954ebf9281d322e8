"""Tests of what all file objects share: one operation at a time, in the order of the calls."""

import asyncio
import gc
import io
import weakref
from pathlib import Path

import pytest

import aiouring
from aiouring._file_object import InOrder


async def test_in_order() -> None:
    """Tasks come in one after the other, as they called; one that is cancelled while it waits is left out."""
    order = InOrder(lambda: None)
    seen: list[int] = []

    async def use(number: int) -> None:
        async with order:
            seen.append(number)
            await asyncio.sleep(0)
            seen.append(number)

    tasks = [asyncio.create_task(use(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order.users == 5
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert seen == [0, 0, 1, 1, 3, 3, 4, 4]
    assert order.users == 0


@pytest.mark.parametrize("direct", [False, True])
async def test_i4_freed_by_reference_count(ring: aiouring.AsyncRing, tmp_path: Path, direct: bool) -> None:
    """A closed file leaves no cycle behind, whatever was in flight for it."""
    file = await aiouring.open(tmp_path / "file", "w+", direct=direct, ring=ring)
    gc.disable()
    try:
        await file.write("line\n" * 500_000)
        await file.seek(0)
        assert await file.readline() == "line\n"
        assert await file.read(1_000_000) == "line\n" * 200_000
        seen = [weakref.ref(each) for each in (file, file.buffer, file.buffer._raw)]
        await file.close()
        del file
        await asyncio.sleep(0)
        assert [each() for each in seen] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_the_face_of_a_file(ring: aiouring.AsyncRing, tmp_path: Path, mode: str) -> None:
    """Lines by `async for` and readlines(), the names of aiofiles, an end by `async with`, and a repr that tells."""
    path = tmp_path / "lines"
    path.write_text("one\ntwo\nthree")
    lines = path.read_bytes().splitlines(keepends=True) if "b" in mode else ["one\n", "two\n", "three"]
    async with aiouring.open(path, mode, ring=ring) as file:
        assert [line async for line in file] == lines
        await file.seek(0)
        assert await file.readlines() == lines
        await file.seek(0)
        assert await file.readlines(4) == lines[:2]
        assert file.mode == mode
        assert file.name == str(path)
        assert file.readable() is True
        assert await file.writable() is False
        assert await file.seekable() is True
        assert await file.isatty() is False
        assert file.fileno() >= 0
        assert repr(file).endswith(f" name={str(path)!r} mode={mode!r}>")
        with pytest.raises(io.UnsupportedOperation, match="closefd=False"):
            file.detach()
    assert file.closed
    assert repr(file).endswith(" closed>")
    await file.close()
    await file.aclose()
    for verb in (file.read, file.readline, file.readlines, file.tell, file.writable, file.isatty, file.flush):
        with pytest.raises(ValueError, match="closed file"):
            await verb()
    for call in (file.fileno, file.readable, file.__aiter__):
        with pytest.raises(ValueError, match="closed file"):
            call()
    with pytest.raises(ValueError, match="closed file"):
        async with file:
            pass
