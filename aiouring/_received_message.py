"""Owns `ReceivedMessage`: one message in a group's buffer, from whom it came, and the control data beside it.

`ProvidedMessage` is the request for one of them, `message_in()` makes those of a multishot receive.

Ownership.  The buffer is lent, as every `ProvidedBuffer`.  Descriptors that came with the message are the message's
until `ancillary` is read, and then the reader's: those of a message that is released, or dropped, before that are
closed.  What is not the payload is copied out of the buffer when the message is made, and outlives its release.

A multishot receive puts a header, the name and the control data before the payload (see struct au_recvmsg_out); so the
payload starts somewhere inside the buffer, and `start` is where.
"""

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

from aiouring._address import unpack_address
from aiouring._buffer_ring import BufferRing, ProvidedBuffer
from aiouring._lease import Arena, Home
from aiouring._messages import Ancillary, ReceiveMessage, empty_message, unpack_ancillary
from aiouring._provided_buffer import EMPTY, NOWHERE
from aiouring._request import Kept, Leftovers, keeps_boundaries
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._uring import CMemory

_HEADER = struct.Struct("=4I")  # struct au_recvmsg_out
HEADER_BYTES = lib.AU_MESSAGE_HEADER
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


class ReceivedMessage(ProvidedBuffer):
    """One message, its payload in a buffer the kernel picked; falsy when the payload is empty.

    `view` and `len()` are the payload; verbs send it as any lent buffer.  Give it back with `release()` or by leaving
    `with`.  The address, the flags and the control data may be read afterwards, too.
    """

    __slots__ = ("_beside", "_start", "size")

    def __init__(self, home: Home, arena: Arena, number: int, length: int, start: int, beside: Kept, size: int) -> None:
        super().__init__(home, arena, number, length)
        self._start = start
        self._beside = beside
        self.size = size
        """Bytes of the message before it was cut off to fit the buffer: more than `len()` where it was."""

    @property
    def address(self) -> Any:
        """From whom, as the `socket` module writes it; None where the sender has no address, or it was not asked for.

        Where the address was longer than `name_size`, it is the bytes of `struct sockaddr` that fitted.
        """
        beside = self._beside
        return beside.name if beside.name_cut else unpack_address(beside.name)

    @property
    def flags(self) -> int:
        """`MSG_TRUNC` where the payload was cut off, `MSG_CTRUNC` where the control data was, `MSG_EOR` ..."""
        return self._beside.flags

    @property
    def ancillary(self) -> Ancillary:
        """(level, type, data) of each piece of control data.

        Reading this makes descriptors among it (SCM_RIGHTS) yours: they are close-on-exec, and yours to close.  If
        nobody has read it by then, releasing the message closes them, and leaves them out here.
        """
        self._beside.descriptors = ()
        return list(self._beside.ancillary)

    @property
    def view(self) -> memoryview:
        """The payload, writable, until it is released.  Raises `ValueError` after that."""
        if self._view is None and not self.ended:
            whole = memoryview(self.arena.exporters[self.number])
            self._view = whole[self._start : self._start + self.length]
        return super().view

    def memory(self) -> "CMemory":
        """The payload as a C pointer, for requests.  Raises `ValueError` after release."""
        return super().memory() + self._start  # the lease, which requests hold as well, keeps it alive

    def contents(self) -> bytes:
        """A copy of the payload of a message that was handed over."""
        copy: bytes = self.arena.exporters[self.number][self._start : self._start + self.length]
        return copy

    def release(self) -> None:
        """Give the buffer back, and close what descriptors nobody took; see `ProvidedBuffer.release()`."""
        super().release()
        self._close_untaken()

    def _end_quietly(self) -> None:
        super()._end_quietly()
        self._close_untaken()

    def _close_untaken(self) -> None:
        beside = self._beside
        if beside.descriptors:
            beside.close_descriptors()
            beside.ancillary = tuple(piece for piece in beside.ancillary if piece[:2] != _RIGHTS)

    def keepsake(self, *, whole: bool) -> bytes:
        """Release the message, and return it as the next receive on its socket will find it.

        `whole` where the socket keeps the boundaries of messages.
        """
        beside = self._beside
        if not whole and not beside.ancillary:
            kept = bytes(self.view)
        else:
            kept = beside.copy(bytes(self.view) if self.length else b"")
            kept.whole = whole
            kept.size = self.size
            kept.descriptors, beside.descriptors = beside.descriptors, ()
        self.release()
        return kept


