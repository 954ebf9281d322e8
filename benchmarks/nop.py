"""Owns the NOP benchmark: what one awaited request costs when the kernel has nothing to do for it.

The cost is CPU time, user and system, divided by what `loop.create_future()` costs on the same loop in
the same run: every awaited request needs a future, so this is the floor, and a unit that moves with the
machine and the interpreter.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from functools import partial

import aiouring
from benchmarks import loops, processor
from benchmarks.loops import LOOPS, TASK_RUNS, TaskRun
from benchmarks.rounds import Sample, Spread, Table, interleave, verdict

DEPTHS = (1, 64)
BLOCKS = 10  # in each run: futures, NOPs at each depth, futures, NOPs at each depth, ...
REQUESTS = {1: 1_000, 64: 6_400}  # in each block
FUTURES = 20_000  # in each block
WARM_UP = 2_000
TARGET = 14


def run(rounds: int) -> list[Table]:
    """Measure on both loops and with both ways to run completions."""
    contenders = {f"{loop}, {task_run}": partial(measure, loop, task_run) for loop in LOOPS for task_run in TASK_RUNS}
    processor.pin(processor.SERVER_CORE)
    done = interleave(contenders, rounds)
    columns = [f"depth {depth}" for depth in DEPTHS]
    table = Table(
        "nop: CPU time of one `await ring.nop()`, divided by the CPU time of one `loop.create_future()`",
        "Lower is better.  Depth is how many tasks await a NOP at a time; at depth 1 each pays for a whole turn of\n"
        "the loop.  Median over the rounds (min..max).",
        columns,
    )
    for name in contenders:
        table.rows.append((name, [Spread(tuple(each[name][column] for each in done)) for column in columns]))
    table.remarks.append(verdict(table, columns[-1], TARGET, at_most=True))
    return [table]


def measure(loop: str, task_run: TaskRun) -> Sample:
    """One run: the price of a NOP at each depth, in futures."""
    return loops.run(loop, price_in_futures(task_run))


async def price_in_futures(task_run: TaskRun) -> Sample:
    """Measure futures and NOPs in short turns, so that a change of the processor's speed meets both."""
    futures, costs = 0.0, dict.fromkeys(DEPTHS, 0.0)
    async with aiouring.AsyncRing(task_run=task_run) as ring:
        await nops(ring, max(DEPTHS), WARM_UP)
        for _ in range(BLOCKS):
            futures += make_futures(FUTURES) / FUTURES
            for depth in DEPTHS:
                started = time.process_time()
                await nops(ring, depth, REQUESTS[depth])
                costs[depth] += (time.process_time() - started) / REQUESTS[depth]
    return {f"depth {depth}": cost / futures for depth, cost in costs.items()}


def make_futures(count: int) -> float:
    """CPU seconds of `count` calls of the running loop's `create_future()` from a plain `for` loop."""
    create_future = asyncio.get_running_loop().create_future
    started = time.process_time()
    for _ in itertools.repeat(None, count):
        create_future()
    return time.process_time() - started


async def nops(ring: aiouring.AsyncRing, depth: int, count: int) -> None:
    """Await `count` NOPs, `depth` at a time."""
    work = itertools.repeat(None, count)

    async def take_turns(work: Iterator[None]) -> None:
        for _ in work:
            await ring.nop()

    await asyncio.gather(*(take_turns(work) for _ in range(depth)))
