"""Owns `ReceivingMessages`: a receive that stays armed for messages, with all that comes beside them.

It is `Receiving` in everything but what lies in a buffer: the kernel writes a header, the sender's name and control
data before each payload.  What follows from that:

1. A completion says how much of the buffer is filled, never 0: an empty message is one whose header says so.  Of
   datagrams it is a message like any other; on other sockets (a stream, a sequence of packets) one that nothing came
   with, no name and no control data, is the end, and is handed to `Receiving` as such.
2. The kernel knows no limit in bytes for these (EINVAL, measured on 6.18), so a flood takes all of the group's buffers
   before anybody can look.  What came above the bound is therefore copied, right after the turn that found it, and its
   buffers go back: a flood holds no more of the group than `max_pending` says.  The copies are bounded as well: above
   the bound the request is cancelled or, where the flood ended it (ENOBUFS), not armed again before half of what is
   queued has been taken.
3. Descriptors that nobody takes are closed: with the message, with what is kept for the next receive, or here.
"""

import errno
import socket
from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer
from aiouring._messages import checked, empty_message
from aiouring._multishot import Receiving
from aiouring._received_message import HEADER_BYTES, ReceivedMessage, is_the_end, message_in, message_of
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._driver import Driver

_prepare = lib.au_prepare_multishot_message
_release = lib.au_group_release
_BUFFER = lib.AU_CQE_F_BUFFER
_MORE = lib.AU_CQE_F_MORE
_SHIFT = lib.AU_CQE_BUFFER_SHIFT

#: Bytes that an address takes, by family: struct sockaddr_in, sockaddr_in6, sockaddr_un.
_NAME_BYTES: dict[int, int] = {socket.AF_INET: 16, socket.AF_INET6: 28, socket.AF_UNIX: 110}


def check_whole(group: BufferRing) -> None:
    """Refuse a group that gives out its buffers in parts."""
    if group.incremental:
        raise ValueError(
            f"group {group.group_id} gives out its buffers in parts, and a message takes a whole one: use a group "
            "without incremental=True"
        )


def room_for(group: BufferRing, family: int, name_size: int | None, ancillary_size: int) -> tuple[int, int]:
    """How many bytes of each buffer names and control data get; `ValueError` where nothing is left for a payload."""
    check_whole(group)
    name = _NAME_BYTES.get(family, lib.AU_MAX_NAME) if name_size is None else name_size
    if not 0 <= name <= lib.AU_MAX_NAME:
        raise ValueError(f"name_size={name} is outside 0 to {lib.AU_MAX_NAME}")
    if not 0 <= ancillary_size <= lib.AU_MAX_CONTROL:
        raise ValueError(f"ancillary_size={ancillary_size} is outside 0 to {lib.AU_MAX_CONTROL}")
    least = HEADER_BYTES + name + ancillary_size + 1
    if group.size < least:
        raise ValueError(
            f"buffers of {group.size} bytes are too small: before each payload come {HEADER_BYTES} bytes, {name} for "
            f"the sender's name and {ancillary_size} for control data, so at least {least} are needed"
        )
    return name, ancillary_size


class ReceivingMessages(Receiving):
    """The receiving half of one socket, by messages.  `kind` is the socket's type."""

    __slots__ = ("_apart", "_control_size", "_flags", "_message", "_name_size", "_spilling")

    def __init__(
        self,
        driver: "Driver",
        fd: int,
        file: Any,
        how: int,
        group: BufferRing,
        high: int,
        *,
        kind: int,
        room: tuple[int, int],
    ) -> None:
        self._name_size, self._control_size = room
        self._apart = kind != socket.SOCK_STREAM
        self._flags = int(socket.MSG_CMSG_CLOEXEC)
        if self._apart:
            self._flags |= socket.MSG_TRUNC  # say the whole size; of a stream that would throw bytes away
        self._spilling = False
        self._message = empty_message(0)
        checked(lib.au_message_room(self._message, *room))
        super().__init__(driver, fd, file, how, group, high, keeps_boundaries=kind == socket.SOCK_DGRAM)

    async def __anext__(self) -> ReceivedMessage:
        """The next message.  Cancelling this takes nothing."""
        chunk = await super().__anext__()
        if isinstance(chunk, ReceivedMessage):
            return chunk
        chunk.hand_over()  # the message has it
        return self._lend(chunk.number, chunk.length)

    def policy(self) -> OnEmpty:
        """Wait, rather than fall back: a message needs a buffer with room for its header."""
        policy = super().policy()
        return "wait" if policy == "fallback" else policy

    def _operate(self, how: int) -> None:
        self._driver.start(self, _prepare, lib.AU_OP_RECVMSG, self.fd, self._raw_group, self._message, self._flags, how)

    def _lend(self, number: int, length: int) -> ReceivedMessage:
        return message_in(self.group, number, length, self._name_size, self._control_size)

    def _bring_back(self) -> None:
        leftovers = self._driver.leftovers
        while (data := leftovers.take_message(self.fd, self.group.size)) is not None:
            self._early.append(message_of(data))

    def arrived(self, result: int, flags: int) -> None:
        """A completion of this request.  Taking this step twice, after an interrupt, does no harm."""
        if result > 0 and not flags & _MORE and not self._keeps_boundaries and flags & _BUFFER:
            number = flags >> _SHIFT
            if is_the_end(self.group, number):
                _release(self._raw_group, number)  # taken by the C core; a second time it is refused
                self._driver.ask_for_turn()
                result = flags = 0
        super().arrived(result, flags)
        if len(self._arrivals) > self._high and not self._spilling:
            self._driver.loop.call_soon(self._spill)
            self._spilling = True

    def _spill(self) -> None:
        """Copy what came above the bound, and give its buffers back."""
        self._spilling = False
        arrivals = self._arrivals
        for at in range(self._high, len(arrivals)):
            result, flags = arrivals[at]
            if flags:
                message = self._lend(flags >> _SHIFT, result)
                arrivals[at] = (message_of(message.keepsake(whole=True)), 0)

    def _armed_no_more(self, result: int, *, stopped: bool) -> None:
        if result == -errno.ENOBUFS and len(self._arrivals) > self._low:
            self.group.enobufs += 1  # its own flood; the reader arms it again
        else:
            super()._armed_no_more(result, stopped=stopped)

    def drop(self) -> None:
        """Give back the buffers of what nobody took, and close the descriptors: the socket is being closed."""
        while self._early:
            self._early.popleft().release()
        while self._arrivals:
            result, flags = self._arrivals.pop(0)
            (self._lend(flags >> _SHIFT, result) if flags else result).release()

    def _keepsake(self, chunk: ProvidedBuffer) -> bytes:
        assert isinstance(chunk, ReceivedMessage)
        return chunk.keepsake(whole=self._apart)
