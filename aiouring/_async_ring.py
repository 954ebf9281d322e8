"""Owns `AsyncRing`: io_uring's operations as coroutines on the running event loop.

Each verb checks its arguments, makes a `Request`, and lets the driver perform it; nothing more.  Names are
liburing's without the prefix.  A file is a descriptor number or an object with `fileno()`; prefer the object:
the request holds it, and notices when it is closed between being queued and being submitted.
"""

import asyncio
import errno
import socket
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiouring._attribute_verbs import AttributeVerbs
from aiouring._descriptor_verbs import DescriptorVerbs
from aiouring._direct_descriptor import DirectDescriptor, Slot
from aiouring._direct_verbs import DirectVerbs, close_slot
from aiouring._driver import Driver
from aiouring._errors import ResourceBusyError, RingClosedError, kernel_error
from aiouring._file_verbs import FileVerbs
from aiouring._futex_verbs import FutexVerbs
from aiouring._inbox_verbs import InboxVerbs
from aiouring._linked import ChainVerbs
from aiouring._listener_verbs import ListenerVerbs
from aiouring._message_verbs import MessageVerbs
from aiouring._option_verbs import OptionVerbs
from aiouring._path_verbs import PathVerbs
from aiouring._process_verbs import ProcessVerbs
from aiouring._range_verbs import RangeVerbs
from aiouring._registration_verbs import RegistrationVerbs
from aiouring._request import Close, Request, Timeout
from aiouring._restrictions import Restrictions
from aiouring._ring import MAX_ENTRIES, CoreRing, check_size
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib
from aiouring._vector_verbs import VectorVerbs
from aiouring._verbs import File, resolve
from aiouring._zero_copy_verbs import ZeroCopyVerbs

if TYPE_CHECKING:
    from aiouring._standing import Standing

_prepare = lib.au_prepare
_NOP = lib.AU_OP_NOP


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """What a ring has done so far, and what it is doing; counts."""

    submitted: int  # requests the kernel has taken, cancels included
    completed: int  # completions drained
    in_flight: int  # requests whose final completion is to come
    detached: int  # requests that were given up on by their awaiter so far
    enters: int  # io_uring_enter calls
    wakeups: int  # times the eventfd woke the loop
    overflow_flushes: int  # enters that flushed an overflowed completion queue
    submit_errors: int  # enters that failed, and were tried again
    strays: int  # completions nobody was waiting for


