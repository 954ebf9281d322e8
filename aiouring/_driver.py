"""Owns `Driver`: couples one `Ring` to one event loop; says when to submit and when to drain.

How this fits together

1. A verb makes a `Request` and calls `perform()`, which fills one submission entry and asks for a turn.  The
   first to ask in a turn of the loop schedules one `call_soon`; everything queued by then goes to the
   kernel in one system call.
2. A turn is one C call (`au_ring_turn`): publish returned buffers, submit, drain, empty the eventfd, look
   again.  Its completions come back as a flat list of integers; each resolves its request's future.  No
   code of the user runs in here.  What completed at once is delivered by the same turn.
3. When there is nothing to do the loop sleeps in its own poll, with the ring's eventfd among its readers.
   There is no timer and no thread.  A signal on the eventfd means "take a turn".
4. A cancelled await submits a cancel and waits for the request's own final completion before
   `CancelledError` leaves.  What the kernel cannot stop (a disk that hangs, a FUSE server that died) is
   waited for at most `cancel_timeout` seconds; then the request is *detached*: it stays in the table and
   keeps its memory until the kernel is done, and its result goes to `Request.unclaimed()`.
5. Closing: take nothing new, cancel everything, reap until the table is empty or `close_timeout` is over,
   then unregister, unmap, close.  What is left after the deadline goes to GRAVEYARD and is never freed.

A KeyboardInterrupt can strike between any two lines.  Delivery is therefore idempotent: the batch stays in
C memory until it has been walked through, and the walk goes on where it was interrupted.
"""

import asyncio
import contextlib
import errno
import logging
import warnings
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from operator import length_hint
from typing import Any, NoReturn

from aiouring._buffer_ring import BufferRing
from aiouring._errors import RingClosedError, WrongContextError, failure, kernel_error
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._request import Leftovers, Request, identify
from aiouring._ring import Ring
from aiouring._uring import ffi, lib

log = logging.getLogger("aiouring")

#: What the kernel may still write to although its ring is gone; kept for the life of the process.
GRAVEYARD: list[Any] = []

#: Every driver that is open, for whoever wants to know what is in flight (the tests' deadline does).
LIVE: "weakref.WeakSet[Driver]" = weakref.WeakSet()

_TRANSIENT = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM)
_RETRIES_MAX = 16
_FIRST_BACKOFF = 0.001
_LONGEST_BACKOFF = 0.25

# The numbers a refused request is explained with: the arguments of each au_prepare function, in order.
_ARGUMENTS = {
    lib.au_prepare: ("opcode", "fd", "offset", "address", "length"),
    lib.au_prepare_memory: ("opcode", "fd", "memory", "capacity", "start", "length", "offset"),
    lib.au_prepare_fixed: ("opcode", "fd", "table", "index", "start", "length", "offset"),
    lib.au_prepare_select: ("opcode", "fd", "group", "length", "offset"),
}


