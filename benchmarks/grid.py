"""Owns the grid: echo servers of many kinds, under loads from one connection to a thousand and from 64 B to 64 KiB.

The load and the limits (the same server in C, around epoll, on io_uring, and on io_uring as a guest of epoll, which is
what aiouring is to a loop) are compiled when it runs.  Each round starts every server afresh and then goes through the
grid, at each of its points from server to server: one of them is under load at a time, and the others, which sleep,
cost nothing.
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks import processor
from benchmarks.echo import ServerProcess
from benchmarks.echo_load import PATIENCE
from benchmarks.echo_server import DEFAULT_SERVERS, PROTOCOL, STREAMS
from benchmarks.loops import LOOPS
from benchmarks.rounds import Round, Sample, Spread, Table, ratio, verdict

HERE = Path(__file__).resolve().parent
ABI = HERE.parent / "aiouring" / "_native"

SIZES = {64: "64 B", 512: "512 B", 16 * 1024: "16 KiB", 64 * 1024: "64 KiB"}
CONNECTIONS = (1, 64, 1000)
IDLE = 10_000

EPOLL, IO_URING, GUEST = "C, epoll", "C, io_uring", "C, io_uring as a guest"
BASELINE = f"uvloop, {PROTOCOL}"

#: At most this, compared with each of these; the first holds everywhere, the others from 64 connections on.
TARGETS = {f"uvloop, {STREAMS}": 1.0, BASELINE: 1.05, IO_URING: 1.35}
IDLE_BYTES, IDLE_SLOWDOWN = 3 * 1024, 1.4

#: How each server is started, by its name; nothing where `echo_server` knows the name.
Contestants: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid."""

    connections: int
    size: int
    depth: int = 1  # messages in flight on each connection

    def __str__(self) -> str:
        return f"{self.crowd} x {SIZES[self.size]}"

    @property
    def crowd(self) -> str:
        """Those who send."""
        return f"{self.connections:,}" + (f" (each {self.depth} in flight)" if self.depth > 1 else "")


