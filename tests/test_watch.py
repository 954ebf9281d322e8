"""Tests of Watch: a buffer that is held for too long is reported once, with who received it, and nothing else is."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop

import aiouring
from aiouring._watch import HELD_TOO_LONG, Watch

Pair = tuple[socket.socket, socket.socket]


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, group: aiouring.BufferRing) -> None:
        self.now = 1000.0
        assert group._watch is not None
        group._watch.clock = lambda: self.now


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected stream sockets: receiving, sending."""
    with (ends := socket.socketpair())[0], ends[1]:
        for end in ends:
            end.setblocking(False)
        yield ends


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> "Messages":
    """What is logged."""
    caplog.set_level(logging.WARNING, logger="aiouring")
    return Messages(caplog)


class Messages:
    """The messages of a `caplog`."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self) -> list[str]:
        """What was logged since the last time."""
        found = list(self._caplog.messages)
        self._caplog.clear()
        return found


async def watched(ring: aiouring.AsyncRing, count: int, seconds: float = 5) -> tuple[aiouring.BufferRing, Clock]:
    """A group whose buffers may be held for some seconds."""
    group = ring.register_buffer_ring(count=count, size=8)
    group.held_too_long = seconds
    return group, Clock(group)


async def whoever_receives(ring: aiouring.AsyncRing, pair: Pair, group: aiouring.BufferRing) -> aiouring.ProvidedBuffer:
    """A function whose name is to be found in the warning."""
    pair[1].send(b"data")
    return await ring.recv(pair[0], group)


async def test_reported_by_the_next_lease(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """Another receive finds what is held for too long; it is said once, with the number, the time and the place."""
    group, clock = await watched(ring, 4)
    held = await whoever_receives(ring, pair, group)
    clock.now += 4.9
    (await whoever_receives(ring, pair, group)).release()
    assert said.take() == []
    clock.now += 0.2
    (await whoever_receives(ring, pair, group)).release()
    (text,) = said.take()
    assert "buffer 0 of group 0 has been held for 5.1 s" in text
    assert "held_too_long=5" in text
    assert "in whoever_receives" in text
    assert "return await ring.recv(pair[0], group)" in text
    assert "aiouring/_" not in text
    clock.now += 100
    (await whoever_receives(ring, pair, group)).release()
    held.release()
    assert said.take() == []


async def test_reported_by_its_own_end(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """One that nobody missed is reported when it comes back."""
    group, clock = await watched(ring, 4)
    with await whoever_receives(ring, pair, group):
        clock.now += 30
    (text,) = said.take()
    assert "buffer 0 of group 0 was held for 30.0 s" in text
    with await whoever_receives(ring, pair, group):
        clock.now += 4
    assert said.take() == []


async def test_reported_to_those_in_line(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """A receiver for whom there is no buffer says who has them."""
    group, clock = await watched(ring, 2)
    held = [await whoever_receives(ring, pair, group) for _ in range(2)]
    clock.now += 6
    task = asyncio.create_task(whoever_receives(ring, pair, group))
    for _ in range(5):
        await ring.nop()
    assert group.statistics().waiting == 1
    assert len(said.take()) == 2
    for chunk in held:
        chunk.release()
    (await task).release()
    assert said.take() == []


async def test_statistics(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """Statistics know the oldest lease, reported or not, and report."""
    group, clock = await watched(ring, 4)
    assert group.statistics().oldest_lease == 0
    first = await whoever_receives(ring, pair, group)
    clock.now += 2
    second = await whoever_receives(ring, pair, group)
    clock.now += 2
    assert group.statistics().oldest_lease == 4
    assert said.take() == []
    clock.now += 2
    assert group.statistics().oldest_lease == 6
    assert len(said.take()) == 1
    first.release()
    assert group.statistics().oldest_lease == 4
    second.release()
    assert group.statistics().oldest_lease == 0
    assert said.take() == []


async def test_streams_and_writes(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """A chunk of a stream is held from when its reader takes it until it is released, or written."""
    group, clock = await watched(ring, 8)
    async with aiouring.Connection(ring, pair[0], group) as connection:
        pair[1].send(b"one")
        await ring.nop()
        clock.now += 100  # it waits for its reader, and is nobody's
        chunk = await connection.receive()
        clock.now += 4
        assert said.take() == []
        await connection.send(chunk)
        clock.now += 100
        assert group.statistics().oldest_lease == 0
        for _ in range(9):  # its number comes round again
            pair[1].send(b"more")
            (await connection.receive()).release()
        pair[1].send(b"late")
        with await connection.receive():
            clock.now += 7
        (text,) = said.take()
        assert "in test_streams_and_writes" in text


async def test_dropped_and_looked_at(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """A dropped lease is reported as that; one that is over while a slice of it lives is still held."""
    group, clock = await watched(ring, 4)
    with pytest.warns(ResourceWarning, match="never released"):
        await whoever_receives(ring, pair, group)
        gc.collect()
    clock.now += 10
    assert group.statistics().oldest_lease == 0
    chunk = await whoever_receives(ring, pair, group)
    with pytest.raises(KeyError), chunk:
        part = chunk.view[:2]
        raise KeyError
    clock.now += 10
    assert group.statistics().oldest_lease == 10
    assert len(said.take()) == 1
    del part
    assert group.statistics().oldest_lease == 0


async def test_switched_on_and_off(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """It may be set at any time; without it a group is what it was."""
    group = ring.register_buffer_ring(count=4, size=8)
    assert group.held_too_long is None
    plain = set(vars(group))
    unknown = await whoever_receives(ring, pair, group)
    group.held_too_long = 3
    clock = Clock(group)
    assert group.held_too_long == 3
    unknown.release()
    with await whoever_receives(ring, pair, group):
        group.held_too_long = 1.5
        clock.now += 2
    assert len(said.take()) == 1
    held = await whoever_receives(ring, pair, group)
    group.held_too_long = None
    clock.now += 10
    held.release()
    assert said.take() == []
    assert set(vars(group)) == plain
    assert (group.held_too_long, group.statistics().oldest_lease) == (None, 0)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="held_too_long="):
            group.held_too_long = wrong


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_debug_mode_watches(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Groups of a loop in debug mode are watched from the start; those of a `Ring` when it is said."""

    async def main() -> float | None:
        async with aiouring.AsyncRing() as ring:
            return ring.register_buffer_ring(count=1, size=8).held_too_long

    for debug, expected in ((True, HELD_TOO_LONG), (False, None)):
        with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
            assert runner.run(main()) == expected
    with aiouring.Ring() as ring:
        group = ring.register_buffer_ring(count=1, size=8)
        assert group.held_too_long is None
        group.held_too_long = 1
        assert group.held_too_long == 1


