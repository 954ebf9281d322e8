"""Owns `Arena` and `Lease`: the memory of a set of equal buffers, and one buffer of it in a caller's hands.

Ownership.  A buffer is free (or with the kernel), or lent: exactly one `Lease` stands for it.  A lease
ends once, by `release()`, by leaving its `with` block, or by being garbage-collected, which warns.  A
request that uses a lease's memory pins it from before it is submitted until its final completion; a
pinned lease cannot be released.  When an await was given up on because the kernel would not stop the
request (AsyncRing's cancel_timeout), the pin stays: the caller's `with` block then ends without error and
the buffer comes back by itself at the final completion.

Views.  `view` is a memoryview of the buffer.  Release invalidates it.  CPython lets slices of a
memoryview live on after the memoryview was released, though, and a slice that outlives the lease would
look into somebody else's data.  Each buffer therefore has an exporter object of its own; every slice
holds a reference to it, so its reference count tells whether any is left, and release raises
`BufferError`, as resizing an exported bytearray does.

The arena's memory is freed by reference count: leases, slices and requests all hold it.
"""

import contextlib
import mmap
import sys
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from aiouring._errors import ResourceBusyError, WrongContextError
from aiouring._line import Attendant
from aiouring._objects import LeaseRow
from aiouring._uring import ffi

if TYPE_CHECKING:
    from aiouring._uring import CMemory

PAGE: int = mmap.PAGESIZE


