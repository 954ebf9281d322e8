"""Owns `Line`: those who wait for a buffer, first come first served.

A line belongs to the thing that is short (a table of registered buffers, a buffer ring).  It knows
futures only by the function that makes them, so the floors below the event loop can have lines.
"""

import contextlib
from bisect import bisect
from collections import deque
from collections.abc import Callable
from operator import itemgetter
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

    def submit_queued(self) -> None:
        """Hand the kernel what is filled, so that it meets the registrations of now."""

    def draw_number(self) -> int:
        """A user_data for a tag, never used again; 0 where the caller numbers what it asks for."""

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` in the ring's thread; the one method that any thread may call."""

    def cancel_receives(self, group: object) -> None:
        """Cancel every receive in flight on a buffer group."""

    def groups_in_flight(self) -> set[int]:
        """The groups that requests in flight name."""


class Line(Generic[T]):
    """Waiters in the order of their tickets.  What one was handed and could not take goes to `returned`."""

    def __init__(self, new_future: "Callable[[], asyncio.Future[T]]", returned: Callable[[T], object]) -> None:
        self._new_future = new_future
        self._returned = returned
        self._tickets = 0
        self.waiting: deque[tuple[int, asyncio.Future[T], object, bool]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def draw_ticket(self) -> int:
        """A place behind all that were drawn before; who comes back with it is as far ahead as it was."""
        self._tickets += 1
        return self._tickets

    def join(
        self, ticket: int, owner: object, *, content: bool = False
    ) -> "tuple[int, asyncio.Future[T], object, bool]":
        """Stand in line; whoever does not want to wait any more leaves, see `leave()`.

        `content` is who takes a substitute, too.
        """
        entry = (ticket, self._new_future(), owner, content)
        if not self.waiting or self.waiting[-1][0] < ticket:
            self.waiting.append(entry)
        else:
            self.waiting.insert(bisect(self.waiting, ticket, key=itemgetter(0)), entry)
        return entry

    async def wait(self, ticket: int | None = None, owner: object = None, *, content: bool = False) -> T:
        """Wait to be handed something."""
        entry = self.join(self.draw_ticket() if ticket is None else ticket, owner, content=content)
        turn = entry[1]
        try:
            return await turn
        except BaseException:
            if entry in self.waiting:
                self.waiting.remove(entry)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._returned(turn.result())  # handed over and cancelled in the same turn of the loop
            raise

    def leave(self, turn: "asyncio.Future[T]") -> None:
        """Whoever joined and does not want to wait any more leaves, and with it the place."""
        turn.cancel()
        for entry in self.waiting:
            if entry[1] is turn:
                self.waiting.remove(entry)
                break

    def hand(self, thing: T) -> bool:
        """Hand `thing` to the first who still waits; False if there is nobody, or the loop is closed."""
        while self.waiting:
            turn = self.waiting.popleft()[1]
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(thing)
                return True
        return False

    def first_content(self) -> "asyncio.Future[T] | None":
        """Take the first who takes a substitute out of the line; None if there is nobody."""
        for entry in self.waiting:
            if entry[3] and not entry[1].done() and not entry[1].get_loop().is_closed():
                self.waiting.remove(entry)
                return entry[1]
        return None

    def evict(self, belongs: Callable[[Any], bool], error: Exception) -> int:
        """Those whose owner `belongs` get `error`; returns how many there were."""
        evicted = [entry for entry in self.waiting if belongs(entry[2])]
        for entry in evicted:
            self.waiting.remove(entry)
            _refuse(entry[1], error)
        return len(evicted)

    def dismiss(self, error: Exception) -> None:
        """Everybody who waits gets `error`."""
        while self.waiting:
            _refuse(self.waiting.popleft()[1], error)


def _refuse(turn: "asyncio.Future[Any]", error: Exception) -> None:
    if not turn.done():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will hear of it
            turn.set_exception(error)


def wake(turn: "asyncio.Future[Any]", result: object = None) -> None:
    """Resolve what somebody waits for, unless nobody does any more."""
    if not turn.done():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            turn.set_result(result)
