"""Tests of text files: what the built-in open() does with the same calls, in every encoding."""

import asyncio
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_binary_file import LOOPS, outcome, outcome_of
from test_decoding import ENCODINGS, newlines, texts

import aiouring
from aiouring import _text_file
from aiouring._decoding import Cookie

operations = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 30)),
        st.tuples(st.just("readline"), st.integers(1, 30)),
        st.tuples(st.sampled_from(["readline", "tell and seek", "flush"])),
        st.tuples(st.just("readlines"), st.integers(-1, 30)),
        st.tuples(st.just("seek"), st.just(0), st.sampled_from([os.SEEK_SET, os.SEEK_END])),
        st.tuples(st.just("rewrite"), texts),
        st.tuples(st.just("truncate"), st.integers(0, 30)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_as_the_built_in_does(
    factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any calls, in any mode, encoding, newline and errors, return and raise what the built-in's do; so is the file."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"

    async def check(mode: str, options: dict[str, Any], content: bytes, script: list[tuple[Any, ...]]) -> None:
        for path in (ours, theirs):
            path.write_bytes(content)
        async with aiouring.open(ours, mode, **options) as file:
            with open(theirs, mode, **options) as model:
                for step in script:
                    wanted = outcome(partial(theirs_does, model, *step))
                    found = await outcome_of(ours_does(file, *step))
                    if wanted in ((UnicodeDecodeError, None), (UnicodeError, None)):
                        return  # when it comes depends on how much is decoded at a time
                    if wanted == (OSError, None):
                        return  # "telling position disabled by next() call", which readlines() leaves behind
                    assert found == wanted, step
        assert ours.read_bytes() == theirs.read_bytes()

    modes = st.sampled_from(["r", "w", "a", "r+", "w+", "a+"])
    handlers = st.sampled_from([None, "strict", "ignore", "replace", "backslashreplace", "surrogateescape"])
    junk = st.sampled_from([b"", b"", b"\xe2\x82", b"\xff", b"\r", b"\x80abc"])
    with asyncio.Runner(loop_factory=factory) as runner:

        @settings(max_examples=400, deadline=None, database=None, report_multiple_bugs=False)
        @given(modes, st.sampled_from(ENCODINGS), handlers, newlines, texts, junk, st.integers(1, 50), operations)
        def example(
            mode: str, encoding: str, errors: str | None, newline: str | None, text: str, end: bytes, chunk: int,
            script: list[tuple[Any, ...]],
        ) -> None:  # fmt: skip
            monkeypatch.setattr(_text_file, "CHUNK", chunk)
            options = {"encoding": encoding, "errors": errors, "newline": newline}
            runner.run(check(mode, options, text.encode(encoding, "ignore") + end, script))

        example()


def theirs_does(file: Any, name: str, *arguments: Any) -> Any:
    """One step of a script, on the built-in's file."""
    if name == "rewrite":  # at a place that is certain: the built-in writes behind what it has read ahead
        return file.seek(0, os.SEEK_END), file.write(*arguments)
    if name == "tell and seek":
        file.seek(file.tell())
        return file.read(2)
    if name == "truncate":
        file.seek(0)
    return getattr(file, name)(*arguments)


async def ours_does(file: Any, name: str, *arguments: Any) -> Any:
    """The same on ours."""
    if name == "rewrite":
        return await file.seek(0, os.SEEK_END), await file.write(*arguments)
    if name == "tell and seek":
        await file.seek(await file.tell())
        return await file.read(2)
    if name == "truncate":
        await file.seek(0)
    return await getattr(file, name)(*arguments)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
async def test_a_long_text(ring: aiouring.AsyncRing, tmp_path: Path, encoding: str) -> None:
    """Characters and line ends across blocks of every kind; positions work there as everywhere."""
    path = tmp_path / "long"
    lines = [f"{number} é日本😀" * (number % 50) + "\r\n" for number in range(6000)]
    path.write_bytes("".join(lines).encode(encoding))
    async with aiouring.open(path, encoding=encoding, ring=ring) as file:
        places = {}
        for number in range(6000):
            if number % 500 == 7:
                places[number] = await file.tell()
            assert await file.readline() == lines[number].replace("\r", "")
        assert await file.readline() == ""
        for number in (507, 7, 5507):
            await file.seek(places[number])
            assert await file.read(len(lines[number]) - 1) == lines[number].replace("\r", "")
    async with aiouring.open(path, encoding=encoding, newline="", ring=ring) as file:
        assert [line async for line in file] == lines
        assert file.newlines == "\r\n"
        await file.seek(0)
        assert await file.read() == "".join(lines)


async def test_a2_cancelled_reads_move_nothing(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Whenever a read is cancelled, the next one begins where it would have."""
    path = tmp_path / "text"
    text = "né日\n" * 30_000
    path.write_text(text, encoding="utf-8")
    async with aiouring.open(path, encoding="utf-8", ring=ring) as file:
        found = ""
        while len(found) < len(text):
            task = asyncio.create_task(file.read(9000))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            try:
                found += await task
            except asyncio.CancelledError:
                found += await file.readline()
        assert found == text


async def test_writing_goes_on_where_reading_stopped(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Unlike the built-in's: a write after a read is at the character that would have been read next."""
    path = tmp_path / "text"
    path.write_text("Größe: 5 m\n", encoding="utf-8")
    async with aiouring.open(path, "r+", encoding="utf-8", ring=ring) as file:
        assert await file.read(7) == "Größe: "
        assert await file.write("7") == 1
        assert await file.read() == " m\n"
        await file.seek(0)
        assert await file.read(5) == "Größe"
        assert await file.truncate() == 7
    assert path.read_text(encoding="utf-8") == "Größe"


@pytest.mark.parametrize("size", [-1, 100, None])
async def test_bytes_that_are_no_text(ring: aiouring.AsyncRing, tmp_path: Path, size: int | None) -> None:
    """They are an error each time; what was before the block can be gone back to, and nothing has been read."""
    path = tmp_path / "text"
    path.write_bytes(b"good\n" * 20_000 + b"\xff bad")
    async with aiouring.open(path, encoding="utf-8", ring=ring) as file:
        assert await file.readline() == "good\n"
        verb = file.readline if size is None else file.read
        for _ in range(3):
            with pytest.raises(UnicodeDecodeError):
                for _ in range(30_000):
                    await verb() if size is None else await verb(size)
        await file.seek(10)
        assert await file.readline() == "good\n"


async def test_line_buffering(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """buffering=1 has each line in the file when write() returns; without it the block decides."""
    path = tmp_path / "log"
    async with aiouring.open(path, "w", 1, ring=ring) as file:
        assert file.line_buffering
        await file.write("one")
        assert path.read_text() == ""
        await file.write(" line\ntwo")
        assert path.read_text() == "one line\ntwo"
    async with aiouring.open(path, "w", ring=ring) as file:
        assert not file.line_buffering
        await file.write("one\n")
        assert path.read_text() == ""
        await file.flush()
        assert path.read_text() == "one\n"
        await file.sync()
        await file.sync(data_only=True)


async def test_what_is_refused(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Bytes, places that tell() never gave, and text that cannot be encoded; nothing has happened then."""
    path = tmp_path / "text"
    async with aiouring.open(path, "w+", encoding="latin-1", newline="\r\n", ring=ring) as file:
        with pytest.raises(TypeError, match="must be str, not bytes"):
            await file.write(b"bytes")  # type: ignore[arg-type]
        await file.write("a\n")
        with pytest.raises(UnicodeEncodeError):
            await file.write("日本")
        for offset, whence, error in (
            (5, os.SEEK_CUR, io.UnsupportedOperation),
            (5, os.SEEK_END, io.UnsupportedOperation),
            (-5, os.SEEK_SET, ValueError),
            (0, 9, ValueError),
        ):
            with pytest.raises(error):
                await file.seek(offset, whence)
        with pytest.raises(OSError, match="restore"):
            await file.seek(Cookie(0, 0, 3, 30).pack())
        await file.seek(0, os.SEEK_END)
        await file.writelines(["b", "\n"])
    assert path.read_bytes() == b"a\r\nb\r\n"
    assert file.encoding == "latin-1"
    assert file.errors == "strict"
    assert file.buffer.closed
