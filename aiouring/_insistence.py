"""Owns `Insistence`: cancelling again what no cancel found."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from aiouring._request import Request
    from aiouring._turns import Turns


class Insistence:
    """Cancels requests and, in a `with` block, those that have not ended again: after a while, then after twice that.

    A request that is on its way to a worker of the kernel, as a connect that has to wait, is found by no cancel
    (ENOENT).
    """

    __slots__ = ("_requests", "_timer", "_turns")

    def __init__(self, turns: "Turns", requests: "list[Request]") -> None:
        self._turns = turns
        self._requests = requests
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._cancel(0.02)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it refers to this: no cycle may be left behind, a lease would be in it

    def _cancel(self, patience: float) -> None:
        turns = self._turns
        self._requests = [request for request in self._requests if not request.ended]
        for request in self._requests:
            turns.cancel_soon(request)
        self._timer = turns.loop.call_later(patience, self._cancel, 2 * patience) if self._requests else None
