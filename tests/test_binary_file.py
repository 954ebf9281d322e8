"""Tests of binary files: what the built-in open() does with the same calls, whatever is cancelled in between."""

import asyncio
import errno
import io
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

import aiouring
from aiouring._write_behind import WriteBehind

CONTENT = random.Random(1).randbytes(700_000)
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    return path


sizes = st.one_of(
    st.integers(0, 40), st.integers(0, 70_000), st.just(16384), st.integers(0, 300_000), st.just(1_500_000)
)
places = st.one_of(st.integers(0, 100), st.integers(0, 80_000))


class Data(bytes):
    """Bytes with a short repr."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


data = st.builds(
    lambda seed, size: Data(random.Random(seed).randbytes(size).replace(b"\1", b"\n")), st.integers(0, 9), sizes
)
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["read", "readinto"]), sizes),
        st.tuples(st.just("readline"), st.integers(1, 70_000)),
        st.tuples(st.sampled_from(["read", "readline", "tell", "truncate", "flush"])),
        st.tuples(st.just("readlines"), st.integers(-1, 300)),
        st.tuples(st.just("write"), data),
        st.tuples(st.just("writelines"), st.lists(data, max_size=3)),
        st.tuples(st.just("seek"), places, st.sampled_from([os.SEEK_SET, os.SEEK_END])),
        st.tuples(st.just("seek"), st.integers(-50, 50), st.just(os.SEEK_CUR)),
        st.tuples(st.just("truncate"), places),
    ),
    max_size=12,
)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or how it fails."""
    try:
        return call()
    except (OSError, ValueError, OverflowError) as error:
        return type(error), getattr(error, "errno", None)


async def outcome_of(coroutine: Awaitable[Any]) -> Any:
    """The same of an awaitable."""
    try:
        return await coroutine
    except (OSError, ValueError, OverflowError) as error:
        return type(error), getattr(error, "errno", None)


def fill(file: Any, size: int) -> Any:
    """readinto(), and what it filled."""
    memory = bytearray(size)
    return file.readinto(memory), memory


