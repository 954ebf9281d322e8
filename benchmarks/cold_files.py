"""Owns the benchmark of the loop's pauses: how long nothing else runs while 32 tasks read files that are not cached."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial

import aiouring
from benchmarks import loops
from benchmarks.loops import LOOPS
from benchmarks.rounds import Sample, Spread, Table, interleave, verdict

FILES = 32
BYTES = 8 << 20
BYTES_SHORT = 256 * 1024
BLOCK = 65536
TARGET = 10

PAUSE, CPU, RATE = "worst pause, ms", "CPU in it at most, ms", "MiB per second"

#: Reads a whole file; returns the number of its bytes.
ReadFile = Callable[[str], Awaitable[int]]


def run(folder: str, rounds: int, *, short: bool = False) -> list[Table]:
    """Measure on both loops; the built-in on one, since it uses none."""
    size = BYTES_SHORT if short else BYTES
    paths = [os.path.join(folder, f"cold{number}") for number in range(FILES)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())  # only what is on the disk can be dropped from the page cache
    contenders: dict[str, Callable[[], Sample]] = {"open()": partial(measure, "asyncio", by_built_in, paths, size)}
    for loop in LOOPS:
        contenders[f"{loop}, aiouring.open()"] = partial(measure, loop, by_file, paths, size)
    done = interleave(contenders, rounds)
    table = Table(
        f"file objects: the loop's longest pause while {FILES} tasks read {size // 1024} KiB each that are not cached",
        "Milliseconds, and not a ratio; lower is better.  A pause is also what others use the core for: see how much\n"
        "CPU time the loop's thread used from one of its turns to the next.  Median over the rounds (min..max).",
        [PAUSE, CPU, RATE],
    )
    for name in contenders:
        table.rows.append((name, [Spread(tuple(each[name][what] for each in done)) for what in table.columns]))
    for loop in LOOPS:
        table.remarks.append(verdict(table, PAUSE, TARGET, at_most=True, rows=loop))
    return [table]


def measure(loop: str, read: ReadFile, paths: list[str], size: int) -> Sample:
    """One run, after dropping the files from the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return loops.run(loop, read_all(read, paths, size))


async def read_all(read: ReadFile, paths: list[str], size: int) -> Sample:
    """Read all files at once; the time between two turns of the loop, at its longest."""
    worst = worst_cpu = 0.0

    async def watch() -> None:
        nonlocal worst, worst_cpu
        last, last_cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, cpu = time.perf_counter(), time.thread_time()
            worst, last = max(worst, now - last), now
            worst_cpu, last_cpu = max(worst_cpu, cpu - last_cpu), cpu

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    started = time.perf_counter()
    total = sum(await asyncio.gather(*map(read, paths)))
    elapsed = time.perf_counter() - started
    await asyncio.sleep(0)
    watcher.cancel()
    if total != len(paths) * size:
        raise RuntimeError(f"{total} bytes were read instead of {len(paths) * size}")
    return {PAUSE: worst * 1000, CPU: worst_cpu * 1000, RATE: total / elapsed / (1 << 20)}


async def by_file(path: str) -> int:
    """Ours."""
    total = 0
    async with aiouring.open(path, "rb") as file:
        while block := await file.read(BLOCK):
            total += len(block)
    return total


async def by_built_in(path: str) -> int:
    """The built-in, which lets the loop go on after each block."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            total += len(block)
            await asyncio.sleep(0)
    return total
