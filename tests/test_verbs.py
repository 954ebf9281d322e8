"""Tests of what all verbs make of their arguments: memory, lengths, offsets and files."""

import array
import asyncio
import ctypes
import mmap
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import RingFactory, open_files, pinned_kilobytes

import aiouring
from aiouring import Connection, StreamWriter
from aiouring._async_ring import AsyncRing

Verb = Callable[[AsyncRing, int, object], Awaitable[int]]

#: The verbs that fill, and those that only look at, the caller's memory.
FILLING: dict[str, Verb] = {
    "read": lambda ring, fd, data: ring.read(fd, data, 0),
    "recv_into": lambda ring, fd, data: ring.recv_into(fd, data),
}
LOOKING: dict[str, Verb] = {
    "write": lambda ring, fd, data: ring.write(fd, data, 0),
    "send": lambda ring, fd, data: ring.send(fd, data),
}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a small file, open for both ways."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("verb", FILLING)
async def test_m3_memory_that_cannot_be_filled(ring: AsyncRing, file: int, verb: str) -> None:
    """Read-only, non-contiguous, released and non-buffer objects are refused before anything is submitted."""
    call = FILLING[verb]
    released = memoryview(bytearray(8))
    released.release()
    with Path("/proc/self/exe").open("rb") as program:
        read_only = mmap.mmap(program.fileno(), 4096, access=mmap.ACCESS_READ)
    before = ring.statistics().submitted
    for bad, error in (
        (b"read-only", BufferError),
        (read_only, BufferError),
        (memoryview(b"read-only"), BufferError),
        (memoryview(bytearray(16))[::2], BufferError),
        (released, ValueError),
        ("text", TypeError),
        (None, TypeError),
        (5, TypeError),
    ):
        with pytest.raises(error):
            await call(ring, file, bad)
    read_only.close()
    assert ring.statistics().submitted == before


@pytest.mark.parametrize("verb", LOOKING)
async def test_m3_memory_that_cannot_be_looked_at(ring: AsyncRing, file: int, verb: str) -> None:
    """Sending and writing take read-only memory, but nothing that is not C-contiguous bytes."""
    call = LOOKING[verb]
    for bad, error in (("text", TypeError), (None, TypeError), (memoryview(bytes(16))[::2], BufferError)):
        with pytest.raises(error):
            await call(ring, file, bad)


async def test_m3_lengths_are_bytes(ring: AsyncRing, file: int) -> None:
    """Arrays of wider items, several dimensions and ctypes count in bytes; empty memory moves nothing."""
    numbers = array.array("i", [0, 0])
    assert await ring.read(file, numbers, 0) == 8
    assert numbers.tobytes() == b"01234567"
    square = memoryview(bytearray(9)).cast("B", (3, 3))
    assert await ring.read(file, square, 0) == 9
    assert square.tobytes() == b"012345678"
    assert await ring.read(file, (ctypes.c_char * 4)(), 0) == 4
    assert await ring.read(file, bytearray(), 0) == 0
    assert await ring.write(file, b"", 0) == 0
    assert await ring.write(file, numbers, 2) == 8


async def test_m2_offsets(ring: AsyncRing, file: int) -> None:
    """Negative and impossible offsets are ValueErrors with the number; far beyond the end is the end."""
    memory = bytearray(4)
    with ring.register_buffers(count=1, size=64) as buffers:
        with await buffers.acquire() as buffer:
            before = ring.statistics()
            for offset in (-1, -2, -(2**70), 2**63, 2**64):
                for verb in (
                    ring.read(file, memory, offset),
                    ring.write(file, memory, offset),
                    ring.read_fixed(file, buffer, offset),
                    ring.write_fixed(file, buffer, offset),
                ):
                    with pytest.raises(ValueError, match="offset|number"):
                        await verb
            assert ring.statistics() == before
            assert await ring.read(file, memory, 2**62) == 0
            with pytest.raises(TypeError):
                await ring.read(file, memory, "0")  # type: ignore[arg-type]
    memory.extend(b"not held any more")


async def test_m1_lengths_of_fixed_buffers(ring: AsyncRing, file: int) -> None:
    """start and length must lie in the buffer; the error has the numbers, and nothing is submitted."""
    with ring.register_buffers(count=1, size=64) as buffers:
        with await buffers.acquire() as buffer:
            before = ring.statistics()
            for start, length in ((0, 65), (1, 64), (64, 1), (65, 0), (-1, 4), (0, -1), (0, 2**31), (0, 2**32 - 1)):
                with pytest.raises(ValueError, match=f"start={start}.*length={length}.* 64 "):
                    await ring.read_fixed(file, buffer, 0, start=start, length=length)
            for number in (2**63, 2**64, -(2**64)):
                with pytest.raises(ValueError, match="number"):
                    await ring.write_fixed(file, buffer, 0, start=number, length=1)
            assert ring.statistics() == before
            assert await ring.read_fixed(file, buffer, 0, start=64) == 0
        with pytest.raises(ValueError, match="released"):
            await ring.read_fixed(file, buffer, 0)
        with pytest.raises(TypeError, match="FixedBuffer"):
            await ring.read_fixed(file, bytearray(8), 0)  # type: ignore[arg-type]