async def fill_ours(file: Any, size: int) -> Any:
    """The same of ours."""
    memory = bytearray(size)
    return await file.readinto(memory), memory


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_as_the_built_in_does(factory: Callable[[], asyncio.AbstractEventLoop], direct: bool, tmp_path: Path) -> None:
    """Any calls, in any mode, return and raise what the built-in's do, and leave the same file."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"

    async def check(mode: str, buffering: int, size: int, script: list[tuple[Any, ...]]) -> None:
        for path in (ours, theirs):
            path.write_bytes(CONTENT[:size])
        async with aiouring.open(ours, mode, buffering, direct=direct) as file:
            with open(theirs, mode, -1 if buffering == 0 else buffering) as model:
                for name, *arguments in script:
                    if "a" in mode and name in ("seek", "truncate"):
                        continue  # the built-in's tell() is wrong when it appends from elsewhere
                    if name == "readinto":
                        wanted = outcome(partial(fill, model, arguments[0]))
                        found = await outcome_of(fill_ours(file, arguments[0]))
                    else:
                        wanted = outcome(partial(getattr(model, name), *arguments))
                        found = await outcome_of(getattr(file, name)(*arguments))
                    assert found == wanted, (name, arguments)
                assert await file.tell() == model.tell()
        assert ours.read_bytes() == theirs.read_bytes()

    modes = st.sampled_from(["rb", "wb", "ab", "r+b", "w+b", "a+b"])
    with asyncio.Runner(loop_factory=factory) as runner:

        @settings(max_examples=400, deadline=None, database=None, report_multiple_bugs=False)
        @given(modes, st.sampled_from([-1, -1, 0, 64, 5000]), st.integers(0, 700_000), operations)
        def example(mode: str, buffering: int, size: int, script: list[tuple[Any, ...]]) -> None:
            runner.run(check(mode, buffering, size, script))

        example()


async def test_positional_and_at_the_position(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """read_at() and write_at() leave the position alone, see what is unwritten, and are seen by reads after them."""
    async with aiouring.open(numbers, "r+b", ring=ring) as file:
        assert await file.read(10) == CONTENT[:10]
        assert await file.write(b"later") == 5
        assert await file.read_at(7, 9) == CONTENT[9:10] + b"later" + CONTENT[15:16]
        assert await file.write_at(b"there", 20) == 5
        assert await file.tell() == 15
        assert await file.read(10) == CONTENT[15:20] + b"there"
        parts = await asyncio.gather(*(file.read_at(1000, 1000 * at) for at in range(1, 100)))
        assert b"".join(parts) == CONTENT[1000:100_000]
        await asyncio.gather(*(file.write_at(bytes([at]) * 1000, 1000 * at) for at in range(1, 100)))
        assert await file.read_at(99_000, 1000) == b"".join(bytes([at]) * 1000 for at in range(1, 100))
        assert await file.read_at(10, 1 << 30) == b""
        assert await file.read_at(0, 0) == b""
        for size, offset in ((-1, 0), (0, -1), (5, -2)):
            with pytest.raises(ValueError, match="negative"):
                await file.read_at(size, offset)
        with pytest.raises(ValueError, match="negative"):
            await file.write_at(b"x", -1)


async def test_several_tasks_at_the_position(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Reads of several tasks are done in the order of the calls, and each byte is read once."""
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        parts = await asyncio.gather(*(file.read(size) for size in range(1000)))
        assert [len(part) for part in parts] == list(range(1000))
        assert b"".join(parts) == CONTENT[: len(b"".join(parts))]
    async with aiouring.open(numbers, "wb", ring=ring) as file:
        await asyncio.gather(*(file.write(bytes([at % 256]) * at) for at in range(1000)))
    assert numbers.read_bytes() == b"".join(bytes([at % 256]) * at for at in range(1000))


