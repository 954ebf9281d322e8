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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from aiouring._abi import Opcode, SubmissionFlags
from aiouring._buffer_ring import BufferRing
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._errors import AioUringError, ResourceBusyError, failure
from aiouring._features import require
from aiouring._fixed_buffer import FixedBuffer, Vector
from aiouring._restrictions import Restrictions
from aiouring._retired_buffers import KEPT
from aiouring._ring import Completion
from aiouring._setup import TaskRun
from aiouring._synchronous_registrations import RegisteringRing
from aiouring._uring import ffi, lib
from aiouring._waits import Clock

__all__ = ["Clock", "Ring"]

#: What the kernel may still write to although its ring is closed; kept for the life of the process.
GRAVEYARD: list[Any] = []

_CLOSE_TIMEOUT = 5.0
_CANCELLED = 2**64 - 1  # the user_data of the cancels that closing submits
_NO_FLAGS = SubmissionFlags(0)


class Ring(RegisteringRing):
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
        self._vectors: list[Vector] = []  # what the kernel reads when it takes the requests that are filled
        super().__init__(
            entries, cq_entries=cq_entries, task_run=task_run, disabled=disabled, restrictions=restrictions
        )

    def __enter__(self) -> Self:
        return self

    def __del__(self, close: Callable[[Any], int] = lib.au_ring_close) -> None:
        if getattr(self, "_in_flight", None) and lib.au_ring_check(self.raw) not in (lib.AU_CLOSED, lib.AU_FORKED):
            self._bury()
        super().__del__(close)

    # ---- preparing -----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that were prepared, and whose final completion has not been handed over."""
        return len(self._in_flight)

    def _hold(self, user_data: int, memory: Any) -> None:
        """Hold what a request uses, from before its entry is filled until its final completion."""
        if user_data in self._in_flight:
            raise ResourceBusyError(f"a request with user_data={user_data} is in flight: give each its own number")
        if user_data in self._registry.retiring:
            raise ResourceBusyError(f"user_data={user_data} is the tag of a buffer that the kernel still has")
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
        `flags` may link it to the next entry, drain, or send it to a worker (ASYNC).  What is linked or drained finds
        its file when its turn comes: keep the descriptor open until the completion, or it may be another file's.
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
                self.raw, user_data, opcode, number, buffer.table, buffer.number, start, wanted, offset, how
            )
            if code < 0:
                raise failure(
                    code, "filling a request", fd=number, index=buffer.index, start=start, length=wanted, offset=offset
                )
        except BaseException:
            self._not_filled(user_data)
            raise

    def prepare_fixed_vector(
        self,
        opcode: int,
        buffer: FixedBuffer,
        ranges: Sequence[tuple[int, int]],
        *,
        user_data: int,
        fd: int | DirectDescriptor,
        offset: int = -1,
    ) -> None:
        """Fill one entry (READV_FIXED, WRITEV_FIXED) that moves several ranges of a registered buffer.

        `ranges` holds start and length of each, in bytes.  `buffer` stays lent until the request's final completion.
        Since Linux 6.15.
        """
        require("vectored fixed I/O")
        vector = Vector(buffer, ranges)
        self._hold(user_data, buffer)
        try:
            number, how = self._named(fd)
            code = lib.au_prepare_fixed_vector(
                self.raw, user_data, opcode, number, buffer.table, buffer.number, *vector.arguments, offset, how
            )
            if code < 0:
                raise failure(code, "filling a request", fd=number, index=buffer.index, offset=offset)
        except BaseException:
            self._not_filled(user_data)
            raise
        self._vectors.append(vector)

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

    def _ended(self, completions: Iterable[Completion]) -> None:
        for user_data, _, flags in completions:
            if not flags & lib.AU_CQE_F_MORE:
                self._let_go(user_data)
        if not lib.au_ring_unsubmitted(self.raw):
            self._vectors.clear()  # the kernel has its own copy
        if self._registry.retiring:
            self._registry.look_for_tags(completions)

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
            self._bury_retired()
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

    def _bury_retired(self) -> None:
        """Keep for ever the buffers that left their table, and whose tag has not come."""
        if self._registry.retiring and lib.au_ring_check(self.raw) == 0:
            if not lib.au_ring_unsubmitted(self.raw):
                with contextlib.suppress(OSError, RuntimeError):
                    self.submit()  # tags that have come and were not drained
            if buried := self._registry.bury():
                KEPT.append(buried)
                warnings.warn(
                    f"a Ring was closed while the kernel was using buffers that had left their table: {buried!r} are "
                    "kept until the process ends; reap the requests that use them before closing",
                    ResourceWarning,
                    stacklevel=3,
                )
