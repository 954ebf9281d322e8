"""Tests of readv_fixed and writev_fixed: several ranges of one registered buffer in one request."""

import asyncio
import gc
import os
import random
from pathlib import Path

import pytest
from conftest import settle

import aiouring
from aiouring import Opcode, Ring, _features
from aiouring._fixed_buffer import Vector
from aiouring._setup import TaskRun
from aiouring._uring import ffi
from aiouring._vector_verbs import scatter


async def test_ranges_are_filled_in_order(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """One range is filled after the other, in the order given; the rest of the buffer is untouched."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("r+b", buffering=0) as file, ring.register_buffers(count=1, size=16) as table:
        async with await table.acquire() as buffer:
            buffer.view[:] = b"." * 16
            assert await ring.readv_fixed(file, buffer, [(10, 3), (0, 2), (5, 1)], 1) == 6
            assert bytes(buffer.view) == b"45...6....123..."
            assert await ring.writev_fixed(file, buffer, ((start, 2) for start in (11, 0)), 0) == 4
            assert os.pread(file.fileno(), 10, 0) == b"2345456789"


async def test_random_ranges(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Random ranges, up to 1024 of them, agree with a model, for reading and writing."""
    choose = random.Random(11)
    size = 20_000
    contents = choose.randbytes(size)
    (tmp_path / "file").write_bytes(contents)
    with (tmp_path / "file").open("rb", buffering=0) as file, ring.register_buffers([bytearray(size)]) as table:
        with table[0] as buffer, (tmp_path / "copy").open("w+b", buffering=0) as copy:
            for count in [*(choose.randint(1, 50) for _ in range(30)), 1024]:
                cuts = sorted(choose.sample(range(size), 2 * count))
                ranges = [(start, end - start) for start, end in zip(cuts[::2], cuts[1::2], strict=True)]
                choose.shuffle(ranges)
                total = sum(length for _, length in ranges)
                before = bytearray(choose.randbytes(size))
                buffer.view[:] = before
                offset = choose.randrange(size - total + 1)
                assert await ring.readv_fixed(file, buffer, ranges, offset) == total
                at = offset
                for start, length in ranges:
                    before[start : start + length] = contents[at : at + length]
                    at += length
                assert buffer.view == before
                assert await ring.writev_fixed(copy, buffer, ranges, 0) == total
                assert os.pread(copy.fileno(), total, 0) == contents[offset : offset + total]


async def test_position_end_and_short_reads(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Without an offset the file's position is used and moved; at the end come fewer bytes, then none."""
    (tmp_path / "file").write_bytes(b"0123456")
    with (tmp_path / "file").open("rb", buffering=0) as file, ring.register_buffers(count=1, size=8) as table:
        async with await table.acquire() as buffer:
            counts = [await ring.readv_fixed(file, buffer, [(6, 2), (0, 2)]) for _ in range(3)]
            assert (counts, file.tell()) == ([4, 3, 0], 7)
            assert bytes(buffer.view) == b"63\0\0\0\x0045"


async def test_cancelled_readv_puts_the_bytes_back(pipe: tuple[int, int]) -> None:
    """Bytes that a cancelled readv_fixed had taken out of a pipe are the next one's, in their order."""
    async with aiouring.AsyncRing(task_run="coop") as ring:
        with ring.register_buffers(count=1, size=10) as table, await table.acquire() as buffer:
            task = asyncio.create_task(ring.readv_fixed(pipe[0], buffer, [(5, 2), (0, 3)]))
            await settle(ring)
            os.write(pipe[1], b"data")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            buffer.view[:] = bytes(10)
            async with asyncio.timeout(1):
                assert await ring.readv_fixed(pipe[0], buffer, [(9, 1), (0, 1), (1, 5)]) == 4
            assert bytes(buffer.view) == b"ata\0\0\0\0\0\0d"


async def test_cancelled_readv_of_a_file(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """The file's position is put back."""
    (tmp_path / "file").write_bytes(b"0123456")
    with (tmp_path / "file").open("rb", buffering=0) as file, ring.register_buffers(count=1, size=8) as table:
        async with await table.acquire() as buffer:
            task = asyncio.create_task(ring.readv_fixed(file, buffer, [(0, 2), (4, 2)]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert file.tell() == 0
            assert await ring.readv_fixed(file, buffer, [(0, 2), (4, 2)]) == 4


async def test_pinned_until_the_end(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """While the request is in flight the buffer cannot be released, and the ranges live although nobody has them."""
    with ring.register_buffers(count=1, size=10) as table, await table.acquire() as buffer:
        task = asyncio.create_task(ring.readv_fixed(pipe[0], buffer, [(8, 2), (0, 2)], 0))
        await settle(ring)
        gc.collect()
        with pytest.raises(aiouring.ResourceBusyError):
            buffer.release()
        table.unregister()
        os.write(pipe[1], b"data")
        assert await task == 4
        assert bytes(buffer.view) == b"ta\0\0\0\0\0\0da"


async def test_more_requests_than_entries(ring: aiouring.AsyncRing) -> None:
    """A full submission queue is submitted and the request filled again, with the same ranges."""
    with ring.register_buffers(count=600, size=4) as table, open("/dev/zero", "rb") as zeros:

        async def read() -> None:
            async with await table.acquire() as buffer:
                buffer.view[:] = b"xxxx"
                assert await ring.readv_fixed(zeros, buffer, [(3, 1), (0, 1)], 0) == 2
                assert bytes(buffer.view) == b"\0xx\0"

        await asyncio.gather(*(read() for _ in range(600)))


async def test_a_registered_file(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A slot of the table of registered files does in place of a descriptor."""
    with (tmp_path / "file").open("w+b", buffering=0) as file, ring.register_files([file]) as files:
        with ring.register_buffers([bytearray(b"0123456789")]) as table, table[0] as buffer:
            assert await ring.writev_fixed(files[0], buffer, [(8, 2), (0, 3)], 0) == 5
            assert await ring.readv_fixed(files[0], buffer, [(1, 1), (9, 1)], 1) == 2
            assert bytes(buffer.view) == b"0923456780"


async def test_refused(ring: aiouring.AsyncRing) -> None:
    """What is no lent registered buffer, a released one and a negative offset are refused."""
    with ring.register_buffers(count=1, size=10) as table:
        buffer = await table.acquire()
        for verb in (ring.readv_fixed, ring.writev_fixed):
            with pytest.raises(TypeError, match="a FixedBuffer"):
                await verb(0, bytearray(10), [(0, 1)], 0)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="offset=-1 is negative"):
                await verb(0, buffer, [(0, 1)], -1)
            with pytest.raises(OSError):
                await verb(9999, buffer, [(0, 1)], 0)
        buffer.release()
        for verb in (ring.readv_fixed, ring.writev_fixed):
            with pytest.raises(ValueError, match="released already"):
                await verb(0, buffer, [(0, 1)], 0)


async def test_a_kernel_without_them(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not know the operation the error names the version."""
    with ring.register_buffers(count=1, size=10) as table, await table.acquire() as buffer:
        monkeypatch.setattr(_features, "_here", frozenset())
        for verb in (ring.readv_fixed, ring.writev_fixed):
            with pytest.raises(aiouring.UnsupportedKernelError, match=r"needs Linux 6\.15"):
                await verb(0, buffer, [(0, 1)], 0)
        assert buffer.pins == 0


def test_without_a_loop(profile: TaskRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ring fills the same request by hand, and keeps the ranges until the kernel has taken it."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with Ring(8, cq_entries=16, task_run=profile) as ring, (tmp_path / "file").open("r+b") as file:
        with ring.register_buffers([bytearray(8)]) as table, table[0] as buffer:
            ring.prepare_fixed_vector(
                Opcode.READV_FIXED, buffer, [(4, 4), (0, 1)], user_data=5, fd=file.fileno(), offset=2
            )
            gc.collect()
            assert ring.wait() == [(5, 5, 0)]
            assert bytes(buffer.view) == b"6\0\0\x002345"
            assert not ring._vectors
            with pytest.raises(ValueError, match="start=8"):
                ring.prepare_fixed_vector(Opcode.READV_FIXED, buffer, [(8, 1)], user_data=5, fd=file.fileno())
            monkeypatch.setattr(_features, "_here", frozenset())
            with pytest.raises(aiouring.UnsupportedKernelError, match=r"needs Linux 6\.15"):
                ring.prepare_fixed_vector(Opcode.WRITEV_FIXED, buffer, [(0, 1)], user_data=5, fd=file.fileno())


async def test_scatter(ring: aiouring.AsyncRing) -> None:
    """Bytes that came earlier fill the ranges as the kernel would."""
    with ring.register_buffers([bytearray(8)]) as table, table[0] as buffer:
        vector = Vector(buffer, [(6, 2), (0, 3), (4, 1)])
        assert scatter(ffi.from_buffer(buffer.view), vector, b"abcd") == 4
        assert bytes(buffer.view) == b"cd\0\0\0\0ab"


# ---- several buffers ---------------------------------------------------------------------------------


async def test_buffers_are_filled_in_order(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """readv fills one buffer after the other, writev writes them so; at an offset, and at the file's own position."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        assert await ring.writev(file, [b"01", bytearray(b"23"), memoryview(b"x456789")[1:], b""]) == 10
        assert await ring.writev(file, [b"ab", b"c"], 3) == 3
        assert file.tell() == 10
        first, second = bytearray(2), bytearray(20)
        assert await ring.readv(file, [first, second], 2) == 8
        assert bytes(first + second[:6]) == b"2abc6789"
        file.seek(8)
        assert await ring.readv(file.fileno(), [first, second]) == 2
        assert first == b"89"
        assert file.tell() == 10
        assert await ring.readv(file, [first]) == 0
        assert await ring.readv(file, []) == 0
        with ring.register_files([file]) as files:
            assert await ring.readv(files[0], [first], 0) == 2
        with ring.register_buffers(count=1, size=4) as table, table[0] as lent:
            assert await ring.readv(file, [first, lent], 0) == 6
            assert bytes(lent.view) == b"2abc"


async def test_b5_buffers_are_held_and_let_go(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """They cannot be resized while a readv waits, and can when it has ended, by data or by an error."""
    reader, writer = pipe
    buffers = [bytearray(2), bytearray(2)]
    task = asyncio.create_task(ring.readv(reader, buffers))
    await settle(ring)
    for buffer in buffers:
        with pytest.raises(BufferError):
            buffer.append(0)
    os.write(writer, b"abc")
    assert await task == 3
    assert buffers == [b"ab", b"c\0"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        await ring.readv(writer, buffers)
    for buffer in buffers:
        buffer.append(0)


async def test_a4_a_cancelled_readv_loses_nothing(
    ring: aiouring.AsyncRing, pipe: tuple[int, int], tmp_path: Path
) -> None:
    """What arrived with the cancellation is the next read's, whichever verb that is; a file's position is put back."""
    reader, writer = pipe
    for received in range(0, 60, 6):
        task = asyncio.create_task(ring.readv(reader, [bytearray(2), bytearray(4)]))
        await settle(ring)
        os.write(writer, bytes(range(received, received + 6)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        buffers = [bytearray(1), bytearray(9)]
        assert await ring.readv(reader, buffers) == 6
        assert (buffers[0] + buffers[1])[:6] == bytes(range(received, received + 6))
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        for turns in range(6):
            task = asyncio.create_task(ring.readv(file, [bytearray(3), bytearray(3)]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert file.tell() == (0 if task.cancelled() else 6)
            file.seek(0)


async def test_m1_too_many_buffers(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """1024 are taken, one more is refused by its count; so are an offset below 0 and what is no buffer."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        assert await ring.writev(file, [b"x"] * 1024, 0) == 1024
        with pytest.raises(ValueError, match="1025 parts"):
            await ring.writev(file, [b"x"] * 1025, 0)
        with pytest.raises(ValueError, match="offset=-1"):
            await ring.readv(file, [bytearray(1)], -1)
        with pytest.raises(BufferError):
            await ring.readv(file, [b"read-only"])
        with pytest.raises(TypeError):
            await ring.readv(file, ["text"])


# ---- flags, and workers ------------------------------------------------------------------------------


async def test_flags_of_vectors(ring: aiouring.AsyncRing, pipe: tuple[int, int], tmp_path: Path) -> None:
    """APPEND writes at the end, NOWAIT does not wait; with buffers and with ranges."""
    reader, writer = pipe
    flags = aiouring.ReadWriteFlags
    with (tmp_path / "file").open("w+b", buffering=0) as file, ring.register_buffers(count=1, size=8) as table:
        with table[0] as buffer:
            buffer.view[:] = b"fixed..."
            assert await ring.writev(file, [b"012"], 0, flags=flags.DSYNC) == 3
            assert await ring.writev(file, [b"34"], 0, flags=flags.APPEND, background=True) == 2
            assert await ring.writev_fixed(file, buffer, [(0, 5)], 0, flags=flags.APPEND | flags.SYNC) == 5
            assert (tmp_path / "file").read_bytes() == b"01234fixed"
            assert await ring.readv_fixed(file, buffer, [(3, 5)], 0, background=True) == 5
            assert bytes(buffer.view) == b"fix01234"
            for verb in (
                ring.readv(reader, [bytearray(1)], flags=flags.NOWAIT),
                ring.readv_fixed(reader, buffer, [(0, 1)], flags=flags.NOWAIT),
            ):
                with pytest.raises(BlockingIOError):
                    await verb
            os.set_blocking(writer, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(writer, bytes(4096))
            for verb in (
                ring.writev(writer, [b"x"], flags=flags.NOWAIT),
                ring.writev_fixed(writer, buffer, [(0, 1)], flags=flags.NOWAIT),
            ):
                with pytest.raises(BlockingIOError):
                    await verb
