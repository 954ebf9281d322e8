"""Owns `Ring`: io_uring without an event loop; a `with` block, prepare, submit, wait.

Ownership.  A request holds the memory that it names, from before its entry is filled until its final completion is
handed to the caller, under its `user_data`: the memory is the kernel's for that time, whatever the caller drops; a
registered buffer cannot be released before.
Two requests in flight cannot have the same `user_data`, because their completions could not be told apart.  Closing
takes back what was not submitted, cancels the rest, waits for its end, and keeps what the kernel would not stop.
"""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from aiouring._abi import Opcode, SubmissionFlags
from aiouring._buffer_ring import BufferRing
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._errors import AioUringError, ResourceBusyError, failure
from aiouring._features import require
from aiouring._memory_region import MemoryRegion
from aiouring._peeks import PeekingRing
from aiouring._registered_buffers import FixedBuffer, RegisteredBuffers
from aiouring._registered_files import MAX_FILES, RegisteredFiles
from aiouring._registry import Registry
from aiouring._restrictions import Restrictions
from aiouring._ring import Completion, check_size
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib
from aiouring._waits import Clock

__all__ = ["Clock", "Ring"]

#: What the kernel may still write to although its ring is closed; kept for the life of the process.
GRAVEYARD: list[Any] = []

_CLOSE_TIMEOUT = 5.0
_CANCELLED = 2**64 - 1  # the user_data of the cancels that closing submits
_NO_FLAGS = SubmissionFlags(0)

if TYPE_CHECKING:
    from aiouring._verbs import File


class _Unattended:
    """What buffers need from who drives their ring, where that is the caller and nobody can wait in line."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], object]] = deque()
        self.in_flight: dict[int, Any] = {}  # what each request holds, by its user_data

    def new_future(self) -> NoReturn:
        """Nobody waits here."""
        raise RuntimeError("a Ring has no event loop to wait on: use try_acquire(), or an AsyncRing")

    def ask_for_turn(self) -> None:
        """The caller submits when it likes."""

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` with the next submission."""
        self.due.append(what)

    def cancel_receives(self, group: object) -> None:
        """The caller knows what is in flight."""

    def groups_in_flight(self) -> set[int]:
        """The groups that requests in flight hold."""
        return {held.group_id for held in self.in_flight.values() if isinstance(held, BufferRing)}


