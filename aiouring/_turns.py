"""Owns `Turns`: when the ring submits and when it drains; the half of the driver that meets the event loop.

A turn is asked for by whoever queued something (`ask_for_turn`: one `call_soon` per turn of the loop), or by
the ring's eventfd.  It is one C call (`au_ring_turn`): publish returned buffers, submit, drain, empty the
eventfd, look again.  What completed is delivered as a flat list of integers, and resolves futures; no code of
the user runs in here.

A KeyboardInterrupt can strike between any two lines.  Delivery is therefore idempotent: the batch stays in C
memory until it has been walked through, and the walk goes on where it was interrupted.  (What asyncio itself
loses when it is interrupted between taking a callback off its queue and calling it, is lost.  Its Runner turns
Ctrl-C into a cancellation, and never gets there.)
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from operator import length_hint
from typing import TYPE_CHECKING

from aiouring._errors import failure
from aiouring._line import Line
from aiouring._request import Leftovers, Request
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._registry import Registry
    from aiouring._ring import CoreRing

log = logging.getLogger("aiouring")

# A refused enter() is tried again after 1, 2, 4 ... 250 ms; after this many times in a row the ring is broken.
_TRANSIENT = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM)
_RETRIES_MAX = 16
_FIRST_BACKOFF = 0.001
_LONGEST_BACKOFF = 0.25


class Turns:
    """A ring's requests in flight, and the turns that move them on."""

    def __init__(self, ring: "CoreRing", registry: "Registry", loop: asyncio.AbstractEventLoop) -> None:
        self.ring = ring
        self.registry = registry
        self.loop = loop
        self.inflight: dict[int, Request] = {}
        self.leftovers = Leftovers()
        self.closing = False
        self._usable = True
        self.broken: OSError | None = None
        self._groups = registry.groups
        self.strays = 0
        self._raw = ring.raw
        self._events = ring.raw.events
        self._queued: list[Request] = []  # with a file object, since the last submission
        self._cancels_due: list[Request] = []
        self._scheduled = False
        self._position = 0
        self._undelivered = False
        self._retries = 0
        self._retry: asyncio.TimerHandle | None = None
        self._room: Line[None] = Line(loop.create_future, lambda _: self._make_room())
        self._emptied: asyncio.Future[None] | None = None
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

    def ask_for_turn(self) -> None:
        """Take a turn before the loop sleeps."""
        if self._scheduled:
            return
        if not self.ring.closed:
            self._scheduled = True
            try:
                self.loop.call_soon(self._flush)
            except BaseException:
                self._scheduled = False
                if not self.loop.is_closed():
                    raise

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` in the loop's thread; any thread may ask.  In a fork's child there is nothing to call."""
        if lib.au_ring_check(self._raw) == lib.AU_FORKED:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody needs it any more
            self.loop.call_soon_threadsafe(what)

    def _flush(self) -> None:
        self._scheduled = False
        if not self.ring.closed:
            self._turn(0)

    def _wake(self) -> None:
        if not self.ring.closed:
            self._turn(1)

    def _turn(self, woken: int) -> None:
        try:
            if self._undelivered:
                self._deliver(self._raw.ready)
            if self._queued:
                self._check_files()
            self._position = 0
            self._undelivered = True
            code = lib.au_ring_turn(self._raw, woken)
            if code > 0:
                self._deliver(code & ~lib.AU_AGAIN)
                if code & lib.AU_AGAIN:
                    self.ask_for_turn()
            self._undelivered = False
        except BaseException:
            self.ask_for_turn()
            raise
        if code < 0:
            self._refused(code)
        elif not code & lib.AU_AGAIN or not lib.au_ring_unsubmitted(self._raw):
            self._queued.clear()
            self._retries = 0
            if self._room.waiting:
                self._make_room()
        else:
            self._queued = [request for request in self._queued if not request.ended]
        if self._cancels_due:
            self._cancel_again()
        for group in self._groups.values():
            if group.waiting:
                group.serve()

    def _make_room(self) -> None:
        """Call as many from the line as the submission queue has entries."""
        for _ in range(self.ring.entries):
            if not self._room.hand(None):
                break

    def _check_files(self) -> None:
        """Disarm what is queued on a file that was closed since: its number may be another file's by now."""
        for request in self._queued:
            try:
                if request.file.fileno() == request.fd:
                    continue
            except ValueError:
                pass  # a closed file object
            lib.au_ring_disarm(self._raw, request.user_data)

    def _deliver(self, count: int) -> None:
        """Complete the requests of the batch that lies in C memory, from `_position` on."""
        values = ffi.unpack(self._events, 3 * count)
        inflight = self.inflight
        rest = iter(values[self._position :])
        try:
            for user_data, result, flags in zip(rest, rest, rest, strict=True):
                request = inflight.get(user_data)
                if request is None:
                    self.strays += user_data != 0
                    continue
                request.result = result
                request.flags = flags
                waiter = request.waiter
                if waiter is None:
                    self._end(request)
                    self._unclaimed(request)
                    continue
                try:  # noqa: SIM105 - suppress() costs more than all the rest of this loop
                    waiter.set_result(result)
                except asyncio.InvalidStateError:
                    pass  # cancelled: its task will look at the request
                request.ended = True
                if request.lease is not None:
                    self._end(request)
                else:
                    del inflight[user_data]  # last: an interrupted step is taken again
        except BaseException:
            self._position = max(0, 3 * count - length_hint(rest) - 3)
            raise
        self._position = 3 * count
        if self._emptied is not None and not inflight and not self._emptied.done():
            self._emptied.set_result(None)

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

    def _cancel_again(self) -> None:
        due, self._cancels_due = self._cancels_due, []
        for request in due:
            if not request.ended:
                self._cancel(request)

    def _cancel(self, request: Request) -> None:
        """Queue a cancel for `request`; its own completion (user_data 0) is ignored."""
        if self.broken or self.ring.closed:
            return
        arguments = (lib.AU_OP_ASYNC_CANCEL, -1, 0, request.user_data, 0, 0, 0)
        code = lib.au_prepare(self._raw, 0, *arguments)
        if code == lib.AU_FULL:
            self._turn(0)
            code = lib.au_prepare(self._raw, 0, *arguments)
        if code == lib.AU_FULL:
            self._cancels_due.append(request)  # the next turn tries again
        self.ask_for_turn()

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
                delay = min(_FIRST_BACKOFF * 2**self._retries, _LONGEST_BACKOFF)
                self._retries += 1
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
        for request in self.inflight.values():
            waiter = request.waiter
            request.waiter = None
            request.result = -(error.errno or errno.EIO)
            if request.lease is not None:
                request.lease.abandoned = True
            if waiter is not None and not waiter.done():
                waiter.set_result(request.result)
        self._dismiss(OSError(error.errno, error.strerror))
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _dismiss(self, error: Exception) -> None:
        """Whoever waits in a line gets `error`."""
        self._room.dismiss(error)
        self.registry.dismiss(error)
