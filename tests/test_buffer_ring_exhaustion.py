"""Tests of a BufferRing that is short of buffers: back-pressure without spinning, in order, and for everybody."""

import asyncio
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

import pytest

import aiouring

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Twelve pairs of connected stream sockets: receiving, sending."""
    with ExitStack() as stack:
        yield open_pairs(stack, 12)


def open_pairs(stack: ExitStack, count: int) -> list[Pair]:
    """Pairs of connected stream sockets that close with `stack`."""
    made = [socket.socketpair() for _ in range(count)]
    for pair in made:
        for sock in pair:
            stack.enter_context(sock)
    return made


async def take_all(ring: aiouring.AsyncRing, group: aiouring.BufferRing, pair: Pair) -> list[aiouring.ProvidedBuffer]:
    """Lend every buffer of the group."""
    chunks = []
    for _ in range(len(group)):
        pair[1].send(b"x")
        chunks.append(await ring.recv(pair[0], group))
    return chunks


async def in_line(group: aiouring.BufferRing, count: int) -> None:
    """Wait until `count` receivers stand in the group's line; adds nothing to the ring's own traffic."""
    for _ in range(1000):
        if group.statistics().waiting == count:
            return
        await asyncio.sleep(0)
    pytest.fail(f"{count} in line were expected: {group.statistics()}")


class Receivers:
    """Tasks that receive once each and note the order in which they were served."""

    def __init__(self, ring: aiouring.AsyncRing, group: aiouring.BufferRing) -> None:
        self.ring = ring
        self.group = group
        self.order: list[int] = []
        self.tasks: list[asyncio.Task[bytes]] = []

    async def _receive(self, number: int, sock: socket.socket) -> bytes:
        with await self.ring.recv(sock, self.group) as chunk:
            self.order.append(number)
            return bytes(chunk.view)

    def start(self, pair: Pair, data: bytes = b"") -> asyncio.Task[bytes]:
        """One more receiver, for which `data` has been sent."""
        if data:
            pair[1].send(data)
        task = asyncio.create_task(self._receive(len(self.tasks), pair[0]))
        self.tasks.append(task)
        return task


# ---- back-pressure -----------------------------------------------------------------------------


async def test_d5_exhaustion_is_back_pressure(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """With every buffer lent, receivers wait; each release serves one of them; nothing is lost."""
    group = ring.register_buffer_ring(count=4, size=64)
    held: asyncio.Queue[aiouring.ProvidedBuffer] = asyncio.Queue()

    async def hold(number: int) -> None:
        pairs[number][1].send(bytes([number]))
        chunk = await ring.recv(pairs[number][0], group)
        assert bytes(chunk.view) == bytes([number])
        held.put_nowait(chunk)

    tasks = [asyncio.create_task(hold(number)) for number in range(12)]
    await in_line(group, 8)
    assert group.statistics().in_use == 4
    for served in range(12):
        chunk = await held.get()
        chunk.release()
        if served < 8:
            await in_line(group, 7 - served)
    await asyncio.gather(*tasks)
    found = group.statistics()
    assert (found.in_use, found.high_water, found.waiting) == (0, 4, 0)
    assert found.enobufs >= 8


async def test_d5_nothing_spins(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receivers in line cost no system call, however often the loop turns."""
    group = ring.register_buffer_ring(count=4, size=64)
    held = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    tasks = [receivers.start(pair, b"data") for pair in pairs]
    await in_line(group, 12)
    for _ in range(3):
        await asyncio.sleep(0)
    before, starved = ring.statistics(), group.statistics()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert ring.statistics() == before
    assert group.statistics() == starved
    for chunk in held:
        chunk.release()
    assert await asyncio.gather(*tasks) == [b"data"] * 12
    assert ring.statistics().enters - before.enters < 40


