"""Owns `FixedBuffer` and `Slots`: what is in the slots of a table of registered buffers, and which of it is lent.

A slot is empty, or it has a buffer; a buffer is free or lent, to one lease at a time.  A lease names its buffer
by a key (see buffers.c), which changes with every buffer that the slot gets: a lease whose buffer has left the
table stays good as plain memory, and cannot name the next one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiouring._errors import ResourceBusyError, RingClosedError, failure
from aiouring._lease import Arena, Home, Lease
from aiouring._line import Attendant, Line
from aiouring._registered_memory import Piece, SlotArena, pinned_bytes
from aiouring._retired_buffers import RetiredBuffers
from aiouring._ring import CoreRing
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CBuffers

_INDEX = lib.AU_SLOT_MASK


class FixedBuffer(Lease):
    """One registered buffer, lent by `RegisteredBuffers.acquire()` until `release()` or the end of `with`."""

    __slots__ = ()

    _home: "Slots"

    @property
    def index(self) -> int:
        """The buffer's place in the kernel's table."""
        return self.number & _INDEX

    shown = index

    @property
    def table(self) -> "CBuffers":
        """The C core's table this buffer is in."""
        return self._home.raw

    def release(self) -> None:
        """Give the buffer back; as `Lease.release()`.  What is left of this object holds no memory."""
        Lease.release(self)
        del self.arena  # or an old name for a lease would keep the caller's bytearray from being resized


class Vector:
    """Several ranges inside one buffer, and the memory in which the C core writes them out for the kernel.

    Whoever makes the request keeps it until the final completion.
    """

    __slots__ = ("arguments", "ranges", "total")

    def __init__(self, buffer: FixedBuffer, ranges: Iterable[tuple[int, int]]) -> None:
        if not isinstance(buffer, FixedBuffer):
            raise TypeError(f"a FixedBuffer from RegisteredBuffers.acquire() is needed, not {type(buffer).__name__}")
        self.ranges = list(ranges)
        size = len(buffer)
        if not 1 <= len(self.ranges) <= lib.AU_MAX_VECTORS:
            raise ValueError(f"{len(self.ranges)} ranges are given, outside 1 to {lib.AU_MAX_VECTORS}")
        for start, length in self.ranges:
            if not (0 <= start < size and 1 <= length <= size - start):
                raise ValueError(
                    f"start={start} and length={length}: each range holds at least one byte, inside the buffer's {size}"
                )
        self.total = sum(length for _, length in self.ranges)
        if self.total > lib.AU_MAX_TRANSFER:
            raise ValueError(f"the ranges hold {self.total} bytes together, over {lib.AU_MAX_TRANSFER}")
        count = len(self.ranges)
        numbers = [number for pair in self.ranges for number in pair]
        self.arguments = (ffi.new("struct iovec[]", count), ffi.new("int64_t[]", numbers), count)


@dataclass(frozen=True, slots=True)
class RegisteredBuffersStatistics:
    """How a table of registered buffers is used; counts of buffers."""

    count: int  # slots, the empty ones of a sparse table included
    size: int  # bytes in the largest buffer
    in_use: int
    high_water: int
    waiting: int


