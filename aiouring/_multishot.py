"""Owns `Receiving`: a receive that stays armed in the kernel, and the queue of what it brought.

How this fits together

1. One multishot receive is armed per socket.  Each completion names a buffer of the group, which the C core
   *takes* (lends, in its books) in the turn that finds it; here it is queued as two integers.  Whoever waits is
   woken, and makes the buffer's lease when it runs: a reader that is cancelled has taken nothing, so nothing can
   be lost.
2. A completion without F_MORE ends the kernel's request, error or not (KERNEL.md C4: a full completion queue
   ends it with data).  It is armed again at once, unless the stream is over or enough is queued.
3. The kernel may receive as many bytes as `max_pending` buffers hold before we look, where it can be told so: one
   firehose cannot empty the group.  Above the high mark the kernel's request is cancelled; what it still
   brings is queued.  Below the low mark, *and* when that cancel is over, it is armed again.
4. ENOBUFS parks the stream in the group's line, behind whoever waited before; the data stays in the socket.  Where the
   group falls back, a private receive takes the multishot's place, see `_private_buffers`.
5. A `taker` (see `_takers`) takes what came without a task.  While it wants nothing the receive is `resting`.
6. Closing cancels, waits for the request's own final completion, and keeps what nobody took for the next
   receive on the file (see Leftovers).

States: armed (the kernel has a request), parked (in the group's line), paused (enough is queued), over (the
end of the stream, or an error, comes after what is queued).
"""

import errno
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

from aiouring._buffer_ring import BufferRing, ProvidedBuffer, end_of_stream, private_copy
from aiouring._bundle import ProvidedBundle
from aiouring._errors import BuffersExhaustedError, ResourceBusyError, RingClosedError, kernel_error
from aiouring._line import wake
from aiouring._objects import ReceivingRow
from aiouring._private_receives import BUNDLE, DATA_FIRST, Shorthanded
from aiouring._request import Kept, identify, keeps_boundaries
from aiouring._uring import lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiouring._driver import Driver

_prepare_multishot = lib.au_prepare_multishot
_take = lib.au_group_take
_RECV = lib.AU_OP_RECV
_BUFFER = lib.AU_CQE_F_BUFFER
_MORE = lib.AU_CQE_F_MORE
_SHIFT = lib.AU_CQE_BUFFER_SHIFT

#: What came before, for all whom nothing did: an empty deque is larger than all else that an idle connection has.
_NOTHING: "deque[ProvidedBuffer]" = deque()


