"""Tests of the driver: cancellation. When an await ends, the kernel is done with the memory; no byte is lost."""

import asyncio
import contextlib
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory

import aiouring

Pair = tuple[socket.socket, socket.socket]


async def cancelled(task: "asyncio.Task[object]") -> bool:
    """Cancel a task; whether it ended cancelled."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def test_a1_cancelled_read_is_reaped_first(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """CancelledError leaves only when the kernel is done: data written right afterwards stays in the pipe."""
    reader, writer = pipe
    for _ in range(100):
        memory = bytearray(b"-" * 8)
        task = asyncio.create_task(ring.read(reader, memory))
        await ring.nop()
        assert await cancelled(task)
        assert ring.statistics().in_flight == 0
        memory.extend(b"x")  # BufferError, were it still exported to a request
        os.write(writer, b"late")
        await ring.nop()
        assert memory[:8] == b"-" * 8
        assert os.read(reader, 8) == b"late"


async def test_a2_cancel_races_the_data(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Whether data or cancel comes first, every byte is received once and in order."""
    left, right = pair
    choose = random.Random(2)
    sent = received = b""
    for number in range(1500):
        memory = bytearray(16)
        task = asyncio.create_task(ring.recv_into(left, memory))
        for _ in range(choose.randrange(3)):
            await asyncio.sleep(0)
        piece = b"%d." % number
        if choose.random() < 0.5:
            right.send(piece)
            task.cancel()
        else:
            task.cancel()
            right.send(piece)
        sent += piece
        with contextlib.suppress(asyncio.CancelledError):
            received += bytes(memory[: await task])
    while len(received) < len(sent):
        memory = bytearray(64)
        received += bytes(memory[: await ring.recv_into(left, memory)])
    assert received == sent


async def test_a2_cancelled_file_read_leaves_the_position(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A read at the file's own position that nobody takes is undone."""
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(200)))
    with open(path, "rb", buffering=0) as raw:
        for _ in range(50):
            task = asyncio.create_task(ring.read(raw, bytearray(10)))
            await asyncio.sleep(0)
            await cancelled(task)
            position = os.lseek(raw.fileno(), 0, os.SEEK_CUR)
            assert position == (0 if task.cancelled() else 10)
            os.lseek(raw.fileno(), 0, os.SEEK_SET)


