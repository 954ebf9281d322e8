"""Tests of AsyncRing under pressure: full queues, refused, short and failing submissions, and idleness."""

import asyncio
import errno
import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import RingFactory, turns
from injected_faults import Failing, real_enter, replaced

import aiouring
from aiouring._setup import TaskRun

#: Errors after which enter() is tried again.
TRANSIENT = [errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM]


async def outcomes(*verbs: Any, seconds: float = 20) -> list[Any]:
    """What each verb returns or raises."""
    return await asyncio.wait_for(asyncio.gather(*verbs, return_exceptions=True), seconds)


# ---- full queues -----------------------------------------------------------------------------------


async def test_e1_more_requests_than_entries(new_ring: RingFactory) -> None:
    """A thousand requests at once pass through a queue of eight, and complete in the order they were made."""
    ring = await new_ring(8)
    order: list[int] = []

    async def nop(number: int) -> None:
        await ring.nop()
        order.append(number)

    assert await outcomes(*(nop(number) for number in range(1000))) == [None] * 1000
    assert order == list(range(1000))
    assert ring.statistics().submitted == 1000


async def test_e1_writes_keep_their_order(new_ring: RingFactory) -> None:
    """Writes queued at once beyond the queue's size reach the file in the order they were made."""
    ring = await new_ring(8)
    reader, writer = os.pipe()
    try:
        data = [bytes([number]) for number in range(200)]
        assert await outcomes(*(ring.write(writer, each) for each in data)) == [1] * 200
        assert os.read(reader, 300) == b"".join(data)
    finally:
        os.close(reader)
        os.close(writer)


async def test_e2_completion_queue_overflows(new_ring: RingFactory) -> None:
    """Hundreds of completions at once, of three kinds, pass through a completion queue of eight; none is lost."""
    ring = await new_ring(8, cq_entries=8)
    group = ring.register_buffer_ring(count=16, size=8)
    reader, writer = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        pairs = [socket.socketpair() for _ in range(100)]
        for pair in pairs:
            stack.enter_context(pair[0])
            stack.enter_context(pair[1])

        async def receive(sock: socket.socket) -> bytes:
            async with await ring.recv(sock, group) as chunk:
                return bytes(chunk.view)

        memories = [bytearray(1) for _ in range(1000)]
        reads = [asyncio.ensure_future(ring.read(reader, memory)) for memory in memories]
        receives = [asyncio.ensure_future(receive(theirs)) for _, theirs in pairs]
        await turns()
        os.write(writer, bytes(number & 0xFF for number in range(1000)))
        for number, (ours, _) in enumerate(pairs):
            ours.send(bytes([number]))
        nops = [ring.nop() for _ in range(1000)]
        assert await outcomes(*nops) == [None] * 1000
        assert await outcomes(*reads) == [1] * 1000
        assert sorted(b"".join(memories)) == sorted(number & 0xFF for number in range(1000))
        assert await outcomes(*receives) == [bytes([number]) for number in range(100)]
    assert ring.statistics().overflow_flushes > 0


async def test_a11_cancel_while_the_queue_is_full(new_ring: RingFactory) -> None:
    """A cancel that finds no entry free is submitted all the same."""
    ring = await new_ring(8, cancel_timeout=60)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        task = asyncio.ensure_future(ring.recv_into(ours, bytearray(1)))
        await turns()
        nops = [asyncio.ensure_future(ring.nop()) for _ in range(8)]
        asyncio.get_running_loop().call_soon(task.cancel)
        results = await outcomes(*nops, task)
    assert results[:8] == [None] * 8
    assert isinstance(results[8], asyncio.CancelledError)


