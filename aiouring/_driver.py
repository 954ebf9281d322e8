"""Owns `Driver`: the life of a request, from the verb that makes it to its final completion, and the ring's end.

How this fits together

1. A verb makes a `Request` and calls `perform()`, which fills one submission entry and asks for a turn (see `_turns`).
   The first to ask in a turn of the loop schedules it; everything queued by then goes to the kernel in one system call
   or a few, and what completes at once is delivered by the same turn.
2. When there is nothing to do the loop sleeps in its own poll, with the ring's eventfd among its readers.  There is no
   timer and no thread.
3. A cancelled await submits a cancel and waits for the request's own final completion before `CancelledError` leaves.
   What the kernel cannot stop (a disk that hangs, a FUSE server that died) is waited for at most `cancel_timeout`
   seconds; then the request is *detached*: it stays in the table and keeps its memory until the kernel is done, and its
   result goes to `Request.unclaimed()`.
4. Closing: take nothing new, cancel everything, reap until the table is empty or `close_timeout` is over, then
   unregister, unmap, close.  What is left after the deadline goes to GRAVEYARD and is never freed: closing a ring does
   not stop what is running (KERNEL.md E1).
"""

import asyncio
import contextlib
import errno
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from aiouring._errors import RingClosedError, WrongContextError, errno_of, failure, kernel_error
from aiouring._insistence import Insistence
from aiouring._refusals import refusal
from aiouring._registry import Registry
from aiouring._request import Request, identify
from aiouring._ring import CoreRing
from aiouring._turns import Turns
from aiouring._uring import lib

#: What the kernel may still write to although its ring is gone; kept for the life of the process.
GRAVEYARD: list[Any] = []

#: Every driver that is open, for whoever wants to know what is in flight (the tests' deadline does).
LIVE: "weakref.WeakSet[Driver]" = weakref.WeakSet()


