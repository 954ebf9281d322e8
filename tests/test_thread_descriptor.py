"""Tests of descriptors that threads use: closed once, and never under a thread."""

import asyncio
import os
import threading

import pytest
from conftest import open_files

from aiouring._thread_descriptor import ThreadDescriptor

pytestmark = pytest.mark.needs_no_ring


async def test_calls_and_their_errors() -> None:
    """A call gets the descriptor first, and what it returns or raises is handed on; the end closes."""
    fd = os.memfd_create("test")
    with ThreadDescriptor(fd) as descriptor:
        assert await descriptor.run(os.pwrite, b"data", 3) == 4
        assert await descriptor.run(os.pread, 4, 3) == b"data"
        with pytest.raises(OSError, match="Invalid argument"):
            await descriptor.run(os.lseek, -1, os.SEEK_SET)
        assert fd in open_files()
    assert fd not in open_files()
    with pytest.raises(ValueError, match="closed"):
        await descriptor.run(os.pread, 4, 3)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_thread_that_nobody_waits_for() -> None:
    """It keeps the descriptor until it is done, and closes it."""
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def call(fd: int) -> None:
        begun.set()
        go_on.wait(5)
        seen.append(os.fstat(fd).st_ino)

    fd = os.memfd_create("test")
    inode = os.fstat(fd).st_ino
    with ThreadDescriptor(fd) as descriptor:
        task = asyncio.create_task(descriptor.run(call))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        await asyncio.wait([task])
    assert fd in open_files()
    go_on.set()
    while fd in open_files():
        await asyncio.sleep(0.001)
    assert seen == [inode]
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_h1_closed_twice() -> None:
    """An interrupt may have the second call made: the number is another file's by then."""
    fd = os.memfd_create("test")
    descriptor = ThreadDescriptor(fd)
    descriptor.close()
    another = os.memfd_create("another")
    assert another == fd
    descriptor.close()
    os.close(another)
