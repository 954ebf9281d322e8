"""Tests of what can go wrong with an open file: FAULTS.md's rows G, M and E, for files opened by `aiouring.open()`.

Rows held elsewhere, on such files as well: G1 in `test_write_behind`, `test_direct_file` and `test_copy`; G3 and G4
for regions that cannot be read, and G8, in `test_file_system`; G5, G10 and direct reads that come back short (G4, G9)
in `test_direct_file`; M3 in `test_binary_file`.
"""

import asyncio
import errno
import io
import mmap
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_systems import Mounter, fuse_servers, loop_device, mounted
from fuse_server import content
from test_raw_file import small_files

import aiouring
from aiouring._direct_file import DirectFile
from aiouring._raw_file import RawFile
from aiouring._request import Request
from aiouring._uring import lib

CONTENT = random.Random(31).randbytes(900_000)
MIB = 1 << 20

each_way = pytest.mark.parametrize(
    "options", [{}, {"buffering": 0}, {"direct": True}], ids=["buffered", "unbuffered", "direct"]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Mounter]:
    """Mounts the test's file system in a mode; returns its file and its server."""
    yield from fuse_servers(tmp_path)


async def failure(awaitable: Awaitable[Any], number: int, name: object) -> OSError:
    """The error of an awaitable: its number, and the file's name."""
    with pytest.raises(OSError) as caught:
        await awaitable
    assert (caught.value.errno, caught.value.filename) == (number, name)
    return caught.value


# ---- no room ---------------------------------------------------------------------------------------


@each_way
async def test_g2_file_too_big(ring: aiouring.AsyncRing, tmp_path: Path, options: dict[str, Any]) -> None:
    """EFBIG comes with the name and with how many bytes are in the file; with more room the rest follows."""
    path = tmp_path / "file"
    async with aiouring.open(path, "w+b", ring=ring, **options) as file:
        with small_files():
            with pytest.raises(OSError) as caught:
                await file.write(CONTENT[:25_000])
                await file.flush()
            assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
            assert aiouring.bytes_written(caught.value) == path.stat().st_size == 10_000
            await failure(file.write_at(b"x", 12_000), errno.EFBIG, str(path))
            await failure(file.truncate(20_000), errno.EFBIG, str(path))
        if options.get("buffering") != 0:
            await file.flush()
            assert path.read_bytes() == CONTENT[:25_000]


