"""Owns `PeekingRing`: looking at completions without consuming them, and consuming what was looked at.

The completions stay in the kernel's queue until an advance, which takes no more than were seen: one that nobody saw
would be lost, and with it the buffer that it names.  What a request holds is held until its completion is consumed.
"""

from collections.abc import Iterable

from aiouring._errors import failure
from aiouring._ring import Completion, check_count
from aiouring._uring import lib
from aiouring._waits import WaitingRing


class PeekingRing(WaitingRing):
    """A `WaitingRing` whose caller says when completions are consumed."""

    _peeked: tuple[Completion, ...] = ()

    def peek(self, count: int = 0, timeout: float | None = None) -> list[Completion]:
        """Submit everything filled, and return what has completed (at most 512 at once) without consuming it.

        The completions stay in the queue, are seen again, and their requests are in flight until `advance()` or
        `BufferRing.cq_advance()`; `submit()`, `wait()` and `drain()` consume them as well.

        Args:
            count: how many completions to block for; 0 does not wait.
            timeout: seconds to block at most; None is for as long as it takes.

        Since Linux 5.1, with a timeout 5.11.  See io_uring_peek_batch_cqe(3).
        """
        self._do_what_is_due()
        if count:
            self._block(count, timeout)
        self._peeked = tuple(self._completions(lib.au_ring_peek(self.raw)))
        return list(self._peeked)

    def advance(self, count: int) -> None:
        """Consume the first `count` of the completions that `peek()` returned.

        Raises:
            ValueError: fewer than that have been peeked at; none is consumed.

        Since Linux 5.1.  See io_uring_cq_advance(3).
        """
        check_count("count", count)
        code = lib.au_ring_advance(self.raw, count)
        if code < 0:
            raise failure(code, advance=f"{count} completions", there=f"{lib.au_ring_peeked(self.raw)} peeked at")
        self.consumed(count)

    def consumed(self, count: int) -> None:
        """Let go of what the requests held whose completions are consumed."""
        consumed, self._peeked = self._peeked[:count], self._peeked[count:]
        self._ended(consumed)

    def _do_what_is_due(self) -> None:
        """Do what others asked for, before a turn."""
        raise NotImplementedError

    def _ended(self, completions: Iterable[Completion]) -> None:
        """These completions are the caller's."""
        raise NotImplementedError
