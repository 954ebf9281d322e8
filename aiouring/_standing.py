"""Owns `Standing`: a request that is renewed whenever the kernel ends it, until it is closed.

How this fits together

1. Until it is over a standing request has exactly one request in flight: its operation or, while there is a reason
   not to ask the kernel for that, a timeout of the kernel's in its place (`_rest`).  So everything that reaches what
   is in flight reaches it at any moment: `cancel()` and `close()` on its file, the ring's close, the ring's loss.
2. `arrived()` hands what came to the subclass.  A completion without F_MORE ends the kernel's request, whatever else
   it says; `_go_on()` then decides what takes its place.  Before each renewal the descriptor is compared with the
   file it stood for at the start: between two requests nothing else would notice that the number was reused.
3. Who cancels is told apart: the request itself (`_interrupt`: renewed), its owner (`closing`), whoever stops all
   that is in flight on the file (`Driver.stop` asks for `end()`), or the kernel, uninvited (KERNEL.md E11).

States: in flight (the operation, or resting), over (what ended it comes after what is there), closing.
"""

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from aiouring._errors import ResourceBusyError, RingClosedError, kernel_error
from aiouring._line import wake
from aiouring._request import Request, identify
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiouring._driver import Driver

_MORE = lib.AU_CQE_F_MORE
_PASSING = frozenset({0, errno.EINTR, errno.EAGAIN})
#: Seconds.  A rest that only a cancel ends; should it end by itself all the same, it is begun again.
FOREVER = float(2**31)


