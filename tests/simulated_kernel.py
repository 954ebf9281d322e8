"""Owns `SimulatedKernel`: io_uring's three system calls, played by a seeded script on a memory file.

How this fits together

1. The C core runs unchanged: it maps our memory file as it would map a ring, fills entries, drains completions.
2. A request waits in `pending` until a `step()` or a cancel completes it.  Its bytes move at that moment and
   not earlier, into the address it was submitted with: a buffer that was reused too soon shows as damage.
3. What goes wrong is drawn from the seed by the chances in `Odds`, or scripted in `next_enters` and
   `next_cancels`.  `calm()` ends all trouble: everything that is in flight must finish after it.
4. A ring set up with DEFER_TASKRUN behaves as such: `step()` only marks work and signals once; completions
   are posted by the next enter() (KERNEL.md E4).
"""

import errno
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from random import Random
from typing import Any, NamedTuple

from injected_faults import replaced
from simulated_queues import SimulatedQueues

from aiouring._uring import ffi, lib

RECEIVES = (lib.AU_OP_READ, lib.AU_OP_RECV, lib.AU_OP_READ_FIXED)
SENDS = (lib.AU_OP_WRITE, lib.AU_OP_SEND, lib.AU_OP_WRITE_FIXED)
UNREMARKABLE = (
    lib.AU_REGISTER_ENABLE_RINGS,
    lib.AU_REGISTER_BUFFERS,
    lib.AU_UNREGISTER_BUFFERS,
    lib.AU_REGISTER_FILES,
    lib.AU_UNREGISTER_FILES,
)
STOPPED, DONE, LATER = "stopped", "done", "later"


@dataclass(frozen=True)
class Odds:
    """How likely each thing is, 0 to 1, whenever it could happen."""

    complete: float = 1.0  # a request that can complete does
    inline: float = 0.0  # ... within the enter() that submits it
    short_submit: float = 0.0  # enter() takes fewer than asked
    enter_error: float = 0.0  # enter() fails, at most twice in a row
    uninvited: float = 0.0  # ECANCELED although nobody asked
    again: float = 0.0  # EAGAIN, as old kernels answer for O_NONBLOCK files
    stray: float = 0.0  # a completion that belongs to nobody
    spurious: float = 0.0  # the eventfd counts up for nothing

    @classmethod
    def drawn(cls, random: Random) -> "Odds":
        """Each trouble is absent, rare or frequent."""
        chances = {field.name: random.choice((0.0, 0.0, 0.02, 0.2)) for field in fields(cls)}
        return cls(**(chances | {"complete": random.choice((0.05, 0.3, 0.9)), "inline": random.random()}))


class CancelOutcome(NamedTuple):
    """What a cancel answers, what becomes of its target, and which of the two completes first."""

    code: int  # 0, -ENOENT or -EALREADY
    target: str  # STOPPED (ECANCELED), DONE (its data, if there is any) or LATER
    target_first: bool = False

    @classmethod
    def drawn(cls, random: Random) -> "CancelOutcome":
        """Any of them; a cancel that works is the most likely."""
        code = random.choice((0, 0, -errno.ENOENT, -errno.EALREADY))
        return cls(code, random.choice((STOPPED, DONE, LATER)), random.random() < 0.5)


@dataclass(eq=False)
class Operation:
    """A request the kernel has taken and not completed."""

    user_data: int
    opcode: int
    fd: int
    address: int
    length: int
    op_flags: int
    group: int | None
    doomed: bool = False  # a cancel said LATER


class Group:
    """The kernel's side of a ring of provided buffers; it checks that no buffer is handed over twice."""

    def __init__(self, registration: Any) -> None:
        self._entries = ffi.cast("struct au_buf *", registration.ring_addr)
        self._mask = registration.ring_entries - 1
        self._head = self._seen = 0
        self.here: set[int] = set()

    def look(self) -> bool:
        """Take note of what was published; whether there is any buffer."""
        tail = self._entries[0].reserved
        while self._seen != tail:
            number = self._entries[self._seen & self._mask].bid
            assert number not in self.here, f"buffer {number} was handed to the kernel twice"
            self.here.add(number)
            self._seen = (self._seen + 1) & 0xFFFF
        return bool(self.here)

    def pick(self) -> Any:
        """The next buffer, a `struct au_buf`."""
        entry = self._entries[self._head & self._mask]
        self._head = (self._head + 1) & 0xFFFF
        self.here.remove(entry.bid)
        return entry


