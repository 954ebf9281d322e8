"""Owns the count of system calls: how many there are for each completed request when 64 are in flight.

`strace -c -f` counts them.  Each contender is traced twice, the second time with twice as much work: the
difference is the work's, without what starting and ending the interpreter takes.  Tracing slows a process
down, and a slower server finds more to do at once; the ring's own count of io_uring_enter is therefore
given for an undisturbed run as well.
"""

import asyncio
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import aiouring
from benchmarks import loops, processor
from benchmarks.echo import ROOT, ServerProcess
from benchmarks.echo_load import Load
from benchmarks.echo_server import PROTOCOL, RING_SERVERS
from benchmarks.loops import LOOPS, TASK_RUNS, TaskRun
from benchmarks.rounds import Round, Sample, Spread, Table, interleave, verdict

DEPTH = 64
REQUESTS = 12_800
MESSAGES = 6_400
PER_MESSAGE = 2  # requests: a receive and a send
PAGE = 4096
PAGES = 1024
DEADLINE = 120.0  # seconds for one worker
ROUNDS_MAX = 3  # counts vary far less than times do
TARGET = 0.1

TRACED, ENTERS, ENTERS_TRACED = "system calls, traced", "enters", "enters, traced"
CALL = "calls of "
BASELINE = f"uvloop, {PROTOCOL}"


def run(rounds: int) -> list[Table]:
    """Count for NOPs, for reads and for an echo server."""
    trace = can_trace()
    contenders: dict[str, Callable[[], Sample]] = {}
    for work in WORK:
        for loop, task_run in itertools.product(LOOPS, TASK_RUNS):
            contenders[f"{work}: {loop}, {task_run}"] = partial(measure_worker, work, loop, task_run, trace=trace)
    for name in (*RING_SERVERS, BASELINE):
        contenders[f"echo: {name}"] = partial(measure_server, name, trace=trace)
    processor.pin(processor.LOAD_CORE)
    done = interleave(contenders, min(rounds, ROUNDS_MAX))
    table = Table(
        f"syscalls: system calls per completion with {DEPTH} requests in flight",
        f"Lower is better.  {TRACED}: all of them, by strace.  {ENTERS}: io_uring_enter alone, by ring.statistics(),\n"
        "in a run without strace and in the run with it.  An echoed message is two completions, a receive and a send;\n"
        f"for {BASELINE!r}, which has no ring, it counts as two as well.  Median over the rounds (min..max).",
        [TRACED, ENTERS_TRACED, ENTERS],
    )
    for name in contenders:
        table.rows.append((name, [spread(done, name, column) for column in table.columns]))
    if not trace:
        table.remarks.append("strace is not there or may not trace: counting all system calls was skipped")
    ours = Table("", "", table.columns, [row for row in table.rows if BASELINE not in row[0]])
    for work in (*WORK, "echo"):
        table.remarks.append(verdict(ours, TRACED, TARGET, at_most=True, rows=f"{work}:", every=True))
    table.remarks += [f"{name}: {breakdown(done, name)}" for name in contenders if trace]
    return [table]


def spread(done: Sequence[Round], name: str, column: str) -> Spread | None:
    """A column's values, or None where it was not measured."""
    values = tuple(each[name][column] for each in done if column in each[name])
    return Spread(values) if values else None


def breakdown(done: Sequence[Round], name: str) -> str:
    """Which system calls a contender made, the most frequent first; calls per completion."""
    calls = {key: median(each[name].get(key, 0.0) for each in done) for key in done[0][name] if key.startswith(CALL)}
    worst = sorted(calls.items(), key=lambda item: -item[1])
    return ", ".join(f"{key.removeprefix(CALL)} {number:.3f}" for key, number in worst if number >= 0.001)


# ---- strace ------------------------------------------------------------------------------------


def can_trace() -> bool:
    """Whether strace is installed and may trace here."""
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-c", "-f", "true"], capture_output=True).returncode == 0


def tracer(summary: str) -> list[str]:
    """The command that counts another command's system calls, in all its threads and children."""
    return ["strace", "-c", "-f", "-o", summary]


def read_summary(path: str) -> dict[str, int]:
    """Calls by name from what `strace -c` wrote: "% time, seconds, usecs/call, calls, [errors,] name"."""
    calls = {}
    for line in Path(path).read_text().splitlines():
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit():
            calls[fields[-1]] = int(fields[3])
    if not calls:
        raise RuntimeError(f"strace wrote no summary that can be read: {path}")
    return calls


