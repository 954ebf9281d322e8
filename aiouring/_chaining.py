"""Owns the way of a chain of requests through the driver: into one submission, to its end, or back.

How this fits together

1. A chain ends with the submission that it is in (measured on Linux 6.18: a request in the next one runs, whatever
   became of those before it).  So its entries are filled only when the queue has room for all of them, and linked by
   one call of the C core, which first puts together what something else (a cancel that the garbage collector made us
   send) came between.  Where one cannot be filled, the others are taken out again.  Should the kernel take only some
   of a chain, the C core makes the rest fail.
2. A request that waits for the one before it is found by no cancel (ENOENT).  A chain that is cancelled cancels each
   of its requests, again and again until it has ended: the one that runs ends the rest with it.
3. Every request holds its own memory until its own completion.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiouring._errors import RingClosedError, failure, kernel_error
from aiouring._request import Request
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._driver import Driver


class Link:
    """One request of a chain, and after it what became of it."""

    __slots__ = ("_arguments", "_prepare", "_wanted", "error", "request")

    #: The `OSError` that it ended with, ECANCELED where it was not begun; None where it went well, or is not over.
    error: Exception | None

    def __init__(
        self,
        request: Request,
        prepare: Callable[..., int],
        *arguments: Any,
        wanted: int = 0,
    ) -> None:
        self.request = request
        self._prepare = prepare
        self._arguments = arguments
        self._wanted = wanted  # bytes that it is to move
        self.error = None
        request.ended = True  # the kernel has nothing yet
        request.result = -errno.ECANCELED

    def __repr__(self) -> str:
        return f"<Link {type(self.request).__name__} fd={self.request.fd} {self.error or self.request.result}>"

    @property
    def done(self) -> bool:
        """Whether it was carried out: completely, or up to `result` bytes."""
        return self.request.ended and self.request.result >= 0

    @property
    def result(self) -> int:
        """What the request answered, a number of bytes or 0; raises what it failed with."""
        if self.error is not None:
            raise self.error
        if not self.done:
            raise RuntimeError("this request was not submitted: its chain is not over, or came to nothing")
        return self.request.result

    @property
    def short(self) -> bool:
        """Whether fewer bytes were moved than were wanted, which ends a chain."""
        return 0 <= self.request.result < self._wanted

    def fill(self, driver: "Driver") -> int:
        """Fill its entry."""
        request = self.request
        request.ended = False
        driver.inflight[request.user_data] = request
        if request.lease is not None:
            request.lease.pins += 1
            request.pinned = True
        return self._prepare(driver._raw, request.user_data, *self._arguments)

    def refusal(self, code: int) -> Exception:
        """Why its entry could not be filled."""
        if self._prepare is lib.au_prepare_fixed:
            _, fd, table, key, start, length, offset, _ = self._arguments
            capacity, index = lib.au_buffers_size(table, key), key & lib.AU_SLOT_MASK
            return failure(code, fd=fd, index=index, capacity=capacity, start=start, length=length, offset=offset)
        return failure(code, fd=self._arguments[1])

    def conclude(self, driver: "Driver") -> None:
        """Note what it failed with."""
        number = -self.request.result
        if number <= 0 or not self.request.ended:
            return
        if driver.broken:
            self.error = OSError(driver.broken.errno, driver.broken.strerror)
        elif driver.closing and number == errno.ECANCELED:
            self.error = RingClosedError("the ring was closed while this was in flight")
        else:
            self.error = driver.ring.request_error(number, self._arguments[0], self._arguments[-1])

    def let_go(self) -> None:
        """End the export of the caller's memory, if the kernel is done with it."""
        self.request.let_go()


async def perform_chain(driver: "Driver", links: list[Link]) -> None:
    """Submit a chain, and wait until each of its requests has ended; raises what ended it."""
    driver.check()
    count, room = len(links), driver.ring.entries
    if count > room:
        raise ValueError(f"a chain of {count} requests does not fit a submission queue of {room} entries")
    while not _fill(driver, links):
        if not lib.au_ring_unsubmitted(driver._raw):
            raise ValueError(
                f"a chain of {count} requests names more than {lib.AU_SLOTS_AT_ONCE} files by their numbers: name them "
                "by their objects, or make several chains"
            )
        driver.submit_queued()
        if lib.au_ring_unsubmitted(driver._raw):
            await driver._room.wait()  # the kernel takes nothing for the moment
            driver.check()
    requests = [link.request for link in links]
    try:
        for request in requests:
            if request.waiter is not None and not request.ended:
                await request.waiter
    except BaseException as error:
        await _withdraw(driver, requests, cancelled=isinstance(error, asyncio.CancelledError))
        raise
    finally:
        for link in links:
            link.conclude(driver)
    _report(links)


def _fill(driver: "Driver", links: list[Link]) -> bool:
    """Fill the entries of a chain and link them, all or none; returns False where there is no room for all."""
    raw = driver._raw
    if driver.ring.entries - lib.au_ring_unsubmitted(raw) < len(links):
        return False
    for link in links:
        link.request.user_data = driver.next_number()
        link.request.waiter = driver.new_future()
    numbers = ffi.new("uint64_t[]", [link.request.user_data for link in links])
    try:
        for link in links:
            code = link.fill(driver)
            if code == lib.AU_FULL:
                _take_back(driver, links, numbers)
                return False
            if code:
                raise link.refusal(code)
        code = lib.au_ring_link(raw, numbers, len(links))
        if code:
            raise failure(code, fd=links[0].request.fd)
    except BaseException as error:
        _take_back(driver, links, numbers)
        if isinstance(error, OverflowError):
            raise ValueError(f"a number does not fit what the kernel takes: {error}") from None
        raise
    driver._queued += [link.request for link in links if link.request.file is not None]
    driver.ask_for_turn()
    return True


def _take_back(driver: "Driver", links: list[Link], numbers: Any) -> None:
    """Take what was filled of a chain out of the queue again."""
    lib.au_ring_take_back(driver._raw, numbers, len(links))
    for link in links:
        if link.request.user_data in driver.inflight:
            driver._end(link.request)


async def _withdraw(driver: "Driver", requests: list[Request], *, cancelled: bool) -> None:
    """Stop a chain, and wait until the kernel is done with all of it; for `cancel_timeout`, as with one request."""
    for request in requests:
        if not request.ended:
            driver.cancel_soon(request)
    stuck = not cancelled
    for request in requests:
        if stuck:
            driver._detach(request)
        else:
            await driver._withdraw(request)
            stuck = not request.ended


def _report(links: list[Link]) -> None:
    """Raise what ended a chain: the error of the first that failed, or that one moved too few bytes."""
    for at, link in enumerate(links):
        if link.error is not None:
            raise link.error
        if link.short and at + 1 < len(links) and links[at + 1].error is not None:
            text = (
                f"request {at} of a chain moved {link.request.result} of {link._wanted} bytes, so the "
                f"{len(links) - at - 1} behind it were not done"
            )
            raise kernel_error(errno.ECANCELED, text)
