"""Owns the faults that tests inject: replaced system calls, no more descriptors, a seccomp filter."""

import errno
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiouring
from aiouring._uring import ffi, lib

#: The system calls themselves, for what a replacement passes on.
real_setup: Callable[[int, Any], int] = lib.au_kernel.setup
real_enter: Callable[[int, int, int, int, Any, int], int] = lib.au_kernel.enter
real_register: Callable[[int, int, Any, int], int] = lib.au_kernel.do_register


@contextmanager
def replaced(**calls: Callable[..., int]) -> Iterator[None]:
    """Run with `setup`, `enter` or `do_register` replaced; what they raise is raised here, at the end."""
    raised: list[BaseException] = []

    def guarded(call: Callable[..., int]) -> Callable[..., int]:
        def guard(*arguments: Any) -> int:
            collecting = gc.isenabled()
            gc.disable()  # setup() is called under a lock that a ring's destructor takes
            try:
                return call(*arguments)
            except BaseException as error:  # C cannot pass it on
                raised.append(error)
                return -errno.EIO
            finally:
                if collecting:
                    gc.enable()

        return guard

    before = {name: getattr(lib.au_kernel, name) for name in calls}
    pointers = {name: ffi.callback(ffi.typeof(before[name]), guarded(call)) for name, call in calls.items()}
    for name, pointer in pointers.items():
        setattr(lib.au_kernel, name, pointer)
    try:
        yield
    except BaseException as error:
        if raised:
            raise raised[0] from error
        raise
    finally:
        for name, pointer in before.items():
            setattr(lib.au_kernel, name, pointer)
    if raised:
        raise raised[0]


class Failing:
    """A system call that fails with the errnos it is given, then works; 0 makes it do nothing."""

    def __init__(self, real: Callable[..., int], *errors: int) -> None:
        self.real = real
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *arguments: Any) -> int:
        self.calls += 1
        return -self.errors.pop(0) if self.errors else self.real(*arguments)


@contextmanager
def no_more_descriptors(left: int = 0) -> Iterator[None]:
    """Run with `left` free descriptors: what opens one more gets EMFILE."""
    free = [os.dup(0) for _ in range(left + 1)]
    for number in free:
        os.close(number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Forbids system calls to the process that runs it, as a container's seccomp profile does: the filter loads
# the call's number and answers with the errno where it is one of `numbers`.
_FORBID = """
import ctypes, struct
def forbid(error, numbers):
    program = [struct.pack("=HBBI", 0x20, 0, 0, 0)]
    for number in numbers:
        program += [struct.pack("=HBBI", 0x15, 0, 1, number), struct.pack("=HBBI", 0x06, 0, 0, 0x50000 | error)]
    code = b"".join(program) + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    memory = ctypes.create_string_buffer(code)
    filter = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(memory)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((38, 1, 0), (22, 2, filter)):  # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with a filter
        if libc.prctl(*call, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
"""

SETUP, ENTER, REGISTER = 425, 426, 427


def forbidden(error: int, *numbers: int) -> str:
    """Python source that forbids the system calls `numbers` from here on: they fail with `error`."""
    return f"{_FORBID}\nforbid({error}, {numbers})\n"


def run_python(
    source: str, *arguments: str, before: tuple[str, ...] = (), strict: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run Python source in a process of its own, perhaps `before` a tracer; it can import what tests can."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(aiouring.__file__).parents[1])])
    options = ("-X", "dev", "-W", "error") if strict else ()
    return subprocess.run(
        [*before, sys.executable, *options, "-c", source, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=50,
    )