class AsyncRing(
    RegistrationVerbs,
    FileVerbs,
    VectorVerbs,
    MessageVerbs,
    ListenerVerbs,
    ZeroCopyVerbs,
    OptionVerbs,
    InboxVerbs,
    DescriptorVerbs,
    RangeVerbs,
    AttributeVerbs,
    PathVerbs,
    ProcessVerbs,
    FutexVerbs,
    ChainVerbs,
    DirectVerbs,
):
    """One io_uring for one event loop; use it with `async with`, in the loop's thread.

    Args:
        entries: size of the submission queue, 1 to 32768.  More requests than that may be in flight.
        cq_entries: size of the completion queue; an overflow is slower, and loses nothing.
        task_run: "coop" or "defer", see `Ring`; None takes the measured default.
        cancel_timeout: seconds that a cancelled await waits for a request which the kernel will not stop.
            After that the request goes on alone and keeps its memory: do not reuse a buffer that it fills.
        close_timeout: seconds that closing waits for such requests, before it keeps their memory for ever.
        restrictions: what the ring allows, see `Restrictions`; True is `Restrictions.default()`, all that this class
            needs.  Since Linux 5.10.

    Raises:
        RingUnavailableError: io_uring is blocked here; the text says by what.  See `probe()`.
        OSError: ENOMEM (RLIMIT_MEMLOCK), EMFILE.

    Every verb raises `OSError` where the kernel refuses, `RingClosedError` after or during close, and
    `WrongContextError` from another loop, another thread or a forked process.  Needs Linux 5.11.
    """

    def __init__(
        self,
        entries: int = 256,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        cancel_timeout: float = 5.0,
        close_timeout: float = 5.0,
        restrictions: Restrictions | bool | None = None,
    ) -> None:
        self._driver: Driver | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._receiving: dict[Any, Any] = {}
        self._standing: set[Standing] = set()
        self._cancel_timeout = cancel_timeout
        self._close_timeout = close_timeout
        check_size("entries", entries, MAX_ENTRIES)
        if isinstance(restrictions, Restrictions):
            restrictions.check_enough_for_async()
        self._ring = CoreRing(
            entries,
            cq_entries=max(cq_entries, entries),
            task_run=task_run,
            disabled=True,
            restrictions=restrictions,
        )

    # ---- life ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self._closed or self._driver is None:
            return f"<AsyncRing {'closed' if self._closed else 'not used yet'}>"
        return f"<AsyncRing fd={self._ring.fd} in_flight={len(self._driver.inflight)}>"

    async def __aenter__(self) -> Self:
        self._bound_or_closed()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _bound(self) -> Driver:
        """The driver; the first use binds the ring to the running loop and its thread."""
        driver = self._driver
        if driver is None:
            if self._closed:
                raise RingClosedError("the ring has been closed")
            driver = self._driver = Driver(self._ring, asyncio.get_running_loop(), self._cancel_timeout)
        return driver

    def _bound_or_closed(self) -> None:
        """Bind the ring, or close it at once: its descriptor would live as long as the exception."""
        try:
            self._bound()
        except BaseException:
            if self._driver is None:
                self._closed = True
                self._ring.close()
            raise

    async def aclose(self) -> None:
        """Cancel everything, wait for its end (`close_timeout` bounds that), and close; idempotent.

        Whoever is waiting gets `RingClosedError`.  Memory that the kernel may still write to after the
        deadline is kept until the process ends, with a `ResourceWarning`.
        """
        driver = self._driver
        if self._closed or driver is None:
            self._closed = True
            self._ring.close()
            return
        if self._closing is None:
            driver.check_context()
            driver.stop_intake()
            self._closing = driver.loop.create_task(driver.close(self._close_timeout), name="aiouring close")
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.shield(self._closing)
            except asyncio.CancelledError as error:  # closing always ends: bounded, so wait for it
                cancelled = error
        self._closed = True
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is None or self._closed or driver.ring.closed:
            return  # a ring that nobody used closes itself
        if lib.au_ring_check(self._ring.raw) == lib.AU_FORKED:
            return  # the ring is the parent's
        warnings.warn(f"{self!r} was never closed: use 'async with', or await aclose()", ResourceWarning, 1, self)
        driver.abandon()

    def statistics(self) -> RingStatistics:
        """What the ring has done so far."""
        raw, driver = self._ring.raw, self._driver
        return RingStatistics(
            submitted=raw.submitted,
            completed=raw.completed,
            in_flight=len(driver.inflight) + raw.sends_in_flight if driver else 0,
            detached=driver.detached if driver else 0,
            enters=raw.enters,
            wakeups=raw.wakeups,
            overflow_flushes=raw.overflow_flushes,
            submit_errors=raw.submit_errors,
            strays=driver.strays if driver else 0,
        )

    async def nop(self) -> None:
        """Do nothing, by way of the kernel: for measuring."""
        await (self._driver or self._bound()).perform(Request(), _prepare, _NOP, -1, 0, 0, 0, 0, 0)

    def _claim(self, sock: socket.socket) -> Driver:
        """The driver, for a connection that takes over `sock`; raises where the socket is in use."""
        if not isinstance(sock, socket.socket):
            resolve(sock)  # says so where it is a transport's
            raise TypeError(
                f"a connection takes over a socket.socket, not {type(sock).__name__}: for a descriptor make one with "
                "socket.socket(fileno=...), and get that of a direct one with fixed_fd_install()"
            )
        if self._is_received_from(sock.fileno()):
            raise ResourceBusyError(f"a task is receiving from {sock!r}")
        driver = self._driver or self._bound()
        driver.check()
        if sock.fileno() >= 0:
            try:
                driver.loop.remove_reader(sock.fileno())  # a reader would starve; where a transport is, this refuses
            except RuntimeError as error:
                raise ResourceBusyError(f"{sock!r} belongs to a transport of the event loop: {error}") from None
        return driver

    # ---- any descriptor ------------------------------------------------------------------------

    async def close(self, file: int | socket.socket | DirectDescriptor) -> None:
        """Close a descriptor, a socket or a direct descriptor, after stopping what this ring has in flight on it.

        Closing alone would not stop it: the kernel goes on with the open file.  Tasks that
        wait on it get `OSError` (ECANCELED).  Since Linux 5.6.  See io_uring_prep_close(3).
        """
        number, held, how = resolve(file)
        driver = self._driver or self._bound()
        await self._stop(driver, number, held)
        driver.leftovers.forget(number)
        if isinstance(number, Slot):
            await close_slot(driver, number)
            return
        if isinstance(file, socket.socket):
            number, how = file.detach(), 0
        await driver.perform(Close(number), lib.au_prepare, lib.AU_OP_CLOSE, number, 0, 0, 0, 0, how)

    async def cancel(self, file: File) -> int:
        """Cancel every request of this ring on a file; returns how many there were.

        Whoever awaits them gets `OSError` (ECANCELED), or the result if it came first.  Returns when the
        kernel is done with all of them.  Since Linux 5.5.  See io_uring_prep_cancel(3).
        """
        number, held, _ = resolve(file)
        return await self._stop(self._bound(), number, held)

    async def _stop(self, driver: Driver, number: int, held: Any) -> int:
        """Stop what is in flight on a file; an object that had the number before is another file."""
        driver.check()
        requests = [request for request in driver.inflight.values() if request.fd == number]
        evicted = sum(
            group.evict(number, held, kernel_error(errno.ECANCELED, "cancelled while it waited for a buffer"))
            for group in driver.registry.groups.values()
        )
        return evicted + await driver.stop([r for r in requests if held is None or r.file in (None, held)])

    async def timeout(self, seconds: float) -> None:
        """Wait, by the kernel's monotonic clock.  Since Linux 5.4.  See io_uring_prep_timeout(3)."""
        if not 0 <= seconds < 2**32:
            raise ValueError(f"seconds={seconds} is outside 0 to {2**32}")
        whole = int(seconds)
        time = ffi.new("int64_t[2]", [whole, int((seconds - whole) * 1e9)])
        await (self._driver or self._bound()).perform(
            Timeout(hold=time), lib.au_prepare_memory, lib.AU_OP_TIMEOUT, -1, time, 16, 0, 1, 0, 0, 0
        )
