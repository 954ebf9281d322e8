"""Owns the processor: which core runs what, and how much CPU time a process has used."""

import ctypes
import os
import time

#: The cores that we may use.
CORES = sorted(os.sched_getaffinity(0))

#: The core of whatever is measured, and the core of its load: the same one if there is no other.
SERVER_CORE, LOAD_CORE = (CORES + CORES)[:2]


def pin(core: int) -> None:
    """Keep the calling thread, and what it starts from now on, on one core."""
    os.sched_setaffinity(0, {core})


def cpu_clock(pid: int) -> int:
    """The clock that counts the user and system time of all threads of a process; see clock_getcpuclockid(3).

    It is read from outside and counts nanoseconds, so measuring a server needs nothing of the server.
    """
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return clock.value


def cpu_seconds(clock: int) -> float:
    """What a clock from `cpu_clock()` shows now."""
    return time.clock_gettime(clock)