class Arena:
    """Private anonymous memory for `count` buffers, each `stride` bytes after the last, page-aligned.

    `room` is how many there may be one day: their addresses are reserved, and cost no memory until they are used.
    """

    __slots__ = ("base", "exporters", "memories")

    #: By the buffer's number.
    memories: "list[CMemory] | dict[int, CMemory]"
    exporters: "list[CMemory] | dict[int, CMemory]"

    def __init__(
        self, count: int, size: int, stride: int, mapping: mmap.mmap | None = None, room: int | None = None
    ) -> None:
        if mapping is None:
            mapping = mmap.mmap(-1, (room or count) * stride, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base: CMemory = ffi.from_buffer(mapping, require_writable=True)
        self.memories = []
        self.exporters = []
        self.extend(count, size, stride)

    def extend(self, count: int, size: int, stride: int) -> None:
        """Make buffers until there are `count`; what an interrupt left half made is made again."""
        memories, exporters = self.memories, self.exporters
        assert isinstance(memories, list)
        assert isinstance(exporters, list)
        del memories[len(exporters) :]
        # Each buffer as a C pointer that keeps the whole mapping alive (by its destructor's argument), and as an
        # exporter of views, see the module's header.  No memoryview may stand between them and the mapping:
        # CPython's collector clears one that is still exported, and crashes.
        for at in range(len(memories) * stride, count * stride, stride):
            memories.append(ffi.gc(self.base + at, partial(_outlived, self.base)))
            exporters.append(ffi.buffer(memories[-1], size))

    def content(self, number: int, length: int) -> bytes:
        """The first `length` bytes of a buffer; a copy."""
        copy: bytes = self.exporters[number][:length]
        return copy


class PrivateArena(Arena):
    """Memory for one buffer, a copy of `data`: the C pointer holds a bytearray, which can neither move nor end.

    It is made for the first who asks for it: most want the bytes alone, which are there.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data  # None once somebody may have changed the copy

    def __getattr__(self, name: str) -> Any:
        """The memory, by any of its names."""
        if name not in Arena.__slots__ or self.data is None:
            raise AttributeError(name)
        memory = ffi.from_buffer(bytearray(self.data))
        self.base, self.memories, self.exporters = memory, [memory], [ffi.buffer(memory)]
        self.data = None
        return getattr(self, name)

    def content(self, number: int, length: int) -> bytes:
        """The bytes, without a copy where they are as they were given."""
        return super().content(number, length) if self.data is None else self.data


def _outlived(base: object, memory: object) -> None:
    """A buffer's pointer died, and with it this reference to the mapping."""


# What getrefcount() says of an exporter without views, asked in just the way in which it is asked below.
_one = [ffi.buffer(ffi.new("char[1]"))]
_WITHOUT_VIEWS = sys.getrefcount(_one[0])


class Home:
    """Where a buffer goes when its lease ends; the common part of `RegisteredBuffers` and `BufferRing`."""

    #: Whether its buffers have numbers that the kernel calls them by in completions.
    is_group = False

    def __init__(self, attendant: Attendant) -> None:
        self._attendant = attendant
        self._held_up: dict[int, weakref.ref[Any]] = {}

    def take_back(self, number: int) -> None:
        """The lease of buffer `number` ended."""
        raise NotImplementedError

    def take_back_when_free(self, number: int, arena: Arena) -> None:
        """The lease ended, and views of the buffer may be alive: it comes back when the last of them dies.

        Those views hold the buffer's exporter.  It gets a new one, and the death of the old one calls us.
        Any thread may come here: the garbage collector does.
        """
        exporter = arena.exporters[number]
        arena.exporters[number] = ffi.buffer(arena.memories[number], len(exporter))
        self._held_up[number] = weakref.ref(exporter, lambda _: self._reclaim(number))

    def _reclaim(self, number: int) -> None:
        if self._held_up.pop(number, None) is None:
            return
        try:
            self.take_back(number)
        except WrongContextError:
            self._held_up[number] = NOT_HELD
            self._attendant.ask_from_elsewhere(partial(self._reclaim, number))


def _nothing() -> None:
    """What is held by nobody is referred to like this."""


NOT_HELD: "weakref.ref[Any]" = weakref.ref(_nothing)


class Lease(LeaseRow):
    """One buffer lent to a caller; the common part of `FixedBuffer` and `ProvidedBuffer`.

    `pins` are the requests in flight on its memory, -1 when it was handed over and has gone back; `abandoned` says that
    nobody awaits them any more.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        state = "released" if self.ended else f"{self.length} bytes"
        return f"<{type(self).__name__} {self.shown} {state}>"

    @property
    def shown(self) -> int:
        """What the buffer is called in texts."""
        return self.number

    @property
    def view(self) -> memoryview:
        """The buffer's bytes, writable, until it is released.  Raises `ValueError` after that."""
        view = self._view
        if view is None:
            if self.ended:
                raise failure_released(self.shown)
            view = self._view = memoryview(self.arena.exporters[self.number])[: self.length]
        return view

    def memory(self) -> "CMemory":
        """The buffer as a C pointer, for requests.  Raises `ValueError` after release."""
        if self.ended:
            raise failure_released(self.shown)
        return self.arena.memories[self.number]

    def release(self) -> None:
        """Give the buffer back; `view` is invalid from here on.

        Raises:
            ValueError: it was released before.
            ResourceBusyError: a request is still using it.
            BufferError: a slice of `view`, or something made from it, is still alive.
            WrongContextError: this is not the ring's thread.
        """
        if self.ended:
            raise failure_released(self.shown)
        if self.pins:
            raise ResourceBusyError(
                f"buffer {self.shown} is in use by {self.pins} request(s) in flight: await them before releasing it"
            )
        if self._view is not None:
            self._drop_views()
        self._home.take_back(self.number)
        self.ended = True

    def _drop_views(self) -> None:
        assert self._view is not None
        self._view.release()  # BufferError: an array or a C library has it
        self._view = None
        if self.length and self.has_views():
            _ = self.view  # the lease goes on
            raise BufferError(
                f"a slice of buffer {self.shown}'s view is still alive: it would see the buffer's next contents; "
                "drop or release() it first, or copy with bytes()"
            )

    def hand_over(self) -> None:
        """End the lease for whoever has it, without returning the buffer: `give_back()` does, later.

        Raises what `release()` raises.
        """
        if self.ended:
            raise failure_released(self.shown)
        if self.pins:
            raise ResourceBusyError(
                f"buffer {self.shown} is in use by {self.pins} request(s) in flight: await them before sending it"
            )
        if self._view is not None:
            self._drop_views()
        self.ended = True

    def contents(self) -> bytes:
        """A copy of the bytes of a buffer that was handed over."""
        return self.arena.content(self.number, self.length)

    def give_back(self) -> None:
        """Return a buffer that was handed over.  Taking this step twice does no harm."""
        if self.length and not self.pins:
            self.pins = -1  # first: to return it twice would end the lease of whoever has it next
            self._home.take_back(self.number)

    def has_views(self) -> bool:
        """Whether any view of the buffer, or slice of one, is alive."""
        return sys.getrefcount(self.arena.exporters[self.number]) != _WITHOUT_VIEWS

    def unpinned(self) -> None:
        """The last request on this memory completed after the lease had ended."""
        self._home.take_back_when_free(self.number, self.arena)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.abandoned:
            if not self.ended:
                self.release()
        elif not self.ended:
            self._end_quietly()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.__exit__(kind)

    def _end_quietly(self) -> None:
        """End the lease where nothing may be raised: the buffer comes back when nobody uses it any more."""
        self.ended = True
        view, self._view = self._view, None
        if view is not None:
            with contextlib.suppress(BufferError):  # somebody exports it, and keeps it alive
                view.release()
            del view
        if not self.pins:
            self.unpinned()

    def _never_released(self) -> None:
        """It dies without having ended."""
        said = f"{self!r} was never released"
        self._end_quietly()
        warnings.warn(said, ResourceWarning, stacklevel=1, source=self)


def failure_released(number: int) -> ValueError:
    """The exception for using a lease that has ended."""
    return ValueError(f"buffer {number} has been released already")
