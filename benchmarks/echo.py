"""Owns the echo benchmark: CPU time and throughput of sixteen echo servers under the same load.

The server has one core and the load another.  The server's CPU time is read from its process clock right
before and after the measured messages.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import processor
from benchmarks.echo_load import CONNECTIONS, PATIENCE, SIZE, Load
from benchmarks.echo_server import PROTOCOL, SERVERS, STREAMS
from benchmarks.rounds import Sample, Spread, Table, interleave, ratio

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 150_000
WARM_UP = 10_000


class ServerProcess:
    """An echo server in a process of its own; leaving the `with` block ends it.

    `prefix` is a command that runs it, such as a tracer; `command` one that is the server itself, but for the core.
    """

    def __init__(self, name: str, prefix: Sequence[str] = (), *, command: Sequence[str] = ()) -> None:
        command = command or (sys.executable, "-m", "benchmarks.echo_server", name)
        command = [*prefix, *command, str(processor.SERVER_CORE)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            hello = self._read_line()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.port: int = hello["port"]
        self.pid: int = hello["pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
        if code and error is None:
            raise RuntimeError(f"the server ended with status {code}")

    def statistics(self) -> dict[str, int]:
        """What the ring of an aiouring server has done so far; empty for the others."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        numbers: dict[str, int] = self._read_line()
        return numbers

    def _read_line(self) -> Any:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], PATIENCE)[0]:
            raise TimeoutError("the server says nothing")
        line = stream.readline()
        if not line:
            raise RuntimeError("the server ended; its standard error says why")
        return json.loads(line)


def run(rounds: int) -> list[Table]:
    """Measure every server and compare with uvloop's protocol and streams."""
    processor.pin(processor.LOAD_CORE)
    done = interleave({name: partial(measure, name) for name in SERVERS}, rounds)
    title = f"echo: {CONNECTIONS} connections, messages of {SIZE} bytes, one in flight on each, divided by "
    tables = []
    for kind in (PROTOCOL, STREAMS):
        baseline = f"uvloop, {kind}"
        table = Table(
            f"{title}{baseline!r}",
            "CPU per message: user and system time of the server; lower is better.  Throughput: messages per second;\n"
            "higher is better, but the load's core limits it too.  Busy: the server's CPU time divided by wall time;\n"
            "at 1 it never waited for the load, nor for its core.  Median over the rounds (min..max).",
            ["CPU per message", "throughput", "busy"],
        )
        for name in SERVERS:
            busy = Spread(tuple(each[name]["busy"] for each in done))
            row: list[Spread | None] = [ratio(done, column, name, baseline) for column in table.columns[:2]]
            table.rows.append((name, [*row, busy]))
        tables.append(table)
    return tables


def measure(name: str) -> Sample:
    """One run of one server: check what it echoes, warm up, then count."""
    with ServerProcess(name) as server, Load(server.port) as load:
        load.check()
        load.exchange(WARM_UP)
        clock = processor.cpu_clock(server.pid)
        wall, cpu = time.perf_counter(), processor.cpu_seconds(clock)
        load.exchange(MESSAGES)
        wall, cpu = time.perf_counter() - wall, processor.cpu_seconds(clock) - cpu
    return {"CPU per message": cpu / MESSAGES, "throughput": MESSAGES / wall, "busy": cpu / wall}
