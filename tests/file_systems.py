"""Owns the small file systems that tests fill up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import until


@contextmanager
def mounted(kind: str, directory: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own at `directory`; skips the test without the right to mount."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    directory.mkdir()
    done = subprocess.run(["mount", "-t", kind, *options, "none", str(directory)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        unmount = ["umount", str(directory)]
        until(lambda: subprocess.run(unmount, capture_output=True).returncode == 0)
        assert not os.path.ismount(directory), "something holds a file there open"
