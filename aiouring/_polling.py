"""Owns `Polling`: a poll that stays armed in the kernel, and the events that nobody has taken yet.

Events that come while nobody takes them are joined: the reader learns what has become true, not how often, so there is
no queue to bound.  Where the kernel ends the request while events wait for their taker, it is armed again only when
they are taken: of a condition that lasts, as a hang-up, it would say so again at once.
"""

from typing import TYPE_CHECKING, Any

from aiouring._standing import FOREVER, Standing
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._driver import Driver


class Polling(Standing):
    """The poll of one file."""

    __slots__ = ("_events", "_seen")

    opcode = lib.AU_OP_POLL_ADD
    busy = "another task is already waiting for these events"

    def __init__(self, driver: "Driver", fd: int, file: Any, how: int, events: int) -> None:
        super().__init__(driver, fd, file, how)
        self._events = events
        self._seen = 0
        self._arm()

    async def take(self) -> int:
        """The events that have become true.  Cancelling this takes nothing."""
        await self.wait()
        seen, self._seen = self._seen, 0
        if self._resting:
            self._interrupt()
        return seen

    def _operate(self) -> None:
        self._start(lib.au_prepare, self.opcode, self.fd, 0, 0, lib.AU_POLL_ADD_MULTI, self._events, self._how)

    def _something(self) -> bool:
        return self._seen != 0

    def _came(self, result: int) -> None:
        self._seen |= result
        self._wake()

    def _delay(self, error: int) -> float:
        return super()._delay(error) or (FOREVER if self._seen else 0.0)