class Slots(Home):
    """The slots of one table, and the lending of what is in them: `RegisteredBuffers` without its system calls."""

    __iter__ = None  # it would lend every buffer

    def __init__(self, ring: CoreRing, attendant: Attendant, retiring: dict[int, RetiredBuffers], count: int) -> None:
        super().__init__(attendant)
        self._ring = ring  # the C table points to the C ring
        self._retiring = retiring  # by tag: what has left a table of this ring and is still in use
        self._pieces: list[Piece | None] = [None] * count
        self._tags = [0] * count
        self._slots = ffi.new("struct au_slot[]", count)
        self.raw: CBuffers = ffi.new("au_buffers *")
        lib.au_buffers_init(self.raw, ring.raw, self._slots, count)
        self._free: dict[int, None] = {}  # by key; the last returned is lent first: it is in the cache
        self._lendable: dict[int, tuple[Arena, int]] = {}  # by key: the memory, and bytes of it
        self._filled = 0
        self._high_water = 0
        self._retired: RetiredBuffers | None = None
        self._line: Line[FixedBuffer] = Line(attendant.new_future, lambda lease: lease.__exit__(None))

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def size(self) -> int:
        """Bytes in each buffer, or in the largest where they differ; 0 in an empty table."""
        return max(self.sizes, default=0)

    @property
    def sizes(self) -> list[int]:
        """Bytes in the buffer of each slot; 0 where it is empty."""
        return [int(slot.size) for slot in self._slots]

    @property
    def pinned_bytes(self) -> int:
        """Bytes of memory that the kernel keeps pinned for this table, and charges to RLIMIT_MEMLOCK: whole pages.

        A clone's are counted here and charged once.
        """
        return pinned_bytes(piece for piece in self._pieces if piece is not None) if self.registered else 0

    @property
    def registered(self) -> bool:
        """Whether the kernel still has them."""
        return bool(self.raw.registered)

    # ---- lending -------------------------------------------------------------------------------

    async def acquire(self) -> FixedBuffer:
        """Lend a buffer, whichever is free; waits in line while all are lent.

        Raises:
            RingClosedError: they were unregistered, or are while this waits.
        """
        lease = self.try_acquire()
        return await self._line.wait() if lease is None else lease

    def try_acquire(self) -> FixedBuffer | None:
        """Lend a buffer if one is free and nobody waits for it, else None."""
        if lib.au_ring_check(self._ring.raw) < 0 or not self.raw.registered:
            self._check()
        if not self._free or self._line.waiting:
            return None
        return self._lend(self._free.popitem()[0])

    def __getitem__(self, index: int) -> FixedBuffer:
        """Lend the buffer of one slot: `with table[3] as buffer`.

        Raises:
            IndexError: there is no such slot.
            ValueError: it is empty.
            ResourceBusyError: it is lent already.
        """
        self._check()
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is outside the table's slots, 0 to {len(self) - 1}")
        if self._pieces[index] is None:
            raise ValueError(f"slot {index} is empty: update() gives it a buffer")
        key = lib.au_buffers_key(self.raw, index)
        if key not in self._free:
            raise ResourceBusyError(f"buffer {index} is lent already, or a slice of its view is still alive")
        del self._free[key]
        return self._lend(key)

    def _check(self) -> None:
        code = lib.au_ring_check(self._ring.raw)
        if code < 0:
            raise failure(code)
        if not self.registered:
            raise RingClosedError("the registered buffers have been unregistered")

    def _lend(self, key: int) -> FixedBuffer:
        code = lib.au_buffers_lend(self.raw, key)
        assert code == 0, code
        used = self._filled - len(self._free)
        if used > self._high_water:
            self._high_water = used
        arena, size = self._lendable[key]
        return FixedBuffer(self, arena, key, size)

    def take_back(self, number: int) -> None:
        """A lease ended: hand the buffer to the first in line, or keep it; if it has left the table, neither."""
        code = lib.au_ring_check(self._ring.raw) if self.registered else 0
        code = code or lib.au_buffers_give_back(self.raw, number)
        if code == lib.AU_REPLACED:
            return
        if code < 0 and code != lib.AU_CLOSED:
            raise failure(code, "returning a buffer", index=number & _INDEX)
        self._free[number] = None
        if self._line.waiting:
            self._serve()

    def _serve(self) -> None:
        while self._line and self._free and self.registered:
            lease = self._lend(self._free.popitem()[0])
            if not self._line.hand(lease):
                lease.release()

    # ---- what is in a slot ---------------------------------------------------------------------

    def _adopt(self, index: int, piece: Piece | None, tag: int) -> None:
        """The kernel has `piece` in a slot now, and so have we."""
        if piece is not None:
            key = lib.au_buffers_key(self.raw, index)
            self._pieces[index] = piece
            self._lendable[key] = (piece.arena or SlotArena(key, piece), piece.size)
            self._free[key] = None
            self._filled += 1
        self._tags[index] = tag

    def _retire(self, index: int) -> list[RetiredBuffers]:
        """The buffer of a slot has left it: keep its memory until its tag comes."""
        piece = self._pieces[index]
        if piece is None:
            return []
        retired = RetiredBuffers(self._attendant, (index,), (self._tags[index],), (piece,))
        self._expect(retired)
        self._pieces[index] = None
        self._filled -= 1
        key = lib.au_buffers_key(self.raw, index) - (_INDEX + 1)  # the key that it had
        self._free.pop(key, None)
        del self._lendable[key]
        return [retired]

    def _expect(self, retired: RetiredBuffers) -> None:
        self._retiring.update(dict.fromkeys(retired.outstanding, retired))

    def dismiss(self, error: Exception) -> None:
        """Whoever waits for a buffer gets `error`."""
        self._line.dismiss(error)

    def statistics(self) -> RegisteredBuffersStatistics:
        """How many are lent now, were at most, and how many callers wait."""
        in_use = self._filled - len(self._free)
        return RegisteredBuffersStatistics(len(self), self.size, in_use, self._high_water, len(self._line))
