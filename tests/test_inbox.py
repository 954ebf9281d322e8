"""Tests of messages from ring to ring: order, bounds, other threads, and rings that are closed meanwhile."""

import asyncio
import errno
import gc
import os
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest
from conftest import PROFILES, RESTRICTED, RingFactory, open_files

import aiouring
from aiouring import Opcode, Restrictions
from aiouring._inbox import FIRST_NAME
from aiouring._uring import lib

pytestmark = pytest.mark.needs("messages between rings")
ALLOWED = Restrictions.default(Opcode.MSG_RING) if RESTRICTED else None


@pytest.fixture
async def ring(new_ring: RingFactory) -> aiouring.AsyncRing:
    """A ring that may send messages."""
    made: aiouring.AsyncRing = await new_ring(restrictions=ALLOWED)
    return made


@pytest.fixture
async def other(new_ring: RingFactory) -> aiouring.AsyncRing:
    """A ring that takes messages, on the same loop."""
    made: aiouring.AsyncRing = await new_ring()
    made.messages()
    return made


class Elsewhere:
    """A loop in a thread of its own, with a ring that takes messages; `serve` is what it does with it."""

    def __init__(self, serve: Callable[[aiouring.AsyncRing], Coroutine[Any, Any, None]], **options: Any) -> None:
        self.ring: aiouring.AsyncRing
        self._ready = threading.Event()
        self._serve = serve
        self._options = options
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        async with aiouring.AsyncRing(**self._options) as ring:
            self.ring = ring
            ring.messages()
            self._ready.set()
            await self._serve(ring)

    def join(self) -> None:
        """Wait until the loop and its thread have ended; they need nothing from here any more."""
        self.thread.join(30)
        assert not self.thread.is_alive()


