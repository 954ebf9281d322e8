"""Tests of TLS against others: asyncio's streams, blocking sockets, OpenSSL's own client and server, HTTPS clients."""

import asyncio
import hashlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import echo
from tls_certificates import AUTHORITY, NAME, certificate, client_context, server_context

from aiouring import AsyncRing, Connection, Server, StreamReader, StreamWriter, open_connection, start_server

HOST = "127.0.0.1"
MEBIBYTE = 1 << 20

T = TypeVar("T")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for those who block."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def in_thread(pool: ThreadPoolExecutor, what: Callable[[], T]) -> "asyncio.Future[T]":
    """What `what()` returns, called in a thread."""
    return asyncio.get_running_loop().run_in_executor(pool, what)


@asynccontextmanager
async def serving(ring: AsyncRing, handler: Any = echo, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """The address of a TLS server."""
    options.setdefault("ssl", server_context())
    server: Server = await start_server(handler, HOST, 0, ring=ring, **options)
    async with server:
        yield server.sockets[0].getsockname()


async def test_asyncio_as_the_client(ring: AsyncRing) -> None:
    """asyncio's streams talk to our server; both say their goodbyes."""
    async with serving(ring) as address:
        reader, writer = await asyncio.open_connection(*address, ssl=client_context())
        for size in (1, 100, 16384, 16385, 300_000):
            message = os.urandom(size)
            writer.write(message)
            assert await reader.readexactly(size) == message
        assert writer.get_extra_info("cipher") is not None
        writer.close()
        await writer.wait_closed()


async def test_asyncio_as_the_server(ring: AsyncRing) -> None:
    """We talk to asyncio's streams, which close when we have said goodbye."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0, ssl=server_context()) as server:
        address = server.sockets[0].getsockname()
        async with await open_connection(*address, ring=ring, ssl=client_context()) as connection:
            for size in (1, 100, 16384, 16385, 300_000):
                message = os.urandom(size)
                connection.write(message)
                assert await connection.receive_exactly(size) == message
            await connection.send_eof()
            assert not await connection.receive()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("direction", ["to asyncio", "from asyncio"])
async def test_64_mebibytes(ring: AsyncRing, direction: str) -> None:
    """A large transfer, with back-pressure all along, arrives as it was sent."""
    block = os.urandom(MEBIBYTE)
    expected = hashlib.sha256(block * 64).digest()
    if direction == "from asyncio":
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def take(connection: Connection) -> None:
            hashed = hashlib.sha256()
            async for chunk in connection:
                with chunk:
                    hashed.update(chunk.view)
            got.set_result(hashed.digest())

        async with serving(ring, take) as address:
            _, writer = await asyncio.open_connection(*address, ssl=client_context())
            for _ in range(64):
                writer.write(block)
                await writer.drain()
            writer.close()
            assert await got == expected
            await writer.wait_closed()
    else:

        async def give(connection: Connection) -> None:
            for _ in range(64):
                connection.write(block)
                await connection.drain()
                assert connection.statistics().to_send < MEBIBYTE
            await connection.send_eof()
            assert not await connection.receive()  # uvloop's client loses what it has not read when we just close

        async with serving(ring, give) as address:
            reader, writer = await asyncio.open_connection(*address, ssl=client_context())
            hashed = hashlib.sha256()
            while data := await reader.read(200_000):
                hashed.update(data)
            assert hashed.digest() == expected
            writer.close()
            await writer.wait_closed()


async def test_a_blocking_client(ring: AsyncRing, pool: ThreadPoolExecutor) -> None:
    """The standard library's SSLSocket: byte by byte, and a goodbye from both sides."""

    def talk(address: tuple[str, int]) -> bytes:
        context = client_context()
        with socket.create_connection(address) as plain:
            sock = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
            for letter in b"byte by byte":
                sock.send(bytes([letter]))
            got = b""
            while len(got) < 12:
                got += sock.recv(100)
            sock.unwrap().close()  # waits for our close-notify, and raises without it
            return got

    async with serving(ring) as address:
        assert await in_thread(pool, lambda: talk(address)) == b"byte by byte"


async def test_a_blocking_server_that_reads_on(ring: AsyncRing, pool: ThreadPoolExecutor) -> None:
    """After our send_eof() the other side may send as long as it likes; its own end is told apart from a cut."""

    def serve(listener: socket.socket) -> None:
        with listener, server_context().wrap_socket(listener.accept()[0], server_side=True) as sock:
            assert sock.recv(100) == b"question"
            assert sock.recv(100) == b""
            sock.sendall(b"a long answer" * 10_000)
            sock.unwrap().close()

    listener = socket.create_server((HOST, 0))
    address = listener.getsockname()
    answering = in_thread(pool, lambda: serve(listener))
    async with await open_connection(*address, ring=ring, ssl=client_context()) as connection:
        await connection.send(b"question")
        await connection.send_eof()
        assert await connection.framing().rest() == b"a long answer" * 10_000
    await answering


@pytest.mark.parametrize("way", ["cut", "reset"])
async def test_a_peer_that_breaks_off(ring: AsyncRing, pool: ThreadPoolExecutor, way: str) -> None:
    """A stream that ends without a close-notify is an error, after all that came before, whatever is asked for."""

    def serve(listener: socket.socket) -> None:
        with listener, server_context().wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.sendall(b"half of it")
            assert sock.recv(1) == b"!"  # all of that has arrived
            if way == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    for receive in ("receive", "receive_exactly", "rest"):
        listener = socket.create_server((HOST, 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # all is under way before a reset
        address = listener.getsockname()
        answering = in_thread(pool, partial(serve, listener))
        async with await open_connection(*address, ring=ring, ssl=client_context()) as connection:
            await connection.send(b"!")
            expected: type[OSError] = ssl.SSLEOFError if way == "cut" else ConnectionResetError
            if receive == "receive":
                with await connection.receive() as chunk:
                    assert bytes(chunk.view) == b"half of it"
            with pytest.raises(expected) as caught:
                if receive == "receive":
                    await connection.receive()
                elif receive == "receive_exactly":
                    await connection.receive_exactly(1000)
                else:
                    await connection.framing().rest()
            if way == "cut":
                assert "close-notify" in str(caught.value)
            if receive != "receive":
                assert await connection.receive_exactly(10) == b"half of it"
        await answering


openssl = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(openssl is None, reason="the openssl command is not installed")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with what the openssl command wants as files."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    leaf = certificate(NAME, "localhost", HOST)
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return tmp_path


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssl_s_client(ring: AsyncRing, pool: ThreadPoolExecutor, certificates: Path, version: str) -> None:
    """OpenSSL's client, which checks our certificate and name, and in TLS 1.3 asks for new keys in the middle."""

    async def shout(connection: Connection) -> None:
        while line := await connection.receive_until(b"\n"):
            await connection.send(line.upper())
            if line == b"bye\n":
                return

    def talk(address: tuple[str, int]) -> str:
        assert openssl is not None
        lines = "hello\nK\nbye\n" if version == "-tls1_3" else "hello\nbye\n"
        command = [openssl, "s_client", "-connect", f"{address[0]}:{address[1]}", version, "-servername", NAME]
        command += ["-CAfile", "authority.pem", "-verify_return_error", "-verify_hostname", NAME]
        process = subprocess.Popen(
            command,
            cwd=certificates,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            said = []
            for line in lines.splitlines(keepends=True):
                process.stdin.write(line)  # each with a write of its own: K is a command at a line's start
                process.stdin.flush()
                for answer in process.stdout:
                    said.append(answer)
                    if answer in (line.upper(), "KEYUPDATE\n"):
                        break
            said += process.stdout
            process.stdin.close()
        return "".join(said)

    async with serving(ring, shout) as address:
        said = await in_thread(pool, lambda: talk(address))
    assert "HELLO\n" in said
    assert "BYE\n" in said
    assert "Verify return code: 0 (ok)" in said or "Verification: OK" in said


@needs_openssl
@pytest.mark.parametrize(("version", "command"), [("-tls1_2", b"r\n"), ("-tls1_3", b"K\n"), ("-tls1_3", b"k\n")])
async def test_openssl_s_server(
    ring: AsyncRing, pool: ThreadPoolExecutor, certificates: Path, version: str, command: bytes
) -> None:
    """OpenSSL's server asks for a new handshake, or for new keys, while nobody here receives; sending goes on."""
    assert openssl is not None
    arguments = [openssl, "s_server", "-accept", f"{HOST}:0", version, "-cert", "server.pem", "-naccept", "1"]
    with subprocess.Popen(
        arguments, cwd=certificates, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdout = process.stdout

        def line_with(word: bytes) -> bytes:
            for line in stdout:
                if word in line:
                    return line
            raise EOFError(f"the server ended without {word!r}")

        where = await in_thread(pool, lambda: line_with(b"ACCEPT"))
        port = int(where.rpartition(b":")[2])
        async with await open_connection(HOST, port, ring=ring, ssl=client_context()) as connection:
            await connection.send(b"one\n")
            await in_thread(pool, lambda: line_with(b"one"))
            reading = in_thread(pool, lambda: line_with(b"two\n"))  # or its output would fill up, and it would wait
            process.stdin.write(command)
            process.stdin.flush()
            for number in range(100):
                await connection.send(b"%d" % number * 1000 + b"\n")
            await connection.send(b"two\n")
            await reading
            process.stdin.write(b"and back\n")
            process.stdin.flush()
            assert await connection.receive_until(b"\n") == b"and back\n"
            await connection.send(b"three\n")
            await in_thread(pool, lambda: line_with(b"three"))
        await in_thread(pool, process.communicate)


async def page(reader: StreamReader, writer: StreamWriter) -> None:
    """HTTP/1.1 enough for a test: every request is answered with its path, many times."""
    while request := await reader.readline():
        while await reader.readline() != b"\r\n":
            pass
        body = request.split()[1] * 1000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()


async def test_an_https_client(ring: AsyncRing, pool: ThreadPoolExecutor) -> None:
    """The standard library's http.client, several requests on one connection, to a handler for asyncio's streams."""

    def ask(address: tuple[str, int]) -> list[bytes]:
        connection = http.client.HTTPSConnection("localhost", address[1], context=client_context())
        bodies = []
        for path in ("/one", "/two"):
            connection.request("GET", path)
            bodies.append(connection.getresponse().read())
        connection.close()
        return bodies

    async with serving(ring, page, streams=True) as address:
        assert await in_thread(pool, lambda: ask(address)) == [b"/one" * 1000, b"/two" * 1000]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(ring: AsyncRing, pool: ThreadPoolExecutor, certificates: Path) -> None:
    """curl, which checks certificate and name."""

    def ask(address: tuple[str, int]) -> "subprocess.CompletedProcess[bytes]":
        command = ["curl", "-sS", "--noproxy", "*", "--cacert", "authority.pem", "--http1.1"]
        return subprocess.run(
            [*command, f"https://localhost:{address[1]}/path", f"https://localhost:{address[1]}/other"],
            cwd=certificates,
            capture_output=True,
            timeout=30,
        )

    async with serving(ring, page, streams=True) as address:
        done = await in_thread(pool, lambda: ask(address))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"/path" * 1000 + b"/other" * 1000
