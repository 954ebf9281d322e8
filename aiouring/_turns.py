"""Owns `Turns`: when the ring submits and when it drains; the half of the driver that meets the event loop.

A turn is asked for by whoever queued something (`ask_for_turn`: one `call_soon` per turn of the loop), or by the ring's
eventfd.  It is one C call (`au_ring_turn`): publish returned buffers, submit, drain, empty the eventfd, look again.
What completed is delivered as a flat list of integers, and resolves futures; no code of the user runs in here.  A turn
that delivered something asks for the next at once: it comes behind the tasks that were woken, in the same turn of the
loop.  (Echo, one connection: 1.85 epoll_wait() a message instead of 2.97.)

All that is asked for in a turn of the loop is submitted in one piece, which is the least work.  But a disk that has
answered all there was is idle until then.  So where EARLY requests on files or more were handed over and nothing was
answered at once, the next are handed over EARLY at a time.  (O_DIRECT, 4 KiB, 32 at a time, reads per second divided by
fio's: 0.86 by 16, 0.88 by 8, 0.89 by 4, 0.94 by 2, for a sixth more CPU time than by 8, which idles there anyway: where
the disk is so fast that the CPU does not, there are answers at once.)

A KeyboardInterrupt can strike between any two lines.  Delivery is therefore idempotent: the batch stays in C memory
until it has been walked through, and the walk goes on where it was interrupted.  (What asyncio itself loses when it is
interrupted between taking a callback off its queue and calling it, is lost.  Its Runner's Ctrl-C never gets there.)
"""

import asyncio
import contextlib
import errno
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiouring._errors import RingClosedError, failure
from aiouring._inbox import FIRST_NAME, Inbox
from aiouring._line import Line
from aiouring._objects import TurnsRow
from aiouring._request import Leftovers, Request
from aiouring._takers import Takers
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._registry import Registry
    from aiouring._ring import CoreRing
    from aiouring._sending import Sending

log = logging.getLogger("aiouring")

EARLY, _NEVER = 2, 1 << 62

# A refused enter() is tried again after 1, 2, 4 ... 250 ms; after this many times in a row the ring is broken.
_TRANSIENT = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM)
_RETRIES_MAX = 16
_FIRST_BACKOFF = 0.001
_LONGEST_BACKOFF = 0.25