@pytest.mark.parametrize("cancelled", [1, 4])
async def test_a11_cancel_while_the_queue_is_full_and_refused(new_ring: RingFactory, cancelled: int) -> None:
    """Cancels that find no entry free, and a kernel that takes none for a while, are submitted later."""
    ring = await new_ring(8, cancel_timeout=60)
    pairs = [socket.socketpair() for _ in range(cancelled)]
    tasks = [asyncio.ensure_future(ring.recv_into(ours, bytearray(1))) for ours, _ in pairs]
    await turns()
    with replaced(enter=Failing(real_enter, *[errno.EAGAIN] * 6)):
        nops = [asyncio.ensure_future(ring.nop()) for _ in range(8)]
        for task in tasks:
            asyncio.get_running_loop().call_soon(task.cancel)
        results = await outcomes(*nops, *tasks)
    assert results[:8] == [None] * 8
    assert [type(result) for result in results[8:]] == [asyncio.CancelledError] * cancelled
    for pair in pairs:
        pair[0].close()
        pair[1].close()


# ---- failing submissions ---------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("error", TRANSIENT)
async def test_e4_transient_error(ring: aiouring.AsyncRing, error: int, times: int) -> None:
    """What the kernel refuses for a moment is tried again: every request completes, once."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receive = asyncio.ensure_future(ring.recv_into(ours, bytearray(1)))
        await turns()
        enter = Failing(real_enter, *[error] * times)
        with replaced(enter=enter):
            results = outcomes(*(ring.nop() for _ in range(20)), ring.send(theirs, b"!"), receive)
            assert await results == [None] * 20 + [1, 1]
    assert enter.errors == []
    assert ring.statistics().submit_errors == (0 if error == errno.EINTR else times)


@pytest.mark.parametrize("times", [1, 8])
async def test_e4_transient_error_with_a_full_queue(new_ring: RingFactory, times: int) -> None:
    """Requests beyond the queue's size wait, too, while the kernel refuses for a moment."""
    ring = await new_ring(8)
    with replaced(enter=Failing(real_enter, *[errno.EAGAIN] * times)):
        results = await outcomes(*(ring.nop() for _ in range(100)))
    assert results == [None] * 100


class Refusing:
    """enter() while the kernel takes nothing, and after that."""

    def __init__(self) -> None:
        self.over = False

    def __call__(self, *arguments: Any) -> int:
        return real_enter(*arguments) if self.over else -errno.EAGAIN


async def test_e4_line_moves_on_past_those_who_left(new_ring: RingFactory) -> None:
    """Requests in line whose file was closed, or whose task was cancelled, do not hold up those behind them."""
    ring = await new_ring(8)
    reader, writer = os.pipe()
    with replaced(enter=(enter := Refusing())):
        filling = [asyncio.ensure_future(ring.nop()) for _ in range(8)]
        closed = [asyncio.ensure_future(ring.read(reader, bytearray(1))) for _ in range(10)]
        cancelled = [asyncio.ensure_future(ring.nop()) for _ in range(10)]
        behind = [asyncio.ensure_future(ring.nop()) for _ in range(10)]
        await turns()
        os.close(reader)
        os.close(writer)
        for task in cancelled:
            task.cancel()
        enter.over = True
        assert await outcomes(*filling, *behind, seconds=2) == [None] * 18
        results = await outcomes(*closed, *cancelled)
    assert [getattr(result, "errno", result) for result in results[:10]] == [errno.EBADF] * 10
    assert {type(result) for result in results[10:]} == {asyncio.CancelledError}


@pytest.mark.leaves_things
async def test_e4_lease_is_in_use_while_in_line(new_ring: RingFactory) -> None:
    """A lent buffer cannot be released, and lent to another, while its request waits for room in the queue."""
    ring = await new_ring(8)
    buffer = await ring.register_buffers(count=1, size=16).acquire()
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    refused = False
    with replaced(enter=(enter := Refusing())):
        nops = [asyncio.ensure_future(ring.nop()) for _ in range(8)]
        read = asyncio.ensure_future(ring.read_fixed(reader, buffer))
        await turns()
        try:
            buffer.release()
        except aiouring.ResourceBusyError:
            refused = True
        enter.over = True
        results = await outcomes(*nops, read)
    os.close(reader)
    os.close(writer)
    assert refused
    assert results == [None] * 8 + [5]
    buffer.release()