async def test_any_object_in_order(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """The very objects come out, in the order in which they went in."""
    sent: list[Any] = [1, None, "text", b"bytes", object(), [1, 2], -1]
    for message in sent:
        await ring.msg_ring(other, message)
    inbox = other.messages()
    assert inbox.pending == len(sent)
    for message in sent:
        assert await anext(inbox) is message
    assert inbox.pending == 0


async def test_to_itself(ring: aiouring.AsyncRing) -> None:
    """A ring may send to itself."""
    inbox = ring.messages()
    await ring.msg_ring(ring, "hello")
    assert await anext(inbox) == "hello"


async def test_a_reader_that_waits(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """It is woken; one that is cancelled takes nothing; a second one is refused."""
    inbox = other.messages()
    for number in range(10):
        waiting = asyncio.ensure_future(anext(inbox))
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError):
            await anext(inbox)
        await ring.msg_ring(other, number)
        if number % 2:
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await anext(inbox) == number
        else:
            assert await waiting == number


@pytest.mark.parametrize("task_run", PROFILES)
async def test_between_threads(ring: aiouring.AsyncRing, task_run: Any) -> None:
    """A loop in another thread sleeps, and wakes for each message; replies come the same way."""
    inbox = ring.messages()

    async def echo(there: aiouring.AsyncRing) -> None:
        async for back, message in there.messages():
            await there.msg_ring(back, message)
            if message is None:
                break

    elsewhere = Elsewhere(echo, task_run=task_run, restrictions=ALLOWED)
    for message in [*range(100), None]:
        await ring.msg_ring(elsewhere.ring, (ring, message))
        assert await anext(inbox) == message
    elsewhere.join()
    with pytest.raises(aiouring.RingClosedError, match="message is for has been closed"):
        await ring.msg_ring(elsewhere.ring, 1)


async def test_many_senders(new_ring: RingFactory) -> None:
    """What each thread sends stays in order, and all of it comes."""
    receiver = await new_ring(cq_entries=256)
    inbox = receiver.messages(max_pending=100)
    done = 0

    def sender(name: int) -> Callable[[aiouring.AsyncRing], Coroutine[Any, Any, None]]:
        async def send(there: aiouring.AsyncRing) -> None:
            for number in range(300):
                while True:
                    try:
                        await there.msg_ring(receiver, (name, number))
                        break
                    except OSError as error:
                        if error.errno != errno.EOVERFLOW:
                            raise
                        await asyncio.sleep(0.001)

        return send

    senders = [Elsewhere(sender(name), restrictions=ALLOWED) for name in range(3)]
    following = [0, 0, 0]
    while done < 900:
        name, number = await anext(inbox)
        assert number == following[name]
        following[name] += 1
        done += 1
    for each in senders:
        each.join()
    assert inbox.pending == 0


async def test_back_pressure(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """Above max_pending it is EOVERFLOW, and nothing has been sent; there is room again when one is taken."""
    inbox = other.messages(max_pending=2)
    files = open_files()
    await ring.msg_ring(other, 1)
    await ring.msg_ring(other, 2)
    with pytest.raises(OSError, match="max_pending=2") as caught:
        await ring.msg_ring(other, 3)
    assert caught.value.errno == errno.EOVERFLOW
    assert await anext(inbox) == 1
    await ring.msg_ring(other, 4)
    assert [await anext(inbox), await anext(inbox)] == [2, 4]
    assert other.messages() is inbox
    assert inbox.max_pending == 2
    assert open_files() == files
    with pytest.raises(ValueError, match="max_pending=0"):
        other.messages(max_pending=0)


async def test_what_is_refused(ring: aiouring.AsyncRing, new_ring: RingFactory) -> None:
    """A ring that takes no messages, one that was never used, something else, and a closed one."""
    quiet = await new_ring()
    with pytest.raises(aiouring.WrongContextError, match="messages"):
        await ring.msg_ring(quiet, 1)
    unused = aiouring.AsyncRing()
    with pytest.raises(aiouring.WrongContextError, match="messages"):
        await ring.msg_ring(unused, 1)
    await unused.aclose()
    with pytest.raises(TypeError, match="AsyncRing"):
        await ring.msg_ring(1, 1)  # type: ignore[arg-type]
    inbox = quiet.messages()
    await ring.msg_ring(quiet, "last")
    waiting = asyncio.ensure_future(asyncio.sleep(0))
    await quiet.aclose()
    await waiting
    with pytest.raises(aiouring.RingClosedError):
        await ring.msg_ring(quiet, 1)
    assert await anext(inbox) == "last"  # it had come
    with pytest.raises(aiouring.RingClosedError):
        await anext(inbox)


async def test_a_reader_when_the_ring_is_closed(new_ring: RingFactory) -> None:
    """Who waits for a message learns of it."""
    ring = await new_ring()
    waiting = asyncio.ensure_future(anext(ring.messages()))
    await asyncio.sleep(0)
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await waiting


async def test_e12_a_receiver_closed_before_the_message_is_submitted(
    ring: aiouring.AsyncRing, new_ring: RingFactory
) -> None:
    """The message meets the ring it was for, not what has its number by then; nothing stays open."""
    files = open_files()
    receiver = await new_ring()
    receiver.messages()
    number = receiver._ring.fd
    sending = asyncio.ensure_future(ring.msg_ring(receiver, "x"))
    await asyncio.sleep(0)  # filled, and not submitted
    receiver._driver.let_go()
    receiver._closed = True
    bystander = aiouring.Ring()
    assert bystander.fd == number
    await sending
    assert bystander.submit() == []
    bystander.close()
    assert open_files() == files


async def test_receivers_that_close_at_any_moment(ring: aiouring.AsyncRing) -> None:
    """Rings in other threads that close while they are sent to: a defined error or a message to nobody, no leak."""
    random = Random(3)
    for _ in range(30):

        async def some(there: aiouring.AsyncRing, count: int = random.randrange(20)) -> None:
            for _ in range(count):
                await anext(there.messages())

        elsewhere = Elsewhere(some, task_run=random.choice(PROFILES))
        with pytest.raises(aiouring.RingClosedError):
            while True:
                try:
                    await ring.msg_ring(elsewhere.ring, 1)
                except OSError as error:
                    if error.errno != errno.EOVERFLOW:
                        raise
        elsewhere.join()


async def test_a_cancelled_sender(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """It is sent or it is not; either way no descriptor stays, and the inbox counts right."""
    files = open_files()
    inbox = other.messages()
    for _ in range(20):
        sending = asyncio.ensure_future(ring.msg_ring(other, "x"))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await other.nop()
        if inbox.pending:
            assert await anext(inbox) == "x"
        assert inbox.pending == 0
    assert open_files() == files


async def test_what_is_dropped_with_the_ring(ring: aiouring.AsyncRing, new_ring: RingFactory) -> None:
    """Messages that nobody took die with the inbox."""

    class Message:
        """Something that can be watched."""

    receiver = await new_ring()
    inbox = receiver.messages()
    message = Message()
    gone = weakref.ref(message)
    await ring.msg_ring(receiver, message)
    del message
    await receiver.aclose()
    assert gone() is not None
    inbox._posted.clear()
    gc.collect()
    assert gone() is None


async def test_a_failed_send_takes_the_message_back(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """Where the kernel refuses, the message is not in the inbox, and its duplicate is closed."""
    files = open_files()
    inbox = other.messages()
    request = inbox.post("x")
    assert inbox.pending == 1
    reader, writer = os.pipe()
    os.dup2(reader, request.fd)  # no ring any more: EBADFD
    driver = ring._driver
    assert driver is not None
    with pytest.raises(OSError) as caught:
        await driver.perform(request, lib.au_prepare, lib.AU_OP_MSG_RING, request.fd, request.name, 0, 0, 0, 0)
    assert caught.value.errno == errno.EBADFD
    assert inbox.pending == 0
    os.close(reader)
    os.close(writer)
    assert open_files() == files


async def test_names_are_nobody_elses(ring: aiouring.AsyncRing, other: aiouring.AsyncRing) -> None:
    """A message's name has both tags, which no request has; one that is not in the inbox is counted, and ignored."""
    assert (FIRST_NAME & 2**64 - 1) >> lib.AU_TAG_BIT == 3
    request = other.messages().post("x")
    name = request.name + 1
    driver, receiver = ring._driver, other._driver
    assert driver is not None
    assert receiver is not None
    await driver.perform(request, lib.au_prepare, lib.AU_OP_MSG_RING, request.fd, name, 0, 0, 0, 0)
    request.result = -1
    request.let_go()
    await other.nop()
    assert other.messages().pending == 0
    assert receiver.strays == 1
    receiver.strays = 0
    for step in range(2):  # a delivery that was interrupted, and is taken again
        request = other.messages().post(step)
        assert other.messages().announced(request.name)
        assert other.messages().announced(request.name)
        request.result = 0
        request.let_go()
        assert await anext(other.messages()) == step
    assert not other.messages().announced(request.name)


async def test_connections_are_handed_over(ring: aiouring.AsyncRing) -> None:
    """What the inbox is for: one thread accepts, another serves."""
    left, right = socket.socketpair()

    async def serve(there: aiouring.AsyncRing) -> None:
        sock = await anext(there.messages())
        with sock:
            memory = bytearray(9)
            count = await there.recv_into(sock, memory)
            await there.send_all(sock, memory[:count].upper())

    elsewhere = Elsewhere(serve)
    await ring.msg_ring(elsewhere.ring, right)
    await ring.send_all(left, b"hello")
    memory = bytearray(9)
    assert await ring.recv_into(left, memory) == 5
    assert memory[:5] == b"HELLO"
    elsewhere.join()
    left.close()


async def test_restrictions_must_allow_it(new_ring: RingFactory) -> None:
    """The default restrictions do not, and the error says what to give instead; receiving needs nothing."""
    strict, allowed = await new_ring(restrictions=True), None
    inbox = strict.messages()
    with pytest.raises(PermissionError, match=r"MSG_RING \(.*Restrictions.default\(Opcode.MSG_RING\)"):
        await strict.msg_ring(strict, 1)
    assert inbox.pending == 0
    allowed = await new_ring(restrictions=Restrictions.default(Opcode.MSG_RING))
    await allowed.msg_ring(strict, 1)
    assert await anext(inbox) == 1
