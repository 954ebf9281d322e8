"""Owns the setup of a ring: which flags are asked for and dropped, and why a ring could not be made.

How the flags are chosen: we ask for everything in PROFILES and, when the kernel answers EINVAL, drop what
came to Linux last, one flag at a time, remembering per process what was refused.

Which profile is the default was measured (benchmarks/, 6.18): see DEFAULT_TASK_RUN.
"""

import errno
import os
import resource
from typing import TYPE_CHECKING, Literal

from aiouring._abi import SetupFlags
from aiouring._errors import RingUnavailableError, kernel_error
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._uring import CRing

TaskRun = Literal["defer", "coop"]

#: COOP_TASKRUN costs less per request, DEFER_TASKRUN paces a firehose better (KERNEL.md E4).
DEFAULT_TASK_RUN: TaskRun = "coop"

_ALWAYS = (
    SetupFlags.CQSIZE
    | SetupFlags.CLAMP
    | SetupFlags.R_DISABLED
    | SetupFlags.SUBMIT_ALL
    | SetupFlags.TASKRUN_FLAG
    | SetupFlags.SINGLE_ISSUER
    | SetupFlags.NO_SQARRAY
)
PROFILES: dict[TaskRun, SetupFlags] = {
    "defer": _ALWAYS | SetupFlags.DEFER_TASKRUN,
    "coop": _ALWAYS | SetupFlags.COOP_TASKRUN,
}

# Newest first.  A ring needs the rest: CQSIZE and CLAMP are older than anything else we rely on.
_DROPPABLE = (
    SetupFlags.NO_SQARRAY,  # since Linux 6.6
    SetupFlags.DEFER_TASKRUN,  # since Linux 6.1
    SetupFlags.SINGLE_ISSUER,  # since Linux 6.0
    SetupFlags.COOP_TASKRUN | SetupFlags.TASKRUN_FLAG,  # since Linux 5.19
    SetupFlags.SUBMIT_ALL,  # since Linux 5.18
    SetupFlags.R_DISABLED,  # since Linux 5.10
)
_refused = SetupFlags(0)


def set_up(raw: "CRing", entries: int, cq_entries: int, flags: SetupFlags) -> None:
    """Make the ring with as many of `flags` as this kernel takes; raises `RingUnavailableError` or `OSError`."""
    global _refused
    if flags & _refused & SetupFlags.DEFER_TASKRUN:
        flags |= SetupFlags.COOP_TASKRUN
    tried = flags = flags & ~_refused
    code = lib.au_ring_setup(raw, entries, cq_entries, flags)
    for drop in _DROPPABLE:
        if code != -errno.EINVAL:
            break
        if flags & drop:
            flags &= ~drop
            if drop is SetupFlags.DEFER_TASKRUN:
                flags |= SetupFlags.COOP_TASKRUN
            tried |= flags
            code = lib.au_ring_setup(raw, entries, cq_entries, flags)
    if code == 0:
        _refused |= tried & ~flags
    if code < 0:
        raise unavailable(-code)


def in_bytes(limit: int) -> str:
    """A resource limit in words."""
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"


BLOCKED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def unavailable(number: int) -> OSError:
    """The exception for a ring that could not be made: blocked here, or a limit was hit."""
    if number in BLOCKED:
        return RingUnavailableError(number, why_blocked(number))
    if number == errno.ENOMEM:
        soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return OSError(
            number,
            f"no memory for the ring: its pages count against RLIMIT_MEMLOCK, which is {in_bytes(soft)} here; "
            "raise it (ulimit -l, LimitMEMLOCK=, docker run --ulimit memlock=-1) or ask for fewer entries",
        )
    return kernel_error(number, "io_uring_setup")


def why_blocked(number: int) -> str:
    """Why this process may not make a ring, and what to change; from what the system tells about itself."""
    release = os.uname().release
    if number == errno.ENOSYS:
        return (
            f"this kernel ({release}) has no io_uring: it is older than Linux 5.1, was built without "
            "CONFIG_IO_URING, or is an emulation such as gVisor"
        )
    switch = _read_first_line("/proc/sys/kernel/io_uring_disabled")
    if switch == "2":
        return "io_uring is switched off: sysctl kernel.io_uring_disabled is 2; an administrator can set it to 0"
    if switch == "1":
        return (
            "io_uring is reserved: sysctl kernel.io_uring_disabled is 1; be in the group named by "
            "kernel.io_uring_group, have CAP_SYS_ADMIN, or set the sysctl to 0"
        )
    if any(line.split() == ["Seccomp:", "2"] for line in _lines("/proc/self/status")):
        return (
            "a seccomp filter blocks the io_uring system calls, as Docker's and Podman's default profiles do; "
            "run the container with --security-opt seccomp=unconfined or with a profile that allows "
            "io_uring_setup, io_uring_enter and io_uring_register"
        )
    return f"the kernel ({release}) refused: {os.strerror(number)}; a security module may forbid io_uring"


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def _read_first_line(path: str) -> str:
    return (_lines(path) or [""])[0].strip()
