"""Tests of a BufferRing that grows: by hand and by itself, with receivers in line and in flight, and what it costs."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings

import aiouring
from aiouring._shortage import GROWTH_STEP, OnEmpty

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Twelve pairs of connected stream sockets: receiving, sending."""
    made = [socket.socketpair() for _ in range(12)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def turns(ring: aiouring.AsyncRing, count: int = 6) -> None:
    """Give what is in flight its turns."""
    for _ in range(count):
        await ring.nop()


async def check_conserved(ring: aiouring.AsyncRing, group: aiouring.BufferRing) -> None:
    """With nothing lent and nothing in flight every buffer is with the kernel, and the kernel agrees."""
    await ring.nop()
    found = group.statistics()
    assert (found.with_kernel, found.in_use, found.waiting) == (found.count, 0, 0)
    assert group.available() == found.count == len(group)


# ---- by hand -----------------------------------------------------------------------------------


async def test_grow_by_hand(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """`grow()` adds buffers at once, to the last, and says how far it may go."""
    group = ring.register_buffer_ring(count=3, size=16, max_count=8)
    assert (len(group), group.max_count) == (3, 8)
    await turns(ring)
    assert group.available() == 3
    group.grow(4)
    assert len(group) == 7
    await turns(ring)
    assert group.available() == 7
    for wrong in (0, 2, -1):
        with pytest.raises(ValueError, match=r"max_count=8|count="):
            group.grow(wrong)
    group.grow(1)
    chunks = []
    for number in range(8):
        pairs[number][1].send(b"%d" % number)
        chunks.append(await ring.recv(pairs[number][0], group))
    assert sorted(chunk.number for chunk in chunks) == list(range(8))
    assert [bytes(chunk.view) for chunk in chunks] == [b"%d" % number for number in range(8)]
    found = group.statistics()
    assert (found.count, found.max_count, found.growths, found.in_use, found.high_water) == (8, 8, 2, 8, 8)
    for chunk in chunks:
        chunk.release()
    await check_conserved(ring, group)


async def test_grow_after_unregister(ring: aiouring.AsyncRing) -> None:
    """A group that is gone does not grow."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=2)
    group.unregister()
    with pytest.raises(aiouring.RingClosedError):
        group.grow(1)
    assert len(group) == 1


SIZES = [
    (3, None, "count=3 is not a power of two"),
    (3, 6, "max_count=6 is not a power of two"),
    (9, 8, "count=9 is outside"),
    (0, 8, "count=0 is outside"),
    (1, 65536, "max_count=65536 is outside"),
]


@pytest.mark.parametrize(("count", "max_count", "text"), SIZES)
async def test_wrong_sizes(ring: aiouring.AsyncRing, count: int, max_count: int | None, text: str) -> None:
    """What the kernel's ring cannot be is refused with the numbers."""
    with pytest.raises(ValueError, match=text):
        ring.register_buffer_ring(count=count, size=16, max_count=max_count)


def test_grow_a_ring_by_hand() -> None:
    """On a `Ring` nothing grows by itself; what was added and not advanced over stays behind the new ones."""
    left, right = socket.socketpair()
    with left, right, aiouring.Ring() as ring, ring.register_buffer_ring(count=1, size=4, max_count=4) as group:
        right.send(b"aaaabbbbcccc")

        def receive() -> aiouring.Completion:
            ring.prepare_select(aiouring.Opcode.RECV, group, user_data=1, fd=left.fileno())
            return ring.wait()[0]

        completion = receive()
        chunk = group.take(completion.flags, completion.result)
        group.add(chunk)
        assert receive().result < 0
        group.grow(2)
        chunks = []
        for _ in range(2):
            completion = receive()
            chunks.append(group.take(completion.flags, completion.result))
        assert [(chunk.number, bytes(chunk.view)) for chunk in chunks] == [(1, b"bbbb"), (2, b"cccc")]
        assert receive().result < 0
        group.advance(1)
        assert (group.available(), group.statistics().added) == (1, 0)
        for chunk in chunks:
            chunk.release()


# ---- by itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on_empty", ["wait", "raise", "fallback"])
async def test_d5_grows_before_anything_else(ring: aiouring.AsyncRing, pairs: list[Pair], on_empty: OnEmpty) -> None:
    """Whatever the policy, a receiver that finds the group empty gets a new buffer, until there are max_count."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=8, on_empty=on_empty)
    chunks = []
    for number in range(8):
        pairs[number][1].send(b"data")
        async with asyncio.timeout(5):
            chunks.append(await ring.recv(pairs[number][0], group))
    found = group.statistics()
    assert (found.count, found.in_use, found.growths, found.fallbacks) == (8, 8, 3, 0)
    pairs[8][1].send(b"data")
    last = asyncio.create_task(ring.recv(pairs[8][0], group))
    await turns(ring)
    if on_empty == "wait":
        assert group.statistics().waiting == 1
        chunks.pop().release()
        chunks.append(await last)
    elif on_empty == "raise":
        with pytest.raises(aiouring.BuffersExhaustedError, match="all 8 buffers"):
            await last
    else:
        assert (await last).buffer_id is None
        last.result().release()
    for chunk in chunks:
        chunk.release()
    await check_conserved(ring, group)


async def test_grows_to_what_is_held_at_once(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Many receivers that find it empty in one turn make it grow as far as they need, not once for each of them."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=1024)
    for pair in pairs:
        pair[1].send(b"data")
    chunks = await asyncio.gather(*(ring.recv(pair[0], group) for pair in pairs))
    assert 12 <= len(group) <= 16
    for chunk in chunks:
        chunk.release()
    before = group.statistics().growths
    for _ in range(50):
        for pair in pairs:
            pair[1].send(b"more")
        for chunk in await asyncio.gather(*(ring.recv(pair[0], group) for pair in pairs)):
            chunk.release()
    assert group.statistics().growths == before
    await check_conserved(ring, group)


async def test_idle_receivers_do_not_make_it_grow(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Receivers without data take no buffer, and ask for none."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=64)
    streams = [ring.recv_multishot(pair[0], group) for pair in pairs]
    for _ in range(20):
        for number, pair in enumerate(pairs):
            pair[1].send(b"data")
            (await anext(streams[number])).release()
    assert len(group) <= 2
    for stream in streams:
        await stream.aclose()


@pytest.mark.parametrize(("refused", "expected"), [(0, 8), (1, 8), (2, 16), (12, 16)])
async def test_grows_where_many_are_refused(ring: aiouring.AsyncRing, refused: int, expected: int) -> None:
    """More than one refusal, or one for sixteen buffers, makes it grow, although there are buffers again by then."""
    group = ring.register_buffer_ring(count=8, size=16, max_count=64)
    places = [group.join_line(group.draw_ticket(), None, "wait") for _ in range(12)]
    group.enobufs += refused
    group.serve()
    assert [place.done() for place in places] == [True] * 8 + [False] * 4
    assert len(group) == expected
    group.serve()  # nobody was refused since: those in line are served with the new ones
    assert len(group) == expected
    for place in places:
        group.leave_line(place)


async def test_streams_and_growth(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Streams whose chunks are all held go on while the group may grow, with every byte in order."""
    group = ring.register_buffer_ring(count=1, size=4, max_count=128)
    streams = [ring.recv_multishot(pair[0], group, max_pending=2) for pair in pairs]
    held: list[aiouring.ProvidedBuffer] = []
    for number, pair in enumerate(pairs):
        pair[1].send(bytes(range(number, number + 40)))
    for number, stream in enumerate(streams):
        got = b""
        while len(got) < 40:
            async with asyncio.timeout(5):
                held.append(await anext(stream))
            got += bytes(held[-1].view)
        assert got == bytes(range(number, number + 40))
    assert group.statistics().in_use >= len(held) == 120
    for chunk in held:
        chunk.release()
    for stream in streams:
        await stream.aclose()
    await check_conserved(ring, group)


async def test_a_buffer_that_is_on_its_way_back_is_enough(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A group does not grow for one in line whose buffer has been returned, and is not published yet."""
    group = ring.register_buffer_ring(count=1, size=16, max_count=4)
    pairs[0][1].send(b"data")
    held = await ring.recv(pairs[0][0], group)
    turn = group.join_line(group.draw_ticket(), None, "wait")
    held.release()
    group.serve()
    assert len(group) == 1
    await turn


async def test_steps_are_bounded(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """A large group does not double: making buffers would keep the loop."""
    group = ring.register_buffer_ring(count=1, size=1, max_count=4096)
    group.grow(1023)
    pairs[0][1].send(bytes(1025))
    chunks = [await ring.recv(pairs[0][0], group) for _ in range(1025)]
    assert len(group) == 1024 + GROWTH_STEP
    for chunk in chunks:
        chunk.release()
    await check_conserved(ring, group)


# ---- memory ------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_room_costs_no_memory(ring: aiouring.AsyncRing, pairs: list[Pair]) -> None:
    """Room for 256 MiB costs next to nothing until data is written there."""
    before = resident()
    group = ring.register_buffer_ring(count=4, size=1 << 16, max_count=4096)
    assert resident() - before < 1 << 20
    group.grow(4092)
    await turns(ring)
    assert resident() - before < 16 << 20  # what 4092 buffers are to Python
    grown = resident()
    chunks = []
    for _ in range(64):
        pairs[0][1].send(b"x" * (1 << 16))
        chunks.append(await ring.recv(pairs[0][0], group))
    received = sum(map(len, chunks))
    assert resident() - grown < received + (4 << 20)
    for chunk in chunks:
        chunk.release()


# ---- whatever the order ------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 60)),
        st.tuples(st.just("receive"), st.integers(0, 3), st.sampled_from([None, "wait", "raise", "fallback"])),
        st.tuples(st.just("cancel"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("grow"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("both"), st.integers(0, 3), st.integers(1, 6)),
        st.tuples(st.just("turns"), st.integers(1, 4), st.just(0)),
    ),
    min_size=10,
    max_size=60,
)


class World:
    """Four streams on one group that grows and falls back; what was sent, received, and is held."""

    def __init__(self, ring: aiouring.AsyncRing, group: aiouring.BufferRing) -> None:
        self.ring = ring
        self.group = group
        self.pairs = [socket.socketpair() for _ in range(4)]
        self.sent = [b""] * 4
        self.got = [b""] * 4
        self.held: list[aiouring.ProvidedBuffer] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def receive(self, number: int, on_empty: OnEmpty | None) -> None:
        """One receive, whose chunk is held."""
        try:
            chunk = await self.ring.recv(self.pairs[number][0], self.group, on_empty=on_empty)
        except aiouring.BuffersExhaustedError:
            assert len(self.group) == self.group.max_count
            return
        self.got[number] += bytes(chunk.view)
        self.held.append(chunk)

    async def step(self, what: str, number: int, how: object) -> None:
        """Something happens."""
        task = self.tasks.get(number)
        if what == "send":
            data = bytes(len(self.sent[number]) + at & 255 for at in range(int(str(how))))
            self.sent[number] += data
            self.pairs[number][1].send(data)
        elif what == "receive" and (task is None or task.done()):
            self.tasks[number] = asyncio.create_task(self.receive(number, how))  # type: ignore[arg-type]
        elif what == "both":
            for _ in range(int(str(how))):
                await self.step("send", number, 8)
                await self.step("receive", number, None)
                await turns(self.ring)
        elif what == "cancel" and task is not None:
            task.cancel()
        elif what == "release" and self.held:
            self.held.pop(number % len(self.held)).release()
        elif what == "grow" and len(self.group) + number <= self.group.max_count:
            self.group.grow(number)
        elif what == "turns":
            await turns(self.ring, number)
        await asyncio.sleep(0)
        self.check()

    def check(self) -> None:
        """The books agree with what is held."""
        found = self.group.statistics()
        assert self.group.incremental or found.with_kernel + found.in_use == found.count
        assert found.count <= found.max_count
        assert found.private <= found.count
        assert found.parts >= sum(chunk.buffer_id is not None for chunk in self.held)

    async def finish(self) -> None:
        """With everything released, everything arrives."""
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        for number in range(4):
            while len(self.got[number]) < len(self.sent[number]):
                while self.held:
                    self.held.pop().release()
                await self.receive(number, "wait")
        while self.held:
            self.held.pop().release()
        assert self.got == self.sent
        await check_conserved(self.ring, self.group)
        assert self.group.statistics().private == 0
        for pair in self.pairs:
            for sock in pair:
                sock.close()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "incremental", [False, pytest.param(True, marks=pytest.mark.needs("incremental buffer rings"))]
)
def test_model_of_growth_and_fallback(
    profile: aiouring._setup.TaskRun, loop_factory: Callable[[], asyncio.AbstractEventLoop], incremental: bool
) -> None:
    """Whatever is sent, received, cancelled, released and grown in any order, no buffer and no byte is lost."""

    reached = dict.fromkeys(("growths", "fallbacks", "starved"), False)

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        steps=STEPS,
        on_empty=st.sampled_from(["wait", "raise", "fallback"]),
        count=st.integers(1, 4),
        room=st.sampled_from([4, 8]),
    )
    def run(steps: list[tuple[str, int, object]], on_empty: OnEmpty, count: int, room: int) -> None:
        async def main() -> None:
            async with aiouring.AsyncRing(task_run=profile) as ring:
                world = World(
                    ring,
                    ring.register_buffer_ring(
                        count=count, size=8, on_empty=on_empty, max_count=room, incremental=incremental
                    ),
                )
                for step in steps:
                    await world.step(*step)
                async with asyncio.timeout(20):
                    await world.finish()
                found = world.group.statistics()
                reached["growths"] |= found.growths > 0
                reached["fallbacks"] |= found.fallbacks > 0
                reached["starved"] |= found.starved > found.growths

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    run()
    assert all(reached.values()), reached
