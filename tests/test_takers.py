"""Tests of Taker and Takers: what came is handed over right after the turn, to everybody, whatever one of them does."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import Any

import pytest
from conftest import RingFactory

from aiouring import AsyncRing, Connection
from aiouring._multishot import Receiving
from aiouring._takers import Taker


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three pairs of connected sockets."""
    with ExitStack() as stack:
        yield [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(3)]  # type: ignore[misc]


def taker_of(
    connection: Connection,
    received: Callable[[bytes], object],
    ended: Callable[[Exception | None], object] = lambda _: None,
    failed: Callable[[BaseException], object] = lambda _: None,
) -> Taker:
    """A taker that has begun."""
    assert isinstance(connection._receiving, Receiving)
    taker = Taker(connection._receiving, ended, failed)
    taker.received = received
    taker.start(taker.take)
    return taker


async def test_all_are_called_in_the_turn_that_brought_it(
    ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]
) -> None:
    """No loop iteration lies between the wake-up and the callbacks, and what they ask for follows at once."""
    group = ring.register_buffer_ring(count=8, size=64)
    connections = [Connection(ring, ours, group) for ours, _ in pairs]
    for connection in connections:
        taker_of(connection, connection.write)
    await ring.nop()
    before = ring.statistics().completed
    for number, (_, peer) in enumerate(pairs):
        peer.send(b"%d" % number)
    while ring.statistics().completed == before:
        await asyncio.sleep(0)
    for number, (_, peer) in enumerate(pairs):
        peer.setblocking(False)
        assert peer.recv(10) == b"%d" % number  # it is there already
    assert group.statistics().in_use == 0
    for connection in connections:
        await connection.aclose()


async def test_one_that_raises_hurts_nobody(ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]) -> None:
    """What `received` raises goes to `failed`, and the next chunk and the next taker come all the same."""
    group = ring.register_buffer_ring(count=8, size=64)
    connections = [Connection(ring, ours, group) for ours, _ in pairs]
    got: list[bytes] = []
    failures: list[BaseException] = []

    def raises(data: bytes) -> None:
        got.append(data)
        raise ZeroDivisionError

    for connection in connections:
        taker_of(connection, raises, failed=failures.append)
    for _, peer in pairs:
        peer.send(b"x" * 100)
    while len(b"".join(got)) < 300:
        await asyncio.sleep(0)
    assert {type(failure) for failure in failures} == {ZeroDivisionError}
    for connection in connections:
        await connection.aclose()


def test_an_interrupt_in_a_callback_loses_nothing(pairs: list[tuple[socket.socket, ...]]) -> None:
    """Ctrl-C within a callback: the others, and the rest of that one's data, come when the loop goes on."""
    got: dict[int, bytes] = dict.fromkeys(range(3), b"")
    interrupted = False

    async def begin() -> tuple[AsyncRing, list[Connection]]:
        ring = AsyncRing()
        group = ring.register_buffer_ring(count=16, size=64)
        connections = [Connection(ring, ours, group) for ours, _ in pairs]

        def received(number: int) -> Callable[[bytes], None]:
            def note(data: bytes) -> None:
                nonlocal interrupted
                got[number] += data
                if not interrupted:
                    interrupted = True
                    raise KeyboardInterrupt

            return note

        for number, connection in enumerate(connections):
            taker_of(connection, received(number))
        await ring.nop()
        return ring, connections

    async def end(ring: AsyncRing, connections: list[Connection]) -> None:
        for number, (_, peer) in enumerate(pairs):
            peer.send(bytes([number]) * 200)
        while any(len(data) < 200 for data in got.values()):
            await asyncio.sleep(0)
        for connection in connections:
            await connection.aclose()
        await ring.aclose()

    loop = asyncio.SelectorEventLoop()
    ring, connections = loop.run_until_complete(begin())
    ending = loop.create_task(end(ring, connections))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(ending)
    loop.run_until_complete(ending)
    loop.close()
    assert got == {number: bytes([number]) * 200 for number in range(3)}


async def test_what_is_kept_comes_again_first(ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]) -> None:
    """`keep()` puts the rest of a chunk before all that came after it."""
    group = ring.register_buffer_ring(count=8, size=64)
    connection = Connection(ring, pairs[0][0], group)
    got: list[bytes] = []
    ended: list[Exception | None] = []

    def one_byte(data: bytes) -> None:
        got.append(data[:1])
        if data[1:]:
            taker.keep(data[1:])

    taker = taker_of(connection, one_byte, ended.append)
    pairs[0][1].send(bytes(range(200)))
    pairs[0][1].close()
    while not ended:
        await asyncio.sleep(0)
    assert b"".join(got) == bytes(range(200))
    assert ended == [None]
    await connection.aclose()


async def settle(ring: AsyncRing) -> None:
    """Give what is in flight its turns."""
    for _ in range(8):
        await ring.nop()
        await asyncio.sleep(0)


