"""Owns `Taker` and `Takers`: what arrives is taken by a callback, without a task, a future, or a hop through the loop.

How this fits together

1. `Receiving.arrived()` only notes the taker of what came: no code of the user runs within a turn, while completions
   are being delivered.  Right after the turn, in the same callback of the loop, `Takers.call()` calls all of them.
2. What they ask for meanwhile (an echo's sends) schedules nothing: one more turn follows them.  So what a wake-up of
   the loop brings is received, answered and submitted before the loop looks at its descriptors again.
3. A chunk is copied out of its buffer, and the buffer goes back at once.  What comes while a taker is paused makes it
   stop the kernel's receive, and is kept in memory of its own until it goes on: one who does not read holds no buffer
   of the group, and no more bytes than the kernel brings at once (see Receiving's high mark).
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._multishot import Receiving
    from aiouring._turns import Turns

_release = lib.au_group_release
_SHIFT = lib.AU_CQE_BUFFER_SHIFT
_ID_MASK = lib.AU_BUFFER_ID_MASK


#: Bytes handed over, to one or many, after which a turn comes in between: what has been answered by then is sent, and
#: its memory is free for what follows, and warm.  Without it all that came at once was copied to fresh pages.
_AT_ONCE = 64 * 1024


class Takers(deque[Callable[[], object]]):
    """Those for whom something came in a turn; each is called once for each time it is in here."""

    def __init__(self, turns: "Turns") -> None:
        super().__init__()
        self._turns = turns
        self.taken = 0  # bytes, since the last turn

    def call(self) -> None:
        """Call all who are here now, then take a turn for what they asked for.  Not within a turn."""
        turns = self._turns
        asked, turns._scheduled = turns._scheduled, True
        try:
            for _ in range(len(self)):
                self.popleft()()
                if self.taken > _AT_ONCE and not turns.ring.closed:
                    self.taken = 0
                    turns._turn(0)
        except BaseException:
            turns._scheduled = asked
            turns.ask_for_turn()  # for the others
            raise
        turns._scheduled = asked
        self.taken = 0
        if not turns.ring.closed:
            turns._turn(0)
        if self:
            turns.ask_for_turn()


def _nothing(*_: object) -> None:
    """Nobody is told."""


class Taker:
    """Takes what one `Receiving` brings, in the place of a reader.

    Args:
        receiving: nobody else reads from it.
        ended: called once at the end of the stream, with what ended it or None.
        failed: called with what `received` raised.
    """

    __slots__ = (
        "_exporters",
        "_held",
        "_raw_group",
        "_receiving",
        "_told",
        "ended",
        "failed",
        "paused",
        "received",
        "stopped",
    )

    #: Called with the bytes of each chunk.
    received: Callable[[bytes], object]

    def __init__(
        self,
        receiving: "Receiving",
        ended: Callable[[Exception | None], object],
        failed: Callable[[BaseException], object],
    ) -> None:
        self._receiving = receiving
        self._raw_group, self._exporters = receiving.group.raw, receiving.group.arena.exporters
        self._held: deque[bytes] | None = None  # an empty one would cost each idle connection 600 bytes
        self._told = False  # of the end
        self.ended = ended
        self.failed = failed
        self.paused = self.stopped = False

    def start(self, take: Callable[[], object]) -> None:
        """Have `take`, which calls `take()`, called when something comes; what is there is handed over soon."""
        self._receiving.taker = take
        self.take_soon()

    def take(self) -> None:
        """Hand over what there is, until there is no more, or no more is wanted, or a turn is due first."""
        receiving = self._receiving
        arrivals, takers = receiving._arrivals, receiving._driver.takers
        while arrivals or self._held or receiving._early:
            if self.paused or self.stopped:
                self._hold()
                return
            try:
                if self._held:
                    self.received(self._held.popleft())
                else:
                    self.received(self._pop())
            except (KeyboardInterrupt, SystemExit):
                self.take_soon()  # the rest
                raise
            except BaseException as error:
                self.failed(error)
            if takers.taken > _AT_ONCE and receiving.taker is not None and not receiving._driver.closing:
                takers.append(receiving.taker)  # for the rest, or for the end; a ring that is closing has no such time
                return
        if self.paused or self.stopped:
            return
        if receiving.resting:
            receiving.resting = False
            receiving._arm()
        if receiving.over and not self._told:
            self._told = True
            self.ended(receiving._failure)

    def take_soon(self) -> None:
        """Have `take()` called although nothing came."""
        receiving = self._receiving
        if receiving.taker is not None:
            receiving._driver.takers.append(receiving.taker)
            receiving._driver.ask_for_turn()

    def go_on(self) -> None:
        """Not paused any more: take again, soon.  The kernel's request goes on when what is kept here is gone."""
        self.paused = False
        self.take_soon()

    def keep(self, rest: bytes) -> None:
        """What `received` did not take of its chunk is handed over again, as the next."""
        self._held = self._held or deque()
        self._held.appendleft(rest)

    def stop(self) -> None:
        """Take nothing any more: what is here, and what the kernel still brings, is nobody's and holds no buffer."""
        self.stopped = True
        self._receiving.taker = self._receiving.taker or self.take  # also where it was never started
        self._rest()
        self.take_soon()

    def forget(self) -> None:
        """Whoever was told is not told any more; without this, it would be kept until the next garbage collection."""
        self.received = self.ended = self.failed = _nothing
        self._receiving.taker = None

    def _pop(self) -> bytes:
        """A copy of the next chunk; its buffer goes back to the group."""
        receiving = self._receiving
        if receiving._early:
            with receiving._early.popleft() as chunk:
                return bytes(chunk.view)
        result, flags = receiving._arrivals.pop(0)
        if not receiving.armed and len(receiving._arrivals) <= receiving._low:
            receiving._arm()
        number = flags >> _SHIFT
        receiving._driver.takers.taken += result if flags else len(result)
        if not flags or number > _ID_MASK:  # private memory, or a part that does not begin its buffer
            with receiving._lend(number, result) if flags else result as chunk:
                return bytes(chunk.view)
        data: bytes = self._exporters[number][:result]
        if _release(self._raw_group, number) < 0:  # for the turn that follows to publish
            receiving.group.take_back(number)  # raises
        return data

    def _hold(self) -> None:
        """Nobody wants what came: keep a copy, and let the buffers go."""
        receiving = self._receiving
        self._rest()  # first: whoever takes from the queue arms the receive again
        held = self._held = self._held or deque()
        while receiving._arrivals or receiving._early:
            held.append(self._pop())
        if self.stopped:
            self._held = None

    def _rest(self) -> None:
        """End the kernel's request, for now.  What it still brings comes here."""
        receiving = self._receiving
        receiving.resting = True
        if receiving.armed and not receiving._stopping and not receiving.closing:
            receiving._stopping = True
            receiving._driver.cancel_soon(receiving)
