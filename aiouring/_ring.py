"""Owns `CoreRing`: one submission and completion queue, its memory and its thread; knows nothing of asyncio.

The kernel is three system calls behind three C function pointers, not the ten functions DESIGN.md had in
mind: a simulated kernel that replaces those three on a memory file exercises the C core as well.
"""

import errno
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiouring._abi import Features, Opcode, SetupFlags
from aiouring._errors import UnsupportedKernelError, failure
from aiouring._setup import BLOCKED, DEFAULT_TASK_RUN, PROFILES, TaskRun, set_up, unavailable
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CRing

MAX_ENTRIES = 32768


class Completion(NamedTuple):
    """One completion queue entry."""

    user_data: int
    result: int
    flags: int


def check_size(name: str, value: int, most: int) -> None:
    """Refuse a size that is not an int from 1 to `most`."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 1 <= value <= most:
        raise ValueError(f"{name}={value} is outside 1 to {most}")


class CoreRing:
    """The queues themselves, and what may be done to them; `Ring` and `AsyncRing` stand on it."""

    def __init__(
        self,
        entries: int = 128,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        disabled: bool = False,
    ) -> None:
        check_size("entries", entries, MAX_ENTRIES)
        check_size("cq_entries", cq_entries, 2 * MAX_ENTRIES)
        if cq_entries < entries:
            raise ValueError(f"cq_entries={cq_entries} is less than entries={entries}")
        profile = DEFAULT_TASK_RUN if task_run is None else task_run
        if profile not in PROFILES:
            raise ValueError(f"task_run={profile!r} is neither 'defer' nor 'coop'")
        self.raw: CRing = ffi.new("au_ring *")
        self._opcodes: frozenset[int] | None = None
        self.attended = False  # somebody else closes it, who knows what is in flight
        set_up(self.raw, entries, cq_entries, PROFILES[profile])
        if not disabled:
            try:
                self.enable()
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self.raw.fd}"
        return f"<{type(self).__name__} {self.entries}/{self.cq_entries} {state}>"

    def __del__(self, close: Callable[[Any], int] = lib.au_ring_close) -> None:
        if not getattr(self, "attended", True):
            close(self.raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the ring has been closed."""
        return self.raw.state == 0

    @property
    def fd(self) -> int:
        """The ring's file descriptor, -1 when it is closed."""
        return self.raw.fd

    @property
    def entries(self) -> int:
        """Size of the submission queue."""
        return self.raw.sq_entries

    @property
    def cq_entries(self) -> int:
        """Size of the completion queue."""
        return self.raw.cq_entries

    @property
    def setup_flags(self) -> SetupFlags:
        """The flags this kernel accepted."""
        return SetupFlags(self.raw.setup_flags)

    @property
    def features(self) -> Features:
        """What the kernel said it can do."""
        return Features(self.raw.features & sum(Features))

    def enable(self) -> None:
        """Enable the ring and bind it to the calling thread, which alone may use it from now on."""
        code = lib.au_ring_enable(self.raw)
        if -code in BLOCKED:
            raise unavailable(-code)
        self._checked(code, "enabling the ring")

    def close(self) -> None:
        """Unmap and close at once.  This does not stop running requests: reap them first (KERNEL.md E1)."""
        lib.au_ring_close(self.raw)

    def prepare(
        self, opcode: int, *, user_data: int, fd: int = -1, offset: int = 0, address: int = 0, length: int = 0
    ) -> None:
        """Fill one entry for an operation without memory; `address` is what a cancel looks for."""
        for name, value, least, most in (
            ("opcode", opcode, 0, 255),
            ("user_data", user_data, 0, 2**64 - 1),
            ("length", length, 0, 2**32 - 1),
            ("offset", offset, -(2**63), 2**63 - 1),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}={value} is outside {least} to {most}")
        code = lib.au_prepare(self.raw, user_data, opcode, fd, offset, address, length, 0, self._guard(fd))
        self._checked(code, "filling a request", fd=fd)

    def prepare_memory(
        self,
        opcode: int,
        memory: Any,
        *,
        user_data: int,
        fd: int,
        offset: int = -1,
        start: int = 0,
        length: int | None = None,
    ) -> None:
        """Fill one entry that moves `length` bytes at `memory` (a cffi array) + `start`.

        The caller keeps `memory` alive until the request's final completion.
        """
        capacity = ffi.sizeof(memory)
        wanted = capacity - start if length is None else length
        code = lib.au_prepare_memory(
            self.raw, user_data, opcode, fd, memory, capacity, start, wanted, offset, 0, self._guard(fd)
        )
        self._checked(code, "filling a request", capacity=capacity, start=start, length=wanted, offset=offset, fd=fd)

    def submit(self) -> list[Completion]:
        """Submit everything filled, without waiting; returns what has completed (at most 512 at once)."""
        return list(self._turn())

    def wait(self, count: int = 1, timeout: float | None = None) -> list[Completion]:
        """Submit, then block until `count` completions are there or `timeout` seconds have passed."""
        check_size("count", count, self.cq_entries)
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout={timeout} is negative; None waits for as long as it takes")
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = -1 if end is None else max(0, int((end - time.monotonic()) * 1e9))
            code = lib.au_ring_wait(self.raw, count, left)
            if code != -errno.EINTR:  # Python's signal handlers have run by now (PEP 475)
                break
        if code not in (0, -errno.ETIME):
            raise failure(code, "io_uring_enter")
        return self.submit()

    def _turn(self) -> Iterator[Completion]:
        code = lib.au_ring_turn(self.raw, 0)
        if code < 0:
            raise failure(code, "io_uring_enter")
        values = ffi.unpack(self.raw.events, 3 * (code & ~lib.AU_AGAIN))
        for at in range(0, len(values), 3):
            yield Completion(*values[at : at + 3])

    @staticmethod
    def _guard(fd: int) -> int:
        return lib.AU_GUARD_FD if fd >= 0 else 0

    @staticmethod
    def _checked(code: int, doing: str, **numbers: Any) -> int:
        if code < 0:
            raise failure(code, doing, **numbers)
        return code

    def register_eventfd(self) -> int:
        """Make an eventfd that counts up whenever there is something to do; returns its descriptor."""
        return self._checked(lib.au_ring_open_eventfd(self.raw), "registering the eventfd")

    def unregister_eventfd(self) -> None:
        """Take the eventfd back and close it."""
        self._checked(lib.au_ring_close_eventfd(self.raw), "unregistering the eventfd")

    def require(self, opcode: int, release: str) -> None:
        """Raise `UnsupportedKernelError` unless this kernel knows `opcode`, which is there since Linux `release`."""
        if self._opcodes is None:
            try:
                self._opcodes = self.probe_opcodes()
            except OSError:  # a restricted ring may not ask: the kernel will answer the request itself
                self._opcodes = frozenset(range(256))
        if opcode not in self._opcodes:
            raise UnsupportedKernelError(f"{Opcode(opcode).name} needs Linux {release}")

    def probe_opcodes(self) -> frozenset[int]:
        """The opcodes this kernel supports.  Since Linux 5.6."""
        answer = ffi.new("struct au_probe *")
        code = lib.au_ring_register(self.raw, lib.AU_REGISTER_PROBE, answer, 256)
        if code == -errno.EINVAL:
            raise UnsupportedKernelError("asking for the supported opcodes needs Linux 5.6")
        self._checked(code, "probing")
        return frozenset(answer.ops[i].op for i in range(answer.ops_len) if answer.ops[i].flags & 1)
