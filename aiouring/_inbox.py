"""Owns `Inbox`, what other rings sent to one, and `RingMessage`, the request that sends.

How this fits together

1. A message is any Python object.  The sender, in its own thread, puts it into the receiver's inbox under a number that
   is never used again, and has its ring send that number (IORING_OP_MSG_RING): a completion in the receiver's queue,
   which wakes the receiver's loop as any other does.  The receiver's turn finds the number and queues it; whoever reads
   takes the object.  So the kernel carries the order and the wake-up, and never a pointer.
2. What the kernel is told to put into the receiver's completion has bits 62 and 63 set, which no request, group or
   sender of ours has (see uring.h): it names nobody's request.  A number that is not in the inbox is ignored.
3. The receiver may be closed at any moment, in its own thread, and its descriptor's number used again: each message is
   sent to a duplicate of the descriptor, made under the lock that closing takes (au_ring_duplicate()) and closed when
   the request has ended.  While it is open the kernel keeps the closed ring, so what meets that is a message to nobody.
4. Back-pressure.  The kernel's queue would grow without end (EOVERFLOW is what it says when memory is short); here no
   more than `max_pending` messages may be on their way or waiting, and one more is refused with the same errno.

Descriptors in a ring's table cannot be passed (IORING_MSG_SEND_FD): the kernel would fill a slot of the receiver's
table before the receiver's thread knows of it, which may be changing that very slot, see rule 2 in
`_registered_files`.  `fixed_fd_install()`, a message with the descriptor, and `files_update_alloc()` pass the file.

Ownership.  An object is the inbox's from `post()` until it is taken, or until the request that was to announce it has
failed.  `_posted` is all of them; the lock is for the bound and for closing, which must not be overtaken.
"""

import errno
import itertools
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from aiouring._errors import ResourceBusyError, RingClosedError, failure
from aiouring._line import wake
from aiouring._request import Request
from aiouring._uring import lib

if TYPE_CHECKING:
    import asyncio

    from aiouring._driver import Driver
    from aiouring._request import Leftovers

#: Bits 62 and 63, as the C core hands them over.
FIRST_NAME = -1 << lib.AU_TAG_BIT
_NOTHING = object()


class Inbox:
    """Messages from other rings, as `async for`, in the order in which they came; made by `AsyncRing.messages()`.

    Leaving the loop loses nothing: what was not taken is what the next one yields.
    """

    def __init__(self, driver: "Driver", max_pending: int) -> None:
        self.max_pending = max_pending
        """Messages that may be on their way or waiting to be taken."""
        self._driver = driver
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._posted: dict[int, Any] = {}
        self._arrived: deque[int] = deque()
        self._ready: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Inbox {self.pending} of {self.max_pending}{', closed' if self._failure else ''}>"

    @property
    def pending(self) -> int:
        """Messages that are on their way, or have come and were not taken."""
        return len(self._posted)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next message.  Cancelling this takes nothing.

        Raises:
            RingClosedError: the ring was closed, after everything that came before.
            ResourceBusyError: another task is already waiting here.
        """
        while True:
            while self._arrived:
                message = self._posted.pop(self._arrived.popleft(), _NOTHING)
                if message is not _NOTHING:
                    return message
            if self._failure is not None:
                raise self._failure
            self._driver.check()
            if self._ready is not None:
                raise ResourceBusyError("another task is already waiting for messages to this ring")
            self._ready = ready = self._driver.new_future()
            try:
                await ready
            finally:
                self._ready = None

    # ---- the sender's thread ---------------------------------------------------------------------

    def post(self, message: Any) -> "RingMessage":
        """Put a message in, and make the request that tells the receiver; any thread.

        Raises:
            OSError: EOVERFLOW where too many are there, EMFILE.
            RingClosedError: the receiver is closed.
        """
        with self._lock:
            if self._failure is not None:
                raise RingClosedError("the ring that the message is for has been closed")
            if len(self._posted) >= self.max_pending:
                raise OSError(
                    errno.EOVERFLOW,
                    f"{len(self._posted)} messages to the other ring have not been taken, as many as its "
                    f"max_pending={self.max_pending} allows: send this one when it has answered, or give it more room",
                )
            descriptor = lib.au_ring_duplicate(self._driver.ring.raw)
            if descriptor < 0:
                raise failure(descriptor, "duplicating the other ring's descriptor")
            request = RingMessage(descriptor, self, next(self._numbers))
            self._posted[request.number] = message
            return request

    def withdraw(self, number: int) -> None:
        """The receiver will not hear of a message; any thread."""
        self._posted.pop(number, None)

    # ---- the receiver's thread -------------------------------------------------------------------

    def announced(self, name: int) -> bool:
        """A completion that names a message; False if there is none.  Taking this step twice does no harm."""
        number = name - FIRST_NAME
        if number not in self._posted:
            return False
        if not self._arrived or self._arrived[-1] != number:
            self._arrived.append(number)
        if self._ready is not None:
            wake(self._ready)
        return True

    def close(self, error: Exception) -> None:
        """The ring is being closed, or lost: nothing more comes in, and the reader gets `error` in the end."""
        with self._lock:
            if self._failure is None:
                self._failure = error
        if self._ready is not None:
            wake(self._ready)


class RingMessage(Request):
    """A message to another ring: `fd` is ours, a duplicate of that ring's descriptor."""

    __slots__ = ("inbox", "number")

    def __init__(self, fd: int, inbox: Inbox, number: int) -> None:
        super().__init__(fd)
        self.inbox = inbox
        self.number = number
        self.ended = True  # the kernel has nothing yet
        self.result = -errno.ECANCELED

    @property
    def name(self) -> int:
        """What the receiver's completion is called."""
        return FIRST_NAME + self.number

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Whoever sent it was cancelled: it has been sent, or it has not, and `let_go()` sees to both."""

    def failed(self, error: Exception) -> None:
        """The ring is lost: whether the message arrived will never be known."""
        self.ended, self.result = True, -errno.ECANCELED
        self.let_go()

    def let_go(self) -> None:
        """Close the duplicate; take back what was not sent."""
        if self.ended and self.fd >= 0:
            descriptor, self.fd = self.fd, -1
            os.close(descriptor)
            if self.result < 0:
                self.inbox.withdraw(self.number)