class Receiving(Shorthanded):
    """The receiving half of one socket."""

    __slots__ = (
        "_ends", "_failure", "_identity", "_keeps_boundaries", "_raw_group", "_retired", "_total", "_withdrawn", "tag",
    )  # fmt: skip

    def __init__(
        self,
        driver: "Driver",
        fd: int,
        file: Any,
        how: int,
        group: BufferRing,
        high: int,
        *,
        keeps_boundaries: bool,
        bundle: bool = False,
    ) -> None:
        super().__init__(driver, fd, file, how | (BUNDLE if bundle else 0))
        self._retired: Callable[[], object] | None = None
        self._new_future = driver.new_future
        self.group = group
        self._raw_group = group.raw
        self.tag = group.tag
        total = group.most_at_once(high)  # bytes that the kernel may receive before we look
        self._total = total if total < lib.AU_MAX_TRANSFER else 0  # 0 is no limit
        self._identity = identify(fd) if how and file is None else None  # a number's, that others may close
        self._keeps_boundaries = keeps_boundaries  # of datagrams: an empty one is not the end
        self._high = high
        self._low = group.resume_at(high)
        self._early = _NOTHING  # what came for a cancelled receive before this one
        self._ready = None
        self._ends: tuple[asyncio.Future[int], ...] = ()
        self._failure: Exception | None = None
        self._stopping = False
        self._withdrawn = False  # whoever stops all requests on the file has cancelled it
        self.taker = None  # instead of a reader
        self._direct = type(self).arrived is ReceivingRow.arrived  # nothing else is to be done for each chunk
        self.armed = self.over = False
        if driver.leftovers.kept:
            self._early = deque()
            self._bring_back()
        self._arm()

    def __repr__(self) -> str:
        state = "armed" if self.armed else "parked" if self._place else "over" if self.over else "paused"
        return f"<Receiving fd={self.fd} {state}, {len(self._arrivals)} queued>"

    # ---- the reader ----------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    # __anext__() is the row's: what ended the stream is raised after everything that came before, see _raise().

    def _busy(self) -> NoReturn:
        raise ResourceBusyError("another task is already receiving from this connection")

    def _private(self, chunk: "ProvidedBuffer | int") -> ProvidedBuffer:
        """What lies in no buffer of the group: a private chunk, or an empty datagram."""
        return end_of_stream() if isinstance(chunk, int) else chunk

    async def next_bundle(self) -> ProvidedBundle:
        """All that is there, at least one chunk.  Cancelling this takes nothing."""
        chunks = [await self.__anext__(), *self._early]
        self._early.clear()
        group, lease = self.group, self.group.lease
        for result, flags in self._arrivals:
            chunks.append(lease(group, group.arena, flags >> _SHIFT, result) if flags else result)
        self._arrivals.clear()
        self._arm()
        return ProvidedBundle(tuple(chunks))

    def _bring_back(self) -> None:
        """What came for a receive before this one comes first."""
        while (data := self._driver.leftovers.take(self.fd, self.group.size)) is not None:
            self._early.append(private_copy(data))

    def _raise(self) -> NoReturn:
        """Tell the reader what ended the stream.  Want of a buffer does not: its next try may find one."""
        failure = self._failure
        if failure is None:
            raise StopAsyncIteration
        if isinstance(failure, BuffersExhaustedError) and not self.closing:
            self.over, self._failure = False, None
        raise failure

    def _wake(self) -> None:
        if self._ready is not None:
            wake(self._ready)
        elif self.taker is not None:
            self._driver.takers.append(self.taker)
            self._driver.ask_for_turn()

    # ---- the kernel's request ------------------------------------------------------------------

    def _arm(self) -> None:
        """Arm the receive, unless there is a reason not to."""
        if self.armed or self.over or self.closing or self.resting or self._place is not None:
            return
        if self.group.waiting:
            self._park()
        else:
            self._start()

    def _start(self, spare: "ProvidedBuffer | None" = None, data_first: int = 0) -> None:
        self.armed, self._stopping = True, False
        try:
            self.check_file()
            if spare is not None:
                self._start_privately(spare)
            else:
                self._operate(self._how | data_first)
        except (OSError, RuntimeError, ValueError) as error:
            self.armed = False
            if spare is not None:
                self._spare = None
                spare.release()
            self._finish(error)

    def _operate(self, how: int) -> None:
        self._driver.start(self, _prepare_multishot, _RECV, self.fd, self._raw_group, self._total, how)

    def check_file(self) -> None:
        """Where a file was named by its number, that may be another file's by now."""
        if self._identity is not None and identify(self.fd) != self._identity:
            raise kernel_error(errno.EBADF, "the file was closed during a receive")

    # arrived() is the row's: it queues what came, and asks here what follows from a request's last completion.

    def _concluded(self, result: int, flags: int) -> None:
        """The kernel's request is over, or something else came than a chunk.  Taking this step twice does no harm."""
        if result <= 0 and flags & _BUFFER:
            self._return(flags)
        if self._spare is not None:
            self._arrived_privately(self._spare, result)
            self._wake()
        stopped = self._stopping  # until another is started: this step may be taken again
        self._over_for_the_kernel()
        if self.closing:
            self._retire()
        elif self._withdrawn:
            self._finish(kernel_error(errno.ECANCELED, "the requests on this file were cancelled"))
        else:
            self._armed_no_more(result, stopped=stopped)

    def _return(self, flags: int) -> None:
        """Give back a buffer that came without bytes, as some kernels send it with an error or an end."""
        number = flags >> _SHIFT
        if _take(self._raw_group, number) == 0:
            self.group.take_back(number)

    def _armed_no_more(self, result: int, *, stopped: bool) -> None:
        """The kernel's request is over: arm it again, park, or finish."""
        if result == 0 and self._keeps_boundaries:
            self._arrivals.append((0, 0))
            self._wake()
        if result > 0 or (result == 0 and self._keeps_boundaries):
            if len(self._arrivals) <= self._low:
                self._arm()
        elif result == 0:
            self._finish(None)
        elif result == -errno.ENOBUFS:
            self.group.enobufs += 1
            if not self.resting:
                self._park()
        elif result == -errno.EAGAIN:
            if not self.resting:
                self._start(data_first=DATA_FIRST)
        elif result == -errno.EINTR:
            self._arm()
        elif result == -errno.EINVAL and self._total:
            self._total = 0  # this kernel knows no limit
            self._arm()
        elif result == -errno.ECANCELED and stopped:
            if len(self._arrivals) <= self._low:
                self._arm()  # the reader was faster than the cancel
        elif self._driver.closing:
            self._finish(RingClosedError("the ring was closed during a receive"))
        elif result == -errno.ECANCELED and not self.group.registered:
            self._finish(RingClosedError(f"buffer ring {self.group.group_id} was unregistered during a receive"))
        else:
            self._finish(kernel_error(-result))

    def _finish(self, failure: Exception | None) -> None:
        """Nothing more will come; the reader hears of it after what is queued."""
        self.over = True
        self._failure = failure
        self._wake()

    def failed(self, error: Exception) -> None:
        """The ring is lost, or was closed: this request will never be heard of again; or it could not be started."""
        if self.ended and self._spare is not None:  # it never was the kernel's
            spare, self._spare = self._spare, None
            spare.release()
        self._over_for_the_kernel()
        self._finish(error)
        self._retire()

    # ---- the end -------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Chunks that nobody has taken yet."""
        return len(self._arrivals) + len(self._early)

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the kernel is done, for whoever has cancelled all on the file; None if it has no request.

        That cancel may meet a request that ends by itself in this moment: it is not armed again all the same.
        """
        if not self.armed:
            return None
        self._withdrawn = True
        end = self._driver.new_future()
        self._ends += (end,)
        return end

    def stop(self, why: Exception) -> None:
        """Ask the kernel to end the request; it is not armed again, and `why` is what readers get."""
        self.closing = True
        if not self.over:
            self._finish(why)
        if self._place is not None:
            self.group.leave_line(self._place)
        if self.armed:
            self._driver.cancel_soon(self)

    def retire(self, retired: "Callable[[], object]") -> None:
        """Stop, and keep what nobody took for the next receive on the file; idempotent.

        `retired` is called when all of that is done.
        """
        if not self.closing:
            self._retired = retired
            self.stop(kernel_error(errno.ECANCELED, "the stream was closed"))
            if not self.armed:
                self._retire()

    def retire_soon(self, retired: "Callable[[], object]") -> None:
        """The same, from any thread: the garbage collector's."""
        if lib.au_ring_check(self._driver.ring.raw) == lib.AU_WRONG_THREAD:
            self._driver.ask_from_elsewhere(partial(self.retire, retired))
        else:
            self.retire(retired)

    def _retire(self) -> None:
        """The kernel is done with the request, and so is the reader."""
        if self._retired is not None:
            self.let_go()
            self._retired()
            self._retired = None  # it refers to this; last: an interrupted step is taken again

    def _over_for_the_kernel(self) -> None:
        self.ended = True
        self.armed = False
        for end in self._ends:
            wake(end, 0)
        self._ends = ()

    def drop(self) -> None:
        """Give back the buffers of what nobody took: the socket is being closed."""
        while self._early:
            self._early.popleft().release()
        while self._arrivals:
            result, flags = self._arrivals.pop(0)
            if flags:
                self.group.take_back(flags >> _SHIFT)
            elif result != 0:
                result.release()

    def let_go(self) -> None:
        """Keep what nobody took for the next receive on the file, and give the buffers back."""
        kept = []
        while self._early:
            kept.append(self._keepsake(self._early.popleft()))
        while self._arrivals:
            result, flags = self._arrivals.pop(0)
            if flags or result != 0:
                kept.append(self._keepsake(self._lend(flags >> _SHIFT, result) if flags else result))
            else:
                kept.append(b"")  # an empty datagram
        if kept and not self._driver.closing and self._has_its_file():
            apart = self._keeps_boundaries or keeps_boundaries(self.fd)
            for data in kept if apart or any(isinstance(data, Kept) for data in kept) else [b"".join(kept)]:
                self._driver.leftovers.keep(self.fd, data, apart=apart)

    def _lend(self, number: int, length: int) -> ProvidedBuffer:
        """The lease of what came, and is queued by its buffer's number."""
        return self.group.lease(self.group, self.group.arena, number, length)

    def _keepsake(self, chunk: ProvidedBuffer) -> bytes:
        """The bytes of a chunk, which is released."""
        with chunk:
            return bytes(chunk.view)

    def _has_its_file(self) -> bool:
        """Whether the descriptor still stands for the file whose bytes came: they are nobody else's."""
        try:
            self.check_file()
            return self.file is None or bool(self.file.fileno() == self.fd)
        except (OSError, ValueError):
            return False
