"""Tests of the command line, `python -m aiouring`."""

import errno
import json
import re
import subprocess

import pytest
from injected_faults import SETUP, forbidden, run_python

import aiouring
from aiouring._features import FEATURES

RUN = "import runpy, sys; sys.argv = ['aiouring', *sys.argv[1:]]; runpy.run_module('aiouring', run_name='__main__')"


def run(*arguments: str, blocked: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run the command line, perhaps where a seccomp filter blocks io_uring."""
    return run_python((forbidden(errno.EPERM, SETUP) if blocked else "") + RUN, *arguments)


def test_table() -> None:
    """The table says what is here, one row a feature with the version that has it, and the status is 0."""
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    found = aiouring.probe()
    lines = done.stdout.splitlines()
    assert lines[0] == f"aiouring {aiouring.__version__}, Linux {found.kernel}"
    assert lines[1] == f"io_uring: available, {found.opcode_count} operations"
    found_rows = (re.fullmatch(r"(\S.*?) {2,}(yes|no) +(\d\.\d+)", line) for line in lines)
    rows = {row[1]: [row[2], row[3]] for row in found_rows if row}
    assert rows["buffer rings"] == ["yes" if found.buffer_rings else "no", "5.19"]
    assert {"files and sockets", "registered buffers", "task_run='coop'", "task_run='defer'"} <= set(rows)
    for name, feature in FEATURES.items():
        assert rows[name] == ["yes" if name in found.supported else "no", feature.since]
    assert max(map(len, lines)) < 400


def test_json() -> None:
    """The JSON has everything the probe has, as plain values, and the status is 0."""
    done = run("--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed, found = json.loads(done.stdout), aiouring.probe()
    assert printed["available"] is True
    assert printed["reason"] == ""
    assert printed["kernel"] == found.kernel
    assert set(printed["opcodes"]) == {opcode.name for opcode in found.opcodes}
    assert set(printed["features"]) == {flag.name for flag in found.features}
    assert set(printed["setup_flags"]) == {flag.name for flag in found.setup_flags}
    assert set(printed["supported"]) == found.supported
    assert printed["buffer_rings"] == found.buffer_rings
    assert printed["memlock_limit"] == found.memlock_limit


@pytest.mark.needs_no_ring
def test_e7_table_where_blocked() -> None:
    """Where io_uring is blocked the table is the reason, and the status is 1."""
    done = run(blocked=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^io_uring: not available: .*(seccomp|sysctl|security)", done.stdout, flags=re.M)
    assert "since Linux" not in done.stdout


@pytest.mark.needs_no_ring
def test_e7_json_where_blocked() -> None:
    """Where io_uring is blocked the JSON says so and why, and the status is 1."""
    done = run("--json", blocked=True)
    assert (done.returncode, done.stderr) == (1, "")
    printed = json.loads(done.stdout)
    assert printed["available"] is False
    assert printed["reason"]
    assert printed["opcodes"] == printed["features"] == printed["setup_flags"] == []


@pytest.mark.needs_no_ring
def test_unknown_option() -> None:
    """An option that does not exist is a usage error, and names the program."""
    done = run("--no-such-option")
    assert done.returncode == 2
    assert "usage: python -m aiouring" in done.stderr


@pytest.mark.needs_no_ring
def test_rows_stand_alone() -> None:
    """Each row can be told of a probe that found nothing."""
    from aiouring.__main__ import _ROWS

    nothing = aiouring.Probe(available=False, reason="none", kernel="0")
    assert [has(nothing) for _, _, has in _ROWS] == [False] * len(_ROWS)
    assert all(re.fullmatch(r"\d\.\d+", since) for _, since, _ in _ROWS)
