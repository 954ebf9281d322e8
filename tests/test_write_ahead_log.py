"""Tests of examples/write_ahead_log.py: what was acknowledged is there, whatever happens to the writer."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_systems import mounted

import aiouring
from aiouring._chaining import Link
from aiouring._linked import Chain

EXAMPLE = Path(__file__).parent.parent / "examples" / "write_ahead_log.py"

RECORDS = [b"", b"a", b"bb" * 50, bytes(20), b"the end"]


def load() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("example_write_ahead_log", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load()


def run(*arguments: "str | Path") -> "subprocess.CompletedProcess[str]":
    """Run the example; a warning is an error."""
    command = [sys.executable, "-W", "error", str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def framed(records: list[bytes]) -> bytes:
    """A log with these records."""
    return b"".join(example.header_of(record) + record for record in records)


async def recover(ring: aiouring.AsyncRing, path: Path, *more: bytes) -> tuple[list[bytes], int]:
    """What is in a log, and how many bytes were torn; then append `more`."""
    found: list[bytes] = []
    async with example.WriteAheadLog(ring, path, found.append) as log:
        for record in more:
            await log.append(record)
        return found, log.torn


@pytest.mark.deadline(110)
def test_killed_writers(tmp_path: Path) -> None:
    """Of writers that are killed at random moments every acknowledged record is there, once and in order."""
    done = run("--check", "--rounds", "40", "--directory", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    found = re.match(r"ok: 40 writers killed, ([\d,]+) records", done.stdout)
    assert found, done.stdout
    assert int(found[1].replace(",", "")) > 40
    assert os.listdir(tmp_path) == []


def test_the_check_notices() -> None:
    """What --check compares tells a lost record, one that is there twice, one out of order, and a changed beginning."""
    names = [(0, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert list(example.differences(names, names[:2], set(names))) == []
    for found, before, acknowledged, text in (
        (names[:2], [], {*names}, "1 records were acknowledged"),
        ([*names, names[0]], [], set(), "1 records are there twice"),
        (names[::-1], [], set(), "record (0, 0, 1) is where 0"),
        (names, names[1:], set(), "the first 2 records"),
    ):
        assert text in " ".join(example.differences(found, before, acknowledged))


def test_demo(tmp_path: Path) -> None:
    """The demonstration prints figures, and many appenders share a flush."""
    done = run("--demo", "--seconds", "0.2", "--directory", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    figures = re.findall(r"^(\d+) appenders: [\d,]+ appends/s .* ([\d.]+) records per fdatasync$", done.stdout, re.M)
    assert [int(appenders) for appenders, _ in figures] == [1, 64]
    assert float(figures[0][1]) == 1
    assert float(figures[1][1]) > 32
    assert os.listdir(tmp_path) == []


async def test_a_log_cut_off_anywhere(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Cut off at any byte, the whole records before it are recovered, and appending goes on behind them."""
    whole, path = framed(RECORDS), tmp_path / "log"
    ends = [len(framed(RECORDS[:count])) for count in range(len(RECORDS) + 1)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        count = sum(end <= size for end in ends) - 1
        assert await recover(ring, path, b"more") == (RECORDS[:count], size - ends[count])
        assert path.read_bytes() == framed([*RECORDS[:count], b"more"])


@pytest.mark.parametrize("tail", [bytes(4096), b"\xff" * 100, b"\xff" * (3 << 20), framed([b"x" * 99])[:-1] + b"y"])
async def test_what_is_no_record(ring: aiouring.AsyncRing, tail: bytes, tmp_path: Path) -> None:
    """Zeros, nonsense and a record with a wrong byte are torn, and so is everything behind them."""
    path = tmp_path / "log"
    path.write_bytes(framed(RECORDS) + tail + framed([b"behind"]))
    assert await recover(ring, path) == (RECORDS, len(tail) + len(framed([b"behind"])))
    assert await recover(ring, path) == (RECORDS, 0)
    assert path.read_bytes() == framed(RECORDS)


async def test_a_changed_byte_is_noticed(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Wherever one bit of a record is wrong, neither it nor what follows is recovered."""
    path, start = tmp_path / "log", len(framed(RECORDS[:2]))
    for at in range(start, start + len(framed(RECORDS[2:3]))):
        data = bytearray(framed(RECORDS))
        data[at] ^= 1
        path.write_bytes(data)
        assert (await recover(ring, path))[0] == RECORDS[:2]


async def test_large_records(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Records up to the largest that there can be go through batches and recovery; a larger one is refused."""
    largest = example.BATCH - example.HEADER.size
    records = [bytes([number]) * (largest - number) for number in range(4)] + [b"small"] * 3
    async with example.WriteAheadLog(ring, tmp_path / "log", bytes) as log:
        with pytest.raises(ValueError, match=f"at most {largest} bytes, and this payload has {largest + 1}"):
            await log.append(bytes(largest + 1))
        await asyncio.gather(*map(log.append, records))
    assert await recover(ring, tmp_path / "log") == (records, 0)


async def test_one_commit_for_a_turn(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What is appended in one turn is one commit, and what is appended during a commit is the next one."""
    async with example.WriteAheadLog(ring, tmp_path / "log", bytes) as log:
        places = await asyncio.gather(*(log.append(b"%03d" % number) for number in range(100)))
        assert (log.records, log.commits) == (100, 1)
        assert places == [number * 11 for number in range(100)]
        first = asyncio.create_task(log.append(b"first"))
        while log._waiting or not ring._driver.inflight:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        others = [asyncio.create_task(log.append(b"others")) for _ in range(50)]
        await asyncio.gather(first, *others)
        assert (log.records, log.commits) == (151, 3)


async def test_cancelled_appends(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A cancelled append that was not yet on its way is left out; leaving the log commits what was appended."""
    async with example.WriteAheadLog(ring, tmp_path / "log", bytes) as log:
        tasks = [asyncio.create_task(log.append(b"%d" % number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        tasks.append(asyncio.create_task(log.append(b"4")))
        await asyncio.sleep(0)
    assert [task.cancelled() for task in tasks] == [False, True, False, False, False]
    await asyncio.wait(tasks)
    assert (await recover(ring, tmp_path / "log"))[0] == [b"0", b"2", b"3", b"4"]
    with pytest.raises(RuntimeError, match="closed"):
        await log.append(b"late")


class BadFlush(Chain):
    """A chain whose flush fails."""

    def fdatasync(self, fd: Any) -> Link:
        """Flush a pipe, which cannot be."""
        return super().fdatasync(self.pipe)

    pipe = -1


@pytest.fixture
def pipe_end() -> Iterator[int]:
    """A descriptor that cannot be flushed."""
    reader, writer = os.pipe()
    yield writer
    os.close(reader)
    os.close(writer)


async def test_nothing_is_acknowledged_before_its_flush(
    ring: aiouring.AsyncRing, pipe_end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a flush fails every append of the commit does, and the log is over until it is opened again."""
    path = tmp_path / "log"
    async with example.WriteAheadLog(ring, path, bytes) as log:
        await log.append(b"good")
        monkeypatch.setattr(BadFlush, "pipe", pipe_end)
        monkeypatch.setattr(ring, "chain", lambda: BadFlush(ring))
        for outcome in await asyncio.gather(*map(log.append, [b"1", b"2", b"3"]), return_exceptions=True):
            assert isinstance(outcome, OSError)
            assert "open it again" in str(outcome)
        monkeypatch.undo()
        with pytest.raises(OSError, match="open it again"):
            await log.append(b"later")
    assert (await recover(ring, path))[0][:1] == [b"good"]


async def test_full_disk(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """On a full disk appends fail, and every one that did not is recovered."""
    acknowledged = 0
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1m") as small:
        async with example.WriteAheadLog(ring, small / "log", bytes) as log:
            with pytest.raises(OSError, match="open it again"):
                while True:
                    await log.append(b"%8d" % acknowledged + bytes(5000))
                    acknowledged += 1
        found, _ = await recover(ring, small / "log")
    assert acknowledged > 100
    assert [int(record[:8]) for record in found[:acknowledged]] == list(range(acknowledged))


async def test_one_writer_at_a_time(
    ring: aiouring.AsyncRing, new_ring: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is open cannot be opened again."""
    monkeypatch.setattr(example, "PATIENCE", 0)
    async with example.WriteAheadLog(ring, tmp_path / "log", bytes):
        with pytest.raises(BlockingIOError, match="another process has this log open"):
            await recover(await new_ring(), tmp_path / "log")
    assert await recover(ring, tmp_path / "log") == ([], 0)


def test_recovers_by_hand(tmp_path: Path) -> None:
    """The command line recovers a log and says what is in it."""
    path = tmp_path / "log"
    path.write_bytes(framed(RECORDS) + b"torn")
    size = len(framed(RECORDS))
    for torn in (4, 0):
        done = run(path)
        expected = f"5 records in {size} bytes; {torn} bytes were torn and have been cut off\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (1, f"write_ahead_log.py: [Errno 21] Is a directory: '{tmp_path}'\n")


@pytest.mark.needs_no_ring
def test_wrong_options() -> None:
    """What would not end well is refused."""
    for arguments, text in (
        ((), "one of LOG, --demo and --check"),
        (("log", "--demo"), "one of LOG, --demo and --check"),
        (("--demo", "--appenders", "0"), "--appenders is a number above 0, not 0"),
        (("--demo", "--size", "2000000"), "--size 2000000 is outside 0 to"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert text in done.stderr