class Standing(Request):
    """What stays in the kernel on one file; subclasses say what it is and what it brings."""

    __slots__ = (
        "_driver",
        "_ends",
        "_failure",
        "_how",
        "_identity",
        "_ready",
        "_resting",
        "_retired",
        "_stopping",
        "_withdrawn",
        "closing",
        "in_flight",
        "over",
    )

    #: The operation, for the text of an error.
    opcode = 0
    #: What a reader is told that comes second.
    busy = "another task is already waiting here"

    def __init__(self, driver: "Driver", fd: int, file: Any, how: int) -> None:
        super().__init__(fd, file)
        self._driver = driver
        self._how = how
        self._identity = identify(fd)
        self._retired: Callable[[], object] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ends: list[asyncio.Future[int]] = []
        self._failure: Exception | None = None
        self._resting = False  # what is in flight is a timeout
        self._stopping = False  # ... was cancelled by ourselves
        self._withdrawn = False  # ... was cancelled by whoever stops all requests on the file
        self.in_flight = self.over = self.closing = False

    def __repr__(self) -> str:
        state = "closing" if self.closing else "over" if self.over else "resting" if self._resting else "armed"
        return f"<{type(self).__name__} fd={self.fd} {state}>"

    def holds(self, fd: int, file: Any) -> bool:
        """Whether this is still standing on a file; an object that had the number before is another file."""
        return not self.over and self.fd == fd and (file is None or self.file in (None, file))

    # ---- for the subclass ----------------------------------------------------------------------

    def _operate(self) -> None:
        """Fill the operation, by `_start()`."""
        raise NotImplementedError

    def _came(self, result: int) -> None:
        """A completion that is no error.  After an interrupt the same one may come again."""
        raise NotImplementedError

    def _something(self) -> bool:
        """Whether there is anything to take."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Dispose of what nobody took."""

    def _delay(self, error: int) -> float:
        """Seconds to rest before the next operation, after `error` (0 is none); raises what ends the request."""
        if error not in _PASSING:
            raise self._refusal(error)
        return 0.0

    def _refusal(self, error: int) -> OSError:
        """The exception for an errno of what was in flight."""
        opcode = lib.AU_OP_TIMEOUT if self._resting else self.opcode
        return self._driver.ring.request_error(error, opcode, self._how)

    # ---- the reader ----------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until there is something to take.  Cancelling this takes nothing.

        What ended the request is raised after everything that came before.
        """
        while not self._something():
            if self._failure is not None:
                raise self._failure
            if self._ready is not None:
                raise ResourceBusyError(self.busy)
            self._ready = ready = self._driver.new_future()
            try:
                await ready
            finally:
                self._ready = None

    def _wake(self) -> None:
        if self._ready is not None:
            wake(self._ready)

    # ---- the kernel's request ------------------------------------------------------------------

    def _arm(self) -> None:
        """Ask the kernel for the operation, if the descriptor still stands for the file."""
        try:
            self.check_file()
        except OSError as error:
            self._finish(error)
        else:
            self._resting = False
            self._operate()

    def check_file(self) -> None:
        """Raise EBADF where the descriptor stands for another file than it did in the beginning."""
        if identify(self.fd) != self._identity:
            raise kernel_error(errno.EBADF, "the file was closed, and its number is another file's")

    def _rest(self, seconds: float) -> None:
        """Have a timeout in flight instead of the operation."""
        self._resting = True
        whole = int(seconds)
        self.hold = time = ffi.new("int64_t[2]", [whole, int((seconds - whole) * 1e9)])
        self._start(lib.au_prepare_memory, lib.AU_OP_TIMEOUT, -1, time, 16, 0, 1, 0, 0, 0)

    def _start(self, prepare: "Callable[..., int]", *arguments: Any) -> None:
        self.in_flight, self._stopping = True, False
        try:
            self._driver.start(self, prepare, *arguments)
        except (OSError, RuntimeError, ValueError) as error:
            self.in_flight = False
            self._finish(error)

    def arrived(self, result: int, flags: int) -> None:
        """A completion of this request."""
        if result >= 0 and not self._resting:
            self._came(result)
        if not flags & _MORE:
            rested = self._resting and result == -errno.ETIME
            self._go_on(0 if result >= 0 or rested else -result)

    def _go_on(self, error: int) -> None:
        """The kernel's request is over: another takes its place, unless there is a reason not to."""
        stopped = self._stopping  # until another is started: this step may be taken again
        self._over_for_the_kernel()
        if self.closing:
            self._retire()
        elif self._driver.closing:
            self._drop()
            self._finish(RingClosedError("the ring was closed while this waited"))
        elif self._withdrawn:
            self._finish(kernel_error(errno.ECANCELED, "the requests on this file were cancelled"))
        else:
            try:
                delay = self._delay(0 if error == errno.ECANCELED and stopped else error)
            except OSError as failure:
                self._finish(failure)
            else:
                if delay:
                    self._rest(delay)
                else:
                    self._arm()

    def _interrupt(self) -> None:
        """Have the kernel's request ended, once, so that `_go_on()` can decide anew."""
        if self.in_flight and not self._stopping:
            self._stopping = True
            self._driver.cancel_soon(self)

    def _finish(self, failure: Exception) -> None:
        """Nothing more will come; the reader hears of it after what is there."""
        if not self.over:
            self.over = True
            self._failure = failure
            self._wake()

    def failed(self, error: Exception) -> None:
        """The ring is lost, or was closed: this request will never be heard of again."""
        self._over_for_the_kernel()
        if self._driver.closing:
            self._drop()
        self._finish(error)
        self._retire()

    # ---- the end -------------------------------------------------------------------------------

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the kernel is done, for whoever has cancelled all on the file: it is not renewed."""
        self._withdrawn = True
        return self.ending()

    def ending(self) -> "asyncio.Future[int] | None":
        """What resolves when the kernel is done with the request; None if it has none."""
        if not self.in_flight:
            return None
        end = self._driver.new_future()
        self._ends.append(end)
        return end

    def retire(self, retired: "Callable[[], object]") -> None:
        """Stop for good; idempotent.  `retired` is called when the kernel is done."""
        if self.closing:
            return
        self.closing = True
        self._retired = retired
        self._drop()
        self._finish(kernel_error(errno.ECANCELED, "the stream was closed"))
        if self.in_flight:
            self._driver.cancel_soon(self)
        else:
            self._retire()

    def retire_soon(self, retired: "Callable[[], object]") -> None:
        """The same, from any thread: the garbage collector's."""
        if lib.au_ring_check(self._driver.ring.raw) == lib.AU_WRONG_THREAD:
            self._driver.ask_from_elsewhere(partial(self.retire, retired))
        else:
            self.retire(retired)

    def _retire(self) -> None:
        retired, self._retired = self._retired, None
        if retired is not None:
            retired()

    def _over_for_the_kernel(self) -> None:
        self.ended = True
        self.in_flight = False
        for end in self._ends:
            wake(end, 0)
        self._ends.clear()
