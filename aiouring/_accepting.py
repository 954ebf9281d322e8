"""Owns `Accepting`: an accept that stays armed in the kernel, and the queue of the connections it brought.

How this fits together

1. The kernel accepts while nobody waits; each completion is a descriptor, which is queued.  A reader takes it off the
   queue when it runs: one that is cancelled has taken nothing, so no connection is lost.
2. The queue has a bound.  Above it the kernel's accept is cancelled, and what that still brings is queued; below half
   of it the accept is armed again.  In between the connections wait in the listener's backlog.
3. What accept(2) says of a connection that failed before it was accepted is passed over.  What it says of a machine
   that is short of descriptors or memory, it would say again at once: the accept rests, 0.1 s at first and up to 1 s.
4. Connections that nobody took are closed with the stream, and with the ring: their peers see the end.

Ownership.  A descriptor is the queue's from its completion until it is taken off, and then the taker's.
"""

import errno
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from aiouring._request import identify
from aiouring._standing import FOREVER, Standing
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._driver import Driver

log = logging.getLogger("aiouring")

_FLAGS = int(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Of one connection that failed on its way, see accept(2); or of nothing at all.
_PASSING = frozenset(
    {
        0,
        errno.EINTR,
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_PASSED_MAX = 16  # failures in a row before the accept rests, as if the machine were short of something
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds
_EPISODE = 10.0  # seconds without a shortage after which the next one is worth a word again


class Accepting(Standing):
    """The accepting half of one listener."""

    __slots__ = ("_full", "_high", "_low", "_newest", "_passed", "_pause", "_pending", "_short_until")

    opcode = lib.AU_OP_ACCEPT
    busy = "another task is already accepting from this stream"

    def __init__(self, driver: "Driver", fd: int, file: Any, how: int, high: int) -> None:
        super().__init__(driver, fd, file, how | lib.AU_ACCEPT_MULTISHOT << 16)
        self._high = high
        self._low = high // 2
        self._pending: deque[int] = deque()  # descriptors, ours
        self._full = False  # the queue was above its bound, and is not yet down to half of it
        self._newest: tuple[int, int] | None = None  # which connection was queued last
        self._passed = 0
        self._pause = FIRST_PAUSE
        self._short_until = 0.0  # the loop's time, when the last shortage is forgotten
        self._arm()

    @property
    def pending(self) -> int:
        """Connections that nobody has taken yet."""
        return len(self._pending)

    async def take(self) -> int:
        """The next connection's descriptor, now the caller's.  Cancelling this takes nothing."""
        await self.wait()
        fd = self._pending.popleft()
        if self._full and len(self._pending) <= self._low:
            self._full = False
            if self._resting:
                self._interrupt()
        return fd

    def _operate(self) -> None:
        self._start(lib.au_prepare, self.opcode, self.fd, 0, 0, 0, _FLAGS, self._how)

    def _something(self) -> bool:
        return bool(self._pending)

    def _came(self, result: int) -> None:
        try:
            identity = identify(result)
        except OSError:
            return  # delivered again after an interrupt, and closed in between
        if identity == self._newest:
            return  # delivered again after an interrupt: a socket's inode is no other's
        self._newest = identity
        self._pending.append(result)
        self._passed = 0
        self._pause = FIRST_PAUSE
        if self.closing or self._driver.closing:
            self._drop()
        elif len(self._pending) > self._high and not self._full:
            self._full = True
            self._interrupt()
        self._wake()

    def _delay(self, error: int) -> float:
        if error in _SHORT or (self._passed >= _PASSED_MAX and error in _PASSING and error):
            self._say(error)
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
            return pause
        if error not in _PASSING:
            raise self._refusal(error)
        self._passed += error != 0
        return FOREVER if self._full else 0.0

    def _say(self, error: int) -> None:
        now = self._driver.loop.time()
        if now >= self._short_until:
            log.warning("cannot accept on %r: %s; trying again soon", self.file or self.fd, os.strerror(error))
        self._short_until = now + _EPISODE

    def _drop(self) -> None:
        """Close the connections that nobody took."""
        while self._pending:
            os.close(self._pending.popleft())
