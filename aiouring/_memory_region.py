"""Owns `MemoryRegion`: memory that a ring and its kernel share from registration until the ring is closed.

Ownership.  A region cannot be unregistered: the kernel keeps its pages pinned, and the ring holds the region, until
the ring is closed.  Memory of the caller's is exported for as long (resizing it raises `BufferError`).  Memory that the
kernel allocated stays where it is after the close, as ordinary memory with the same bytes, so that a view of it is
valid for as long as anybody has it; see _native/region.c for why it cannot simply stay mapped.

What a region is for.  With `wait_argument=True` it holds the arguments of `Ring.wait()`, 64 bytes each: the kernel
reads them where they are instead of copying one for each wait.  Argument 0 is the ring's own, which every wait with
a time uses; 1 and higher are the caller's, for times that are used again and again.  The last place in the region is
not used: the kernel takes it for the first (KERNEL.md C10).
"""

import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from aiouring._errors import WrongContextError, failure
from aiouring._features import require
from aiouring._lease import PAGE
from aiouring._registered_memory import registration_error
from aiouring._ring import CoreRing, check_size
from aiouring._uring import ffi, lib
from aiouring._waits import check_times, microseconds

if TYPE_CHECKING:
    from aiouring._uring import CMemory, CRing

_LARGEST = 1 << 40
_ARGUMENT = struct.Struct("=qqII")  # seconds, nanoseconds, microseconds of the minimum wait, AU_REG_WAIT_TS
_ARGUMENT_BYTES = 64


class MemoryRegion:
    """Memory shared with the kernel; made by `Ring.register_region()`, and registered until the ring is closed.

    Since Linux 6.13.  See io_uring_register_region(3).
    """

    def __init__(self, ring: CoreRing, size: int | None, memory: Any, *, wait_argument: bool) -> None:
        code = lib.au_ring_check(ring.raw)
        if code < 0:
            raise failure(code, "registering a region")
        require("memory regions")
        if wait_argument and ring.enabled:
            raise WrongContextError(
                "wait arguments are registered before the ring is enabled: make it with disabled=True, register the "
                "region, then call enable()"
            )
        self._raw: CRing = ring.raw
        self._base: CMemory = None
        if memory is None:
            if size is None:
                raise TypeError("a region needs a size, or memory")
            self._size = _check_pages(size)
        else:
            if size is not None:
                raise TypeError("memory has its own size: give size or memory, not both")
            self._base = ffi.from_buffer(memory, require_writable=True)
            self._size = _check_pages(len(self._base))
            address = int(ffi.cast("uintptr_t", self._base))
            if address % PAGE:
                raise ValueError(f"the memory begins {address % PAGE} bytes into a page; mmap.mmap(-1, size) does not")
        self._arguments = 0
        self._with_arguments = wait_argument

    def register(self) -> None:
        """Hand the region to the kernel; whoever calls this holds the region from before until the ring is closed."""
        given = ffi.NULL if self._base is None else self._base
        code = lib.au_ring_register_region(self._raw, given, self._size, self._with_arguments)
        if code < 0:
            raise registration_error(code, self._size, f"registering a region of {self._size} bytes")
        if self._base is None:
            self._base = ffi.gc(self._raw.region, partial(_forget, self._raw, self._size))
        self._arguments = self._raw.wait_slots

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        state = f"{self._arguments} wait arguments" if self._arguments else "no wait arguments"
        return f"<MemoryRegion {self._size} bytes, {state}, {'registered' if self.registered else 'ring closed'}>"

    @property
    def registered(self) -> bool:
        """Whether the kernel still has it: until the ring is closed."""
        return self._raw.state != 0

    @property
    def view(self) -> memoryview:
        """The memory, writable; valid after the ring is closed, too.  In a fork's child, the kernel's is zeros."""
        return memoryview(ffi.buffer(self._base, self._size))

    @property
    def wait_arguments(self) -> int:
        """How many wait arguments there are; 0 where none were asked for.  Number 0 is the ring's own."""
        return self._arguments

    def set_wait(self, argument: int, *, timeout: float | None = None, minimum_wait: float | None = None) -> None:
        """Write wait argument number `argument`, 1 or higher, in seconds; for `Ring.wait(argument=...)`."""
        check_times(timeout, minimum_wait)
        if not 1 <= argument < self._arguments:
            raise ValueError(
                f"argument={argument} is not from 1 to {self._arguments - 1}: 0 is the ring's own, and the last 64 "
                "bytes of a region are not used because the kernel reads the first instead"
            )
        if timeout is not None and minimum_wait is not None and minimum_wait >= timeout:
            minimum_wait = None  # the kernel would wait for the minimum, and forget the timeout
        time = -1 if timeout is None else int(timeout * 1e9)
        code = lib.au_ring_set_wait(self._raw, argument, time, microseconds(minimum_wait))
        if code < 0:
            raise failure(code, "writing a wait argument")

    def get_wait(self, argument: int) -> tuple[float | None, float | None]:
        """The timeout and the minimum wait in a wait argument, in seconds."""
        seconds, nanoseconds, minimum, flags = _ARGUMENT.unpack_from(self.view, argument * _ARGUMENT_BYTES)
        return seconds + nanoseconds / 1e9 if flags & lib.AU_REG_WAIT_TS else None, minimum / 1e6 if minimum else None


def _forget(ring: "CRing", size: int, memory: "CMemory") -> None:
    """The last view of a kernel's region died."""
    lib.au_region_forget(ring, memory, size)


def _check_pages(size: int) -> int:
    """Refuse a size that is not a number of whole pages."""
    check_size("size", size, _LARGEST)
    if size % PAGE:
        raise ValueError(f"size={size} is not a multiple of the page size, {PAGE}")
    return size
