"""Tests of a BufferRing when things go wrong: broken peers, cancellations that race, groups that go away."""

import asyncio
import errno
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def connection() -> Iterator[Pair]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sending = socket.create_connection(server.getsockname())
        receiving, _ = server.accept()
    with receiving, sending:
        yield receiving, sending


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST rather than FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def check_conserved(group: aiouring.BufferRing) -> None:
    """Every buffer is with the kernel, and the kernel agrees; for when nothing is in flight and nothing is lent."""
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.waiting) == (found.count, 0, 0)
    assert (group.raw.tail - group.head()) % 65536 == found.count


# ---- D9: what ends a receive without data ------------------------------------------------------


async def test_d9_half_close(ring: aiouring.AsyncRing, connection: Pair) -> None:
    """After the peer's half-close the data comes, then the end, as often as it is asked for."""
    receiving, sending = connection
    group = ring.register_buffer_ring(count=2, size=64)
    sending.send(b"data")
    sending.shutdown(socket.SHUT_WR)
    with await ring.recv(receiving, group) as chunk:
        assert bytes(chunk.view) == b"data"
    for _ in range(5):
        assert not await ring.recv(receiving, group)
    receiving.send(b"answer")
    with await ring.recv(sending, group) as chunk:
        assert bytes(chunk.view) == b"answer"
    await ring.nop()
    assert group.head() == 2
    check_conserved(group)


async def test_d9_end_while_waiting(ring: aiouring.AsyncRing, connection: Pair) -> None:
    """A receive that waits sees the end, and takes no buffer for it."""
    group = ring.register_buffer_ring(count=2, size=64)
    for sock, how in ((connection[1], socket.SHUT_WR), (connection[0], socket.SHUT_RD)):
        task = asyncio.create_task(ring.recv(connection[0], group))
        await ring.nop()
        sock.shutdown(how)
        assert not await task
    assert group.head() == 0
    check_conserved(group)


async def test_d9_reset(ring: aiouring.AsyncRing, connection: Pair) -> None:
    """A reset is an error of the receive, which takes no buffer for it."""
    group = ring.register_buffer_ring(count=2, size=64)
    task = asyncio.create_task(ring.recv(connection[0], group))
    await ring.nop()
    reset(connection[1])
    with pytest.raises(ConnectionResetError):
        await task
    assert group.head() == 0
    check_conserved(group)


async def test_d9_data_then_reset(ring: aiouring.AsyncRing, connection: Pair) -> None:
    """Data that was received before the reset counts; the next receive has the error."""
    group = ring.register_buffer_ring(count=2, size=64)
    task = asyncio.create_task(ring.recv(connection[0], group))
    await ring.nop()
    connection[1].send(b"data")
    with await task as chunk:
        reset(connection[1])
        with pytest.raises(ConnectionResetError):
            await ring.recv(connection[0], group)
        assert bytes(chunk.view) == b"data"
    await ring.nop()
    assert group.head() == 1
    check_conserved(group)


async def test_d9_errors_take_no_buffer(ring: aiouring.AsyncRing) -> None:
    """Neither does a receive on what is not connected, no socket, or not open."""
    group = ring.register_buffer_ring(count=2, size=64)
    with socket.socket() as unconnected, open("/dev/null", "rb") as file:
        wrong: list[tuple[Any, int]] = [(unconnected, errno.ENOTCONN), (file, errno.ENOTSOCK), (9999, errno.EBADF)]
        for what, number in wrong * 3:
            with pytest.raises(OSError) as caught:
                await ring.recv(what, group)
            assert caught.value.errno == number
    assert group.head() == 0
    check_conserved(group)


