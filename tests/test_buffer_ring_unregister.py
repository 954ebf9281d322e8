"""Tests of a BufferRing that is refused, or goes away while it is in use."""

import asyncio
import socket
from typing import Any, Literal

import pytest
from conftest import RingFactory, open_files

import aiouring
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]


# ---- D11: a group that goes away ---------------------------------------------------------------


ON_EMPTY: tuple[Literal["wait"], Literal["raise"]] = ("wait", "raise")


async def test_d11_unregister_with_receives_armed(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A receive in flight is told; data that comes afterwards is received with another group."""
    for on_empty in ON_EMPTY:
        group = ring.register_buffer_ring(count=2, size=64, on_empty=on_empty)
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        await ring.nop()
        group.unregister()
        with pytest.raises(aiouring.RingClosedError, match="buffer ring 0 was unregistered"):
            await task
        pair[1].send(b"data")
        with ring.register_buffer_ring(count=2, size=64) as another:
            with await ring.recv(pair[0], another) as chunk:
                assert bytes(chunk.view) == b"data"


@pytest.mark.parametrize("on_empty", ["wait", "raise"])
async def test_d11_unregister_with_receives_queued(
    ring: aiouring.AsyncRing, pair: Pair, on_empty: Literal["wait", "raise"]
) -> None:
    """So is a receive that has not been submitted yet: the kernel then says that there is no buffer."""
    group = ring.register_buffer_ring(count=2, size=64, on_empty=on_empty)
    task = asyncio.create_task(ring.recv(pair[0], group))
    await asyncio.sleep(0)
    group.unregister()
    pair[1].send(b"data")
    with pytest.raises(aiouring.RingClosedError):
        await task
    with ring.register_buffer_ring(count=2, size=64) as another:
        with await ring.recv(pair[0], another) as chunk:
            assert bytes(chunk.view) == b"data"


async def test_d11_unregister_with_receivers_in_line(ring: aiouring.AsyncRing) -> None:
    """Those in line are told; what is lent stays good; the data stays in the sockets."""
    pairs = [socket.socketpair() for _ in range(4)]
    group = ring.register_buffer_ring(count=1, size=64)
    for pair in pairs:
        pair[1].send(b"data")
    held = await ring.recv(pairs[0][0], group)
    tasks = [asyncio.create_task(ring.recv(pair[0], group)) for pair in pairs[1:]]
    while group.statistics().waiting < 3:
        await asyncio.sleep(0)
    group.unregister()
    group.unregister()
    for task in tasks:
        with pytest.raises(aiouring.RingClosedError, match="buffer ring 0 was unregistered"):
            await task
    advances = group.statistics().advances
    assert bytes(held.view) == b"data"
    held.release()
    with ring.register_buffer_ring(count=2, size=64) as another:
        for pair in pairs[1:]:
            with await ring.recv(pair[0], another) as chunk:
                assert bytes(chunk.view) == b"data"
    assert group.statistics().advances == advances
    with pytest.raises(aiouring.RingClosedError):
        await ring.recv(pairs[0][0], group)
    for pair in pairs:
        pair[0].close()
        pair[1].close()


async def test_d11_number_is_not_reused_while_receives_are_in_flight(pair: Pair) -> None:
    """A new group never serves a receive that was armed for the old one."""
    async with aiouring.AsyncRing(task_run="coop") as ring:
        group = ring.register_buffer_ring(count=2, size=64)
        task = asyncio.create_task(ring.recv(pair[0], group))
        await ring.nop()
        group.unregister()
        with ring.register_buffer_ring(count=2, size=64) as another:
            pair[1].send(b"data")
            await asyncio.wait([task])
            if task.exception() is None:
                with task.result() as chunk:
                    assert bytes(chunk.view) == b"data"
            else:
                with await ring.recv(pair[0], another) as chunk:
                    assert bytes(chunk.view) == b"data"
            await ring.nop()
            assert (another.raw.tail - another.head()) % 65536 == 2, "a buffer of the new group is gone"


async def test_d11_close_with_a_line(new_ring: RingFactory, pair: Pair) -> None:
    """Closing the ring tells those in line and those in flight."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=1, size=64)
    pair[1].send(b"data")
    with await ring.recv(pair[0], group):
        task = asyncio.create_task(ring.recv(pair[0], group))
        while not group.statistics().waiting:
            await asyncio.sleep(0)
        await ring.aclose()
        with pytest.raises(aiouring.RingClosedError):
            await task
        assert not group.registered
    with pytest.raises(aiouring.RingClosedError):
        await ring.recv(pair[0], group)


# ---- D12: what the kernel would refuse ---------------------------------------------------------

SIZES: list[tuple[Any, Any, Any, type[Exception], str]] = [
    (0, 64, "wait", ValueError, "count=0 is outside 1 to 32768"),
    (-2, 64, "wait", ValueError, "count=-2 is outside 1 to 32768"),
    (3, 64, "wait", ValueError, "count=3 is not a power of two"),
    (32767, 64, "wait", ValueError, "count=32767 is not a power of two"),
    (65536, 64, "wait", ValueError, "count=65536 is outside 1 to 32768"),
    (1 << 64, 64, "wait", ValueError, "count=18446744073709551616 is outside 1 to 32768"),
    (2, 0, "wait", ValueError, "size=0 is outside 1 to 1073741824"),
    (2, -1, "wait", ValueError, "size=-1 is outside 1 to 1073741824"),
    (2, (1 << 30) + 1, "wait", ValueError, "size=1073741825 is outside 1 to 1073741824"),
    ("2", 64, "wait", TypeError, "count must be an int, not str"),
    (2.0, 64, "wait", TypeError, "count must be an int, not float"),
    (2, "64", "wait", TypeError, "size must be an int, not str"),
    (2, None, "wait", TypeError, "size must be an int, not NoneType"),
    (2, 64, "ignore", ValueError, "on_empty='ignore' is none of 'wait', 'raise' and 'fallback'"),
]


async def test_d12_sizes(ring: aiouring.AsyncRing, register_calls: list[int]) -> None:
    """Arguments that the kernel would refuse are refused with the rule, before any system call."""
    files = open_files()
    for count, size, on_empty, kind, text in SIZES:
        with pytest.raises(kind, match=text):
            ring.register_buffer_ring(count=count, size=size, on_empty=on_empty)
    assert register_calls == []
    assert open_files() == files
    with ring.register_buffer_ring(count=1, size=1) as group:
        assert register_calls == [lib.AU_REGISTER_PBUF_RING]
        assert group.group_id == 0