@pytest.mark.parametrize("options", [{}, {"incremental": True}, {"on_empty": "fallback"}])
@pytest.mark.parametrize("started", [False, True])
async def test_what_comes_after_the_stop_holds_no_buffer(
    ring: AsyncRing, pairs: list[tuple[socket.socket, ...]], options: dict[str, Any], started: bool
) -> None:
    """A connection that is being closed, while its peer takes its time to read, keeps no buffer of the group."""
    group = ring.register_buffer_ring(count=8, size=64, **options)
    ours, peer = pairs[0]
    connection = Connection(ring, ours, group)
    assert isinstance(connection._receiving, Receiving)
    taker = Taker(connection._receiving, print, print)
    if started:
        taker.start(taker.take)
    await settle(ring)
    peer.send(bytes(1000))
    taker.stop()
    await settle(ring)
    found = group.statistics()
    assert (found.in_use, found.parts, found.private) == (0, 0, 0)
    assert not connection._receiving.armed
    connection.abort()
    await connection.wait_closed()


async def test_one_who_is_paused_is_brought_no_more(ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]) -> None:
    """What the kernel had brought is kept; taking it out of the queue does not ask the kernel for more."""
    group = ring.register_buffer_ring(count=16, size=64)
    ours, peer = pairs[0]
    connection = Connection(ring, ours, group, max_pending=2)
    got: list[bytes] = []
    taker = taker_of(connection, got.append)
    await settle(ring)
    taker.paused = True
    data = Random(3).randbytes(5000)
    peer.send(data)
    await settle(ring)
    assert taker._held is not None
    assert len(b"".join(taker._held)) == 2 * 64
    taker.go_on()
    while len(b"".join(got)) < len(data):
        await asyncio.sleep(0)
    assert b"".join(got) == data
    connection.abort()
    await connection.wait_closed()


async def test_a_private_receive_that_finds_nothing_is_not_followed_by_another_where_nobody_wants_it(
    ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]
) -> None:
    """Stopped between a private receive's start and its end (EAGAIN), the stream is armed no more."""
    group = ring.register_buffer_ring(count=1, size=64, on_empty="fallback")
    pairs[1][1].send(b"x")
    with await ring.recv(pairs[1][0], group):
        connection = Connection(ring, pairs[0][0], group)
        assert isinstance(connection._receiving, Receiving)
        while connection._receiving._spare is None:
            await asyncio.sleep(0)
        Taker(connection._receiving, print, print).stop()
        await settle(ring)
        assert not connection._receiving.armed
        connection.abort()
        await connection.wait_closed()


async def test_what_is_large_is_answered_at_once(ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]) -> None:
    """Of much that came at once, the first answers are on their way before the last callback: memory stays warm."""
    size = 70_000
    group = ring.register_buffer_ring(count=8, size=size)
    connections = [Connection(ring, ours, group) for ours, _ in pairs]
    submitted: list[int] = []

    def echo(connection: Connection, data: bytes) -> None:
        submitted.append(ring.statistics().submitted)
        connection.write(data)

    for connection in connections:
        taker_of(connection, partial(echo, connection))
    await ring.nop()
    for _, peer in pairs:
        peer.send(bytes(size))
    while len(submitted) < len(pairs):
        await asyncio.sleep(0)
    assert submitted[-1] - submitted[0] >= len(pairs) - 1
    for connection in connections:
        connection.abort()
        await connection.aclose()


async def test_what_is_large_on_one_connection_is_answered_at_once(
    ring: AsyncRing, pairs: list[tuple[socket.socket, ...]]
) -> None:
    """The same where one connection brought all of it; its end comes after all, once."""
    size, count = 70_000, 6
    group = ring.register_buffer_ring(count=8, size=size)
    ours, peer = pairs[0]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size * count)
    connection = Connection(ring, ours, group, max_pending=count)
    said: list[int | str] = []

    def echo(data: bytes) -> None:
        said.append(ring.statistics().submitted)
        connection.write(data[:100])

    for number in range(count):
        peer.send(bytes(size))
        while connection.statistics().pending <= number:
            await ring.nop()
    peer.shutdown(socket.SHUT_WR)
    await ring.nop()
    queued = connection.statistics().pending
    taker_of(connection, echo, lambda failure: said.append(repr(failure)))
    while "None" not in said:
        await asyncio.sleep(0)
    *submitted, end = said
    assert end == "None"
    assert len(submitted) >= queued
    assert int(submitted[-1]) - int(submitted[0]) >= queued - 1
    connection.abort()
    await connection.aclose()


@pytest.mark.parametrize("over", [False, True])
async def test_b5_a_ring_that_is_closed_over_what_is_large(
    new_ring: RingFactory, pairs: list[tuple[socket.socket, ...]], over: bool
) -> None:
    """All that had come is handed over, and the end is told, although no turn can come in between any more."""
    ring = await new_ring()
    size, count = 70_000, 6
    group = ring.register_buffer_ring(count=8, size=size)
    ours, peer = pairs[0]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size * count)
    connection = Connection(ring, ours, group, max_pending=count)
    got: list[int] = []
    ends: list[Exception | None] = []
    failures: list[BaseException] = []
    for number in range(count):
        peer.send(bytes(size))
        while connection.statistics().pending <= number:
            await ring.nop()
    if over:  # nothing is in flight: the ring is gone at once
        peer.shutdown(socket.SHUT_WR)
        while connection.statistics().receiving:
            await ring.nop()
    taker_of(connection, lambda data: got.append(len(data)), ends.append, failures.append)
    await ring.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (sum(got), failures) == (size * count, [])
    assert len(ends) == 1
    connection.abort()