async def test_e4_memory_is_free_after_the_line(new_ring: RingFactory) -> None:
    """A request that is cancelled while it waits for room lets go of the caller's memory at once."""
    ring = await new_ring(8)
    reader, writer = os.pipe()
    memory = bytearray(8)
    with replaced(enter=(enter := Refusing())):
        nops = [asyncio.ensure_future(ring.nop()) for _ in range(8)]
        read = asyncio.ensure_future(ring.read(reader, memory))
        await turns()
        read.cancel()
        result = (await outcomes(read))[0]
        enter.over = True
        assert await outcomes(*nops) == [None] * 8
    os.close(reader)
    os.close(writer)
    assert isinstance(result, asyncio.CancelledError)
    memory.extend(b"!")


async def test_e4_closing_with_a_line(profile: TaskRun) -> None:
    """Closing while requests wait for room in the queue ends them as it ends all others."""
    ring = aiouring.AsyncRing(8, task_run=profile)
    await ring.nop()
    with replaced(enter=(enter := Refusing())):
        tasks = [asyncio.ensure_future(ring.nop()) for _ in range(20)]
        await turns()
        closing = asyncio.ensure_future(ring.aclose())
        await turns()
        enter.over = True
        await asyncio.wait_for(closing, 10)
    results = await outcomes(*tasks)
    assert {type(result) for result in results[:8]} <= {type(None), aiouring.RingClosedError}
    assert {type(result) for result in results[8:]} == {aiouring.RingClosedError}


async def test_e5_short_submissions(ring: aiouring.AsyncRing) -> None:
    """A kernel that takes three entries at a time is asked until it has them all."""

    def enter(fd: int, to_submit: int, *rest: Any) -> int:
        return real_enter(fd, min(to_submit, 3), *rest)

    with replaced(enter=enter):
        assert await outcomes(*(ring.nop() for _ in range(100))) == [None] * 100
    assert ring.statistics().submitted == 100


async def test_h2_socket_closed_while_the_kernel_refuses(ring: aiouring.AsyncRing) -> None:
    """A request that stayed queued when enter() failed does not meet the file that took its socket's number."""
    ours, theirs = socket.socketpair(), socket.socketpair()
    memory = bytearray(64)
    number = ours[0].fileno()
    with ours[1], theirs[0], theirs[1], replaced(enter=Failing(real_enter, errno.EAGAIN)):
        receive = asyncio.ensure_future(ring.recv_into(ours[0], memory))
        while not ring.statistics().submit_errors:
            await asyncio.sleep(0)
        ours[0].close()
        os.dup2(theirs[0].fileno(), number)
        theirs[1].send(b"another connection's")
        result = (await outcomes(receive))[0]
        os.close(number)
        assert bytes(memory) == bytes(64)
        assert isinstance(result, OSError)
        assert result.errno == errno.EBADF


async def test_e4_streams_that_find_no_room_do_not_spin(new_ring: RingFactory) -> None:
    """While the kernel refuses, streams that found the queue full wait for the next try, and ask for none."""
    ring = await new_ring(entries=4)
    group = ring.register_buffer_ring(count=4, size=64)
    await ring.nop()
    pairs = [socket.socketpair() for _ in range(10)]
    before = ring.statistics().enters
    with replaced(enter=Failing(real_enter, *[errno.EAGAIN] * 6)):
        streams = [ring.recv_multishot(left, group) for left, _ in pairs]
        for _, right in pairs:
            right.send(b"x")
        for stream in streams:
            (await anext(stream)).release()
    assert ring.statistics().enters - before < 40
    for stream, (left, right) in zip(streams, pairs, strict=True):
        await stream.aclose()
        left.close()
        right.close()
