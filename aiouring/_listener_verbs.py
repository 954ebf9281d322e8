"""Owns the verbs for listening sockets: giving them an address, and their connections, one after the other."""

import socket
from functools import partial
from typing import Any

from aiouring._accepting import Accepting
from aiouring._claims import check_free
from aiouring._errors import ResourceBusyError
from aiouring._features import require
from aiouring._request import Request
from aiouring._standing import Standing
from aiouring._standing_streams import AcceptStream
from aiouring._uring import ffi, lib
from aiouring._verbs import File, Verbs, packed_address, resolve


class ListenerVerbs(Verbs):
    """The part of `AsyncRing` that waits for connections."""

    _standing: set[Standing]

    async def bind(self, sock: File, address: Any) -> None:
        """Give a socket its address, written as for `socket.bind()`; host names are resolved by the loop.

        Since Linux 6.11.  See io_uring_prep_bind(3).
        """
        require("bind and listen")
        driver = self._driver or self._bound()
        packed = await packed_address(driver, sock, address)
        number, file, how = resolve(sock)
        memory, size = ffi.new("char[]", packed), len(packed)
        await driver.perform(
            Request(number, file, memory),
            lib.au_prepare_memory,
            lib.AU_OP_BIND,
            number,
            memory,
            size,
            0,
            0,
            size,
            0,
            how,
        )

    async def listen(self, sock: File, backlog: int = socket.SOMAXCONN) -> None:
        """Have a socket listen; up to `backlog` connections wait to be accepted.

        Since Linux 6.11.  See io_uring_prep_listen(3).
        """
        require("bind and listen")
        if not 0 <= backlog < 1 << 31:
            raise ValueError(f"backlog={backlog} is outside 0 to {(1 << 31) - 1}")
        number, file, how = resolve(sock)
        await (self._driver or self._bound()).perform(
            Request(number, file), lib.au_prepare, lib.AU_OP_LISTEN, number, 0, 0, backlog, 0, how
        )

    def accept_multishot(self, sock: File, *, max_pending: int = 64) -> AcceptStream:
        """Keep an accept armed; `async for` its connections, each a non-blocking, close-on-exec socket.

        One request serves the listener as long as it listens.  The kernel accepts while nobody waits, until more than
        `max_pending` connections are there, and goes on when half of them are taken; in between they wait in the
        listener's backlog.  Connections that failed before they were accepted are passed over (ECONNABORTED and the
        like, see accept(2)).  While the machine is short of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM)
        the stream tries again after 0.1 s, later every second, and says so once in the log `aiouring`.

        Use `async with`, or leave the loop: both end the accept, and close the connections that nobody took.

        Args:
            sock: a listening socket; a direct descriptor too.
            max_pending: connections that may wait here for their taker.

        Raises:
            ResourceBusyError: the listener has such a stream already.
            UnsupportedKernelError: the kernel has no such accept.

        Since Linux 5.19.  See io_uring_prep_multishot_accept(3).
        """
        require("multishot accept")
        if max_pending < 1:
            raise ValueError(f"max_pending={max_pending} is less than 1")
        number, file, how = resolve(sock)
        driver = self._driver or self._bound()
        driver.check()
        if isinstance(file, socket.socket):
            check_free(number, file)
        for other in self._standing:
            if isinstance(other, Accepting) and other.holds(number, file):
                raise ResourceBusyError(f"{sock!r} has a stream of connections already")
        accepting = Accepting(driver, number, file, how, max_pending)
        self._standing.add(accepting)
        return AcceptStream(accepting, sock, partial(self._standing.discard, accepting))
