"""Owns `Shortage`: what a buffer ring does for receivers that find it empty: they wait, are refused, or fall back.

How this fits together

1. When the kernel finds the group empty it ends the receive with ENOBUFS; the data stays in the socket.  The receiver
   joins the line.  After each turn `serve()` calls as many from the line as the kernel has buffers; they arm their
   receives again.  One whose socket has no data takes no buffer, so the next turn calls the next in line; one that
   finds the group empty again goes back to the head.  Every step shortens the line or waits for a release, so nothing
   spins and nobody starves.
2. A newcomer joins the line when there is one, rather than overtake it.
3. A read from a file takes its buffer when it is submitted, not when data is there, and holds it while the disk works
   (KERNEL.md C5).  Our count of the kernel's buffers is too high by those, so `serve()` asks the kernel for its own:
   else those in line would be called, refused and called again for as long as the disk takes.
4. A group that may grow does so when somebody is in line and the kernel has nothing, or when many were refused since
   the last turn (a thousand connections that share half as many buffers: to be refused costs as much as to receive),
   by as many buffers as there are, and no more than GROWTH_STEP, in each turn.  So it grows to what its receivers hold
   at once, and nobody is refused, or falls back, before it has all that it may have.  The addresses of all buffers were
   reserved at the registration and the kernel's ring has room for them; memory that nobody has written to is not there
   yet.
5. Who may fall back ("content" in the line's words) takes a private buffer in place of one of the group's, see
   `_private_buffers`.  It joins the line only while all of those are out, and is handed the first that comes back,
   unless a buffer of the group is there before.  So what is handed over is None, go and ask the group, or the lease.
"""

from typing import TYPE_CHECKING, Literal, TypeVar

from aiouring._errors import BuffersExhaustedError, RingClosedError
from aiouring._lease import Arena, Home
from aiouring._line import Attendant, Line, wake
from aiouring._private_buffers import PrivateBuffers
from aiouring._ring import CoreRing
from aiouring._uring import lib
from aiouring._watch import Watch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiouring._buffer_ring import ProvidedBuffer
    from aiouring._uring import CGroup

#: How many buffers a group grows by at once: to make one takes a microsecond.
GROWTH_STEP = 256

Lent = TypeVar("Lent", bound="ProvidedBuffer")

OnEmpty = Literal["wait", "raise", "fallback"]


