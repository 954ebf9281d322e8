"""Tests of msg_ring() and messages() beside the ring's other verbs; test_inbox.py has the messages themselves."""

import asyncio

import pytest
from conftest import RESTRICTED, RingFactory

import aiouring
from aiouring import Opcode, Restrictions

pytestmark = pytest.mark.needs("messages between rings")
ALLOWED = Restrictions.default(Opcode.MSG_RING) if RESTRICTED else None


async def test_a_full_submission_queue(new_ring: RingFactory) -> None:
    """More messages than the queue has entries are all sent, in one go."""
    ring, other = await new_ring(entries=4, restrictions=ALLOWED), await new_ring(entries=4, cq_entries=4)
    inbox = other.messages()
    await asyncio.gather(*(ring.msg_ring(other, number) for number in range(50)))
    assert [await anext(inbox) for _ in range(50)] == list(range(50))


async def test_messages_among_other_requests(new_ring: RingFactory) -> None:
    """They come between a ring's own completions, and neither is taken for the other."""
    ring, other = await new_ring(restrictions=ALLOWED), await new_ring()
    inbox = other.messages()

    async def busy(ring: aiouring.AsyncRing) -> None:
        for _ in range(200):
            await ring.nop()

    async def send() -> None:
        for number in range(200):
            await ring.msg_ring(other, number)

    async def take() -> None:
        for number in range(200):
            assert await anext(inbox) == number

    await asyncio.gather(busy(ring), busy(other), send(), take())


async def test_another_thread_may_not_read(new_ring: RingFactory) -> None:
    """The inbox is its ring's: another thread gets WrongContextError, from messages() and from its reading."""
    ring = await new_ring()
    inbox = ring.messages()

    async def read() -> None:
        with pytest.raises(aiouring.WrongContextError):
            ring.messages()
        with pytest.raises(aiouring.WrongContextError):
            await anext(inbox)

    await asyncio.to_thread(lambda: asyncio.run(read()))
    await asyncio.get_running_loop().shutdown_default_executor()