class Driver(Turns):
    """The coupling of one ring to one event loop.  Private to the ring that made it."""

    def __init__(self, ring: CoreRing, loop: asyncio.AbstractEventLoop, cancel_timeout: float) -> None:
        self.cancel_timeout = cancel_timeout
        self.detached = 0
        self._stopped: set[int] = set()  # requests that are being cancelled together with their file
        # The C core checks the thread and the process of each request; if this loop runs in this thread, it is the
        # running one.  (Asking asyncio for the running loop would be a system call, getpid, in CPython 3.11.)
        self._is_running = loop.is_running
        super().__init__(ring, Registry(self), loop)
        LIVE.add(self)

    async def perform(self, request: Request, prepare: Callable[..., int], *arguments: Any) -> int:
        """Submit `request` and wait for its final completion; returns its result.

        A negative result raises `OSError`, except `request.expected`, which is returned.
        """
        if not self._usable or not (self._scheduled or self._is_running()):
            self.refuse()
        request.user_data = user_data = self.next_number()
        request.ended = False
        request.waiter = waiter = self.new_future()
        self.inflight[user_data] = request
        try:
            if request.lease is not None:
                request.lease.pins += 1
                request.pinned = True
            code = prepare(*((self._raw, user_data) + arguments))  # noqa: RUF005 - a list in between costs 5 %
            if code:
                code = self._fill_again(code, user_data, prepare, arguments)
            if request.file is not None:
                self._queued.append(request)
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._flush)
        except BaseException as error:
            self._not_started(request, error)
            raise
        if code:
            return await self._perform_later(request, prepare, arguments)
        try:
            if request.file is not None and len(self._queued) >= self._early and not self._undelivered:
                self.submit_queued()
            result: int = await waiter
        except asyncio.CancelledError as error:
            await self._withdraw(request)
            request.cut_short(error)
            raise
        except BaseException as error:
            if request.ended:
                self._unclaimed(request)
            else:
                self._detach(request)
            request.cut_short(error)
            raise
        if result < 0 and result != -request.expected:
            return await self._failed(request, prepare, arguments)
        return result

    def check(self) -> None:
        """Raise unless this is the ring's loop and thread, and the ring is open."""
        self.check_context()
        if not self._usable:
            self.refuse()

    def check_context(self) -> None:
        """Raise unless this is the ring's loop, thread and process; the ring may be broken or closed."""
        code = lib.au_ring_check(self._raw)
        if code < 0 and code != lib.AU_CLOSED:
            raise failure(code)
        if not self._is_running():
            self._refuse_loop()

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

    def _fill_again(self, code: int, user_data: int, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """The entry was not filled.  If the queue was full, submit what it holds and try once more.

        Returns 0, or AU_FULL where the kernel takes nothing for the moment.
        """
        if code == lib.AU_UNTAGGED:  # before anything was filled
            request = self.inflight.pop(user_data)
            assert request.group is not None
            request.user_data = user_data = user_data | request.group.tag
            self.inflight[user_data] = request
            code = prepare(self._raw, user_data, *arguments)
        if code == lib.AU_FULL and not self._undelivered:  # a turn within another's delivery would deliver twice
            self._turn(0)
            if self.takers:
                self.ask_for_turn()  # nobody's code runs within a verb
            code = prepare(self._raw, user_data, *arguments)
        if code and code != lib.AU_FULL:
            raise refusal(code, prepare, arguments)
        return code

    async def _perform_later(self, request: Request, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """The queue is full and the kernel takes nothing for the moment: wait in line until it does."""
        with self._between_tries(request):
            self._end(request)
            identity = identify(request.fd) if request.fd >= 0 else None
            await self._room.wait()
            if identity is not None and identify(request.fd) != identity:
                raise kernel_error(errno.EBADF, "the file was closed while this waited to be submitted")
        return await self.perform(request, prepare, *arguments)

    @contextlib.contextmanager
    def _between_tries(self, request: Request) -> Iterator[None]:
        """Between two tries the kernel has nothing of the request, but its caller's memory is still in use."""
        lease = request.lease
        if lease is not None:
            lease.pins += 1
        try:
            yield
        except BaseException as error:
            request.cut_short(error)
            request.let_go()
            self.ask_for_turn()  # this one may have been called from the line: the next is
            raise
        finally:
            if lease is not None:
                lease.pins -= 1
                if lease.ended and not lease.pins:
                    lease.unpinned()

    def refuse(self) -> NoReturn:
        """Say why nothing can be asked for here and now."""
        code = lib.au_ring_check(self._raw)
        if code in (lib.AU_FORKED, lib.AU_WRONG_THREAD):
            raise failure(code)
        if self.broken:
            raise OSError(self.broken.errno, self.broken.strerror)
        if self.closing:
            raise RingClosedError("the ring has been closed")
        self._refuse_loop()

    def _refuse_loop(self) -> NoReturn:
        raise WrongContextError(f"the ring belongs to another event loop ({self.loop!r}); make one AsyncRing per loop")

    async def _failed(self, request: Request, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Turn a negative result into an exception; EAGAIN and EINTR are ours to deal with."""
        number = errno_of(request.result)
        if number == errno.EINTR and request.user_data in self._stopped:
            number = errno.ECANCELED  # how a worker's request says so
        if self.broken:
            raise OSError(self.broken.errno, self.broken.strerror)
        if number != errno.EINTR and not (number == errno.EAGAIN and request.events):
            request.let_go()
            if self.closing and number == errno.ECANCELED:
                raise RingClosedError("the ring was closed while this was in flight")
            raise self.ring.request_error(number, arguments[0], arguments[-1])
        if request.group is not None:
            request.let_go()  # the next try gets a buffer of its own
        if number == errno.EAGAIN:
            with self._between_tries(request):
                identity = identify(request.fd)
                poll = Request(request.fd, request.file)
                how = 0 if request.file is not None else getattr(request.fd, "how", lib.AU_GUARD_FD)
                await self.perform(poll, lib.au_prepare, lib.AU_OP_POLL_ADD, request.fd, 0, 0, 0, request.events, how)
                if identify(request.fd) != identity:
                    raise kernel_error(errno.EBADF, "the file was closed while this waited")
        return await self.perform(request, prepare, *arguments)

    async def _withdraw(self, request: Request) -> None:
        """The awaiting task was cancelled: stop the request and wait until the kernel is done with it."""
        if self.broken and not request.ended:
            self._detach(request)  # it will never be heard of again
        if not request.ended and request.waiter is not None:
            request.waiter = self.new_future()
            timer = self.loop.call_later(self.cancel_timeout, self._give_up_on, request)
            try:
                with Insistence(self, [request]):
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
        self._stopped |= (numbers := {request.user_data for request in requests})
        with Insistence(self, requests):
            ends = [end for request in requests if (end := request.end()) is not None]
            if ends:
                await asyncio.wait(ends, timeout=self.cancel_timeout)
        self._stopped -= numbers
        return len(requests)

    def _detach(self, request: Request) -> None:
        """Nobody waits any more; the request goes on and owns its memory."""
        if request.ended:
            return
        request.waiter = None
        self.detached += 1
        if request.lease is not None:
            request.lease.abandoned = True
        self.cancel_soon(request)

    def _give_up_on(self, request: Request) -> None:
        """The kernel would not stop a request in time: whoever waits for that waits no longer."""
        waiter = request.waiter
        self._detach(request)
        if waiter is not None and not waiter.done():
            waiter.set_result(0)

    def submit_queued(self) -> None:
        """Hand the kernel what is filled, so that it meets the registrations of now."""
        if self._usable and lib.au_ring_check(self._raw) == 0 and lib.au_ring_unsubmitted(self._raw):
            self._turn(0)
            if self.takers:
                self.ask_for_turn()

    def draw_number(self) -> int:
        """A user_data for a tag: from the count that requests draw from, so neither is taken for the other."""
        return self.next_number()

    def cancel_receives(self, group: object) -> None:
        """Cancel every receive in flight on a buffer group."""
        for request in list(self.inflight.values()):
            if request.group is group:
                self.cancel_soon(request)

    def groups_in_flight(self) -> set[int]:
        """The groups that requests in flight name."""
        return {request.group.group_id for request in self.inflight.values() if request.group is not None}

    # ---- closing -------------------------------------------------------------------------------

    def stop_intake(self) -> None:
        """The ring is being closed: nothing new is taken."""
        self.closing = True
        self._usable = False

    async def close(self, timeout: float) -> None:
        """Cancel everything, reap it for at most `timeout` seconds, then let go of the ring."""
        self._dismiss(RingClosedError("the ring was closed while this waited for a buffer"))
        with Insistence(self, list(self.inflight.values())):
            for sender in list(self.senders.values()):
                sender.drop(RingClosedError("the ring was closed"))
            if not self.idle and not self.broken:
                self._emptied = self.new_future()
                timer = self.loop.call_later(timeout, self._give_up)
                try:
                    await self._emptied
                finally:
                    timer.cancel()
        self.let_go()

    def _deliver_all(self, count: int) -> None:
        """Deliver where the loop may be closed: whoever should be woken will not run, and the walk goes on."""
        for _ in range(count + 1):
            try:
                return self._deliver(count)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise
        return None

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
        if not self.idle:
            self._bury()
        else:
            with contextlib.suppress(OSError):  # a ring that is broken; closing it unregisters as well
                self.registry.unregister()
        self.ring.close()
        self.registry.forget()
        self.leftovers.kept.clear()  # descriptors that nobody will take are closed

    def _bury(self) -> None:
        """Keep for ever what the kernel may still write to, and say so."""
        senders = [sender for sender in self.senders.values() if sender.in_flight]
        kept = [*self.inflight.values(), *senders]
        registry = self.registry
        GRAVEYARD.append((kept, self.ring, registry.buffers, list(registry.groups.values()), registry.bury()))
        for request in self.inflight.values():
            waiter, request.waiter = request.waiter, None
            if waiter is not None and not waiter.done():
                request.result = -errno.ECANCELED
                waiter.set_result(request.result)
            request.failed(RingClosedError("the ring was closed, and the kernel would not stop this"))
        for sender in senders:
            sender.failed(RingClosedError("the ring was closed, and the kernel would not stop this"))
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
        if lib.au_ring_check(self._raw) == 0 and not self.idle and not self.broken:
            for sender in self.senders.values():
                sender.drop(RingClosedError("the ring was closed"))
            for request in list(self.inflight.values()):
                request.waiter = None
                self.cancel_soon(request)
            while (code := lib.au_ring_turn(self._raw, 0)) > 0 or (code == 0 and self._cancels_due):
                self._position = 0
                self._deliver_all(code & ~lib.AU_AGAIN)
                self._fill_what_is_due()
        self.let_go()
