"""Tests of aiouring.open(): the built-in's arguments and errors, and what is ours."""

import asyncio
import errno
import locale
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, open_files
from file_systems import fuse_servers
from test_binary_file import LOOPS

import aiouring
from aiouring._write_behind import BLOCK


@pytest.mark.needs_no_ring
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("x", "z"), {}), (("x", ""), {}), (("x", "rw"), {}), (("x", "rbt"), {}), (("x", "rr"), {}), (("x", "+"), {}),
        (("x", "b"), {}), (("x", "U"), {}), (("x", 5), {}),
        (("x", "rb"), {"encoding": "utf-8"}), (("x", "rb"), {"errors": "strict"}), (("x", "rb"), {"newline": "\n"}),
        (("x", "r", 0), {}), (("x",), {"newline": "x"}), (("x",), {"newline": b"\n"}), (("x",), {"closefd": False}),
        (("x",), {"encoding": "no such"}), (("x",), {"encoding": "hex"}),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """They raise what the built-in raises, at once, before anything is opened."""
    with pytest.raises((ValueError, TypeError, LookupError)) as theirs:
        open(__file__, *arguments[1:], **options).close()
    with pytest.raises((ValueError, TypeError, LookupError)) as ours:
        aiouring.open(*arguments, **options)
    assert type(ours.value) is type(theirs.value)


