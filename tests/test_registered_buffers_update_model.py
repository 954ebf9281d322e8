"""A random-model test of tables that change: whose memory gets the data, what is exported, and when tags come.

The model knows of each memory whether a slot, a lease or a request has it, and what must be in it.  After each
step the kernel's data, the exports of the caller's memory and the tags must agree with that.
"""

import asyncio
import gc
import os
import random
from dataclasses import dataclass, field

import pytest
from conftest import RingFactory

import aiouring

SLOTS = 5
STEPS = 120


@dataclass
class Owned:
    """The caller's memory, and who has it."""

    memory: bytearray
    expected: bytearray
    in_slot: bool = True
    leases: int = 0
    reads: int = 0

    def exported(self) -> bool:
        """Whether Python refuses to resize it."""
        try:
            self.memory.append(0)
        except BufferError:
            return True
        self.memory.pop()
        return False


@dataclass
class Lent:
    """A lease, the memory that it is of, and what is being read into it: task, pipe and start of each."""

    lease: aiouring.FixedBuffer
    owned: Owned
    reads: list[tuple[asyncio.Task[int], tuple[int, int], int]] = field(default_factory=list)


class Model:
    """A table, and what must be true of it."""

    def __init__(self, ring: aiouring.AsyncRing, seed: int) -> None:
        self.ring = ring
        self.choose = random.Random(seed)
        self.table = ring.register_buffers_sparse(SLOTS)
        self.slots: list[Owned | None] = [None] * SLOTS
        self.lent: list[Lent] = []
        self.retired: list[tuple[aiouring.RetiredBuffers, list[Owned]]] = []
        self.all: list[Owned] = []

    def new(self) -> Owned:
        """Fresh memory of the caller's."""
        text = self.choose.randbytes(self.choose.randint(8, 9000))
        owned = Owned(bytearray(text), bytearray(text))
        self.all.append(owned)
        return owned

    async def update(self) -> None:
        """Fill, replace or empty some slots."""
        index = self.choose.randrange(SLOTS)
        fresh = [
            self.new() if self.choose.random() < 0.7 else None for _ in range(self.choose.randint(1, SLOTS - index))
        ]
        left = [owned for owned in self.slots[index : index + len(fresh)] if owned is not None]
        retired = self.table.update(index, [owned and owned.memory for owned in fresh])
        assert len(retired) == len(left)
        for each, owned in zip(retired, left, strict=True):
            owned.in_slot = False
            self.retired.append((each, [owned]))
        self.slots[index : index + len(fresh)] = fresh

    async def lend(self) -> None:
        """Lend one, by index or not."""
        index = self.choose.randrange(SLOTS)
        owned = self.slots[index]
        taken = {id(lent.owned) for lent in self.lent}
        if self.choose.random() < 0.5:
            lease = self.table.try_acquire()
            free = [owned for owned in self.slots if owned is not None and id(owned) not in taken]
            assert (lease is not None) == bool(free)
            if lease is None:
                return
            owned = self.slots[lease.index]
        elif owned is None or id(owned) in taken:
            with pytest.raises(ValueError if owned is None else aiouring.ResourceBusyError):
                self.table[index]
            return
        else:
            lease = self.table[index]
        assert owned is not None
        owned.leases += 1
        self.lent.append(Lent(lease, owned))

    async def read(self) -> None:
        """Start a read into a lease; it waits for its pipe."""
        if not self.lent:
            return
        lent = self.choose.choice(self.lent)
        ends = os.pipe()
        start = self.choose.randrange(len(lent.lease) - 4)
        if not lent.owned.in_slot:
            with pytest.raises((ValueError, aiouring.RingClosedError)):
                await self.ring.read_fixed(ends[0], lent.lease, start=start)
            for end in ends:
                os.close(end)
            return
        lent.reads.append((asyncio.create_task(self.ring.read_fixed(ends[0], lent.lease, start=start)), ends, start))
        lent.owned.reads += 1
        if self.choose.random() < 0.5:
            await asyncio.sleep(0)  # queued; the next step may find it not submitted
        else:
            await self.ring.nop()

    async def finish(self) -> None:
        """End a read, with data or by cancelling it."""
        busy = [lent for lent in self.lent if lent.reads]
        if not busy:
            return
        lent = self.choose.choice(busy)
        task, ends, start = lent.reads.pop(self.choose.randrange(len(lent.reads)))
        if self.choose.random() < 0.3:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            text = self.choose.randbytes(4)
            os.write(ends[1], text)
            assert await task == 4
            lent.owned.expected[start : start + 4] = text
        for end in ends:
            os.close(end)
        lent.owned.reads -= 1

    async def release(self) -> None:
        """Release a lease, or be told that it is in use."""
        if not self.lent:
            return
        lent = self.choose.choice(self.lent)
        assert bytes(lent.lease.view) == lent.owned.expected
        if lent.reads and all(task.done() for task, _, _ in lent.reads):
            raise AssertionError(lent)
        await self.ring.nop()
        if lent.reads:
            with pytest.raises(aiouring.ResourceBusyError):
                lent.lease.release()
        else:
            lent.lease.release()
            lent.owned.leases -= 1
            self.lent.remove(lent)

    async def start_over(self) -> None:
        """Unregister, and register an empty table, or one of the same memory."""
        left = [owned for owned in self.slots if owned is not None]
        self.retired.append((self.table.unregister(), left))
        for owned in left:
            owned.in_slot = False
        self.table = self.ring.register_buffers_sparse(SLOTS)
        self.slots = [None] * SLOTS

    async def check(self) -> None:
        """Everything that must be true when nothing moves."""
        for _ in range(2):
            await self.ring.nop()
        gc.collect()  # the tracebacks of what was refused hold what it was refused for
        assert self.table.sizes == [len(owned.expected) if owned else 0 for owned in self.slots]
        for owned in self.all:
            assert owned.memory == owned.expected
            assert owned.exported() == (owned.in_slot or owned.leases > 0 or owned.reads > 0), owned
        for retired, left in self.retired:
            assert retired.done == (not any(owned.reads for owned in left))
        self.retired = [pair for pair in self.retired if not pair[0].done]
        self.all = [owned for owned in self.all if owned.exported()]


@pytest.mark.parametrize("seed", range(6))
async def test_a_table_that_changes(new_ring: RingFactory, seed: int) -> None:
    """Random updates, leases, reads, cancels and new tables agree with the model, after every step."""
    ring = await new_ring()
    model = Model(ring, seed)
    steps = [model.update, model.update, model.lend, model.lend, model.read, model.read, model.finish, model.release]
    for _ in range(STEPS):
        step = model.start_over if model.choose.random() < 0.04 else model.choose.choice(steps)
        await step()
        if model.choose.random() < 0.5:
            await model.check()
    while model.lent:
        await model.finish()
        await model.release()
    await model.start_over()
    await model.check()
    assert not model.all
    assert not model.retired
    assert ring.statistics().strays == 0
