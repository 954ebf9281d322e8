"""A random-model test of the C core's buffer rings: hypothesis drives the real kernel and checks every byte.

The model is simple: each stream's bytes follow a pattern, so that what a buffer holds says where it belongs;
each buffer of each group is with the kernel, held, or added and not advanced over; what is held does not change.
After each step the two must agree.
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
GROUPS = 2

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
    refused: bool = False  # the kernel may have found the group empty
    pool: "Pool | None" = None  # the group of the receive in flight
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


class Pool:
    """A group, and where the model believes its buffers to be."""

    def __init__(self, ring: aiouring.Ring, group_id: int, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.arena = Arena(count, size, size)
        self.group = ffi.new("au_group *", {"owner": count})
        assert lib.au_group_init(self.group, ring.raw, self.arena.base, size, count, group_id) == 0
        self.entries = register_and_find(self.group)
        self.held: dict[int, bytes] = {}
        self.added: list[int] = []
        self.taken = 0

    def take(self, number: int, expected: bytes) -> None:
        """The kernel gave out a buffer."""
        assert number not in self.held, "the kernel gave out a buffer that is held"
        assert number not in self.added, "the kernel gave out a buffer that it must not see yet"
        assert lib.au_group_take(self.group, number) == 0
        assert lib.au_group_take(self.group, number) == lib.AU_NOT_LENT
        assert bytes(self.arena.exporters[number][: len(expected)]) == expected
        self.held[number] = bytes(self.arena.exporters[number])
        self.taken += 1

    def give_up(self, number: int) -> None:
        """A buffer that is held goes back, with what it held."""
        assert self.held.pop(number) == bytes(self.arena.exporters[number])

    def check_owners(self) -> None:
        """Each buffer has one owner, in our books as in the model's."""
        group = self.group
        assert (group.lent, group.added) == (len(self.held), len(self.added))
        assert group.with_kernel + group.unpublished + group.added + group.lent == self.count
        owners = [0] * self.count
        for number in self.held:
            owners[number] = 1
        for number in self.added:
            owners[number] = 2
        assert list(ffi.unpack(group.owner, self.count)) == owners
        assert group.high_water >= group.lent

    def check_shared_memory(self) -> None:
        """What lies from the kernel's head on names each buffer once, none that is held, and the added ones last."""
        group = self.group
        assert self.entries[0].reserved == group.tail
        head = lib.au_group_head(group)
        available = (group.tail - head) % 65536
        assert available <= group.with_kernel  # fewer, where a completion has not been taken yet
        assert head == self.taken % 65536 or group.with_kernel > available
        base = int(ffi.cast("uintptr_t", self.arena.base))
        numbers = []
        for at in range(available + group.unpublished + group.added):
            entry = self.entries[(head + at) % self.count]
            number = entry.bid
            assert (entry.addr, entry.len) == (base + number * self.size, self.size)
            numbers.append(number)
        assert len(set(numbers)) == len(numbers)
        assert not set(numbers) & set(self.held)
        assert numbers[len(numbers) - group.added :] == self.added


