"""Owns the small file systems and devices that tests fill up, cut off, and have answer badly or never."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fuse_server
import pytest
from conftest import until

from aiouring import _file_system

Mounter = Callable[[str], "tuple[Path, subprocess.Popen[str]]"]


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


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A block device whose sectors are those of a file; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    try:
        done = subprocess.run(["losetup", "--show", "-f", str(image)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("losetup is not installed")
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def fuse_servers(directory: Path) -> Iterator[Mounter]:
    """For a fixture: mounts the tests' FUSE file system in a mode; returns its file and its server."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting a FUSE file system needs root, and /dev/fuse")
    mounts: list[tuple[Path, subprocess.Popen[str]]] = []

    def mount(mode: str) -> "tuple[Path, subprocess.Popen[str]]":
        place = directory / mode
        place.mkdir()
        server = subprocess.Popen(
            [sys.executable, fuse_server.__file__, str(place), mode], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        if server.stdout.readline() != "mounted\n":
            server.wait()
            pytest.skip("FUSE cannot be mounted here")
        mounts.append((place, server))
        return place / "file", server

    _file_system.forget()
    yield mount
    for place, server in mounts:
        server.kill()
        server.communicate()
        subprocess.run(["umount", "-l", str(place)], check=True)
