"""Owns the write-ahead log: appends that are on the disk when they return, many of them for one flush.

    python examples/write_ahead_log.py --demo         # how fast it is, on the disk of the directory you are in
    python examples/write_ahead_log.py --check        # kills the writer again and again, and compares what is left
    python examples/write_ahead_log.py LOG            # recover a log, and say what is in it

How this fits together

1. A record is its length, a CRC-32 of length and payload, and the payload.  Zeros are no record, nor is a part of one.
2. Group commit: whatever is appended while a commit is on its way, or within one turn of the loop, goes out with the
   next one.  A commit is one linked pair of requests, in one submission: a write from a registered buffer and, only if
   all of it was written, an fdatasync.  The loop hears of both when they are over, and then every append() returns.
3. The buffer is the packer's between two commits, and the kernel's during one.
4. Where a commit fails the log is over: after a failed flush nobody knows what is on the disk, and a second flush would
   not tell.  Open it again: recovery reads the records from the beginning, stops at the first that is torn, cuts off
   what follows, and flushes that before anything is appended.

A killed process tests all of this but the disk: what the kernel has been given survives the process.

Exit codes: 0, or 1 if the check or the disk failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import collections
import contextlib
import fcntl
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import aiouring

HEADER = struct.Struct("<II")  # the payload's length in bytes, and the CRC-32 of that and of the payload
BATCH = 1 << 20  # bytes that one commit writes at most, and so the largest record with its header
PATIENCE = 5  # seconds to wait for the lock of a log


class TornError(Exception):
    """Here is no record: it was not written to its end."""


class Append(NamedTuple):
    """A record that waits for its commit."""

    header: bytes
    payload: bytes
    done: asyncio.Future[int]

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return len(self.header) + len(self.payload)


def header_of(payload: "bytes | bytearray") -> bytes:
    """What stands before a payload."""
    length = len(payload).to_bytes(4, "little")
    return HEADER.pack(len(payload), zlib.crc32(payload, zlib.crc32(length)))


def parse(data: bytearray, at: int) -> bytes | None:
    """The payload of the record at `at`, or None if not all of it has been read yet."""
    if len(data) - at < HEADER.size:
        return None
    length, _ = HEADER.unpack_from(data, at)
    if length > BATCH - HEADER.size:
        raise TornError
    payload = bytes(data[at + HEADER.size : at + HEADER.size + length])
    if len(payload) < length:
        return None
    if data[at : at + HEADER.size] != header_of(payload):
        raise TornError
    return payload


class WriteAheadLog:
    """A log that is open for appending; `async with` recovers it, and at the end waits for what was appended.

    Args:
        ring: whose requests do it; its table of registered buffers is the log's meanwhile.
        path: made if it is not there.  One process has it open at a time.
        replay: called with the payload of every record that is there, in order, before anything can be appended.
    """

    def __init__(self, ring: aiouring.AsyncRing, path: "str | Path", replay: Callable[[bytes], object]) -> None:
        self.ring = ring
        self.path = path
        self.replay = replay
        self.end = 0  # bytes of whole records, all of them on the disk
        self.torn = 0  # bytes that recovery cut off
        self.records = self.commits = 0  # since it was opened
        self._waiting: collections.deque[Append] = collections.deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._failure: OSError | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with self._stack:
            self._fd = await self.ring.openat(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self._stack.push_async_callback(self.ring.close, self._fd)
            await self._lock()
            table = self._stack.enter_context(self.ring.register_buffers(count=1, size=BATCH))
            self._buffer = self._stack.enter_context(table[0])
            await self._recover()
            self._stack = self._stack.pop_all()
        self._committer = asyncio.create_task(self._commit_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._stack:
            self._closing = True
            self._wake.set()
            await self._committer

    async def append(self, payload: bytes) -> int:
        """Append a record; returns its place in the log when it is on the disk.

        Records are in the log in the order of the calls.  After an exception, cancellation too, the record may be there
        or not.

        Raises:
            ValueError: it is too long.
            OSError: the disk refused this commit or one before it; open the log again to go on.
        """
        if len(payload) > BATCH - HEADER.size:
            raise ValueError(f"a record holds at most {BATCH - HEADER.size} bytes, and this payload has {len(payload)}")
        if self._failure is not None:
            raise again(self._failure)
        if self._closing:
            raise RuntimeError("the log is closed")
        record = Append(header_of(payload), payload, asyncio.get_running_loop().create_future())
        self._waiting.append(record)
        self._wake.set()
        return await record.done

    # ---- commits -------------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        """Commit whatever waits, until the log is closed or a commit fails."""
        batch: list[Append] = []
        try:
            while self._waiting or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._next_batch():
                    await self._commit(batch)
        except OSError as error:
            self._failure = error
            for record in (*batch, *self._waiting):
                if not record.done.done():
                    record.done.set_exception(again(error))
            self._waiting.clear()

    def _next_batch(self) -> list[Append]:
        """The records that wait, as many as fit; those that nobody wants any more are left out."""
        batch: list[Append] = []
        size = 0
        while self._waiting and size + self._waiting[0].size <= BATCH:
            record = self._waiting.popleft()
            if not record.done.cancelled():
                batch.append(record)
                size += record.size
        return batch

    async def _commit(self, batch: list[Append]) -> None:
        """Write some records and flush them."""
        places, at = [], 0
        for record in batch:
            places.append(self.end + at)
            for piece in (record.header, record.payload):
                self._buffer.view[at : at + len(piece)] = piece
                at += len(piece)
        async with self.ring.chain() as chain:
            chain.write_fixed(self._fd, self._buffer, self.end, length=at)
            chain.fdatasync(self._fd)  # only if all of it was written
        self.end += at
        self.commits += 1
        self.records += len(batch)
        for record, place in zip(batch, places, strict=True):
            if not record.done.done():
                record.done.set_result(place)

    # ---- recovery ------------------------------------------------------------------------------

    async def _lock(self) -> None:
        """Be the only one.

        The kernel ends the requests of a process that was killed a little later than the process, and the lock with
        the last of them (seen on Linux 6.18).  So nothing of that writer can still come when the lock is ours.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    text = "another process has this log open"
                    raise BlockingIOError(error.errno, text, str(self.path)) from None
                await asyncio.sleep(0.005)

    async def _recover(self) -> None:
        """Replay every whole record from the beginning, and cut off the rest."""
        unparsed, offset = bytearray(), 0
        with contextlib.suppress(TornError):
            while count := await self.ring.read_fixed(self._fd, self._buffer, offset):
                unparsed += self._buffer.view[:count]
                offset += count
                at = 0
                try:
                    while (payload := parse(unparsed, at)) is not None:
                        at += HEADER.size + len(payload)
                        self.replay(payload)
                finally:
                    self.end += at
                del unparsed[:at]
        self.torn = os.fstat(self._fd).st_size - self.end
        if self.torn:
            await self.ring.ftruncate(self._fd, self.end)
        await self.ring.fsync(self._fd)
        await aiouring.sync_directory(os.path.dirname(self.path) or ".", ring=self.ring)  # its name, if it is new


