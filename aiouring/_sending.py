"""Owns `Sending`: what a connection's sending half is to Python; the C core does the rest (senders.c).

Ownership.  A lent buffer that is written is handed over: its lease ends for whoever had it, and the C core
gives it back to its group when its bytes are sent.  A few bytes are copied by the C core.  Everything else that is
written is kept here, with the number that the C core gives it, until that has counted it as done with.

An interrupt can strike between any two lines (see `_turns`).  What was kept and then not written has the number of
what is written next, and goes with that; what is done with is taken off last, so that all steps may be taken again.
"""

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import BufferRing
from aiouring._errors import failure
from aiouring._lease import Lease
from aiouring._line import wake
from aiouring._objects import SendingRow
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from aiouring._driver import Driver
    from aiouring._uring import CSender

_add_buffer = lib.au_sender_add_buffer
_add_memory = lib.au_sender_add_memory
_NEVER = 1 << 63  # bytes
#: Bytes queued for sending above which `drain()` waits, and at which it goes on.
HIGH_WATER = lib.AU_HIGH_WATER
LOW_WATER = HIGH_WATER // 4

#: What the C core says of a caller whose memory is not touched: it is another thread's, or another process's.
WRONG_CONTEXT = (lib.AU_WRONG_THREAD, lib.AU_FORKED)


def checked_parts(parts: "Iterable[Any]") -> list[Any]:
    """What is to be written together; raises `TypeError` where one has no bytes, before any of them is written."""
    pieces = list(parts)
    for piece in pieces:
        if not isinstance(piece, bytes | Lease):
            memoryview(piece).release()
    return pieces