async def test_g1_g2_text(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Text says the same of the bytes that it becomes."""
    path = tmp_path / "file"
    file = await aiouring.open(path, "w", encoding="utf-16-le", ring=ring)
    with small_files():
        await file.write("ä" * 6000)
        error = await failure(file.flush(), errno.EFBIG, str(path))
        assert aiouring.bytes_written(error) == 10_000
        await failure(file.close(), errno.EFBIG, str(path))
    assert file.closed
    assert path.read_bytes() == ("ä" * 5000).encode("utf-16-le")


# ---- errors of the device --------------------------------------------------------------------------


@each_way
async def test_g3_eio_of_a_device(ring: aiouring.AsyncRing, tmp_path: Path, options: dict[str, Any]) -> None:
    """What a device cannot read is EIO, whichever way it is read; nothing moves, and what is whole is read after it."""
    image, whole = tmp_path / "image", random.Random(32).randbytes(4 * MIB)
    image.write_bytes(whole * 2)
    with loop_device(image) as device:
        os.truncate(image, 4 * MIB)
        async with aiouring.open(device, "rb", ring=ring, **options) as file:
            for _ in range(2):
                await failure(file.read_at(8192, 5 * MIB), errno.EIO, device)
                await failure(file.read_at(MIB, 4 * MIB - 9000), errno.EIO, device)
                await file.seek(5 * MIB)
                verbs: list[Callable[[], Awaitable[Any]]] = [
                    *(lambda: file.read(1), file.read, lambda: file.read(3 * MIB), file.readline, file.readlines),
                    *(file.read1, file.peek, lambda: file.readinto(bytearray(100)), lambda: anext(file)),
                    lambda: file.readinto(bytearray(2 * MIB)),
                ]
                for verb in verbs:
                    await failure(verb(), errno.EIO, device)
                    assert await file.tell() == 5 * MIB
                assert await file.read_at(9000, 4 * MIB - 9000) == whole[-9000:]
                await file.seek(MIB + 1)
                assert await file.read(MIB // 2) == whole[MIB + 1 : MIB + 1 + MIB // 2]
        async with aiouring.open(device, encoding="latin-1", newline="", ring=ring) as text:
            assert await text.read(3 * MIB) == whole[: 3 * MIB].decode("latin-1")
            await failure(text.read(), errno.EIO, device)


@each_way
async def test_g3_a_device_that_cannot_be_written(
    ring: aiouring.AsyncRing, tmp_path: Path, options: dict[str, Any]
) -> None:
    """What a device does not take is told by sync(), of a direct file by flush(); then it works again, and closes."""
    with mounted("tmpfs", tmp_path / "small", "-o", "size=2m") as small:
        with (small / "image").open("wb") as image:
            image.truncate(16 * MIB)
        with loop_device(small / "image") as device:
            file = await aiouring.open(device, "r+b", ring=ring, **options)
            await file.write(bytes(range(256)) * 4 * 4096)
            if file._raw.alignment > 1:
                error = await failure(file.flush(), errno.ENOSPC, device)
                assert aiouring.bytes_written(error) == 2 * MIB
                await failure(file.close(), errno.ENOSPC, device)
            else:
                await file.flush()
                await failure(file.sync(), errno.EIO, device)
                await file.write_at(b"x" * 4096, 8 * MIB)
                await failure(file.sync(data_only=True), errno.EIO, device)
                assert await file.read_at(512, 0) == bytes(range(256)) * 2
                await file.close()
            assert file.closed


@each_way
async def test_g3_eio_of_writes(ring: aiouring.AsyncRing, fuse: Mounter, options: dict[str, Any]) -> None:
    """EIO of a write is told by the next call, and by close(), with nothing written; the file is closed anyway."""
    path, _ = fuse("bad")
    file = await aiouring.open(path, "r+b", ring=ring, **options)
    if options.get("buffering") == 0:
        error = await failure(file.write(b"x" * 5000), errno.EIO, str(path))
        assert aiouring.bytes_written(error) == 0
        assert await file.tell() == 0
        await file.close()
    else:
        assert await file.write(b"x" * 5000) == 5000
        for verb in (file.flush(), file.read(1), file.seek(0), file.truncate(5), file.sync(), file.close()):
            error = await failure(verb, errno.EIO, str(path))
            assert aiouring.bytes_written(error) == 0
    assert file.closed
    assert file._raw.closed


@each_way
async def test_g3_eio_of_flushing_and_closing(ring: aiouring.AsyncRing, fuse: Mounter, options: dict[str, Any]) -> None:
    """A file system that has taken bytes and then loses them says so to sync() and to close(), which closes."""
    path, _ = fuse("lost")
    file = await aiouring.open(path, "r+b", ring=ring, **options)
    await file.write(b"x" * 5000)
    await file.flush()
    await failure(file.sync(), errno.EIO, str(path))
    await failure(file.sync(data_only=True), errno.EIO, str(path))
    assert await file.read_at(100, 100) == content(100, 100)
    number = file.fileno()
    await failure(file.close(), errno.EIO, str(path))
    assert file.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    await file.close()


# ---- truncated, short, tried again -----------------------------------------------------------------


@each_way
async def test_g6_truncated_under_the_reader(ring: aiouring.AsyncRing, path: Path, options: dict[str, Any]) -> None:
    """A file that shrinks while it is read gives what it had or has, then ends, and what is added is read after it."""
    for reading in ("read", "pieces", "lines", "readinto"):
        path.write_bytes(CONTENT)
        async with aiouring.open(path, "rb", ring=ring, **options) as file:
            found = await file.read(100)
            os.truncate(path, 600_000)
            if reading == "read":
                found += await file.read()
            elif reading == "pieces":
                while part := await file.read(70_000):
                    found += part
            elif reading == "lines":
                found += b"".join([line async for line in file])
            else:
                memory = bytearray(len(CONTENT))
                found += memory[: await file.readinto(memory)]
            assert len(found) >= 600_000
            assert found == CONTENT[: len(found)]
            assert await file.read() == b""
            place = await file.tell()
            assert place == len(found)
            with path.open("r+b") as other:
                other.seek(place)
                other.write(b"more")
            assert await file.read() == b"more"


async def test_g7_odd_descriptors(ring: aiouring.AsyncRing, path: Path, tmp_path: Path) -> None:
    """Descriptors that are not open for it, or are no files, are the built-in's errors, with the name."""
    for number in (os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_PATH)):
        with pytest.raises(IsADirectoryError) as caught:
            await aiouring.open(number, "rb", ring=ring)
        assert caught.value.filename == number
        os.close(number)  # it has not been taken over
    for mode, flags in (("rb", os.O_WRONLY), ("wb", os.O_RDONLY), ("rb", os.O_PATH), ("r+b", os.O_PATH)):
        number = os.open(path, flags)
        file: Any = await aiouring.open(number, mode, ring=ring)
        if "r" in mode:
            for verb in (file.read(5), file.readline(), file.readinto(bytearray(5))):
                await failure(verb, errno.EBADF, number)
            if flags == os.O_PATH:
                with pytest.raises(io.UnsupportedOperation):  # it has no position either
                    await file.read_at(1, 0)
            else:
                await failure(file.read_at(1, 0), errno.EBADF, number)
        if mode != "rb":
            await file.write(b"x")
            await failure(file.flush(), errno.EBADF, number)
            await failure(file.close(), errno.EBADF, number)
        await file.close()
    assert path.read_bytes() == CONTENT


