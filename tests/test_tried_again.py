"""Tests of requests that the kernel answers with EAGAIN: they poll, and are tried again."""

import asyncio
import errno
import socket
from typing import Any

import pytest
from simulated_kernel import Odds
from simulated_stage import stage

import aiouring
from aiouring._setup import TaskRun
from aiouring._uring import lib

STILL_EXPORTED: list[memoryview] = []
EAGAIN_FIRST = Odds(complete=0.0, again=1.0)


async def test_h9_eagain_polls_and_tries_again(profile: TaskRun) -> None:
    """Where the kernel says EAGAIN (before Linux 5.7, some file systems) the verb polls, then tries again."""
    async with stage(profile, EAGAIN_FIRST) as at:
        task = await at.started(at.ring.recv_into(at.socket, bytearray(5)))
        assert [operation.opcode for operation in at.kernel.pending] == [lib.AU_OP_POLL_ADD]
        at.arrived += b"hello"
        await at.end(task)
        assert task.result() > 0


@pytest.mark.parametrize("ending", ["cancelled", "refused"])
async def test_h9_memory_is_free_after_polling(profile: TaskRun, ending: str) -> None:
    """A request that ends while it waits to be tried again lets go of the caller's memory at once.

    What keeps its exception would otherwise keep the memory locked; and CPython's collector crashes when it
    finds a memoryview in a cycle that is still exported.
    """
    async with stage(profile, EAGAIN_FIRST) as at:
        memory = bytearray(8)
        view = memoryview(memory)
        task = await at.started(at.ring.recv_into(at.socket, view))
        if ending == "cancelled":
            task.cancel()
        else:
            at.kernel.finish(at.kernel.pending[0], -errno.ENOMEM)
        await at.end(task)
        assert task.cancelled() or isinstance(task.exception(), OSError)
        try:
            view.release()
            memory.extend(b"!")
        except BufferError:
            STILL_EXPORTED.append(view)
            raise


async def test_h9_file_closed_while_polling(profile: TaskRun) -> None:
    """A file that is closed, and its number used again, during that poll is not read: EBADF."""
    async with stage(profile, EAGAIN_FIRST) as at:
        number = at.socket.fileno()
        task = await at.started(at.ring.recv_into(number, bytearray(5)))
        at.socket.close()
        with socket.socket() as other:
            assert other.fileno() == number
            at.arrived += b"hello"
            await at.end(task)
            with pytest.raises(OSError) as caught:
                task.result()
        assert caught.value.errno == errno.EBADF
        assert at.arrived == b"hello"


@pytest.mark.leaves_things
async def test_h9_lease_is_in_use_while_polling(profile: TaskRun) -> None:
    """A lent buffer cannot be released, and lent to another, while its request waits to be tried again."""
    async with stage(profile, EAGAIN_FIRST) as at:
        buffer = await at.ring.register_buffers(count=1, size=16).acquire()
        task = await at.started(at.ring.read_fixed(at.socket, buffer))
        assert [operation.opcode for operation in at.kernel.pending] == [lib.AU_OP_POLL_ADD]
        refused = False
        try:
            buffer.release()
        except aiouring.ResourceBusyError:
            refused = True
        at.arrived += b"hello"
        await at.end(task)
        results: Any = await asyncio.gather(task, return_exceptions=True)
        assert refused
        assert results[0] > 0
        buffer.release()


async def test_e5_memory_is_free_when_its_await_returns(profile: TaskRun) -> None:
    """A request that was taken and completed lets go of its memory, though the kernel refused those queued with it."""
    async with stage(profile, Odds(complete=0.0, inline=1.0)) as at:
        memory = bytearray(8)
        at.arrived += b"hello"
        at.kernel.next_enters += [1, -errno.EAGAIN, -errno.EAGAIN]
        receive = asyncio.ensure_future(at.ring.recv_into(at.socket, memory))
        with socket.socket() as other:
            poll = asyncio.ensure_future(at.ring.poll(other))
            assert await receive > 0
            try:
                memory.extend(b"!")
            finally:
                at.kernel.ended.add(other.fileno())
                await at.end(poll)


@pytest.mark.parametrize("replaced", [False, True])
async def test_h9_on_a_registered_file(profile: TaskRun, replaced: bool) -> None:
    """The poll is on the slot; a file that takes its place in the meantime is not read: EBADF."""
    async with stage(profile, EAGAIN_FIRST) as at:
        with at.ring.register_files([None, at.socket]) as files:
            task = await at.started(at.ring.recv_into(files[1], bytearray(5)))
            assert [(operation.opcode, operation.fd) for operation in at.kernel.pending] == [(lib.AU_OP_POLL_ADD, 1)]
            if replaced:
                files.update(1, [at.socket])
            at.kernel.streams[1] += b"hello"
            await at.end(task)
            if replaced:
                assert isinstance(error := task.exception(), OSError)
                assert error.errno == errno.EBADF
            else:
                assert task.result() > 0
