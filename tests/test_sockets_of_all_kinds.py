"""Tests of every verb for sockets on sockets of every kind, named in every way: by object, number, and slot."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import RESTRICTED, RingFactory
from socket_ends import Pair, make_ends

from aiouring import AsyncRing, BufferRing, Connection, Opcode, Restrictions

#: IPv4, IPv6 and unnamed are datagram sockets; Unix is one with a path, and stream one of streams.
KINDS = ["TCP", "TCP6", "IPv4", "IPv6", "Unix", "unnamed", "stream", "seqpacket"]
STREAMS = ("TCP", "TCP6", "stream")
ADDRESSED = ("IPv4", "IPv6", "Unix")
NAMES = ["object", "number", "slot"]

pytestmark = pytest.mark.needs("sparse file tables", "multishot receive", "bind and listen")


@pytest.fixture
async def ring(new_ring: RingFactory) -> AsyncRing:
    """A ring that may read and set options."""
    made: AsyncRing = await new_ring(restrictions=Restrictions.default(Opcode.URING_CMD) if RESTRICTED else None)
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of socket."""
    return str(request.param)


@pytest.fixture
def ends(kind: str, tmp_path: Path) -> Iterator[Pair]:
    """Two connected sockets."""
    if kind == "TCP6":
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener, ExitStack() as stack:
            left = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
            right = stack.enter_context(listener.accept()[0])
            yield left, right
    else:
        yield from make_ends(kind, tmp_path)


class Named:
    """What a verb is given for a socket."""

    def __init__(self, ring: AsyncRing, way: str) -> None:
        self.ring = ring
        self.way = way
        self.table = ring.register_files_sparse(16)
        self.index = 0

    def __call__(self, sock: socket.socket) -> Any:
        if self.way == "object":
            return sock
        if self.way == "number":
            return sock.fileno()
        self.index += 1
        self.table.update(self.index - 1, [sock])
        return self.table[self.index - 1]


@pytest.fixture(params=NAMES)
async def named(ring: AsyncRing, request: pytest.FixtureRequest) -> AsyncIterator[Named]:
    """A way to name sockets."""
    found = Named(ring, request.param)
    yield found
    found.table.unregister()


class Talk:
    """Two ends of one kind: `left` as a verb is given it, and `peer`, which is used by the standard library."""

    def __init__(self, ring: AsyncRing, group: BufferRing, ends: Pair, named: Named) -> None:
        self.ring = ring
        self.group = group
        self.sock, self.peer = ends
        self.peer.settimeout(5)
        self.left = named(self.sock)

    def heard(self) -> bytes:
        """What the peer receives."""
        return self.peer.recv(100)

    async def arrives(self, receiving: Awaitable[Any]) -> Any:
        """The outcome of a receive that was there before its message."""
        task = asyncio.ensure_future(receiving)
        await self.ring.nop()
        self.peer.send(b"hello")
        return await task

    async def first(self, stream: Any) -> bytes:
        """The first chunk of a stream, which is left then."""
        async with stream:
            with await self.arrives(anext(stream)) as chunk:
                return bytes(chunk.view)


async def in_memory(talk: Talk, verb: Callable[[bytearray], Awaitable[int]]) -> bytes:
    """What a verb puts into memory of the caller's."""
    memory = bytearray(100)
    return bytes(memory[: await talk.arrives(verb(memory))])


async def leased(talk: Talk, receiving: Awaitable[Any]) -> bytes:
    """What a verb puts into a lent buffer."""
    with await talk.arrives(receiving) as chunk:
        return bytes(chunk.view)


async def message(talk: Talk) -> bytes:
    """What recvmsg() puts into several buffers."""
    one, two = bytearray(2), bytearray(100)
    count, ancillary, flags, _ = await talk.arrives(talk.ring.recvmsg(talk.left, [one, two]))
    assert (ancillary, flags & ~socket.MSG_EOR) == ([], 0)
    return bytes(one + two)[:count]


async def datagram(talk: Talk) -> bytes:
    """What recvfrom() returns, from whom it is said to be."""
    data, address = await talk.arrives(talk.ring.recvfrom(talk.left, 100))
    if talk.peer.type == socket.SOCK_DGRAM:
        assert (address or None) == (talk.peer.getsockname() or None)
    return bytes(data)


async def event(talk: Talk) -> bytes:
    """What poll() says, and poll_multishot()."""
    assert await talk.arrives(talk.ring.poll(talk.left, select.POLLIN)) == select.POLLIN
    async with talk.ring.poll_multishot(talk.left, select.POLLIN) as stream:
        assert await anext(stream) & select.POLLIN
    return talk.sock.recv(100)