@pytest.mark.needs_no_ring
def test_the_oldest_only_are_looked_at() -> None:
    """However many are held, a look costs as much as there is to report."""

    class Lease:
        ended = False

    leases = [Lease() for _ in range(20000)]
    given = iter(leases)
    watch = Watch(0, lambda *_: next(given), lambda _: None, (), 5)  # type: ignore[arg-type]
    for number in range(len(leases)):
        watch.lend(None, None, number, 1)  # type: ignore[arg-type]
    start = time.perf_counter()
    for _ in range(20000):
        watch.look()
    assert time.perf_counter() - start < 1
    for number in range(len(leases)):
        watch.take_back(number)
    assert watch.oldest() == 0


async def test_parts_are_watched(ring: aiouring.AsyncRing, pair: Pair, said: Messages) -> None:
    """Of a group that gives out parts each lease is known by itself, and reported by its buffer's number."""
    group = ring.register_buffer_ring(count=1, size=8, incremental=True)
    group.held_too_long = 5
    clock = Clock(group)
    chunks = []
    for data in (b"1234", b"5678"):
        pair[1].send(data)
        chunks.append(await ring.recv(pair[0], group))
        clock.now += 4
    assert group.statistics().oldest_lease == 8
    assert [message.split(", which")[0] for message in said.take()] == ["buffer 0 of group 0 has been held for 8.0 s"]
    clock.now += 2
    for chunk in chunks:
        chunk.release()
    assert [message.split(", which")[0] for message in said.take()] == ["buffer 0 of group 0 was held for 6.0 s"]
    assert group.statistics().oldest_lease == 0


@pytest.mark.parametrize("multishot", [False, True])
async def test_messages_are_seen(ring: aiouring.AsyncRing, pair: Pair, said: Messages, *, multishot: bool) -> None:
    """A message holds a buffer as a chunk does, whichever verb received it."""
    group = ring.register_buffer_ring(count=4, size=256)
    group.held_too_long = 5
    clock = Clock(group)
    pair[1].send(b"message")
    if multishot:
        async with ring.recvmsg_multishot(pair[0], group) as stream:
            message = await anext(stream)
    else:
        message = await ring.recvmsg(pair[0], group)
    clock.now += 6
    assert group.statistics().oldest_lease == 6
    [text] = said.take()
    assert "test_messages_are_seen" in text
    message.release()
    assert said.take() == []
    assert group.statistics().oldest_lease == 0
