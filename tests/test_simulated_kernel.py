"""Tests of the whole package on the simulated kernel: random mixes from many seeds, and the wake-ups.

A failure names its seed; AIOURING_SEED=<seed> runs that seed alone.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from conftest import in_flight
from simulated_kernel import Odds, SimulatedKernel

import aiouring

SEEDS_PER_TEST, TESTS = 40, 8
CANARY = b"\xc5" * 16
STILL_EXPORTED: list[memoryview] = []
PATIENCE_SECONDS = 10.0


def seeds(block: int) -> list[int]:
    """The seeds of one test, or the one to replay."""
    replayed = os.environ.get("AIOURING_SEED")
    return [int(replayed)] if replayed else list(range(block * SEEDS_PER_TEST, (block + 1) * SEEDS_PER_TEST))


class World:
    """One seed's ring, its streams, and the tasks that use them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.kernel = SimulatedKernel(self.random, Odds.drawn(self.random))
        self.streams: list[Stream] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.memory: list[tuple[bytearray, bytes]] = []  # buffers the kernel is done with, as it left them
        self.canceled = 0

    async def play(self) -> None:
        """Run everything: first with trouble, then without, when all must come to its end."""
        random = self.random
        ring = aiouring.AsyncRing(
            random.choice((1, 2, 8, 64)),
            cq_entries=random.choice((1, 4, 64, 1024)),
            task_run=random.choice(("coop", "defer")),
            close_timeout=0.2,  # matters only where a test has failed already
        )
        async with ring:
            self.ring = ring
            self.groups = [
                ring.register_buffer_ring(count=random.choice((1, 2, 8)), size=random.choice((1, 16, 64)))
                for _ in range(random.choice((1, 2, 3)))
            ]
            self.table = ring.register_buffers(count=2, size=64)
            self.streams = [Stream(self) for _ in range(random.randint(1, 4))]
            works = [stream.receive_all() for stream in self.streams]
            works += [stream.send_all() for stream in self.streams]
            works += [self.disturbed(ring.nop()) for _ in range(random.choice((0, 3, 20)))]
            self.tasks = [asyncio.ensure_future(work) for work in works]
            try:
                await self.through_trouble()
                await self.until(lambda: all(task.done() for task in self.tasks))
                await self.until_all_arrived()
                self.check(await asyncio.gather(*self.tasks, return_exceptions=True))
                await self.check_end()
            finally:
                for stream in self.streams:
                    stream.close()

    async def through_trouble(self) -> None:
        for _ in range(150):
            self.kernel.step()
            for stream in self.streams:
                if self.random.random() < 0.1:
                    stream.feed()
            await asyncio.sleep(0)
        self.kernel.calm()
        for stream in self.streams:
            while stream.unsaid:
                stream.feed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let moments pass until `condition` holds; that it never does is a failure."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_SECONDS
        while not condition():
            self.kernel.step()
            await asyncio.sleep(0)
            assert loop.time() < end, f"something never ends:\n{in_flight()}\nkernel: {self.kernel.pending}"

    async def until_all_arrived(self) -> None:
        """Wait for the completions that nobody waits for: a cancel's own, and strays."""
        await self.until(lambda: self.ring.statistics().completed == self.kernel.posted)

    def check(self, outcomes: list[Any]) -> None:
        """Every stream is whole, nothing else was touched, and every request completed once."""
        assert [outcome for outcome in outcomes if outcome is not None] == []
        for stream in self.streams:
            assert stream.received == stream.said
        for memory, content in self.memory:
            assert memory == content, "the kernel wrote to a buffer after its request had ended"
        statistics = self.ring.statistics()
        assert (statistics.in_flight, statistics.detached) == (0, 0)
        assert statistics.strays == self.kernel.strays
        assert self.ring._driver is not None
        assert not self.ring._driver.leftovers.kept

    async def check_end(self) -> None:
        """Each stream ends after its last byte, and each buffer is back where it belongs."""
        self.kernel.ended.update(stream.socket.fileno() for stream in self.streams)
        ends = [asyncio.ensure_future(self.ring.recv(stream.socket, self.groups[0])) for stream in self.streams]
        await self.until(lambda: all(end.done() for end in ends))
        assert not any(end.result() for end in ends)
        last = asyncio.ensure_future(self.ring.nop())
        await self.until(last.done)
        for group in self.groups:
            statistics = group.statistics()
            assert (statistics.with_kernel, statistics.in_use, statistics.waiting) == (len(group), 0, 0)
            self.kernel.groups[group.group_id].look()
            assert self.kernel.groups[group.group_id].here == set(range(len(group)))
        assert self.table.statistics().in_use == 0
        await self.until_all_arrived()

    async def disturbed(self, verb: Coroutine[Any, Any, None]) -> None:
        """Await `verb`, perhaps cancelling it at some moment; it may fail in the ways that are allowed."""
        task = asyncio.ensure_future(verb)
        if self.random.random() < 0.4:
            for _ in range(self.random.randint(0, 5)):
                await asyncio.sleep(0)
            for _ in range(self.random.randint(1, 2)):
                task.cancel()
                await asyncio.sleep(0)
        try:
            await task
        except asyncio.CancelledError:
            pass
        except OSError as error:
            if error.errno != errno.ECANCELED:  # which may come uninvited
                raise


