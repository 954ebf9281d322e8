"""Owns `CachedReads`: the reads of a regular file that its page cache answers, without a request.

preadv2(RWF_NOWAIT) makes the same attempt that the kernel makes when such a read is submitted, also in the loop's
thread, and the future and the turn of the loop are spared.  It never waits for the disk; what it does not get, a
request gets, and what it finds wrong, a request finds, so errors are those of requests alone.  One turn of the ring
gives away AU_CACHED_MAX bytes at most (each read counts 4096 more): then a request is made, and others have their
turn.  Measured, 4 KiB at random offsets, microseconds each: a request 7.0 at depth 1 and 3.6 at depth 32, like this
2.2 and 2.4; os.pread() itself 1.25.  Files that IOSQE_ASYNC is for (FUSE) are not read like this, nor those with
O_DIRECT, where the same call would wait for the disk.
"""

import errno
from typing import TYPE_CHECKING, Any

from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._driver import Driver

_read_cached = lib.au_read_cached


class CachedReads:
    """The part of `RawFile` that reads what is there."""

    _driver: "Driver"
    fd: int
    #: Whether what is in its page cache is read without a request.
    cached: bool

    def take_cached(self, memory: Any, capacity: int, start: int, length: int, offset: int) -> int:
        """Read what is in the page cache, without a request; returns how many bytes that were.

        AU_FULL, which is negative: the ring has given away enough until its next turn.  0: what is to be read needs a
        request for another reason, which may be an error, and then the request finds it, too.
        """
        driver = self._driver
        if not self.cached or not driver._usable or not driver._is_running():
            return 0
        try:
            count = _read_cached(driver._raw, self.fd, memory, capacity, start, length, offset)
        except OverflowError:
            return 0
        if count == -errno.EOPNOTSUPP:
            self.cached = False
        return count if count > 0 or count == lib.AU_FULL else 0
