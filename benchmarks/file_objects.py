"""Owns the benchmark of file objects: against threads, aiofiles and caio, and against the built-in `open()`.

aiofiles and caio are compared where they are installed; nothing needs them.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import aiouring
from benchmarks import loops
from benchmarks.files import DEPTHS, PAGES, SIZE, fill, random_offsets
from benchmarks.loops import LOOPS
from benchmarks.rounds import Round, Sample, Table, interleave, ratio

#: Reads of each contender at a time and in all: fewer of those that are slow.
READS = {"to_thread": 4_000, "read_at": 20_000, "caio": 10_000, "aiofiles": 2_000}
#: Bytes that a program asks for at a time when it reads a file from front to back.
BLOCKS = (4096, 65536, 1 << 20)

#: Reads one page at an offset.
ReadPage = Callable[[int], Awaitable[bytes]]


def run(rounds: int) -> list[Table]:
    """Measure random and sequential reads on both loops."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pages")
        with open(path, "w+b", buffering=0) as file:
            fill(file)
        random: dict[str, Callable[[], Sample]] = {}
        for loop in LOOPS:
            for name in READS:
                if name in ("caio", "aiofiles") and importlib.util.find_spec(name) is None:
                    continue
                random[f"{loop}, {name}"] = partial(on_loop, loop, at_random, name, path)
        sequential: dict[str, Callable[[], Sample]] = {"open()": partial(by_built_in, path)}
        for loop in LOOPS:
            sequential[f"{loop}, aiouring.open()"] = partial(on_loop, loop, in_order, "", path)
        return [compare_random(interleave(random, rounds)), compare_sequential(interleave(sequential, rounds))]


def on_loop(loop: str, measure: Callable[[str, str], Coroutine[Any, Any, Sample]], name: str, path: str) -> Sample:
    """One run of one contender."""
    return loops.run(loop, measure(name, path))


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
    return table


async def at_random(name: str, path: str) -> Sample:
    """Pages per second at each depth."""
    sample = {}
    for depth in DEPTHS:
        async with contextlib.AsyncExitStack() as stack:
            readers = await READERS[name](path, depth, stack)
            await read_all(readers, 200)
            started = time.perf_counter()
            await read_all(readers, READS[name])
            sample[f"throughput, depth {depth}"] = READS[name] / (time.perf_counter() - started)
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
    """caio, with the backend that it chooses."""
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    context = await stack.enter_async_context(importlib.import_module("caio").AsyncioContext(max_requests=64))

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


def by_built_in(path: str) -> Sample:
    """Bytes per second of the built-in."""
    sample = {}
    for size in BLOCKS:
        started = time.perf_counter()
        with open(path, "rb") as file:
            total = sum(map(len, iter(partial(file.read, size), b"")))
        sample[f"{size // 1024} KiB at a time"] = total / (time.perf_counter() - started)
    return sample


async def in_order(_name: str, path: str) -> Sample:
    """Bytes per second of ours."""
    sample = {}
    for size in BLOCKS:
        started, total = time.perf_counter(), 0
        async with aiouring.open(path, "rb") as file:
            while block := await file.read(size):
                total += len(block)
        sample[f"{size // 1024} KiB at a time"] = total / (time.perf_counter() - started)
        if total != PAGES * SIZE:
            raise RuntimeError(f"{total} bytes were read")
    return sample