class Stream:
    """One socket: what its peer says, and what was received; what we say, and what arrived."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.socket, self.sender = socket.socket(), socket.socket()
        self.said = self.unsaid = self.random.randbytes(self.random.randint(0, 300))
        self.received = bytearray()

    def close(self) -> None:
        self.socket.close()
        self.sender.close()

    def feed(self) -> None:
        """The peer says a little more."""
        size = self.random.randint(1, 60)
        self.world.kernel.streams[self.socket.fileno()] += self.unsaid[:size]
        self.unsaid = self.unsaid[size:]

    async def receive_all(self) -> None:
        """Receive everything, each time in one of a few ways."""
        ways = self.random.sample((self.into, self.provided, self.read, self.fixed), self.random.randint(1, 4))
        while len(self.received) < len(self.said):
            await self.world.disturbed(self.random.choice(ways)())

    async def into(self) -> None:
        with self.buffer() as view:
            self.received += view[: await self.world.ring.recv_into(self.socket, view)]

    async def read(self) -> None:
        file = self.random.choice((self.socket, self.socket.fileno()))
        with self.buffer() as view:
            self.received += view[: await self.world.ring.read(file, view)]

    async def provided(self) -> None:
        with await self.world.ring.recv(self.socket, self.random.choice(self.world.groups)) as chunk:
            data = bytes(chunk.view)
            self.received += data
            for _ in range(self.random.choice((0, 0, 3))):
                await asyncio.sleep(0)
                assert chunk.view == data, "a lent buffer changed"

    async def fixed(self) -> None:
        with await self.world.table.acquire() as buffer:
            start = self.random.randint(0, 60)
            count = await self.world.ring.read_fixed(self.socket, buffer, start=start)
            self.received += buffer.view[start : start + count]

    async def send_all(self) -> None:
        """Send something; what arrives is the beginning of it, and all of it unless we were disturbed."""
        data, whole = self.random.randbytes(self.random.randint(0, 200)), []

        async def send() -> None:
            await self.world.ring.send_all(self.sender, data)
            whole.append(True)

        await self.world.disturbed(send())
        arrived = self.world.kernel.sent[self.sender.fileno()]
        assert data == arrived if whole else data.startswith(arrived)

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """Memory of the caller between two canaries, remembered as it is when the request has ended."""
        size = self.random.randint(1, 64)
        memory = bytearray(CANARY + bytes(size) + CANARY)
        view = memoryview(memory)[len(CANARY) : -len(CANARY)]
        try:
            yield view
        finally:
            try:
                view.release()
            except BufferError:
                STILL_EXPORTED.append(view)  # CPython's collector crashes on one that is
                raise
            assert memory[: len(CANARY)] == memory[-len(CANARY) :] == CANARY
            self.world.memory.append((memory, bytes(memory)))


@pytest.mark.parametrize("block", range(TESTS))
async def test_random_mixes(block: int) -> None:
    """Whatever the kernel does, every await ends, no byte is lost, doubled or misplaced, no buffer goes astray."""
    for seed in seeds(block):
        world = World(seed)
        try:
            with world.kernel.running():
                await world.play()
        except BaseException as error:
            error.add_note(f"AIOURING_SEED={seed} replays this")
            raise
