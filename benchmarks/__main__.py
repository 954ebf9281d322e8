"""Owns the command line: `python -m benchmarks [NAME ...] [--rounds N] [--json FILE]`; BENCHMARKS has the names."""

import argparse
import json
import os
import platform
import sys
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import aiouring
from benchmarks import echo, file_objects, files, grid, nop, processor, syscalls, tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.rounds import Table

BENCHMARKS: "dict[str, Callable[[int], list[Table]]]" = {
    "nop": nop.run,
    "echo": echo.run,
    "tls": tls.run,
    "grid": grid.run,
    "files": files.run,
    "file_objects": file_objects.run,
    "syscalls": syscalls.run,
}


def machine() -> dict[str, object]:
    """What the ratios depend on besides the code."""
    return {
        "date": date.today().isoformat(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "aiouring": aiouring.__version__,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Run the chosen benchmarks and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios, each measured within one run.")
    parser.add_argument("names", nargs="*", metavar="benchmark", help=f"{', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--rounds", type=int, default=7, help="times each contender takes its turn (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios of every round to FILE")
    parser.add_argument("--short", action="store_true", help="grid, file_objects: too short to mean anything")
    parser.add_argument("--rsloop", default="", metavar="COMMAND", help="grid: a Python interpreter that has rsloop")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: at least 1 is needed")

    benchmarks = BENCHMARKS | {
        "grid": partial(grid.run, short=options.short, rsloop=options.rsloop),
        "file_objects": partial(file_objects.run, short=options.short),
    }
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results: dict[str, list[Table]] = {}
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr)
        results[name] = benchmarks[name](options.rounds)
        os.sched_setaffinity(0, processor.CORES)
        for table in results[name]:
            print(f"\n{table}", flush=True)
    if options.json:
        tables = {name: [table.as_json() for table in tables] for name, tables in results.items()}
        options.json.write_text(json.dumps({"machine": about, "benchmarks": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
