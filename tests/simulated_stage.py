"""Owns `Stage`: an AsyncRing on a simulated kernel, for tests that script single outcomes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from conftest import in_flight
from simulated_kernel import Odds, SimulatedKernel

import aiouring
from aiouring._setup import TaskRun

NOTHING_BY_ITSELF = Odds(complete=0.0)


class Stage:
    """A ring on a simulated kernel, and a socket whose peer the test plays."""

    def __init__(self, kernel: SimulatedKernel, ring: aiouring.AsyncRing, sock: socket.socket) -> None:
        self.kernel, self.ring, self.socket = kernel, ring, sock
        self.arrived = kernel.streams[sock.fileno()]

    async def moments(self, count: int = 4) -> None:
        """Let the loop turn, so that what was asked for is submitted and what completed is delivered."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def started(self, verb: Any) -> "asyncio.Task[Any]":
        """A task that has submitted its request."""
        task: asyncio.Task[Any] = asyncio.ensure_future(verb)
        await self.moments()
        return task

    async def end(self, *tasks: "asyncio.Task[Any]", seconds: float = 10.0) -> None:
        """No more trouble: all of `tasks` must end."""
        self.kernel.calm()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not all(task.done() for task in tasks):
            self.kernel.step()
            await asyncio.sleep(0)
            assert loop.time() < until, f"something never ends:\n{in_flight()}\nkernel: {self.kernel.pending}"

    async def received(self, count: int) -> bytes:
        """The next `count` bytes of the socket."""
        found = bytearray()
        while len(found) < count:
            memory = bytearray(count - len(found))
            task = await self.started(self.ring.recv_into(self.socket, memory))
            await self.end(task)
            found += memory[: task.result()]
        return bytes(found)


@asynccontextmanager
async def stage(profile: TaskRun, odds: Odds = NOTHING_BY_ITSELF, **options: Any) -> AsyncIterator[Stage]:
    """A stage whose ring is made and closed here."""
    kernel = SimulatedKernel(Random(5), odds)
    with kernel.running(), socket.socket() as sock:
        async with aiouring.AsyncRing(task_run=profile, **options) as ring:
            yield Stage(kernel, ring, sock)
            kernel.calm()
