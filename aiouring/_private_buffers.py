"""Owns `PrivateBuffers`: memory beside a buffer group, for receives that find the group empty (on_empty="fallback").

How this fits together

1. A receive that the kernel refused for want of a buffer draws one here, and receives into it without waiting
   (MSG_DONTWAIT): most often data is there.  The chunk has the face of any other, and a home of its own.
2. If there is no data (to arm a receive on an empty group is refused without any, too), the private buffer comes back
   at once, and the receive is armed on the group again, this time to wait for data first (AU_RECVSEND_POLL_FIRST,
   since Linux 5.19).  So it holds nothing while it waits; when data comes it takes a buffer of the group, or is refused
   once more and knows that there is data.  Measured on 6.18: with POLL_FIRST neither a single nor a multishot receive
   is refused before there is data.  Every step moves data or waits for some, so nothing spins.
3. Each receive asks the group first: private memory is used for as long as the group is empty, and no longer.
4. No more than the group has buffers are out at once.  Beyond that a receiver waits in the group's line, as with
   "wait", and takes what comes first: a buffer of the group in its turn, or a private one that came back.

Ownership.  A private buffer is the request's from the draw until its final completion, then its caller's until the
lease ends; no buffer is used twice, so its memory lives for as long as anybody refers to it, and what comes back here
is the permission to have another.
"""

import itertools
from collections.abc import Callable

from aiouring._errors import failure
from aiouring._lease import Arena, Home, Lease
from aiouring._line import Attendant
from aiouring._ring import CoreRing
from aiouring._uring import lib

_NUMBERS = 1 << 16  # as many as buffers may have


class PrivateBuffers(Home):
    """Up to `limit` buffers of `size` bytes at once; `returned` is called when one comes back."""

    def __init__(
        self, ring: CoreRing, attendant: Attendant, size: int, limit: int, returned: Callable[[], object]
    ) -> None:
        super().__init__(attendant)
        self._ring = ring
        self.size = size  # bytes in each
        self._returned = returned
        self.limit = limit
        self._next_number = itertools.count().__next__
        self._out: set[int] = set()  # numbers; one that came back is not used again for long
        self.received = 0  # receives that brought bytes

    @property
    def in_use(self) -> int:
        """How many are out."""
        return len(self._out)

    @property
    def available(self) -> bool:
        """Whether one more may be had."""
        return len(self._out) < self.limit

    def draw(self) -> tuple[Arena, int] | None:
        """Memory for one receive, and its number; None where all are in use."""
        if not self.available:
            return None
        while (number := self._next_number() % _NUMBERS) in self._out:
            pass
        arena = Arena(1, self.size, self.size)
        arena.memories = {number: arena.memories[0]}
        arena.exporters = {number: arena.exporters[0]}
        self._out.add(number)
        return arena, number

    def settle(self, spare: Lease, result: int) -> None:
        """A receive into `spare` has ended: it has as many bytes now, or comes back."""
        if result > 0:
            spare.length = result
            self.received += 1
        else:
            spare.release()

    def take_back(self, number: int) -> None:
        """The lease of a private buffer ended: somebody else may have one.  Taking this step twice does no harm."""
        code = lib.au_ring_check(self._ring.raw)
        if code < 0 and code != lib.AU_CLOSED:
            raise failure(code, "returning a private buffer", index=number)
        self._out.discard(number)
        self._returned()