def again(error: OSError) -> OSError:
    """The same error for one more who waits: two tasks cannot share one."""
    return OSError(error.errno, f"the log is over, since a commit failed: {error.strerror}; open it again")


# ---- the demonstration ---------------------------------------------------------------------------------


async def demonstrate(options: argparse.Namespace) -> int:
    """Append with one task and with many, and print how fast both were."""
    payload = random.randbytes(options.size)
    rates = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        async with aiouring.AsyncRing() as ring:
            for appenders in (1, options.appenders):
                async with WriteAheadLog(ring, Path(directory, str(appenders)), bytes) as log:
                    end = time.monotonic() + options.seconds
                    start = time.monotonic()

                    async def append(log: WriteAheadLog = log, end: float = end) -> None:
                        while time.monotonic() < end:
                            await log.append(payload)
                            show(f"{log.records:,} records")

                    async with asyncio.TaskGroup() as tasks:
                        for _ in range(appenders):
                            tasks.create_task(append())
                    rates.append(log.records / (time.monotonic() - start))
                    show()
                    print(
                        f"{appenders} appenders: {rates[-1]:,.0f} appends/s of {options.size} bytes, "
                        f"{log.records / log.commits:,.1f} records per fdatasync",
                        flush=True,
                    )
    print(f"group commit: {rates[1] / rates[0]:.1f} times the appends per second")
    return 0


# ---- the check: a writer that is killed at any moment --------------------------------------------------

APPENDERS = 16
ROUNDS_PER_LOG = 8
LARGEST = 200_000  # bytes; so large a write takes a while, and can be torn

Name = tuple[int, ...]  # of a record: its round, its appender, and its number there


def record_name(payload: bytes) -> Name:
    """What a record calls itself."""
    return tuple(map(int, payload.partition(b":")[0].split()))


async def write_until_killed(log_path: str, round_number: int) -> None:
    """Append for ever, and note each record in a file beside the log when its append has returned."""
    acknowledged = os.open(f"{log_path}.acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with aiouring.AsyncRing() as ring, WriteAheadLog(ring, log_path, bytes) as log:

        async def append(appender: int) -> None:
            source = random.Random(f"{round_number} {appender}")
            number = 0
            while True:
                name = b"%d %d %d" % (round_number, appender, number)
                await log.append(name + b":" + source.randbytes(int(LARGEST ** source.random())))
                os.write(acknowledged, name + b"\n")
                number += 1

        async with asyncio.TaskGroup() as tasks:
            for appender in range(APPENDERS):
                tasks.create_task(append(appender))


async def kill_a_writer(log_path: Path, round_number: int, source: random.Random) -> None:
    """Start a writer in a process of its own, and kill it at a random moment: mostly while it appends."""
    acknowledged = Path(f"{log_path}.acknowledged")
    before = acknowledged.stat().st_size if acknowledged.exists() else 0
    writer = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(log_path), "--write", str(round_number), stderr=asyncio.subprocess.PIPE
    )
    try:
        if source.random() < 0.2:
            await asyncio.sleep(source.uniform(0.1, 0.5))  # perhaps while it starts, or recovers
        else:
            async with asyncio.timeout(30):
                while not acknowledged.exists() or acknowledged.stat().st_size == before:
                    await asyncio.sleep(0.002)
                    if writer.returncode is not None:
                        break
            await asyncio.sleep(source.uniform(0, 0.1))
    finally:
        with contextlib.suppress(ProcessLookupError):
            writer.kill()
        _, errors = await writer.communicate()
    if errors:
        raise ChildProcessError(f"the writer failed: {errors.decode()}")