class ProvidedMessage(ReceiveMessage):
    """A receive of one message: its payload goes into a buffer of a group, the rest into memory of the request's."""

    __slots__ = ("group",)
    expected = errno.ENOBUFS
    doing = "receive"

    def __init__(self, fd: int, file: Any, group: BufferRing, ancillary_size: int, flags: int) -> None:
        super().__init__(fd, file, empty_message(0), [], ancillary_size, flags)
        self.group: BufferRing = group

    def message(self) -> ReceivedMessage:
        """What came: now the caller's."""
        beside = self.received()
        beside.flags &= ~_CLOEXEC
        if not self.result:
            return ReceivedMessage(NOWHERE, EMPTY, 0, 0, 0, beside, 0)
        buffer = self.group.take(self.flags, min(self.result, self.group.size))
        buffer.hand_over()  # the message has it
        message = ReceivedMessage(self.group, self.group.arena, buffer.number, buffer.length, 0, beside, self.result)
        return self.group.noted(message)

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Keep the message, with what came beside it, and give the buffer back."""
        if self.result >= 0:
            whole = keeps_boundaries(self.fd)
            kept = self.message().keepsake(whole=whole)
            if kept or whole:
                leftovers.keep(self.fd, kept)

    def let_go(self) -> None:
        """Give back a buffer that came without bytes: with an error, or an empty message."""
        if self.ended and self.result <= 0 and self.flags & lib.AU_CQE_F_BUFFER:
            flags, self.flags = self.flags, 0
            self.group.put_back(flags, failed=self.result < 0)


def message_in(group: BufferRing, number: int, result: int, name_size: int, control_size: int) -> ReceivedMessage:
    """The message that a multishot receive left in buffer `number`, which the caller has; an empty one needs none."""
    exporter = group.arena.exporters[number]
    name_length, control_length, size, flags = _HEADER.unpack_from(exporter)
    beside = Kept()
    beside.name = exporter[HEADER_BYTES : HEADER_BYTES + min(name_length, name_size)]
    beside.name_cut = 0 < name_size < name_length
    beside.flags = flags & ~_CLOEXEC  # that was our wish
    start = HEADER_BYTES + name_size + control_size
    if control_length:
        control = exporter[HEADER_BYTES + name_size : HEADER_BYTES + name_size + control_length]
        beside.ancillary, beside.descriptors = unpack_ancillary(control)
    if result > start:
        return group.noted(ReceivedMessage(group, group.arena, number, result - start, start, beside, size))
    group.take_back(number)
    return ReceivedMessage(NOWHERE, EMPTY, 0, 0, 0, beside, size)


def is_the_end(group: BufferRing, number: int) -> bool:
    """Whether what a multishot receive left in buffer `number` is the end of a stream: there is nothing in it."""
    return not any(_HEADER.unpack_from(group.arena.exporters[number])[:3])


def message_of(data: bytes) -> ReceivedMessage:
    """A message that came earlier, for a receive that was cancelled."""
    beside = data if isinstance(data, Kept) else Kept()
    size = max(len(data), beside.size)
    if not data:
        return ReceivedMessage(NOWHERE, EMPTY, 0, 0, 0, beside, size)
    arena = Arena(1, len(data), len(data))
    message = ReceivedMessage(NOWHERE, arena, 0, len(data), 0, beside, size)
    message.view[:] = data
    return message
