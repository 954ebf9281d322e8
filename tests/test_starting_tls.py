"""Tests of how TLS starts: handshakes that fail, stall or are left, names and certificates, and start_tls()."""

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from conftest import RingFactory, echo, open_files
from tls_certificates import AUTHORITY, NAME, client_context, server_context

import aiouring
from aiouring import (
    AsyncRing,
    BufferRing,
    Connection,
    Server,
    StreamReader,
    StreamWriter,
    open_connection,
    open_unix_connection,
    start_server,
)

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(ring: AsyncRing, handler: Any = echo, **options: Any) -> AsyncIterator[Server]:
    """A TLS server."""
    options.setdefault("ssl", server_context())
    async with await start_server(handler, HOST, 0, ring=ring, **options) as server:
        yield server


def address(server: Server) -> tuple[str, int]:
    """Where it listens."""
    found: tuple[str, int] = server.sockets[0].getsockname()
    return found


async def check(ring: AsyncRing, server: Server) -> None:
    """A good client is served."""
    async with await open_connection(*address(server), ring=ring, ssl=client_context()) as connection:
        await connection.send(b"hello")
        assert await connection.receive_exactly(5) == b"hello"


@pytest_asyncio.fixture
async def group(ring: AsyncRing) -> BufferRing:
    """Buffers for connections made by hand."""
    return ring.register_buffer_ring(count=16, size=1024)


def pair(ring: AsyncRing, group: BufferRing) -> tuple[Connection, Connection]:
    """Two connections to one another, in plain."""
    left, right = (Connection(ring, sock, group) for sock in socket.socketpair())
    return left, right


async def secure(server: Connection, client: Connection, **options: Any) -> None:
    """Start TLS at both ends."""
    await asyncio.gather(
        server.start_tls(server_context(), server_side=True, **options),
        client.start_tls(client_context(), server_hostname=NAME, **options),
    )


# ---- handshakes that fail ------------------------------------------------------------------------


def untrusting() -> ssl.SSLContext:
    """A client's context that trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("context", "name", "reason"),
    [(client_context, "other.test", "other.test"), (untrusting, NAME, "CERTIFICATE_VERIFY_FAILED")],
    ids=["name", "authority"],
)
async def test_a_certificate_that_is_refused(
    ring: AsyncRing,
    caplog: pytest.LogCaptureFixture,
    context: Callable[[], ssl.SSLContext],
    name: str,
    reason: str,
) -> None:
    """A wrong name and an unknown authority are the ssl module's own error; the server hears why, and serves on."""
    called = []

    async def serve(connection: Connection) -> None:
        called.append(connection)
        await echo(connection)

    async with serving(ring, serve) as server:
        with caplog.at_level(logging.DEBUG, "aiouring"):
            before = len(open_files())
            with pytest.raises(ssl.SSLCertVerificationError, match=reason):
                await open_connection(*address(server), ring=ring, ssl=context(), server_hostname=name)
            while server._clients:
                await asyncio.sleep(0)
            assert len(open_files()) <= before
        assert [record.levelno for record in caplog.records] == [logging.DEBUG]
        assert "ALERT" in caplog.text
        assert not called
        await check(ring, server)


async def test_somebody_who_speaks_no_tls(ring: AsyncRing) -> None:
    """Bytes that are no handshake: the connection is closed, without the handler, and others are served on."""
    async with serving(ring) as server:
        for nonsense in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 1000, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
            async with await open_connection(*address(server), ring=ring) as connection:
                with suppress(OSError):
                    await connection.send(nonsense)
                    while chunk := await connection.receive():
                        chunk.release()
            await check(ring, server)


