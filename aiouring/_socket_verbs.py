"""Owns the verbs for sockets: connections are accepted and made, bytes sent and received."""

import errno
import socket
from functools import partial
from typing import Any, Literal, overload

from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer, end_of_stream, private_copy
from aiouring._bundle import ProvidedBundle
from aiouring._driver import Driver
from aiouring._errors import RingClosedError, note_written_before
from aiouring._features import require
from aiouring._multishot import Receiving
from aiouring._private_receives import DATA_FIRST, receive_privately
from aiouring._receive_stream import ReceiveStream
from aiouring._request import Accept, ProvidedReceive, Receive, Request, Write
from aiouring._standing_streams import connection_of
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, fill, forget, kind_of, line_up, memory_of, packed_address, resolve

# Looked up once: these are on every message's way, and an `|` of the socket module's enums takes a microsecond.
_prepare_select = lib.au_prepare_select
_prepare_memory = lib.au_prepare_memory
_RECV = lib.AU_OP_RECV
_SEND = lib.AU_OP_SEND
_NO_BUFFERS = -errno.ENOBUFS
_SEND_FLAGS = int(socket.MSG_NOSIGNAL)
_SEND_ALL_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_WAITALL)
_ACCEPT_FLAGS = int(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


class SocketVerbs(Verbs):
    """The part of `AsyncRing` that talks to peers."""

    _receiving: dict[Any, Any]

    async def accept(self, sock: File) -> socket.socket:
        """Accept a connection; returns a non-blocking, close-on-exec socket.

        A connection that comes together with a cancellation is closed.  Since Linux 5.5.  See
        io_uring_prep_accept(3).
        """
        number, file, how = resolve(sock)
        fd = await (self._driver or self._bound()).perform(
            Accept(number, file), lib.au_prepare, lib.AU_OP_ACCEPT, number, 0, 0, 0, _ACCEPT_FLAGS, how
        )
        return connection_of(sock, fd)

    async def connect(self, sock: File, address: Any) -> None:
        """Connect to `address`, written as for `socket.connect()`; host names are resolved by the loop.

        After a cancellation the socket's state is undefined: close it.  Since Linux 5.5.  See
        io_uring_prep_connect(3).
        """
        driver = self._driver or self._bound()
        packed = await packed_address(driver, sock, address)
        number, file, how = resolve(sock)
        memory = ffi.new("char[]", packed)
        size = len(packed)
        await driver.perform(
            Write(number, file, memory),
            _prepare_memory,
            lib.AU_OP_CONNECT,
            number,
            memory,
            size,
            0,
            0,
            size,
            0,
            how,
        )

    async def recv(self, sock: File, group: BufferRing, *, on_empty: OnEmpty | None = None) -> ProvidedBuffer:
        """Receive into a buffer that the kernel picks from `group` when the data is there.

        Returns it lent: release it, or use it in a `with` block.  It is empty, and falsy, at the end of the
        stream.  While all buffers are lent this waits in line, or does what `on_empty` (here or of the group) says,
        see `register_buffer_ring()`.  Cancelling it loses no byte: what arrives with the cancellation is the next
        receive's.

        Raises:
            BuffersExhaustedError: no buffer, and "raise".
            ResourceBusyError: another receive is waiting on this socket.

        Since Linux 5.19.  See io_uring_prep_recv(3) and io_uring_setup_buf_ring(3).
        """
        number, file, how = resolve(sock)
        if not isinstance(group, BufferRing):
            raise TypeError(f"a BufferRing from register_buffer_ring() is needed, not {type(group).__name__}")
        driver = self._driver or self._bound()
        if number in self._receiving:
            await self._after_stream(sock, number)
        self._receiving[number] = file
        try:
            if driver.leftovers.kept and (data := driver.leftovers.take(number, group.size)) is not None:
                return private_copy(data)
            request = ProvidedReceive(number, file, group)
            ticket, armed_how = 0, how
            while True:
                if ticket or group.waiting:
                    refused, ticket = ticket > 0, ticket or group.draw_ticket()
                    spare = await line_up(ticket, number, file, group, on_empty, refused=refused)
                    if spare is not None:
                        chunk = await receive_privately(driver, number, file, how, group, spare)
                        if chunk is not None:
                            return chunk
                        armed_how = how | DATA_FIRST
                result = await driver.perform(request, _prepare_select, _RECV, number, group.raw, 0, 0, 0, armed_how)
                if result != _NO_BUFFERS:
                    break
                ticket = ticket or group.draw_ticket()
        except BaseException as error:
            if group.waiting:
                driver.ask_for_turn()  # this one may have been called from the line: the next is
            if isinstance(error, OSError) and error.errno == errno.ECANCELED and not group.registered:
                raise RingClosedError(f"buffer ring {group.group_id} was unregistered during a receive") from None
            raise
        finally:
            if self._receiving.get(number) is file:
                del self._receiving[number]
        if result:
            return group.take(request.flags, result)
        request.let_go()  # an empty datagram may have taken a buffer
        return end_of_stream()

    @overload
    def recv_multishot(
        self, sock: File, group: BufferRing, *, max_pending: int | None = ..., bundle: Literal[False] = ...
    ) -> ReceiveStream[ProvidedBuffer]: ...

    @overload
    def recv_multishot(
        self, sock: File, group: BufferRing, *, max_pending: int | None = ..., bundle: Literal[True]
    ) -> ReceiveStream[ProvidedBundle]: ...

    def recv_multishot(
        self, sock: File, group: BufferRing, *, max_pending: int | None = None, bundle: bool = False
    ) -> ReceiveStream[ProvidedBuffer] | ReceiveStream[ProvidedBundle]:
        """Keep a receive armed; `async for` its chunks, each a lent buffer, until the end of the stream.

        One request serves the whole stream, so a chunk costs less than with `recv`.  The kernel receives while
        nobody waits, until `max_pending` chunks are there (None: an eighth of the group's buffers, at least one
        and at most 64), and goes on when half of them are taken.  While all buffers are lent the stream waits in
        line, and the data stays in the socket, unless the group's `on_empty` says otherwise.  Use `async with`, or
        leave the loop: both end the receive, and what arrived and was not taken is the next receive's.

        With `bundle` one completion may bring several buffers, and a chunk is a `ProvidedBundle` of all that is there:
        for messages of several buffers, a tenth to a third less work than with chunks of one buffer each.

        Raises:
            ValueError: bundles of a socket that is no stream socket.
            ResourceBusyError: another receive is waiting on this socket.
            UnsupportedKernelError: before Linux 6.0, or 6.10 for bundles.

        Since Linux 6.0.  See io_uring_prep_recv_multishot(3).
        """
        require("bundles" if bundle else "multishot receive")
        number, file, how = resolve(sock)
        driver = self._before_stream(sock, number, file, group)
        high = group.most_pending(max_pending)
        kind = kind_of(sock, number)[1]
        if bundle and kind != socket.SOCK_STREAM:
            raise ValueError("bundles are for stream sockets: they would not say where a message ends")
        boundaries = kind == socket.SOCK_DGRAM
        receiving = Receiving(driver, number, file, how, group, high, keeps_boundaries=boundaries, bundle=bundle)
        self._receiving[number] = receiving
        over = partial(forget, self._receiving, number, receiving)
        if bundle:
            return ReceiveStream(receiving, receiving.next_bundle, over)
        return ReceiveStream(receiving, receiving.__anext__, over)

    def _before_stream(self, sock: File, number: int, file: Any, group: BufferRing) -> Driver:
        """The driver, if a stream of what `sock` receives may begin."""
        if not isinstance(group, BufferRing):
            raise TypeError(f"a BufferRing from register_buffer_ring() is needed, not {type(group).__name__}")
        driver = self._driver or self._bound()
        driver.check()
        self._check_for_stream(sock, number, file)
        return driver

    async def recv_into(self, sock: File, buffer: Bytes) -> int:
        """Receive into `buffer`; returns the number of bytes, 0 at the end of the stream.

        Cancelling it loses no byte, as with `recv`.  Since Linux 5.6.  See io_uring_prep_recv(3).
        """
        number, file, how = resolve(sock)
        memory, length, lease = memory_of(buffer, writable=True)
        driver = self._driver or self._bound()
        if number in self._receiving:
            await self._after_stream(sock, number)
        self._receiving[number] = file
        try:
            if driver.leftovers.kept and (data := driver.leftovers.take(number, length)) is not None:
                return fill(memory, data)
            return await driver.perform(
                Receive(number, file, memory, lease),
                _prepare_memory,
                _RECV,
                number,
                memory,
                length,
                0,
                length,
                0,
                0,
                how,
            )
        finally:
            if self._receiving.get(number) is file:
                del self._receiving[number]

    async def send(self, sock: File, data: Bytes) -> int:
        """Send what the socket takes of `data`, a buffer or a lent one; returns the number of bytes.

        After a cancellation `bytes_written(error)` says how much was sent.  Since Linux 5.6.  See
        io_uring_prep_send(3).
        """
        number, file, how = resolve(sock)
        memory, length, lease = memory_of(data, writable=False)
        return await (self._driver or self._bound()).perform(
            Write(number, file, memory, lease),
            _prepare_memory,
            _SEND,
            number,
            memory,
            length,
            0,
            length,
            0,
            _SEND_FLAGS,
            how,
        )

    async def send_all(self, sock: File, data: Bytes) -> None:
        """Send all of `data`, waiting for room as often as it takes.

        After a cancellation or an error `bytes_written(error)` says how much was sent; send the rest, or close the
        connection.  Since Linux 5.6.
        """
        number, file, how = resolve(sock)
        memory, length, lease = memory_of(data, writable=False)
        driver = self._driver or self._bound()
        start = 0
        try:
            while start < length:
                start += await driver.perform(
                    Write(number, file, memory, lease),
                    _prepare_memory,
                    _SEND,
                    number,
                    memory,
                    length,
                    start,
                    length - start,
                    0,
                    _SEND_ALL_FLAGS,
                    how,
                )
        except BaseException as error:
            note_written_before(error, start)
            raise

    async def shutdown(self, sock: File, direction: int) -> None:
        """End one direction of a connection, or both: `socket.SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.

        The peer sees the end of what was sent.  Since Linux 5.11.  See io_uring_prep_shutdown(3).
        """
        if direction not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise ValueError(f"{direction} is none of SHUT_RD, SHUT_WR and SHUT_RDWR")
        number, file, how = resolve(sock)
        await (self._driver or self._bound()).perform(
            Request(number, file), lib.au_prepare, lib.AU_OP_SHUTDOWN, number, 0, 0, direction, 0, how
        )
