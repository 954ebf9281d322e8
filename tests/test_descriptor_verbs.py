"""Tests of splice and shutdown, and of bind and listen: real files, pipes and sockets, and what is refused."""

import asyncio
import errno
import os
import socket
from pathlib import Path
from random import Random

import pytest
from conftest import RingFactory, open_files

import aiouring
from aiouring import _features
from aiouring._uring import lib

Pipe = tuple[int, int]
DATA = Random(4).randbytes(20_000)


async def test_splice_from_file_to_file(ring: aiouring.AsyncRing, pipe: Pipe, tmp_path: Path) -> None:
    """Through a pipe, at offsets of ours, and at the files' own positions."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    target.write_bytes(bytes(3))
    with source.open("rb") as reading, target.open("r+b") as writing:
        at = 1000
        while moved := await ring.splice(reading, pipe[1], 4096, source_offset=at):
            assert await ring.splice(pipe[0], writing, moved, destination_offset=3 + at - 1000) == moved
            at += moved
        assert at == len(DATA)
        assert target.read_bytes() == bytes(3) + DATA[1000:]
        assert reading.tell() == 0
        for _ in range(2):
            assert await ring.splice(reading, pipe[1], 10) == 10
            assert await ring.splice(pipe[0], writing, 10) == 10
        assert target.read_bytes()[:20] == DATA[:20]


async def test_splice_between_sockets_that_do_not_block(ring: aiouring.AsyncRing, pipe: Pipe) -> None:
    """A forwarder: it waits where there is nothing to read, and where there is no room."""
    ours, left = socket.socketpair()
    right, theirs = socket.socketpair()
    for each in (*pipe, *(sock.fileno() for sock in (ours, left, right, theirs))):
        os.set_blocking(each, False)

    async def forward() -> None:
        while moved := await ring.splice(left, pipe[1], 1 << 16):
            while moved:
                moved -= await ring.splice(pipe[0], right, moved)
        await ring.shutdown(right, socket.SHUT_WR)

    async def receive() -> bytes:
        whole, memory = b"", bytearray(1 << 16)
        while count := await ring.recv_into(theirs, memory):
            whole += memory[:count]
        return whole

    forwarding, receiving = asyncio.ensure_future(forward()), asyncio.ensure_future(receive())
    data = DATA * 50
    await ring.send_all(ours, data)
    await ring.shutdown(ours, socket.SHUT_WR)
    assert await receiving == data
    await forwarding
    for sock in (ours, left, right, theirs):
        sock.close()


async def test_h2_splice_is_not_fooled_by_reused_numbers(ring: aiouring.AsyncRing, pipe: Pipe) -> None:
    """The worker looks descriptors up late: closed and opened again meanwhile, the source is still the one meant."""
    reader, writer = os.pipe()
    task = asyncio.ensure_future(ring.splice(reader, pipe[1], 100))
    for _ in range(3):
        await ring.nop()
    os.close(reader)
    others = os.pipe()
    assert reader in others
    os.write(others[1], b"secret")
    os.write(writer, b"meant")
    assert await task == 5
    assert os.read(pipe[0], 100) == b"meant"
    for number in (writer, *others):
        os.close(number)


async def test_h2_a_destination_that_was_closed_while_queued(ring: aiouring.AsyncRing, pipe: Pipe) -> None:
    """A socket object that is closed before the request is submitted is EBADF."""
    left, right = socket.socketpair()
    os.write(pipe[1], b"data")
    task = asyncio.ensure_future(ring.splice(pipe[0], left, 4))
    await asyncio.sleep(0)
    left.close()
    with pytest.raises(OSError) as caught:
        await task
    assert caught.value.errno == errno.EBADF
    right.close()


@pytest.mark.parametrize("how", ["task", "file"])
async def test_a1_a_splice_that_waits_is_cancelled(ring: aiouring.AsyncRing, pipe: Pipe, how: str) -> None:
    """It ends soon, and its duplicates are closed."""
    left, right = socket.socketpair()
    files = len(open_files())
    task = asyncio.ensure_future(ring.splice(pipe[0], left, 4))
    for _ in range(3):
        await ring.nop()
    if how == "task":
        task.cancel()
    else:
        assert await ring.cancel(left) == 1
    await asyncio.wait([task])
    assert task.cancelled() == (how == "task")
    assert task.cancelled() or isinstance(task.exception(), OSError)
    assert len(open_files()) == files
    left.close()
    right.close()


async def test_what_splice_refuses(ring: aiouring.AsyncRing, pipe: Pipe) -> None:
    """Counts, offsets and files that make no sense; nothing is left open."""
    files = ring.register_files([pipe[0]])
    before = len(open_files())
    for arguments, options, error, text in (
        ((pipe[0], pipe[1], 0), {}, ValueError, "count=0"),
        ((pipe[0], pipe[1], 1 << 31), {}, ValueError, "count=2147483648"),
        ((pipe[0], pipe[1], 1), {"source_offset": -1}, ValueError, "offset=-1"),
        ((pipe[0], pipe[1], 1), {"destination_offset": 1 << 63}, ValueError, "number"),
        ((files[0], pipe[1], 1), {}, TypeError, "fixed_fd_install"),
        ((pipe[0], 987654, 1), {}, OSError, "Bad file"),
        ((-1, pipe[1], 1), {}, OSError, "Bad file"),
    ):
        with pytest.raises(error, match=text):
            await ring.splice(*arguments, **options)
    raw = ring._bound().ring.raw
    assert lib.au_prepare_splice(raw, 1, lib.AU_OP_SPLICE, 0, -2, 0, 0, 1, 0) == lib.AU_BAD_OFFSET
    assert lib.au_prepare_splice(raw, 1, lib.AU_OP_SPLICE, 0, 0, -1, 0, 1, 0) == -errno.EBADF
    assert lib.au_prepare_splice(raw, 1, lib.AU_OP_SPLICE, 0, 0, 0, 0, -1, 0) == lib.AU_BAD_LENGTH
    with pytest.raises(OSError) as caught:
        await ring.splice(pipe[0], 0, 1, source_offset=5)
    assert caught.value.errno in (errno.ESPIPE, errno.EBADF, errno.EINVAL)
    assert len(open_files()) == before


@pytest.mark.parametrize("kind", ["object", "number", "direct"])
async def test_shutdown(new_ring: RingFactory, kind: str) -> None:
    """The peer sees the end; what does not exist is refused."""
    ring = await new_ring()
    left, right = socket.socketpair()
    with left, right:
        files = ring.register_files([left])
        await ring.shutdown({"object": left, "number": left.fileno(), "direct": files[0]}[kind], socket.SHUT_WR)
        assert right.recv(9) == b""
        right.send(b"the other way")
        assert left.recv(99) == b"the other way"
        with pytest.raises(ValueError, match="7 is none"):
            await ring.shutdown(left, 7)
    with socket.socket() as unconnected, pytest.raises(OSError) as caught:
        await ring.shutdown(unconnected, socket.SHUT_RDWR)
    assert caught.value.errno == errno.ENOTCONN


@pytest.mark.needs("bind and listen")
@pytest.mark.parametrize("kind", ["IPv4", "IPv6", "name", "Unix", "abstract", "autobind"])
async def test_bind_and_listen(new_ring: RingFactory, kind: str, tmp_path: Path) -> None:
    """A server made by the ring alone is one that the standard library's clients reach."""
    ring = await new_ring()
    families = {"IPv4": socket.AF_INET, "name": socket.AF_INET, "IPv6": socket.AF_INET6}
    family = families.get(kind, socket.AF_UNIX)
    address = {
        "IPv6": ("::1", 0),
        "name": ("localhost", 0),
        "Unix": str(tmp_path / "socket"),
        "abstract": f"\0aiouring {os.getpid()} {os.urandom(8).hex()}",
        "autobind": "",
    }.get(kind, ("127.0.0.1", 0))
    listener = socket.socket(family)
    with listener:
        await ring.bind(listener, address)
        await ring.listen(listener, 5)
        assert listener.getsockname()
        assert kind != "autobind" or listener.getsockname()[:1] == b"\0"
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            (await ring.accept(listener)).close()
        with socket.socket(family) as second, pytest.raises(OSError) as caught:
            await ring.bind(second, listener.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.needs("bind and listen")
async def test_bind_and_listen_on_a_direct_descriptor(ring: aiouring.AsyncRing) -> None:
    """A listener that has no descriptor at all."""
    ring.register_files_sparse(1)
    listener = await ring.socket_direct()
    await ring.bind(listener, ("127.0.0.1", 0))
    await ring.listen(listener)
    fd = await ring.fixed_fd_install(listener)
    with socket.socket(fileno=fd) as known, socket.create_connection(known.getsockname()) as client:
        async with ring.accept_multishot(listener) as stream:
            with await anext(stream) as connection:
                assert connection.getpeername() == client.getsockname()
    await ring.close(listener)


async def test_what_bind_and_listen_refuse(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no socket, a backlog out of range, an older kernel."""
    with socket.socket() as sock:
        with Path("/dev/null").open() as file, pytest.raises(OSError, match="non-socket"):
            await ring.bind(file, ("127.0.0.1", 0))
        with pytest.raises(ValueError, match="backlog=-1"):
            await ring.listen(sock, -1)
        monkeypatch.setattr(_features, "_here", frozenset())
        for verb in (ring.bind(sock, ("127.0.0.1", 0)), ring.listen(sock)):
            with pytest.raises(aiouring.UnsupportedKernelError, match=r"bind and listen: needs Linux 6\.11"):
                await verb


async def test_tee(ring: aiouring.AsyncRing) -> None:
    """Bytes are copied from pipe to pipe and stay in the first; 0 is the end; what splice refuses is refused."""
    first, second = os.pipe(), os.pipe()
    os.write(first[1], b"twice")
    assert await ring.tee(first[0], second[1], 100) == 5
    assert os.read(first[0], 9) == os.read(second[0], 9) == b"twice"
    os.close(first[1])
    assert await ring.tee(first[0], second[1], 100) == 0
    with open("/dev/null", "r+b") as file:
        with pytest.raises(OSError) as caught:
            await ring.tee(file, second[1], 5)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="count=0"):
        await ring.tee(first[0], second[1], 0)
    with ring.register_files([0]) as files, pytest.raises(TypeError, match="nor does tee"):
        await ring.tee(files[0], second[1], 5)
    for number in (first[0], *second):
        os.close(number)
