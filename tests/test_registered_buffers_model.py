"""A random-model test of registered buffers: who holds which, who waits in which order, and who keeps one busy.

The model is a list of free buffers and a queue of who waits.  After each step the loop runs until nothing
moves any more, and the table must agree with the model.
"""

import asyncio
import os
import warnings
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field

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

SIZE = 64

MODEL = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass(eq=False)
class Users:
    """Those who use a buffer's memory: slices of its view, and perhaps a read in flight."""

    parts: list[memoryview] = field(default_factory=list)
    reading: "asyncio.Task[int] | None" = None


@dataclass(eq=False)
class Holder:
    """Somebody who holds a buffer, and what they filled it with."""

    lease: aiouring.FixedBuffer
    content: bytes
    users: Users = field(default_factory=Users)


def refuses(lease: aiouring.FixedBuffer, kind: type[Exception]) -> bool:
    """Whether a release is refused; unlike pytest.raises this keeps no traceback, and so no lease, alive."""
    try:
        lease.release()
    except kind:
        return True
    return False


def leave_by_exception(lease: aiouring.FixedBuffer) -> None:
    """End a lease as its `with` block does when something is raised in it."""
    try:
        with lease:
            raise KeyError
    except KeyError:
        pass


class RegisteredBuffersMachine(RuleBasedStateMachine):
    """A table of buffers, those who hold one, and those who wait for one."""

    #: Which of several is meant.  Hypothesis may keep what it draws, so it draws no leases.
    choices = st.integers(0, 59)

    @initialize(count=st.integers(1, 4), task_run=st.sampled_from(["coop", "defer"]))
    def make(self, count: int, task_run: aiouring._setup.TaskRun) -> None:
        """A ring with a table, and a pipe to read from."""
        self.things = ExitStack()  # to be closed, however this ends
        self.pipe = os.pipe()
        for end in self.pipe:
            self.things.callback(os.close, end)
        self.runner = self.things.enter_context(asyncio.Runner())
        self.loop = self.runner.get_loop()
        self.count = count
        self.holders: list[Holder] = []
        self.limbo: list[Users] = []  # of buffers whose lease has ended
        self.queue: deque[asyncio.Task[aiouring.FixedBuffer]] = deque()
        self.most = 0
        self.stamp = 0
        self.runner.run(self.open(task_run))

    async def open(self, task_run: aiouring._setup.TaskRun) -> None:
        """Bind a ring to the loop."""
        self.ring = await aiouring.AsyncRing(8, task_run=task_run).__aenter__()
        self.things.callback(lambda: self.runner.run(self.ring.aclose()))
        self.table = self.ring.register_buffers(count=self.count, size=SIZE)

    def settle(self) -> None:
        """Run the loop until nothing moves, and note who was served meanwhile; in order, and as many as can be."""

        async def turns() -> None:
            for _ in range(4):
                await self.ring.nop()

        self.runner.run(turns())
        self.limbo = [users for users in self.limbo if users.parts or users.reading]
        while self.queue and self.queue[0].done():
            self.hold(self.queue.popleft().result())
        assert not any(waiter.done() for waiter in self.queue), "somebody overtook"
        assert not self.queue or self.in_use() == self.count, "somebody waits although a buffer is free"

    def in_use(self) -> int:
        """How many buffers are not free."""
        return len(self.holders) + len(self.limbo)

    def users(self) -> list[Users]:
        """Of all buffers that are not free."""
        return [holder.users for holder in self.holders] + self.limbo

    def hold(self, lease: aiouring.FixedBuffer) -> None:
        """Somebody has a buffer now, and fills it with something of their own."""
        self.stamp += 1
        content = self.stamp.to_bytes(4, "little") * (SIZE // 4)
        lease.view[:] = content
        self.holders.append(Holder(lease, content))
        self.most = max(self.most, self.in_use())

    # ---- what may happen -----------------------------------------------------------------------

    @rule()
    def acquire(self) -> None:
        """Somebody wants a buffer."""
        if len(self.queue) < 5:
            self.queue.append(self.loop.create_task(self.table.acquire()))
            self.settle()

    @rule()
    def try_acquire(self) -> None:
        """Somebody wants a buffer now or not at all."""
        lease = self.table.try_acquire()
        assert (lease is not None) == (self.in_use() < self.count and not self.queue)
        if lease is not None:
            self.hold(lease)

    @precondition(lambda self: self.holders)
    @rule(choice=choices, cancelled=st.integers(0, 5), before=st.booleans())
    def release(self, choice: int, cancelled: int, before: bool) -> None:
        """A buffer comes back while, in the same turn, some who wait give up; unless it is in use."""
        holder = self.holders[choice % len(self.holders)]
        given_up = [self.queue[0] for _ in range(1) if self.queue and cancelled < 3]
        if before:
            self.give_up(given_up)
        busy: type[Exception] | None = None
        if holder.users.reading is not None:
            busy = aiouring.ResourceBusyError
        elif holder.users.parts:
            busy = BufferError
        if busy is not None:
            assert refuses(holder.lease, busy)
            assert bytes(holder.lease.view) == holder.content
        else:
            holder.lease.release()
            self.holders.remove(holder)
            assert refuses(holder.lease, ValueError)
        if not before:
            self.give_up(given_up)
        self.settle()

    def give_up(self, waiters: list[asyncio.Task[aiouring.FixedBuffer]]) -> None:
        """Some who wait are cancelled; they may have been handed a buffer in this very turn."""
        for waiter in waiters:
            waiter.cancel()
            self.queue.remove(waiter)

    @precondition(lambda self: self.queue)
    @rule(choice=choices)
    def cancel(self, choice: int) -> None:
        """Somebody who waits gives up."""
        self.give_up([self.queue[choice % len(self.queue)]])
        self.settle()

    @precondition(lambda self: self.holders)
    @rule(choice=choices, start=st.integers(0, SIZE), length=st.integers(0, SIZE))
    def slice(self, choice: int, start: int, length: int) -> None:
        """Somebody looks at a part of their buffer for longer."""
        holder = self.holders[choice % len(self.holders)]
        holder.users.parts.append(holder.lease.view[start : start + length])

    @precondition(lambda self: any(users.parts for users in self.users()))
    @rule(choice=choices)
    def drop_slices(self, choice: int) -> None:
        """And no longer."""
        sliced = [users for users in self.users() if users.parts]
        sliced[choice % len(sliced)].parts.clear()
        self.settle()

    @precondition(lambda self: self.holders and not any(users.reading for users in self.users()))
    @rule(choice=choices, start=st.integers(0, SIZE - 1))
    def read(self, choice: int, start: int) -> None:
        """Somebody reads from the pipe, which is empty."""
        holder = self.holders[choice % len(self.holders)]
        reading = self.ring.read_fixed(self.pipe[0], holder.lease, start=start, length=1)
        holder.users.reading = self.loop.create_task(reading)
        self.start = start
        self.settle()

    @precondition(lambda self: any(users.reading for users in self.users()))
    @rule(byte=st.integers(0, 255), cancelled=st.booleans())
    def end_reading(self, byte: int, cancelled: bool) -> None:
        """The read is cancelled, or there is something to read."""
        (users,) = (users for users in self.users() if users.reading)
        reading, users.reading = users.reading, None
        assert reading is not None
        if cancelled:
            reading.cancel()
        else:
            os.write(self.pipe[1], bytes([byte]))
            for holder in self.holders:
                if holder.users is users:
                    changed = bytearray(holder.content)
                    changed[self.start] = byte
                    holder.content = bytes(changed)
        self.settle()
        assert reading.cancelled() if cancelled else reading.result() == 1
        del reading  # its traceback leads (since Python 3.12) back to this frame, and would keep the lease alive

    @precondition(lambda self: self.holders)
    @rule(choice=choices)
    def fail(self, choice: int) -> None:
        """Somebody's block ends by an exception; the buffer comes back when nobody uses it any more."""
        holder = self.holders.pop(choice % len(self.holders))
        leave_by_exception(holder.lease)
        assert refuses(holder.lease, ValueError)
        self.limbo.append(holder.users)
        del holder
        self.settle()

    @precondition(lambda self: any(not holder.users.reading for holder in self.holders))
    @rule(choice=choices)
    def drop(self, choice: int) -> None:
        """Somebody loses their lease, and is warned; the rest is the same."""
        idle = [holder for holder in self.holders if not holder.users.reading]
        holder = idle[choice % len(idle)]
        self.holders.remove(holder)
        self.limbo.append(holder.users)
        with pytest.warns(ResourceWarning, match="never released"):
            del holder.lease
        self.settle()

    # ---- what must always be true --------------------------------------------------------------

    @invariant()
    def table_agrees(self) -> None:
        """The table counts as the model does, and lends no buffer twice."""
        found = self.table.statistics()
        assert (found.in_use, found.waiting, found.high_water) == (self.in_use(), len(self.queue), self.most)
        assert len({holder.lease.index for holder in self.holders}) == len(self.holders)

    @invariant()
    def contents_are_private(self) -> None:
        """Nobody's bytes change but by their own doing."""
        for holder in self.holders:
            if holder.users.reading is None:
                assert bytes(holder.lease.view) == holder.content

    def teardown(self) -> None:
        """With everything returned, all are served, and the table is whole."""
        if not hasattr(self, "things"):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            with self.things:
                self.things.callback(self.let_go)
                self.return_all()

    def return_all(self) -> None:
        """Every lease ends, and whoever still waits for one is served."""
        for users in self.users():
            users.parts.clear()
            if users.reading is not None:
                users.reading.cancel()
                users.reading = None
        self.settle()
        while self.holders:
            self.holders.pop().lease.release()
            self.settle()
        assert not self.queue
        assert self.table.statistics().in_use == 0

    def let_go(self) -> None:
        """Where the model has failed: no lease may outlive it, to warn in the next test."""
        for waiter in self.queue:
            waiter.cancel()
        for holder in self.holders:
            leave_by_exception(holder.lease)


@pytest.mark.deadline(120)
def test_registered_buffers_model() -> None:
    """Whatever is acquired, released, sliced, read into, cancelled and dropped, every buffer has one owner."""
    run_state_machine_as_test(RegisteredBuffersMachine, settings=MODEL)