class Ring(PeekingRing):
    """A submission queue and a completion queue shared with the kernel; usable without asyncio.

    Prepare requests, then `submit()` them, or `wait()` for their completions; each has the `user_data` of its request.
    Leaving the `with` block closes the ring, in good order.

    Args:
        entries: size of the submission queue, 1 to 32768; the kernel rounds it up to a power of two.
        cq_entries: size of the completion queue, at least `entries`.
        task_run: "defer" (completions are posted when we ask, since Linux 6.1) or "coop" (whenever we
            are in the kernel, since Linux 5.19); None takes the measured default.
        disabled: make it disabled, to be enabled later by the thread that will use it.
        restrictions: what the ring allows from its enabling on, see `Restrictions`; True is the default set.

    Raises:
        RingUnavailableError: io_uring is blocked here; the text says by what.
        OSError: ENOMEM (RLIMIT_MEMLOCK), EMFILE.

    Since Linux 5.10.  See io_uring_setup(2).
    """

    def __init__(
        self,
        entries: int = 128,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        disabled: bool = False,
        restrictions: Restrictions | bool | None = None,
    ) -> None:
        self._unattended = _Unattended()
        self._registry = Registry(self._unattended)
        self._in_flight = self._unattended.in_flight
        super().__init__(
            entries, cq_entries=cq_entries, task_run=task_run, disabled=disabled, restrictions=restrictions
        )

    def __enter__(self) -> Self:
        return self

    def __del__(self, close: Callable[[Any], int] = lib.au_ring_close) -> None:
        if getattr(self, "_in_flight", None) and lib.au_ring_check(self.raw) not in (lib.AU_CLOSED, lib.AU_FORKED):
            self._bury()
        super().__del__(close)

    # ---- registering ---------------------------------------------------------------------------

    def register_buffers(self, *, count: int, size: int) -> RegisteredBuffers:
        """Register `count` page-aligned buffers of `size` bytes; as `AsyncRing.register_buffers()`."""
        return self._registry.register_buffers(self, count=count, size=size)

    def register_buffer_ring(self, *, count: int, size: int, group_id: int | None = None) -> BufferRing:
        """Register a pool of `count` buffers of `size` bytes; as `AsyncRing.register_buffer_ring()`."""
        return self._registry.register_buffer_ring(self, count=count, size=size, on_empty="raise", group_id=group_id)

    def register_region(
        self, size: int | None = None, *, memory: Any = None, wait_argument: bool = False
    ) -> MemoryRegion:
        """Share memory with the kernel for the life of the ring: `size` bytes that it allocates, or the caller's.

        Args:
            size: bytes, a multiple of the page size.
            memory: instead, a writable buffer of whole pages, such as `mmap.mmap(-1, size)`.  The ring holds it.
            wait_argument: let `wait()` take its arguments from there; only before the ring is enabled.

        Raises:
            ResourceBusyError: this ring has a region already.
            WrongContextError: wait arguments, and the ring has been enabled.
            UnsupportedKernelError: the kernel has no regions.

        Since Linux 6.13.  See io_uring_register_region(3).
        """
        if wait_argument:
            require("registered waits")
        return self._registry.register_region(self, size=size, memory=memory, wait_argument=wait_argument)

    def _argument_times(self, argument: int) -> tuple[float | None, float | None]:
        region = self._registry.region
        assert region is not None  # the C core has wait arguments
        return region.get_wait(argument)

    def register_files(self, files: "Sequence[File | None]") -> RegisteredFiles:
        """Register a table of `files`, None for gaps; as `AsyncRing.register_files()`."""
        return self._registry.register_files(self, files)

    def register_files_sparse(self, count: int) -> RegisteredFiles:
        """Register a table of `count` empty slots; as `AsyncRing.register_files_sparse()`."""
        check_size("count", count, MAX_FILES)
        return self._registry.register_files(self, [None] * count)

    # ---- preparing -----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that were prepared, and whose final completion has not been handed over."""
        return len(self._in_flight)

    def _hold(self, user_data: int, memory: Any) -> None:
        """Hold what a request uses, from before its entry is filled until its final completion."""
        if user_data in self._in_flight:
            raise ResourceBusyError(f"a request with user_data={user_data} is in flight: give each its own number")
        if isinstance(memory, FixedBuffer):
            memory.pins += 1
        self._in_flight[user_data] = memory

    def _not_filled(self, user_data: int) -> None:
        """An error came out of filling an entry; hold on if it was an interrupt just after it had been filled."""
        if self.raw.last_user_data != user_data or not lib.au_ring_unsubmitted(self.raw):
            self._let_go(user_data)

    def _let_go(self, user_data: int) -> None:
        """The kernel is done with a request, or never got it."""
        memory = self._in_flight.pop(user_data, None)
        if isinstance(memory, FixedBuffer):
            memory.pins -= 1
            if memory.ended and not memory.pins:
                memory.unpinned()

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
        `flags` may link it to the next entry, drain, or send it to a worker (ASYNC).
        """
        self._hold(user_data, None)
        try:
            super().prepare(
                opcode,
                user_data=user_data,
                fd=fd,
                offset=offset,
                address=address,
                length=length,
                op_flags=op_flags,
                flags=flags,
            )
        except BaseException:
            self._not_filled(user_data)
            raise

    def prepare_cancel(self, target: int, *, user_data: int) -> None:
        """Fill one entry that cancels the request whose `user_data` is `target`.

        Both complete: this one with 0, ENOENT (no such request, or it is past stopping) or EALREADY (it is running);
        the target with ECANCELED, or with its result if that came first.  Its memory is the kernel's until then.
        Since Linux 5.5.  See io_uring_prep_cancel64(3).
        """
        self.prepare(Opcode.ASYNC_CANCEL, user_data=user_data, address=target)

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
        """Fill one entry that moves `length` bytes at `start` of a buffer: READ, WRITE, RECV or SEND.

        `memory` is a bytearray, mmap, memoryview, cffi array ..., or bytes to be sent.  The ring holds it, and its
        export (a bytearray cannot be resized), until the final completion.  `offset` -1 is the file's own position;
        give 0 for a receive or a send.
        """
        writable = opcode not in (Opcode.WRITE, Opcode.SEND)
        if not isinstance(memory, ffi.CData):
            memory = ffi.from_buffer(memory, require_writable=writable)
        self._hold(user_data, memory)
        try:
            super().prepare_memory(
                opcode, memory, user_data=user_data, fd=fd, offset=offset, start=start, length=length
            )
        except BaseException:
            self._not_filled(user_data)
            raise

    def prepare_fixed(
        self,
        opcode: int,
        buffer: FixedBuffer,
        *,
        user_data: int,
        fd: int | DirectDescriptor,
        offset: int = -1,
        start: int = 0,
        length: int | None = None,
    ) -> None:
        """Fill one entry that moves `length` bytes at `start` of a registered buffer.

        `buffer` stays lent until the request's final completion: releasing it before is a `ResourceBusyError`.
        """
        wanted = len(buffer) - start if length is None else length
        self._hold(user_data, buffer)
        try:
            number, how = self._named(fd)
            code = lib.au_prepare_fixed(
                self.raw, user_data, opcode, number, buffer.table, buffer.index, start, wanted, offset, how
            )
            if code < 0:
                raise failure(
                    code, "filling a request", fd=number, index=buffer.index, start=start, length=wanted, offset=offset
                )
        except BaseException:
            self._not_filled(user_data)
            raise

    def prepare_select(
        self,
        opcode: int,
        group: BufferRing,
        *,
        user_data: int,
        fd: int | DirectDescriptor,
        offset: int = 0,
        length: int = 0,
    ) -> None:
        """Fill one entry that receives into a buffer of `group`, which the kernel picks; `length` 0 is all of it.

        The completion says which: `group.take(completion.flags, completion.result)`, once for each completion whose
        flags have `CompletionFlags.BUFFER`.  `offset` is for reads, where -1 is the file's own position; a receive
        must not have one.
        """
        if offset < -1:
            raise failure(lib.AU_BAD_OFFSET, offset=offset)
        self._hold(user_data, group)
        try:
            number, how = self._named(fd)
            code = lib.au_prepare_select(self.raw, user_data, opcode, number, group.raw, length, offset, 0, how)
            if code < 0:
                raise failure(code, "filling a request", fd=number, index=group.group_id, length=length, offset=offset)
        except BaseException:
            self._not_filled(user_data)
            raise

    # ---- submitting and completing -------------------------------------------------------------

    def submit(self) -> list[Completion]:
        """Submit everything filled, without waiting; returns what has completed (at most 512 at once)."""
        self._do_what_is_due()
        completions = super().submit()
        self._ended(completions)
        return completions

    def _do_what_is_due(self) -> None:
        while self._unattended.due:
            self._unattended.due.popleft()()

    def _ended(self, completions: Iterable[Completion]) -> None:
        for user_data, _, flags in completions:
            if not flags & lib.AU_CQE_F_MORE:
                self._let_go(user_data)

    def drain(self) -> Iterator[Completion]:
        """Submit everything filled, then yield completions one by one until no more are there; does not wait."""
        while completions := self.submit():
            yield from completions

    # ---- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop everything and close; idempotent.

        Requests that were not submitted are taken back; the others are cancelled and waited for, 5 seconds at most.
        Memory that the kernel may still write to after that is kept until the process ends, with a `ResourceWarning`.
        """
        try:
            if not self.closed and self._in_flight and lib.au_ring_check(self.raw) != lib.AU_FORKED:
                self._take_back()
                with contextlib.suppress(OSError, AioUringError):  # a broken ring, or another thread's: bury the rest
                    self._stop()
                if self._in_flight:
                    self._bury()
        finally:
            super().close()
            self._registry.forget()

    def _take_back(self) -> None:
        """Take back what was filled and not submitted."""
        number = ffi.new("uint64_t *")
        while lib.au_ring_withdraw(self.raw, number) > 0:
            self._let_go(number[0])

    def _stop(self) -> None:
        """Cancel what is in flight and reap it."""
        end = time.monotonic() + _CLOSE_TIMEOUT
        for user_data in list(self._in_flight):
            while lib.au_prepare(self.raw, _CANCELLED, Opcode.ASYNC_CANCEL, -1, 0, user_data, 0, 0, 0) == lib.AU_FULL:
                self.submit()
        self.submit()
        while self._in_flight and (left := end - time.monotonic()) > 0:
            self.wait(1, timeout=left)

    def _bury(self) -> None:
        """Keep for ever what the kernel may still write to, and say so."""
        GRAVEYARD.append((dict(self._in_flight), self._registry.buffers, list(self._registry.groups.values())))
        numbers = sorted(self._in_flight)[:10]
        count = len(self._in_flight)
        self._in_flight.clear()
        warnings.warn(
            f"a Ring was closed with {count} request(s) in flight; their memory is kept until the process ends: "
            f"user_data {numbers}",
            ResourceWarning,
            stacklevel=3,
        )
