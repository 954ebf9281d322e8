"""Owns the verbs for messages: several buffers at once, addresses of peers, and control data."""

import socket
from array import array
from collections.abc import Iterable
from functools import partial
from typing import Any, overload

from aiouring._address import unpack_address
from aiouring._buffer_ring import BufferRing
from aiouring._features import require
from aiouring._messages import Ancillary, ReceiveMessage, SendMessage, checked, new_message
from aiouring._receive_stream import MessageStream
from aiouring._received_message import ProvidedMessage, ReceivedMessage, message_of
from aiouring._receiving_messages import ReceivingMessages, check_whole, room_for
from aiouring._request import Kept
from aiouring._socket_verbs import SocketVerbs
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, forget, kind_of, packed_address, perform_provided, resolve

_SEND_FLAGS = int(
    socket.MSG_OOB
    | socket.MSG_DONTROUTE
    | socket.MSG_EOR
    | socket.MSG_MORE
    | socket.MSG_CONFIRM
    | socket.MSG_FASTOPEN
    | socket.MSG_NOSIGNAL
    | socket.MSG_WAITALL
)
_RECEIVE_FLAGS = int(socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC)


class MessageVerbs(SocketVerbs):
    """The part of `AsyncRing` that sends and receives messages."""

    async def sendmsg(
        self,
        sock: File,
        parts: Iterable[Bytes],
        address: Any = None,
        *,
        ancillary: Iterable[tuple[int, int, Bytes]] = (),
        flags: int = 0,
    ) -> int:
        """Send several buffers as one message; returns the number of bytes that were sent, as `socket.sendmsg()`.

        A stream socket may take less than all; a datagram goes whole or not at all.

        Args:
            sock: a socket; a direct descriptor too.
            parts: up to 1024 buffers, any C-contiguous ones or lent ones.
            address: where to, for a socket that is not connected, written as for `socket.sendto()`.  Host names are
                resolved by the loop.
            ancillary: (level, type, data) of each piece of control data.  Descriptors (SCM_RIGHTS) are duplicated at
                once: they may be closed as soon as this has begun.
            flags: `socket.MSG_EOR`, `MSG_MORE`, `MSG_OOB`, `MSG_DONTROUTE`, `MSG_CONFIRM`, `MSG_FASTOPEN` and
                `MSG_WAITALL`.  Not `MSG_ZEROCOPY`, after which the kernel would still need the memory: `sendmsg_zc()`.

        After a cancellation `bytes_written(error)` says how much was sent.

        Since Linux 5.3.  See io_uring_prep_sendmsg(3).
        """
        if flags & ~_SEND_FLAGS:
            raise ValueError(f"flags={flags:#x}: {flags & ~_SEND_FLAGS:#x} cannot be given here")
        number, file, how = resolve(sock)
        driver = self._driver or self._bound()
        packed = b"" if address is None else await packed_address(driver, sock, address)
        message, held = new_message(parts, writable=False)
        if packed:
            checked(lib.au_message_address(message, packed, len(packed)))
        request = SendMessage(number, file, message, held, ancillary)
        flags |= socket.MSG_NOSIGNAL
        sent = await driver.perform(
            request, lib.au_prepare_message, lib.AU_OP_SENDMSG, number, message, ffi.NULL, 0, int(flags), how
        )
        request.let_go()
        return sent

    async def sendto(self, sock: File, data: Bytes, address: Any) -> int:
        """Send one datagram to `address`; returns its number of bytes.  See `sendmsg`.  Since Linux 5.3."""
        return await self.sendmsg(sock, [data], address)

    @overload
    async def recvmsg(
        self, sock: File, buffers: Iterable[Bytes], *, ancillary_size: int = 0, flags: int = 0
    ) -> tuple[int, Ancillary, int, Any]: ...

    @overload
    async def recvmsg(self, sock: File, buffers: BufferRing, *, ancillary_size: int = 0) -> ReceivedMessage: ...

    async def recvmsg(
        self, sock: File, buffers: Iterable[Bytes] | BufferRing, *, ancillary_size: int = 0, flags: int = 0
    ) -> tuple[int, Ancillary, int, Any] | ReceivedMessage:
        """Receive one message into several buffers; returns what `socket.recvmsg_into()` does.

        That is: the number of bytes; the control data, (level, type, data) of each piece; flags (`MSG_TRUNC` where the
        message was longer than the buffers, `MSG_CTRUNC` where the control data was longer than `ancillary_size`);
        and the sender's address as the `socket` module writes it, None where it has none.

        Into a group's buffer, which the kernel picks when the message is there, it returns a `ReceivedMessage`, lent.
        While all buffers are lent this waits in line, as `recv`.

        Cancelling it loses nothing: a message that arrives with the cancellation is the next receive's, with all that
        came beside it.

        Args:
            sock: a socket; a direct descriptor too.
            buffers: up to 1024 writable buffers, which are filled one after the other; or a group (since Linux 5.19).
            ancillary_size: bytes for control data, see `socket.CMSG_SPACE()`.  Descriptors that come with it
                (SCM_RIGHTS) are close-on-exec, and yours to close.
            flags: `socket.MSG_PEEK`, `MSG_TRUNC`, `MSG_WAITALL`; none of them with a group.

        Raises:
            ResourceBusyError: another receive is waiting on this socket.
            BuffersExhaustedError: the group is empty, and was registered with on_empty="raise".

        Since Linux 5.3.  See io_uring_prep_recvmsg(3).
        """
        if isinstance(buffers, BufferRing):
            return await self._recvmsg_provided(sock, buffers, ancillary_size, flags)
        if flags & ~_RECEIVE_FLAGS:
            raise ValueError(f"flags={flags:#x}: {flags & ~_RECEIVE_FLAGS:#x} cannot be given here")
        number, file, how = resolve(sock)
        message, held = new_message(buffers, writable=True)
        request = ReceiveMessage(number, file, message, held, ancillary_size, flags)
        driver = self._driver or self._bound()
        if number in self._receiving:
            await self._after_stream(sock, number)
        self._receiving[number] = file
        try:
            if driver.leftovers.kept:
                peek = bool(flags & socket.MSG_PEEK)
                data = driver.leftovers.take_message(number, request.room, peek=peek)
                if data is not None:
                    return _came_earlier(request, data, ancillary_size, flags)
            flags |= socket.MSG_CMSG_CLOEXEC
            count = await driver.perform(
                request, lib.au_prepare_receive_message, lib.AU_OP_RECVMSG, number, message, int(flags), how
            )
            beside = request.received()
            request.let_go()
        finally:
            if self._receiving.get(number) is file:
                del self._receiving[number]
        beside.descriptors = ()  # the caller's
        return count, list(beside.ancillary), beside.flags, unpack_address(beside.name)

    async def _recvmsg_provided(
        self, sock: File, group: BufferRing, ancillary_size: int, flags: int
    ) -> ReceivedMessage:
        if flags:
            raise ValueError(f"flags={flags:#x}: none can be given with a group")
        check_whole(group)
        number, file, how = resolve(sock)
        flags = int(socket.MSG_CMSG_CLOEXEC)
        if kind_of(sock, number)[1] != socket.SOCK_STREAM:
            flags |= socket.MSG_TRUNC  # say the whole size; of a stream that would throw bytes away
        request = ProvidedMessage(number, file, group, ancillary_size, flags)
        driver = self._driver or self._bound()
        if number in self._receiving:
            await self._after_stream(sock, number)
        self._receiving[number] = file
        try:
            if driver.leftovers.kept and (data := driver.leftovers.take_message(number, group.size)) is not None:
                return message_of(data)
            arguments = lib.AU_OP_RECVMSG, number, group.raw, request.hold, flags, how
            await perform_provided(driver, request, None, None, lib.au_prepare_select_message, *arguments)
            message = request.message()
            request.let_go()  # an empty message may have taken a buffer
        finally:
            if self._receiving.get(number) is file:
                del self._receiving[number]
        return message

    def recvmsg_multishot(
        self,
        sock: File,
        group: BufferRing,
        *,
        ancillary_size: int = 0,
        name_size: int | None = None,
        max_pending: int | None = None,
    ) -> MessageStream:
        """Keep a receive armed; `async for` its messages, each with its address and control data, in a lent buffer.

        One request serves all of them.  Of each buffer 16 bytes, `name_size` and `ancillary_size` are not the
        payload's: a message that is longer than the rest is cut off, and says so in its `flags` and `size`.  Where
        nobody takes messages, where the group is empty, and at the end, it is as `recv_multishot`; of a flood, what
        comes above `max_pending` before the kernel has stopped is copied, and its buffers go back to the group.  An
        empty datagram is a message; on other sockets it is the end.

        Args:
            sock: a socket; a direct descriptor too.
            group: the buffers.
            ancillary_size: bytes for control data, see `socket.CMSG_SPACE()`.
            name_size: bytes for the sender's address; None for what the socket's family needs, 0 for none.
            max_pending: messages that may wait for their taker, as for `recv_multishot`.

        Raises:
            ResourceBusyError: another receive is waiting on this socket.
            ValueError: the group's buffers are too small for all that comes before the payload.

        Since Linux 6.0.  See io_uring_prep_recvmsg_multishot(3).
        """
        require("multishot receive")
        number, file, how = resolve(sock)
        driver = self._before_stream(sock, number, file, group)
        family, kind, _ = kind_of(sock, number)
        room = room_for(group, family, name_size, ancillary_size)
        high = group.most_pending(max_pending)
        receiving = ReceivingMessages(driver, number, file, how, group, high, kind=kind, room=room)
        self._receiving[number] = receiving
        return MessageStream(receiving, receiving.__anext__, partial(forget, self._receiving, number, receiving))

    @overload
    async def recvfrom(self, sock: File, size: int) -> tuple[bytes, Any]: ...

    @overload
    async def recvfrom(self, sock: File, size: BufferRing) -> tuple[ReceivedMessage, Any]: ...

    async def recvfrom(self, sock: File, size: int | BufferRing) -> tuple[bytes | ReceivedMessage, Any]:
        """Receive one datagram of up to `size` bytes; returns it and its sender's address.

        With a group in the place of the size it is received into a buffer of the group, and lent.  What is longer is
        cut off.  Otherwise as `recvmsg`.  Since Linux 5.3; with a group 5.19.
        """
        if isinstance(size, BufferRing):
            message = await self.recvmsg(sock, size)
            return message, message.address
        memory = bytearray(size)
        count, _, _, address = await self.recvmsg(sock, [memory])
        return bytes(memory[:count]), address

    async def recvfrom_into(self, sock: File, buffer: Bytes) -> tuple[int, Any]:
        """Receive one datagram into `buffer`; returns its number of bytes and its sender's address.

        Otherwise as `recvmsg`.  Since Linux 5.3.
        """
        count, _, _, address = await self.recvmsg(sock, [buffer])
        return count, address


def _came_earlier(
    request: ReceiveMessage, data: bytes, ancillary_size: int, flags: int
) -> tuple[int, Ancillary, int, Any]:
    """The result of a receive whose message had come with a cancellation."""
    kept = data if isinstance(data, Kept) else Kept(data)
    fitted = request.deliver(kept)
    ancillary, at, said = [], 0, kept.flags
    for piece in kept.ancillary:
        at += socket.CMSG_SPACE(len(piece[2]))
        passes = piece[:2] == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        if at > ancillary_size or (passes and flags & socket.MSG_PEEK):
            said |= socket.MSG_CTRUNC
            break
        ancillary.append(piece)
        if passes:  # the caller's now
            given = array("i", piece[2])
            kept.descriptors = tuple(number for number in kept.descriptors if number not in given)
    if kept.whole and len(kept) > fitted:
        said |= socket.MSG_TRUNC
    count = len(kept) if kept.whole and flags & socket.MSG_TRUNC else fitted
    request.ended = True
    request.let_go()
    return count, ancillary, said, unpack_address(kept.name)
