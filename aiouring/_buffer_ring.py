"""Owns `BufferRing` and `ProvidedBuffer`: one pool of buffers from which the kernel serves every receive.

How this fits together

1. All buffers start with the kernel.  A receive names the group, not a buffer; the kernel picks one when
   data is there, and its completion says which.  `take()` moves that buffer from the kernel to the caller.
2. `release()` puts it back.  The C core writes it behind the ring's tail at once and publishes all that
   were returned with one store of the tail, at the start of the ring's next turn: before anything is
   submitted and before the loop sleeps.  A release therefore asks the driver for a turn.
3. When the kernel finds the group empty it ends the receive with ENOBUFS; see `_shortage` for what follows.
4. Who drives a `Ring` by hand may say when the kernel sees a buffer again: `add()` ends a lease, `advance()` shows
   the kernel what was added.  The two never mix with `release()`: the C core keeps what was added behind what was
   released, and publishes the one with the turn and the other with `advance()` only.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiouring._errors import RingClosedError, UnsupportedKernelError, failure
from aiouring._lease import Arena
from aiouring._line import Attendant
from aiouring._provided_buffer import ProvidedBuffer as ProvidedBuffer
from aiouring._provided_buffer import end_of_stream as end_of_stream
from aiouring._provided_buffer import private_copy as private_copy
from aiouring._registered_memory import registration_error
from aiouring._ring import CoreRing, check_count, check_size
from aiouring._shortage import OnEmpty as OnEmpty
from aiouring._shortage import Shortage
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CGroup

# Looked up once: these are on every message's way.
_BUFFER_SHIFT = lib.AU_CQE_BUFFER_SHIFT
_ID_MASK = lib.AU_BUFFER_ID_MASK
_take = lib.au_group_take
_release = lib.au_group_release

MAX_ENTRIES = lib.AU_MAX_GROUP_ENTRIES
MAX_BUFFER_BYTES = lib.AU_MAX_BUFFER_BYTES


@dataclass(frozen=True, slots=True)
class BufferRingStatistics:
    """How a buffer ring is used; counts of buffers unless said otherwise."""

    group_id: int
    count: int
    max_count: int  # how far it may grow
    growths: int  # times it grew
    size: int  # bytes in each
    with_kernel: int  # also those that it has filled in part
    added: int  # given back by add(), not to be seen by the kernel before advance()
    in_use: int  # lent; where buffers are given out in parts, those that the kernel is done with
    parts: int  # leases: as many as in_use, or more where buffers are given out in parts
    high_water: int
    waiting: int  # receivers in line now
    starved: int  # times a receiver joined the line
    enobufs: int  # times the kernel found the group empty
    private: int  # private buffers in use, see on_empty="fallback"
    fallbacks: int  # receives that brought bytes into one
    oldest_lease: float  # seconds that one buffer has been held; 0: none is, or nobody watches, see held_too_long
    published: int  # buffers handed to the kernel since the start
    advances: int  # stores of the tail that took


class BufferRing(Shortage):
    """`count` buffers of `size` bytes from which the kernel picks; made by `AsyncRing.register_buffer_ring()`.

    Leaving the `with` block unregisters it.  Since Linux 5.19.  See io_uring_setup_buf_ring(3).
    """

    #: Makes what stands for a buffer, or a part of one, in a caller's hands.
    lease: type[ProvidedBuffer] = ProvidedBuffer
    #: Whether messages share buffers, each getting a part of one.
    incremental = False
    is_group = True

    def __init__(
        self,
        ring: CoreRing,
        attendant: Attendant,
        group_id: int,
        count: int,
        size: int,
        on_empty: OnEmpty,
        max_count: int | None = None,
    ) -> None:
        name, capacity = ("count", count) if max_count is None else ("max_count", max_count)
        check_size(name, capacity, MAX_ENTRIES)
        if capacity & (capacity - 1):
            raise ValueError(f"{name}={capacity} is not a power of two, as the kernel's ring wants it")
        check_size("count", count, capacity)
        check_size("size", size, MAX_BUFFER_BYTES)
        super().__init__(ring, attendant, ProvidedBuffer, count, size, on_empty)
        self.group_id = group_id
        #: In the user_data of requests, so that the C core knows whose buffers their completions name.
        self.tag = 1 << lib.AU_TAG_BIT | group_id << lib.AU_TAG_SHIFT
        self._size = size
        self._capacity = capacity
        self.arena = Arena(count, size, size, room=capacity)
        self.raw: CGroup = ffi.new("au_group *", {"owner": capacity})
        self._ring = ring  # the C group points to the C ring
        code = lib.au_group_init(self.raw, ring.raw, self.arena.base, size, capacity, group_id)
        self.raw.count = count  # to begin with
        code = code or self._register(ring)
        if code == -errno.EINVAL:  # our own checks have passed
            raise UnsupportedKernelError("buffer rings (IORING_REGISTER_PBUF_RING) need Linux 5.19")
        if code < 0:
            raise registration_error(code, capacity * 16, f"registering a ring of {capacity} buffers of {size} bytes")

    def _register(self, ring: CoreRing) -> int:
        """Show the group to the kernel."""
        # Python's memory, as that of the C group: they live and die together.
        self._shares = ffi.new("struct au_share[]", self._capacity)
        lib.au_group_share(self.raw, self._shares, self.incremental, ring.attended)
        return lib.au_group_register(self.raw)

    def __del__(self, close: Callable[[Any], None] = lib.au_group_close) -> None:
        if hasattr(self, "raw"):
            close(self.raw)  # does nothing while the kernel has the group

    def __len__(self) -> int:
        return self.raw.count

    def __repr__(self) -> str:
        state = f"{self.raw.with_kernel} with the kernel" if self.registered else "unregistered"
        return f"<BufferRing {self.group_id}: {len(self)} x {self._size} bytes, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    @property
    def size(self) -> int:
        """Bytes in each buffer: the most one receive returns."""
        return self._size

    @property
    def max_count(self) -> int:
        """How many buffers the group may grow to."""
        return self._capacity

    def grow(self, count: int) -> None:
        """Add `count` buffers; whoever is in line is served with them.

        A group with `max_count` grows by itself when a receiver finds it empty; this is for those who know better, or
        drive a `Ring`.  It does not shrink.

        Raises:
            ValueError: it would have more than `max_count`.
            RingClosedError: it was unregistered.

        Since Linux 5.19.
        """
        check_size("count", count, MAX_ENTRIES)
        if count > self._capacity - len(self):
            raise ValueError(
                f"{len(self)} buffers and {count} more would be more than max_count={self._capacity}, which "
                "register_buffer_ring() sets for good"
            )
        self.check_registered()
        code = lib.au_ring_check(self._ring.raw)
        if code < 0:
            raise failure(code)
        self.arena.extend(len(self) + count, self._size, self._size)  # first: the kernel may name them right afterwards
        code = lib.au_group_grow(self.raw, count)
        assert code == 0, code
        self._growths += 1
        self.private.limit = len(self)
        self._attendant.ask_for_turn()

    def most_pending(self, wanted: int | None) -> int:
        """How many chunks of one stream may wait for its reader, as it wants or by default."""
        if wanted is None:
            return self._usually_pending()
        if wanted < 1:
            raise ValueError(f"max_pending={wanted} is less than 1")
        return wanted

    def _usually_pending(self) -> int:
        return min(64, max(1, self._capacity // 8))  # a group that may grow does so where that is too many

    def most_at_once(self, pending: int) -> int:
        """How many bytes one stream may receive before anybody looks, so that `pending` chunks wait."""
        return pending * self._size

    def resume_at(self, pending: int) -> int:
        """How few chunks of a stream must wait before its receive is armed again, where `pending` may."""
        return max(1, pending // 2)

    def take(self, flags: int, length: int) -> ProvidedBuffer:
        """The buffer a completion's flags name becomes the caller's; to be called once for each such completion."""
        number = flags >> _BUFFER_SHIFT
        code = _take(self.raw, number)
        if code:
            raise AssertionError(
                f"the kernel gave out buffer {number} of group {self.group_id}, which it did not have "
                "(or this completion was taken before)"
            )
        return self.lease(self, self.arena, number, length)

    def take_back(self, number: int) -> None:
        """A lease ended: the buffer goes back to the kernel with the next turn."""
        code = _release(self.raw, number)
        if code < 0:
            raise failure(code, "returning a buffer", index=number)
        if code:  # it waits to be published
            self._attendant.ask_for_turn()

    def put_back(self, flags: int, *, failed: bool) -> None:
        """A completion without bytes names a buffer: give it back, if it was taken at all.

        Before 6.18, reads that fail may name a buffer which they did not get (liburing issue 1530); to publish that a
        second time would give it two owners.
        """
        if not (failed and lib.au_group_still_has(self.raw, flags >> _BUFFER_SHIFT) == 1):
            self.take(flags, 0).release()

    def add(self, buffer: ProvidedBuffer) -> bool:
        """End the lease of `buffer` as `release()` does, but show it to the kernel only with `advance()`.

        For those who drive a `Ring` by hand.  By the buffer, not by its number: its view must end as well.

        Returns:
            Whether a buffer was added, for `advance()` to count: always, unless the group gives out buffers in parts.
            Then only the last part of a buffer that the kernel is done with adds one.

        Raises:
            ValueError: it is not of this group, or not lent any more.
            ResourceBusyError, BufferError: somebody uses it, see `ProvidedBuffer.release()`.
            RingClosedError: the group was unregistered; `release()` still works.

        Since Linux 5.19.  See io_uring_buf_ring_add(3).
        """
        if not isinstance(buffer, ProvidedBuffer):
            raise TypeError(f"a ProvidedBuffer from this group is needed, not {type(buffer).__name__}")
        if buffer._home is not self:
            raise ValueError(f"{buffer!r} is not a buffer of {self!r}")
        code = lib.au_ring_check(self._ring.raw)
        if code < 0:
            raise failure(code)
        self.check_registered()
        buffer.hand_over()
        return self._add(buffer.number)

    def _add(self, number: int) -> bool:
        code = lib.au_group_add(self.raw, number)
        if code < 0:
            raise failure(code, "adding a buffer", index=number & _ID_MASK)
        return code == 0

    def advance(self, count: int) -> None:
        """Show the kernel `count` of the added buffers, those added first, and whatever was released, with one store.

        Raises:
            ValueError: fewer than that were added; the kernel sees none of them.

        Since Linux 5.19.  See io_uring_buf_ring_advance(3).
        """
        self.cq_advance(0, count)

    def cq_advance(self, completions: int, buffers: int) -> None:
        """Consume `completions` that `Ring.peek()` returned, and show the kernel `buffers` that were added.

        Two counts, because not every completion took a buffer: errors and ends of streams took none.  Two stores,
        buffers first; nothing happens unless both counts are right.

        Raises:
            ValueError: fewer completions were peeked at, or fewer buffers added.

        Since Linux 5.19.  See io_uring_buf_ring_cq_advance(3).
        """
        check_count("completions", completions)
        check_count("buffers", buffers)
        code = lib.au_group_cq_advance(self.raw, completions, buffers)
        if code < 0:
            peeked = lib.au_ring_peeked(self._ring.raw)
            raise failure(
                code,
                advance=f"{completions} completions and {buffers} buffers",
                there=f"{peeked} peeked at and {self.raw.added} added",
            )
        self._ring.consumed(completions)
        self._attendant.ask_for_turn()  # somebody may wait for a buffer

    def available(self) -> int:
        """How many buffers the kernel could still hand out, as it sees it.

        Fewer than `statistics().with_kernel` where completions, or reads in flight, have taken some that nobody knows
        of yet.  Since Linux 6.8.  See io_uring_buf_ring_available(3).
        """
        return (self.raw.tail - self.head()) % 65536

    def head(self) -> int:
        """How many buffers the kernel has taken so far, modulo 65536.

        Since Linux 6.8.  See io_uring_buf_ring_head(3).
        """
        code = lib.au_group_head(self.raw)
        if code == -errno.EINVAL:
            raise UnsupportedKernelError(
                "a buffer ring's head (IORING_REGISTER_PBUF_STATUS) can be had since Linux 6.8"
            )
        if code < 0:
            raise failure(code, "asking for the buffer ring's head")
        return code

    def unregister(self) -> None:
        """Take the group back from the kernel; idempotent.

        Lent buffers stay valid.  Receivers in line, and receives in flight on the group, get
        `RingClosedError`; the data stays in their sockets.
        """
        if not self.registered:
            return
        code = lib.au_group_unregister(self.raw)
        if code < 0:
            raise failure(code, "unregistering the buffer ring")
        self._attendant.cancel_receives(self)
        self.dismiss(RingClosedError(f"buffer ring {self.group_id} was unregistered while this waited"))

    def statistics(self) -> BufferRingStatistics:
        """Where the buffers are now, and how often there were none."""
        raw = self.raw
        return BufferRingStatistics(
            group_id=self.group_id,
            count=raw.count,
            max_count=self._capacity,
            growths=self._growths,
            size=self._size,
            with_kernel=raw.with_kernel + raw.unpublished,
            added=raw.added,
            in_use=raw.lent,
            parts=raw.parts if self.incremental else raw.lent,
            high_water=raw.high_water,
            waiting=len(self._line),
            starved=self._starved,
            enobufs=self.enobufs,
            private=self.private.in_use,
            fallbacks=self.private.received,
            oldest_lease=0.0 if self._watch is None else self._watch.oldest(),
            published=raw.published,
            advances=raw.advances,
        )