class Turns(TurnsRow):
    """A ring's requests in flight, and the turns that move them on."""

    # Here, because the 31st attribute of an object makes all of them slower: what is set seldom, if ever.
    inbox: Inbox | None = None
    closing = False
    broken: OSError | None = None
    strays = 0
    _retry: asyncio.TimerHandle | None = None

    def __init__(self, ring: "CoreRing", registry: "Registry", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, ring.raw, int(ffi.cast("uintptr_t", ring.raw)))
        self.ring = ring
        self.registry = registry
        self.leftovers = Leftovers()
        # Atomic: a caller in the wrong thread, whom only the C core refuses, must not draw another request's number
        # and then take that request, and with it the memory it owns, out of the table.
        self.next_number = itertools.count(1).__next__
        self._usable = True
        self._groups, self._retiring = registry.groups, registry.retiring
        self._queued = []  # with a file object, since the last submission
        self._early = _NEVER  # how many of those are submitted at once
        self.due = []  # what comes before the next submission, as encrypting what was written
        self._cancels_due = []  # numbers of requests whose cancel found the queue full
        self._starts_due = deque()  # as many started
        self.senders: dict[int, Sending] = {}  # whose requests the C core knows, by the number of their events
        self.takers = Takers(self)
        self._room: Line[None] = Line(loop.create_future, lambda _: self._make_room())
        self._room_wanted = self._room.waiting
        self.new_future = loop.create_future
        ring.enable()
        self._watch()
        ring.attended = True

    def _watch(self) -> None:
        event_fd = self.ring.register_eventfd()
        try:
            self.loop.add_reader(event_fd, self._wake)
        except BaseException as error:
            self.ring.unregister_eventfd()
            if isinstance(error, NotImplementedError):
                raise RuntimeError(
                    f"{type(self.loop).__name__} cannot watch file descriptors (no add_reader); "
                    "run on asyncio's selector loop or on uvloop"
                ) from None
            raise

    @property
    def idle(self) -> bool:
        """Whether the kernel has nothing of this ring's."""
        return not self.inflight and not self._raw.sends_in_flight

    # ask_for_turn() is the row's, and so is _turn(), which calls the following where there is reason to; _flush() and
    # _wake() take a turn and then call the takers.

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` in the loop's thread; any thread may ask.  In a fork's child there is nothing to call."""
        if lib.au_ring_check(self._raw) == lib.AU_FORKED:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody needs it any more
            self.loop.call_soon_threadsafe(what)

    def _prepare(self) -> None:
        """What comes before a turn, where there is any of it."""
        if self._undelivered:
            self._deliver(self._raw.ready)
        if self.due:
            self._do_what_is_due()
        if self._queued:
            self._check_files()

    def _interrupted(self) -> None:
        """Something was raised in a turn: take another."""
        self.ask_for_turn()
        if self._undelivered:
            # At once: a reader who was woken and ran first would have taken what would then come again.
            self._deliver(self._raw.ready)

    def _settle(self, code: int) -> None:
        """What follows a turn that ended with `code`, where there is any of it."""
        if self._emptied is not None and self.idle and not self._emptied.done():
            self._emptied.set_result(None)
        if code < 0:
            self._refused(code)
        elif not code & lib.AU_AGAIN or not lib.au_ring_unsubmitted(self._raw):
            if len(self._queued) >= EARLY:
                self._early = _NEVER if code else EARLY
            self._queued.clear()
            self._retries = 0
            if self._room.waiting:
                self._make_room()
        else:
            self._queued[:] = [request for request in self._queued if not request.ended]
        if code >= 0 and (self._cancels_due or self._starts_due):  # else there is no room yet
            self._fill_what_is_due()
        for group in self._groups.values():
            if group.waiting:
                group.serve()

    def _make_room(self) -> None:
        """Call as many from the line as the submission queue has entries."""
        for _ in range(self.ring.entries):
            if not self._room.hand(None):
                break

    def _do_what_is_due(self) -> None:
        scheduled, self._scheduled = self._scheduled, True  # this is the turn that it would ask for
        try:
            while self.due:
                self.due.pop()()
        finally:
            self._scheduled = scheduled

    def _check_files(self) -> None:
        """Disarm what is queued on a file that was closed since: its number may be another file's by now."""
        for request in self._queued:
            try:
                if request.file.fileno() == request.fd:
                    continue
            except Exception:  # noqa: S110
                pass  # a closed file object, or one that cannot say: others must not suffer for it
            lib.au_ring_disarm(self._raw, request.user_data)

    def _of_a_sender(self, number: int) -> None:
        """An event that is no request's: a sender's, the tag of a retiring buffer, a message, or nobody's."""
        sender = self.senders.get(number)
        if sender is not None:
            sender.arrived()
        elif (retired := self._retiring.get(number)) is not None:
            retired.arrived(number)
            del self._retiring[number]
        elif not (FIRST_NAME <= number < 0 and self.inbox is not None and self.inbox.announced(number)):
            self.strays += number != 0

    def _ended_alone(self, request: Request, result: int, flags: int) -> None:
        """The final completion of a request that was detached."""
        request.result = result
        request.flags = flags
        self._end(request)
        self._unclaimed(request)

    def _end(self, request: Request) -> None:
        """The kernel is done with the request.  Taking these steps twice does no harm."""
        request.ended = True
        lease = request.lease
        if lease is not None and request.pinned:
            request.pinned = False
            lease.pins -= 1
            if lease.ended and not lease.pins:
                lease.unpinned()
        self.inflight.pop(request.user_data, None)

    def _fill_what_is_due(self) -> None:
        """The submission queue has room again: fill what found it full."""
        cancels = self._cancels_due[:]
        self._cancels_due.clear()
        for number in cancels:
            if number in self.inflight:
                self._cancel_number(number)
        for _ in range(len(self._starts_due)):
            request, prepare, arguments = self._starts_due.popleft()
            if self.inflight.get(request.user_data) is not request:
                continue
            del self.inflight[request.user_data]
            result, request.result = request.result, 0
            if result and request.arrived is not None:
                request.arrived(result, 0)  # it was cancelled before the kernel heard of it
            else:
                self._start_at_last(request, prepare, arguments)
        self.ask_for_turn()  # closing may have waited for these

    def _start_at_last(self, request: Request, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        try:
            request.check_file()
            self.start(request, prepare, *arguments)
        except (OSError, RuntimeError, ValueError) as error:
            request.ended = True
            request.failed(error)  # its file was closed meanwhile, say

    def cancel_soon(self, request: Request) -> None:
        """Queue a cancel for `request`; its own completion (user_data 0) is ignored."""
        if self.broken or self.ring.closed:
            return
        if self._starts_due and any(due[0] is request for due in self._starts_due):
            request.result = -errno.ECANCELED  # the kernel would look for it in vain
            self.ask_for_turn()
        else:
            self._cancel_number(request.user_data)

    def _cancel_number(self, number: int) -> None:
        if lib.au_prepare(self._raw, 0, lib.AU_OP_ASYNC_CANCEL, -1, 0, number, 0, 0, 0) == lib.AU_FULL:
            self._cancels_due.append(number)  # the next turn tries again
        self.ask_for_turn()

    def start(self, request: Request, prepare: Callable[..., int], *arguments: Any) -> None:
        """Fill `request`, which nobody awaits: its completions go to `request.arrived()`.

        Never takes a turn, so delivery itself may call this.  Raises what is wrong with the arguments.
        """
        if not self._usable:
            raise RingClosedError("the ring has been closed")
        request.user_data = user_data = self.next_number() | request.tag
        request.ended = False
        self.inflight[user_data] = request
        code = prepare(self._raw, user_data, *arguments)
        if code:
            self._not_filled(code, request, prepare, arguments)
        elif request.file is not None:
            self._queued.append(request)
        if not self._scheduled:
            self.ask_for_turn()

    def _not_filled(self, code: int, request: Request, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        if code != lib.AU_FULL:
            del self.inflight[request.user_data]
            request.ended = True
            raise failure(code)
        self._starts_due.append((request, prepare, arguments))

    def _unclaimed(self, request: Request) -> None:
        """The result is nobody's any more: the request knows what to do with it."""
        try:
            request.unclaimed(self.leftovers)
            request.let_go()
        except Exception as error:
            self.loop.call_exception_handler(
                {"message": f"aiouring could not dispose of the result of {request!r}", "exception": error}
            )

    def _refused(self, code: int) -> None:
        """enter() failed.  What is queued stays queued: try again soon, or give the ring up."""
        if -code in _TRANSIENT and self._retries < _RETRIES_MAX:
            if self._retry is None:  # a full queue may have asked in between: that is no try
                delay, self._retries = min(_FIRST_BACKOFF * 2**self._retries, _LONGEST_BACKOFF), self._retries + 1
                log.debug("io_uring_enter: %s; trying again in %.3f s", errno.errorcode.get(-code, code), delay)
                self._retry = self.loop.call_later(delay, self._try_again)
            return
        error = failure(code, "io_uring_enter")
        self._break(error if isinstance(error, OSError) else OSError(errno.EIO, str(error)))

    def _try_again(self) -> None:
        self._retry = None
        self._flush()

    def _break(self, error: OSError) -> None:
        """The ring is lost: everybody gets the error; nothing is freed, since the kernel may still write."""
        log.error("the ring is broken: %s", error)
        self.broken = error
        self._usable = False
        while lib.au_ring_withdraw(self._raw, ffi.new("uint64_t *")) > 0:
            pass  # what the kernel has not taken must not meet a descriptor that is somebody else's by then
        for request in self.inflight.values():
            waiter = request.waiter
            request.waiter = None
            request.result = -(error.errno or errno.EIO)
            if request.lease is not None:
                request.lease.abandoned = True
            if waiter is not None and not waiter.done():
                waiter.set_result(request.result)
            request.failed(OSError(error.errno, error.strerror))
        for sender in self.senders.values():
            sender.failed(error)
        self._dismiss(OSError(error.errno, error.strerror))
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _dismiss(self, error: Exception) -> None:
        """Whoever waits in a line gets `error`."""
        self._room.dismiss(error)
        self.registry.dismiss(error)
        if self.inbox is not None:
            self.inbox.close(error)
