"""Tests of the loop's default ring and group: made once, shared, and closed with the loop."""

import asyncio
import gc
import socket
from collections.abc import Callable

import pytest
import uvloop
from conftest import RingFactory

import aiouring
from aiouring import AsyncRing, Connection, default_group, default_ring
from aiouring._default_ring import ring_and_group

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

Factory = Callable[[], asyncio.AbstractEventLoop]

every_loop = pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])


@every_loop
def test_it_is_closed_with_the_loop(factory: Factory) -> None:
    """The ring is one per loop, and closed when run() ends, with what was left on it; the oracle looks for warnings."""
    rings: list[AsyncRing] = []

    async def main() -> None:
        ring = default_ring()
        assert default_ring() is ring
        await ring.nop()
        ours, theirs = socket.socketpair()
        with theirs:
            async with Connection(ring, ours, default_group()) as connection:
                theirs.send(b"hello")
                with await connection.receive() as chunk:
                    assert bytes(chunk.view) == b"hello"
        assert default_group(ring) is default_group()
        assert default_group().statistics().count == 128
        assert default_group().size == 65536
        rings.append(ring)

    for _ in range(2):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
            assert not rings[-1]._closed
        assert rings[-1]._closed
    assert rings[0] is not rings[1]


@every_loop
def test_tasks_that_use_it_end_first(factory: Factory) -> None:
    """A task that is still waiting when main() ends is cancelled before the ring is closed, and can use it."""
    said = []

    async def waiter() -> None:
        try:
            await default_ring().timeout(1000)
        finally:
            await default_ring().nop()
            said.append("cleaned up")

    async def main() -> "asyncio.Task[None]":
        task = asyncio.ensure_future(waiter())
        await default_ring().nop()
        return task

    with asyncio.Runner(loop_factory=factory) as runner:
        task = runner.run(main())
    assert task.cancelled()
    assert said == ["cleaned up"]


@every_loop
def test_a_loop_that_is_dropped_takes_it_along(factory: Factory) -> None:
    """Without shutdown_asyncgens() there is a warning, and nothing is left open."""

    async def main() -> None:
        await default_ring().nop()

    loop = factory()
    loop.run_until_complete(main())
    loop.close()
    with pytest.warns(ResourceWarning, match="never closed"):
        del loop
        gc.collect()


async def test_one_that_was_closed_is_made_anew() -> None:
    """After aclose() the next call has a new ring, with a group of its own; an unregistered group is replaced."""
    first, group = default_ring(), default_group()
    await first.aclose()
    second = default_ring()
    assert second is not first
    await second.nop()
    assert default_group() is not group
    default_group().unregister()
    assert default_group().registered
    await second.aclose()


def test_it_needs_a_running_loop() -> None:
    """Outside of a loop there is no default."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        default_ring()


async def test_rings_and_groups_that_do_not_belong_together(new_ring: RingFactory) -> None:
    """What the caller left out is filled in; a group of another ring is refused, and so is anything else."""
    ring, other = await new_ring(), await new_ring()
    group = ring.register_buffer_ring(count=4, size=64)
    assert ring_and_group(ring, group) == (ring, group)
    assert ring_and_group(ring, None) == (ring, default_group(ring))
    with pytest.raises(ValueError, match="another ring"):
        ring_and_group(other, group)
    with pytest.raises(TypeError, match="not int"):
        ring_and_group(1, group)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not str"):
        ring_and_group(ring, "group")  # type: ignore[arg-type]
    await other.aclose()
    with pytest.raises(aiouring.RingClosedError):
        ring_and_group(other, None)


async def test_it_is_unavailable_where_rings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What making a ring raises is raised, and nothing is remembered of the try."""

    def blocked() -> AsyncRing:
        raise aiouring.RingUnavailableError(1, "blocked")

    with monkeypatch.context() as patch:
        patch.setattr("aiouring._default_ring.AsyncRing", blocked)
        with pytest.raises(aiouring.RingUnavailableError, match="blocked"):
            default_ring()
    await default_ring().nop()
    await default_ring().aclose()
