"""Owns `CachedReads`: the reads of a regular file that its page cache answers, without a request.

preadv2(RWF_NOWAIT) makes the same attempt that the kernel makes when such a read is submitted, also in the loop's
thread, and the future and the turn of the loop are spared.  It never waits for the disk; what it does not get, a
request gets, and what it finds wrong, a request finds, so errors are those of requests alone.  One turn of the ring
gives away AU_CACHED_MAX bytes at most (each read counts 12 KiB more): then others have their turn, and the ring.
Measured, CPU time of 4 KiB at random offsets, divided by os.pread(): a request 7.2 at depth 1 and 3.9 at depth 32,
`read_at()` like this, in C as far as that goes (see _native/reading.c), 1.3 and 1.5.
Files that IOSQE_ASYNC is for (FUSE) are not read like this, nor those with O_DIRECT, where the same call would wait for
the disk.
"""

import asyncio
import errno
from typing import Any

from aiouring._objects import FileRow, new_bytes
from aiouring._uring import lib

_read_cached = lib.au_read_cached


class CachedReads(FileRow):
    """The part of `RawFile` that reads what is there; `cached` says whether that is done without a request."""

    def take_cached(
        self, memory: Any, capacity: int, start: int, length: int, offset: int, *, waited: bool = False
    ) -> int:
        """Read what is in the page cache, without a request; returns how many bytes that were.

        AU_FULL, which is negative: the ring has given away enough until its next turn, and the reader has not `waited`
        for one.  0: what is to be read needs a request, maybe for an error, and then the request finds it, too.
        """
        driver = self._driver
        if not self.cached or not driver._usable or not driver._is_running():
            return 0
        try:
            count = _read_cached(driver._raw, self.fd, memory, capacity, start, length, offset, waited)
        except OverflowError:
            return 0
        if count == -errno.EOPNOTSUPP:
            self.cached = False
        return count if count > 0 or count == lib.AU_FULL else 0

    # read_at_once() is the row's: `size` bytes from `offset` on if all of them are there and not too many, else none.

    async def read_cached(self, size: int, offset: int) -> bytes:
        """The same for `largest` bytes at most, when others have had their turn."""
        data = new_bytes(size)
        return data if await self.fill_cached(data, size, offset) else b""

    async def fill_cached(self, memory: Any, size: int, offset: int) -> bool:
        """Fill `size` bytes of memory, if all of them are in the page cache; else they hold anything."""
        return await self.take_in_turn(memory, size, 0, size, offset) == size

    async def take_in_turn(self, memory: Any, capacity: int, start: int, length: int, offset: int) -> int:
        """As `take_cached()`; where the ring has given away enough, others have their turn first, and the ring."""
        count = self.take_cached(memory, capacity, start, length, offset)
        if count == lib.AU_FULL:
            self._driver.ask_for_turn()
            await asyncio.sleep(0)
            count = self.take_cached(memory, capacity, start, length, offset, waited=True)
        return count
