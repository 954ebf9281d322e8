"""Owns the zero-copy sends: the kernel sends from the caller's memory, and says when it no longer needs it.

Two completions belong to such a request: the result, and the notification that the memory is free.  The verb
returns with the second, so "the await has ended" means what it always means: the memory is the caller's again.
Reusing it after the first would corrupt what is sent (KERNEL.md E14).
"""

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from aiouring._address import pack_address
from aiouring._errors import kernel_error
from aiouring._features import require
from aiouring._fixed_buffer import FixedBuffer
from aiouring._messages import checked, empty_message, new_message
from aiouring._request import ZeroCopy, ZeroCopyMessage
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, kind_of, memory_of, resolve

_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_WAITALL)
_REPORT_USAGE = lib.AU_SEND_ZC_REPORT_USAGE << 16


class ZeroCopySent(NamedTuple):
    """What a zero-copy send did."""

    sent: int  #: bytes
    copied: bool  #: whether the kernel copied them after all, as it does on the loopback interface


class ZeroCopyVerbs(Verbs):
    """The part of `AsyncRing` that sends without a copy."""

    async def send_zc(self, sock: File, data: Bytes, *, start: int = 0, length: int | None = None) -> ZeroCopySent:
        """Send from where `data` lies, without a copy; returns when the kernel is done with the memory.

        That is when the peer has acknowledged the bytes, so this takes longer than `send`; it pays for large
        messages to another machine.  To the same machine the kernel copies after all, and says so.  A registered
        buffer's pages need not be pinned again.

        Args:
            sock: a TCP or UDP socket.
            data: any C-contiguous buffer, or a lent one; a `FixedBuffer` is sent as the registered buffer it is.
            start: the first byte to send.
            length: bytes to send, None for all from `start` on.

        Raises:
            OSError: EOPNOTSUPP where the socket's family has no zero-copy send, as AF_UNIX.
            UnsupportedKernelError: the kernel has none.

        Since Linux 6.0.  See io_uring_prep_send_zc(3) and io_uring_prep_send_zc_fixed(3).
        """
        require("zero-copy send")
        number, file, how = resolve(sock)
        memory, size, lease = memory_of(data, writable=False)
        wanted = size - start if length is None else length
        request = ZeroCopy(number, file, memory, lease)
        how |= _REPORT_USAGE
        if isinstance(data, FixedBuffer):
            return await self._send_zc(
                request,
                lib.au_prepare_send_fixed,
                lib.AU_OP_SEND_ZC,
                number,
                data.table,
                data.number,
                start,
                wanted,
                _FLAGS,
                how,
            )
        return await self._send_zc(
            request,
            lib.au_prepare_memory,
            lib.AU_OP_SEND_ZC,
            number,
            memory,
            size,
            start,
            wanted,
            0,
            _FLAGS,
            how,
        )

    async def sendmsg_zc(self, sock: File, parts: Iterable[Bytes], address: Any = None) -> ZeroCopySent:
        """Send several buffers as one message, without a copy; returns when the kernel is done with all of them.

        `address` is where to, for a socket that is not connected, written as for `socket.sendto()`.  Otherwise as
        `send_zc`.  Since Linux 6.1.  See io_uring_prep_sendmsg_zc(3).
        """
        require("zero-copy sendmsg")
        message, held = new_message(parts, writable=False)
        _address(message, sock, address)
        return await self._sendmsg_zc(sock, message, held, None)

    async def sendmsg_zc_fixed(
        self, sock: File, buffer: FixedBuffer, ranges: Iterable[tuple[int, int]], address: Any = None
    ) -> ZeroCopySent:
        """Send several ranges, (start, length) in bytes, of one registered buffer as one message.

        Otherwise as `sendmsg_zc`.  Since Linux 6.15.  See io_uring_prep_sendmsg_zc_fixed(3).
        """
        require("zero-copy sendmsg of registered buffers")
        if not isinstance(buffer, FixedBuffer):
            raise TypeError(f"a FixedBuffer from RegisteredBuffers.acquire() is needed, not {type(buffer).__name__}")
        buffer.memory()  # raises if it was released
        pairs = list(ranges)
        message = empty_message(len(pairs))
        _address(message, sock, address)
        for start, length in pairs:
            code = lib.au_message_add_fixed(message, buffer.table, buffer.number, start, length)
            checked(code, start=start, length=length, capacity=len(buffer), index=buffer.index)
        return await self._sendmsg_zc(sock, message, [], buffer)

    async def _sendmsg_zc(self, sock: File, message: Any, held: list[Any], buffer: FixedBuffer | None) -> ZeroCopySent:
        number, file, how = resolve(sock)
        request = ZeroCopyMessage(number, file, message, buffer)
        request.parts = held
        table, key = (ffi.NULL, 0) if buffer is None else (buffer.table, buffer.number)
        return await self._send_zc(
            request,
            lib.au_prepare_message,
            lib.AU_OP_SENDMSG_ZC,
            number,
            message,
            table,
            key,
            _FLAGS,
            how | _REPORT_USAGE,
        )

    async def _send_zc(self, request: ZeroCopy, prepare: Callable[..., int], *arguments: Any) -> ZeroCopySent:
        """Perform a request of two completions, or of one where the kernel did not get as far."""
        try:
            outcome = await (self._driver or self._bound()).perform(request, prepare, *arguments)
        except OSError as error:
            raise _explained(error) from None
        request.let_go()
        if request.sent is None:
            return ZeroCopySent(outcome, copied=False)
        if request.sent < 0:
            raise _explained(kernel_error(-request.sent))
        return ZeroCopySent(request.sent, copied=outcome == request.copied)


def _address(message: Any, sock: File, address: Any) -> None:
    """Say where a message goes to."""
    if address is not None:
        packed = pack_address(kind_of(sock, resolve(sock)[0])[0], address)
        checked(lib.au_message_address(message, packed, len(packed)))


def _explained(error: OSError) -> OSError:
    if error.errno == errno.EOPNOTSUPP:
        return kernel_error(errno.EOPNOTSUPP, "this kind of socket has no zero-copy send: use send()")
    return error
