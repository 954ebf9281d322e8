"""Owns `CoreRing`: one submission and completion queue, its memory and its thread; knows nothing of asyncio.

The kernel is three system calls behind three C function pointers, not the ten functions DESIGN.md had in
mind: a simulated kernel that replaces those three on a memory file exercises the C core as well.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiouring._abi import Features, Opcode, SetupFlags, SubmissionFlags
from aiouring._errors import ResourceBusyError, UnsupportedKernelError, failure, kernel_error, unsupported
from aiouring._restrictions import Restrictions
from aiouring._setup import BLOCKED, DEFAULT_TASK_RUN, PROFILES, TaskRun, set_up, unavailable
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._direct_descriptor import DirectDescriptor
    from aiouring._uring import CRing

MAX_ENTRIES = 32768

# What prepare() may put into an entry's address and offset.  Everywhere else the kernel takes the field for an
# address in our memory, to which it writes in some operations.
_ADDRESS_IS_A_NUMBER = (Opcode.POLL_REMOVE, Opcode.TIMEOUT_REMOVE, Opcode.ASYNC_CANCEL, Opcode.FALLOCATE)
_OFFSET_IS_AN_ADDRESS = (Opcode.STATX, Opcode.WAITID, Opcode.OPENAT2, Opcode.URING_CMD)

# What prepare_memory() may be asked for: elsewhere the memory holds addresses, or is longer than `length` says.
_MOVES_MEMORY = (Opcode.READ, Opcode.WRITE, Opcode.RECV, Opcode.SEND)

_NO_FLAGS = SubmissionFlags(0)
_USER_DATA = 2**64 - 1
_CHAINS = SubmissionFlags.IO_DRAIN | SubmissionFlags.IO_LINK | SubmissionFlags.IO_HARDLINK
_FREE_FLAGS = _CHAINS | SubmissionFlags.ASYNC


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


def check_count(name: str, value: int) -> None:
    """Refuse what is not a count of at most 32 bits."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 0 <= value < 2**32:
        raise ValueError(f"{name}={value} is outside 0 to {2**32 - 1}")


