"""Owns what a receiver does whose group is empty: it stands in the line, or receives into private memory.

See `_private_buffers`.  A lease is the request's from before it is filled until its final completion, as any other:
one that is given up on keeps its memory, and its bytes go to the next receive on the file.
"""

import errno
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import end_of_stream
from aiouring._objects import ReceivingRow
from aiouring._request import Read, Receive, Request
from aiouring._uring import lib

if TYPE_CHECKING:
    import asyncio

    from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer
    from aiouring._driver import Driver

_prepare_memory = lib.au_prepare_memory
_WITHOUT_WAITING = int(socket.MSG_DONTWAIT)

#: In a receive's `how`: wait for data before a buffer is looked for.  Since Linux 5.19.
DATA_FIRST = lib.AU_RECVSEND_POLL_FIRST << 16
#: In a stream's `how`: one completion may bring several buffers.  Since Linux 6.10.
BUNDLE = lib.AU_RECVSEND_BUNDLE << 16


class PrivateReceive(Receive):
    """A receive into private memory that does not wait for data."""

    __slots__ = ("group",)
    expected = errno.EAGAIN


class PrivateRead(Read):
    """A read into private memory at the file's own position; it waits where the file does."""

    __slots__ = ("group",)


class PrivateReadAt(Request):
    """The same at an offset: nothing is to be undone."""

    __slots__ = ("group",)


async def receive_privately(
    driver: "Driver", fd: int, file: Any, how: int, group: "BufferRing", spare: "ProvidedBuffer"
) -> "ProvidedBuffer | None":
    """Receive into `spare`; empty at the end of the stream, None where no data is there."""
    request = PrivateReceive(fd, file, spare.memory(), spare)
    size = group.size
    arguments = (lib.AU_OP_RECV, fd, spare.memory(), size, 0, size, 0, _WITHOUT_WAITING, how)
    result = await _perform(driver, request, group, spare, arguments)
    if result == -errno.EAGAIN:
        return None
    return spare if result else end_of_stream()


async def read_privately(
    driver: "Driver", request: "PrivateRead | PrivateReadAt", group: "BufferRing", most: int, offset: int, how: int
) -> "ProvidedBuffer":
    """Read at most `most` bytes into the memory of `request`; empty at the end of the file."""
    spare: Any = request.lease
    arguments = (lib.AU_OP_READ, request.fd, spare.memory(), group.size, 0, most, offset, 0, how)
    return spare if await _perform(driver, request, group, spare, arguments) else end_of_stream()


async def _perform(
    driver: "Driver", request: Any, group: "BufferRing", spare: "ProvidedBuffer", arguments: tuple[Any, ...]
) -> int:
    request.group = group  # whose end is this request's, too
    with ExitStack() as stack:
        stack.push(spare)  # it comes back, when the kernel is done with it
        result = await driver.perform(request, _prepare_memory, *arguments)
        stack.pop_all()
    group.private.settle(spare, result)
    return result


class Shorthanded(ReceivingRow, Request):
    """The part of `Receiving` that deals with an empty group.

    It stands in the line; or, where the group falls back, one private receive takes the multishot's place.
    """

    __slots__ = ("_how", "_place", "_spare", "closing", "resting")
    group: "BufferRing"

    def __init__(self, driver: "Driver", fd: int, file: Any, how: int) -> None:
        super().__init__(fd, file)
        self._driver = driver
        self._how = how
        self._arrivals = []  # few: result and flags of a lent buffer; or a chunk and 0
        self._place: asyncio.Future[ProvidedBuffer | None] | None = None  # in the group's line
        self._ticket = 0  # its place in that line; kept until data comes
        self._spare: ProvidedBuffer | None = None  # what a private receive in flight receives into
        self.closing = self.resting = False

    def _start(self, spare: "ProvidedBuffer | None" = None, data_first: int = 0) -> None:
        """Arm the multishot, or receive into `spare`."""
        raise NotImplementedError

    def _finish(self, failure: Exception | None) -> None:
        """Nothing more will come."""
        raise NotImplementedError

    def policy(self) -> "OnEmpty":
        """What it does when the group is empty."""
        return self.group.on_empty

    def _park(self) -> None:
        """Receive privately, or join the group's line; whoever hands out buffers calls `_called`."""
        group = self.group
        self._ticket = self._ticket or group.draw_ticket()
        try:
            policy = self.policy()
            spare = group.draw_private(policy)
            if spare is not None:
                return self._start(spare)
            self._place = place = group.join_line(self._ticket, (self.fd, self.file), policy)
        except (OSError, RuntimeError) as error:
            self._finish(error)
        else:
            place.add_done_callback(self._called)

    def _called(self, place: "asyncio.Future[ProvidedBuffer | None]") -> None:
        self._place = None
        if place.cancelled():
            return
        error = place.exception()
        if self.closing or self.resting:
            if error is None:
                self.group.decline(place.result())  # it was called, and leaves: the next is
        elif error is None:
            self._start(place.result())
        else:
            assert isinstance(error, Exception)
            self._finish(error)

    def _start_privately(self, spare: "ProvidedBuffer") -> None:
        """Receive what is there into `spare`, which is this request's until its completion has arrived."""
        size, how = self.group.size, self._how & ~BUNDLE  # there is one buffer
        arguments = (lib.AU_OP_RECV, self.fd, spare.memory(), size, 0, size, 0, _WITHOUT_WAITING, how)
        self._spare = spare
        self._driver.start(self, _prepare_memory, *arguments)

    def _arrived_privately(self, spare: "ProvidedBuffer", result: int) -> None:
        """Queue what came.  Taking this step twice, after an interrupt, does no harm."""
        arrivals = self._arrivals
        if not spare.ended and not (arrivals and arrivals[-1][0] is spare):
            self.group.private.settle(spare, result)
            if result > 0:
                arrivals.append((spare, 0))
                self._ticket = 0  # it had its turn
        self._spare = None
