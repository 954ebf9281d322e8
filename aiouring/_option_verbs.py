"""Owns the verbs for socket options, which ask a socket by way of the ring: for direct descriptors there is no other.

Ownership.  The option's value is copied into memory of the request's, which the kernel reads or writes until the
final completion.  Found on 6.18: it answers while the request is submitted, so these never wait; it reads options of
the level SOL_SOCKET only, and sets those of every level; SIOCINQ and SIOCOUTQ it knows of TCP and UDP, not of Unix
sockets; the names of a socket (getsockname, getpeername) it does not have: they came with 6.19, and are not offered.
"""

import errno
import socket
from typing import Any, overload

from aiouring._errors import kernel_error
from aiouring._features import require
from aiouring._request import Request
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, resolve

_INT = 4  # bytes
_SIZE_MAX = 1 << 20  # more than any option has


class OptionVerbs(Verbs):
    """The part of `AsyncRing` that reads and sets socket options.

    All of them are commands to drivers (`Opcode.URING_CMD`), which the default restrictions do not allow: a ring with
    restrictions needs `Restrictions.default(Opcode.URING_CMD)`.
    """

    @overload
    async def setsockopt(self, sock: File, level: int, option: int, value: int | Bytes) -> None: ...

    @overload
    async def setsockopt(self, sock: File, level: int, option: int, value: None, size: int) -> None: ...

    async def setsockopt(self, sock: File, level: int, option: int, value: int | Bytes | None, size: int = 0) -> None:
        """Set a socket option, as `socket.setsockopt()`.

        Args:
            sock: a socket; a direct descriptor too.
            level: `socket.SOL_SOCKET`, `IPPROTO_TCP` ...
            option: `socket.SO_REUSEADDR`, `TCP_NODELAY` ...
            value: an int; or bytes, which are copied; or None, with the `size` the kernel is to be told.
            size: bytes, with None only.

        Since Linux 6.7.  See io_uring_prep_cmd_sock(3).
        """
        require("socket options")
        if (value is None) != bool(size):
            raise ValueError(f"size={size} is for value=None, and needed there")
        if value is None:
            memory = ffi.NULL
        elif isinstance(value, int):
            memory, size = ffi.new("int *", value), _INT
        else:
            data = memoryview(value).tobytes()
            memory, size = ffi.new("char[]", data), len(data)
        await self._command(sock, lib.AU_SOCKET_SETSOCKOPT, level, option, memory, size)

    @overload
    async def getsockopt(self, sock: File, level: int, option: int) -> int: ...

    @overload
    async def getsockopt(self, sock: File, level: int, option: int, size: int) -> bytes: ...

    async def getsockopt(self, sock: File, level: int, option: int, size: int = 0) -> int | bytes:
        """Read a socket option, as `socket.getsockopt()`: an int, or with `size` up to so many bytes.

        Args:
            sock: a socket; a direct descriptor too.
            level: `socket.SOL_SOCKET`; through a ring the kernel (6.18) reads no other.
            option: `socket.SO_TYPE`, `SO_ERROR` ...
            size: bytes to make room for, 1 to 1 MiB; 0 for an int.

        Raises:
            OSError: EOPNOTSUPP for another level, ENOPROTOOPT for an option that the socket does not know.

        Since Linux 6.7.  See io_uring_prep_cmd_sock(3).
        """
        require("socket options")
        if not 0 <= size <= _SIZE_MAX:
            raise ValueError(f"size={size} is outside 0 to {_SIZE_MAX}")
        memory = ffi.new("char[]", size or _INT)
        try:
            length = await self._command(sock, lib.AU_SOCKET_GETSOCKOPT, level, option, memory, size or _INT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and level != socket.SOL_SOCKET:
                raise kernel_error(
                    errno.EOPNOTSUPP, f"level {level}: through a ring only SOL_SOCKET can be read; use the socket's own"
                ) from None
            raise
        return bytes(ffi.buffer(memory, length)) if size else int(ffi.cast("int *", memory)[0])

    async def siocinq(self, sock: File) -> int:
        """How many bytes can be read: of TCP those that have arrived, of UDP those of the next datagram.

        Raises `OSError` (EOPNOTSUPP) for a Unix socket.  Since Linux 6.7.  See io_uring_prep_cmd_sock(3).
        """
        require("socket options")
        return await self._command(sock, lib.AU_SOCKET_SIOCINQ, 0, 0, ffi.NULL, 0)

    async def siocoutq(self, sock: File) -> int:
        """How many bytes were sent that the peer has not acknowledged (TCP), or that have not left (UDP).

        Raises `OSError` (EOPNOTSUPP) for a Unix socket.  Since Linux 6.7.  See io_uring_prep_cmd_sock(3).
        """
        require("socket options")
        return await self._command(sock, lib.AU_SOCKET_SIOCOUTQ, 0, 0, ffi.NULL, 0)

    async def _command(self, sock: File, command: int, level: int, option: int, memory: Any, size: int) -> int:
        number, file, how = resolve(sock)
        request = Request(number, file, memory or None)
        return await (self._driver or self._bound()).perform(
            request,
            lib.au_prepare_socket_command,
            lib.AU_OP_URING_CMD,
            number,
            command,
            level,
            option,
            memory,
            size,
            how,
        )
