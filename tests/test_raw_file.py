"""Tests of raw files: positional reads and writes, their errors, and their end, bounded whatever is in flight."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import random
import resource
import signal
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import RingFactory, open_files
from file_systems import mounted

import aiouring
from aiouring._raw_file import PIECE, RawFile
from aiouring._request import Request

CONTENT = random.Random(3).randbytes(100_000)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    return path


async def opened(ring: aiouring.AsyncRing, path: Path, flags: int = os.O_RDWR) -> RawFile:
    """A raw file that has been looked at."""
    raw = RawFile(ring, os.open(path, flags | os.O_CLOEXEC), str(path), flags)
    await raw.look()
    return raw


async def failure(awaitable: Awaitable[Any], number: int, path: Path) -> OSError:
    """The error of an awaitable: the right subclass, with the file's name."""
    with pytest.raises(OSError) as caught:
        await awaitable
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))
    assert caught.value.filename == str(path)
    assert repr(str(path)) in str(caught.value)
    return caught.value


async def test_reads_and_writes_at_offsets(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """They are pread() and pwrite(), whole up to the end of the file, in pieces where they are long."""
    raw = await opened(ring, numbers)
    assert (raw.regular, raw.size, raw.seekable) == (True, len(CONTENT), True)
    assert await raw.read_at(100, 50) == CONTENT[50:150]
    assert await raw.read_at(100, len(CONTENT) - 40) == CONTENT[-40:]
    assert await raw.read_at(0, 5) == b""
    assert await raw.read_at(5, 1 << 40) == b""
    assert await raw.read_some(1, 7) == CONTENT[7:8]
    data = random.Random(4).randbytes(3 * PIECE + 77)
    assert await raw.write_at(data, 1000) == len(data)
    assert await raw.read_at(len(data) + 999, 1000) == data
    assert len(await raw.read_some(len(data), 0)) == PIECE
    assert raw.size == len(data) + 1000
    await raw.truncate(500)
    assert numbers.read_bytes() == CONTENT[:500]
    await raw.sync(data_only=False)
    await raw.aclose()
    await raw.aclose()


async def test_g9_short_transfers(ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of a piece the kernel moves at a time, the bytes are the right ones, and all of them."""
    raw = await opened(ring, numbers)
    raw.cached = False
    choose = random.Random(5)
    perform = raw._driver.perform
    asked: list[int] = []

    async def short(request: Request, prepare: Any, *arguments: Any) -> int:
        numbers = list(arguments)
        asked.append(numbers[5])
        numbers[5] = choose.randrange(1, numbers[5] + 1)
        return await perform(request, prepare, *numbers)

    monkeypatch.setattr(raw._driver, "perform", short)
    assert await raw.read_at(90_000, 123) == CONTENT[123:90_123]
    assert len(asked) > 3
    data = choose.randbytes(50_000)
    assert await raw.write_at(data, 321) == 50_000
    monkeypatch.undo()
    assert numbers.read_bytes() == CONTENT[:321] + data + CONTENT[50_321:]
    await raw.aclose()


async def test_bytes_that_nobody_has_seen(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """What reads fill are objects of their own: CPython shares small ones, but not those that are made of a size."""
    raw = await opened(ring, numbers)
    for size in (1, 2, 3, 100):
        assert bytes(size) is not bytes(size)
        assert await raw.read_at(size, 0) == await raw.read_some(size, 0) == CONTENT[:size]
        assert bytes(size) == b"\0" * size
    assert await raw.read_at(0, 0) == b""
    assert bytes(0) == b""
    await raw.aclose()


@pytest.mark.parametrize(("background", "expected"), [(None, False), (False, False), (True, True)])
async def test_what_goes_to_a_worker(
    ring: aiouring.AsyncRing,
    numbers: Path,
    monkeypatch: pytest.MonkeyPatch,
    background: bool | None,
    expected: bool,
) -> None:
    """What the caller wants there; what is read is the same."""
    raw = RawFile(ring, os.open(numbers, os.O_RDONLY), "numbers", os.O_RDONLY, background=background)
    await raw.look()
    assert raw.cached == (not expected)
    raw.cached = False
    perform = raw._driver.perform
    seen: list[bool] = []

    async def watched(request: Request, prepare: Any, *arguments: Any) -> int:
        seen.append(bool(arguments[-1] & aiouring.SubmissionFlags.ASYNC))
        return await perform(request, prepare, *arguments)

    monkeypatch.setattr(raw._driver, "perform", watched)
    assert await raw.read_some(50_000, 7) == CONTENT[7:50_007]
    assert await raw.read_at(50_000, 7) == CONTENT[7:50_007]
    assert seen == [expected] * 2
    monkeypatch.undo()
    await raw.aclose()


async def test_nothing_written_is_an_error(
    ring: aiouring.AsyncRing, numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes no byte, and says nothing, is not asked for ever."""
    raw = await opened(ring, numbers)

    async def nothing(*_: Any) -> int:
        return 0

    monkeypatch.setattr(raw._driver, "perform", nothing)
    error = await failure(raw.write_at(b"data", 0), errno.EIO, numbers)
    assert aiouring.bytes_written(error) == 0
    monkeypatch.undo()
    await raw.aclose()


async def test_g1_disk_full(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """ENOSPC says exactly how many bytes are in the file."""
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1500k") as small:
        path = small / "file"
        raw = await opened(ring, path, os.O_RDWR | os.O_CREAT)
        error = await failure(raw.write_at(bytes(3 << 20), 0), errno.ENOSPC, path)
        written = aiouring.bytes_written(error)
        assert written == path.stat().st_size > 1 << 20
        await raw.aclose()


async def test_a14_a_cancelled_write(ring: aiouring.AsyncRing) -> None:
    """It says how many bytes were written before, in all its pieces."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    raw = RawFile(ring, writer, "pipe", os.O_WRONLY)
    data = CONTENT * 30
    task = asyncio.create_task(raw.write_at(data, 0))
    found = b""
    while len(found) < PIECE + 100_000:
        await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):
            found += os.read(reader, 50_000)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    await raw.aclose()
    while part := os.read(reader, 100_000):
        found += part
    assert found == data[: aiouring.bytes_written(caught.value)]
    os.close(reader)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 10000 bytes; in a test's own lines only, for pytest writes to a log between them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_g2_file_too_big(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """EFBIG says exactly how many bytes are in the file."""
    path = tmp_path / "file"
    raw = await opened(ring, path, os.O_RDWR | os.O_CREAT)
    with small_files():
        error = await failure(raw.write_at(bytes(20_000), 0), errno.EFBIG, path)
        assert aiouring.bytes_written(error) == 10_000 == path.stat().st_size
        await failure(raw.truncate(20_000), errno.EFBIG, path)
    await raw.aclose()


async def test_g6_truncated_under_the_reader(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """A file that shrinks gives fewer bytes, then none."""
    raw = await opened(ring, numbers)
    os.truncate(numbers, 600)
    assert await raw.read_at(1000, 500) == CONTENT[500:600]
    assert await raw.read_at(1000, 600) == b""
    await raw.aclose()


async def test_g7_odd_descriptors(ring: aiouring.AsyncRing, numbers: Path, tmp_path: Path) -> None:
    """Directories, and files that are not open for it, are the kernel's errors, with the name."""
    directory = await opened(ring, tmp_path, os.O_RDONLY)
    assert not directory.regular
    await failure(directory.read_at(1, 0), errno.EISDIR, tmp_path)
    await directory.aclose()
    reader, writer = await opened(ring, numbers, os.O_RDONLY), await opened(ring, numbers, os.O_WRONLY)
    await failure(reader.write_at(b"x", 0), errno.EBADF, numbers)
    await failure(reader.truncate(5), errno.EINVAL, numbers)
    await failure(writer.read_at(1, 0), errno.EBADF, numbers)
    await reader.aclose()
    await writer.aclose()
    for verb in (reader.read_at(1, 0), reader.read_some(1, 0), writer.write_at(b"x", 0), writer.truncate(1)):
        with pytest.raises(ValueError, match="closed file"):
            await verb


async def test_m2_offsets(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """An offset beyond what files can have is an error, not another place."""
    raw = await opened(ring, numbers)
    await failure(raw.write_at(b"x", (1 << 63) - 1), errno.EINVAL, numbers)
    with pytest.raises((ValueError, OSError)):
        await raw.read_at(1, 1 << 63)
    assert numbers.read_bytes() == CONTENT
    await raw.aclose()


async def test_h2_closed_before_it_was_submitted(ring: aiouring.AsyncRing, numbers: Path, tmp_path: Path) -> None:
    """A read that was queued when the file was closed never meets the file that has the number then."""
    (tmp_path / "other").write_bytes(b"secret" * 100)
    raw = await opened(ring, numbers)
    raw.cached = False
    read = asyncio.create_task(raw.read_at(10, 0))
    await asyncio.sleep(0)
    raw._close_at_once()
    other = os.open(tmp_path / "other", os.O_RDONLY)
    assert other == raw.fd
    with pytest.raises(OSError):
        await read
    os.close(other)


async def test_closing_ends_what_is_in_flight(ring: aiouring.AsyncRing) -> None:
    """Reads in flight end with ECANCELED, by whichever of two closers, and one that is cancelled has closed."""
    reader, writer = os.pipe()
    raw = RawFile(ring, reader, "pipe", os.O_RDONLY)
    read = asyncio.create_task(raw.read_some(1, 0))
    await asyncio.sleep(0.01)
    closers = [asyncio.create_task(raw.aclose()) for _ in range(2)]
    await asyncio.sleep(0)
    closers[0].cancel()
    done = await asyncio.gather(read, *closers, return_exceptions=True)
    assert isinstance(done[0], OSError)
    assert done[0].errno == errno.ECANCELED
    assert isinstance(done[1], asyncio.CancelledError)
    assert done[2] is None
    assert reader not in open_files()
    os.close(writer)


async def test_a_descriptor_of_the_callers(ring: aiouring.AsyncRing) -> None:
    """One that is not owned stays open, with nothing in flight."""
    reader, writer = os.pipe()
    raw = RawFile(ring, reader, reader, os.O_RDONLY, owned=False)
    read = asyncio.create_task(raw.read_some(1, 0))
    await asyncio.sleep(0.01)
    await raw.aclose()
    with pytest.raises(OSError):
        await read
    assert reader in open_files()
    os.close(reader)
    os.close(writer)


async def test_a_descriptor_that_its_owner_closed_first(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """A file that has nothing to write closes without complaint, and for good, as the built-in does."""
    fd = os.open(numbers, os.O_RDONLY)
    file = await aiouring.open(fd, "rb", closefd=False, ring=ring)
    assert await file.read(1) == CONTENT[:1]
    os.close(fd)
    await file.close()
    assert file._raw.closed


@pytest.mark.parametrize("owned", [True, False])
async def test_what_is_done_in_threads(ring: aiouring.AsyncRing, numbers: Path, owned: bool) -> None:
    """A thread that is cancelled, and its file closed, never meets the file that has the number then."""
    fd = os.open(numbers, os.O_RDWR)
    raw = RawFile(ring, fd, str(numbers), os.O_RDWR, owned=owned)
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def call(number: int) -> None:
        begun.set()
        go_on.wait(5)
        seen.append(os.fstat(number).st_ino)

    assert await raw.seek(0, os.SEEK_DATA) == 0
    before = len(open_files())
    task = asyncio.create_task(raw.in_thread(call))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.wait([task])
    await raw.aclose()
    other = os.open("/dev/null", os.O_RDONLY)
    assert (other == fd) == owned
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert seen == [numbers.stat().st_ino]
    with pytest.raises(ValueError, match="closed file"):
        await raw.seek(0, os.SEEK_DATA)
    assert len(open_files()) == before + 1 - 2 * owned
    os.close(other)
    if not owned:
        os.close(fd)


async def test_record_locks_outlive_a_thread(ring: aiouring.AsyncRing, numbers: Path) -> None:
    """Asking for holes does not cost the process its locks on the file, which any close of it would."""
    async with aiouring.open(numbers, "r+b", ring=ring) as file:
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX)
        assert await file.seek(0, os.SEEK_HOLE) == len(CONTENT)
        locks = Path("/proc/locks").read_text()
        assert f":{numbers.stat().st_ino} " in locks
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_the_ring_is_closed_first(new_ring: RingFactory, numbers: Path) -> None:
    """Then the file says so, and can still be closed."""
    ring = await new_ring()
    raw = await opened(ring, numbers)
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await raw.read_at(1, 0)
    await raw.aclose()
    assert raw.fd not in open_files()


async def test_close_is_bounded(new_ring: RingFactory, numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that the kernel does not end is given up on, with ETIMEDOUT."""
    ring = await new_ring(cancel_timeout=0.05)
    raw = await opened(ring, numbers)

    async def never(_file: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(ring, "close", never)
    started = asyncio.get_running_loop().time()
    await failure_without_name(raw.aclose(), errno.ETIMEDOUT, str(numbers))
    assert asyncio.get_running_loop().time() - started < 1
    monkeypatch.undo()
    os.close(raw.fd)


async def failure_without_name(awaitable: Awaitable[Any], number: int, text: str) -> None:
    """The error of an awaitable, whose text has the name."""
    with pytest.raises(OSError, match=text) as caught:
        await awaitable
    assert caught.value.errno == number


async def test_b4_nobody_closed_it(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A file that is dropped warns, what was written is written, and the descriptor is closed."""
    file = await aiouring.open(tmp_path / "file", "wb", ring=ring)
    await file.write(b"unwritten")
    fd = file.fileno()
    with pytest.warns(ResourceWarning, match=r"'wb'>, with 9 bytes unwritten, was never closed"):
        del file
        gc.collect()
    while fd in open_files():
        await asyncio.sleep(0.001)
    assert (tmp_path / "file").read_bytes() == b"unwritten"


@pytest.mark.parametrize("mode", ["wb", "ab", "w"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_b4_nobody_closed_it_and_the_loop_ended(
    tmp_path: Path, runner: Callable[[Any], Any], mode: str, direct: bool, kept: bool
) -> None:
    """What a program wrote and forgot to close is in the file in the end, as with the built-in."""
    files: list[Any] = []

    async def main() -> None:
        file: Any = await aiouring.open(tmp_path / "file", mode, direct=direct)
        await file.write(b"unwritten" if "b" in mode else "unwritten")
        if kept:
            files.append(file)

    with pytest.warns(ResourceWarning, match="never closed"):
        runner(main())
        files.clear()
        gc.collect()
    assert (tmp_path / "file").read_bytes() == b"unwritten"


async def test_b4_nobody_closed_it_and_it_cannot_be_written(ring: aiouring.AsyncRing) -> None:
    """The error of a file that nobody has any more is the loop's to tell."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    file = await aiouring.open("/dev/full", "wb", ring=ring)
    await file.write(b"unwritten")
    with pytest.warns(ResourceWarning, match="9 bytes unwritten"):
        del file
        gc.collect()
    while not told:
        await asyncio.sleep(0.001)
    assert told[0]["exception"].errno == errno.ENOSPC
    assert "'/dev/full'" in told[0]["message"]


@pytest.mark.parametrize("direct", [False, True])
def test_b3_the_loop_ended_first(numbers: Path, direct: bool) -> None:
    """A file that outlives its loop is closed when it is dropped, with a warning, and refuses to be used before."""

    async def main() -> aiouring.BinaryFile:
        return await aiouring.open(numbers, "rb", direct=direct)

    file = asyncio.run(main())
    with pytest.raises(aiouring.RingClosedError):
        asyncio.run(file.read())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del file
        gc.collect()
