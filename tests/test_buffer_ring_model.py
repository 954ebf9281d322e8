"""A random-model test of the C core's buffer rings: hypothesis drives the real kernel and checks every byte.

The model is simple: each stream's bytes follow a pattern, so that what a buffer holds says where it belongs;
each buffer is with the kernel or held; what is held does not change.  After each step the two must agree.
"""

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import aiouring
from aiouring._lease import Arena
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CGroup, CStruct

STREAMS = 3

MODEL = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Stream:
    """A stream, what was sent and received on it, and the receive that is in flight."""

    number: int
    sent: int = 0
    received: int = 0
    armed: int = 0  # user_data, 0 when nothing is in flight
    cancelled: bool = False
    sockets: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def pattern(self, start: int, length: int) -> bytes:
        """What this stream carries between two positions."""
        return bytes((position * (2 * self.number + 1)) % 251 for position in range(start, start + length))


def register_and_find(group: "CGroup") -> "CStruct":
    """Register a group; returns the memory that it shares with the kernel."""
    seen: list[int] = []
    real = lib.au_kernel.do_register

    def spy(fd: int, opcode: int, argument: "CStruct", count: int) -> int:
        seen.append(ffi.cast("struct au_buf_reg *", argument).ring_addr)
        return int(real(fd, opcode, argument, count))

    callback = ffi.callback("int(int, unsigned, void *, unsigned)", spy)
    lib.au_kernel.do_register = callback
    try:
        assert lib.au_group_register(group) == 0
    finally:
        lib.au_kernel.do_register = real
    return ffi.cast("struct au_buf *", seen[0])