class Shortage(Home):
    """The half of `BufferRing` that deals with those for whom there is no buffer."""

    raw: "CGroup"
    group_id: int
    #: Makes what stands for a buffer, or a part of one, in a caller's hands.
    lease: "Callable[[Home, Arena, int, int], ProvidedBuffer]"

    def __init__(
        self,
        ring: CoreRing,
        attendant: Attendant,
        kind: "type[ProvidedBuffer]",
        count: int,
        size: int,
        on_empty: OnEmpty,
    ) -> None:
        super().__init__(attendant)
        if on_empty not in ("wait", "raise", "fallback"):
            raise ValueError(f"on_empty={on_empty!r} is none of 'wait', 'raise' and 'fallback'")
        self.on_empty: OnEmpty = on_empty
        self._kind = kind
        self.private = PrivateBuffers(ring, attendant, size, count, self._private_returned)
        self._line: Line[ProvidedBuffer | None] = Line(attendant.new_future, self.decline)
        self.waiting = self._line.waiting  # truthy while somebody waits for a buffer
        self._starved = 0
        self._growths = 0
        self._watch: Watch | None = None
        self.enobufs = self._refused = 0

    @property
    def registered(self) -> bool:
        """Whether the kernel still has the group."""
        return bool(self.raw.registered)

    async def wait_in_line(
        self, ticket: int, owner: object, *, on_empty: OnEmpty | None, refused: bool
    ) -> "ProvidedBuffer | None":
        """Wait until it makes sense to arm a receive (again).

        Args:
            ticket: the place in the line, from `draw_ticket()`; the same when the receiver comes back.
            owner: the receiver's descriptor, and the object that it was named by or None; for `evict()`.
            on_empty: overrides the group's own policy.
            refused: the kernel just said ENOBUFS.

        Returns:
            A private buffer to receive into, without waiting for data; None where the group may have one.
        """
        self.enobufs += refused
        policy = on_empty or self.on_empty
        if (spare := self.draw_private(policy)) is not None:
            return spare
        self._admit(policy)
        return await self._line.wait(ticket, owner, content=policy == "fallback")

    def join_line(self, ticket: int, owner: object, policy: OnEmpty) -> "asyncio.Future[ProvidedBuffer | None]":
        """Wait as `wait_in_line()` does, by a future, where `draw_private()` has nothing."""
        self._admit(policy)
        return self._line.join(ticket, owner, content=policy == "fallback")[1]

    def leave_line(self, turn: "asyncio.Future[ProvidedBuffer | None]") -> None:
        """Whoever joined the line does not wait any more."""
        self._line.leave(turn)

    def _admit(self, policy: OnEmpty) -> None:
        """Refuse who would wait for nothing, or does not want to wait."""
        self.check_registered()
        if self._watch is not None:
            self._watch.look()
        if policy == "raise" and not self._may_grow():
            raise BuffersExhaustedError(
                f"all {self.raw.count} buffers of group {self.group_id} are in use ({self.raw.lent} lent, "
                f"{len(self._line)} receivers waiting): release some, register more, or use on_empty='wait'"
            )
        self._starved += 1
        self._attendant.ask_for_turn()  # a buffer may have come back before this one joined

    def check_registered(self) -> None:
        """Raise where the kernel does not have the group any more."""
        if not self.registered:
            raise RingClosedError(f"buffer ring {self.group_id} has been unregistered")

    def draw_ticket(self) -> int:
        """A place in the line, behind all that were drawn before."""
        return self._line.draw_ticket()

    def evict(self, number: int, file: object, error: Exception) -> int:
        """Whoever is in line for a file gets `error`; returns how many there were.

        One of the two sides may know the file by its number only; two objects with one number are two files.
        """
        return self._line.evict(lambda owner: owner[0] == number and (file is None or owner[1] in (None, file)), error)

    def dismiss(self, error: Exception) -> None:
        """Whoever waits for a buffer gets `error`."""
        self._line.dismiss(error)

    def serve(self) -> None:
        """Call from the line as many as the kernel has buffers; grow if that is none, or few."""
        buffers = self.raw.with_kernel
        if buffers and (head := lib.au_group_head(self.raw)) >= 0:  # before Linux 6.8 it cannot be known
            buffers = (self.raw.tail - head) % 65536
        for _ in range(buffers):
            if not self._line.hand(None):
                break
        refused, self._refused = self.enobufs - self._refused, self.enobufs  # since this was here last
        buffers += self.raw.unpublished
        if ((self.waiting and not buffers) or refused > max(1, buffers // 16)) and self._may_grow():
            self.grow(min(self.raw.count, self.raw.capacity - self.raw.count, GROWTH_STEP))

    def _may_grow(self) -> bool:
        return self.raw.count < self.raw.capacity and self.registered

    def grow(self, count: int) -> None:
        """Add `count` buffers."""
        raise NotImplementedError

    def decline(self, spare: "ProvidedBuffer | None") -> None:
        """What the line handed over is not wanted any more: the next is called."""
        if spare is None:
            self.serve()
        else:
            spare.release()

    # ---- who holds them ------------------------------------------------------------------------

    @property
    def held_too_long(self) -> float | None:
        """Seconds after which a lent buffer is reported, once, by a warning of the logger "aiouring"; None is never.

        The warning says where the buffer was received.  There is no timer: it comes with the next receive, with one
        that finds the group empty, with `statistics()`, or when the buffer is given back.  In asyncio's debug mode this
        is 10 seconds from the start, else None.  Buffers that are lent already when it is set are not known.
        """
        return None if self._watch is None else self._watch.seconds

    @held_too_long.setter
    def held_too_long(self, seconds: float | None) -> None:
        """Watch those that are lent from now on, or none."""
        own = vars(self)  # that of the class is what counts without
        if seconds is None:
            self._watch = None
            own.pop("lease", None)
            own.pop("take_back", None)
        elif not seconds > 0:
            raise ValueError(f"held_too_long={seconds} is not a number of seconds above 0, or None")
        elif self._watch is not None:
            self._watch.seconds = seconds
        else:
            self._watch = Watch(self.group_id, self.lease, self.take_back, self._held_up, seconds)
            own["lease"] = self._watch.lend
            own["take_back"] = self._watch.take_back

    def noted(self, lease: "Lent") -> "Lent":
        """The same lease, which was not made by `lease()`, as a message; somebody may want to know who has it."""
        if self._watch is not None:
            self._watch.note(lease.number, lease)
        return lease

    # ---- private buffers -----------------------------------------------------------------------

    def draw_private(self, policy: OnEmpty) -> "ProvidedBuffer | None":
        """A private buffer, lent, where the policy allows it and one may be had."""
        self.check_registered()
        if policy != "fallback" or self._may_grow():
            return None
        drawn = self.private.draw()
        return drawn and self._kind(self.private, *drawn, self.private.size)

    def _private_returned(self) -> None:
        """Hand what came back to the first in line who takes it."""
        while self.waiting and self.private.available and (turn := self._line.first_content()) is not None:
            drawn = self.private.draw()
            assert drawn is not None
            wake(turn, self._kind(self.private, *drawn, self.private.size))
