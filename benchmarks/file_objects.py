"""Owns the benchmark of file objects: against threads, aiofiles and caio, and against the built-in `open()`.

aiofiles and caio are compared where they are installed; nothing needs them.  Of caio it is
the io_uring backend that is measured.
"""

import asyncio
import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec

import aiouring
from benchmarks import cold_files, direct_files, loops
from benchmarks.files import DEPTHS, SIZE, fill, random_offsets
from benchmarks.loops import LOOPS
from benchmarks.rounds import Round, Sample, Table, interleave, ratio, verdict

P = ParamSpec("P")

#: caio's io_uring backend.
CAIO = "caio.linux_uring_asyncio"
#: Reads of each contender at a time and in all: fewer of those that are slow.
READS = {"to_thread": 4_000, "read_at": 20_000, "caio": 10_000, "aiofiles": 2_000}
#: Bytes that a program asks for at a time when it reads a file from front to back.
BLOCKS = (4096, 65536, 1 << 20)

#: Bytes of the file that is read from front to back.
LENGTH = 1 << 30
LENGTH_SHORT = 8 << 20
#: How many times as many reads as each baseline's `read_at()` is to do, at each depth that has a target.
TARGETS = {("to_thread", 1): 5, ("to_thread", 32): 7, ("caio", 32): 2.5, ("aiofiles", 32): 12}

#: Reads one page at an offset.
ReadPage = Callable[[int], Awaitable[bytes]]


def run(rounds: int, *, short: bool = False) -> list[Table]:
    """Measure random and sequential reads on both loops, of what is in the page cache, and what is not."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pages")
        with open(path, "w+b", buffering=0) as file:
            fill(file)
        random: dict[str, Callable[[], Sample]] = {}
        missing = []
        for name, module in {"to_thread": "", "read_at": "", "caio": CAIO, "aiofiles": "aiofiles"}.items():
            if module and not can_import(module):
                missing.append(f"{name} is not installed, or not with what is compared: {module} cannot be imported")
                continue
            for loop in LOOPS:
                random[f"{loop}, {name}"] = partial(on_loop, loop, at_random, name, path, READS[name] // (20**short))
        done = interleave(random, rounds)
        tables = [compare_random(done), compare_with_each(done, missing), *direct_files.run(path, rounds, short=short)]
        length = LENGTH_SHORT if short else LENGTH
        os.truncate(path, length)  # what is beyond the pages is a hole, which the page cache has like all else
        tables.append(compare_sequential(measure_sequential(path, length, rounds)))
        os.remove(path)
        return tables + cold_files.run(folder, rounds, short=short)


def can_import(module: str) -> bool:
    """Whether there is such a module that works here."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True


def measure_sequential(path: str, length: int, rounds: int) -> list[Round]:
    """Read the file from front to back, once before it counts."""
    sequential: dict[str, Callable[[], Sample]] = {"open()": partial(by_built_in, path, length)}
    for loop in LOOPS:
        sequential[f"{loop}, aiouring.open()"] = partial(on_loop, loop, in_order, path, length)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return interleave(sequential, rounds)


def on_loop(loop: str, measure: Callable[P, Coroutine[Any, Any, Sample]], *args: P.args, **options: P.kwargs) -> Sample:
    """One run of one contender."""
    return loops.run(loop, measure(*args, **options))


def compare_random(done: list[Round]) -> Table:
    """How many pages a second, against threads."""
    columns = [f"throughput, depth {depth}" for depth in DEPTHS]
    table = Table(
        "file objects: 4 KiB random reads from the page cache, divided by `asyncio.to_thread(os.pread)`, same loop",
        "Reads per second; higher is better.  Median over the rounds (min..max).",
        columns,
    )
    for name in done[0]:
        loop, _, reader = name.partition(", ")
        if reader != "to_thread":
            table.rows.append((name, [ratio(done, column, name, f"{loop}, to_thread") for column in columns]))
    return table


def compare_with_each(done: list[Round], missing: list[str]) -> Table:
    """How many times as many pages a second as everybody else's: the targets."""
    table = Table(
        "file objects: 4 KiB random reads from the page cache by `read_at()`, divided by each other way's, same loop",
        "Reads per second; higher is better.  caio: its io_uring backend.  Median over the rounds (min..max).",
        [f"{name}, depth {depth}" for name, depth in TARGETS],
    )
    for loop in LOOPS:
        row = [
            ratio(done, f"throughput, depth {depth}", f"{loop}, read_at", f"{loop}, {name}")
            if f"{loop}, {name}" in done[0]
            else None
            for name, depth in TARGETS
        ]
        table.rows.append((loop, row))
    for column, target in zip(table.columns, TARGETS.values(), strict=True):
        table.remarks.append(verdict(table, column, target, at_most=False, every=True))
    table.remarks += missing
    return table


