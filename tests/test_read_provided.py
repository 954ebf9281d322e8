"""Tests of reads into provided buffers: a file's bytes, and who has the buffer whatever becomes of the read."""

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring import CompletionFlags, Opcode, Ring, _file_verbs
from aiouring._request import ProvidedRead
from aiouring._ring import CoreRing
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib

CONTENT = bytes(at * 7 % 251 for at in range(100_003))


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file whose every byte says where it belongs."""
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is begun by a worker thread of the kernel, which takes the buffer at once, as for a slow disk."""
    real: Callable[..., int] = lib.au_prepare_select

    def prepare(*arguments: Any) -> int:
        *most, how = arguments
        return real(*most, how | lib.AU_SQE_ASYNC)

    monkeypatch.setattr(_file_verbs, "_prepare_select", prepare)


def is_held(ring: CoreRing, group: aiouring.BufferRing, count: int = 0) -> bool:
    """Whether a read has taken a buffer, so that the kernel has `count` left, and waits for data.

    While the worker has it, a cancel answers EALREADY and does nothing; once it is polled for, it can be cancelled.
    """
    if group.available() != count:
        return False
    return f"op={lib.AU_OP_READ}," in Path(f"/proc/self/fdinfo/{ring.fd}").read_text()


def check_conserved(group: aiouring.BufferRing, in_use: int = 0) -> None:
    """All but `in_use` buffers are with the kernel, which knows of them; for when nothing is in flight."""
    found = group.statistics()
    assert (found.with_kernel, found.in_use) == (found.count - in_use, in_use)
    assert group.available() == group.raw.with_kernel


