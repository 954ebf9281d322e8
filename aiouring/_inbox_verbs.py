"""Owns the verbs for messages from ring to ring."""

from typing import TYPE_CHECKING, Any

from aiouring._errors import WrongContextError
from aiouring._features import require
from aiouring._inbox import Inbox
from aiouring._uring import lib
from aiouring._verbs import Verbs

if TYPE_CHECKING:
    from aiouring._async_ring import AsyncRing

MAX_PENDING = 1024


class InboxVerbs(Verbs):
    """The part of `AsyncRing` that talks to other rings of this process, of other loops in other threads."""

    def messages(self, *, max_pending: int | None = None) -> Inbox:
        """What other rings send to this one, as `async for`; from the first call on they may.

        Messages that nobody takes stay there, for this inbox or for that of a later call, until the ring is closed.

        Args:
            max_pending: how many messages may wait, 1 or more; None leaves it as it is, 1024 in the beginning.

        Since Linux 5.18.  See io_uring_prep_msg_ring(3).
        """
        require("messages between rings")
        driver = self._driver or self._bound()
        driver.check()
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending={max_pending} is less than 1")
        if driver.inbox is None:
            driver.inbox = Inbox(driver, max_pending or MAX_PENDING)
        elif max_pending is not None:
            driver.inbox.max_pending = max_pending
        return driver.inbox

    async def msg_ring(self, other: "AsyncRing", message: Any) -> None:
        """Send any Python object to another ring of this process, whose loop may run in another thread.

        Returns when it is in the other ring's completion queue: the other loop wakes, and `messages()` yields the very
        object there, in the order in which messages were sent from here.  The object is shared from then on, so leave
        it to the other thread.  It is a message to nobody where the other ring is closed before it is taken.

        Cancelling this sends the message, or does not: a message that was not submitted yet is taken back.

        A ring with restrictions needs `Restrictions.default(Opcode.MSG_RING)` to send; to receive it needs nothing.

        Raises:
            OSError: EOVERFLOW where the other ring has `max_pending` messages that it has not taken; EMFILE (a message
                needs a descriptor for a moment).
            RingClosedError: the other ring is closed.
            WrongContextError: the other ring has not called `messages()` yet: nobody would take the message.

        Since Linux 5.18.  See io_uring_prep_msg_ring(3).
        """
        require("messages between rings")
        if not isinstance(other, InboxVerbs):
            raise TypeError(f"an AsyncRing is needed, not {type(other).__name__}")
        driver = self._driver or self._bound()
        driver.check()
        receiver = other._driver
        if receiver is None or receiver.inbox is None:
            raise WrongContextError(f"{other!r} takes no messages yet: call its messages() first, in its own loop")
        request = receiver.inbox.post(message)
        await driver.perform(
            request, lib.au_prepare, lib.AU_OP_MSG_RING, request.fd, request.name, lib.AU_MSG_DATA, 0, 0, 0
        )
        request.let_go()