async def test_m4_memory_the_kernel_cannot_reach(ring: AsyncRing, file: int) -> None:
    """Memory whose pages may not be written is EFAULT from the kernel, not a crash."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc = ctypes.CDLL(None, use_errno=True)
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.c_void_p(ctypes.addressof(anchor))
    assert libc.mprotect(address, mmap.PAGESIZE, 1) == 0
    with pytest.raises(OSError, match="Bad address"):
        await ring.read(file, page, 0)
    libc.mprotect(address, mmap.PAGESIZE, 3)
    assert await ring.read(file, page, 0) == 10
    del anchor
    page.close()


async def test_files_that_are_none(ring: AsyncRing) -> None:
    """What is neither a descriptor nor has fileno() is a TypeError or AttributeError before anything happens."""
    for bad in ("7", None, 3.0):
        with pytest.raises((TypeError, AttributeError)):
            await ring.read(bad, bytearray(1), 0)  # type: ignore[arg-type]
    closed = socket.socket()
    closed.close()
    for verb in (
        ring.recv_into(closed, bytearray(1)),
        ring.send(closed, b"x"),
        ring.accept(closed),
        ring.poll(closed, select.POLLIN),
        ring.close(closed),
    ):
        with pytest.raises(OSError, match="closed"):
            await verb


async def test_bad_input_leaves_nothing_behind(new_ring: RingFactory, file: int) -> None:
    """After many refusals there are as many descriptors and pinned pages as before, and no memory is held."""
    ring = await new_ring()
    files, pinned = open_files(), pinned_kilobytes()
    memory = bytearray(16)
    for _ in range(50):
        with pytest.raises(ValueError, match="negative"):
            await ring.read(file, memory, -5)
        with pytest.raises(OSError, match="descriptor"):
            await ring.read(9999, memory, 0)
        with pytest.raises(ValueError, match="power of two"):
            ring.register_buffer_ring(count=3, size=64)
        with pytest.raises(ValueError, match="count=0"):
            ring.register_buffers(count=0, size=64)
    memory.extend(b"free")
    assert open_files() == files
    assert pinned_kilobytes() == pinned


async def test_groups_that_are_none(ring: AsyncRing) -> None:
    """recv() takes buffer rings of its own ring only, and says so before anything happens."""
    left, right = socket.socketpair()
    other = AsyncRing()
    async with other:
        group = other.register_buffer_ring(count=2, size=64)
        for bad, error in ((None, TypeError), (bytearray(8), TypeError), (group, ValueError)):
            with pytest.raises(error):
                await ring.recv(left, bad)  # type: ignore[arg-type]
    right.close()
    left.close()


async def test_h10_a_transports_socket_is_refused(ring: AsyncRing) -> None:
    """One owner for each socket: what a transport shows of it, or the socket it was made of, is nobody else's."""
    group = ring.register_buffer_ring(count=4, size=64)
    ours, theirs = socket.socketpair()
    given, peer = socket.socketpair()
    connection = Connection(ring, theirs, group)
    _, writer = await asyncio.open_connection(sock=given)
    shown = writer.get_extra_info("socket"), StreamWriter(connection).get_extra_info("socket")
    before = ring.statistics().submitted
    for sock in shown:
        uses: list[Callable[[], object]] = [
            partial(ring.recv, sock, group),
            partial(ring.recv_into, sock, bytearray(8)),
            partial(ring.send_all, sock, b"hello"),
            partial(ring.recvmsg, sock, [bytearray(8)]),
            partial(ring.close, sock),
            partial(ring.cancel, sock),
            partial(ring.shutdown, sock, socket.SHUT_RD),
            partial(ring.recv_multishot, sock, group),
            partial(ring.poll_multishot, sock),
            partial(Connection, ring, sock, group),
        ]
        for use in uses:
            with pytest.raises(aiouring.ResourceBusyError, match="belongs to a transport"):
                if asyncio.iscoroutine(found := use()):
                    await found
    with pytest.raises(aiouring.ResourceBusyError, match="belongs to a transport of the event loop"):
        Connection(ring, given, group)
    assert ring.statistics().submitted == before
    peer.send(b"hello")
    assert writer.get_extra_info("socket").fileno() >= 0
    writer.close()
    await writer.wait_closed()
    await connection.aclose()
    for sock in (ours, peer, given):
        sock.close()
