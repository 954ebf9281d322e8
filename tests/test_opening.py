"""Tests of open_connection() and open_unix_connection(): every address in turn, options, errors, cancelling."""

import asyncio
import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import workers

import aiouring
from aiouring import AsyncRing, BufferRing, Connection, open_connection, open_unix_connection
from aiouring._opening import AddressInfo

Server = socket.socket


def listening(family: int = socket.AF_INET) -> socket.socket:
    """A TCP listener on a free port of the loopback interface."""
    return socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family)


def unused_port() -> int:
    """A port that nobody listens on."""
    with listening() as listener:
        return int(listener.getsockname()[1])


def resolver(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, tuple[str, int]]) -> None:
    """Let every name have these addresses."""

    async def find(*_: object, family: int, **__: object) -> list[AddressInfo]:
        return [(kind, socket.SOCK_STREAM, 6, "", address) for kind, address in addresses if family in (kind, 0)]

    monkeypatch.setattr("aiouring._opening.find_addresses", find)


async def talk(connection: Connection, listener: socket.socket) -> None:
    """Exchange a few bytes over a new connection, and close both ends."""
    peer, address = listener.accept()
    with peer:
        async with connection:
            assert connection.local_address == address
            await connection.send(b"ping")
            assert peer.recv(4) == b"ping"
            peer.send(b"pong")
            assert await connection.receive_exactly(4) == b"pong"


async def test_a_connection(ring: AsyncRing) -> None:
    """A connection on a ring and group of ours, with Nagle's algorithm off as asyncio has it."""
    group = ring.register_buffer_ring(count=4, size=64)
    with listening() as listener:
        connection = await open_connection(*listener.getsockname(), ring=ring, group=group, max_pending=2)
        with socket.socket(fileno=os.dup(connection._socket.fileno())) as copy:
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await talk(connection, listener)


async def test_on_the_default_ring() -> None:
    """Without a ring the loop's own serves, which closes with the loop."""
    with listening() as listener:
        await talk(await open_connection(*listener.getsockname()), listener)
    await aiouring.default_ring().aclose()


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_unix_connection(ring: AsyncRing, tmp_path: Path, abstract: bool) -> None:
    """A Unix socket by path or abstract name; where nobody listens, the error names it."""
    path = f"\0aiouring-{os.getpid()}" if abstract else tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        with pytest.raises(ConnectionRefusedError if abstract else FileNotFoundError) as caught:
            await open_unix_connection(path, ring=ring)
        assert (str(os.getpid()) if abstract else str(path)) in str(caught.value)
        listener.bind(str(path))
        listener.listen()
        connection = await open_unix_connection(path, ring=ring)
        peer, _ = listener.accept()
        with peer:
            async with connection:
                await connection.send(b"hello")
                assert peer.recv(10) == b"hello"


async def test_names_are_resolved(ring: AsyncRing) -> None:
    """A name goes to the loop's resolver; a service has a name, too."""
    with listening() as listener:
        connection = await open_connection("localhost", listener.getsockname()[1], ring=ring, family=socket.AF_INET)
        await talk(connection, listener)
    with pytest.raises(socket.gaierror):
        await open_connection("127.0.0.1", "no such service", ring=ring)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_addresses_in_turn(ring: AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address that answers is taken."""
    with listening() as listener:
        good = (socket.AF_INET, listener.getsockname())
        resolver(monkeypatch, (socket.AF_INET, ("127.0.0.1", unused_port())), good)
        await talk(await open_connection("somewhere", 1, ring=ring), listener)


async def test_the_error_names_all_addresses(ring: AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no address answers, the error has each of them, and what they have in common."""
    first, second = unused_port(), unused_port()
    addresses = [(socket.AF_INET, ("127.0.0.1", port)) for port in (first, second)]
    resolver(monkeypatch, *addresses)
    with pytest.raises(ConnectionRefusedError) as caught:
        await open_connection("somewhere", 5, ring=ring)
    refused = os.strerror(errno.ECONNREFUSED)
    assert caught.value.strerror == (
        f"cannot connect to 'somewhere' port 5: 127.0.0.1 port {first}: {refused}; 127.0.0.1 port {second}: {refused}"
    )
    resolver(monkeypatch, addresses[0], (socket.AF_INET, ("255.255.255.255", 1)))
    with pytest.raises(OSError, match="255.255.255.255") as other:
        await open_connection("somewhere", 5, ring=ring)
    assert refused in str(other.value)
    assert other.value.errno is None


async def test_local_address(ring: AsyncRing) -> None:
    """The connection comes from where it was told to; what cannot be bound to is an error that says so."""
    with listening() as listener:
        address = listener.getsockname()
        port = unused_port()
        connection = await open_connection(*address, ring=ring, local_addr=("127.0.0.1", port))
        assert connection.local_address == ("127.0.0.1", port)
        await talk(connection, listener)
        with pytest.raises(OSError, match=f"local_addr: 127.0.0.1 port {address[1]}") as caught:
            await open_connection(*address, ring=ring, local_addr=("127.0.0.1", address[1]))
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="no address of that family"):
            await open_connection(*address, ring=ring, local_addr=("::1", 0))


async def test_ipv6(ring: AsyncRing) -> None:
    """IPv6 works, and `family` chooses."""
    try:
        listener = listening(socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        host, port = listener.getsockname()[:2]
        await talk(await open_connection(host, port, ring=ring, family=socket.AF_INET6), listener)
        with pytest.raises(socket.gaierror):
            await open_connection(host, port, ring=ring, family=socket.AF_INET)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_cancelled(ring: AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled attempt closes its socket; the oracle looks for it."""
    with listening() as listener:
        listener.listen(0)
        fillers = [socket.create_connection(listener.getsockname())]
        for _ in range(4):  # the backlog is full when one of these does not connect
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        opening = asyncio.ensure_future(open_connection(*listener.getsockname(), ring=ring))
        while not ring.statistics().in_flight:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        for filler in fillers:
            filler.close()
    assert ring.statistics().in_flight == 0


async def test_a_full_unix_backlog(ring: AsyncRing, tmp_path: Path) -> None:
    """While nobody accepts, the attempt waits in the kernel; it can be cancelled, and goes on when there is room."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        with pytest.raises(BlockingIOError):
            while True:
                filler = stack.enter_context(socket.socket(socket.AF_UNIX))
                filler.setblocking(False)
                filler.connect(path)
        attempts = [asyncio.ensure_future(open_unix_connection(path, ring=ring)) for _ in range(2)]
        while len(workers()) < 2:  # on its way there, the kernel does not find a request that is to be cancelled
            await asyncio.sleep(0)
        attempts[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempts[0]
        assert not attempts[1].done()
        listener.accept()[0].close()
        await (await attempts[1]).aclose()


async def test_what_is_refused(ring: AsyncRing) -> None:
    """Bad arguments are refused by name, and nothing is left open."""
    group: BufferRing = ring.register_buffer_ring(count=4, size=64)
    with pytest.raises(ValueError, match="port=65536"):
        await open_connection("127.0.0.1", 65536, ring=ring)
    with listening() as listener:
        with pytest.raises(ValueError, match="max_pending=0"):
            await open_connection(*listener.getsockname(), ring=ring, group=group, max_pending=0)
    with pytest.raises(TypeError, match="not int"):
        await open_connection("127.0.0.1", 1, ring=5)  # type: ignore[arg-type]
