"""Tests of the socket verbs: data, peers that misbehave, and descriptors that are closed under a request."""

import asyncio
import errno
import os
import socket
import struct

import pytest
from conftest import RingFactory

import aiouring
from aiouring import _socket_verbs
from aiouring._uring import lib

Pair = tuple[socket.socket, socket.socket]


def listening(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A listener on a free loopback port."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    listener.listen()
    return listener


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_accept_connect_send_receive(ring: aiouring.AsyncRing, family: socket.AddressFamily) -> None:
    """A connection made, used and closed by the ring alone."""
    with listening(family) as listener:
        client = socket.socket(family)
        address = listener.getsockname()
        server, _ = await asyncio.gather(ring.accept(listener), ring.connect(client, address))
        assert server.getsockname() == client.getpeername()
        assert not server.get_inheritable()
        assert server.getblocking() is False
        assert await ring.send(client, b"question") == 8
        with ring.register_buffer_ring(count=2, size=64) as group, await ring.recv(server, group) as chunk:
            assert bytes(chunk.view) == b"question"
            await ring.send_all(server, chunk)
        memory = bytearray(64)
        assert await ring.recv_into(client, memory) == 8
        await ring.close(client)
        assert await ring.recv_into(server, memory) == 0
        await ring.close(server)
        assert client.fileno() == server.fileno() == -1


async def test_connect_unix_and_names(ring: aiouring.AsyncRing, tmp_path: "os.PathLike[str]") -> None:
    """connect() takes Unix paths, and host names by way of the loop's resolver."""
    path = os.path.join(tmp_path, "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        await ring.connect(client, path)
        (await ring.accept(listener)).close()
    with listening() as listener, socket.socket() as client:
        await ring.connect(client, ("localhost", listener.getsockname()[1]))
        (await ring.accept(listener.fileno())).close()
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_h6_connect_refused(ring: aiouring.AsyncRing) -> None:
    """A refused connection is ConnectionRefusedError."""
    with listening() as listener:
        address = listener.getsockname()
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        await ring.connect(client, address)


async def test_h5_send_all_of_a_lot(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """send_all waits for room until everything is out; the receiver sees the same bytes."""
    left, right = pair
    payload = os.urandom(3_000_001)
    received = bytearray()

    async def receive() -> None:
        with ring.register_buffer_ring(count=8, size=4096) as group:
            while chunk := await ring.recv(right, group):
                with chunk:
                    received.extend(chunk.view)

    async def send() -> None:
        await ring.send_all(left, payload)
        left.shutdown(socket.SHUT_WR)

    await asyncio.gather(receive(), send())
    assert received == payload
    await ring.send_all(right, b"")


async def test_h1_socket_closed_under_a_receive(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """ring.close() ends the receive first: the peer sees the end, and a new socket of that number is safe."""
    left, right = pair
    number = left.fileno()
    task = asyncio.create_task(ring.recv_into(left, memory := bytearray(8)))
    await ring.nop()
    await ring.close(left)
    with pytest.raises(OSError, match="ancel"):
        await task
    assert right.recv(8) == b"", "the peer sees the end at once"
    new, far = socket.socketpair()
    assert number in (new.fileno(), far.fileno())
    far.send(b"new")
    new.send(b"new")
    await ring.nop()
    assert memory == bytes(8)
    assert new.recv(8) == far.recv(8) == b"new"
    new.close()
    far.close()


async def test_h1_plain_close_under_a_receive(ring: aiouring.AsyncRing) -> None:
    """After the user's own close() the receive goes on with the old socket, never with a new one of its number."""
    left, right = socket.socketpair()
    task = asyncio.create_task(ring.recv_into(left, memory := bytearray(8)))
    await ring.nop()
    left.close()
    new, far = socket.socketpair()
    far.send(b"new")
    new.send(b"new")
    await ring.nop()
    assert memory == bytes(8)
    right.send(b"old")
    assert await task == 3
    assert memory[:3] == b"old"
    assert new.recv(8) == far.recv(8) == b"new"
    for s in (right, new, far):
        s.close()


@pytest.mark.parametrize("by", ["object", "number", "detached"])
async def test_h2_queued_request_never_meets_a_reused_descriptor(ring: aiouring.AsyncRing, by: str) -> None:
    """Queued, closed and opened again within one turn of the loop: EBADF, and the new socket is untouched."""
    left, right = socket.socketpair()
    number = left.fileno()
    task = asyncio.create_task(ring.recv_into(number if by == "number" else left, memory := bytearray(8)))
    await asyncio.sleep(0)  # queued; submitted only when this turn of the loop ends
    before = ring.statistics().submitted
    if by == "detached":
        os.close(left.detach())
    else:
        left.close()
    new, far = socket.socketpair()
    assert number in (new.fileno(), far.fileno())
    far.send(b"secret")
    new.send(b"secret")
    assert ring.statistics().submitted == before, "the request must still be queued for this test to mean anything"
    with pytest.raises(OSError) as caught:
        await task
    assert caught.value.errno == errno.EBADF
    assert memory == bytes(8)
    assert new.recv(8) == far.recv(8) == b"secret"
    for s in (right, new, far):
        s.close()


async def test_h2_reused_within_the_turn_by_another_request(ring: aiouring.AsyncRing) -> None:
    """The new owner of the number is served although an older request on it was queued in the same turn."""
    left, right = socket.socketpair()
    number = left.fileno()
    stale = asyncio.create_task(ring.recv_into(left, bytearray(8)))
    await asyncio.sleep(0)
    left.close()
    new, far = socket.socketpair()
    if new.fileno() != number:
        new, far = far, new
    fresh = asyncio.create_task(ring.recv_into(new, memory := bytearray(8)))
    far.send(b"fresh")
    with pytest.raises(OSError, match="descriptor"):
        await stale
    assert await fresh == 5
    assert memory[:5] == b"fresh"
    for s in (right, new, far):
        s.close()


async def test_h3_reset_half_close_shutdown(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A reset is ConnectionResetError, data before it is delivered; half-close and shutdown read as the end."""
    memory = bytearray(64)
    left, right = pair
    right.send(b"last")
    right.shutdown(socket.SHUT_WR)
    assert await ring.recv_into(left, memory) == 4
    assert await ring.recv_into(left, memory) == 0
    assert await ring.send(left, b"still open this way") == 19
    task = asyncio.create_task(ring.recv_into(right, bytearray(4)))
    assert await task == 4
    left.shutdown(socket.SHUT_RDWR)

    with listening() as listener, socket.create_connection(listener.getsockname()) as client:
        server = await ring.accept(listener)
        task = asyncio.create_task(ring.recv_into(server, memory))
        await ring.nop()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            await task
        with pytest.raises(BrokenPipeError):
            await ring.send(server, b"x")
        await ring.close(server)


async def test_h11_two_receives_on_one_socket(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A second receive on a socket is refused while one waits; a receive and a send are not."""
    left, right = pair
    with ring.register_buffer_ring(count=2, size=64) as group:
        first = asyncio.create_task(ring.recv_into(left, memory := bytearray(8)))
        await ring.nop()
        for second in (ring.recv_into(left, bytearray(8)), ring.recv(left, group)):
            with pytest.raises(aiouring.ResourceBusyError, match="receiving"):
                await second
        await ring.send_all(left, b"out")
        right.send(b"in")
        assert await first == 2
        assert memory[:2] == b"in"
        right.send(b"again")
        with await ring.recv(left, group) as chunk:
            assert bytes(chunk.view) == b"again"


async def test_cancel_by_file(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """cancel() ends every request on one file and no other."""
    left, right = pair
    memory = bytearray(8)
    tasks = [asyncio.create_task(ring.recv_into(left, memory)), asyncio.create_task(ring.poll(left, 1))]
    other = asyncio.create_task(ring.recv_into(right, memory))
    await ring.nop()
    assert await ring.cancel(left) == 2
    assert await ring.cancel(left) == 0
    for task in tasks:
        with pytest.raises(OSError, match="ancel"):
            await task
    left.send(b"other")
    assert await other == 5


async def test_h9_eagain_is_polled_away(new_ring: RingFactory, pair: Pair) -> None:
    """Where a kernel answers EAGAIN for a non-blocking socket, the receive polls and tries again."""
    ring = await new_ring()
    left, right = pair
    left.setblocking(False)
    flags: list[int] = []
    original = lib.au_prepare_memory

    def dont_wait(raw: object, user_data: int, opcode: int, *rest: int) -> int:
        """What an old kernel does by itself: MSG_DONTWAIT makes this one answer EAGAIN."""
        *others, op_flags, how = rest
        if opcode == lib.AU_OP_RECV:
            flags.append(op_flags)
            op_flags |= socket.MSG_DONTWAIT
        return original(raw, user_data, opcode, *others, op_flags, how)  # type: ignore[call-arg, arg-type]

    vars(_socket_verbs)["_prepare_memory"] = dont_wait
    try:
        task = asyncio.create_task(ring.recv_into(left, memory := bytearray(8)))
        while len(flags) < 1 or ring.statistics().completed < 1:
            await ring.nop()
        right.send(b"data")
        assert await task == 4
        assert memory[:4] == b"data"
        assert len(flags) == 2, "once refused, once after the poll; no spinning"
    finally:
        vars(_socket_verbs)["_prepare_memory"] = original