GRID = [Cell(connections, size) for connections in CONNECTIONS for size in SIZES]
GRID += [Cell(64, size, 16) for size in SIZES]
FEW = [Cell(2, 512), Cell(2, 64 * 1024, 16)]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the parts take, and how much of the grid is measured."""

    cells: Sequence[Cell]
    warm_up: float  # seconds, for each server at each point
    seconds: float
    idle: int  # connections


FULL = Effort(GRID, 0.04, 0.16, IDLE)
SHORT = Effort(FEW, 0.01, 0.02, 100)


def run(rounds: int, *, short: bool = False, rsloop: str = "") -> list[Table]:
    """Measure the grid, then many idle connections."""
    effort = SHORT if short else FULL
    processor.pin(processor.LOAD_CORE)
    with compiled() as programs:
        contestants = contestants_with(programs, rsloop)
        done: list[Round] = []
        waiting: list[Round] = []
        for number in range(1, rounds + 1):
            started = time.monotonic()
            done.append(measure_grid(contestants, programs / "load", effort))
            if len(waiting) < 3:
                waiting.append(measure_idle(contestants, programs / "load", effort))
            print(f"  round {number} of {rounds}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    ours = [name for name in DEFAULT_SERVERS if name.startswith("uvloop")]
    return [
        *cost_tables(done, effort.cells),
        *(target_table(done, effort.cells, name) for name in ours),
        idle_table(waiting, effort.idle),
    ]


@contextmanager
def compiled() -> Iterator[Path]:
    """A directory with what is written in C; raises where there is no compiler."""
    if shutil.which("cc") is None:
        raise RuntimeError("the grid's load and its limits are written in C: install a C compiler (cc)")
    with tempfile.TemporaryDirectory(prefix="aiouring-grid-") as folder:
        for name in ("load", "epoll", "io_uring"):
            options = ["-O2", "-Wall", "-I", str(ABI), "-o", f"{folder}/{name}"]
            subprocess.run(["cc", *options, str(HERE / f"grid_{name}.c")], check=True)
        yield Path(folder)


def contestants_with(programs: Path, rsloop: str) -> Contestants:
    """Everybody; `rsloop` is the command of an interpreter that has it."""
    found: dict[str, Sequence[str]] = {f"{loop}, {kind}": () for loop in LOOPS for kind in (STREAMS, PROTOCOL)}
    found.update(dict.fromkeys(DEFAULT_SERVERS, ()))
    if rsloop:
        text = (HERE / "grid_rsloop.py").read_text()
        found |= {f"rsloop, {kind}": [*shlex.split(rsloop), "-c", text, kind] for kind in (STREAMS, PROTOCOL)}
    in_c = {EPOLL: [f"{programs}/epoll"], IO_URING: [f"{programs}/io_uring"], GUEST: [f"{programs}/io_uring", "guest"]}
    return found | in_c


def exchange(server: ServerProcess, load: Path, cell: Cell, effort: Effort, idle: int = 0) -> Mapping[str, float]:
    """Put the server under load; what it cost, and how many buffers it holds while its connections are idle."""
    numbers = (server.port, server.pid, processor.LOAD_CORE, cell.connections, cell.size, cell.depth, idle)
    command = [str(load), *map(str, (*numbers, effort.warm_up, effort.seconds))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if line and idle:
            held = server.statistics().get("buffers in_use", 0)
        process.stdin.close()
        if process.wait(PATIENCE) or not line:
            raise RuntimeError(f"the load ended with status {process.returncode}; its standard error says why")
    result: dict[str, float] = json.loads(line)
    return {**result, "held": held} if idle else result


def measure_grid(contestants: Contestants, load: Path, effort: Effort) -> Round:
    """One round: every server at every point."""
    samples: dict[str, dict[str, float]] = {name: {} for name in contestants}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(ServerProcess(name, command=command)) for name, command in contestants.items()
        }
        for cell in effort.cells:
            for name, server in servers.items():
                result = exchange(server, load, cell, effort)
                samples[name][f"CPU per message, {cell}"] = result["cpu"] / max(1, result["messages"])
                samples[name][f"throughput, {cell}"] = max(1, result["messages"]) / result["wall"]
                samples[name][f"busy, {cell}"] = result["cpu"] / result["wall"]
                samples[name][f"load, {cell}"] = result["load"] / result["wall"]
    return samples


def measure_idle(contestants: Contestants, load: Path, effort: Effort) -> Round:
    """64 connections alone and among many that are idle; what each of those costs in memory."""
    cell = Cell(64, 512)
    return {name: _among_idle(name, command, load, cell, effort) for name, command in contestants.items()}


def _among_idle(name: str, command: Sequence[str], load: Path, cell: Cell, effort: Effort) -> Sample:
    with ServerProcess(name, command=command) as server:
        alone = exchange(server, load, cell, effort)
        among = exchange(server, load, cell, effort, effort.idle)
    price = [each["cpu"] / max(1, each["messages"]) for each in (alone, among)]
    return {"bytes": among["idle"] / effort.idle, "slowdown": price[1] / price[0], "held": among["held"]}


def cost_tables(done: Sequence[Round], cells: Sequence[Cell]) -> list[Table]:
    """CPU time and throughput, two tables for each number of connections."""
    tables = []
    for crowd in dict.fromkeys(cell.crowd for cell in cells):
        row_cells = [cell for cell in cells if cell.crowd == crowd]
        for quantity, meaning in _MEANINGS.items():
            table = Table(
                f"grid: {quantity}, {crowd} connections, divided by {BASELINE!r}",
                meaning,
                [SIZES[cell.size] for cell in row_cells],
            )
            for name in done[0]:
                table.rows.append((name, [ratio(done, f"{quantity}, {cell}", name, BASELINE) for cell in row_cells]))
            tables.append(table)
        tables[-1].remarks += [busy_remark(done, row_cells, who) for who in ("busy", "load")]
    return tables


_MEANINGS = {
    "CPU per message": "User and system time of the server; lower is better.  Median over the rounds (min..max).",
    "throughput": "Messages per second; higher is better, but the load's core limits it too.",
}


def busy_remark(done: Sequence[Round], cells: Sequence[Cell], who: str) -> str:
    """How much of the time a core worked: near 1, it was what limited the throughput."""
    values = [statistics.median(each[name][f"{who}, {cell}"] for each in done) for cell in cells for name in done[0]]
    side = {"busy": "the servers", "load": "the load"}[who]
    return f"busy, of the wall time: {side} {min(values):.2f} to {max(values):.2f}"


def target_table(done: Sequence[Round], cells: Sequence[Cell], name: str) -> Table:
    """How one of ours compares with those that the targets name, at every point."""
    table = Table(
        f"grid: CPU per message of {name!r}, divided by that of others",
        "Lower is better.  Median over the rounds (min..max).",
        list(TARGETS),
    )
    for cell in cells:
        row: list[Spread | None] = [ratio(done, f"CPU per message, {cell}", name, other) for other in TARGETS]
        table.rows.append((str(cell), row))
    (everywhere, limit), *others = TARGETS.items()
    table.remarks.append(verdict(table, everywhere, limit, at_most=True, every=True))
    for other, limit in others:
        for crowd in ("64 x", "64 (", "1,000 x"):
            table.remarks.append(verdict(table, other, limit, at_most=True, every=True, rows=crowd))
    return table


def idle_table(waiting: Sequence[Round], idle: int) -> Table:
    """What connections cost that say nothing."""
    table = Table(
        f"grid: {idle:,} connections that have exchanged one message of 512 bytes and then are idle",
        "KiB each: anonymous memory of the server's process, per idle connection.  CPU per message: 64 connections\n"
        "among them, divided by the same 64 alone.  Buffers held: by all of them.  Median (min..max).",
        ["KiB each", "CPU per message", "buffers held"],
    )
    for name in waiting[0]:
        values = [[each[name][key] for each in waiting] for key in ("bytes", "slowdown", "held")]
        row: list[Spread | None] = [Spread(tuple(value / 1024 for value in values[0]))]
        held = Spread(tuple(values[2])) if "aiouring" in name else None
        table.rows.append((name, [*row, Spread(tuple(values[1])), held]))
    for column, limit in (("KiB each", IDLE_BYTES / 1024), ("CPU per message", IDLE_SLOWDOWN), ("buffers held", 0)):
        for name in DEFAULT_SERVERS:
            table.remarks.append(verdict(table, column, limit, at_most=True, every=True, rows=name))
    return table
