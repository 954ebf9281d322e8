"""Tests of Ring's guard on bare numbers: a request never meets a file other than the one it was made for."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from injected_faults import Failing, real_enter, replaced

import aiouring
from aiouring import Completion, Opcode, Ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of the profile under test."""
    with Ring(128, cq_entries=256, task_run=profile) as made:
        yield made


def test_h2_descriptor_closed_before_submission(ring: Ring) -> None:
    """A number that was closed and given to another file in between reaches neither: EBADF."""
    secret = b"another connection's"
    ours, theirs = socket.socketpair(), socket.socketpair()
    number = ours[0].fileno()
    memory = ffi.new("char[64]")
    ring.prepare_memory(Opcode.RECV, memory, user_data=1, fd=number, offset=0)
    ring.prepare(Opcode.NOP, user_data=2)
    theirs[1].send(secret)
    os.dup2(theirs[0].fileno(), number)
    assert sorted(ring.submit()) == [Completion(1, -errno.EBADF, 0), Completion(2, 0, 0)]
    assert ffi.buffer(memory)[:] == bytes(64)
    assert theirs[0].recv(64) == secret
    for sock in (*ours, *theirs):
        sock.close()


def test_h2_descriptor_closed_and_not_used_again(ring: Ring, tmp_path: Path) -> None:
    """A number that was closed meanwhile is EBADF for every request that named it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for user_data in (1, 2):
        ring.prepare(Opcode.FSYNC, user_data=user_data, fd=fd)
    os.close(fd)
    assert sorted(ring.wait(2)) == [Completion(1, -errno.EBADF, 0), Completion(2, -errno.EBADF, 0)]


def test_h2_descriptor_closed_after_a_refused_submission(ring: Ring) -> None:
    """What stayed queued when enter() failed is still guarded at the next try."""
    ours, theirs = socket.socketpair(), socket.socketpair()
    number = ours[0].fileno()
    memory = ffi.new("char[64]")
    ring.prepare_memory(Opcode.RECV, memory, user_data=1, fd=number, offset=0)
    with replaced(enter=Failing(real_enter, errno.EAGAIN)), pytest.raises(BlockingIOError):
        ring.submit()
    theirs[1].send(b"another connection's")
    os.dup2(theirs[0].fileno(), number)
    assert ring.submit() == [Completion(1, -errno.EBADF, 0)]
    for sock in (*ours, *theirs):
        sock.close()


def test_h2_both_files_of_one_number(ring: Ring, pipe: tuple[int, int]) -> None:
    """Requests queued on both files that a number stood for are both EBADF: refused rather than guessed."""
    ours, theirs = os.pipe()
    memories = ffi.new("char[1]"), ffi.new("char[1]")
    try:
        ring.prepare_memory(Opcode.READ, memories[0], user_data=1, fd=ours)
        os.write(pipe[1], b"!")
        os.dup2(pipe[0], ours)
        ring.prepare_memory(Opcode.READ, memories[1], user_data=2, fd=ours)
        assert sorted(ring.submit()) == [Completion(1, -errno.EBADF, 0), Completion(2, -errno.EBADF, 0)]
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.xfail(strict=True, reason="a documented limit: all eventfds (timerfds, epolls ...) share one inode")
def test_h2_files_without_an_inode_of_their_own(ring: Ring) -> None:
    """An eventfd that takes the number of another is not read in its place."""
    ours, theirs = os.eventfd(0), os.eventfd(41)
    memory = ffi.new("char[8]")
    try:
        ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=ours)
        os.dup2(theirs, ours)
        assert ring.submit() == [Completion(1, -errno.EBADF, 0)]
    finally:
        os.close(ours)
        os.close(theirs)


def test_h2_more_descriptors_than_guards(ring: Ring) -> None:
    """The 65th distinct descriptor of one turn needs a submission first; none is mistaken for another."""
    pipes = [os.pipe() for _ in range(lib.AU_SLOTS_AT_ONCE + 6)]
    memories = [ffi.new("char[1]") for _ in pipes]
    found: list[Completion] = []
    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, bytes([number]))
        if number == lib.AU_SLOTS_AT_ONCE:
            with pytest.raises(aiouring.ResourceBusyError, match="submit, then try again"):
                ring.prepare_memory(Opcode.READ, memories[number], user_data=number, fd=reader)
            found += ring.submit()
        ring.prepare_memory(Opcode.READ, memories[number], user_data=number, fd=reader)
    found += ring.submit()
    assert found == [Completion(number, 1, 0) for number in range(len(pipes))]
    assert [memory[0] for memory in memories] == [bytes([number]) for number in range(len(pipes))]
    for ends in pipes:
        for end in ends:
            os.close(end)
