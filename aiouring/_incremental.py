"""Owns `IncrementalBufferRing` and `ProvidedPart`: buffers that many messages share, each taking the next part of one.

How this fits together

1. The kernel fills a buffer from its beginning on, each receive taking as much as came, until nothing is left of it;
   messages of different sockets follow each other in one buffer.  One that does not fit comes as two chunks, in order.
2. Each chunk is a lease of its own on its part, released in any order.  The C core counts the parts that are out
   (shares.c); a buffer goes back to the kernel when the kernel is done with it and the last part is released.
3. A lease's `number` is the buffer's id and, above it, where the part begins: so a lease, a completion and the C core
   call a part by one integer, and everything that handles leases handles parts.
4. A slow reader of one small part keeps its whole buffer, as one who holds a page of a book keeps the book.  Many
   small messages and a few slow readers want several buffers rather than one of all the memory.
"""

import sys
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import BufferRing, ProvidedBuffer, end_of_stream
from aiouring._errors import failure
from aiouring._lease import NOT_HELD, failure_released
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CMemory

_BUFFER_SHIFT = lib.AU_CQE_BUFFER_SHIFT
_ID_BITS = lib.AU_BUFFER_ID_BITS
_ID_MASK = lib.AU_BUFFER_ID_MASK
_TAKEN = lib.AU_CQE_TAKEN


class _Exporting:
    """Something with an exporter that has no views."""

    def __init__(self) -> None:
        self._exporter = ffi.buffer(ffi.new("char[1]"))

    def references(self) -> int:
        """Ask what `ProvidedPart.has_views()` asks."""
        return sys.getrefcount(self._exporter)


_WITHOUT_VIEWS = _Exporting().references()


class ProvidedPart(ProvidedBuffer):
    """Received bytes in their part of a buffer; to its user a `ProvidedBuffer`."""

    __slots__ = ("_exporter",)
    _home: "IncrementalBufferRing"

    @property
    def view(self) -> memoryview:
        """The part's bytes, writable, until it is released.  Raises `ValueError` after that."""
        view = self._view
        if view is None:
            if self.ended:
                raise failure_released(self.shown)
            if not hasattr(self, "_exporter"):  # of this and later views
                self._exporter: Any = ffi.buffer(self.memory(), self.length)
            view = self._view = memoryview(self._exporter)
        return view

    def memory(self) -> "CMemory":
        """The part as a C pointer, which keeps the buffer's memory.  Raises `ValueError` after release."""
        if self.ended:
            raise failure_released(self.shown)
        whole = self.arena.memories[self.number & _ID_MASK]
        pointer: CMemory = ffi.gc(whole + (self.number >> _ID_BITS), partial(_outlived, whole))
        return pointer

    def contents(self) -> bytes:
        """A copy of the bytes of a part that was handed over."""
        start = self.number >> _ID_BITS
        copy: bytes = self.arena.exporters[self.number & _ID_MASK][start : start + self.length]
        return copy

    def has_views(self) -> bool:
        """Whether any view of the part, or slice of one, is alive."""
        return sys.getrefcount(self._exporter) != _WITHOUT_VIEWS

    def unpinned(self) -> None:
        """Nobody has the lease any more: the part comes back when the last view of it dies."""
        exporter = getattr(self, "_exporter", None)
        self._exporter = None
        self._home.take_back_after(self.number, exporter)


def _outlived(whole: object, part: object) -> None:
    """A part's pointer died, and with it this reference to its buffer."""


class IncrementalBufferRing(BufferRing):
    """A buffer ring whose buffers are given out in parts.  Since Linux 6.12."""

    lease = ProvidedPart
    incremental = True

    def most_at_once(self, pending: int) -> int:
        """How many bytes one stream may receive before anybody looks: an eighth of all, and a buffer at least."""
        return max(self.size, self.max_count * self.size // 8)

    def _usually_pending(self) -> int:
        return 64  # chunks may be small, so their number says little about buffers

    def resume_at(self, pending: int) -> int:
        """None: chunks may be as large as buffers, so it is the bytes received at once that bound a stream."""
        return 0

    def take(self, flags: int, length: int) -> ProvidedBuffer:
        """The part that a completion brought becomes the caller's; in the order of the completions."""
        if length == 0:
            return end_of_stream()  # there is no part without bytes
        number = flags >> _BUFFER_SHIFT
        if not flags & _TAKEN:
            start = lib.au_group_take_part(self.raw, flags, length)
            if start < 0:
                raise AssertionError(
                    f"the kernel gave out {length} bytes of buffer {number} of group {self.group_id}, which it did not "
                    "have (or this completion was taken before, or not in its turn)"
                )
            number |= start << _ID_BITS
        return self.lease(self, self.arena, number, length)

    def take_back(self, number: int) -> None:
        """A part's lease ended; the last of a buffer gives that back to the kernel."""
        code = lib.au_group_release(self.raw, number)
        if code < 0:
            raise failure(code, "returning a buffer", index=number & _ID_MASK)
        if code:  # it waits to be published
            self._attendant.ask_for_turn()

    def take_back_after(self, number: int, exporter: Any) -> None:
        """The lease ended, and views of the part may be alive: it comes back when the last of them dies.

        Any thread may come here: the garbage collector does.
        """
        if exporter is None:
            self._held_up[number] = NOT_HELD
            self._reclaim(number)
        else:
            self._held_up[number] = weakref.ref(exporter, lambda _: self._reclaim(number))

    def put_back(self, flags: int, *, failed: bool) -> None:
        """A completion without bytes took no part."""
