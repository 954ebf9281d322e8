"""Owns `RegisteredBuffers` and `FixedBuffer`: the kernel's table of registered ("fixed") buffers.

The kernel pins the pages once, at registration, and a request names a buffer by its index.  That saves
pinning the pages for each request: a real gain with O_DIRECT files, none with sockets or the page cache
(KERNEL.md E18).  Unregistering while a request is in flight is safe for the kernel, which keeps the pages
until the request ends, and for us, because the request holds its lease and the lease its arena.
"""

import errno
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aiouring._errors import RingClosedError, failure
from aiouring._lease import PAGE, Arena, Home, Lease
from aiouring._line import Attendant, Line
from aiouring._ring import CoreRing, check_size
from aiouring._setup import in_bytes
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CBuffers

MAX_BUFFERS = lib.AU_MAX_BUFFERS
MAX_BUFFER_BYTES = lib.AU_MAX_BUFFER_BYTES


class FixedBuffer(Lease):
    """One registered buffer, lent by `RegisteredBuffers.acquire()` until `release()` or the end of `with`."""

    __slots__ = ()

    @property
    def index(self) -> int:
        """The buffer's place in the kernel's table."""
        return self.number

    @property
    def table(self) -> "CBuffers":
        """The C core's table this buffer is in."""
        assert isinstance(self._home, RegisteredBuffers)
        return self._home.raw


@dataclass(frozen=True, slots=True)
class RegisteredBuffersStatistics:
    """How a table of registered buffers is used; counts of buffers."""

    count: int
    size: int
    in_use: int
    high_water: int
    waiting: int


class RegisteredBuffers(Home):
    """`count` buffers of `size` bytes registered with the kernel; made by `AsyncRing.register_buffers()`.

    Leaving the `with` block unregisters them.  Since Linux 5.1.  See io_uring_register_buffers(3).
    """

    def __init__(self, ring: CoreRing, attendant: Attendant, count: int, size: int) -> None:
        check_size("count", count, MAX_BUFFERS)
        check_size("size", size, MAX_BUFFER_BYTES)
        super().__init__(attendant)
        stride = -(-size // PAGE) * PAGE
        self._count = count
        self._size = size
        self._arena = Arena(count, size, stride)
        self.raw: CBuffers = ffi.new("au_buffers *", {"lent": count})
        self._ring = ring  # the C table points to the C ring
        lib.au_buffers_init(self.raw, ring.raw, self._arena.base, size, stride, count)
        code = lib.au_buffers_register(self.raw)
        if code < 0:
            raise registration_error(code, count * stride, f"registering {count} buffers of {size} bytes")
        self._free = list(range(count - 1, -1, -1))  # the last returned is lent first: it is in the cache
        self._high_water = 0
        self._line: Line[FixedBuffer] = Line(attendant.new_future, lambda lease: lease.__exit__(None))

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        state = f"{len(self._free)} free" if self.registered else "unregistered"
        return f"<RegisteredBuffers {self._count} x {self._size} bytes, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    @property
    def size(self) -> int:
        """Bytes in each buffer."""
        return self._size

    @property
    def registered(self) -> bool:
        """Whether the kernel still has them."""
        return bool(self.raw.registered)

    async def acquire(self) -> FixedBuffer:
        """Lend a buffer; waits in line while all are lent.

        Raises:
            RingClosedError: they were unregistered, or are while this waits.
        """
        lease = self.try_acquire()
        return await self._line.wait() if lease is None else lease

    def try_acquire(self) -> FixedBuffer | None:
        """Lend a buffer if one is free and nobody waits for it, else None."""
        code = lib.au_ring_check(self._ring.raw)
        if code < 0:
            raise failure(code)
        if not self.registered:
            raise RingClosedError("the registered buffers have been unregistered")
        if not self._free or self._line:
            return None
        return self._lend(self._free.pop())

    def _lend(self, number: int) -> FixedBuffer:
        code = lib.au_buffers_lend(self.raw, number)
        assert code == 0, code
        self._high_water = max(self._high_water, self._count - len(self._free))
        return FixedBuffer(self, self._arena, number, self._size)

    def take_back(self, number: int) -> None:
        """A lease ended: hand the buffer to the first in line, or keep it."""
        code = lib.au_ring_check(self._ring.raw) if self.registered else 0
        code = code or lib.au_buffers_give_back(self.raw, number)
        if code < 0 and code != lib.AU_CLOSED:
            raise failure(code, "returning a buffer", index=number)
        self._free.append(number)
        while self._line and self._free and self.registered:
            lease = self._lend(self._free.pop())
            if not self._line.hand(lease):
                lease.release()

    def unregister(self) -> None:
        """Take the buffers back from the kernel; idempotent.

        Requests in flight complete into the same memory, which lives as long as they do.  Leases stay
        valid as plain memory.  Whoever waits in `acquire()` gets `RingClosedError`.
        """
        if not self.registered:
            return
        code = lib.au_buffers_unregister(self.raw)
        if code < 0:
            raise failure(code, "unregistering the buffers")
        self.dismiss(RingClosedError("the registered buffers were unregistered while this waited for one"))

    def dismiss(self, error: Exception) -> None:
        """Whoever waits for a buffer gets `error`."""
        self._line.dismiss(error)

    def statistics(self) -> RegisteredBuffersStatistics:
        """How many are lent now, were at most, and how many callers wait."""
        in_use = self._count - len(self._free)
        return RegisteredBuffersStatistics(self._count, self._size, in_use, self._high_water, len(self._line))


def registration_error(code: int, size: int, doing: str) -> Exception:
    """The exception for a refused registration; ENOMEM explains RLIMIT_MEMLOCK (KERNEL.md C6)."""
    if code != -errno.ENOMEM:
        return failure(code, doing)
    soft, hard = (in_bytes(limit) for limit in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    return OSError(
        errno.ENOMEM,
        f"{doing}: {os.strerror(errno.ENOMEM)}: {size} bytes would be locked, and RLIMIT_MEMLOCK allows this user "
        f"{soft} in all its processes (hard limit: {hard}); "
        "raise it (ulimit -l, LimitMEMLOCK= in a systemd unit, docker run --ulimit memlock=-1), "
        "ask for less, or make the ring with CAP_IPC_LOCK",
    )
