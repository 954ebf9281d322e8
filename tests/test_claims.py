"""Tests that a socket has one owner: what a transport was made of is refused, and a second receive however it is named.

H10 and H11: see also test_verbs.py, for what a transport shows of its socket.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import settle

from aiouring import AsyncRing, BufferRing, Connection, ResourceBusyError
from aiouring._claims import check_free, known

Pair = tuple[socket.socket, socket.socket]


def uses_of(ring: AsyncRing, group: BufferRing, sock: socket.socket) -> dict[str, Callable[[], object]]:
    """What can be done with a socket."""
    return {
        "recv": partial(ring.recv, sock, group),
        "recv_into": partial(ring.recv_into, sock, bytearray(8)),
        "recvmsg": partial(ring.recvmsg, sock, [bytearray(8)]),
        "recvfrom": partial(ring.recvfrom, sock, 8),
        "read": partial(ring.read, sock, bytearray(8)),
        "read_provided": partial(ring.read_provided, sock, group),
        "recv_multishot": partial(ring.recv_multishot, sock, group),
        "recvmsg_multishot": partial(ring.recvmsg_multishot, sock, group),
        "read_multishot": partial(ring.read_multishot, sock, group),
        "send": partial(ring.send, sock, b"x"),
        "send_all": partial(ring.send_all, sock, b"x"),
        "send_zc": partial(ring.send_zc, sock, b"x"),
        "sendmsg": partial(ring.sendmsg, sock, [b"x"]),
        "write": partial(ring.write, sock, b"x"),
        "poll": partial(ring.poll, sock),
        "shutdown": partial(ring.shutdown, sock, socket.SHUT_WR),
        "close": partial(ring.close, sock),
        "Connection": partial(Connection, ring, sock, group),
    }


#: What asks the loop each time.
STANDING = ("recv_multishot", "recvmsg_multishot", "read_multishot", "Connection")


async def use(it: Callable[[], object]) -> object:
    """Do it."""
    found = it()
    return await found if asyncio.iscoroutine(found) else found


async def test_h10_a_socket_that_was_given_to_a_transport(ring: AsyncRing, pair: Pair) -> None:
    """Every verb refuses the socket that a transport of the loop was made of, and the transport has all its bytes."""
    group = ring.register_buffer_ring(count=4, size=256)
    given, peer = pair
    reader, writer = await asyncio.open_connection(sock=given)
    before = ring.statistics().submitted
    for name, it in uses_of(ring, group, given).items():
        with pytest.raises(ResourceBusyError, match="belongs to a transport of the event loop"):
            await use(it)
            pytest.fail(f"{name} was not refused")
    assert ring.statistics().submitted == before
    peer.send(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


async def test_h10_datagrams(ring: AsyncRing) -> None:
    """The socket of a datagram endpoint is refused, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
        with pytest.raises(ResourceBusyError, match="belongs to a transport of the event loop"):
            await ring.recvfrom(sock, 8)
        with pytest.raises(ResourceBusyError, match="belongs to a transport of the event loop"):
            await ring.sendto(sock, b"x", sock.getsockname())
        transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_h10_given_away_after_its_first_use(ring: AsyncRing, pair: Pair) -> None:
    """A socket that asyncio was given later is found by whatever would keep a receive armed on it."""
    group = ring.register_buffer_ring(count=4, size=256)
    given, peer = pair
    peer.send(b"ours")
    assert await ring.recv_into(given, bytearray(4)) == 4
    reader, writer = await asyncio.open_connection(sock=given)
    uses = uses_of(ring, group, given)
    for name in STANDING:
        with pytest.raises(ResourceBusyError, match="belongs to a transport of the event loop"):
            await use(uses[name])
    peer.send(b"theirs")
    assert await reader.readexactly(6) == b"theirs"
    writer.close()
    await writer.wait_closed()


async def test_asking_does_no_harm(ring: AsyncRing, pair: Pair) -> None:
    """The callbacks that a program has on a socket of its own stay, and work."""
    loop, (left, right) = asyncio.get_running_loop(), pair
    called: list[str] = []
    loop.add_reader(left, called.append, "reader")
    loop.add_writer(left, called.append, "writer")
    known.pop(left.fileno(), None)
    await ring.send(left, b"x")
    check_free(left.fileno(), left)
    right.send(b"x")
    while {"reader", "writer"} - set(called):
        await asyncio.sleep(0)
    for remove in (loop.remove_reader, loop.remove_writer):
        assert remove(left) in (True, None)  # uvloop's says nothing
    assert left.recv(10) == b"x"