def compare_sequential(done: list[Round]) -> Table:
    """How many bytes a second, against the built-in."""
    columns = [f"{size // 1024} KiB at a time" for size in BLOCKS]
    table = Table(
        "file objects: a file read from front to back, from the page cache, divided by the built-in `open()`",
        "Bytes per second; higher is better.  The built-in blocks the loop.  Median over the rounds (min..max).",
        columns,
    )
    for name in done[0]:
        if name != "open()":
            table.rows.append((name, [ratio(done, column, name, "open()") for column in columns]))
    for column in columns:
        table.remarks.append(verdict(table, column, 1, at_most=False, every=True))
    return table


async def at_random(name: str, path: str, count: int) -> Sample:
    """Pages per second at each depth."""
    sample = {}
    for depth in DEPTHS:
        async with contextlib.AsyncExitStack() as stack:
            readers = await READERS[name](path, depth, stack)
            await read_all(readers, 200)
            started = time.perf_counter()
            await read_all(readers, count)
            sample[f"throughput, depth {depth}"] = count / (time.perf_counter() - started)
    return sample


async def read_all(readers: list[ReadPage], count: int) -> None:
    """Read `count` pages: the readers take from one list of offsets."""
    offsets = iter(random_offsets(count))

    async def work(read: ReadPage) -> int:
        return sum([len(await read(offset)) for offset in offsets])

    if sum(await asyncio.gather(*map(work, readers))) != count * SIZE:
        raise RuntimeError("some reads were short")


async def by_threads(path: str, depth: int, stack: contextlib.AsyncExitStack) -> list[ReadPage]:
    """A pool of threads, as programs without anything have it."""
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)

    async def read(offset: int) -> bytes:
        return await asyncio.to_thread(os.pread, fd, SIZE, offset)

    return [read] * depth


async def by_file(path: str, depth: int, stack: contextlib.AsyncExitStack) -> list[ReadPage]:
    """Ours."""
    file = await stack.enter_async_context(aiouring.open(path, "rb"))
    return [partial(file.read_at, SIZE)] * depth


async def by_caio(path: str, depth: int, stack: contextlib.AsyncExitStack) -> list[ReadPage]:
    """caio, with its io_uring backend."""
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    context = await stack.enter_async_context(importlib.import_module(CAIO).AsyncioContext(max_requests=64))

    async def read(offset: int) -> bytes:
        found: bytes = await context.read(SIZE, fd, offset)
        return found

    return [read] * depth


async def by_aiofiles(path: str, depth: int, stack: contextlib.AsyncExitStack) -> list[ReadPage]:
    """aiofiles, which has a position only, so a file for each reader."""
    files = [
        await stack.enter_async_context(importlib.import_module("aiofiles").open(path, "rb")) for _ in range(depth)
    ]

    async def read(file: Any, offset: int) -> bytes:
        await file.seek(offset)
        found: bytes = await file.read(SIZE)
        return found

    return [partial(read, file) for file in files]


READERS: dict[str, Callable[[str, int, contextlib.AsyncExitStack], Awaitable[list[ReadPage]]]] = {
    "to_thread": by_threads,
    "read_at": by_file,
    "caio": by_caio,
    "aiofiles": by_aiofiles,
}


def by_built_in(path: str, length: int) -> Sample:
    """Bytes per second of the built-in."""
    sample = {}
    for size in BLOCKS:
        started, total = time.perf_counter(), 0
        with open(path, "rb") as file:
            while block := file.read(size):
                total += len(block)
        sample[f"{size // 1024} KiB at a time"] = total / (time.perf_counter() - started)
        check_length(total, length)
    return sample


async def in_order(path: str, length: int) -> Sample:
    """Bytes per second of ours."""
    sample = {}
    for size in BLOCKS:
        started, total = time.perf_counter(), 0
        async with aiouring.open(path, "rb") as file:
            while block := await file.read(size):
                total += len(block)
        sample[f"{size // 1024} KiB at a time"] = total / (time.perf_counter() - started)
        check_length(total, length)
    return sample


def check_length(total: int, length: int) -> None:
    """Everybody reads all of the file."""
    if total != length:
        raise RuntimeError(f"{total} bytes were read instead of {length}")