async def test_a2_cancelled_pipe_read_keeps_the_bytes(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """Bytes of a pipe that came with a cancelled read are the next read's."""
    reader, writer = pipe
    os.write(writer, b"first")
    task = asyncio.create_task(ring.read(reader, bytearray(5)))
    await asyncio.sleep(0)  # queued, not submitted
    await cancelled(task)
    os.write(writer, b"second")
    memory = bytearray(64)
    received = b""
    while len(received) < 11:
        received += bytes(memory[: await ring.read(reader, memory)])
    assert received == b"firstsecond"


@pytest.mark.parametrize("grace", [0.02])
async def test_a3_a_request_that_cannot_be_stopped_is_detached(
    new_ring: RingFactory, grace: float, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    """What the kernel will not stop is waited for cancel_timeout; then it goes on alone and keeps its memory."""
    reader, writer = pipe
    ring = await new_ring(cancel_timeout=grace)
    driver = ring._driver
    monkeypatch.setattr(driver, "cancel_soon", lambda request: None)  # a kernel that cannot stop it
    memory = bytearray(4)
    task = asyncio.create_task(ring.read(reader, memory))
    await ring.nop()
    start = asyncio.get_running_loop().time()
    assert await cancelled(task)
    assert grace * 0.5 <= asyncio.get_running_loop().time() - start < 5
    assert ring.statistics().detached == 1
    assert ring.statistics().in_flight == 1
    with pytest.raises(BufferError):
        memory.extend(b"more")
    await ring.nop()  # others are not affected
    os.write(writer, b"late")
    while ring.statistics().in_flight:
        await ring.nop()
    assert memory == b"late"
    memory.extend(b"more")
    again = bytearray(4)
    assert await ring.read(reader, again) == 4
    assert again == b"late", "the bytes of the detached read are the next read's"


async def test_a3_detached_fixed_buffer_comes_back_by_itself(
    new_ring: RingFactory, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    """A with block around a buffer whose request was given up on ends quietly; the buffer returns later."""
    reader, writer = pipe
    ring = await new_ring(cancel_timeout=0.01)
    with ring.register_buffers(count=1, size=4096) as buffers:
        with monkeypatch.context() as patched:
            patched.setattr(ring._driver, "cancel_soon", lambda request: None)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), await buffers.acquire() as buffer:
                    await ring.read_fixed(reader, buffer, 0)
        assert buffers.try_acquire() is None
        os.write(writer, b"late")
        with await buffers.acquire() as buffer:
            assert buffer.index == 0
        assert ring.statistics().in_flight == 0


async def test_a4_timeout_then_late_data(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A receive under a timeout that expires loses nothing of what comes later."""
    left, right = pair
    received = b""
    with ring.register_buffer_ring(count=4, size=64) as group:
        for number in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    (await ring.recv(left, group)).release()
            right.send(b"%05d" % number)
            with await ring.recv(left, group) as chunk:
                received += chunk.view
    assert received == b"".join(b"%05d" % number for number in range(20))


async def test_a5_timeouts_and_groups_raise_what_sleep_raises(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """timeout(0), nested timeouts, wait_for, TaskGroup and shield see the exceptions that sleep() would give."""
    left, right = pair
    memory = bytearray(8)
    for expired in (0, -1, 0.001):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(expired):
                await ring.recv_into(left, memory)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            async with asyncio.timeout(0.001):
                await ring.recv_into(left, memory)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ring.recv_into(left, memory), 0.001)

    async def fail() -> None:
        await ring.nop()
        raise KeyError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(ring.recv_into(left, memory))
            group.create_task(fail())
    assert [type(error) for error in caught.value.exceptions] == [KeyError]

    inner = asyncio.ensure_future(ring.recv_into(left, memory))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.shield(inner)
    right.send(b"shielded")
    assert await inner == 8
    assert memory == b"shielded"


async def test_a6_second_cancel_sends_nothing_more(
    new_ring: RingFactory, monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    """Cancelling again while the first cancel is pending, or in a finally block, neither hangs nor cancels twice."""
    left, _ = pair
    ring = await new_ring()
    cancels: list[object] = []
    driver = ring._driver
    original = driver.cancel_soon

    def cancel(request: object) -> None:
        cancels.append(request)
        original(request)

    monkeypatch.setattr(driver, "cancel_soon", cancel)

    async def receive() -> None:
        try:
            await ring.recv_into(left, bytearray(8))
        finally:
            await ring.nop()

    task = asyncio.create_task(receive())
    await ring.nop()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(cancels) == 1
    assert ring.statistics().in_flight == 0


async def test_a7_connection_that_comes_with_the_cancel_is_closed(ring: aiouring.AsyncRing) -> None:
    """An accept that completes although it was cancelled closes the connection: its peer sees the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accepted = 0
        for _ in range(50):
            with socket.create_connection(listener.getsockname()) as client:
                task = asyncio.create_task(ring.accept(listener))
                await asyncio.sleep(0)
                if await cancelled(task):
                    client.settimeout(5)
                    waiting = await asyncio.wait_for(_closed_or_pending(ring, listener, client), 5)
                    assert waiting == b""
                else:
                    accepted += 1
                    task.result().close()
        assert accepted < 50


async def _closed_or_pending(ring: aiouring.AsyncRing, listener: socket.socket, client: socket.socket) -> bytes:
    """What the client reads at the end: if the cancel came first its connection is still to be accepted."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        connection, _ = listener.accept()
        connection.close()
    memory = bytearray(1)
    return bytes(memory[: await ring.recv_into(client, memory)])


async def test_a8_cancelled_provided_receive_conserves_buffers(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Receives that complete while they are cancelled give their buffers back, and their bytes to the next."""
    left, right = pair
    sent = received = b""
    with ring.register_buffer_ring(count=2, size=32) as group:
        for number in range(1000):
            task = asyncio.create_task(ring.recv(left, group))
            if number % 3:
                await asyncio.sleep(0)
            piece = b"%d," % number
            right.send(piece)
            sent += piece
            if number % 2:
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError), await task as chunk:
                received += chunk.view
        while len(received) < len(sent):
            with await ring.recv(left, group) as chunk:
                received += chunk.view
        assert received == sent
        assert group.statistics().in_use == 0


async def test_cancelled_before_it_started(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A task that is cancelled before its first step submits nothing."""
    left, _ = pair
    before = ring.statistics().submitted
    task = asyncio.create_task(ring.recv_into(left, bytearray(1)))
    assert await cancelled(task)
    assert ring.statistics().submitted == before


async def test_abandoned_coroutine_keeps_its_memory(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A coroutine that is closed in mid-flight (not cancelled) leaves its request to own the memory."""
    reader, writer = pipe
    memory = bytearray(4)
    coroutine = ring.read(reader, memory)
    coroutine.send(None)
    coroutine.close()
    assert ring.statistics().detached == 1
    os.write(writer, b"data")
    while ring.statistics().in_flight:
        await ring.nop()
    memory.extend(b"free again")
    assert await ring.read(reader, bytearray(4)) == 4


async def test_uninvited_ecanceled_is_an_oserror(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """ECANCELED that this task did not ask for is an OSError, never CancelledError (KERNEL.md E11)."""
    left, _ = pair
    task = asyncio.create_task(ring.recv_into(left, bytearray(8)))
    await ring.nop()
    assert await ring.cancel(left) == 1
    with pytest.raises(OSError, match="ancel") as caught:
        await task
    assert caught.value.errno == 125
    assert not task.cancelled()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
async def test_c14_eager_tasks(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Verbs work when the task's first step runs inside the making of the task."""
    left, right = pair
    memory = bytearray(8)
    eager: dict[str, Any] = {"loop": asyncio.get_running_loop(), "eager_start": True}
    task = asyncio.Task(ring.recv_into(left, memory), **eager)
    right.send(b"eager")
    assert await task == 5
    assert memory[:5] == b"eager"
    await asyncio.gather(*(asyncio.Task(ring.nop(), **eager) for _ in range(20)))


@pytest.mark.parametrize("how", ["cancelled", "stopped", "ring closed"])
async def test_a4_a_cancel_that_comes_too_early_is_sent_again(new_ring: RingFactory, tmp_path: Path, how: str) -> None:
    """A request on its way to a worker, which no cancel finds (with DEFER_TASKRUN a connect), ends soon all the same.

    It was waited for until cancel_timeout, or kept for ever by a ring that was closed.
    """
    ring = await new_ring(cancel_timeout=30.0, close_timeout=30.0)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        first.connect(str(tmp_path / "socket"))  # the backlog is full: the next one has to wait
        with socket.socket(socket.AF_UNIX) as sock:
            task = asyncio.create_task(ring.connect(sock, str(tmp_path / "socket")))
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                if how == "cancelled":
                    task.cancel()
                elif how == "stopped":
                    await ring.cancel(sock)
                else:
                    await ring.aclose()
                await asyncio.wait([task])
            assert task.cancelled() or task.exception() is not None
            assert ring.statistics().detached == 0