async def test_d9_cancelled(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A cancelled receive takes no buffer, and the data that comes later is the next one's."""
    group = ring.register_buffer_ring(count=2, size=64)
    for _ in range(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await ring.recv(pair[0], group)
    assert group.head() == 0
    pair[1].send(b"data")
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"data"
    await ring.nop()
    check_conserved(group)


def put_in(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch, result: int) -> None:
    """Have every completion that carries a buffer say `result`, as some kernels do."""
    driver = ring._bound()
    deliver = driver._deliver

    def spoil(count: int) -> None:
        for at in range(0, 3 * count, 3):
            if driver._raw.events[at + 2] & lib.AU_CQE_F_BUFFER:
                driver._raw.events[at + 1] = result
        deliver(count)

    monkeypatch.setattr(driver, "_deliver", spoil)


async def test_d9_end_with_a_buffer(ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that comes with an empty result goes back, whether somebody waits for it or not."""
    group = ring.register_buffer_ring(count=2, size=64)
    put_in(ring, monkeypatch, 0)
    for number in range(1, 11):
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        pair[1].send(b"data")
        if number % 2:
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or not task.result()
        await ring.nop()
        check_conserved(group)


async def test_d9_error_with_a_buffer(ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that comes with an error goes back, whether somebody waits for it or not."""
    group = ring.register_buffer_ring(count=2, size=64)
    put_in(ring, monkeypatch, -errno.ECONNRESET)
    for number in range(1, 11):
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        pair[1].send(b"data")
        if number % 2:
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), ConnectionResetError)
        await ring.nop()
        check_conserved(group)


# ---- A8: cancellation races with data ----------------------------------------------------------


async def cancelled(task: asyncio.Task[aiouring.ProvidedBuffer]) -> bytes:
    """What a task that was cancelled returned all the same."""
    try:
        with await task as chunk:
            return bytes(chunk.view)
    except asyncio.CancelledError:
        return b""


async def test_a8_cancel_races_data(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Over thousands of races every byte arrives once and in order, and no buffer is lost."""
    choose = random.Random(5)
    group = ring.register_buffer_ring(count=4, size=8)
    sent, received = bytearray(), bytearray()

    async def let_turn(most: int) -> None:
        for _ in range(choose.randrange(most)):
            await asyncio.sleep(0)

    for number in range(5000):
        data = bytes([number % 251]) * choose.randrange(1, 12)
        task = asyncio.create_task(ring.recv(pair[0], group))
        await let_turn(3)
        if send_first := choose.random() < 0.5:
            sent += data[: pair[1].send(data)]
            await let_turn(2)
        task.cancel()
        await let_turn(2)
        if not send_first:
            sent += data[: pair[1].send(data)]
        received += await cancelled(task)
        while len(received) < len(sent) - 50 * (number < 4999):
            with await ring.recv(pair[0], group) as chunk:
                received += chunk.view
        assert sent.startswith(received), number
    assert received == sent
    await ring.nop()
    check_conserved(group)


async def test_a8_bytes_of_a_cancelled_receive(new_ring: RingFactory, pair: Pair) -> None:
    """What a cancelled receive had already taken comes first in the next one, in memory of its own."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=1, size=8)
    copies = 0
    for _ in range(50):
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        pair[1].send(b"first---second")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        parts = []
        for _ in range(2):
            with await ring.recv(pair[0], group) as chunk:
                parts.append(bytes(chunk.view))
                copies += chunk.buffer_id is None
        assert parts == [b"first---", b"second"]
    if ring._ring.setup_flags & aiouring.SetupFlags.COOP_TASKRUN:  # with DEFER_TASKRUN the data stays in the socket
        assert copies == 50
    await ring.nop()
    check_conserved(group)


async def test_a8_copy_is_a_lease(pair: Pair) -> None:
    """Such a copy behaves as any buffer: it cannot be released twice, nor while slices are alive."""
    async with aiouring.AsyncRing(task_run="coop") as ring:
        group = ring.register_buffer_ring(count=1, size=8)
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        pair[1].send(b"data")
        task.cancel()
        await asyncio.wait([task])
        chunk = await ring.recv(pair[0], group)
        assert (bytes(chunk.view), chunk.buffer_id, group.statistics().in_use) == (b"data", None, 0)
        part = chunk.view[1:]
        with pytest.raises(BufferError):
            chunk.release()
        del part
        chunk.release()
        with pytest.raises(ValueError, match="released already"):
            chunk.release()


async def test_a8_receive_destroyed_after_its_completion(new_ring: RingFactory, pair: Pair) -> None:
    """A receive that is closed (as when its loop stops) after the data came gives the buffer back."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=1, size=64)
    receive = ring.recv(pair[0], group)
    waiter = receive.send(None)
    await ring.nop()
    pair[1].send(b"data")
    await asyncio.wait([waiter])
    receive.close()
    await ring.nop()
    assert group.head() == 1
    check_conserved(group)
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"data"