class SimulatedKernel:
    """One simulated ring; `streams` holds what each descriptor still has to say, `ended` those at their end."""

    def __init__(self, random: Random, odds: Odds | None = None) -> None:
        self.random, self.odds = random, odds or Odds()
        self.streams: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.sent: dict[int, bytearray] = defaultdict(bytearray)
        self.pending: list[Operation] = []
        self.groups: dict[int, Group] = {}
        self.next_enters: deque[int] = deque()  # -errno, or how many entries to take at most
        self.next_cancels: deque[CancelOutcome] = deque()
        self.enters = self.posted = self.strays = self._refusals = self._newest = 0
        self._deferred: dict[Operation, int | None] = {}
        self._lock = threading.RLock()  # one test completes requests from another thread

    @contextmanager
    def running(self) -> Iterator["SimulatedKernel"]:
        """Be the kernel of this process; one ring is made and closed inside."""
        with replaced(setup=self._setup, enter=self._enter, do_register=self._register):
            try:
                yield self
            finally:
                self.queues.close()
                del self.queues  # its maps hold descriptors

    def calm(self) -> None:
        """No more trouble from here on, and nothing is slow."""
        self.odds = Odds()
        self.next_enters.clear()
        self.next_cancels.clear()

    def step(self) -> None:
        """A moment passes: requests complete in any order, and what else may happen does."""
        with self._lock:
            for operation in self.random.sample(self.pending, len(self.pending)):
                if self._chance(self.odds.uninvited):
                    self.finish(operation, -errno.ECANCELED)
                elif (operation.doomed or self._able(operation)) and self._chance(self.odds.complete):
                    self.finish(operation, None if self._able(operation) else -errno.ECANCELED)
            if self._chance(self.odds.stray):
                self.post_stray(self.random.choice((2**62, 2**64 - 1)))
            if self._chance(self.odds.spurious):
                self.queues.signal()

    def finish(self, operation: Operation, result: int | None = None) -> None:
        """Complete a request with `result`, None for its data: now, or as work for the next enter() to do."""
        if not self._defer:
            self._complete(operation, result)
        elif operation not in self._deferred:
            self._deferred[operation] = result
            self.queues.flag(lib.AU_SQ_TASKRUN, on=True)
            if len(self._deferred) == 1:
                self.queues.signal()

    def post_stray(self, user_data: int) -> None:
        """A completion for a request that does not exist, or does no longer."""
        self.strays += 1
        self._post(user_data, self.random.randint(-200, 200))

    # ---- the three system calls ----------------------------------------------------------------

    def _setup(self, entries: int, pointer: Any) -> int:
        params = ffi.cast("struct au_params *", pointer)
        self.queues = SimulatedQueues(entries, params)
        self._defer = bool(params.flags & lib.AU_SETUP_DEFER_TASKRUN)
        return self.queues.fd

    def _enter(self, fd: int, to_submit: int, least: int, flags: int, _argument: Any, _size: int) -> int:
        assert (fd, least) == (self.queues.fd, 0)
        assert to_submit == self.queues.filled, "asked for what was not filled"
        with self._lock:
            self.enters += 1
            taken = self._verdict(to_submit)
            for sqe in self.queues.take(taken):
                self._start(sqe)
            if taken >= 0 and flags & lib.AU_ENTER_GETEVENTS:
                self._run_deferred()
                self.queues.flush()
            return taken

    def _register(self, fd: int, opcode: int, argument: Any, count: int) -> int:
        assert fd == self.queues.fd
        if opcode in (lib.AU_REGISTER_EVENTFD, lib.AU_UNREGISTER_EVENTFD):
            self.queues.watch(ffi.cast("int *", argument)[0] if opcode == lib.AU_REGISTER_EVENTFD else -1)
        elif opcode == lib.AU_REGISTER_PBUF_RING:
            registration = ffi.cast("struct au_buf_reg *", argument)
            self.groups[registration.bgid] = Group(registration)
        elif opcode == lib.AU_UNREGISTER_PBUF_RING:
            return 0 if self.groups.pop(ffi.cast("struct au_buf_reg *", argument).bgid, None) else -errno.ENOENT
        elif opcode == lib.AU_REGISTER_FILES_UPDATE:
            return count  # `streams` has what the file in a slot says under the slot's index
        elif opcode == lib.AU_REGISTER_PROBE:
            probe = ffi.cast("struct au_probe *", argument)
            probe.ops_len, probe.ops[0].flags = 1, 1  # NOP
        elif opcode not in UNREMARKABLE:
            return -errno.EINVAL
        return 0

    def _verdict(self, to_submit: int) -> int:
        """How many entries this enter() takes, or its error."""
        if self.next_enters:
            return min(self.next_enters.popleft(), to_submit)
        if self._refusals < 2 and self._chance(self.odds.enter_error):
            self._refusals += 1
            return -self.random.choice((errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM))
        self._refusals = 0
        return self.random.randint(0, to_submit) if self._chance(self.odds.short_submit) else to_submit

    # ---- requests ------------------------------------------------------------------------------

    def _chance(self, odds: float) -> bool:
        return odds > 0 and self.random.random() < odds

    def _start(self, sqe: Any) -> None:
        if sqe.opcode == lib.AU_OP_ASYNC_CANCEL:
            self._cancel(sqe.user_data, sqe.addr)
            return
        assert sqe.user_data > self._newest, "a user_data was used again, or the order was not kept"
        self._newest = sqe.user_data
        group = sqe.buf_index if sqe.flags & lib.AU_SQE_BUFFER_SELECT else None
        operation = Operation(sqe.user_data, sqe.opcode, sqe.fd, sqe.addr, sqe.len, sqe.op_flags, group)
        self.pending.append(operation)
        if operation.fd < 0 and operation.opcode not in (lib.AU_OP_NOP, lib.AU_OP_TIMEOUT):
            self._complete(operation, -errno.EBADF)
        elif group is not None and not (group in self.groups and self.groups[group].look()):
            self._complete(operation, -errno.ENOBUFS)  # at once, whether there is data or not
        elif operation.opcode in RECEIVES and self._chance(self.odds.again):
            self._complete(operation, -errno.EAGAIN)
        elif self._able(operation) and self._chance(self.odds.inline):
            self._complete(operation, None)

    def _able(self, operation: Operation) -> bool:
        if operation.opcode in (*RECEIVES, lib.AU_OP_POLL_ADD):
            return bool(self.streams[operation.fd]) or operation.fd in self.ended
        return True

    def _cancel(self, user_data: int, target: int) -> None:
        operation = next((operation for operation in self.pending if operation.user_data == target), None)
        if operation is None:
            self._post(user_data, -errno.ENOENT)
            return
        outcome = self.next_cancels.popleft() if self.next_cancels else CancelOutcome.drawn(self.random)
        operation.doomed = True
        if not outcome.target_first:
            self._post(user_data, outcome.code)
        if outcome.target != LATER:
            done = outcome.target == DONE and self._able(operation)
            self._complete(operation, None if done else -errno.ECANCELED)
        if outcome.target_first:
            self._post(user_data, outcome.code)

    def _run_deferred(self) -> None:
        work, self._deferred = self._deferred, {}
        self.queues.flag(lib.AU_SQ_TASKRUN, on=False)
        for operation, result in work.items():
            if operation in self.pending and (result is not None or self._able(operation)):
                self._complete(operation, result)

    def _complete(self, operation: Operation, result: int | None) -> None:
        self.pending.remove(operation)
        result, flags = self._move(operation) if result is None else (result, 0)
        self._post(operation.user_data, result, flags)

    def _move(self, operation: Operation) -> tuple[int, int]:
        """Move the request's bytes; returns its result and flags."""
        if operation.opcode in SENDS:
            count = self.random.randint(1, operation.length) if operation.length else 0
            self.sent[operation.fd] += ffi.buffer(ffi.cast("char *", operation.address), count)[:]
            return count, 0
        if operation.opcode not in RECEIVES:
            return operation.op_flags, 0  # the events of a poll, 0 for the others
        data, address, room, flags = self.streams[operation.fd], operation.address, operation.length, 0
        if data and operation.group is not None:
            if operation.group not in self.groups or not self.groups[operation.group].look():
                return -errno.ENOBUFS, 0
            entry = self.groups[operation.group].pick()
            address, room, flags = entry.addr, entry.len, lib.AU_CQE_F_BUFFER | entry.bid << lib.AU_CQE_BUFFER_SHIFT
        count = self.random.randint(1, min(len(data), room)) if data and room else 0
        ffi.memmove(ffi.cast("char *", address), bytes(data[:count]), count)
        del data[:count]
        return count, flags

    def _post(self, user_data: int, result: int, flags: int = 0) -> None:
        self.posted += 1
        self.queues.post(user_data, result, flags)
