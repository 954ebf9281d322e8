"""Tests of probe(): what it finds here, and what it says where io_uring is blocked."""

import dataclasses
import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from conftest import open_files
from injected_faults import (
    ENTER,
    REGISTER,
    SETUP,
    Failing,
    forbidden,
    no_more_descriptors,
    real_register,
    real_setup,
    replaced,
    run_python,
)

import aiouring
from aiouring import Features, Opcode, SetupFlags, _features, _probe, _setup
from aiouring._uring import lib

#: Probes in a process of its own, and prints what it found, and whether anything was left open.
PROBE = """
import json, os, aiouring
before = os.listdir("/proc/self/fd")
found = aiouring.probe()
print(json.dumps([bool(found), found.reason, os.listdir("/proc/self/fd") == before]))
"""


def probe_where(source: str) -> tuple[bool, str]:
    """What probe() says in a process that has run `source`: whether io_uring is available, and why not."""
    done = run_python(source + PROBE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    available, reason, nothing_left = json.loads(done.stdout)
    assert nothing_left
    return available, reason


@pytest.fixture
def system_says(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What files of /proc say, for a test to write; one that it does not write is as it would be unblocked."""
    files = {"/proc/sys/kernel/io_uring_disabled": ["0"], "/proc/self/status": ["Name:\tpython", "Seccomp:\t0"]}
    monkeypatch.setattr(_setup, "_lines", lambda path: files[path])
    return files


# ---- here ------------------------------------------------------------------------------------------


def test_available_here() -> None:
    """Where the tests run, io_uring is there with what aiouring needs."""
    found = aiouring.probe()
    assert found
    assert found.available
    assert found.reason == ""
    assert found.kernel == os.uname().release
    assert {Opcode.NOP, Opcode.READ, Opcode.RECV, Opcode.ASYNC_CANCEL} <= found.opcodes
    assert found.opcode_count >= len(found.opcodes)
    assert Features.SINGLE_MMAP | Features.NODROP in found.features
    assert {"registered buffers", "registered files", "eventfd"} <= found.supported <= set(_features.FEATURES)
    assert found.setup_flags >= _setup.PROFILES["coop"] & ~_setup._refused
    assert found.setup_flags >= _setup.PROFILES["defer"] & ~_setup._refused


def test_nothing_is_left_open() -> None:
    """Probing opens nothing that stays, and finds the same each time."""
    files = open_files()
    assert len({aiouring.probe() for _ in range(20)}) == 1
    assert open_files() == files


def test_probe_is_a_frozen_value() -> None:
    """A probe can be hashed and compared, and not changed."""
    found = aiouring.probe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.reason = "because"  # type: ignore[misc]


def test_buffer_rings_are_found_out() -> None:
    """Whether there are buffer rings is asked of the kernel, not of its version."""

    def without(fd: int, opcode: int, *rest: Any) -> int:
        return -errno.EINVAL if opcode == lib.AU_UNREGISTER_PBUF_RING else real_register(fd, opcode, *rest)

    assert aiouring.probe().buffer_rings
    with replaced(do_register=without):
        found = aiouring.probe()
    assert found.available
    assert not found.buffer_rings


def test_never_raises_without_the_list_of_opcodes() -> None:
    """A kernel that cannot list its operations is one where aiouring is not available."""

    def without(fd: int, opcode: int, *rest: Any) -> int:
        return -errno.EINVAL if opcode == lib.AU_REGISTER_PROBE else real_register(fd, opcode, *rest)

    with replaced(do_register=without):
        found = aiouring.probe()
    assert not found
    assert "5.6" in found.reason


@pytest.mark.parametrize(("effective", "soft", "expected"), [
    ("0000000000000000", 65536, 65536),
    ("0000000000000000", resource.RLIM_INFINITY, None),
    ("0000000000004000", 65536, None),
    ("000001ffffffbfff", 65536, 65536),
])  # fmt: skip
def test_memlock_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, effective: str, soft: int, expected: int | None
) -> None:
    """RLIMIT_MEMLOCK limits who has no CAP_IPC_LOCK."""
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{effective}\n")
    monkeypatch.setattr(_probe, "open", lambda _: status.open(), raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert _probe._memlock_limit() == expected


# ---- where it is blocked ---------------------------------------------------------------------------


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES])
def test_e7_seccomp(error: int) -> None:
    """Where a seccomp filter blocks io_uring_setup, as Docker's does, the reason names seccomp and the remedy."""
    available, reason = probe_where(forbidden(error, SETUP, ENTER, REGISTER))
    assert not available
    assert "seccomp" in reason or Path("/proc/sys/kernel/io_uring_disabled").read_text() != "0\n"
    assert "--security-opt" in reason


@pytest.mark.needs_no_ring
def test_e7_no_such_system_call() -> None:
    """Where the kernel has no io_uring, or a filter says so, the reason says what kernels have it."""
    available, reason = probe_where(forbidden(errno.ENOSYS, SETUP))
    assert not available
    assert "has no io_uring" in reason
    assert os.uname().release in reason


def test_e9_seccomp_forbids_register_only() -> None:
    """A ring that can be made but not enabled is explained as well."""
    available, reason = probe_where(forbidden(errno.EPERM, REGISTER))
    assert not available
    assert "seccomp" in reason


@pytest.mark.parametrize(("switch", "text"), [("2", "kernel.io_uring_disabled is 2"), ("1", "io_uring_group")])
def test_e7_sysctl(system_says: dict[str, list[str]], switch: str, text: str) -> None:
    """Where the administrator has switched io_uring off, the reason names the sysctl, whatever else there is."""
    system_says["/proc/sys/kernel/io_uring_disabled"] = [switch]
    system_says["/proc/self/status"] = ["Seccomp:\t2"]
    with replaced(setup=Failing(real_setup, errno.EPERM)):
        found = aiouring.probe()
    assert not found
    assert text in found.reason


@pytest.mark.usefixtures("system_says")
def test_e7_security_module() -> None:
    """Where nothing else explains it, the reason guesses a security module, and says that the kernel refused."""
    with replaced(setup=Failing(real_setup, errno.EPERM)):
        found = aiouring.probe()
    assert not found
    assert "security module" in found.reason


def test_e7_unreadable_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reason is given where /proc cannot be read, too."""
    lines = _setup._lines
    monkeypatch.setattr(_setup, "_lines", lambda path: lines(str(tmp_path / path.strip("/"))))
    with replaced(setup=Failing(real_setup, errno.EPERM)), pytest.raises(aiouring.RingUnavailableError) as caught:
        aiouring.Ring()
    assert caught.value.errno == errno.EPERM
    assert "refused" in str(caught.value)


def test_e8_limits_are_reasons_too() -> None:
    """Without a free descriptor probe() says so, and does not raise."""
    with no_more_descriptors():
        found = aiouring.probe()
    assert not found
    assert os.strerror(errno.EMFILE) in found.reason


def test_async_ring_says_why(system_says: dict[str, list[str]]) -> None:
    """AsyncRing raises RingUnavailableError with the same reason, and leaves nothing open."""
    system_says["/proc/self/status"] = ["Seccomp:\t2"]
    files = open_files()
    with replaced(setup=Failing(real_setup, errno.EPERM)):
        with pytest.raises(aiouring.RingUnavailableError, match="seccomp"):
            aiouring.AsyncRing()
    assert open_files() == files


def test_setup_flags_without_a_profile() -> None:
    """Flags that only the other profile uses are found as well, and those that nobody has are not."""
    assert SetupFlags.COOP_TASKRUN | SetupFlags.DEFER_TASKRUN in aiouring.probe().setup_flags | _setup._refused