async def recovered(log_path: Path) -> tuple[list[Name], int]:
    """Recover a log; returns what is in it and how many bytes were torn."""
    names: list[Name] = []
    async with (
        aiouring.AsyncRing() as ring,
        WriteAheadLog(ring, log_path, lambda payload: names.append(record_name(payload))) as log,
    ):
        return names, log.torn


def differences(names: list[Name], before: list[Name], acknowledged: set[Name]) -> Iterator[str]:
    """What is wrong with what was recovered."""
    if missing := acknowledged.difference(names):
        yield f"{len(missing)} records were acknowledged and are not there: {sorted(missing)[:5]}"
    if len(set(names)) < len(names):
        yield f"{len(names) - len(set(names))} records are there twice"
    if names[: len(before)] != before:
        yield f"the first {len(before)} records are not what they were"
    expected: collections.Counter[Name] = collections.Counter()
    for name in names:
        if name[2] != expected[name[:2]]:
            yield f"record {name} is where {expected[name[:2]]} of its appender belongs"
            return
        expected[name[:2]] += 1


async def check(options: argparse.Namespace) -> int:
    """Kill writers, and compare what recovery finds with what they were told."""
    source = random.Random(options.seed)
    records = tears = 0
    before: list[Name] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for number in range(options.rounds):
            log_path = Path(directory, str(number // ROUNDS_PER_LOG))
            if number % ROUNDS_PER_LOG == 0:
                before = []
            await kill_a_writer(log_path, number, source)
            noted = Path(f"{log_path}.acknowledged")
            lines = noted.read_bytes().splitlines() if noted.exists() else []
            names, torn = await recovered(log_path)
            failures = list(differences(names, before, {record_name(line) for line in lines}))
            if await recovered(log_path) != (names, 0):
                failures.append("a second recovery found something else than the first")
            if failures:
                print(f"FAILED in round {number} of --seed {options.seed}: {'; '.join(failures)}")
                return 1
            records += len(names) - len(before)
            tears += torn > 0
            before = names
            show(f"{number + 1} of {options.rounds} writers killed, {records:,} records")
    show()
    print(
        f"ok: {options.rounds} writers killed, {records:,} records, all that were acknowledged are there, once and in "
        f"order; {tears} torn ends were cut off"
    )
    return 0


def show(text: str = "") -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


# ---- the command line ----------------------------------------------------------------------------------


async def run(options: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit code."""
    if options.demo:
        return await demonstrate(options)
    if options.check:
        return await check(options)
    if options.write is not None:
        await write_until_killed(options.log, options.write)
    count = 0

    def replay(_: bytes) -> None:
        nonlocal count
        count += 1

    async with aiouring.AsyncRing() as ring, WriteAheadLog(ring, options.log, replay) as log:
        print(f"{count:,} records in {log.end:,} bytes; {log.torn:,} bytes were torn and have been cut off")
    return 0


def main() -> int:
    """Run what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description="A write-ahead log with group commit.")
    parser.add_argument("log", nargs="?", help="recover this log, and say what is in it")
    parser.add_argument("--demo", action="store_true", help="append with one task and with many")
    parser.add_argument("--check", action="store_true", help="kill writers at random moments, and compare")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)  # what --check kills
    parser.add_argument("--directory", default=".", help="where --demo and --check write (%(default)s)")
    parser.add_argument("--appenders", type=int, default=64, help="tasks of --demo (%(default)s)")
    parser.add_argument("--size", type=int, default=200, help="bytes in each payload of --demo (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="for each part of --demo (%(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="writers that --check kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="of the moments of --check")
    options = parser.parse_args()
    if (options.log is not None) + options.demo + options.check != 1:
        parser.error("one of LOG, --demo and --check is needed")
    for name in ("appenders", "rounds", "seconds"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} is a number above 0, not {getattr(options, name)}")
    if not 0 <= options.size <= BATCH - HEADER.size:
        parser.error(f"--size {options.size} is outside 0 to {BATCH - HEADER.size}")
    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        return 130
    except aiouring.RingUnavailableError as error:
        print(f"io_uring is not available here: {error.strerror}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