async def test_d5_armed_receives_do_not_spin(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """The same holds while others wait for data without a buffer, and for buffers that nobody can use."""
    group = ring.register_buffer_ring(count=2, size=64)
    receivers = Receivers(ring, group)
    tasks = [receivers.start(pair) for pair in pairs[1:]]
    await ring.nop()
    held = await take_all(ring, group, pairs[0])
    for pair in pairs[1:]:
        pair[1].send(b"data")  # each armed receive is refused for want of a buffer
    await in_line(group, 11)
    held.pop().release()
    assert await asyncio.gather(*tasks) == [b"data"] * 11
    for _ in range(3):
        await asyncio.sleep(0)
    before = ring.statistics()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert ring.statistics() == before
    held.pop().release()


async def test_d5_called_without_data(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """One that is called and finds no data takes no buffer: those behind it are called as well."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for number, pair in enumerate(pairs):
        receivers.start(pair, b"data" if number >= 10 else b"")
    await in_line(group, 12)
    held.release()
    assert await asyncio.gather(*receivers.tasks[10:]) == [b"data"] * 2
    await in_line(group, 0)
    for pair in pairs[:10]:
        pair[1].send(b"late")
    assert await asyncio.gather(*receivers.tasks[:10]) == [b"late"] * 10


# ---- order -------------------------------------------------------------------------------------


async def test_line_is_first_come_first_served(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receivers that came one after the other are served in that order."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for number, pair in enumerate(pairs):
        receivers.start(pair, b"data")
        await in_line(group, number + 1)
    held.release()
    await asyncio.gather(*receivers.tasks)
    assert receivers.order == list(range(12))


async def test_line_keeps_the_order_of_one_turn(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """So are receivers that came in the same turn of the loop."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for pair in pairs:
        receivers.start(pair, b"data")
    await in_line(group, 12)
    held.release()
    await asyncio.gather(*receivers.tasks)
    assert receivers.order == list(range(12))


async def test_newcomers_do_not_overtake(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Who comes in the turn of the release, with data ready, still goes to the end of the line."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for number in range(3):
        receivers.start(pairs[number], b"data")
        await in_line(group, number + 1)
    held.release()
    for number in range(3, 6):
        receivers.start(pairs[number], b"data")
    await asyncio.gather(*receivers.tasks)
    assert receivers.order == list(range(6))


async def test_cancelled_in_line(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Cancelling some of a line, before, in and after the turn of the release, leaves the others their turn."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for number in range(8):
        receivers.start(pairs[number], b"data")
        await in_line(group, number + 1)
    receivers.tasks[0].cancel()
    receivers.tasks[4].cancel()
    await in_line(group, 6)
    receivers.tasks[1].cancel()
    held.release()
    receivers.tasks[2].cancel()
    receivers.tasks[7].cancel()
    assert await asyncio.gather(*(receivers.tasks[number] for number in (3, 5, 6))) == [b"data"] * 3
    assert receivers.order == [3, 5, 6]
    assert [task.cancelled() for task in receivers.tasks] == [True, True, True, False, True, False, False, True]
    for number in (0, 1, 2, 4, 7):
        assert await receivers.start(pairs[number]) == b"data"


async def test_called_and_cancelled(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """One that is cancelled at any point after it was called does not take the call with it."""
    group = ring.register_buffer_ring(count=1, size=64)
    for delay in range(6):
        (held,) = await take_all(ring, group, pairs[0])
        receivers = Receivers(ring, group)
        receivers.start(pairs[1])
        receivers.start(pairs[2], b"data")
        await in_line(group, 2)
        held.release()
        for _ in range(delay):
            await asyncio.sleep(0)
        receivers.tasks[0].cancel()
        async with asyncio.timeout(5):
            assert await receivers.tasks[1] == b"data"
        await asyncio.wait(receivers.tasks)


async def test_called_and_closed(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Neither does one whose socket was closed while it stood in line."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    receivers = Receivers(ring, group)
    for number in (1, 2):
        receivers.start(pairs[number], b"data")
        await in_line(group, number)
    pairs[1][0].close()
    held.release()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            await receivers.tasks[0]
        async with asyncio.timeout(1):
            assert await receivers.tasks[1] == b"data"
    finally:
        await asyncio.wait(receivers.tasks)


async def test_h1_socket_closed_while_in_line(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Closing a socket through the ring ends a receive that stands in line, as it ends one in flight."""
    group = ring.register_buffer_ring(count=1, size=64)
    (held,) = await take_all(ring, group, pairs[0])
    task = Receivers(ring, group).start(pairs[1], b"data")
    await in_line(group, 1)
    await ring.close(pairs[1][0])
    done, _ = await asyncio.wait([task], timeout=0.2)
    held.release()
    await asyncio.wait([task])
    assert isinstance(task.exception(), OSError)
    assert done


# ---- on_empty ----------------------------------------------------------------------------------


async def test_on_empty_raise(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A group that raises does so when its buffers are lent, and takes the data out of no socket."""
    group = ring.register_buffer_ring(count=2, size=64, on_empty="raise")
    held = await take_all(ring, group, pairs[0])
    pairs[1][1].send(b"data")
    for _ in range(3):
        with pytest.raises(aiouring.BuffersExhaustedError, match="all 2 buffers of group 0 are in use"):
            await ring.recv(pairs[1][0], group)
    assert group.statistics().starved == 0
    held.pop().release()
    with await ring.recv(pairs[1][0], group) as chunk:
        assert bytes(chunk.view) == b"data"
    held.pop().release()


async def test_on_empty_per_call(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A receive can choose otherwise than its group; one that raises does not wait behind others either."""
    policies: list[Literal["wait", "raise"]] = ["wait", "raise"]
    for number, default in enumerate(policies, start=1):
        group = ring.register_buffer_ring(count=1, size=64, on_empty=default)
        (held,) = await take_all(ring, group, pairs[0])
        pairs[number][1].send(b"data")
        task = asyncio.create_task(ring.recv(pairs[number][0], group, on_empty="wait"))
        await in_line(group, 1)
        with pytest.raises(aiouring.BuffersExhaustedError, match="1 receivers waiting"):
            await ring.recv(pairs[3][0], group, on_empty="raise")
        held.release()
        with await task as chunk:
            assert bytes(chunk.view) == b"data"


async def test_on_empty_raise_does_not_mind_buffers(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """With buffers left, "raise" and "wait" are the same."""
    group = ring.register_buffer_ring(count=1, size=64, on_empty="raise")
    task = asyncio.create_task(ring.recv(pairs[0][0], group))
    await ring.nop()
    pairs[0][1].send(b"data")
    with await task as chunk:
        assert bytes(chunk.view) == b"data"


async def test_d7_one_greedy_connection(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A connection that always has data gets one buffer per round, as everybody else does."""
    group = ring.register_buffer_ring(count=1, size=16)
    pairs[0][1].send(bytes(16 * 60))
    served: list[int] = []

    async def consume(number: int, times: int) -> None:
        for _ in range(times):
            async with await ring.recv(pairs[number][0], group) as chunk:
                assert len(chunk) == 16
                served.append(number)
                await asyncio.sleep(0)

    for pair in pairs[1:]:
        pair[1].send(bytes(16 * 5))
    await asyncio.gather(consume(0, 60), *(consume(number, 5) for number in range(1, 12)))
    assert served[:60].count(0) <= 6


# ---- many --------------------------------------------------------------------------------------


@pytest.fixture
def many_pairs() -> Iterator[list[Pair]]:
    """1200 pairs of connected stream sockets."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 3000:
        pytest.skip(f"RLIMIT_NOFILE allows {limits[1]} descriptors, and 3000 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 3000), limits[1]))
    with ExitStack() as stack:
        yield open_pairs(stack, 1200)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_d6_many_connections_few_buffers(ring: aiouring.AsyncRing, many_pairs: list[Pair]) -> None:
    """1200 connections over 16 buffers: every byte arrives, and nobody gets ahead of anybody."""
    choose = random.Random(11)
    group = ring.register_buffer_ring(count=16, size=64)
    messages = [choose.randbytes(choose.randrange(1, 5 * 64)) for _ in many_pairs]
    received = [bytearray() for _ in many_pairs]
    turns = [0 for _ in many_pairs]
    leads: list[int] = []

    async def consume(number: int) -> None:
        while len(received[number]) < len(messages[number]):
            async with await ring.recv(many_pairs[number][0], group) as chunk:
                turns[number] += 1
                unfinished = zip(turns, received, messages, strict=True)
                leads.append(turns[number] - min(turn for turn, got, sent in unfinished if len(got) < len(sent)))
                await asyncio.sleep(0)  # a consumer that holds on to its buffer for a while
                received[number] += chunk.view

    for pair, message in zip(many_pairs, messages, strict=True):
        pair[1].send(message)
    before = ring.statistics()
    await asyncio.gather(*(consume(number) for number in range(len(many_pairs))))
    after = ring.statistics()
    assert received == messages
    assert group.statistics().high_water <= 16
    assert max(leads) <= 2
    receives = sum(turns)
    assert after.submitted - before.submitted < 2 * receives, "receives are refused again and again"
    assert after.enters - before.enters < receives / 2