class BufferRingMachine(RuleBasedStateMachine):
    """A buffer ring, a few streams that receive from it, and whoever holds buffers."""

    streams = st.integers(0, STREAMS - 1)

    @initialize(
        exponent=st.integers(0, 6),
        size=st.integers(1, 64),
        task_run=st.sampled_from(["coop", "defer"]),
        groups=st.integers(0, 2),
    )
    def make(self, exponent: int, size: int, task_run: aiouring._setup.TaskRun, groups: int) -> None:
        """A group of any legal size; its number is not always 0."""
        self.things = ExitStack()  # to be closed, however this ends
        self.ring = aiouring.Ring(16, task_run=task_run)
        self.things.callback(self.ring.close)
        self.count = 1 << exponent
        self.size = size
        self.arena = Arena(self.count, size, size)
        self.group = ffi.new("au_group *", {"is_lent": self.count})
        assert lib.au_group_init(self.group, self.ring.raw, self.arena.base, size, self.count, 7 * groups) == 0
        self.entries = register_and_find(self.group)
        self.lines = [Stream(number) for number in range(STREAMS)]
        for stream in self.lines:
            for sock in stream.sockets:
                self.things.enter_context(sock)
        self.held: dict[int, bytes] = {}
        self.taken = 0
        self.last = 0

    # ---- what may happen -----------------------------------------------------------------------

    @rule(number=streams, length=st.integers(1, 100))
    def send(self, number: int, length: int) -> None:
        """The peer sends."""
        stream = self.lines[number]
        stream.sent += stream.sockets[1].send(stream.pattern(stream.sent, length), socket.MSG_DONTWAIT)

    @rule(number=streams, length=st.integers(0, 80))
    def arm(self, number: int, length: int) -> None:
        """A receive of at most `length` bytes (0: a whole buffer) is filled, unless one is in flight."""
        stream = self.lines[number]
        if stream.armed:
            return
        arguments = (lib.AU_OP_RECV, stream.sockets[0].fileno(), self.group, length, 0, 0, 0)
        code = lib.au_prepare_select(self.ring.raw, self.last + 1, *arguments)
        if length > self.size:
            assert code == lib.AU_BAD_LENGTH
        elif code != lib.AU_FULL:
            assert code == 0
            self.last = stream.armed = self.last + 1
            stream.cancelled = False

    @rule(number=streams)
    def cancel(self, number: int) -> None:
        """The receive in flight is cancelled, perhaps for the second time."""
        stream = self.lines[number]
        if stream.armed and lib.au_prepare(self.ring.raw, 0, lib.AU_OP_ASYNC_CANCEL, -1, 0, stream.armed, 0, 0, 0) == 0:
            stream.cancelled = True

    @rule()
    def drain(self) -> None:
        """A turn: what was returned is published, what was filled is submitted, what has completed is taken."""
        held_before = len(self.held)
        published = self.group.published
        unpublished = self.group.unpublished
        for completion in self.ring.submit():
            if completion.user_data:
                self.complete(completion, exhausted=held_before + STREAMS >= self.count)
        assert self.group.unpublished == 0
        assert self.group.published == published + unpublished

    def complete(self, completion: aiouring.Completion, *, exhausted: bool) -> None:
        """One receive has ended."""
        (stream,) = (stream for stream in self.lines if stream.armed == completion.user_data)
        stream.armed = 0
        if completion.result == -errno.ECANCELED:
            assert stream.cancelled
        elif completion.result == -errno.ENOBUFS:
            assert exhausted
        else:
            assert 0 < completion.result <= self.size
        if completion.result < 0:
            assert not completion.flags & lib.AU_CQE_F_BUFFER
            return
        assert completion.flags & lib.AU_CQE_F_BUFFER
        number = completion.flags >> lib.AU_CQE_BUFFER_SHIFT
        assert number not in self.held, "the kernel gave out a buffer that is held"
        assert lib.au_group_take(self.group, number) == 0
        assert lib.au_group_take(self.group, number) == lib.AU_NOT_LENT
        content = bytes(self.arena.exporters[number][: completion.result])
        assert content == stream.pattern(stream.received, completion.result)
        stream.received += completion.result
        self.held[number] = bytes(self.arena.exporters[number])
        self.taken += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A buffer that is held goes back."""
        number = data.draw(st.sampled_from(sorted(self.held)))
        assert self.held.pop(number) == bytes(self.arena.exporters[number])
        assert lib.au_group_release(self.group, number) >= 0

    @rule(number=st.one_of(st.integers(0, 70), st.sampled_from([32767, 65535, 1 << 31, (1 << 32) - 1])))
    def release_what_is_not_held(self, number: int) -> None:
        """A second release, and one of a buffer that does not exist, are refused."""
        if number not in self.held:
            expected = lib.AU_NOT_LENT if number < self.count else lib.AU_BAD_INDEX
            assert lib.au_group_release(self.group, number) == expected

    @precondition(lambda self: self.held)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def scribble(self, data: st.DataObject, byte: int) -> None:
        """Whoever holds a buffer may write to it."""
        number = data.draw(st.sampled_from(sorted(self.held)))
        self.arena.exporters[number][0] = bytes([byte])
        self.held[number] = bytes(self.arena.exporters[number])

    # ---- what must always be true --------------------------------------------------------------

    @invariant()
    def every_buffer_has_one_owner(self) -> None:
        """With the kernel, on the way to it, or held; our books and the kernel's agree."""
        group = self.group
        assert group.lent == len(self.held)
        assert group.with_kernel + group.unpublished + group.lent == self.count
        assert [bool(group.is_lent[number]) for number in range(self.count)] == [
            number in self.held for number in range(self.count)
        ]
        assert group.high_water >= group.lent

    @invariant()
    def shared_memory_agrees(self) -> None:
        """What the kernel can read names each buffer once, and none that is held; its tail is ours."""
        group = self.group
        assert self.entries[0].reserved == group.tail
        head = lib.au_group_head(group)
        available = (group.tail - head) % 65536
        assert available <= group.with_kernel  # fewer, where a completion has not been drained yet
        assert head >= self.taken
        entries = [self.entries[(head + at) % self.count] for at in range(available + group.unpublished)]
        numbers = {entry.bid for entry in entries}
        assert len(numbers) == len(entries)
        assert not numbers & set(self.held)
        base = int(ffi.cast("uintptr_t", self.arena.base))
        assert all((entry.addr, entry.len) == (base + entry.bid * self.size, self.size) for entry in entries)

    @invariant()
    def held_buffers_do_not_change(self) -> None:
        """The kernel writes to no buffer that it does not have."""
        for number, content in self.held.items():
            assert bytes(self.arena.exporters[number]) == content

    @invariant()
    def received_is_a_prefix_of_sent(self) -> None:
        """Nothing is received that was not sent; what it is was checked when it came."""
        for stream in self.lines:
            assert stream.received <= stream.sent

    def teardown(self) -> None:
        """With everything returned, everything arrives."""
        if not hasattr(self, "things"):
            return
        with self.things:
            self.receive_all()
            assert lib.au_group_head(self.group) == self.taken
            assert lib.au_group_unregister(self.group) == 0
            lib.au_group_close(self.group)

    def receive_all(self) -> None:
        """Receive what was sent, and cancel what is still in flight then."""
        for _ in range(2000):
            if all(stream.received == stream.sent and not stream.armed for stream in self.lines):
                break
            for number in list(self.held):
                assert lib.au_group_release(self.group, number) >= 0
                del self.held[number]
            for stream in self.lines:
                if stream.received < stream.sent:
                    self.arm(stream.number, 0)
                else:
                    self.cancel(stream.number)
            self.drain()
            self.held_buffers_do_not_change()
        for stream in self.lines:
            assert (stream.received, stream.armed) == (stream.sent, 0)


@pytest.mark.deadline(120)
def test_d8_d14_buffer_ring_model() -> None:
    """Whatever is sent, received, cancelled and returned in any order, no buffer and no byte is lost or doubled."""
    run_state_machine_as_test(BufferRingMachine, settings=MODEL)