class Sending(SendingRow):
    """Everything that is to be sent on one connection, in order.

    The core gives back the buffers of `group`; others are given back here.
    """

    __slots__ = ("_ended", "_failure", "_kept", "_lost", "_waiting")

    def __init__(self, driver: "Driver", fd: int, group: BufferRing) -> None:
        raw: CSender = ffi.new("au_sender *")
        addresses = [int(ffi.cast("uintptr_t", pointer)) for pointer in (raw, group.raw)]
        super().__init__(driver, group, raw, addresses[0], group.raw, addresses[1], type(group).lease)
        # Memory that the kernel may read, each with its number; None where there is none, as an empty deque would be
        # larger than all else here.
        self._kept: deque[tuple[int, Any]] | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._ended: asyncio.Future[int] | None = None
        self._failure: Exception | None = None
        self._lost = False  # the ring is: what is in flight will never be heard of again
        number = driver.next_number()
        code = lib.au_sender_init(self.raw, driver.ring.raw, fd, number)
        if code:
            raise failure(code)
        driver.senders[number] = self

    def __repr__(self) -> str:
        return f"<Sending {self.raw.pending} bytes>"

    def __del__(self, close: "Callable[[Any], None]" = lib.au_sender_close) -> None:
        if self.raw is not None:
            close(self.raw)

    @property
    def in_flight(self) -> bool:
        """Whether the kernel has a request."""
        return bool(self.raw.in_flight)

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken."""
        return int(self.raw.pending)

    # write(), write_bytes() and drain() are the row's, which calls these where there is more to it.

    def _write_lease(self, data: Lease) -> None:
        """Queue a buffer of the group that somebody uses, has a view of, or has ended: where it can be handed over."""
        data.hand_over()
        code = _add_buffer(self.raw, self._raw_group, data.number, data.length)
        if code < 0:
            self._refuse(code, data)
        self._ask_for_turn()

    def _write_kept(self, data: bytes) -> bool:
        """Queue bytes that are too many to copy; returns whether too much is queued now."""
        code = self._add_kept(kept := ffi.from_buffer(data), kept, len(data))
        if code < 0:
            self._refuse(code)
        self._ask_for_turn()
        return code > 0

    async def _drain(self) -> None:
        """Too much is queued, or sending failed."""
        await self.below(LOW_WATER)

    def _ask_for_turn(self) -> None:
        if not self._driver._scheduled:
            self._driver.ask_for_turn()

    def _write_memory(self, data: Any) -> None:
        """Queue what does not lie in a buffer of the group."""
        if not isinstance(data, Lease):
            self.write_bytes(data if isinstance(data, bytes) else memoryview(data).tobytes())
        elif data.length:
            memory = data.memory()
            data.hand_over()
            code = self._add_kept(data, memory, data.length)
            if code < 0:
                self._refuse(code, data)
            self._ask_for_turn()
        else:
            data.memory()  # raises where it has ended
            data.hand_over()

    def _add_kept(self, kept: Any, memory: Any, length: int) -> int:
        """Queue memory that `kept` keeps."""
        if self._kept is None:
            self._kept = deque()
        self._kept.append((self.raw.memory_added + 1, kept))  # before the C core has it
        code = _add_memory(self.raw, memory, length)
        if code < 0:
            self._kept.pop()
        return code

    def _refuse(self, code: int, data: Any = None) -> None:
        """`data` was not queued: a buffer goes home, unless only its owner's thread may send it there."""
        if code in WRONG_CONTEXT:
            if isinstance(data, Lease):
                data.ended = False  # it was not handed over
            raise failure(code)
        if isinstance(data, Lease):
            data.give_back()
        if self._failure is None:
            self._failure = failure(code, "sending")
        raise self._failure

    def reason(self) -> Exception:
        """What has ended the sending."""
        if self._failure is None:
            self._failure = failure(self.raw.failure, "sending")
        return self._failure

    def arrived(self) -> None:
        """Something that was asked for is there: memory is free again, little is left to send, or sending failed."""
        raw = self.raw
        while (kept := self._kept) and kept[0][0] <= raw.memory_done:
            memory = kept[0][1]
            if isinstance(memory, Lease):
                memory.give_back()
            kept.popleft()
        if not kept:
            self._kept = None
        if raw.failure and self._failure is None:
            self._failure = failure(raw.failure, "sending")
        self._wake()
        if self._ended is not None and not raw.in_flight:
            wake(self._ended, 0)

    async def below(self, mark: int) -> None:
        """Wait until no more than `mark` bytes of what is queued now are left to send; raises what ended the sending.

        What is written later moves nothing: one who writes all the time cannot keep others waiting for ever.
        """
        raw = self.raw
        if raw.pending > mark and not raw.failure:
            reached = self.reach(mark)
            try:
                await reached
            finally:
                if reached.cancelled():
                    self._waiting = [entry for entry in self._waiting if entry[1] is not reached]
        if raw.failure:
            self._refuse(raw.failure)

    def reach(self, mark: int) -> "asyncio.Future[None]":
        """What resolves when no more than `mark` bytes of what is queued now are left to send, or sending failed."""
        raw = self.raw
        return self._expect(raw.taken + max(0, raw.pending - mark))

    def when_failed(self) -> "asyncio.Future[None]":
        """What resolves when sending has failed, or was dropped; then `failure` says why."""
        return self._expect(_NEVER)

    def set_high_water(self, size: int) -> None:
        """What is crowded: more than `size` bytes."""
        raw = self.raw
        raw.high_water = size
        raw.crowded = bool(raw.failure or raw.held) or raw.pending > size

    @property
    def failure(self) -> Exception | None:
        """What ended the sending."""
        return self._failure

    def _expect(self, taken: int) -> "asyncio.Future[None]":
        entry = (taken, self._driver.new_future())
        self._waiting.append(entry)
        self._wake()  # it may have come already
        return entry[1]

    async def send_eof(self, sock: socket.socket) -> None:
        """Send what is queued, then the end of this direction."""
        await self.below(0)
        sock.shutdown(socket.SHUT_WR)

    async def send_rest(self, _: socket.socket) -> None:
        """Send what is queued, before the socket is closed."""
        await self.below(0)

    def _watch(self) -> None:
        self.raw.watched = bool(self._waiting)
        self.raw.wanted = min((wanted for wanted, _ in self._waiting), default=0)

    def _wake(self) -> None:
        for entry in list(self._waiting):
            if self.raw.taken >= entry[0] or self.raw.failure:
                wake(entry[1])
                self._waiting.remove(entry)  # last: an interrupted step is taken again
        self._watch()

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the request in flight has ended; None if there is none.  After `drop()`."""
        if not self.raw.in_flight or self._lost:
            return None
        if self._ended is None or self._ended.done():
            self._ended = self._driver.new_future()
        return self._ended

    def drop(self, error: Exception) -> None:
        """Send nothing more: `error` is for whoever waits or writes; what the kernel has is cancelled."""
        self._failure = self._failure or error
        if lib.au_sender_drop(self.raw, -errno.ECONNABORTED) > 0:
            self._driver.ask_for_turn()
        self.arrived()

    def failed(self, error: Exception) -> None:
        """The ring is lost.  The kernel may still read what is in flight, so that is kept."""
        self._failure = self._failure or error
        self._lost = True
        self.raw.failure = self.raw.failure or -errno.ECONNABORTED
        self.raw.crowded = 1
        self._wake()
        if self._ended is not None:
            wake(self._ended, 0)

    def forget(self) -> None:
        """The connection is closed; what is in flight on a lost ring stays in the driver's hands, with its memory."""
        if self.raw.in_flight:
            return
        self._driver.senders.pop(self.raw.number, None)
        lib.au_sender_close(self.raw)
        for _, memory in self._kept or ():  # what an interrupt kept from being written
            if isinstance(memory, Lease):
                memory.give_back()
