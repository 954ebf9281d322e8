"""Owns `BlockPool`: each ring's blocks of registered memory, for files that go around the page cache.

Ownership.  A block is free, or lent to one read or write of a `DirectFile`, which returns it when the kernel is done.
One whose request was given up on stays the request's: a registered buffer comes back by itself (see `_lease`), plain
memory never.

Nobody waits for a block: a file that is not read further could hold what another waits for.  Where all registered
blocks are lent, or where there are none (the ring's one table of buffers is the caller's, or RLIMIT_MEMLOCK is low),
plain pages take their place; the kernel then pins them for each request, which is all that it costs.
"""

import contextlib
import mmap
import weakref
from typing import TYPE_CHECKING, Self

from aiouring._async_ring import AsyncRing
from aiouring._errors import ResourceBusyError, RingClosedError
from aiouring._fixed_buffer import FixedBuffer
from aiouring._uring import ffi

if TYPE_CHECKING:
    from aiouring._registered_buffers import RegisteredBuffers
    from aiouring._uring import CMemory

#: Bytes in a block, and how many are registered: 4 MiB, of the 8 that a process may lock by default.
SIZE = 256 * 1024
COUNT = 16

_pools: "weakref.WeakKeyDictionary[AsyncRing, BlockPool]" = weakref.WeakKeyDictionary()


class Block:
    """Page-aligned memory of SIZE bytes, and the lease of it where it is registered; a `with` block gives it back."""

    __slots__ = ("_pool", "lease", "memory")

    def __init__(self, pool: "BlockPool", memory: "CMemory", lease: FixedBuffer | None) -> None:
        self._pool = pool
        self.memory = memory
        self.lease = lease

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.lease is not None:
            self.lease.__exit__(kind)  # one that a request still has comes back when that ends
        elif kind is None:
            self._pool.keep(self.memory)


class BlockPool:
    """The blocks of one ring; registered when the first is lent."""

    def __init__(self, ring: AsyncRing) -> None:
        self._plain: list[CMemory] = []
        self._table: RegisteredBuffers | None = None
        with contextlib.suppress(ResourceBusyError, OSError):  # the caller's table, little lockable memory ...
            self._table = ring.register_buffers(count=COUNT, size=SIZE)

    def lend(self) -> Block:
        """A block, registered if one is free."""
        lease = None
        if self._table is not None:
            try:
                lease = self._table.try_acquire()
            except RingClosedError:
                self._table = None
        if lease is not None:
            return Block(self, lease.memory(), lease)
        memory = self._plain.pop() if self._plain else ffi.from_buffer(mmap.mmap(-1, SIZE), require_writable=True)
        return Block(self, memory, None)

    def keep(self, memory: "CMemory") -> None:
        """Plain pages that the kernel is done with: for the next who needs some."""
        if len(self._plain) < COUNT:
            self._plain.append(memory)


def block_pool(ring: AsyncRing) -> BlockPool:
    """The ring's blocks."""
    pool = _pools.get(ring)
    if pool is None:
        pool = _pools[ring] = BlockPool(ring)
    return pool