async def test_awaited_or_entered(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Both ways give the same file; the second closes it, also after an error."""
    path = tmp_path / "file"
    file = await aiouring.open(path, "w", ring=ring)
    assert await file.write("text") == 4
    await file.close()
    assert path.read_text() == "text"
    with pytest.raises(ZeroDivisionError):
        async with aiouring.open(path, "rb", ring=ring) as binary:
            _ = 1 / 0
    assert binary.closed
    with pytest.warns(RuntimeWarning, match="never awaited"):
        aiouring.open(path)


@pytest.mark.parametrize("mode", ["rb", "r+b", "wb", "ab", "xb", "r", "w"])
async def test_errors_of_opening(ring: aiouring.AsyncRing, tmp_path: Path, mode: str) -> None:
    """Each is the built-in's: its class, number, name and text."""
    (tmp_path / "there").write_bytes(b"")
    for name in ("missing/file", "there", "there/file", ".", "x" * 300, "n\0"):
        for path in (tmp_path / name, str(tmp_path / name), os.fsencode(tmp_path / name)):
            found, expected = [], []
            try:
                await (await aiouring.open(path, mode, ring=ring)).close()
            except (OSError, ValueError) as error:
                found = [type(error), *error.args[:1], getattr(error, "filename", None)]
            try:
                open(path, mode).close()
            except (OSError, ValueError) as error:
                expected = [type(error), *error.args[:1], getattr(error, "filename", None)]
            if name == "n\0":
                assert found[0] is expected[0] is ValueError
            elif mode != "xb" or name != "there":
                assert found == expected, (name, mode)
    before = len(open_files())
    with pytest.raises(IsADirectoryError):
        await aiouring.open(tmp_path, "rb", ring=ring)
    assert len(open_files()) == before


async def test_every_mode(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What a mode does to the file, and where it begins."""
    path = tmp_path / "file"
    async with aiouring.open(path, "xb", ring=ring) as file:
        await file.write(b"0123456789")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    with pytest.raises(FileExistsError):
        await aiouring.open(path, "xb", ring=ring)
    async with aiouring.open(path, "r+b", ring=ring) as file:
        await file.write(b"ab")
        assert await file.read(2) == b"23"
    async with aiouring.open(path, "ab", ring=ring) as file:
        assert await file.tell() == 10
        await file.write(b"!")
        assert await file.tell() == 11
    assert path.read_bytes() == b"ab23456789!"
    async with aiouring.open(path, "w+b", ring=ring) as file:
        assert await file.read() == b""
    assert path.read_bytes() == b""


def umask() -> int:
    """The process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


async def test_descriptors(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A descriptor is taken over where it stands, and with closefd=False given back where the file stood."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 3, os.SEEK_SET)
    async with aiouring.open(fd, "rb", closefd=False, ring=ring) as file:
        assert file.name == fd
        assert await file.read(2) == b"34"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    async with aiouring.open(fd, "rb", ring=ring) as file:
        assert await file.read() == b"56789"
    with pytest.raises(OSError) as caught:
        await aiouring.open(fd, "rb", ring=ring)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, fd)
    for options in ({"opener": os.open}, {"dir_fd": 0}):
        with pytest.raises(ValueError, match="for paths"):
            aiouring.open(0, "rb", **options)


@pytest.mark.parametrize("mode", ["ab", "a+b"])
async def test_appending_to_a_descriptor_that_does_not(ring: aiouring.AsyncRing, tmp_path: Path, mode: Any) -> None:
    """As the built-in does it: writing begins at the file's end, not where the descriptor stands."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with aiouring.open(os.open(path, os.O_RDWR), mode, ring=ring) as file:
        assert await file.tell() == 10
        await file.write(b"more")
        assert await file.tell() == 14
    assert path.read_bytes() == b"0123456789more"
    async with aiouring.open(path, mode, opener=lambda name, _: os.open(name, os.O_RDWR), ring=ring) as file:
        await file.write(b"yet")
    assert path.read_bytes() == b"0123456789moreyet"


async def test_descriptors_that_append(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Standard output that goes to a file by `>>` appends, whatever the mode says: the blocks arrive in order."""
    path = tmp_path / "log"
    data = b"".join(bytes([number]) * BLOCK for number in range(40))
    for _ in range(5):
        path.write_bytes(b"before")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        async with aiouring.open(fd, "wb", ring=ring, background=True) as file:
            for at in range(0, len(data), BLOCK):
                await file.write(data[at : at + BLOCK])
            assert await file.tell() == len(data) + 6
        assert path.read_bytes() == b"before" + data


async def test_dir_fd_flags_and_opener(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A path relative to a directory, flags of open(2), and an opener of one's own, in a thread."""
    (tmp_path / "file").write_bytes(b"there")
    (tmp_path / "link").symlink_to("file")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    async with aiouring.open("file", "rb", dir_fd=directory, ring=ring) as file:
        assert await file.read() == b"there"
    with pytest.raises(OSError) as caught:
        await aiouring.open("link", "rb", dir_fd=directory, flags=os.O_NOFOLLOW, ring=ring)
    assert caught.value.errno == errno.ELOOP
    asked = []

    def opener(path: str, flags: int) -> int:
        asked.append((path, flags & os.O_ACCMODE))
        return os.open(path, flags, dir_fd=directory)

    async with aiouring.open("file", "r+b", opener=opener, ring=ring) as file:
        assert await file.read() == b"there"
    assert asked == [("file", os.O_RDWR)]
    with pytest.raises(FileNotFoundError) as missing:
        await aiouring.open("missing", "rb", opener=opener, ring=ring)
    assert missing.value.filename == "missing"
    os.close(directory)


async def test_an_opener_that_nobody_waits_for(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Opening is cancelled while the opener runs: what it makes after that is closed."""
    (tmp_path / "file").write_bytes(b"")
    begun, go_on, made = threading.Event(), threading.Event(), threading.Event()

    def opener(path: str, flags: int) -> int:
        begun.set()
        go_on.wait(5)
        fd = os.open(path, flags)
        made.set()
        return fd

    opening = asyncio.ensure_future(aiouring.open(tmp_path / "file", opener=opener, ring=ring).__aenter__())
    await asyncio.to_thread(begun.wait, 5)
    opening.cancel()
    await asyncio.wait([opening])
    go_on.set()
    await asyncio.to_thread(made.wait, 5)
    while str(tmp_path / "file") in open_files().values():
        await asyncio.sleep(0.001)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_encodings(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """None and "locale" are the locale's encoding, as for the built-in."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for encoding in (None, "locale", "utf-8"):
        with open(path, encoding=encoding) as model:
            async with aiouring.open(path, encoding=encoding, ring=ring) as file:
                assert file.encoding.lower() == model.encoding.lower()
    assert locale.getencoding()


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_without_a_ring(factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    """Without ring= it is the loop's own, which ends with the loop; two runs have two."""

    async def main() -> None:
        async with aiouring.open(tmp_path / "file", "w") as file:
            await file.write("text")
        async with aiouring.open(tmp_path / "file") as file:
            assert await file.read() == "text"
            assert file.buffer._raw.ring is aiouring.default_ring()

    for _ in range(2):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())


async def test_devices(ring: aiouring.AsyncRing) -> None:
    """Files that are not regular: devices, and files of /proc, whose size says nothing."""
    async with aiouring.open("/dev/zero", "rb", ring=ring) as file:
        assert await file.read(100_000) == bytes(100_000)
    async with aiouring.open("/dev/null", "r+b", ring=ring) as file:
        assert await file.write(b"gone") == 4
        assert await file.read() == b""
    async with aiouring.open("/proc/self/status", ring=ring) as status:
        assert "VmRSS:" in await status.read()
    async with aiouring.open("/proc/cpuinfo", "rb", ring=ring) as cpus:
        assert b"".join([line async for line in cpus]).count(b"processor") >= 1


# ---- what waits while it is opened -----------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO whose name the kernel has in its cache: that is opened within the submission, if it may be."""
    os.mkfifo(tmp_path / "fifo")
    os.stat(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("first", ["rb", "wb", "ab"])
async def test_a_fifo_waits_for_its_other_end(ring: aiouring.AsyncRing, fifo: Path, first: str) -> None:
    """As the built-in: opening returns when both ends are open; the loop goes on meanwhile."""
    opening = asyncio.ensure_future(aiouring.open(fifo, first, ring=ring).__aenter__())
    _, waiting = await asyncio.wait([opening], timeout=0.05)
    assert waiting
    other: Any = await aiouring.open(fifo, "wb" if first == "rb" else "rb", ring=ring)
    one: Any = await opening
    source, sink = (one, other) if first == "rb" else (other, one)
    await sink.write(b"through")
    await sink.close()
    assert await source.read() == b"through"
    await source.close()


@pytest.mark.parametrize("mode", ["rb", "wb", "r", "ab"])
async def test_a_fifo_that_nobody_opens(new_ring: RingFactory, fifo: Path, mode: Any) -> None:
    """Opening can be cancelled, and ends with the ring; nothing is left open, and the other end is told nothing."""
    ring = await new_ring()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await aiouring.open(fifo, mode, ring=ring)
    assert not ring.statistics().in_flight
    with pytest.raises(OSError) as caught:
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO  # nobody reads, or is about to
    opening = asyncio.ensure_future(aiouring.open(fifo, mode, ring=ring).__aenter__())
    await asyncio.sleep(0.02)
    assert not opening.done()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await opening
    assert str(fifo) not in open_files().values()


async def test_a_fifo_that_is_not_waited_for(ring: aiouring.AsyncRing, fifo: Path) -> None:
    """With O_NONBLOCK, and for reading and writing at once, there is nothing to wait for: as open(2) says."""
    with pytest.raises(OSError) as caught:
        await aiouring.open(fifo, "wb", flags=os.O_NONBLOCK, ring=ring)
    assert (caught.value.errno, caught.value.filename) == (errno.ENXIO, str(fifo))
    async with aiouring.open(fifo, "rb", flags=os.O_NONBLOCK, ring=ring) as source:
        assert await source.read() == b""
        async with aiouring.open(fifo, "wb", 0, ring=ring) as sink:
            assert await sink.write(b"now") == 3
            assert await source.read(3) == b"now"
    async with aiouring.open(fifo, "r+b", 0, ring=ring) as both:
        assert await both.write(b"both") == 4
        assert await both.read(4) == b"both"


@pytest.mark.parametrize("verb", ["openat", "openat2", "openat_direct", "openat2_direct"])
async def test_opening_in_the_background(ring: aiouring.AsyncRing, fifo: Path, verb: str) -> None:
    """The verbs wait for a FIFO's other end where they are told to; else the kernel opens it as with O_NONBLOCK."""
    table = ring.register_files_sparse(2) if verb.endswith("direct") else None
    opening = asyncio.ensure_future(getattr(ring, verb)(fifo, os.O_RDONLY, background=True))
    _, waiting = await asyncio.wait([opening], timeout=0.05)
    assert waiting
    sink = os.open(fifo, os.O_WRONLY)  # returns at once, since somebody reads
    await ring.close(await opening)
    os.close(sink)
    await ring.close(await getattr(ring, verb)(fifo, os.O_RDONLY))
    if table is not None:
        table.unregister()


async def test_g8_a_server_that_opens_nothing(new_ring: RingFactory, tmp_path: Path) -> None:
    """A FUSE server that does not answer when its file is opened holds up neither the loop, nor who cancels."""
    ring = await new_ring(cancel_timeout=0.1)
    for fuse in fuse_servers(tmp_path):
        path, server = fuse("shut")
        os.stat(path)
        start = time.perf_counter()
        opening = asyncio.ensure_future(aiouring.open(path, "rb", ring=ring).__aenter__())
        for _ in range(20):
            await asyncio.sleep(0.001)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        assert time.perf_counter() - start < 2
        server.kill()
        while ring.statistics().in_flight:
            await asyncio.sleep(0.01)