#: What receives b"hello" from the peer.
RECEIVING: dict[str, Callable[[Talk], Awaitable[bytes]]] = {
    "recv": lambda talk: leased(talk, talk.ring.recv(talk.left, talk.group)),
    "recv_into": lambda talk: in_memory(talk, lambda memory: talk.ring.recv_into(talk.left, memory)),
    "read": lambda talk: in_memory(talk, lambda memory: talk.ring.read(talk.left, memory)),
    "read_provided": lambda talk: leased(talk, talk.ring.read_provided(talk.left, talk.group)),
    "recvmsg": message,
    "recvmsg, group": lambda talk: leased(talk, talk.ring.recvmsg(talk.left, talk.group)),
    "recvfrom": datagram,
    "recv_multishot": lambda talk: talk.first(talk.ring.recv_multishot(talk.left, talk.group)),
    "recvmsg_multishot": lambda talk: talk.first(talk.ring.recvmsg_multishot(talk.left, talk.group)),
    "poll": event,
}


async def test_receiving(ring: AsyncRing, ends: Pair, named: Named) -> None:
    """Whatever receives has the peer's message."""
    talk = Talk(ring, ring.register_buffer_ring(count=4, size=256), ends, named)
    for verb, receive in [*RECEIVING.items()] * 2:
        assert await receive(talk) == b"hello", verb
        assert talk.group.statistics().in_use == 0, verb


#: What sends b"hello" to the peer.
SENDING: dict[str, Callable[[Talk], Awaitable[object]]] = {
    "send": lambda talk: talk.ring.send(talk.left, b"hello"),
    "send_all": lambda talk: talk.ring.send_all(talk.left, b"hello"),
    "write": lambda talk: talk.ring.write(talk.left, b"hello"),
    "sendmsg": lambda talk: talk.ring.sendmsg(talk.left, [b"hel", b"lo"]),
    "sendto": lambda talk: talk.ring.sendto(talk.left, b"hello", talk.peer.getsockname()),
    "send_zc": lambda talk: talk.ring.send_zc(talk.left, b"hello"),
    "sendmsg_zc": lambda talk: talk.ring.sendmsg_zc(talk.left, [b"hel", b"lo"]),
    "sendmsg_zc to": lambda talk: talk.ring.sendmsg_zc(talk.left, [b"hello"], talk.peer.getsockname()),
}


async def test_sending(ring: AsyncRing, ends: Pair, named: Named, kind: str) -> None:
    """Whatever sends reaches the peer; where the socket has no such send, the kernel says so."""
    talk = Talk(ring, ring.register_buffer_ring(count=4, size=256), ends, named)
    for verb, send in SENDING.items():
        if verb in ("sendto", "sendmsg_zc to") and kind not in ADDRESSED:
            continue  # it has no address to send to
        if "_zc" in verb and talk.sock.family == socket.AF_UNIX:
            with pytest.raises(OSError, match="no zero-copy send"):
                await send(talk)
        else:
            await send(talk)
            assert talk.heard() == b"hello", verb


async def test_the_end(ring: AsyncRing, ends: Pair, named: Named, kind: str) -> None:
    """shutdown() is the end of the stream for the peer; cancel() ends what waits; close() closes what it is given."""
    talk = Talk(ring, ring.register_buffer_ring(count=4, size=256), ends, named)
    if kind not in ("IPv4", "IPv6", "Unix", "unnamed"):
        await ring.shutdown(talk.left, socket.SHUT_WR)
        assert talk.heard() == b""
    waiting = asyncio.ensure_future(ring.recv(talk.left, talk.group))
    await ring.nop()
    assert await ring.cancel(talk.left) == 1
    with pytest.raises(OSError, match="cancel"):
        await waiting
    waiting = asyncio.ensure_future(ring.recv(talk.left, talk.group))
    await ring.nop()
    await ring.close(talk.left)
    with pytest.raises(OSError, match="cancel"):
        await waiting
    if named.way == "slot":
        assert talk.left.closed
    else:
        assert not Path(f"/proc/self/fd/{ends[0].detach() if named.way == 'number' else ends[0].fileno()}").exists()