async def test_a_read_while_another_task_writes_there(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """write_at() drops what was read ahead under a reader who is waiting for it; the reader starts anew."""
    async with aiouring.open(numbers, "r+b", ring=ring) as file:
        for _ in range(20):
            await file.seek(0)
            reads = asyncio.gather(*(file.read(100_000) for _ in range(7)))
            for at in range(10):
                await file.write_at(CONTENT[at * 50_000 : at * 50_000 + 7], at * 50_000)
            assert b"".join(await reads) == CONTENT


async def test_a_pipe(ring: aiouring.AsyncRing) -> None:
    """A pipe has no position and no offsets; a cancelled read loses nothing of it."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", ring=ring) as source, aiouring.open(writer, "wb", ring=ring) as target:
        assert await source.seekable() is False
        for verb in (source.tell(), source.seek(0), source.read_at(1, 0), target.write_at(b"", 0), target.tell()):
            with pytest.raises(io.UnsupportedOperation):
                await verb
        await target.write(b"hello\nworld")
        await target.flush()
        assert await source.readline() == b"hello\n"
        task = asyncio.create_task(source.read(10))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await target.write(b" and all")
        await target.flush()
        assert await source.read(10) == b"world and "
        task = asyncio.create_task(source.read(4))
        await asyncio.sleep(0)
        task.cancel()
        await target.close()
        assert await source.read() == b"all"


async def test_closing_under_a_reader(ring: aiouring.AsyncRing) -> None:
    """Whoever waits for a file that is closed gets ECANCELED, and the next one that it is closed."""
    reader, writer = os.pipe()
    file = await aiouring.open(reader, "rb", ring=ring)
    reads = [asyncio.create_task(file.read(1)), asyncio.create_task(file.readline())]
    await asyncio.sleep(0.01)
    await file.close()
    first, second = await asyncio.gather(*reads, return_exceptions=True)
    assert isinstance(first, OSError)
    assert first.errno == errno.ECANCELED
    assert isinstance(second, ValueError)
    os.close(writer)


async def test_closing_under_a_writer_who_waits_for_room(
    ring: aiouring.AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What close() would not write any more is refused, not taken and lost."""
    file = await aiouring.open(tmp_path / "file", "wb", ring=ring)
    await file.write(b"before")
    monkeypatch.setattr(WriteBehind, "ready", False)
    monkeypatch.setattr(WriteBehind, "room", lambda _: file.close())
    with pytest.raises(ValueError, match="closed file"):
        await file.write(b"late")
    assert (tmp_path / "file").read_bytes() == b"before"


async def test_modes_and_closed_files(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """What the mode is not for is UnsupportedOperation, what is closed ValueError, before anything happens."""
    verb: Awaitable[Any]
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        for verb in (file.write(b"x"), file.truncate(), file.writelines([b"x"]), file.write_at(b"x", 0)):
            with pytest.raises(io.UnsupportedOperation, match="not writable"):
                await verb
    async with aiouring.open(numbers, "ab", ring=ring) as appended:
        for verb in (appended.read(), appended.readline(), appended.read_at(1, 0), appended.readinto(bytearray(1))):
            with pytest.raises(io.UnsupportedOperation, match="not readable"):
                await verb
        with pytest.raises(io.UnsupportedOperation, match="appending"):
            await appended.write_at(b"x", 0)
    for verb in (file.read_at(1, 0), file.peek(), file.read1(), file.seek(0), file.sync(), file.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed file"):
            await verb
    for verb in (appended.write(b"x"), appended.write_at(b"x", 0), appended.truncate(0)):
        with pytest.raises(ValueError, match="closed file"):
            await verb
    assert numbers.read_bytes() == CONTENT


async def test_whence_that_does_not_exist(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """It is the built-in's ValueError, before the position moves; so it is for a pipe, which has none."""
    async with aiouring.open(numbers, "rb", ring=ring) as file:
        with numbers.open("rb") as model:
            for whence in (9, -1, 5):
                with pytest.raises(ValueError, match=f"whence value {whence} unsupported") as theirs:
                    model.seek(3, whence)
                with pytest.raises(ValueError, match=f"whence value {whence} unsupported") as ours:
                    await file.seek(3, whence)
                assert type(ours.value) is type(theirs.value)
        assert await file.tell() == 0


async def test_m3_buffers_that_cannot_be_used(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """What has no bytes, or cannot be written to, is refused as by the built-in, and nothing has been read."""
    async with aiouring.open(numbers, "r+b", ring=ring) as file:
        for wrong in (b"read-only", memoryview(b"1234"), "text", 5):
            with pytest.raises((TypeError, BufferError)):
                await file.readinto(wrong)
        for other in ("text", None, [1], 5):
            with pytest.raises(TypeError):
                await file.write(other)
            with pytest.raises(TypeError):
                await file.write_at(other, 0)
        assert await file.tell() == 0
        assert await file.readinto(bytearray()) == 0
        assert await file.write(b"") == 0
        view = memoryview(bytearray(CONTENT[:4000])).cast("I")
        assert await file.write(view) == 4000
        assert await file.readinto(view) == 4000
        assert view.tobytes() == CONTENT[4000:8000]


async def test_sparse_places(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """SEEK_DATA and SEEK_HOLE are answered by the file system, and an impossible place is EINVAL."""
    async with aiouring.open(tmp_path / "sparse", "w+b", ring=ring) as file:
        await file.truncate(10 << 20)
        await file.seek(1 << 20)
        await file.write(b"island")
        assert await file.seek(0, os.SEEK_DATA) == 1 << 20
        assert await file.seek(1 << 20, os.SEEK_HOLE) > 1 << 20
        assert await file.seek(0, os.SEEK_END) == 10 << 20
        with pytest.raises(OSError, match="sparse"):
            await file.seek(-(11 << 20), os.SEEK_END)
        assert await file.tell() == 10 << 20
