"""Tests of a ring's setup: which flags an old kernel takes, and what is remembered of that."""

import errno
from typing import Any

import pytest
from injected_faults import real_setup, replaced

import aiouring
from aiouring import Opcode, Ring, SetupFlags, _setup
from aiouring._setup import TaskRun
from aiouring._uring import ffi

TASK_RUN = SetupFlags.COOP_TASKRUN | SetupFlags.TASKRUN_FLAG
#: What the kernel of each version refuses.
OLD_KERNELS = {
    "6.5": SetupFlags.NO_SQARRAY,
    "6.0": SetupFlags.NO_SQARRAY | SetupFlags.DEFER_TASKRUN,
    "5.19": SetupFlags.NO_SQARRAY | SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER,
    "5.18": SetupFlags.NO_SQARRAY | SetupFlags.DEFER_TASKRUN | SetupFlags.SINGLE_ISSUER | TASK_RUN,
    "5.17": ~(SetupFlags.CQSIZE | SetupFlags.CLAMP | SetupFlags.R_DISABLED),
    "5.9": ~(SetupFlags.CQSIZE | SetupFlags.CLAMP),
}


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has not learned yet what its kernel refuses, and forgets what this test teaches it."""
    monkeypatch.setattr(_setup, "_refused", SetupFlags(0))


class OldKernel:
    """setup() as a kernel that lacks some flags does it."""

    def __init__(self, missing: SetupFlags) -> None:
        self.missing = missing
        self.calls = 0

    def setup(self, entries: int, params: Any) -> int:
        self.calls += 1
        asked = SetupFlags(ffi.cast("struct au_params *", params).flags)
        lacks_mode = SetupFlags.TASKRUN_FLAG in asked and not asked & TASK_RUN ^ SetupFlags.TASKRUN_FLAG
        if asked & self.missing or (lacks_mode and SetupFlags.DEFER_TASKRUN not in asked):
            return -errno.EINVAL
        return real_setup(entries, params)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("version", OLD_KERNELS)
def test_setup_drops_what_the_kernel_refuses(profile: TaskRun, version: str) -> None:
    """An older kernel's ring has every flag which that kernel knows, and works."""
    missing = OLD_KERNELS[version]
    expected = _setup.PROFILES[profile] & ~missing
    if profile == "defer" and SetupFlags.DEFER_TASKRUN in missing:
        expected |= SetupFlags.COOP_TASKRUN & ~missing
    with replaced(setup=OldKernel(missing).setup), Ring(8, cq_entries=16, task_run=profile) as ring:
        assert ring.setup_flags == expected
        for number in (1, 2, 3):
            ring.prepare(Opcode.NOP, user_data=number)
        assert [completion.user_data for completion in ring.wait(3)] == [1, 2, 3]


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("task_run", "version"),
    [("coop", version) for version in OLD_KERNELS]
    + [("defer", version) for version in ("6.5", "6.0", "5.19")]
    + [("defer", version) for version in ("5.18", "5.17", "5.9")],
)
def test_setup_remembers_what_the_kernel_refuses(task_run: TaskRun, version: str) -> None:
    """The second ring of a process is set up at once, and like the first."""
    kernel = OldKernel(OLD_KERNELS[version])
    with replaced(setup=kernel.setup), Ring(8, cq_entries=16, task_run=task_run) as first:
        assert kernel.calls > 1
        kernel.calls = 0
        with Ring(8, cq_entries=16, task_run=task_run) as second:
            assert second.setup_flags == first.setup_flags
            assert kernel.calls == 1


@pytest.mark.usefixtures("forgetful")
def test_setup_that_fails_teaches_nothing() -> None:
    """A kernel that refuses every combination of flags is not remembered as one that has none."""
    with replaced(setup=lambda _entries, _params: -errno.EINVAL):
        with pytest.raises(OSError, match="io_uring_setup") as caught:
            Ring(8, cq_entries=16)
    assert caught.value.errno == errno.EINVAL
    assert _setup._refused == SetupFlags(0)


def test_setup_accepts_every_flag_here(profile: TaskRun) -> None:
    """On a kernel from 6.6 on, nothing is dropped."""
    if _setup._refused:
        pytest.skip(f"this kernel refuses {_setup._refused!r}")
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        assert ring.setup_flags == _setup.PROFILES[profile]
        assert aiouring.Features.NODROP | aiouring.Features.SINGLE_MMAP in ring.features