def test_other_loops_are_not_asked(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that does not look numbers up as asyncio's and uvloop's do would remove its caller's callback."""

    class Loop:
        def remove_reader(self, number: int) -> None:
            raise AssertionError(f"the callback of {number} was removed")

    monkeypatch.setattr("asyncio.get_running_loop", Loop)
    check_free(pair[0].fileno(), pair[0])


async def test_looked_at_once(ring: AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is asked about at its first use, and the next one with its number at its own."""
    asked: list[object] = []
    monkeypatch.setattr("aiouring._claims.check_free", lambda number, file: asked.append(file))
    left, _ = pair
    for sock in pair:
        known.pop(sock.fileno(), None)
    for _ in range(3):
        await ring.send(left, b"x")
    assert asked == [left]
    asked.clear()
    number = left.fileno()
    left.close()
    another, peer = socket.socketpair()
    assert another.fileno() == number
    with another, peer:
        await ring.send(another, b"x")
        assert asked == [another]
        asked.clear()


# ---- H11: two receives at once -----------------------------------------------------------------


def receives(ring: AsyncRing, group: BufferRing, sock: Any) -> list[Callable[[], object]]:
    """What receives from a file."""
    return [
        partial(ring.recv, sock, group),
        partial(ring.recv_into, sock, bytearray(8)),
        partial(ring.recvmsg, sock, [bytearray(8)]),
        partial(ring.recvmsg, sock, group),
        partial(ring.recvfrom, sock, 8),
        partial(ring.recv_multishot, sock, group),
        partial(ring.recvmsg_multishot, sock, group),
    ]


NAMES: dict[str, Callable[[socket.socket], Any]] = {
    "object": lambda sock: sock,
    "number": lambda sock: sock.fileno(),
}


@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", NAMES)
async def test_h11_a_second_receive_is_refused(ring: AsyncRing, pair: Pair, first: str, second: str) -> None:
    """While one receives, another is refused, whichever of them names the socket by its number."""
    group = ring.register_buffer_ring(count=4, size=256)
    left, right = pair
    for receive in receives(ring, group, NAMES[first](left)):
        found: Any = receive()
        waiting = asyncio.ensure_future(found if asyncio.iscoroutine(found) else anext(found))
        await settle(ring)
        for other in receives(ring, group, NAMES[second](left)):
            with pytest.raises(ResourceBusyError, match="another task is already receiving"):
                await use(other)
        with pytest.raises(ResourceBusyError, match="is receiving from"):
            Connection(ring, left, group)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not asyncio.iscoroutine(found):
            await found.aclose()
    assert not ring._receiving
    right.send(b"all")
    memory = bytearray(8)
    assert await ring.recv_into(left, memory) == 3
    assert memory[:3] == b"all"


@pytest.mark.parametrize("name", NAMES)
async def test_h11_a_receive_behind_a_stream_that_is_being_left(ring: AsyncRing, pair: Pair, name: str) -> None:
    """It waits for the stream's end, whichever of them names the socket by its number, and has what was not taken."""
    group = ring.register_buffer_ring(count=4, size=256)
    left, right = pair
    other = next(each for each in NAMES if each != name)
    stream = ring.recv_multishot(NAMES[name](left), group)
    await settle(ring)
    right.send(b"kept")
    closing = asyncio.ensure_future(stream.aclose())
    await asyncio.sleep(0)
    with await ring.recv(NAMES[other](left), group) as chunk:
        assert bytes(chunk.view) == b"kept"
    await closing


async def test_h1_a_number_that_another_socket_has_by_now(ring: AsyncRing, pair: Pair) -> None:
    """A receive that goes on after its socket was closed is no hindrance to the socket which has the number now."""
    group = ring.register_buffer_ring(count=4, size=256)
    old, peer = pair
    number = old.fileno()
    gone = asyncio.ensure_future(ring.recv_into(old, bytearray(8)))
    await settle(ring)
    old.close()
    new, right = socket.socketpair()
    assert new.fileno() == number
    with new, right:
        receiving = asyncio.ensure_future(ring.recv(new, group))
        await settle(ring)
        with pytest.raises(ResourceBusyError):
            await ring.recv_into(new, bytearray(8))
        with pytest.raises(ResourceBusyError):
            await ring.recv_into(number, bytearray(8))
        right.send(b"new")
        with await receiving as chunk:
            assert bytes(chunk.view) == b"new"
        peer.send(b"old")
        assert await gone == 3
        assert not ring._receiving


async def test_h11_a_second_receive_where_the_number_was_another_sockets(ring: AsyncRing, pair: Pair) -> None:
    """It is refused as well, also when the receive that went on after the other socket was closed has ended."""
    group = ring.register_buffer_ring(count=4, size=256)
    old, peer = pair
    gone = asyncio.ensure_future(ring.recv_into(old, bytearray(8)))
    await settle(ring)
    number = old.fileno()
    old.close()
    new, right = socket.socketpair()
    assert new.fileno() == number
    with new, right:
        receiving = asyncio.ensure_future(ring.recv(new, group))
        await settle(ring)
        peer.send(b"old")
        assert await gone == 3
        for other in receives(ring, group, new):
            with pytest.raises(ResourceBusyError, match="another task is already receiving"):
                async with asyncio.timeout(2):
                    await use(other)
        right.send(b"new")
        with await receiving as chunk:
            assert bytes(chunk.view) == b"new"
        assert not ring._receiving