@pytest.mark.needs("socket options")
async def test_options(ring: AsyncRing, ends: Pair, named: Named) -> None:
    """Options are set and read by way of the ring."""
    left = named(ends[0])
    await ring.setsockopt(left, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert await ring.getsockopt(left, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert await ring.getsockopt(left, socket.SOL_SOCKET, socket.SO_TYPE) == ends[0].type


LISTENING: dict[str, tuple[int, int, Any]] = {
    "TCP": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
    "TCP by name": (socket.AF_INET, socket.SOCK_STREAM, ("localhost", 0)),
    "TCP6": (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
    "stream": (socket.AF_UNIX, socket.SOCK_STREAM, "listener"),
    "seqpacket": (socket.AF_UNIX, socket.SOCK_SEQPACKET, "listener"),
    "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0aiouring kinds {os.getpid()}"),
}


@pytest.mark.parametrize("kind", LISTENING, indirect=True)
async def test_connections(ring: AsyncRing, named: Named, kind: str, tmp_path: Path) -> None:
    """bind(), listen(), connect(), accept(), accept_multishot() and accept_direct() on listeners of all kinds."""
    family, type_, address = LISTENING[kind]
    if address == "listener":
        address = str(tmp_path / address)
    with socket.socket(family, type_) as listener:
        at = named(listener)
        await ring.bind(at, address)
        await ring.listen(at, 8)
        goal = listener.getsockname()[:2] if family != socket.AF_UNIX else address
        for way in ("accept", "accept_multishot", "accept_direct"):
            with socket.socket(family, type_) as client:
                client.setblocking(False)
                connecting = ring.connect(named(client), goal)
                accepted: Any
                if way == "accept_multishot":
                    async with ring.accept_multishot(at) as stream:
                        _, accepted = await asyncio.gather(connecting, anext(stream))
                else:
                    _, accepted = await asyncio.gather(connecting, getattr(ring, way)(at))
                assert (accepted.family, accepted.type) == (family, type_), way
                await ring.send(accepted, b"hello")
                client.settimeout(5)
                assert client.recv(9) == b"hello"
                await ring.close(accepted)


async def test_the_ring_makes_them(ring: AsyncRing, kind: str, tmp_path: Path) -> None:
    """socket() and socket_direct() make sockets of all kinds, which are bound as others are."""
    family = {"TCP": socket.AF_INET, "IPv4": socket.AF_INET, "TCP6": socket.AF_INET6, "IPv6": socket.AF_INET6}.get(
        kind, socket.AF_UNIX
    )
    types = {"TCP": 1, "TCP6": 1, "stream": 1, "seqpacket": int(socket.SOCK_SEQPACKET)}
    type_ = types.get(kind, int(socket.SOCK_DGRAM))
    with ring.register_files_sparse(4):
        for number, verb in enumerate(("socket", "socket_direct")):
            made: Any = await getattr(ring, verb)(family, type_)
            assert (made.family, made.type) == (family, type_)
            address = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}.get(
                socket.AddressFamily(family), str(tmp_path / f"{number}")
            )
            await ring.bind(made, address)
            await ring.close(made)


async def test_what_cannot_be_named_in_every_way(ring: AsyncRing, tmp_path: Path) -> None:
    """What is no socket, and a slot that was registered by number, have no addresses; the errors say why."""
    group = ring.register_buffer_ring(count=4, size=256)
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    with left, right, ring.register_files([left.fileno(), left]) as table:
        for use in (
            lambda: ring.connect(table[0], "here"),
            lambda: ring.sendto(table[0], b"x", "here"),
            lambda: ring.bind(table[0], "here"),
            lambda: ring.recv_multishot(table[0], group),
            lambda: ring.recvmsg_multishot(table[0], group),
        ):
            with pytest.raises(ValueError, match="registered by number"):
                if asyncio.iscoroutine(found := use()):
                    await found
        for use in (
            lambda: ring.connect(reader, "here"),
            lambda: ring.recv_multishot(reader, group),
            lambda: ring.sendto(reader, b"x", "here"),
        ):
            with pytest.raises(OSError, match="Socket operation on non-socket"):
                if asyncio.iscoroutine(found := use()):
                    await found
        for sock in (left.fileno(), table[1]):
            with pytest.raises(TypeError, match="takes over a socket.socket, not .*: for a descriptor make one"):
                Connection(ring, sock, group)  # type: ignore[arg-type]
        async with Connection(ring, socket.socket(fileno=await ring.fixed_fd_install(table[1])), group) as connection:
            await connection.send(b"hello")
            assert right.recv(9) == b"hello"
    os.close(reader)
    os.close(writer)
