"""Owns the command line: `python -m aiouring` prints what io_uring can do on this machine."""

import argparse
import json
import sys
from collections.abc import Callable
from enum import IntFlag

from aiouring import Opcode, Probe, SetupFlags, __version__, probe
from aiouring._features import FEATURES

#: Beside the features that can be required, what users need; the version that has it, and how to tell from a `Probe`.
_ROWS: tuple[tuple[str, str, Callable[[Probe], bool]], ...] = (
    ("files and sockets", "5.6", lambda p: {Opcode.READ, Opcode.RECV, Opcode.ACCEPT} <= p.opcodes),
    ("task_run='coop'", "5.19", lambda p: SetupFlags.COOP_TASKRUN in p.setup_flags),
    ("task_run='defer'", "6.1", lambda p: SetupFlags.DEFER_TASKRUN in p.setup_flags),
    ("no submission array", "6.6", lambda p: SetupFlags.NO_SQARRAY in p.setup_flags),
    *((name, feature.since, lambda p, name=name: name in p.supported) for name, feature in FEATURES.items()),
)
_WIDTH = max(len(name) for name, _, _ in _ROWS) + 2


def table(found: Probe) -> str:
    """The probe as a table for people."""
    lines = [f"aiouring {__version__}, Linux {found.kernel}"]
    if not found:
        return "\n".join([*lines, f"io_uring: not available: {found.reason}"])
    limit = "no limit for this process" if found.memlock_limit is None else f"{found.memlock_limit} bytes (ulimit -l)"
    lines += [f"io_uring: available, {found.opcode_count} operations", f"registered memory: {limit}", ""]
    lines += [f"{'feature':<{_WIDTH}}{'here':<6}since Linux"]
    lines += [f"{name:<{_WIDTH}}{'yes' if has(found) else 'no':<6}{since}" for name, since, has in _ROWS]
    missing = sorted(opcode.name for opcode in Opcode if opcode not in found.opcodes)
    lines += ["", f"features: {_names(found.features)}", f"setup flags: {_names(found.setup_flags)}"]
    lines += [f"operations missing here: {', '.join(missing) or 'none'}"]
    return "\n".join(lines)


def _names(flags: IntFlag) -> str:
    return " ".join(flag.name or "" for flag in flags)


def as_json(found: Probe) -> str:
    """The probe for programs."""
    return json.dumps(
        {
            "available": found.available,
            "reason": found.reason,
            "kernel": found.kernel,
            "opcodes": sorted(opcode.name for opcode in found.opcodes),
            "features": sorted(flag.name or "" for flag in found.features),
            "setup_flags": sorted(flag.name or "" for flag in found.setup_flags),
            "supported": sorted(found.supported),
            "buffer_rings": found.buffer_rings,
            "memlock_limit": found.memlock_limit,
        },
        indent=2,
    )


def main() -> int:
    """Print the probe; exit status 0 where io_uring is available, 1 where it is not."""
    parser = argparse.ArgumentParser(prog="python -m aiouring", description="What io_uring can do on this machine.")
    parser.add_argument("--json", action="store_true", help="print it for programs")
    found = probe()
    print(as_json(found) if parser.parse_args().json else table(found))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