async def test_a_client_who_leaves_in_the_middle(ring: AsyncRing, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that ends before its handshake is closed, quietly."""
    with caplog.at_level(logging.INFO, "aiouring"):
        async with serving(ring) as server:
            for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
                async with await open_connection(*address(server), ring=ring) as connection:
                    await connection.send(data)
            await check(ring, server)
    assert not caplog.records


async def test_a_server_who_leaves_in_the_middle(ring: AsyncRing) -> None:
    """The client hears that the stream ended, in the ssl module's words."""

    async def leave(connection: Connection) -> None:
        with await connection.receive():
            return

    async with await start_server(leave, HOST, 0, ring=ring) as server:
        before = len(open_files())
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            await open_connection(*address(server), ring=ring, ssl=client_context())
        while server._clients:
            await asyncio.sleep(0)
        assert len(open_files()) <= before


async def test_stalled_clients(ring: AsyncRing) -> None:
    """Clients that say nothing are closed in the end, and keep nobody waiting until then."""
    async with serving(ring, ssl_handshake_timeout=0.3) as server:
        stalled = [await open_connection(*address(server), ring=ring) for _ in range(20)]
        await stalled[0].send(b"\x16\x03")
        async with asyncio.timeout(0.29):
            await check(ring, server)
        for connection in stalled:
            assert not await connection.receive()
            await connection.aclose()
        await check(ring, server)


async def test_a_stalled_server(ring: AsyncRing) -> None:
    """A handshake that takes too long is a ConnectionAbortedError that says how long, and closes the socket."""
    with socket.create_server((HOST, 0)) as listener:
        before = len(open_files())
        with pytest.raises(ConnectionAbortedError, match=r"0\.05 s \(ssl_handshake_timeout\)"):
            await open_connection(*listener.getsockname(), ring=ring, ssl=client_context(), ssl_handshake_timeout=0.05)
        assert len(open_files()) == before


# ---- handshakes that are left --------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "abort", "aclose", "timeout"])
async def test_leaving_a_handshake(ring: AsyncRing, group: BufferRing, way: str) -> None:
    """A handshake that is cancelled, or whose connection is closed, ends; the peer sees the end."""
    left, right = pair(ring, group)
    starting = asyncio.ensure_future(left.start_tls(client_context(), server_hostname=NAME))
    with await right.receive():
        pass
    if way == "cancel":
        starting.cancel()
    elif way == "abort":
        left.abort()
    elif way == "aclose":
        await left.aclose()
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(starting, 0.01)
    await asyncio.wait([starting])
    if way in ("abort", "aclose"):
        assert isinstance(starting.exception(), ConnectionAbortedError)
    else:
        assert starting.cancelled()
    with pytest.raises(ConnectionAbortedError):
        await left.receive()
    assert not await right.receive()
    await left.aclose()
    await right.aclose()


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_at_any_turn(ring: AsyncRing, turns: int) -> None:
    """open_connection() that is cancelled anywhere leaves nothing open, here or there."""
    async with serving(ring) as server:
        before = len(open_files())
        opening = asyncio.ensure_future(open_connection(*address(server), ring=ring, ssl=client_context()))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await opening.result().aclose()
        while server._clients:
            await asyncio.sleep(0)
        for _ in range(100):
            await ring.nop()
        assert len(open_files()) <= before


async def test_closing_a_server_in_the_middle_of_handshakes(ring: AsyncRing) -> None:
    """close_clients() ends those that are shaking hands, too."""
    async with serving(ring) as server:
        client = await open_connection(*address(server), ring=ring)
        while not server._clients:
            await asyncio.sleep(0)
        server.close()
        server.close_clients()
        async with asyncio.timeout(10):
            await server.wait_closed()
        assert not await client.receive()
        await client.aclose()


async def test_closing_the_ring_in_the_middle(new_ring: RingFactory) -> None:
    """The ring's close ends a handshake, and what is open; both can be closed."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=16, size=1024)
    left, right = pair(ring, group)
    server, client = pair(ring, group)
    await secure(server, client)
    starting = asyncio.ensure_future(left.start_tls(client_context(), server_hostname=NAME))
    waiting = asyncio.ensure_future(client.receive())
    sending = asyncio.ensure_future(client.send(b"x" * 10_000_000))
    with await right.receive():
        pass
    await ring.aclose()
    for task in (starting, waiting, sending):
        with pytest.raises(aiouring.RingClosedError):
            await task
    with pytest.raises(aiouring.RingClosedError):
        client.write(b"more")
    for connection in (left, right, server, client):
        await connection.aclose()


# ---- names and certificates ----------------------------------------------------------------------


async def test_what_was_agreed_upon(ring: AsyncRing) -> None:
    """ALPN, cipher, version and the peer's certificate can be asked for; without a common protocol there is none."""
    seen = []

    async def look(connection: Connection) -> None:
        assert connection.ssl_object is not None
        seen.append(connection.ssl_object.selected_alpn_protocol())

    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(ring, look, ssl=context) as server:
        for offered, agreed in ((["http/1.1", "h2"], "h2"), (["gopher"], None), ([], None)):
            client = client_context()
            if offered:
                client.set_alpn_protocols(offered)
            async with await open_connection(*address(server), ring=ring, ssl=client) as connection:
                found = connection.ssl_object
                assert found is not None
                assert found.selected_alpn_protocol() == agreed
                assert found.version() == "TLSv1.3"
                certificate = found.getpeercert()
                assert certificate is not None
                assert ("DNS", NAME) in certificate["subjectAltName"]
                assert not await connection.receive()
            assert seen.pop() == agreed
    plain, other = socket.socketpair()
    async with Connection(ring, plain, aiouring.default_group(ring)) as connection:
        assert connection.ssl_object is None
    other.close()


async def test_a_certificate_by_name(ring: AsyncRing) -> None:
    """A server's sni_callback chooses the context by the name that the client asks for."""
    contexts = {name: server_context(name) for name in ("one.test", "two.test")}
    default = server_context()

    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        if name == "nobody.test":
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = contexts.get(name or "", default)
        return None

    default.sni_callback = choose
    async with serving(ring, ssl=default) as server:
        for name in ("one.test", "two.test", NAME):
            client = await open_connection(*address(server), ring=ring, ssl=client_context(), server_hostname=name)
            async with client:
                await client.send(b"x")
                assert await client.receive_exactly(1) == b"x"
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            await open_connection(*address(server), ring=ring, ssl=client_context(), server_hostname="nobody.test")


async def test_a_client_that_must_show_its_certificate(ring: AsyncRing) -> None:
    """With CERT_REQUIRED the handler sees the client's; one without is refused, and hears of it when it receives."""
    seen = []

    async def look(connection: Connection) -> None:
        assert connection.ssl_object is not None
        certificate = connection.ssl_object.getpeercert()
        assert certificate is not None
        seen.append(certificate["subjectAltName"])

    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    AUTHORITY.configure_trust(context)
    async with serving(ring, look, ssl=context) as server:
        with_one = client_context()
        AUTHORITY.issue_cert("client@example.org").configure_cert(with_one)
        async with await open_connection(*address(server), ring=ring, ssl=with_one) as connection:
            assert not await connection.receive()
        assert seen == [(("email", "client@example.org"),)]
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            async with await open_connection(*address(server), ring=ring, ssl=client_context()) as connection:
                await connection.receive()
        assert len(seen) == 1


async def test_a_unix_path(ring: AsyncRing, tmp_path: Path) -> None:
    """TLS over a Unix socket needs a name to compare with."""
    path = tmp_path / "socket"
    async with await start_server(echo, path=path, ring=ring, ssl=server_context()):
        with pytest.raises(ValueError, match="server_hostname"):
            await open_unix_connection(path, ring=ring, ssl=client_context())
        async with await open_unix_connection(
            path, ring=ring, ssl=client_context(), server_hostname=NAME
        ) as connection:
            await connection.send(b"hello")
            assert await connection.receive_exactly(5) == b"hello"


async def test_true_is_the_default_context(ring: AsyncRing) -> None:
    """ssl=True trusts whom the machine trusts, which our authority is not."""
    async with serving(ring) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_connection(*address(server), ring=ring, ssl=True)


async def test_what_is_refused(ring: AsyncRing, group: BufferRing) -> None:
    """Arguments that make no sense are refused before anything happens; the connection is as it was."""
    for options in ({"server_hostname": "x"}, {"ssl_handshake_timeout": 5}, {"ssl_shutdown_timeout": 5}):
        with pytest.raises(ValueError, match="ssl= only"):
            await open_connection(HOST, 1, ring=ring, **options)
    with pytest.raises(ValueError, match="ssl= only"):
        await start_server(echo, HOST, 0, ring=ring, ssl_handshake_timeout=5)
    with pytest.raises(TypeError, match="certificate"):
        await start_server(echo, HOST, 0, ring=ring, ssl=True)  # type: ignore[arg-type]
    for option in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
        with pytest.raises(ValueError, match=f"{option}=0 "):
            await start_server(echo, HOST, 0, ring=ring, ssl=server_context(), **{option: 0})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{option}=nan "):
            await open_connection(HOST, 1, ring=ring, ssl=client_context(), **{option: math.nan})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PROTOCOL_TLS_SERVER"):
        await open_connection(HOST, 1, ring=ring, ssl=server_context())
    with pytest.raises(ValueError, match="PROTOCOL_TLS_CLIENT"):
        await start_server(echo, HOST, 0, ring=ring, ssl=client_context())
    left, right = pair(ring, group)
    async with left, right:
        with pytest.raises(TypeError, match="SSLContext"):
            await left.start_tls(None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="server_hostname"):
            await left.start_tls(client_context())
        with pytest.raises(ValueError, match="client's"):
            await left.start_tls(server_context(), server_side=True, server_hostname="x")
        receive: Callable[[], Awaitable[Any]]
        for receive in (right.receive, lambda: right.receive_exactly(5)):
            waiting: asyncio.Future[Any] = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            with pytest.raises(aiouring.ResourceBusyError, match="receiving"):
                await right.start_tls(client_context(), server_hostname=NAME)
            await left.send(b"plain")
            got = await waiting
            assert (got if isinstance(got, bytes) else bytes(got.view)) == b"plain"
            if not isinstance(got, bytes):
                got.release()
        await secure(left, right)
        with pytest.raises(RuntimeError, match="already"):
            await left.start_tls(client_context(), server_hostname=NAME)
        await left.send(b"fine")
        assert await right.receive_exactly(4) == b"fine"
    with pytest.raises(ConnectionAbortedError):
        left, right = pair(ring, group)
        left.abort()
        await right.aclose()
        await left.start_tls(client_context(), server_hostname=NAME)


# ---- start_tls() ---------------------------------------------------------------------------------


async def upgrade(connection: Connection) -> None:
    """A server of a protocol that begins in plain."""
    assert await connection.receive_until(b"\n") == b"STARTTLS\n"
    connection.write(b"go ahead\n")
    await connection.start_tls(server_context(), server_side=True)
    await echo(connection)


async def test_an_upgrade(ring: AsyncRing) -> None:
    """A connection goes on as TLS in the middle; statistics, addresses and the rest are the same connection's."""
    async with await start_server(upgrade, HOST, 0, ring=ring) as server:
        async with await open_connection(*address(server), ring=ring) as connection:
            await connection.send(b"STARTTLS\n")
            assert await connection.receive_until(b"\n") == b"go ahead\n"
            await connection.start_tls(client_context(), server_hostname=NAME)
            await connection.send(b"secret")
            with await connection.receive() as chunk:
                assert bytes(chunk.view) == b"secret"
                assert chunk.buffer_id is None
            assert connection.peer_address == address(server)
            assert connection.statistics() == aiouring.ConnectionStatistics(0, 0, True)


async def test_what_was_put_behind_the_last_plain_message(ring: AsyncRing) -> None:
    """Bytes that somebody injected before TLS began are never received after it: the handshake fails on them."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    for injected in (b"EVIL\n", b"x"):
        async with await start_server(upgrade, HOST, 0, ring=ring) as server:
            async with await open_connection(*address(server), ring=ring) as connection:
                await connection.send(b"STARTTLS\n" + injected)
                assert await connection.receive_until(b"\n") == b"go ahead\n"
                with pytest.raises(OSError):
                    await connection.start_tls(client_context(), server_hostname=NAME)
    assert len(problems) == 2
    assert all(isinstance(problem, ssl.SSLError) for problem in problems)


@pytest.mark.parametrize("ahead", [0, 1, 100, 1000])
async def test_a_handshake_that_came_early(ring: AsyncRing, group: BufferRing, ahead: int) -> None:
    """What was read ahead of start_tls(), as far as it is the peer's handshake, is TLS's: none of it is lost."""
    left, right = pair(ring, group)
    async with left, right:
        starting = asyncio.ensure_future(right.start_tls(client_context(), server_hostname=NAME))
        framing = left.framing()
        hello = await left.receive_exactly(200)
        framing.unread[:] = hello + framing.unread  # as if none of it had been taken
        framing._settle()
        if ahead:
            with await left.receive() as chunk:
                data = bytes(chunk.view)
            framing.unread[:] = data
            framing._settle()
        await left.start_tls(server_context(), server_side=True)
        await starting
        await left.send(b"x" * ahead)
        assert await right.receive_exactly(ahead) == b"x" * ahead


async def test_writing_before_it_has_started(ring: AsyncRing, group: BufferRing) -> None:
    """What is written before start_tls() goes in plain, what is written during the handshake is encrypted."""
    left, right = pair(ring, group)
    async with left, right:
        left.write(b"plain\n")
        starting = asyncio.ensure_future(left.start_tls(server_context(), server_side=True))
        await asyncio.sleep(0)
        left.write(b"secret\n")
        sending = asyncio.ensure_future(left.send(b"and more\n" * 10_000))
        assert await right.receive_until(b"\n") == b"plain\n"
        await right.start_tls(client_context(), server_hostname=NAME)
        assert await right.receive_exactly(7) == b"secret\n"
        await starting
        assert await right.receive_exactly(90_000) == b"and more\n" * 10_000
        await sending


Talk = Callable[[Any, Any], Awaitable[None]]


async def talk(reader: Any, writer: Any) -> None:
    """The client's part, on asyncio's streams or ours."""
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(client_context(), server_hostname=NAME)
    writer.write(b"secret\n")
    await writer.drain()
    assert await reader.readline() == b"SECRET\n"
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    assert writer.get_extra_info("cipher")[1] == "TLSv1.3"
    assert ("DNS", NAME) in writer.get_extra_info("peercert")["subjectAltName"]
    assert isinstance(writer.get_extra_info("sslcontext"), ssl.SSLContext)
    assert writer.get_extra_info("compression") is None
    assert writer.get_extra_info("peername")
    assert writer.get_extra_info("nothing", 5) == 5
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("client", ["asyncio", "aiouring"])
@pytest.mark.parametrize("server", ["asyncio", "aiouring"])
async def test_streams_upgrade(ring: AsyncRing, server: str, client: str) -> None:
    """StreamWriter.start_tls() is asyncio's: handlers and clients work on either."""
    context = server_context()

    async def serve(reader: Any, writer: Any) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.drain()
        await writer.start_tls(context)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        assert await reader.read() == b""
        assert reader.at_eof()
        writer.close()

    serving: Any
    if server == "asyncio":
        serving = await asyncio.start_server(serve, HOST, 0)
    else:
        serving = await start_server(serve, HOST, 0, ring=ring, streams=True)
    async with serving:
        where = serving.sockets[0].getsockname()
        if client == "asyncio":
            await talk(*await asyncio.open_connection(*where))
        else:
            connection = await open_connection(*where, ring=ring)
            await talk(StreamReader(connection), StreamWriter(connection))


async def test_a_failed_upgrade_of_streams(ring: AsyncRing) -> None:
    """A server's writer learns of a handshake that failed, and its reader never sees what was injected."""
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        try:
            await writer.start_tls(server_context(), ssl_handshake_timeout=5, ssl_shutdown_timeout=5)
        except ssl.SSLError:
            got.set_result((await asyncio.gather(reader.read(), return_exceptions=True))[0])

    async with await start_server(serve, HOST, 0, ring=ring, streams=True) as server:
        async with await open_connection(*address(server), ring=ring) as connection:
            await connection.send(b"STARTTLS\n" + b"EVIL\n" * 10)
            assert isinstance(await got, ssl.SSLError)


@pytest.mark.parametrize("bundle", [False, True])
@pytest.mark.parametrize("options", [{"on_empty": "fallback"}, {"max_count": 16}, {"incremental": True}])
async def test_tls_on_groups_of_every_kind(ring: AsyncRing, options: dict[str, Any], *, bundle: bool) -> None:
    """Ciphertext comes in private memory, parts and bundles as well; from the first byte on."""
    group = ring.register_buffer_ring(count=4, size=512, **options)
    left, right, other, filler = *socket.socketpair(), *socket.socketpair()
    held = []
    with other, filler:
        for _ in range(4 if group.on_empty == "fallback" else 0):
            filler.send(bytes(512))
            held.append(await ring.recv(other, group))
        server, client = (Connection(ring, sock, group, bundle=bundle) for sock in (left, right))
        while held and server._receiving._spare is None:  # type: ignore[union-attr]
            await asyncio.sleep(0)  # a private receive is in flight
        async with server, client:
            await asyncio.gather(
                server.start_tls(server_context(), server_side=True),
                client.start_tls(client_context(), server_hostname=NAME),
            )
            data = bytes(range(256)) * 800
            sending = asyncio.ensure_future(client.send(data))
            assert await server.receive_exactly(len(data)) == data
            await sending
            assert bool(group.statistics().fallbacks) == bool(held)
    for chunk in held:
        chunk.release()
    await ring.nop()
    assert group.statistics().in_use == group.statistics().private == 0