class CoreRing:
    """The queues themselves, and what may be done to them; `Ring` and `AsyncRing` stand on it."""

    def __init__(
        self,
        entries: int = 128,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        disabled: bool = False,
        restrictions: Restrictions | bool | None = None,
    ) -> None:
        check_size("entries", entries, MAX_ENTRIES)
        check_size("cq_entries", cq_entries, 2 * MAX_ENTRIES)
        if cq_entries < entries:
            raise ValueError(f"cq_entries={cq_entries} is less than entries={entries}")
        profile = DEFAULT_TASK_RUN if task_run is None else task_run
        if profile not in PROFILES:
            raise ValueError(f"task_run={profile!r} is neither 'defer' nor 'coop'")
        self.raw: CRing = ffi.new("au_ring *")
        self.attended = False  # somebody else closes it, who knows what is in flight
        self.restrictions = Restrictions.default() if restrictions is True else restrictions or None
        set_up(self.raw, entries, cq_entries, PROFILES[profile])
        try:
            if self.restrictions is not None:
                self._restrict(self.restrictions)
            if not disabled:
                self.enable()
        except BaseException:
            lib.au_ring_close(self.raw)
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
    def enabled(self) -> bool:
        """Whether the ring has been enabled, and bound to a thread."""
        return self.raw.state == lib.AU_RING_ENABLED

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

    def _restrict(self, restrictions: Restrictions) -> None:
        """Hand the kernel the restrictions; registrations that it does not know yet are left out, newest first."""
        if SetupFlags.R_DISABLED not in self.setup_flags:
            raise unsupported("restrictions", "5.10")
        entries = list(restrictions.entries(self.probe_opcodes()))
        code = -errno.EINVAL
        while code == -errno.EINVAL and entries:
            table = ffi.new("struct au_restriction[]", [{"opcode": kind, "value": value} for kind, value in entries])
            code = lib.au_ring_restrict(self.raw, table, len(entries))
            if code == -errno.EINVAL:
                newest = max(entries, key=lambda entry: (entry[0] == lib.AU_RESTRICTION_REGISTER_OP, entry[1]))
                if newest[0] != lib.AU_RESTRICTION_REGISTER_OP:
                    break
                entries.remove(newest)
        if entries:
            self._checked(code, "restricting the ring")

    def request_error(self, number: int, opcode: int, flags: int = 0) -> OSError:
        """The exception for a request that completed with an errno; says if our own restrictions were the reason."""
        if number == errno.EACCES and self.restrictions is not None:
            objection = self.restrictions.objection(opcode, flags)
            if objection:
                return PermissionError(number, f"the restrictions that this ring was made with forbid {objection}")
        return kernel_error(number)

    def enable(self) -> None:
        """Enable the ring and bind it to the calling thread, which alone may use it from now on.

        What it is restricted to, is in force from here on.  Enabling again does nothing.  Since Linux 5.10.
        See io_uring_enable_rings(3).
        """
        code = lib.au_ring_enable(self.raw)
        if -code in BLOCKED:
            raise unavailable(-code)
        self._checked(code, "enabling the ring")

    def close(self) -> None:
        """Unmap and close at once.  This does not stop running requests: reap them first (KERNEL.md E1)."""
        lib.au_ring_close(self.raw)

    def prepare(
        self,
        opcode: int,
        *,
        user_data: int,
        fd: "int | DirectDescriptor" = -1,
        offset: int = 0,
        address: int = 0,
        length: int = 0,
        op_flags: int = 0,
        flags: SubmissionFlags = _NO_FLAGS,
    ) -> None:
        """Fill one entry for an operation without memory.

        `address` is what a cancel looks for; `op_flags` the operation's own flags, such as the events of a poll;
        `flags` may link it to the next entry, drain, or send it to a worker (ASYNC).  What is linked or drained finds
        its file when its turn comes: keep the descriptor open until the completion, or it may be another file's.
        """
        for name, value, least, most in (
            ("opcode", opcode, 0, 255),
            ("user_data", user_data, 0, 2**64 - 1),
            ("length", length, 0, 2**32 - 1),
            ("op_flags", op_flags, 0, 2**32 - 1),
            ("offset", offset, -(2**63), 2**63 - 1),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}={value} is outside {least} to {most}")
        if (address and opcode not in _ADDRESS_IS_A_NUMBER) or (offset and opcode in _OFFSET_IS_AN_ADDRESS):
            raise ValueError(f"prepare() is for operations without memory, and opcode {opcode} would use an address")
        if flags & ~_FREE_FLAGS:
            raise ValueError(f"{flags & ~_FREE_FLAGS!r} is not for prepare()")
        number, how = self._named(fd)
        code = lib.au_prepare(self.raw, user_data, opcode, number, offset, address, length, op_flags, how | flags)
        self._checked(code, "filling a request", fd=number)

    def prepare_memory(
        self,
        opcode: int,
        memory: Any,
        *,
        user_data: int,
        fd: "int | DirectDescriptor",
        offset: int = -1,
        start: int = 0,
        length: int | None = None,
    ) -> None:
        """Fill one entry that moves `length` bytes at `memory` (a cffi array) + `start`.

        The caller keeps `memory` alive until the request's final completion.
        """
        if opcode not in _MOVES_MEMORY:
            raise ValueError(f"prepare_memory() is for READ, WRITE, RECV and SEND, not for opcode {opcode}")
        if ffi.typeof(memory).kind != "array":
            raise TypeError("the memory must be an array: the length of what a pointer points to is not known")
        capacity = ffi.sizeof(memory)
        wanted = capacity - start if length is None else length
        number, how = self._named(fd)
        code = lib.au_prepare_memory(
            self.raw, user_data, opcode, number, memory, capacity, start, wanted, offset, 0, how
        )
        self._checked(
            code, "filling a request", capacity=capacity, start=start, length=wanted, offset=offset, fd=number
        )

    def submit(self) -> list[Completion]:
        """Submit everything filled, without waiting; returns what has completed (at most 512 at once)."""
        return list(self._turn())

    def _turn(self) -> Iterator[Completion]:
        return self._completions(lib.au_ring_turn(self.raw, 0))

    def consumed(self, count: int) -> None:
        """The first `count` of the completions that were peeked at are consumed; for who peeks."""

    def _completions(self, code: int) -> Iterator[Completion]:
        if code < 0:
            raise failure(code, "io_uring_enter")
        values = ffi.unpack(self.raw.events, 3 * (code & ~lib.AU_AGAIN))
        for at in range(0, len(values), 3):
            user_data, result, flags = values[at : at + 3]
            yield Completion(user_data & _USER_DATA, result, flags)  # the C core hands it over as a signed number

    @staticmethod
    def _named(fd: "int | DirectDescriptor") -> tuple[int, int]:
        """The number that stands for the file in a request, and how the C core is to treat it."""
        if isinstance(fd, int):
            return fd, lib.AU_GUARD_FD if fd >= 0 else 0
        slot = fd.slot
        return slot, slot.how

    @staticmethod
    def _checked(code: int, doing: str, **numbers: Any) -> int:
        if code < 0:
            raise failure(code, doing, **numbers)
        return code

    def register_eventfd(self, fd: int | None = None) -> int:
        """Have an eventfd counted up whenever there is something to do; returns its descriptor.

        Without `fd` the ring makes one, empties it with every turn and closes it in the end.  One of the caller's is
        the caller's to read and to close; the ring keeps a duplicate.  The count says nothing about how many
        completions there are, and with task_run="defer" a signal says that work is due: take a turn (`submit()`).

        Raises:
            ResourceBusyError: there is one already; unregister it first.
            OSError: EINVAL where `fd` is no eventfd, EBADF where it is closed, EMFILE.

        Since Linux 5.2.  See io_uring_register_eventfd(3).
        """
        self._checked(lib.au_ring_check(self.raw), "registering the eventfd")
        if self.raw.signal_fd >= 0:
            raise ResourceBusyError("this ring has an eventfd already, and a ring has one: unregister it first")
        if fd is None:
            return self._checked(lib.au_ring_open_eventfd(self.raw), "registering the eventfd")
        code = lib.au_ring_use_eventfd(self.raw, fd)
        return self._checked(code, f"registering descriptor {fd} as the eventfd")

    def unregister_eventfd(self) -> None:
        """Take the eventfd back; one that the ring made is closed."""
        self._checked(lib.au_ring_close_eventfd(self.raw), "unregistering the eventfd")

    @property
    def eventfd_enabled(self) -> bool:
        """Whether the kernel signals the eventfd; False keeps it silent.

        Setting it to True looks for what came in silence and, if there is anything, signals the eventfd in the
        kernel's stead: nothing is slept upon.  Since Linux 5.8.  See io_uring_cq_eventfd_toggle(3).
        """
        return not self._checked(lib.au_ring_silenced(self.raw), "asking whether the eventfd is silent")

    @eventfd_enabled.setter
    def eventfd_enabled(self, enabled: bool) -> None:
        """Silence the eventfd, or end that."""
        code = lib.au_ring_silence(self.raw, not enabled)
        if code == -errno.ENOSYS:
            raise unsupported("silent eventfd", "5.8")
        self._checked(code, "silencing the eventfd")

    @contextmanager
    def eventfd_silenced(self) -> Iterator[None]:
        """Keep the eventfd silent in a `with` block, at the end of which it tells of what is still there."""
        before = self.eventfd_enabled
        self.eventfd_enabled = False
        try:
            yield
        finally:
            if not self.closed:
                self.eventfd_enabled = before

    def probe_opcodes(self) -> frozenset[int]:
        """The opcodes this kernel supports.  Since Linux 5.6."""
        answer = ffi.new("struct au_probe *")
        code = lib.au_ring_register(self.raw, lib.AU_REGISTER_PROBE, answer, 256)
        if code == -errno.EINVAL:
            raise UnsupportedKernelError("asking for the supported opcodes needs Linux 5.6")
        self._checked(code, "probing")
        return frozenset(answer.ops[i].op for i in range(answer.ops_len) if answer.ops[i].flags & 1)
