"""Owns `SimulatedQueues`: the memory file in which a simulated ring's two queues lie, and its eventfd.

The layout is our own, as each kernel's is: setup() tells the core where everything lies.  A completion that
finds the queue full is kept back and does not signal; the next flush() brings it (KERNEL.md E5).
"""

import mmap
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from aiouring._uring import ffi, lib

SQES_AT, CQES_AT = 0x10000000, 64  # bytes from the start of the file
WORD = 0xFFFFFFFF
# The words at the start of the file, in the order in which the core is told of them.
SQ_HEAD, SQ_TAIL, SQ_MASK, SQ_ENTRIES, SQ_FLAGS, CQ_HEAD, CQ_TAIL, CQ_MASK, CQ_ENTRIES, CQ_FLAGS = range(10)


class SimulatedQueues:
    """The kernel's side of the queues; `params` is what setup() was given, and is filled in."""

    def __init__(self, entries: int, params: Any) -> None:
        sq, cq = (1 << (count - 1).bit_length() for count in (entries, params.cq_entries))
        array_at = CQES_AT + cq * 16
        self.fd = os.memfd_create("simulated io_uring")  # the core closes it
        os.ftruncate(self.fd, SQES_AT + sq * 64)
        rings, sqes = mmap.mmap(self.fd, array_at + sq * 4), mmap.mmap(self.fd, sq * 64, offset=SQES_AT)
        self._memory = base, sqes_base = ffi.from_buffer(rings), ffi.from_buffer(sqes)
        self._words: Any = ffi.cast("uint32_t *", base)
        self._array: Any = ffi.cast("uint32_t *", base + array_at)
        self._sqes: Any = ffi.cast("struct au_sqe *", sqes_base)
        self._cqes: Any = ffi.cast("struct au_cqe *", base + CQES_AT)
        self._indirect = not params.flags & lib.AU_SETUP_NO_SQARRAY
        self._words[SQ_MASK], self._words[CQ_MASK] = sq - 1, cq - 1
        params.sq_entries, params.cq_entries, params.features = sq, cq, lib.AU_FEAT_SINGLE_MMAP | lib.AU_FEAT_NODROP
        for offsets, first in ((params.sq_off, SQ_HEAD), (params.cq_off, CQ_HEAD)):
            offsets.head, offsets.tail, offsets.ring_mask = first * 4, first * 4 + 4, first * 4 + 8
            offsets.ring_entries, offsets.flags = first * 4 + 12, first * 4 + 16
        params.sq_off.array, params.cq_off.cqes = array_at, CQES_AT
        self._kept_back: deque[tuple[int, int, int]] = deque()
        self._event_fd = -1

    def close(self) -> None:
        """The kernel lets go of the ring."""
        self.watch(-1)

    def watch(self, event_fd: int) -> None:
        """Register an eventfd, of which the kernel keeps a reference; -1 takes it back."""
        if self._event_fd >= 0:
            os.close(self._event_fd)
        self._event_fd = os.dup(event_fd) if event_fd >= 0 else -1

    def signal(self) -> None:
        """Count the eventfd up, unless the other side asked for silence."""
        if self._event_fd >= 0 and not self._words[CQ_FLAGS] & lib.AU_CQ_EVENTFD_DISABLED:
            os.eventfd_write(self._event_fd, 1)

    @property
    def filled(self) -> int:
        """How many submission entries wait to be taken."""
        return int(self._words[SQ_TAIL] - self._words[SQ_HEAD]) & WORD

    def take(self, count: int) -> Iterator[Any]:
        """Take the next `count` submission entries, one by one."""
        for _ in range(count):
            at = self._words[SQ_HEAD] & self._words[SQ_MASK]
            yield self._sqes[self._array[at] if self._indirect else at]
            self._words[SQ_HEAD] = (self._words[SQ_HEAD] + 1) & WORD

    def flag(self, flag: int, *, on: bool) -> None:
        """Set or clear a flag of the submission queue."""
        flags = self._words[SQ_FLAGS]
        self._words[SQ_FLAGS] = flags | flag if on else flags & ~flag

    def post(self, user_data: int, result: int, flags: int) -> None:
        """Post a completion and signal it, or keep it back where the queue is full."""
        if self._kept_back or not self._write(user_data, result, flags):
            self._kept_back.append((user_data, result, flags))
            self.flag(lib.AU_SQ_CQ_OVERFLOW, on=True)
        else:
            self.signal()

    def flush(self) -> None:
        """Post what was kept back, as far as there is room."""
        before = len(self._kept_back)
        while self._kept_back and self._write(*self._kept_back[0]):
            self._kept_back.popleft()
        if before and not self._kept_back:
            self.flag(lib.AU_SQ_CQ_OVERFLOW, on=False)
        if len(self._kept_back) < before:
            self.signal()

    def _write(self, user_data: int, result: int, flags: int) -> bool:
        tail, mask = self._words[CQ_TAIL], self._words[CQ_MASK]
        if (tail - self._words[CQ_HEAD]) & WORD > mask:
            return False
        entry = self._cqes[tail & mask]
        entry.user_data, entry.res, entry.flags = user_data, result, flags
        self._words[CQ_TAIL] = (tail + 1) & WORD
        return True
