"""Tests of files on file systems that answer badly or never."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory
from file_systems import Mounter, fuse_servers
from fuse_server import BAD, content

import aiouring
from aiouring._file_system import waits_within_submission


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Mounter]:
    """Mounts the test's file system in a mode; returns its file and its server."""
    yield from fuse_servers(tmp_path)


async def test_which_wait(fuse: Mounter, tmp_path: Path) -> None:
    """FUSE is known by its device; what is on a disk is not taken for it, nor what is nowhere."""
    path, _ = fuse("bad")
    assert waits_within_submission(os.stat(path).st_dev)
    assert not waits_within_submission(os.stat("/proc").st_dev)
    assert not waits_within_submission(os.stat(tmp_path).st_dev)
    assert not waits_within_submission(os.makedev(4000, 1))


async def test_g3_g4_bad_regions(ring: aiouring.AsyncRing, fuse: Mounter) -> None:
    """A read that comes upon a region that cannot be read is EIO, not zeros; what is before it can still be read."""
    path, _ = fuse("bad")
    async with aiouring.open(path, "r+b", ring=ring) as file:
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                await file.read_at(20_000, 100)
            assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
            with pytest.raises(OSError):
                await file.read()
            assert await file.tell() == 0
            assert await file.read_at(BAD - 100, 100) == content(100, BAD - 100)
        with pytest.raises(OSError) as caught:
            await file.write_at(bytes(100), 0)
        assert caught.value.errno == errno.EIO
        assert aiouring.bytes_written(caught.value) == 0


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_g8_a3_hung(new_ring: RingFactory, fuse: Mounter, buffering: int) -> None:
    """A server that never answers holds up neither the loop, nor a cancelled read, nor close(); memory stays alive."""
    path, server = fuse("hang")
    ring = await new_ring(cancel_timeout=0.1)
    loop = asyncio.get_running_loop()
    file = await aiouring.open(path, "rb", buffering, ring=ring)
    start = loop.time()
    read = asyncio.create_task(file.read(1000))
    positional = asyncio.create_task(file.read_at(1000, 5000))
    for _ in range(20):
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        assert time.perf_counter() - before < 0.5
    positional.cancel()
    await asyncio.wait([positional])
    assert positional.cancelled()
    with contextlib.suppress(OSError):  # ETIMEDOUT, where the close hangs as well
        await file.close()
    await asyncio.wait([read], timeout=1)
    assert loop.time() - start < 5
    assert file.closed
    assert ring.statistics().in_flight > 0  # the kernel still has them, and their memory
    server.kill()
    read.cancel()
    await asyncio.wait([read])
    while ring.statistics().in_flight:
        await asyncio.sleep(0.01)