def count_twice(once: Callable[[int, Sequence[str]], float], completions: int) -> Sample:
    """Trace `once(scale, prefix)` for scale 1 and 2; the difference is `completions` of work."""
    counts = []
    enters = 0.0
    for scale in (1, 2):
        with tempfile.NamedTemporaryFile(prefix="strace-") as summary:
            enters = once(scale, tracer(summary.name))
            counts.append(read_summary(summary.name))
    less, more = counts
    per_call = {CALL + call: (more[call] - less.get(call, 0)) / completions for call in more}
    return {TRACED: per_call.pop(f"{CALL}total"), ENTERS_TRACED: enters, **per_call}


# ---- an echo server ----------------------------------------------------------------------------


def measure_server(name: str, *, trace: bool) -> Sample:
    """One run of an echo server."""
    sample = {}
    if name != BASELINE:
        sample[ENTERS] = echo(name, 10, ())
    if trace:
        sample |= count_twice(partial(echo, name), MESSAGES * PER_MESSAGE)
    if name == BASELINE:
        sample.pop(ENTERS_TRACED, None)
    return sample


def echo(name: str, scale: int, prefix: Sequence[str]) -> float:
    """Have `scale` times the messages echoed; returns enters per completion, 0 without a ring."""
    with ServerProcess(name, prefix) as server, Load(server.port) as load:
        load.check()
        before = server.statistics()
        load.exchange(scale * MESSAGES)
        after = server.statistics()
    if not after:
        return 0.0
    completed = after["completed"] - before["completed"]
    # The receives that follow the last messages are still open, so the two counts differ by a few.
    if abs(completed - scale * MESSAGES * PER_MESSAGE) > 2 * DEPTH:
        raise RuntimeError(f"{completed} completions for {scale * MESSAGES} messages")
    return (after["enters"] - before["enters"]) / completed


# ---- a worker: this module as a program ---------------------------------------------------------


def measure_worker(work: str, loop: str, task_run: TaskRun, *, trace: bool) -> Sample:
    """One run of NOPs or reads in a process of their own."""
    once = partial(run_worker, work, loop, task_run)
    sample = {ENTERS: once(1, ())}
    if trace:
        sample |= count_twice(once, REQUESTS)
    return sample


def run_worker(work: str, loop: str, task_run: TaskRun, scale: int, prefix: Sequence[str]) -> float:
    """Start a worker for `scale` times the requests; returns enters per completion."""
    arguments = [work, loop, task_run, str(scale * REQUESTS)]
    command = [*prefix, sys.executable, "-m", "benchmarks.syscalls", *arguments]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=DEADLINE)
    statistics: dict[str, int] = json.loads(answer.stdout)
    if statistics["completed"] != scale * REQUESTS:
        raise RuntimeError(f"{statistics['completed']} completions for {scale * REQUESTS} requests")
    return statistics["enters"] / statistics["completed"]


async def nops(ring: aiouring.AsyncRing, count: int) -> None:
    """Await `count` NOPs."""
    work = itertools.repeat(None, count)

    async def some() -> None:
        for _ in work:
            await ring.nop()

    await asyncio.gather(*(some() for _ in range(DEPTH)))


async def reads(ring: aiouring.AsyncRing, count: int, *, by_number: bool) -> None:
    """Await `count` reads of a small cached file, named by its descriptor's number or by the file object."""
    with tempfile.TemporaryFile(buffering=0) as file:
        os.write(file.fileno(), bytes(PAGE * PAGES))
        offsets = iter([PAGE * (number % PAGES) for number in range(count)])
        name = file.fileno() if by_number else file

        async def some() -> None:
            buffer = bytearray(PAGE)
            for offset in offsets:
                await ring.read(name, buffer, offset)

        await asyncio.gather(*(some() for _ in range(DEPTH)))


WORK: dict[str, Callable[[aiouring.AsyncRing, int], Coroutine[None, None, None]]] = {
    "nop": nops,
    "read, int fd": partial(reads, by_number=True),
    "read, file object": partial(reads, by_number=False),
}


async def work_and_report(work: str, task_run: TaskRun, count: int) -> None:
    """Do the work and print the ring's statistics as JSON."""
    async with aiouring.AsyncRing(task_run=task_run) as ring:
        await WORK[work](ring, count)
        print(json.dumps(dataclasses.asdict(ring.statistics())))


def main(work: str, loop: str, task_run: str, count: str) -> None:
    """Run as a worker."""
    how: TaskRun = "defer" if task_run == "defer" else "coop"
    loops.run(loop, work_and_report(work, how, int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
