"""Owns `Watch`: who holds each buffer of a group, and since when; for debugging.

How this fits together

1. A group that is watched lends through `lend()`, which notes the time and the stack of whoever receives, and takes
   back through `take_back()`.  A group that is not watched knows nothing of this: its `lease` and `take_back` are the
   plain ones, so there is no test on the way of a message.
2. There is no timer.  A lease that goes on for too long is noticed by the next lease, by a receiver for whom there is
   no buffer, by whoever asks for statistics, or at its own end: whichever comes first, and once.
3. Leases stand in the order in which they began, so all of these look at the first only, and at those that are over.
"""

import logging
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, NamedTuple

from aiouring._uring import lib

if TYPE_CHECKING:
    from types import FrameType

    from aiouring._buffer_ring import ProvidedBuffer
    from aiouring._lease import Arena, Home

log = logging.getLogger("aiouring")

#: Seconds after which a held buffer is reported in asyncio's debug mode, where nobody says otherwise.
HELD_TOO_LONG = 10.0

_DEPTH = 10  # frames noted of whoever received


class _Held(NamedTuple):
    lease: "weakref.ref[ProvidedBuffer]"  # its end is to be heard of as ever, also where it is dropped
    since: float
    where: traceback.StackSummary


class Watch:
    """The leases of one group; the oldest are reported after `seconds`.

    `lent_on` are the buffers whose lease is over while a view of them is not.
    """

    def __init__(
        self,
        group_id: int,
        lease: "Callable[[Home, Arena, int, int], ProvidedBuffer]",
        take_back: Callable[[int], None],
        lent_on: Container[int],
        seconds: float,
    ) -> None:
        self._group_id = group_id
        self._lease = lease
        self._take_back = take_back
        self._lent_on = lent_on
        self.seconds = seconds
        self.clock: Callable[[], float] = time.monotonic
        self._held: dict[int, _Held] = {}  # by the buffer's number, in the order of `since`
        self._reported: dict[int, _Held] = {}

    def lend(self, home: "Home", arena: "Arena", number: int, length: int) -> "ProvidedBuffer":
        """Make a lease, and note who has it."""
        lease = self._lease(home, arena, number, length)
        self.note(number, lease)
        return lease

    def note(self, number: int, lease: "ProvidedBuffer") -> None:
        """Note who has a lease that begins."""
        self.look()
        self._forget(number)
        self._held[number] = _Held(weakref.ref(lease), self.clock(), _caller())

    def take_back(self, number: int) -> None:
        """Take a buffer back as the group does; its lease has ended."""
        self._take_back(number)
        held = self._forget(number)
        if held is not None:
            self._report(number, held, "was held for")

    def look(self) -> None:
        """Report what has been held for too long, and was not reported before."""
        while self._held:
            number, held = next(iter(self._held.items()))
            if self._goes_on(number, held):
                if self.clock() - held.since < self.seconds:
                    return
                self._reported[number] = held
                self._report(number, held, "has been held for")
            del self._held[number]

    def oldest(self) -> float:
        """How many seconds the oldest lease is old; 0 if there is none."""
        self.look()
        for leases in (self._reported, self._held):
            for number, held in leases.items():
                if self._goes_on(number, held):
                    return self.clock() - held.since
        return 0.0

    def _forget(self, number: int) -> _Held | None:
        """What is known of a buffer is over; returns it unless it was reported."""
        self._reported.pop(number, None)
        return self._held.pop(number, None)

    def _goes_on(self, number: int, held: _Held) -> bool:
        lease = held.lease()
        return (lease is not None and not lease.ended) or number in self._lent_on

    def _report(self, number: int, held: _Held, how: str) -> None:
        seconds = self.clock() - held.since
        if seconds >= self.seconds:
            log.warning(
                "buffer %d of group %d %s %.1f s, which is too long (held_too_long=%s); it was received here:\n%s",
                number & lib.AU_BUFFER_ID_MASK,
                self._group_id,
                how,
                seconds,
                self.seconds,
                "".join(held.where.format()).rstrip(),
            )


def _belongs_to(frame: "FrameType", package: str) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return name == package or name.startswith(f"{package}.")


def _caller() -> traceback.StackSummary:
    """The stack of whoever receives, without our own frames and the loop's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _belongs_to(frame, "aiouring"):
        frame = frame.f_back
    frames: list[tuple[FrameType, int]] = []
    while frame is not None and len(frames) < _DEPTH and not _belongs_to(frame, "asyncio"):
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return traceback.StackSummary.extract(reversed(frames), lookup_lines=False)
