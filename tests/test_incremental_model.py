"""A random-model test of buffers that are given out in parts: hypothesis drives the real kernel, every byte is checked.

The model has a copy of the group's whole memory.  Whatever is received is written into the copy where the model
believes that it must lie, whoever holds a part may write into it, and nothing else may ever change: so each byte that
no part has is a canary for those around it.
"""

import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_buffer_ring_model import register_and_find

import aiouring
from aiouring._lease import Arena
from aiouring._uring import ffi, lib

STREAMS = 4

MODEL = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Stream:
    """A stream, a socket's or a pipe's, and the receive that is in flight on it."""

    number: int
    source: int
    target: int
    sent: int = 0
    received: int = 0
    armed: int = 0

    def pattern(self, start: int, length: int) -> bytes:
        """What this stream carries between two positions."""
        return bytes(
            (position * (2 * self.number + 1) + self.number) % 251 for position in range(start, start + length)
        )


class Buffers:
    """The group, and what the model believes of each of its buffers."""

    def __init__(self, ring: aiouring.Ring, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.arena = Arena(count, size, size)
        self.whole = ffi.buffer(self.arena.base, count * size)
        self.copy = bytearray(count * size)
        self.group = ffi.new("au_group *", {"owner": count})
        self.shares = ffi.new("struct au_share[]", count)
        assert lib.au_group_init(self.group, ring.raw, self.arena.base, size, count, 5) == 0
        lib.au_group_share(self.group, self.shares, 1, 0)
        self.entries = register_and_find(self.group)
        self.order = list(range(count))  # those the kernel has, as it will fill them
        self.used = 0  # bytes of the first of them
        self.parts: list[tuple[int, int, int]] = []  # buffer, start, length of those that are held
        self.full: set[int] = set()  # buffers that the kernel is done with, and of which parts are held
        self.added: list[int] = []
        self.released: list[int] = []  # to be published with the next turn
        self.taken = 0

    def take(self, flags: int, content: bytes) -> None:
        """A completion brought `content`: it must lie where the buffers' order and fill say."""
        number = flags >> lib.AU_CQE_BUFFER_SHIFT
        assert number == self.order[0]
        start = lib.au_group_take_part(self.group, flags, len(content))
        assert start == self.used
        self.copy[number * self.size + start : number * self.size + start + len(content)] = content
        self.parts.append((number, start, len(content)))
        self.used += len(content)
        assert (self.used == self.size) == (not flags & lib.AU_CQE_F_BUF_MORE)
        if self.used == self.size:
            self.full.add(self.order.pop(0))
            self.used = 0
            self.taken += 1

    def give_up(self, at: int) -> tuple[int, bool]:
        """A part goes; returns what it is called, and whether its buffer goes with it."""
        number, start, _ = self.parts.pop(at)
        last = number in self.full and not any(part[0] == number for part in self.parts)
        if last:
            self.full.remove(number)
        return number | start << lib.AU_BUFFER_ID_BITS, last

    def publish(self) -> None:
        """A turn, or an advance, shows the kernel what was released."""
        self.order += self.released
        self.released.clear()

    def check_books(self) -> None:
        """What the C core counts, and the bytes of what is held."""
        group = self.group
        assert (group.parts, group.lent, group.added) == (len(self.parts), len(self.full), len(self.added))
        assert (group.with_kernel, group.unpublished) == (len(self.order), len(self.released))
        for number in range(self.count):
            assert self.shares[number].parts == sum(part[0] == number for part in self.parts)
        for number, start, length in self.parts:
            at = number * self.size + start
            assert self.whole[at : at + length] == self.copy[at : at + length]

    def check_memory(self) -> None:
        """The memory shared with the kernel, and every byte; while the kernel has nothing to receive."""
        head = lib.au_group_head(self.group)
        assert head == self.taken % 65536
        base = int(ffi.cast("uintptr_t", self.arena.base))
        for at, number in enumerate(self.order + self.released + self.added):
            entry = self.entries[(head + at) % self.count]
            used = self.used if at == 0 and self.order else 0
            assert (entry.bid, entry.addr, entry.len) == (number, base + number * self.size + used, self.size - used)
        assert bytes(self.whole) == self.copy


class IncrementalMachine(RuleBasedStateMachine):
    """One group, a few streams that receive from it, and whoever holds parts."""

    streams = st.integers(0, STREAMS - 1)

    @initialize(exponent=st.integers(0, 4), size=st.integers(3, 80), task_run=st.sampled_from(["coop", "defer"]))
    def make(self, exponent: int, size: int, task_run: aiouring._setup.TaskRun) -> None:
        """A group, two sockets and two pipes."""
        self.things = ExitStack()
        self.ring = aiouring.Ring(16, task_run=task_run)
        self.things.callback(self.ring.close)
        self.buffers = Buffers(self.ring, 1 << exponent, size)
        self.lines = []
        for number in range(STREAMS):
            ends = [end.detach() for end in socket.socketpair()] if number % 2 else list(os.pipe())
            for end in ends:
                self.things.callback(os.close, end)
            self.lines.append(Stream(number, ends[0], ends[1]))
        self.last = 0

    @rule(number=streams, length=st.integers(1, 100))
    def send(self, number: int, length: int) -> None:
        """The peer sends."""
        stream = self.lines[number]
        if stream.sent - stream.received < 200:
            stream.sent += os.write(stream.target, stream.pattern(stream.sent, length))

    @rule(number=streams, length=st.integers(0, 80))
    def arm(self, number: int, length: int) -> None:
        """A receive of at most `length` bytes (0: what is left of a buffer) is filled, unless one is in flight."""
        stream = self.lines[number]
        if stream.armed or length > self.buffers.size:
            return
        opcode = lib.AU_OP_RECV if number % 2 else lib.AU_OP_READ
        arguments = (opcode, stream.source, self.buffers.group, length, 0, 0, 0)
        code = lib.au_prepare_select(self.ring.raw, self.last + 1, *arguments)
        if code != lib.AU_FULL:
            assert code == 0
            self.last = stream.armed = self.last + 1

    @rule(number=streams, lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6))
    def receive(self, number: int, lengths: list[int]) -> None:
        """Several messages in a row, all of whose parts are then held."""
        for length in lengths:
            self.send(number, length)
            self.arm(number, 0)
            self.drain()

    @rule(number=streams)
    def cancel(self, number: int) -> None:
        """The receive in flight is cancelled."""
        armed = self.lines[number].armed
        if armed:
            lib.au_prepare(self.ring.raw, 0, lib.AU_OP_ASYNC_CANCEL, -1, 0, armed, 0, 0, 0)

    @rule()
    def drain(self) -> None:
        """A turn: what was released is published, what was filled is submitted, what has completed is taken."""
        self.buffers.publish()
        for user_data, result, flags in self.ring.drain():
            if user_data == 0:
                continue  # a cancel
            (stream,) = (stream for stream in self.lines if stream.armed == user_data)
            stream.armed = 0
            if result < 0:
                assert result in (-errno.ECANCELED, -errno.ENOBUFS)
                assert not flags & lib.AU_CQE_F_BUFFER
                continue
            self.buffers.take(flags, stream.pattern(stream.received, result))
            stream.received += result

    @precondition(lambda self: self.buffers.parts)
    @rule(data=st.data(), ways=st.lists(st.booleans(), min_size=1, max_size=8))
    def release(self, data: st.DataObject, ways: list[bool]) -> None:
        """Some parts go back, each with the next turn or by hand, to be advanced over."""
        buffers = self.buffers
        for by_hand in ways[: len(buffers.parts)]:
            part, last = buffers.give_up(data.draw(st.integers(0, len(buffers.parts) - 1)))
            number = part & lib.AU_BUFFER_ID_MASK
            if by_hand:
                assert lib.au_group_add(buffers.group, part) == (not last)
                buffers.added += [number] if last else []
            else:
                assert lib.au_group_release(buffers.group, part) == last
                buffers.released += [number] if last else []

    @rule(number=st.integers(0, 20))
    def release_what_is_not_held(self, number: int) -> None:
        """Of a buffer without parts nothing can be given back, and none that does not exist."""
        buffers = self.buffers
        if not any(part[0] == number for part in buffers.parts):
            expected = lib.AU_NOT_LENT if number < buffers.count else lib.AU_BAD_INDEX
            assert lib.au_group_release(buffers.group, number) == expected
            assert lib.au_group_add(buffers.group, number) == expected

    @rule(number=st.integers(0, 20), length=st.sampled_from([-1, 0, 81, 1 << 31]))
    def take_what_cannot_be(self, number: int, length: int) -> None:
        """Completions that no kernel posts change nothing."""
        flags = number << lib.AU_CQE_BUFFER_SHIFT | lib.AU_CQE_F_BUFFER
        expected = (lib.AU_BAD_INDEX, lib.AU_NOT_LENT, lib.AU_BAD_LENGTH)
        assert lib.au_group_take_part(self.buffers.group, flags, length) in expected
        assert lib.au_group_take(self.buffers.group, number) in expected

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        """The kernel sees some of the buffers that were added, and all that were released."""
        buffers = self.buffers
        count = data.draw(st.integers(0, len(buffers.added)))
        assert lib.au_group_advance(buffers.group, len(buffers.added) + 1) == lib.AU_TOO_MANY
        assert lib.au_group_advance(buffers.group, count) == 0
        buffers.publish()
        buffers.order += buffers.added[:count]
        del buffers.added[:count]

    @precondition(lambda self: self.buffers.parts)
    @rule(data=st.data(), byte=st.integers(0, 255))
    def scribble(self, data: st.DataObject, byte: int) -> None:
        """Whoever holds a part may write to it, while the kernel fills the rest of the buffer."""
        number, start, length = data.draw(st.sampled_from(self.buffers.parts))
        at = number * self.buffers.size + start
        self.buffers.whole[at : at + length] = self.buffers.copy[at : at + length] = bytes([byte]) * length

    @invariant()
    def books_memory_and_bytes_agree(self) -> None:
        """Each buffer is where the model says, and so is each byte."""
        if hasattr(self, "buffers"):
            self.buffers.check_books()
            if not any(stream.armed and stream.received < stream.sent for stream in self.lines):
                self.buffers.check_memory()

    def teardown(self) -> None:
        """With everything returned, everything arrives."""
        if not hasattr(self, "things"):
            return
        with self.things:
            for _ in range(20_000):
                if all(stream.received == stream.sent and not stream.armed for stream in self.lines):
                    break
                self.return_everything()
                for stream in self.lines:
                    if stream.received < stream.sent:
                        self.arm(stream.number, 0)
                    else:
                        self.cancel(stream.number)
                self.drain()
            self.books_memory_and_bytes_agree()
            assert [stream.received for stream in self.lines] == [stream.sent for stream in self.lines]
            assert lib.au_group_unregister(self.buffers.group) == 0
            while self.buffers.parts:
                assert lib.au_group_release(self.buffers.group, self.buffers.give_up(0)[0]) == 0
            lib.au_group_close(self.buffers.group)

    def return_everything(self) -> None:
        """All parts go back, and what was added is advanced over."""
        buffers = self.buffers
        while buffers.parts:
            part, last = buffers.give_up(0)
            assert lib.au_group_release(buffers.group, part) == last
            buffers.released += [part & lib.AU_BUFFER_ID_MASK] if last else []
        assert lib.au_group_advance(buffers.group, len(buffers.added)) == 0
        buffers.publish()
        buffers.order += buffers.added
        buffers.added.clear()


def test_d16_incremental_model() -> None:
    """Whatever is sent, received, cancelled and returned in any order, each byte lies where it must, and stays."""
    run_state_machine_as_test(IncrementalMachine, settings=MODEL)