class BufferRingMachine(RuleBasedStateMachine):
    """Two buffer rings, a few streams that receive from either, and whoever holds buffers."""

    streams = st.integers(0, STREAMS - 1)
    pools = st.integers(0, GROUPS - 1)
    exponents = st.integers(0, 6)

    @initialize(data=st.data(), task_run=st.sampled_from(["coop", "defer"]), first=st.sampled_from([0, 7, 65534]))
    def make(self, data: st.DataObject, task_run: aiouring._setup.TaskRun, first: int) -> None:
        """Groups of any legal size, under any numbers."""
        self.things = ExitStack()  # to be closed, however this ends
        self.ring = aiouring.Ring(16, task_run=task_run)
        self.things.callback(self.ring.close)
        self.groups = [
            Pool(self.ring, first + at, 1 << data.draw(self.exponents), data.draw(st.integers(1, 64)))
            for at in range(GROUPS)
        ]
        self.lines = [Stream(number) for number in range(STREAMS)]
        for stream in self.lines:
            for sock in stream.sockets:
                self.things.enter_context(sock)
        self.last = 0

    # ---- what may happen -----------------------------------------------------------------------

    @rule(number=streams, length=st.integers(1, 100))
    def send(self, number: int, length: int) -> None:
        """The peer sends."""
        stream = self.lines[number]
        stream.sent += stream.sockets[1].send(stream.pattern(stream.sent, length), socket.MSG_DONTWAIT)

    @rule(number=streams, at=pools, length=st.integers(0, 80))
    def arm(self, number: int, at: int, length: int) -> None:
        """A receive of at most `length` bytes (0: a whole buffer) is filled, unless one is in flight."""
        stream, pool = self.lines[number], self.groups[at]
        if stream.armed:
            return
        arguments = (lib.AU_OP_RECV, stream.sockets[0].fileno(), pool.group, length, 0, 0, 0)
        code = lib.au_prepare_select(self.ring.raw, self.last + 1, *arguments)
        if length > pool.size:
            assert code == lib.AU_BAD_LENGTH
        elif code != lib.AU_FULL:
            assert code == 0
            self.last = stream.armed = self.last + 1
            stream.cancelled = stream.refused = False
            stream.pool = pool

    @rule(number=streams, at=pools, times=st.integers(1, 6))
    def receive(self, number: int, at: int, times: int) -> None:
        """Several messages in a row, all of whose buffers are then held: else few would ever be."""
        for _ in range(times):
            self.send(number, 1)
            self.arm(number, at, 0)
            self.drain()

    @rule(number=streams)
    def cancel(self, number: int) -> None:
        """The receive in flight is cancelled, perhaps for the second time."""
        stream = self.lines[number]
        if stream.armed and lib.au_prepare(self.ring.raw, 0, lib.AU_OP_ASYNC_CANCEL, -1, 0, stream.armed, 0, 0, 0) == 0:
            stream.cancelled = True

    def before_a_turn(self) -> list[int]:
        """Note whom the kernel may refuse; returns what each group will have published."""
        for stream in self.lines:
            if stream.pool is not None:
                away = len(stream.pool.held) + len(stream.pool.added)
                stream.refused |= away + STREAMS >= stream.pool.count
        return [pool.group.published + pool.group.unpublished for pool in self.groups]

    @rule()
    def drain(self) -> None:
        """A turn: what was returned is published, what was filled is submitted, what has completed is taken."""
        published = self.before_a_turn()
        for completion in self.ring.submit():
            self.complete(completion)
        assert [pool.group.unpublished for pool in self.groups] == [0] * GROUPS
        assert [pool.group.published for pool in self.groups] == published

    @rule(data=st.data(), at=pools)
    def peek(self, data: st.DataObject, at: int) -> None:
        """A turn by hand: some completions are consumed, and some added buffers shown, with counts of their own."""
        published = self.before_a_turn()
        completions = self.ring.peek()
        assert self.ring.peek()[: len(completions)] == completions
        there = lib.au_ring_peeked(self.ring.raw)
        pool = self.groups[at]
        consumed = data.draw(st.integers(0, len(completions)))
        shown = data.draw(st.integers(0, len(pool.added)))
        for completion in completions[:consumed]:
            self.complete(completion)
        tail = pool.group.tail
        assert lib.au_group_cq_advance(pool.group, there + 1, shown) == lib.AU_TOO_MANY
        assert lib.au_group_cq_advance(pool.group, consumed, len(pool.added) + 1) == lib.AU_TOO_MANY
        assert (pool.group.tail, lib.au_ring_peeked(self.ring.raw)) == (tail, there)
        assert lib.au_group_cq_advance(pool.group, consumed, shown) == 0
        assert lib.au_ring_peeked(self.ring.raw) == there - consumed
        del pool.added[:shown]
        published[at] += shown
        assert [group.group.published for group in self.groups] == published

    def complete(self, completion: aiouring.Completion) -> None:
        """One receive has ended."""
        if completion.user_data == 0:
            return  # a cancel
        (stream,) = (stream for stream in self.lines if stream.armed == completion.user_data)
        pool, stream.pool = stream.pool, None
        assert pool is not None
        stream.armed = 0
        if completion.result == -errno.ECANCELED:
            assert stream.cancelled
        elif completion.result == -errno.ENOBUFS:
            assert stream.refused
        else:
            assert 0 < completion.result <= pool.size
        if completion.result < 0:
            assert not completion.flags & lib.AU_CQE_F_BUFFER
            return
        assert completion.flags & lib.AU_CQE_F_BUFFER
        pool.take(completion.flags >> lib.AU_CQE_BUFFER_SHIFT, stream.pattern(stream.received, completion.result))
        stream.received += completion.result

    @precondition(lambda self: any(pool.held for pool in self.groups))
    @rule(data=st.data(), ways=st.lists(st.booleans(), min_size=1, max_size=4))
    def release(self, data: st.DataObject, ways: list[bool]) -> None:
        """Some buffers that are held go back, each with the next turn or by hand, to be advanced over."""
        pool = data.draw(st.sampled_from([pool for pool in self.groups if pool.held]))
        for by_hand in ways[: len(pool.held)]:
            number = data.draw(st.sampled_from(sorted(pool.held)))
            pool.give_up(number)
            if by_hand:
                assert lib.au_group_add(pool.group, number) == 0
                pool.added.append(number)
            else:
                assert lib.au_group_release(pool.group, number) == 1

    @rule(at=pools, number=st.one_of(st.integers(0, 70), st.sampled_from([32767, 65535, 1 << 31, (1 << 32) - 1])))
    def release_what_is_not_held(self, at: int, number: int) -> None:
        """A second release, and one of a buffer that does not exist, are refused, in whichever way it is given."""
        pool = self.groups[at]
        if number not in pool.held:
            expected = lib.AU_NOT_LENT if number < pool.count else lib.AU_BAD_INDEX
            assert lib.au_group_release(pool.group, number) == expected
            assert lib.au_group_add(pool.group, number) == expected

    @rule(at=pools, data=st.data())
    def advance(self, at: int, data: st.DataObject) -> None:
        """The kernel sees some of the buffers that were added, the first ones, and all that were released."""
        pool = self.groups[at]
        count = data.draw(st.integers(0, len(pool.added)))
        before = pool.group.published + pool.group.unpublished
        assert lib.au_group_advance(pool.group, len(pool.added) + 1) == lib.AU_TOO_MANY
        assert lib.au_group_advance(pool.group, count) == 0
        del pool.added[:count]
        assert (pool.group.published, pool.group.unpublished) == (before + count, 0)

    @precondition(lambda self: any(pool.held for pool in self.groups))
    @rule(data=st.data(), byte=st.integers(0, 255))
    def scribble(self, data: st.DataObject, byte: int) -> None:
        """Whoever holds a buffer may write to it."""
        pool = data.draw(st.sampled_from([pool for pool in self.groups if pool.held]))
        number = data.draw(st.sampled_from(sorted(pool.held)))
        pool.arena.exporters[number][0] = bytes([byte])
        pool.held[number] = bytes(pool.arena.exporters[number])

    # ---- what must always be true --------------------------------------------------------------

    @invariant()
    def every_buffer_has_one_owner(self) -> None:
        """With the kernel, on the way to it, added, or held; our books and the model's agree."""
        for pool in self.groups:
            pool.check_owners()

    @invariant()
    def shared_memory_agrees(self) -> None:
        """What the kernel can read is what the books say."""
        for pool in self.groups:
            pool.check_shared_memory()

    @invariant()
    def held_buffers_do_not_change(self) -> None:
        """The kernel writes to no buffer that it does not have."""
        for pool in self.groups:
            for number, content in pool.held.items():
                assert bytes(pool.arena.exporters[number]) == content

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
            for pool in self.groups:
                assert lib.au_group_head(pool.group) == pool.taken % 65536
                assert lib.au_group_unregister(pool.group) == 0
                lib.au_group_close(pool.group)

    def receive_all(self) -> None:
        """Receive what was sent, and cancel what is still in flight then."""
        for _ in range(2000):
            if all(stream.received == stream.sent and not stream.armed for stream in self.lines):
                break
            self.return_everything()
            for stream in self.lines:
                if stream.received < stream.sent:
                    self.arm(stream.number, stream.number % GROUPS, 0)
                else:
                    self.cancel(stream.number)
            self.drain()
            self.held_buffers_do_not_change()
        for stream in self.lines:
            assert (stream.received, stream.armed) == (stream.sent, 0)

    def return_everything(self) -> None:
        """Whatever is held or added goes to the kernel."""
        for pool in self.groups:
            for number in list(pool.held):
                pool.give_up(number)
                assert lib.au_group_release(pool.group, number) >= 0
            assert lib.au_group_advance(pool.group, len(pool.added)) == 0
            pool.added.clear()


class LargestBufferRingMachine(BufferRingMachine):
    """The same with the smallest and the largest groups that there are, side by side."""

    exponents = st.sampled_from([0, 15])


@pytest.mark.deadline(120)
def test_d8_d14_buffer_ring_model() -> None:
    """Whatever is sent, received, cancelled and returned in any order, no buffer and no byte is lost or doubled."""
    run_state_machine_as_test(BufferRingMachine, settings=MODEL)


@pytest.mark.deadline(120)
def test_d14_model_of_the_smallest_and_largest() -> None:
    """Nor in groups of 1 and of 32768 buffers."""
    run_state_machine_as_test(LargestBufferRingMachine, settings=settings(MODEL, max_examples=8))
