"""Tests of TLS connections whose users are cancelled at every single wait: nothing is lost, and nothing left behind."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from conftest import check_idle
from tls_certificates import NAME, client_context, server_context

from aiouring import AsyncRing, BufferRing, Connection


class CancelledAt:
    """Awaits a coroutine, and cancels it when it has waited `number` times: before what it waits for, or right after.

    After is what a task meets that was cancelled when its future had just been resolved.
    """

    def __init__(self, coroutine: Any, number: int, *, after: bool) -> None:
        self._coroutine = coroutine
        self._number = number
        self._after = after
        self.cancelled = False
        self.result: Any = None

    def __await__(self) -> Generator[Any, Any, None]:
        """Until it is over, or has ended because it was cancelled."""
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited_for = self._coroutine.send(value) if error is None else self._coroutine.throw(error)
            except StopIteration as over:
                assert not self.cancelled, "it was cancelled, and went on"
                self.result = over.value
                return
            except asyncio.CancelledError:
                assert self.cancelled
                return
            self._number -= 1
            value = error = None
            due = self._number == 0
            if not due or self._after:
                try:
                    value = yield waited_for
                except BaseException as raised:
                    error = raised
            if due:
                if waited_for is not None:
                    waited_for._asyncio_future_blocking = False
                self.cancelled, error = True, asyncio.CancelledError()


async def at_every_wait(prepare: Callable[[], Awaitable[Any]], check: Callable[[CancelledAt], Awaitable[None]]) -> None:
    """Run the coroutine that `prepare()` returns, one after the other, and cancel each one wait later than the last.

    Until one is over before.
    """
    for after in (False, True):
        for number in range(1, 1000):
            run = CancelledAt(await prepare(), number, after=after)
            await run
            await check(run)
            if not run.cancelled:
                assert number > 1
                break
        else:
            pytest.fail("it waits for ever")


async def plain_pair(ring: AsyncRing, group: BufferRing) -> tuple[Connection, Connection]:
    """Two connections to one another, in plain."""
    left, right = (Connection(ring, sock, group) for sock in socket.socketpair())
    return left, right


async def secure_pair(ring: AsyncRing, group: BufferRing) -> tuple[Connection, Connection]:
    """The same with TLS."""
    left, right = await plain_pair(ring, group)
    await asyncio.gather(
        left.start_tls(server_context(), server_side=True), right.start_tls(client_context(), server_hostname=NAME)
    )
    return left, right


@pytest.mark.parametrize("size", [64, 4096])
@pytest.mark.parametrize("side", ["server", "client"])
async def test_start_tls(ring: AsyncRing, side: str, size: int) -> None:
    """A handshake that is cancelled closes the connection, and its peer's fails; one that is not serves both."""
    group = ring.register_buffer_ring(count=16, size=size)
    server, client = server_context(), client_context()
    left: Connection
    right: Connection
    other: asyncio.Future[None]

    async def prepare() -> Any:
        nonlocal left, right, other
        left, right = await plain_pair(ring, group)
        ways = [left.start_tls(server, server_side=True), right.start_tls(client, server_hostname=NAME)]
        if side == "client":
            left, right = right, left
            ways.reverse()
        other = asyncio.ensure_future(ways[1])
        return ways[0]

    async def check(run: CancelledAt) -> None:
        await asyncio.wait([other])
        if not run.cancelled:
            await asyncio.gather(left.send(b"hello"), right.send(b"hello"))
            assert await left.receive_exactly(5) == await right.receive_exactly(5) == b"hello"
        elif other.exception() is None:  # it was over for the other side
            with pytest.raises((ssl.SSLEOFError, ConnectionError)):
                await right.receive_exactly(1)
        await left.aclose()
        await right.aclose()
        check_idle(ring)

    await at_every_wait(prepare, check)


async def test_receive(ring: AsyncRing) -> None:
    """A receive that is cancelled has taken nothing, whatever came for it."""
    group = ring.register_buffer_ring(count=16, size=64)
    left, right = await secure_pair(ring, group)
    message = bytes(range(256)) * 4
    feeding: asyncio.Future[None]

    async def feed() -> None:
        for at in range(0, len(message), 128):  # a record, and a wait, each
            await right.send(message[at : at + 128])
            for _ in range(3):
                await ring.nop()

    async def prepare() -> Any:
        nonlocal feeding
        feeding = asyncio.ensure_future(feed())
        return left.receive_exactly(len(message))

    async def check(run: CancelledAt) -> None:
        assert (await left.receive_exactly(len(message)) if run.cancelled else run.result) == message
        await feeding
        assert left.statistics().pending == 0

    async with left, right:
        await at_every_wait(prepare, check)


@pytest.mark.parametrize("how", ["send", "drain"])
async def test_send(ring: AsyncRing, how: str) -> None:
    """What was written is sent once and in order, although whoever waited for that was cancelled."""
    group = ring.register_buffer_ring(count=16, size=4096)
    left, right = await secure_pair(ring, group)
    message = bytes(range(256)) * 4000
    receiving: asyncio.Future[bytes]

    async def prepare() -> Any:
        nonlocal receiving
        receiving = asyncio.ensure_future(right.receive_exactly(len(message)))
        if how == "send":
            return left.send(message)
        left.write(message)
        return left.drain()

    async def check(run: CancelledAt) -> None:
        assert await receiving == message

    async with left, right:
        await at_every_wait(prepare, check)


@pytest.mark.parametrize("how", ["send_eof", "aclose"])
async def test_the_end(ring: AsyncRing, how: str) -> None:
    """An end that is cancelled can be said again; a close that is cancelled leaves nothing open."""
    group = ring.register_buffer_ring(count=16, size=4096)
    message = bytes(range(256)) * 4000
    left: Connection
    right: Connection
    receiving: asyncio.Future[bytes]

    async def prepare() -> Any:
        nonlocal left, right, receiving
        left, right = await secure_pair(ring, group)
        receiving = asyncio.ensure_future(right.receive_exactly(len(message) + 1))
        left.write(message)
        return left.send_eof() if how == "send_eof" else left.aclose()

    async def check(run: CancelledAt) -> None:
        if how == "send_eof":
            await left.send_eof()
        await asyncio.wait([receiving])
        error = receiving.exception()
        if how == "send_eof" or not run.cancelled:
            assert isinstance(error, asyncio.IncompleteReadError)
            assert error.partial == message
        else:
            assert isinstance(error, asyncio.IncompleteReadError | OSError)
        await left.aclose()
        await right.aclose()
        check_idle(ring)

    await at_every_wait(prepare, check)
