"""Owns the benchmark of reads around the page cache: 4 KiB at random offsets, 32 at a time, against fio on one file.

fio is compared where it is installed.  The file is in TMPDIR; where its file system has no O_DIRECT the table says so,
and nothing else.
"""

import asyncio
import json
import math
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import aiouring
from benchmarks import loops
from benchmarks.files import PAGES, SIZE, Reader, random_offsets
from benchmarks.loops import LOOPS
from benchmarks.rounds import Round, Sample, Table, interleave, ratio, verdict

DEPTH = 32
SECONDS = 1.0
SHORT = 0.1
TARGET = 0.95

FIO = "fio, io_uring, fixed buffers"
VERBS = ("read", "read_fixed", "read_at")
RATE, CPU, WITHOUT = "reads per second / fio's", "CPU per read / fio's", "CPU per read / read's"


def run(path: str, rounds: int, *, short: bool = False) -> list[Table]:
    """Measure reads of the file at `path`, on both loops, and fio's if there is one."""
    seconds = SHORT if short else SECONDS
    table = Table(
        f"file objects: 4 KiB random reads around the page cache (O_DIRECT), {DEPTH} at a time",
        "Reads per second: higher is better.  CPU per read: user and system time, against fio's, and against `read()`\n"
        "without fixed buffers; lower is better.  The disk is part of it.  Median over the rounds (min..max).",
        [RATE, CPU, WITHOUT],
    )
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        table.remarks.append(f"not measured: {path} cannot be opened with O_DIRECT ({error.strerror})")
        return [table]
    contenders: dict[str, Callable[[], Sample]] = {}
    if shutil.which("fio") is not None:
        contenders[FIO] = partial(by_fio, path, seconds)
    for loop in LOOPS:
        for verb in VERBS:
            contenders[f"{loop}, {verb}"] = partial(on_loop, loop, verb, path, seconds)
    compare(table, interleave(contenders, rounds))
    return [table]


def compare(table: Table, done: list[Round]) -> None:
    """Fill the table."""
    with_fio = FIO in done[0]
    for name in done[0]:
        loop, _, verb = name.partition(", ")
        if name != FIO:
            against = [ratio(done, quantity, name, FIO) if with_fio else None for quantity in ("rate", "CPU")]
            table.rows.append((name, [*against, ratio(done, "CPU", name, f"{loop}, read") if verb != "read" else None]))
    if with_fio:
        for loop in LOOPS:
            table.remarks.append(verdict(table, RATE, TARGET, at_most=False, rows=f"{loop}, read_fixed"))
        spread = [f"{sample[FIO]['rate'] / 1000:.0f}" for sample in done]
        table.remarks.append(f"fio in each round, thousands of reads per second: {', '.join(spread)}")
    else:
        table.remarks.append("fio is not installed (a package of that name): nothing to compare the disk's reads with")
    for loop in LOOPS:
        table.remarks.append(verdict(table, WITHOUT, 1, at_most=True, rows=f"{loop}, read_fixed"))


def by_fio(path: str, seconds: float) -> Sample:
    """Reads per second of fio, and CPU seconds per read; it measures both itself."""
    command = ["fio", "--name=reads", f"--filename={path}", "--readonly", "--ioengine=io_uring", "--fixedbufs=1"]
    command += ["--rw=randread", f"--bs={SIZE}", f"--iodepth={DEPTH}", "--direct=1", "--time_based"]
    command += [f"--runtime={math.ceil(seconds)}", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30 + seconds)
    job = json.loads(done.stdout)["jobs"][0]
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return {"rate": job["read"]["iops"], "CPU": cpu / job["read"]["total_ios"]}


def on_loop(loop: str, verb: str, path: str, seconds: float) -> Sample:
    """One run of one of ours."""
    return loops.run(loop, at_random(verb, path, seconds))


async def at_random(verb: str, path: str, seconds: float) -> Sample:
    """Reads per second and CPU seconds per read, for so long."""
    async with aiouring.AsyncRing() as ring, aiouring.open(path, "rb", ring=ring, direct=True) as file:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with open(fd, "rb", closefd=False) as plain:
                if verb == "read_at":
                    return await for_seconds(partial(by_file, file), seconds)
                if verb == "read":
                    return await for_seconds(partial(by_read, ring, plain), seconds)
                async with aiouring.AsyncRing() as other:
                    with other.register_buffers(count=DEPTH, size=SIZE) as buffers:
                        return await for_seconds(partial(by_read_fixed, other, buffers, plain), seconds)
        finally:
            os.close(fd)


async def by_file(file: aiouring.BinaryFile, offsets: Iterator[int]) -> int:
    """A file opened with `direct=True`."""
    return sum([len(await file.read_at(SIZE, offset)) for offset in offsets])


async def by_read(ring: aiouring.AsyncRing, file: BinaryIO, offsets: Iterator[int]) -> int:
    """Memory that the kernel pins for each read."""
    memory = mmap.mmap(-1, SIZE)
    return sum([await ring.read(file, memory, offset) for offset in offsets])


async def by_read_fixed(
    ring: aiouring.AsyncRing, buffers: aiouring.RegisteredBuffers, file: BinaryIO, offsets: Iterator[int]
) -> int:
    """Memory that was pinned once."""
    async with await buffers.acquire() as buffer:
        return sum([await ring.read_fixed(file, buffer, offset) for offset in offsets])


async def for_seconds(reader: Reader, seconds: float) -> Sample:
    """Let DEPTH readers take from one list of offsets until the time is over."""
    count = 0

    def offsets(end: float) -> Iterator[int]:
        nonlocal count
        while time.perf_counter() < end:
            for offset in random_offsets(PAGES // 64):
                yield offset
                count += 1
                if count % 256 == 0 and time.perf_counter() >= end:
                    return

    for length in (seconds / 10, seconds):  # the first is for warming up
        count = 0
        wall, cpu = time.perf_counter(), time.process_time()
        places = offsets(wall + length)
        total = sum(await asyncio.gather(*(reader(places) for _ in range(DEPTH))))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not total or total % SIZE:
        raise RuntimeError(f"{total} bytes were read, which are no {SIZE}-byte pages")
    return {"rate": total / SIZE / wall, "CPU": cpu * SIZE / total}
