"""Owns the file benchmark: random reads from the page cache, against a thread pool.

There is no disk in it: what is compared is the way of a read to the kernel and back, at its cheapest.
"""

import asyncio
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import BinaryIO, TypeAlias

import aiouring
from benchmarks import loops, processor
from benchmarks.loops import LOOPS, TASK_RUNS, TaskRun
from benchmarks.rounds import Round, Sample, Spread, Table, interleave, ratio, verdict

SIZE = 4096
PAGES = 256 * 1024 * 1024 // SIZE
DEPTHS = (1, 32)
READS_BY_RING = 20_000
READS_BY_THREAD = 4_000
WARM_UP = 500
TARGET = 5

#: Reads at the offsets it is given, one after the other; returns the number of bytes.
Reader: TypeAlias = Callable[[Iterator[int]], Coroutine[None, None, int]]

#: A way to read the file, measured at each depth.
Way: TypeAlias = Callable[[BinaryIO], Coroutine[None, None, Sample]]

#: On one core threads disturb each other least, on several they wake each other across cores.
PLACES = {"any core": processor.CORES, "one core": {processor.SERVER_CORE}}


def run(rounds: int) -> list[Table]:
    """Measure on both loops, with both ways to run completions, at each depth, on all cores and on one."""
    contenders: dict[str, Callable[[], Sample]] = {}
    with tempfile.TemporaryFile(buffering=0) as file:
        fill(file)
        for cores, loop in itertools.product(PLACES, LOOPS):
            contenders[f"{cores}: {loop}, to_thread"] = partial(measure, cores, loop, by_threads, file)
            for task_run, verb in itertools.product(TASK_RUNS, ("read", "read_fixed")):
                way = partial(by_ring, task_run, verb)
                contenders[f"{cores}: {loop}, {task_run}, {verb}"] = partial(measure, cores, loop, way, file)
        done = interleave(contenders, rounds)
    return [compare(cores, [name for name in contenders if name.startswith(f"{cores}:")], done) for cores in PLACES]


def compare(cores: str, names: Sequence[str], done: Sequence[Round]) -> Table:
    """The table of those that ran on the same cores."""
    columns = [f"{what}, depth {depth}" for what in ("throughput", "CPU per read") for depth in DEPTHS]
    table = Table(
        "files: 4 KiB random reads from the page cache, divided by `asyncio.to_thread(os.pread)` on the same loop;\n"
        f"  all threads of the process on {cores}",
        "Throughput: reads per second; higher is better.  CPU per read: user and system time of all threads; lower\n"
        "is better.  Depth is how many tasks read at a time.  Median over the rounds (min..max).",
        columns,
    )
    for name in names:
        baseline = f"{name.split(',')[0]}, to_thread"
        if name != baseline:
            spreads: list[Spread | None] = [ratio(done, column, name, baseline) for column in columns]
            table.rows.append((name.removeprefix(f"{cores}: "), spreads))
    table.remarks.append(verdict(table, columns[len(DEPTHS) - 1], TARGET, at_most=False, every=True))
    return table


def fill(file: BinaryIO) -> None:
    """Write the pages, each beginning with its number; that leaves them in the page cache."""
    for number in range(PAGES):
        file.write(number.to_bytes(8, "little") * (SIZE // 8))
    while file.read(1024 * 1024):
        pass


def measure(cores: str, loop: str, way: Way, file: BinaryIO) -> Sample:
    """One run of one way to read; the threads it starts stay on the same cores."""
    os.sched_setaffinity(0, PLACES[cores])
    return loops.run(loop, way(file))


async def by_threads(file: BinaryIO) -> Sample:
    """Measure `asyncio.to_thread(os.pread)`, with the loop's default pool, at each depth."""

    async def reader(offsets: Iterator[int]) -> int:
        total = 0
        for offset in offsets:
            total += len(await asyncio.to_thread(os.pread, file.fileno(), SIZE, offset))
        return total

    return await at_each_depth(reader, READS_BY_THREAD)


async def by_ring(task_run: TaskRun, verb: str, file: BinaryIO) -> Sample:
    """Measure `read` or `read_fixed` at each depth."""
    async with aiouring.AsyncRing(task_run=task_run) as ring:
        with ring.register_buffers(count=max(DEPTHS), size=SIZE) as buffers:
            await verify(ring, buffers, file)

            async def read(offsets: Iterator[int]) -> int:
                buffer = bytearray(SIZE)
                total = 0
                for offset in offsets:
                    total += await ring.read(file, buffer, offset)
                return total

            async def read_fixed(offsets: Iterator[int]) -> int:
                total = 0
                async with await buffers.acquire() as buffer:
                    for offset in offsets:
                        total += await ring.read_fixed(file, buffer, offset)
                return total

            return await at_each_depth(read if verb == "read" else read_fixed, READS_BY_RING)


async def verify(ring: aiouring.AsyncRing, buffers: aiouring.RegisteredBuffers, file: BinaryIO) -> None:
    """Read a few pages by each verb and see that they are the right ones."""
    plain = bytearray(SIZE)
    async with await buffers.acquire() as fixed:
        for offset in random_offsets(16):
            page = (offset // SIZE).to_bytes(8, "little") * (SIZE // 8)
            counts = await ring.read(file, plain, offset), await ring.read_fixed(file, fixed, offset)
            if counts != (SIZE, SIZE) or plain != page or fixed.view != page:
                raise RuntimeError(f"a read at {offset} returned something else than page {offset // SIZE}")


async def at_each_depth(reader: Reader, count: int) -> Sample:
    """Wall-clock reads per second and CPU seconds per read of `count` reads at each depth."""
    sample = {}
    for depth in DEPTHS:
        await read_all(reader, depth, WARM_UP)
        wall, cpu = time.perf_counter(), time.process_time()
        await read_all(reader, depth, count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        sample[f"throughput, depth {depth}"] = count / wall
        sample[f"CPU per read, depth {depth}"] = cpu / count
    return sample


async def read_all(reader: Reader, depth: int, count: int) -> None:
    """Read `count` pages, `depth` at a time: that many readers take from one list of offsets."""
    offsets = iter(random_offsets(count))
    total = sum(await asyncio.gather(*(reader(offsets) for _ in range(depth))))
    if total != count * SIZE:
        raise RuntimeError(f"{count} reads of {SIZE} bytes gave {total} bytes")


def random_offsets(count: int) -> list[int]:
    """The same page-aligned offsets for everybody."""
    pages = random.Random(1).choices(range(PAGES), k=count)
    return [page * SIZE for page in pages]