async def test_g7_a_rings_descriptor(ring: aiouring.AsyncRing, path: Path) -> None:
    """A request on a ring never ends, so it is refused as a file; other descriptors without a type are taken."""
    with aiouring.Ring(4) as other:
        for number in (other.fd, ring._ring.fd):
            with pytest.raises(ValueError, match="io_uring"):
                await aiouring.open(number, "r+b", closefd=False, ring=ring)
        with pytest.raises(ValueError, match="io_uring"):
            await aiouring.open(path, "r+b", opener=lambda *_: os.dup(other.fd), ring=ring)
        os.fstat(other.fd)
    async with aiouring.open(os.eventfd(5), "r+b", 0, ring=ring) as file:
        assert await file.read(8) == (5).to_bytes(8, "little")


class Splitting:
    """In the driver's place: has reads and writes move a part of what they are for, or first say EAGAIN."""

    def __init__(self, driver: Any, monkeypatch: pytest.MonkeyPatch, *, again: bool) -> None:
        self.driver, self.again = driver, again
        self.perform = driver.perform
        self.choose = random.Random(33)
        self.count = 0
        monkeypatch.setattr(driver, "perform", self)

    async def __call__(self, request: Request, prepare: Any, *arguments: Any) -> int:
        """Perform a request in its way."""
        moves = arguments[0] in (lib.AU_OP_READ, lib.AU_OP_WRITE, lib.AU_OP_READ_FIXED, lib.AU_OP_WRITE_FIXED)
        if not moves or self.choose.random() < 0.3:
            return int(await self.perform(request, prepare, *arguments))
        self.count += 1
        if self.again:
            request.user_data = self.driver.next_number()
            request.result, request.ended = -errno.EAGAIN, True
            return int(await self.driver._failed(request, prepare, arguments))
        step = 512 if isinstance(request.file, DirectFile) else 1
        changed = list(arguments)
        changed[5] = self.choose.choice([step, max(step, self.choose.randrange(arguments[5] + 1) // step * step)])
        return int(await self.perform(request, prepare, *changed))


@pytest.mark.parametrize("again", [False, True], ids=["g9_short", "g11_eagain"])
@each_way
async def test_g9_g11_whatever_the_kernel_moves_at_a_time(
    ring: aiouring.AsyncRing, path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], again: bool
) -> None:
    """Reads and writes that are cut anywhere, or have to be asked for twice, move all bytes to their places."""
    splitting = Splitting(ring._driver, monkeypatch, again=again)
    choose = random.Random(34)
    async with aiouring.open(path, "r+b", ring=ring, **options) as file:
        for raw in (file._raw, getattr(file._raw, "_cached", None)):
            if isinstance(raw, RawFile):
                raw.cached = False  # so that everything is requested
                monkeypatch.setattr(type(raw), "look", _as_it_is)
        assert await file.read(80_000) == CONTENT[:80_000]
        assert await file.read_at(60_000, 100_001) == CONTENT[100_001:160_001]
        memory = bytearray(30_000)
        assert await file.readinto(memory) == 30_000
        assert memory == CONTENT[80_000:110_000]
        expected = bytearray(CONTENT)
        for _ in range(5):
            place, data = choose.randrange(200_000), choose.randbytes(choose.randrange(40_000))
            expected[place : place + len(data)] = data
            await file.seek(place)
            assert await file.write(data) == len(data)
            place = choose.randrange(200_000)
            expected[place : place + len(data)] = data
            assert await file.write_at(data, place) == len(data)
        await file.flush()
        assert path.read_bytes() == expected
        await file.seek(0)
        assert b"".join([line async for line in file]) == expected
    assert splitting.count > 25
    monkeypatch.undo()


async def _as_it_is(raw: RawFile) -> Any:
    return await raw.ring.statx(raw)


async def test_g9_g11_text_and_a_pipe(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of text, read and written in pieces that end within characters and lines, or at the second try."""
    words = "".join(random.Random(35).choices("aäß€😀\n", k=30_000))
    for again in (False, True):
        reader, writer = os.pipe()
        with monkeypatch.context() as patch:
            Splitting(ring._driver, patch, again=again)

            async with aiouring.open(reader, encoding="utf-8", ring=ring) as source, asyncio.TaskGroup() as group:
                group.create_task(_send(words, writer, ring))
                assert "".join([line async for line in source]) == words


async def _send(words: str, writer: int, ring: aiouring.AsyncRing) -> None:
    async with aiouring.open(writer, "w", encoding="utf-8", ring=ring) as sink:
        for line in words.splitlines(keepends=True):
            await sink.write(line)


# ---- arguments and memory --------------------------------------------------------------------------


@each_way
async def test_m2_offsets(ring: aiouring.AsyncRing, path: Path, options: dict[str, Any]) -> None:
    """Negative offsets are ValueError before any request; those that no file has are the built-in's errors."""
    async with aiouring.open(path, "r+b", ring=ring, **options) as file:
        for offset in (-1, -2, -(1 << 62)):
            for verb in (file.read_at(1, offset), file.write_at(b"x", offset)):
                with pytest.raises(ValueError, match="negative"):
                    await verb
        for offset in (1 << 63, 1 << 64, 1 << 80):
            for verb in (file.read_at(1, offset), file.write_at(b"x", offset), file.truncate(offset)):
                with pytest.raises((ValueError, OverflowError)):
                    await verb
        assert await file.read_at(1, 1 << 62) in (b"",)
        await failure(file.write_at(b"x", (1 << 63) - 1), errno.EINVAL, str(path))
        await failure(file.truncate(-1), errno.EINVAL, str(path))
        await failure(file.seek(-1), errno.EINVAL, str(path))
        await failure(file.seek(-len(CONTENT) - 1, os.SEEK_END), errno.EINVAL, str(path))
        await failure(aiouring.truncate(path, -1, ring=ring), errno.EINVAL, str(path))
        assert await file.tell() == 0
        assert await file.read(5) == CONTENT[:5]
    assert path.read_bytes() == CONTENT


@each_way
async def test_m5_a_mapping_of_a_file_that_became_shorter(
    ring: aiouring.AsyncRing, path: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Memory that is gone is EFAULT where the kernel copies to it or from it; nothing has moved, and the file is whole.

    What is in memory here already, or goes through blocks of ours, is copied by this process: there it gets a SIGBUS,
    with the built-in as well.
    """
    gone = tmp_path / "gone"
    gone.write_bytes(bytes(MIB))
    with gone.open("r+b") as mapped, mmap.mmap(mapped.fileno(), MIB) as memory:
        mapped.truncate(0)
        async with aiouring.open(path, "r+b", ring=ring, **options) as file:
            if "direct" not in options:
                for verb in (file.readinto(memory), file.write_at(memory, 5)):
                    await failure(verb, errno.EFAULT, str(path))
            if options.get("buffering") == 0:
                await failure(file.write(memory), errno.EFAULT, str(path))
            assert await file.tell() == 0
            assert await file.read(100) == CONTENT[:100]
    assert path.read_bytes() == CONTENT


@each_way
async def test_e6_an_older_kernel(
    ring: aiouring.AsyncRing, path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Where the kernel has no features but the oldest, files do all that they do, cutting them off in a thread."""
    monkeypatch.setattr("aiouring._features._here", frozenset())
    threads: list[int] = []
    in_thread = asyncio.to_thread

    async def noted(function: Callable[..., Any], *arguments: Any) -> Any:
        threads.append(1)
        return await in_thread(function, *arguments)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    async with aiouring.open(path, "r+b", ring=ring, **options) as file:
        assert await file.read(100) == CONTENT[:100]
        await file.write(b"new")
        await file.truncate(1000)
        await file.sync()
        assert threads == [1]
        await failure(file.truncate(-1), errno.EINVAL, str(path))
    assert path.read_bytes() == CONTENT[:100] + b"new" + CONTENT[103:1000]
    with pytest.raises(aiouring.UnsupportedKernelError, match="needs Linux 5.15"):
        await aiouring.mkdir("never", ring=ring)
    await asyncio.get_running_loop().shutdown_default_executor()
