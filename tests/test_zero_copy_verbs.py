"""Tests of the zero-copy sends: what arrives, when the memory is free again, and what is refused."""

import asyncio
import socket
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from simulated_stage import Stage, stage

import aiouring
from aiouring import _features
from aiouring._setup import TaskRun
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]
COPIED = -(1 << 31)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a TCP connection that do not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.setblocking(False)
        server.setblocking(False)
        yield client, server


async def receive_all(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    data, loop = b"", asyncio.get_running_loop()
    while len(data) < size and (piece := await loop.sock_recv(sock, size - len(data))):
        data += piece
    return data


# ---- on the real kernel ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 1_000_000])
async def test_all_of_it_arrives(ring: aiouring.AsyncRing, pair: Pair, size: int) -> None:
    """The whole buffer is sent; afterwards it is the caller's, to change and to resize."""
    data = bytearray(Random(size).randbytes(size))
    whole = bytes(data)
    receiving = asyncio.ensure_future(receive_all(pair[1], size))
    outcome = await ring.send_zc(pair[0], data)
    assert outcome.sent == size
    assert outcome.copied  # to the same machine it is
    data.extend(b"!")
    assert await receiving == whole


async def test_a13_the_memory_is_free_afterwards(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A buffer that is overwritten as soon as the await has ended has sent what it held before."""
    data = bytearray(200_000)
    receiving = asyncio.ensure_future(receive_all(pair[1], 20 * len(data)))
    for number in range(20):
        data[:] = bytes([number]) * len(data)
        await ring.send_zc(pair[0], data)
    assert await receiving == b"".join(bytes([number]) * len(data) for number in range(20))


async def test_part_of_a_buffer(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """start and length choose the bytes; what lies outside is refused."""
    assert await ring.send_zc(pair[0], b"0123456789", start=2, length=3) == (3, True)
    assert await ring.send_zc(pair[0], b"0123456789", start=8) == (2, True)
    assert await receive_all(pair[1], 5) == b"23489"
    for start, length in ((-1, 1), (0, 11), (10, 1), (0, -1)):
        with pytest.raises(ValueError, match=f"start={start} and length={length}"):
            await ring.send_zc(pair[0], b"0123456789", start=start, length=length)


async def test_a_registered_buffer(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A FixedBuffer is sent by its index, in part too, and cannot be released meanwhile."""
    with ring.register_buffers(count=2, size=4096) as table:
        async with await table.acquire() as buffer:
            buffer.view[:10] = b"0123456789"
            assert (await ring.send_zc(pair[0], buffer, start=3, length=4)).sent == 4
            assert await receive_all(pair[1], 4) == b"3456"
            with pytest.raises(ValueError, match="start=4000 and length=97"):
                await ring.send_zc(pair[0], buffer, start=4000, length=97)
        with pytest.raises(ValueError, match="released already"):
            await ring.send_zc(pair[0], buffer)


async def test_several_parts(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """sendmsg_zc sends buffers of every kind, lent ones too, as one message in their order."""
    group = ring.register_buffer_ring(count=2, size=64)
    pair[1].send(b"lent")
    with await ring.recv(pair[0], group) as chunk:
        array = bytearray(b"array ")
        outcome = await ring.sendmsg_zc(pair[0], [b"bytes ", array, memoryview(b"a slice ")[2:], chunk])
        assert outcome.sent == 22
        array.clear()
        assert await receive_all(pair[1], 22) == b"bytes array slice lent"


async def test_ranges_of_a_registered_buffer(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """sendmsg_zc_fixed gathers ranges; one outside the buffer is refused."""
    with ring.register_buffers(count=1, size=64) as table, table[0] as buffer:
        buffer.view[:10] = b"0123456789"
        assert (await ring.sendmsg_zc_fixed(pair[0], buffer, [(5, 3), (0, 2), (9, 1)])).sent == 6
        assert await receive_all(pair[1], 6) == b"567019"
        with pytest.raises(ValueError, match="start=60 and length=5"):
            await ring.sendmsg_zc_fixed(pair[0], buffer, [(0, 1), (60, 5)])
        with pytest.raises(TypeError, match="a FixedBuffer"):
            await ring.sendmsg_zc_fixed(pair[0], bytearray(4), [(0, 1)])  # type: ignore[arg-type]


async def test_datagrams_to_an_address(ring: aiouring.AsyncRing) -> None:
    """A socket that is not connected sends to the address that is given."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        assert (await ring.sendmsg_zc(sender, [b"hello ", b"there"], receiver.getsockname())).sent == 11
        assert receiver.recv(100) == b"hello there"
        assert (await ring.sendmsg_zc(sender.fileno(), [b"x"], receiver.getsockname())).sent == 1
        assert receiver.recv(100) == b"x"


async def test_a_socket_without_zero_copy(ring: aiouring.AsyncRing) -> None:
    """A Unix socket says what to use instead, and the memory is free."""
    left, right = socket.socketpair()
    data = bytearray(b"data")
    with left, right:
        with pytest.raises(OSError, match="use send"):
            await ring.send_zc(left, data)
        with pytest.raises(OSError, match="use send"):
            await ring.sendmsg_zc(left, [data, data])
    data.clear()


async def test_a_peer_that_is_gone(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The error is that of send(), whether a notification comes with it or not."""
    pair[1].close()
    data = bytearray(100_000)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(3):
            await ring.send_zc(pair[0], data)
    data.clear()
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError):
        await ring.send_zc(closed, b"x")


async def test_no_parts_and_too_many(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A message of nothing sends nothing; one has 1024 parts at most."""
    assert (await ring.sendmsg_zc(pair[0], [])).sent == 0
    with pytest.raises(ValueError, match="1025 parts"):
        await ring.sendmsg_zc(pair[0], [b"x"] * 1025)


async def test_a_kernel_without_it(ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no zero-copy send the error names the version that has it."""
    monkeypatch.setattr(_features, "_here", frozenset())
    with ring.register_buffers(count=1, size=64) as table, table[0] as buffer:
        for verb, version in (
            (ring.send_zc(pair[0], b"x"), "6.0"),
            (ring.sendmsg_zc(pair[0], [b"x"]), "6.1"),
            (ring.sendmsg_zc_fixed(pair[0], buffer, [(0, 1)]), "6.15"),
        ):
            with pytest.raises(aiouring.UnsupportedKernelError, match=f"needs Linux {version}"):
                await verb


# ---- on the simulated kernel: the notification comes when the test says so -----------------------------


@pytest.fixture(autouse=True)
def everything_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are those of the real kernel; the simulated one is not asked."""
    _features.ask()


def post(at: Stage, result: int, flags: int) -> None:
    """A completion of the one request there is."""
    (operation,) = at.kernel.pending
    if not flags & lib.AU_CQE_F_MORE:
        at.kernel.pending.remove(operation)
    at.kernel._post(operation.user_data, result, flags)


@pytest.mark.parametrize("usage", [0, COPIED])
async def test_a13_held_until_the_notification(profile: TaskRun, usage: int) -> None:
    """The result alone ends nothing: the buffer stays exported until the notification, which says how it went."""
    async with stage(profile) as at:
        data = bytearray(b"hello")
        task = await at.started(at.ring.send_zc(at.socket, data))
        post(at, 5, lib.AU_CQE_F_MORE)
        await at.moments()
        assert not task.done()
        with pytest.raises(BufferError):
            data.extend(b"!")
        post(at, usage, lib.AU_CQE_F_NOTIF)
        await at.end(task)
        assert task.result() == (5, usage == COPIED)
        data.extend(b"!")


@pytest.mark.parametrize("when", ["before the result", "before the notification"])
async def test_a4_cancelled(profile: TaskRun, when: str) -> None:
    """A cancelled send returns with its last completion; until then the buffers stay exported."""
    async with stage(profile) as at:
        data = [bytearray(b"hello"), bytearray(b"there")]
        task = await at.started(at.ring.sendmsg_zc(at.socket, data))
        (operation,) = at.kernel.pending
        if when == "before the notification":
            post(at, 10, lib.AU_CQE_F_MORE)
            await at.moments()
        at.kernel.pending.remove(operation)  # so that the cancel finds nothing
        task.cancel()
        await at.moments()
        assert not task.done()
        for part in data:
            with pytest.raises(BufferError):
                part.extend(b"!")
        if when == "before the result":
            at.kernel._post(operation.user_data, 10, lib.AU_CQE_F_MORE)
        at.kernel._post(operation.user_data, 0, lib.AU_CQE_F_NOTIF)
        await at.end(task)
        assert task.cancelled()
        for part in data:
            part.extend(b"!")


@pytest.mark.parametrize("result", [-32, -95])
async def test_a13_errors_with_and_without_a_notification(profile: TaskRun, result: int) -> None:
    """An error may come with a notification or alone; only F_MORE says which, and both are raised."""
    for flags in (0, lib.AU_CQE_F_MORE):
        async with stage(profile) as at:
            data = bytearray(b"hello")
            task = await at.started(at.ring.send_zc(at.socket, data))
            post(at, result, flags)
            await at.moments()
            assert task.done() == (not flags)
            if flags:
                post(at, 0, lib.AU_CQE_F_NOTIF)
            await at.end(task)
            error: Any = task.exception()
            assert error.errno == -result
            data.extend(b"!")


async def test_given_up_on(profile: TaskRun) -> None:
    """A cancelled send whose notification does not come in time goes on alone, and keeps its memory until then."""
    async with stage(profile, cancel_timeout=0.01) as at:
        data = bytearray(b"hello")
        task = await at.started(at.ring.send_zc(at.socket, data))
        (operation,) = at.kernel.pending
        at.kernel.pending.remove(operation)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        at.kernel._post(operation.user_data, 5, lib.AU_CQE_F_MORE)
        await at.moments()
        with pytest.raises(BufferError):
            data.extend(b"!")
        assert at.ring.statistics().in_flight == 1
        at.kernel._post(operation.user_data, 0, lib.AU_CQE_F_NOTIF)
        await at.moments()
        assert at.ring.statistics().in_flight == 0
        data.extend(b"!")