class Driver:
    """The coupling.  Private to the ring that made it."""

    def __init__(self, ring: Ring, loop: asyncio.AbstractEventLoop, cancel_timeout: float) -> None:
        self.ring = ring
        self.loop = loop
        self.cancel_timeout = cancel_timeout
        self.inflight: dict[int, Request] = {}
        self.leftovers = Leftovers()
        self.closing = False
        self._usable = True
        self.broken: OSError | None = None
        self.buffers: RegisteredBuffers | None = None
        self.groups: dict[int, BufferRing] = {}
        self.detached = 0
        self.strays = 0
        self._raw = ring.raw
        self._events = ring.raw.events
        self._numbers = 0
        self._queued: list[Request] = []  # with a file object, since the last submission
        self._cancels_due: list[Request] = []
        self._scheduled = False
        self._position = 0
        self._undelivered = False
        self._retries = 0
        self._emptied: asyncio.Future[None] | None = None
        self.new_future = loop.create_future
        ring.attended = True
        ring.enable()
        self._watch()
        LIVE.add(self)

    def _watch(self) -> None:
        event_fd = self.ring.register_eventfd()
        try:
            self.loop.add_reader(event_fd, self._wake)
        except NotImplementedError:
            self.ring.unregister_eventfd()
            raise RuntimeError(
                f"{type(self.loop).__name__} cannot watch file descriptors (no add_reader); "
                "run on asyncio's selector loop or on uvloop"
            ) from None

    # ---- requests ------------------------------------------------------------------------------

    async def perform(self, request: Request, prepare: Callable[..., int], *arguments: Any) -> int:
        """Submit `request` and wait for its final completion; returns its result.

        A negative result raises `OSError`, except `request.expected`, which is returned.
        """
        if not self._usable or (not self._scheduled and _get_running_loop() is not self.loop):
            self._refuse()  # the loop is asked for once per turn: in CPython 3.11 that is a system call (getpid)
        self._numbers = request.user_data = user_data = self._numbers + 1
        request.ended = False
        request.waiter = waiter = self.new_future()
        self.inflight[user_data] = request
        try:
            if request.lease is not None:
                request.lease.pins += 1
                request.pinned = True
            code = prepare(*((self._raw, user_data) + arguments))  # noqa: RUF005 - a list in between costs 5 %
            if code:
                self._fill_again(code, user_data, prepare, arguments)
            if request.file is not None:
                self._queued.append(request)
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._flush)
        except BaseException as error:
            self._not_started(request, error)
            raise
        try:
            result = await waiter
        except asyncio.CancelledError:
            await self._withdraw(request)
            raise
        except BaseException:
            self._detach(request)
            raise
        if result < 0 and result != -request.expected:
            return await self._failed(request, prepare, arguments)
        return result

    def check(self) -> None:
        """Raise unless this is the ring's loop and thread, and the ring is open."""
        if _get_running_loop() is not self.loop or not self._usable:
            self._refuse()

    def _not_started(self, request: Request, error: BaseException) -> None:
        """Something was raised while a request was being filled: undo it, or let it go on alone."""
        self._scheduled = False
        if self._raw.last_user_data == request.user_data:
            self._detach(request)  # it had been filled: an interrupt struck right afterwards
        else:
            self._end(request)
            request.let_go()
        if isinstance(error, OverflowError):
            raise ValueError(f"a number does not fit what the kernel takes: {error}") from None

    def _fill_again(self, code: int, user_data: int, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        """The entry was not filled.  If the queue was full, submit what it holds and try once more."""
        if code == lib.AU_FULL:
            self._turn(0)
            code = prepare(self._raw, user_data, *arguments)
        if code == lib.AU_FULL:
            raise kernel_error(errno.EBUSY, "the submission queue is full and the kernel takes no more")
        if code:
            numbers = dict(zip(_ARGUMENTS[prepare], arguments, strict=False))
            if prepare is lib.au_prepare_fixed:
                numbers["capacity"] = numbers["table"].size
            raise failure(code, "", **numbers)

    def _refuse(self) -> NoReturn:
        code = lib.au_ring_check(self._raw)
        if code in (lib.AU_FORKED, lib.AU_WRONG_THREAD):
            raise failure(code)
        if self.broken:
            raise OSError(self.broken.errno, self.broken.strerror)
        if self.closing:
            raise RingClosedError("the ring has been closed")
        raise WrongContextError(
            f"the ring belongs to another event loop ({self.loop!r}); make one AsyncRing per loop"
        )

    async def _failed(self, request: Request, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Turn a negative result into an exception; EAGAIN and EINTR are ours to deal with."""
        number = -request.result
        if self.broken:
            raise OSError(self.broken.errno, self.broken.strerror)
        if number not in (errno.EAGAIN, errno.EINTR):
            request.let_go()
            if self.closing and number == errno.ECANCELED:
                raise RingClosedError("the ring was closed while this was in flight")
            raise kernel_error(number)
        if number == errno.EAGAIN:
            identity = identify(request.fd)
            poll = Request(request.fd, request.file)
            how = 0 if request.file is not None else lib.AU_GUARD_FD
            await self.perform(poll, lib.au_prepare, lib.AU_OP_POLL_ADD, request.fd, 0, 0, 0, request.events, how)
            if identify(request.fd) != identity:
                raise kernel_error(errno.EBADF, "the file was closed while this waited")
        return await self.perform(request, prepare, *arguments)

    async def _withdraw(self, request: Request) -> None:
        """The awaiting task was cancelled: stop the request and wait until the kernel is done with it."""
        if not request.ended:
            request.waiter = self.new_future()
            self._cancel(request)
            timer = self.loop.call_later(self.cancel_timeout, self._detach, request)
            try:
                while request.waiter is not None and not request.ended:
                    try:
                        await request.waiter
                    except asyncio.CancelledError:
                        # We are leaving already; wait on, with a fresh future.
                        if request.waiter is not None:
                            request.waiter = self.new_future()
            except BaseException:
                self._detach(request)
                raise
            finally:
                timer.cancel()
        if request.ended:
            self._unclaimed(request)

    async def stop(self, requests: list[Request]) -> int:
        """Cancel `requests` and wait until the kernel is done with them; returns how many there were."""
        for request in requests:
            self._cancel(request)
        ends = [request.waiter for request in requests if request.waiter is not None]
        if ends:
            await asyncio.wait(ends, timeout=self.cancel_timeout)
        return len(requests)

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

    def _detach(self, request: Request) -> None:
        """Nobody waits any more; the request goes on and owns its memory."""
        if request.ended:
            return
        waiter, request.waiter = request.waiter, None
        self.detached += 1
        if request.lease is not None:
            request.lease.abandoned = True
        self._cancel(request)
        if waiter is not None and not waiter.done():
            waiter.set_result(0)

    def _unclaimed(self, request: Request) -> None:
        """The result is nobody's any more: the request knows what to do with it."""
        try:
            request.unclaimed(self.leftovers)
            request.let_go()
        except Exception as error:  # noqa: BLE001 - reported, and the rest of the batch goes on
            self.loop.call_exception_handler(
                {"message": f"aiouring could not dispose of the result of {request!r}", "exception": error}
            )

    # ---- turns ---------------------------------------------------------------------------------

    def ask_for_turn(self) -> None:
        """Take a turn before the loop sleeps."""
        if not self._scheduled and not self.ring.closed:
            self._scheduled = True
            try:
                self.loop.call_soon(self._flush)
            except BaseException:
                self._scheduled = False
                if not self.loop.is_closed():
                    raise

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` in the loop's thread; any thread may ask."""
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
        elif self._retries:
            self._retries = 0
        if self._cancels_due:
            self._cancel_again()
        for group in self.groups.values():
            if group.has_line:
                group.serve()

    def _check_files(self) -> None:
        """Disarm what was queued on a file that was closed since: its number may be another file's by now."""
        queued, self._queued = self._queued, []
        for request in queued:
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
                if waiter is None or request.pinned:
                    self._complete_slowly(request)
                    continue
                if not waiter.done():
                    waiter.set_result(result)
                request.ended = True
                del inflight[user_data]  # last: an interrupted step is taken again
        except BaseException:
            self._position = max(0, 3 * count - length_hint(rest) - 3)
            raise
        self._position = 3 * count
        if self._emptied is not None and not inflight and not self._emptied.done():
            self._emptied.set_result(None)

    def _complete_slowly(self, request: Request) -> None:
        """Complete a request that pins a lease, or that nobody awaits."""
        waiter = request.waiter
        if waiter is None:
            self._end(request)
            self._unclaimed(request)
        else:
            if not waiter.done():
                waiter.set_result(request.result)
            self._end(request)

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

    # ---- trouble -------------------------------------------------------------------------------

    def _refused(self, code: int) -> None:
        """enter() failed.  What is queued stays queued: try again soon, or give the ring up."""
        if -code in _TRANSIENT and self._retries < _RETRIES_MAX:
            delay = min(_FIRST_BACKOFF * 2**self._retries, _LONGEST_BACKOFF)
            self._retries += 1
            log.debug("io_uring_enter: %s; trying again in %.3f s", errno.errorcode.get(-code, code), delay)
            self.loop.call_later(delay, self.ask_for_turn)
            return
        error = failure(code, "io_uring_enter")
        self._break(error if isinstance(error, OSError) else OSError(errno.EIO, str(error)))

    def _break(self, error: OSError) -> None:
        """The ring cannot be used any more: everybody gets the error; the kernel may still write, so nothing is freed."""
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
        if self.buffers is not None:
            self.buffers.dismiss(error)
        for group in self.groups.values():
            group.dismiss(error)

    # ---- for the buffers -----------------------------------------------------------------------

    def cancel_receives(self, group: object) -> None:
        """Cancel every receive in flight on a buffer group."""
        for request in list(self.inflight.values()):
            if request.group is group:
                self._cancel(request)

    # ---- closing -------------------------------------------------------------------------------

    def stop_intake(self) -> None:
        """The ring is being closed: nothing new is taken."""
        self.closing = True
        self._usable = False

    async def close(self, timeout: float) -> None:
        """Cancel everything, reap it for at most `timeout` seconds, then let go of the ring."""
        self._dismiss(RingClosedError("the ring was closed while this waited for a buffer"))
        for request in list(self.inflight.values()):
            self._cancel(request)
        if self.inflight and not self.broken:
            self._emptied = self.new_future()
            timer = self.loop.call_later(timeout, self._give_up)
            try:
                await self._emptied
            finally:
                timer.cancel()
        self.let_go()

    def _give_up(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def let_go(self) -> None:
        """Unregister, unmap and close; whatever is still in flight is kept alive for ever."""
        self.stop_intake()
        LIVE.discard(self)
        if self.ring.closed:
            return
        if not self.loop.is_closed() and self.ring.raw.event_fd >= 0:
            self.loop.remove_reader(self.ring.raw.event_fd)
        if self.inflight:
            self._bury()
        else:
            with contextlib.suppress(OSError):  # a ring that is broken; closing it unregisters as well
                for group in self.groups.values():
                    group.unregister()
                if self.buffers is not None:
                    self.buffers.unregister()
        self.ring.close()
        self.groups.clear()
        self.buffers = None

    def _bury(self) -> None:
        """Keep for ever what the kernel may still write to, and say so."""
        kept = list(self.inflight.values())
        GRAVEYARD.append((kept, self.ring, self.buffers, list(self.groups.values())))
        for request in kept:
            waiter, request.waiter = request.waiter, None
            if waiter is not None and not waiter.done():
                request.result = -errno.ECANCELED
                waiter.set_result(request.result)
        warnings.warn(
            f"an AsyncRing was closed with {len(kept)} request(s) that the kernel would not stop; their memory is "
            f"kept until the process ends: {kept[:3]!r}",
            ResourceWarning,
            stacklevel=2,
        )
        self.inflight.clear()

    def abandon(self) -> None:
        """Close without a running loop: cancel, give the kernel one chance to finish, then let go."""
        self.stop_intake()
        if lib.au_ring_check(self._raw) == 0 and self.inflight and not self.broken:
            for request in list(self.inflight.values()):
                request.waiter = None
                self._cancel(request)
            while (code := lib.au_ring_turn(self._raw, 0)) > 0:
                self._position = 0
                self._deliver(code & ~lib.AU_AGAIN)
        self.let_go()
