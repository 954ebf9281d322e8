"""Whatever state a receive is in, each way of ending it ends it: nobody waits for ever, and nothing stays lent."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import RingFactory
from test_transport import Told

import aiouring
from aiouring import AsyncRing, BufferRing, Connection, ProvidedBuffer, Transport

SIZE = 256


@pytest.fixture
def ends() -> Iterator[list[socket.socket]]:
    """Two pairs of connected sockets: one to receive from, its peer; and two that fill a buffer."""
    with ExitStack() as stack:
        yield [stack.enter_context(end) for _ in range(2) for end in socket.socketpair()]


async def settle(ring: AsyncRing) -> None:
    """Give what is in flight its turns."""
    for _ in range(8):
        if not ring._closed:
            await ring.nop()
        await asyncio.sleep(0)


async def make_group(
    ring: AsyncRing, state: str, ends: list[socket.socket], *, incremental: bool
) -> tuple[BufferRing, ProvidedBuffer | None]:
    """A group of one buffer, which is lent where a receive is to find it empty."""
    on_empty: Any = "fallback" if state == "private" else "wait"
    group = ring.register_buffer_ring(count=1, size=SIZE, incremental=incremental, on_empty=on_empty)
    if state not in ("parked", "private"):
        return group, None
    ends[2].send(bytes(SIZE))
    return group, await ring.recv(ends[3], group)


async def until_private(receiving: Any) -> None:
    """A private receive is filled, and was not submitted."""
    while receiving._spare is None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("state", ["armed", "parked", "private", "resting"])
@pytest.mark.parametrize("end", ["unregister", "aclose", "abort", "close", "data"])
async def test_protocols(
    new_ring: RingFactory, ends: list[socket.socket], state: str, end: str, *, incremental: bool
) -> None:
    """A protocol is told of its connection's end, or gets its data, and holds nothing afterwards."""
    ring = await new_ring()
    group, held = await make_group(ring, state, ends, incremental=incremental)
    sock, peer = socket.socket(fileno=ends[0].detach()), ends[1]
    connection = Connection(ring, sock, group)
    protocol = Told()
    receiving: Any = connection._receiving
    if state == "private":
        await until_private(receiving)
    transport = Transport(connection, protocol)
    if state != "private":
        await settle(ring)
    if state == "resting":
        transport.pause_reading()
    if state in ("parked", "resting"):
        peer.send(b"data")
        await settle(ring)
    found = receiving._place is not None, receiving.resting, receiving.armed
    assert found == (state == "parked", state == "resting", state in ("armed", "private"))
    if end == "unregister":
        group.unregister()
        transport.resume_reading()  # a resting one hears of it when it goes on
    elif end == "aclose":
        await ring.aclose()
    elif end == "data":
        peer.send(b"more")
        if held is not None and state == "parked":
            held.release()
        await settle(ring)
        transport.resume_reading()
        await settle(ring)
        assert protocol.notes == [("made",), ("data", (b"data" if state in ("parked", "resting") else b"") + b"more")]
        transport.close()
    else:
        getattr(transport, end)()
    await protocol.lost
    await connection.wait_closed()
    if held is not None and not held.ended:
        held.release()
    await settle(ring)
    assert group.statistics().in_use == group.statistics().private == 0


@pytest.mark.parametrize("state", ["armed", "parked", "private"])
@pytest.mark.parametrize("end", ["unregister", "aclose", "cancel", "close", "stream"])
@pytest.mark.parametrize("kind", ["recv", "parts", "bundle", "messages"])
async def test_streams(new_ring: RingFactory, ends: list[socket.socket], kind: str, state: str, end: str) -> None:
    """Whoever reads from a stream hears how it ended."""
    ring = await new_ring()
    group, held = await make_group(ring, state, ends, incremental=kind == "parts")
    stream: aiouring.ReceiveStream[Any]
    if kind == "messages":
        stream = ring.recvmsg_multishot(ends[0], group)
    else:
        stream = ring.recv_multishot(ends[0], group, bundle=kind == "bundle")
    waiting = asyncio.ensure_future(anext(stream))
    if state == "private" and kind != "messages":  # those wait instead
        await until_private(stream._receiving)
    else:
        await settle(ring)
    if end == "unregister":
        group.unregister()
    elif end == "aclose":
        await ring.aclose()
    elif end == "cancel":
        assert await ring.cancel(ends[0]) == 1
    elif end == "close":
        await ring.close(ends[0])
    else:
        await stream.aclose()
    with pytest.raises(aiouring.RingClosedError if end in ("unregister", "aclose") else OSError, match="cl|canc|unreg"):
        await waiting
    if not ring._closed:
        await stream.aclose()
    if held is not None:
        held.release()
    await settle(ring)
    assert group.statistics().in_use == group.statistics().private == 0