# ---- reading, as liburing's ringbuf-read -------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("count", [1, 4, 64])
async def test_a_file_is_read(ring: aiouring.AsyncRing, numbers: Path, count: int, direct: bool) -> None:
    """Many reads at once, out of order and in fewer buffers than there are reads, give the file's bytes."""
    size = 4096
    file = os.open(numbers, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    offsets = list(range(0, len(CONTENT), size))
    random.Random(count).shuffle(offsets)

    async def read(offset: int) -> None:
        with await ring.read_provided(file, group, offset) as chunk:
            assert bytes(chunk.view) == CONTENT[offset : offset + size]

    with ring.register_buffer_ring(count=count, size=size) as group:
        await asyncio.gather(*map(read, offsets))
        await ring.nop()
        check_conserved(group)
        assert group.statistics().high_water <= count
    os.close(file)


async def test_in_memory_files(ring: aiouring.AsyncRing) -> None:
    """A file that only a worker thread of the kernel can read is read as well."""
    file = os.memfd_create("numbers")
    os.write(file, CONTENT)
    with ring.register_buffer_ring(count=4, size=1000) as group:
        for offset in range(0, len(CONTENT), 1000):
            with await ring.read_provided(file, group, offset) as chunk:
                assert bytes(chunk.view) == CONTENT[offset : offset + 1000]
    os.close(file)


async def test_position_and_offset(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Without an offset the file's own position is used and moved; with one it is not."""
    with numbers.open("rb", buffering=0) as file, ring.register_buffer_ring(count=2, size=100) as group:
        for at in range(5):
            with await ring.read_provided(file, group) as chunk:
                assert bytes(chunk.view) == CONTENT[100 * at : 100 * at + 100]
            with await ring.read_provided(file, group, 7) as chunk:
                assert bytes(chunk.view) == CONTENT[7:107]
            assert file.tell() == 100 * (at + 1)


async def test_slots_of_registered_files(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """A registered file does as well as a descriptor, also in line for a buffer."""
    with numbers.open("rb", buffering=0) as file, ring.register_files([file]) as files:
        with ring.register_buffer_ring(count=1, size=100) as group:
            held = await ring.read_provided(files[0], group, 7)
            assert bytes(held.view) == CONTENT[7:107]
            task = asyncio.create_task(ring.read_provided(files[0], group))
            while not group.statistics().waiting:
                await asyncio.sleep(0)
            held.release()
            with await task as chunk:
                assert bytes(chunk.view) == CONTENT[:100]
            assert file.tell() == 100


async def test_length(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """A length bounds the read; one that no buffer holds is refused with the numbers."""
    with numbers.open("rb") as file, ring.register_buffer_ring(count=2, size=100) as group:
        for length in (1, 99, 100):
            with await ring.read_provided(file, group, 0, length=length) as chunk:
                assert bytes(chunk.view) == CONTENT[:length]
        before = ring.statistics().submitted
        for wrong in (0, -1, 101, 1 << 40):
            with pytest.raises(ValueError, match=f"length={wrong} is outside 1 to 100"):
                await ring.read_provided(file, group, 0, length=wrong)
        with pytest.raises(ValueError, match="offset=-2 is negative"):
            await ring.read_provided(file, group, -2)
        with pytest.raises(TypeError, match="length must be an int"):
            await ring.read_provided(file, group, 0, length="1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="BufferRing"):
            await ring.read_provided(file, bytearray(10))  # type: ignore[arg-type]
        assert ring.statistics().submitted == before


async def test_pipe(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A read from a pipe that waits holds no buffer; its end is an empty, falsy result."""
    with ring.register_buffer_ring(count=1, size=64) as group:
        task = asyncio.create_task(ring.read_provided(pipe[0], group))
        await ring.nop()
        assert group.available() == 1
        os.write(pipe[1], b"late")
        with await task as chunk:
            assert bytes(chunk.view) == b"late"


async def test_d9_end_of_file(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """The end of a file takes a buffer, unlike that of a stream, and it is back however often it is met."""
    with numbers.open("rb") as file, ring.register_buffer_ring(count=2, size=64) as group:
        for lap in range(1, 11):
            with await ring.read_provided(file, group, len(CONTENT) - 3) as last:
                assert bytes(last.view) == CONTENT[-3:]
            end = await ring.read_provided(file, group, len(CONTENT))
            assert (bool(end), end.buffer_id, bytes(end.view)) == (False, None, b"")
            assert group.head() == 2 * lap
            await ring.nop()
            check_conserved(group)


async def test_d9_errors(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A read that fails gives its buffer back, if it had taken one."""
    folder = os.open(tmp_path, os.O_RDONLY)
    writing = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as listener, ring.register_buffer_ring(count=2, size=64) as group:
        wrong = ((folder, errno.EISDIR), (writing, errno.EBADF), (memory, errno.EIO), (listener, errno.ENOTCONN))
        for _ in range(5):
            for file, number in wrong:
                with pytest.raises(OSError) as caught:
                    await ring.read_provided(file, group, 0)
                assert caught.value.errno == number
                await ring.nop()
                check_conserved(group)
    for descriptor in (folder, writing, memory):
        os.close(descriptor)


# ---- the head, as liburing's ringbuf-status ----------------------------------------------------


def reset_connection() -> int:
    """A connection that its peer has reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    return ours.detach()


def file_of(content: bytes) -> Callable[[Path], int]:
    """Makes a file on the disk."""

    def make(folder: Path) -> int:
        (folder / "file").write_bytes(content)
        return os.open(folder / "file", os.O_RDONLY)

    return make


def ended_pipe(_folder: Path) -> int:
    """Makes a pipe that nobody writes to."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


CASES: dict[str, tuple[Callable[[Path], int], int, bool]] = {
    "data": (file_of(b"hello"), 5, True),
    "end of a file": (file_of(b""), 0, True),
    "end of a pipe": (ended_pipe, 0, True),
    "directory": (lambda folder: os.open(folder, os.O_RDONLY), -errno.EISDIR, True),
    "write-only": (lambda folder: os.open(folder / "new", os.O_WRONLY | os.O_CREAT), -errno.EBADF, True),
    "reset": (lambda _: reset_connection(), -errno.ECONNRESET, False),
}


@pytest.mark.parametrize("worker", [False, True], ids=["at once", "in a worker"])
@pytest.mark.parametrize("name", CASES)
def test_d9_flag_and_head_agree(profile: TaskRun, tmp_path: Path, name: str, worker: bool) -> None:
    """F_BUFFER, and not the result, says whether a read took a buffer: then, and only then, the head has moved."""
    make, expected, takes = CASES[name]
    file = make(tmp_path)
    with Ring(8, cq_entries=16, task_run=profile) as ring, ring.register_buffer_ring(count=2, size=64) as group:
        how = lib.AU_SQE_ASYNC if worker else 0
        assert lib.au_prepare_select(ring.raw, 1, Opcode.READ, file, group.raw, 0, 0, 0, how) == 0
        (completion,) = ring.wait()
        assert completion.result == expected
        has = bool(completion.flags & CompletionFlags.BUFFER)
        assert group.head() == has
        assert has or not (takes and not worker)
        if has:
            group.take(completion.flags, max(0, completion.result)).release()
        ring.submit()
        check_conserved(group)
    os.close(file)


def test_d9_flag_of_a_cancelled_read(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """A read that waits for data has no buffer when it is cancelled; one in a worker has, and says so."""
    with Ring(8, cq_entries=16, task_run=profile) as ring, ring.register_buffer_ring(count=2, size=64) as group:
        for how in (0, lib.AU_SQE_ASYNC) * 5:
            before = group.head()
            assert lib.au_prepare_select(ring.raw, 1, Opcode.READ, pipe[0], group.raw, 0, -1, 0, how) == 0
            ring.submit()
            while how and not is_held(ring, group, 1):
                pass  # the worker does so in its own time
            ring.prepare(Opcode.ASYNC_CANCEL, user_data=2, address=1)
            (completion,) = (found for found in ring.wait(2) if found.user_data == 1)
            assert completion.result in (-errno.ECANCELED, -errno.EINTR)
            assert bool(completion.flags & CompletionFlags.BUFFER) == bool(how)
            assert group.head() == before + bool(how)
            if how:
                group.take(completion.flags, 0).release()
            ring.submit()
            check_conserved(group)


# ---- buffers that reads hold, and those who wait -----------------------------------------------


async def test_d5_reads_wait_in_line(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """With all buffers lent a read waits its turn, or raises where that was asked for."""
    with numbers.open("rb") as file, ring.register_buffer_ring(count=1, size=64) as group:
        held = await ring.read_provided(file, group, 0)
        tasks = [asyncio.create_task(ring.read_provided(file, group, 64 * at)) for at in range(1, 4)]
        while group.statistics().waiting < 3:
            await asyncio.sleep(0)
        with pytest.raises(aiouring.BuffersExhaustedError, match="all 1 buffers of group 0 are in use"):
            await ring.read_provided(file, group, 0, on_empty="raise")
        held.release()
        for at, task in enumerate(tasks, 1):
            with await task as chunk:
                assert bytes(chunk.view) == CONTENT[64 * at : 64 * at + 64]


@pytest.mark.usefixtures("in_a_worker")
async def test_d5_nothing_spins_while_a_read_holds_the_buffer(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A buffer that a read in flight holds is not there for those in line: they are not called in vain."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=64) as group:
        reading = asyncio.create_task(ring.read_provided(pipe[0], group))
        while not is_held(ring._ring, group):
            await ring.nop()
        theirs.send(b"data")
        receiving = asyncio.create_task(ring.recv(ours, group))
        while not group.statistics().waiting:
            await asyncio.sleep(0)
        before = group.statistics().enobufs
        for _ in range(100):
            await ring.nop()
        assert group.statistics().enobufs <= before + 1
        os.write(pipe[1], b"late")
        with await reading as chunk:
            assert bytes(chunk.view) == b"late"
        with await receiving as chunk:
            assert bytes(chunk.view) == b"data"


@pytest.mark.usefixtures("in_a_worker")
async def test_d9_cancelled_while_it_holds_a_buffer(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A read in a worker comes back from its cancellation with the buffer, which goes back to the kernel."""
    with ring.register_buffer_ring(count=1, size=64) as group:
        for _ in range(5):
            task = asyncio.create_task(ring.read_provided(pipe[0], group))
            while not is_held(ring._ring, group):
                await ring.nop()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await ring.nop()
            check_conserved(group)


@pytest.mark.usefixtures("in_a_worker")
async def test_m8_unregistered_while_it_holds_a_buffer(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """The read is told; its memory lives until the kernel is done with it, and the number is not free before."""
    group = ring.register_buffer_ring(count=1, size=64, group_id=5)
    task = asyncio.create_task(ring.read_provided(pipe[0], group))
    while not is_held(ring._ring, group):
        await ring.nop()
    group.unregister()
    with pytest.raises(aiouring.ResourceBusyError, match="still named by a request in flight"):
        ring.register_buffer_ring(count=1, size=64, group_id=5)
    with pytest.raises(aiouring.RingClosedError, match="buffer ring 5 was unregistered during a read"):
        await task
    os.write(pipe[1], b"data")
    with ring.register_buffer_ring(count=1, size=64, group_id=5) as again:
        with await ring.read_provided(pipe[0], again) as chunk:
            assert bytes(chunk.view) == b"data"


@pytest.mark.usefixtures("in_a_worker")
async def test_b1_closed_while_it_holds_a_buffer(new_ring: RingFactory, pipe: tuple[int, int]) -> None:
    """Closing the ring ends the read, and reaps it."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=1, size=64)
    task = asyncio.create_task(ring.read_provided(pipe[0], group))
    while not is_held(ring._ring, group):
        await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await task


# ---- what a cancelled read had read ------------------------------------------------------------


async def test_a2_cancelled_at_the_position(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """A read that was done when its task was cancelled leaves the file's position where it was."""
    with numbers.open("rb", buffering=0) as file, ring.register_buffer_ring(count=2, size=100) as group:
        for offset in (None, 50):
            for _ in range(10):
                task = asyncio.create_task(ring.read_provided(file, group, offset))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert file.tell() == 0
                await ring.nop()
                check_conserved(group)


async def test_a8_cancelled_with_data_from_a_pipe(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """Bytes of a pipe that came with a cancellation are the next read's, of either kind, in parts where it is short."""
    with ring.register_buffer_ring(count=2, size=64) as group:
        for _ in range(5):
            os.write(pipe[1], b"abcdef")
            task = asyncio.create_task(ring.read_provided(pipe[0], group))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            with await ring.read_provided(pipe[0], group, length=2) as chunk:
                assert bytes(chunk.view) == b"ab"
            rest = bytearray(10)
            assert await ring.read(pipe[0], rest) == 4
            assert rest[:4] == b"cdef"
            await ring.nop()
            check_conserved(group)


# ---- completions as other kernels make them ----------------------------------------------------


def change(
    ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch, how: Callable[[int, int], tuple[int, int]]
) -> None:
    """Have the results and flags of requests changed before they are delivered."""
    driver = ring._bound()
    deliver = driver._deliver

    def spoil(count: int) -> None:
        for at in range(0, 3 * count, 3):
            if isinstance(driver.inflight.get(driver._raw.events[at]), ProvidedRead):
                driver._raw.events[at + 1], driver._raw.events[at + 2] = how(
                    driver._raw.events[at + 1], driver._raw.events[at + 2]
                )
        deliver(count)

    monkeypatch.setattr(driver, "_deliver", spoil)


async def test_d9_flag_without_a_buffer(
    ring: aiouring.AsyncRing, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a failed read names a buffer that it never had, as Linux 6.12 does, that is not published twice."""
    change(ring, monkeypatch, lambda result, flags: (result, flags | lib.AU_CQE_F_BUFFER * (result < 0)))
    with socket.create_server(("127.0.0.1", 0)) as listener, ring.register_buffer_ring(count=2, size=64) as group:
        for _ in range(5):
            with pytest.raises(OSError) as caught:
                await ring.read_provided(listener, group)
            assert caught.value.errno == errno.ENOTCONN
            await ring.nop()
            check_conserved(group)
        assert group.statistics().published == 2
        os.write(pipe[1], b"x" * 64 + b"y" * 64)
        first, second = [await ring.read_provided(pipe[0], group) for _ in range(2)]
        assert first.buffer_id != second.buffer_id
        assert (bytes(first.view), bytes(second.view)) == (b"x" * 64, b"y" * 64)
        first.release()
        second.release()


async def test_d9_interrupted_with_a_buffer(
    ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that is tried again takes a buffer each time, and keeps the last."""
    tries = 0

    def interrupted(result: int, flags: int) -> tuple[int, int]:
        nonlocal tries
        tries += 1
        return (-errno.EINTR if tries % 3 else result), flags

    change(ring, monkeypatch, interrupted)
    with numbers.open("rb") as file, ring.register_buffer_ring(count=2, size=64) as group:
        for _ in range(4):
            with await ring.read_provided(file, group, 0) as chunk:
                assert bytes(chunk.view) == CONTENT[:64]
            await ring.nop()
            check_conserved(group)
    assert tries == 12


# ---- as liburing's ringbuf-loop ----------------------------------------------------------------


async def test_no_buffer_overlaps_the_ring(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel cannot be made to read a file over the ring itself: that is no memory of any buffer's."""
    seen: list[tuple[int, int]] = []
    real = lib.au_kernel.do_register

    def spy(fd: int, opcode: int, argument: Any, number: int) -> int:
        if opcode == lib.AU_REGISTER_PBUF_RING:
            wanted = ffi.cast("struct au_buf_reg *", argument)
            seen.append((wanted.ring_addr, wanted.ring_addr + 16 * wanted.ring_entries))
        return int(real(fd, opcode, argument, number))

    callback = ffi.callback("int(int, unsigned, void *, unsigned)", spy)
    with monkeypatch.context() as patch:
        patch.setattr(lib.au_kernel, "do_register", callback)
        groups = [ring.register_buffer_ring(count=1 << exponent, size=4096) for exponent in range(10)]
    arenas = [(base := int(ffi.cast("uintptr_t", group.arena.base)), base + len(group) * 4096) for group in groups]
    spans = sorted(seen + arenas)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
