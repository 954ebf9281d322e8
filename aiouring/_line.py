"""Owns `Line`: those who wait for a buffer, first come first served.

A line belongs to the thing that is short (a table of registered buffers, a buffer ring).  It knows
futures only by the function that makes them, so the floors below the event loop can have lines.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class Attendant(Protocol):
    """What buffers need from whoever drives their ring; the floor above provides it."""

    def new_future(self) -> "asyncio.Future[Any]":
        """A future of the ring's loop."""

    def ask_for_turn(self) -> None:
        """Give the ring a turn before the loop sleeps."""

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` in the ring's thread; the one method that any thread may call."""

    def cancel_receives(self, group: object) -> None:
        """Cancel every receive in flight on a buffer group."""


class Line(Generic[T]):
    """Waiters in order.  What a waiter was handed and could not take any more goes to `returned`."""

    def __init__(self, new_future: "Callable[[], asyncio.Future[T]]", returned: Callable[[T], object]) -> None:
        self._new_future = new_future
        self._returned = returned
        self._waiting: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, *, first: bool = False) -> T:
        """Wait to be handed something; `first` puts the caller at the head of the line."""
        turn = self._new_future()
        if first:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            return await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._returned(turn.result())  # handed over and cancelled in the same turn of the loop
            raise

    def hand(self, thing: T) -> bool:
        """Hand `thing` to the first who still waits; False if there is nobody."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thing)
                return True
        return False

    def dismiss(self, error: Exception) -> None:
        """Everybody who waits gets `error`."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
