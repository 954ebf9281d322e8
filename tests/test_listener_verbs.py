"""Tests of accept_multishot on real listeners: floods, shortages, cancellations, and who owns a connection."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory, open_files
from injected_faults import no_more_descriptors

import aiouring
from aiouring import _features

pytestmark = pytest.mark.needs("multishot accept")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as made:
        yield made


def calling(listener: socket.socket, count: int) -> list[socket.socket]:
    """Connections from outside, with a timeout of their own; each says its number."""
    made = []
    for number in range(count):
        made.append(socket.create_connection(listener.getsockname(), 10))
        made[-1].sendall(b"%d" % number)
    return made


async def test_many_connections_for_one_request(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A taker that keeps up needs one submission for all of them; each is non-blocking and close-on-exec."""
    async with ring.accept_multishot(listener) as stream:
        await ring.nop()
        before = ring.statistics().submitted
        for number in range(50):
            with calling(listener, 1)[0] as client, await anext(stream) as connection:
                assert connection.getsockname() == client.getpeername()
                assert not connection.getblocking()
                assert not connection.get_inheritable()
                assert connection.recv(10) == b"0", number
        assert ring.statistics().submitted == before
        assert stream.pending == 0


async def test_h7_a_thousand_connections(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A flood reaches its taker whole, in order, although far more come than may wait here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    taken: list[socket.socket] = []
    try:
        async with ring.accept_multishot(listener, max_pending=8) as stream:
            clients = calling(listener, 1000)
            while len(taken) < 1000:
                taken.append(await anext(stream))
        assert [int(connection.recv(10)) for connection in taken] == list(range(1000))
    finally:
        for each in (*taken, *clients):
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_the_queue_is_bounded(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """Above max_pending the kernel stops accepting; what waits in the backlog comes when the taker goes on."""
    clients: list[socket.socket] = []
    async with ring.accept_multishot(listener, max_pending=2) as stream:
        most = 0
        for _ in range(12):
            clients += calling(listener, 1)
            for _ in range(4):
                await ring.nop()
            most = max(most, stream.pending)
        assert 2 <= most <= 4, "one above the bound, and one that came before the cancel"
        for _ in clients:
            (await anext(stream)).close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["IPv6", "Unix", "number", "direct"])
async def test_kinds_of_listeners(new_ring: RingFactory, tmp_path: Path, kind: str) -> None:
    """IPv6, a Unix path, a bare number and a direct descriptor."""
    ring = await new_ring()
    if kind == "Unix":
        listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
    else:
        family = socket.AF_INET6 if kind == "IPv6" else socket.AF_INET
        listener, client = socket.socket(family), socket.socket(family)
        listener.bind(("::1" if kind == "IPv6" else "127.0.0.1", 0))
    listener.listen()
    with listener, client:
        if kind == "direct":
            files = ring.register_files([listener])
            stream = ring.accept_multishot(files[0])
        else:
            stream = ring.accept_multishot(listener.fileno() if kind == "number" else listener)
        async with stream:
            client.connect(listener.getsockname())
            with await anext(stream) as connection:
                assert connection.family == listener.family
                assert connection.getsockname() == client.getpeername()


async def test_h7_out_of_descriptors(
    ring: aiouring.AsyncRing, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """With EMFILE the stream rests instead of spinning, says so once, and goes on when there are descriptors."""
    clients = calling(listener, 3)
    with caplog.at_level(logging.WARNING, "aiouring"):
        async with ring.accept_multishot(listener) as stream:
            with no_more_descriptors():
                before = ring.statistics()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.4):  # rests of 0.1 and 0.2 s are over, and the next began
                        await anext(stream)
                after = ring.statistics()
                assert after.submitted - before.submitted <= 7
                assert after.enters - before.enters <= 14
            for number in range(3):
                with await anext(stream) as connection:
                    assert connection.recv(10) == b"%d" % number
    assert [record.message for record in caplog.records if "Too many open files" in record.message]
    assert len(caplog.records) == 1
    for client in clients:
        client.close()


async def test_h7_the_last_descriptor(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """The connection that took the last descriptor is handed over, the others when it is closed."""
    clients = calling(listener, 4)
    async with ring.accept_multishot(listener) as stream:
        with no_more_descriptors(1):
            for number in range(4):
                fd = (await anext(stream)).detach()
                assert os.read(fd, 10) == b"%d" % number
                os.close(fd)
    for client in clients:
        client.close()


async def test_h7_a_ring_that_may_not_rest(new_ring: RingFactory, listener: socket.socket) -> None:
    """Where the ring's restrictions forbid the timeout, the stream ends and says so, instead of spinning."""
    allowed = {aiouring.Opcode[name] for name in ("ACCEPT", "ASYNC_CANCEL", "POLL_ADD", "NOP")}
    ring = await new_ring(restrictions=aiouring.Restrictions(opcodes=allowed))
    clients = calling(listener, 1)
    with no_more_descriptors():
        async with ring.accept_multishot(listener) as stream:
            with pytest.raises(PermissionError, match="forbid the operation TIMEOUT"):
                await anext(stream)
    clients[0].close()


@pytest.mark.parametrize("leave", ["break", "aclose", "with", "cancelled", "dropped"])
async def test_a7_leaving_closes_what_nobody_took(
    ring: aiouring.AsyncRing, listener: socket.socket, leave: str
) -> None:
    """By whatever door: the peers of connections that came and were not taken see the end, later ones are not taken."""
    clients = calling(listener, 3)
    stream: aiouring.AcceptStream | None = ring.accept_multishot(listener)
    assert stream is not None
    (await anext(stream)).close()
    while stream.pending < 2:
        await ring.nop()
    if leave == "break":
        async for connection in stream:
            connection.close()
            break
    elif leave == "aclose":
        await stream.aclose()
        await stream.aclose()
    elif leave == "with":
        async with stream:
            pass
    elif leave == "cancelled":

        async def take() -> None:
            assert stream is not None
            async with stream:
                while True:
                    (await anext(stream)).close()

        task = asyncio.ensure_future(take())
        while stream.pending:
            await ring.nop()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    stream = None
    while ring.statistics().in_flight:
        await asyncio.sleep(0)
    for number, client in enumerate(clients):
        with client, contextlib.suppress(ConnectionResetError):  # closed with its bytes unread
            assert client.recv(10) == b"", number
    with calling(listener, 1)[0] as later, await ring.accept(listener) as connection:
        assert connection.getpeername() == later.getsockname()


async def test_a7_dropped_in_another_thread(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A stream whose last reference goes in another thread ends all the same."""
    stream = [ring.accept_multishot(listener)]
    await ring.nop()
    thread = threading.Thread(target=stream.clear)
    thread.start()
    thread.join()
    while ring.statistics().in_flight:
        await asyncio.sleep(0)
    (client,) = calling(listener, 1)
    with client, await ring.accept(listener) as connection:
        assert connection.getpeername() == client.getsockname()


async def test_a8_timeouts_lose_no_connection(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A taker with a timeout, over and over, gets every connection once."""
    taken, clients = [], []
    async with ring.accept_multishot(listener) as stream:
        for _ in range(30):
            clients += calling(listener, 1)
            for wait in (0, 0.0005):
                try:
                    async with asyncio.timeout(wait):
                        taken.append(await anext(stream))
                except TimeoutError:
                    pass
        while len(taken) < 30:
            taken.append(await anext(stream))
    assert sorted(connection.getpeername() for connection in taken) == sorted(each.getsockname() for each in clients)
    for each in (*taken, *clients):
        each.close()


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.parametrize("state", ["armed", "full", "short"])
async def test_h1_the_listener_is_closed(
    ring: aiouring.AsyncRing, listener: socket.socket, how: str, state: str
) -> None:
    """ring.close() and ring.cancel() on the listener are heard of, after the connections that came, in every state."""
    clients = calling(listener, 0 if state == "armed" else 3)
    async with ring.accept_multishot(listener, max_pending=1) as stream:
        if state == "short":
            with no_more_descriptors():
                for _ in range(6):
                    await ring.nop()
                assert stream.pending == 0
                assert await (ring.cancel(listener) if how == "cancel" else ring.close(listener)) in (1, None)
        else:
            for _ in range(6):
                await ring.nop()
            assert stream.pending >= (0 if state == "armed" else 2)
            waiting = asyncio.ensure_future(anext(stream)) if state == "armed" else None
            await asyncio.sleep(0)
            assert await (ring.cancel(listener) if how == "cancel" else ring.close(listener)) in (1, None)
            for _ in range(stream.pending):
                (await anext(stream)).close()
            if waiting is not None:
                with pytest.raises(OSError, match="cancel"):
                    await waiting
        with pytest.raises(OSError, match="cancel") as caught:
            await anext(stream)
        assert caught.value.errno == errno.ECANCELED
    assert ring.statistics().in_flight == 0
    for client in clients:
        client.close()


async def test_h2_the_number_is_reused_between_two_requests(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A listener closed behind the ring's back while the queue is full: the next one of its number is not touched."""
    clients = calling(listener, 3)
    stream = ring.accept_multishot(listener.fileno(), max_pending=1)
    while stream.pending < 2:
        await ring.nop()
    number = listener.detach()
    os.close(number)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert other.fileno() == number
        with calling(other, 1)[0]:
            while stream.pending:
                (await anext(stream)).close()
            with pytest.raises(OSError, match="another file's"):
                await anext(stream)
            await stream.aclose()
            other.setblocking(False)
            other.accept()[0].close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("state", ["armed", "full"])
async def test_b1_the_ring_is_closed(new_ring: RingFactory, listener: socket.socket, state: str) -> None:
    """The taker gets RingClosedError, and the connections that nobody took are closed."""
    ring = await new_ring()
    clients = calling(listener, 2)
    stream = ring.accept_multishot(listener, max_pending=1 if state == "full" else 8)
    while stream.pending < 2:
        await ring.nop()
    for _ in range(4):
        await ring.nop()
    files = len(open_files())
    await ring.aclose()
    assert len(open_files()) <= files - 2
    with pytest.raises(aiouring.RingClosedError):
        await anext(stream)
    await stream.aclose()
    for client in clients:
        client.close()


async def test_b1_the_taker_waits_while_the_ring_is_closed(new_ring: RingFactory, listener: socket.socket) -> None:
    """Whoever waits for a connection hears of the close."""
    ring = await new_ring()
    stream = ring.accept_multishot(listener)
    waiting = asyncio.ensure_future(anext(stream))
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await waiting


async def test_h11_one_stream_and_one_taker(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A second stream on the listener and a second taker are refused; after the end both are welcome."""
    async with ring.accept_multishot(listener) as stream:
        with pytest.raises(aiouring.ResourceBusyError, match="already"):
            ring.accept_multishot(listener)
        with pytest.raises(aiouring.ResourceBusyError, match="already"):
            ring.accept_multishot(listener.fileno())
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError, match="another task"):
            await anext(stream)
        with calling(listener, 1)[0]:
            (await first).close()
    async with ring.accept_multishot(listener) as stream:
        with calling(listener, 1)[0]:
            (await anext(stream)).close()


async def test_what_is_refused(ring: aiouring.AsyncRing, listener: socket.socket) -> None:
    """A bound below 1, a closed socket, a file that is no listener."""
    with pytest.raises(ValueError, match="max_pending=0"):
        ring.accept_multishot(listener, max_pending=0)
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError) as caught:
        ring.accept_multishot(closed)
    assert caught.value.errno == errno.EBADF
    with socket.socket() as plain:
        for wrong, number in ((plain, errno.EINVAL), (0, errno.ENOTSOCK)):
            stream = ring.accept_multishot(wrong)
            with pytest.raises(OSError) as caught:
                await anext(stream)
            assert caught.value.errno == number
            await stream.aclose()


async def test_a_kernel_without_it(
    ring: aiouring.AsyncRing, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the version that has it."""
    monkeypatch.setattr(_features, "_here", frozenset())
    with pytest.raises(aiouring.UnsupportedKernelError, match=r"multishot accept: needs Linux 5\.19"):
        ring.accept_multishot(listener)
