"""Tests of multishot requests among threads that send, connect and go away: the races that kernels have lost before.

Each is a behaviour that liburing's own tests watch over: a group drained and filled again, a shutdown right behind the
data, several firehoses, connections that are gone before they are taken.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import aiouring
from aiouring import Connection, ReceiveStream

Pair = tuple[socket.socket, socket.socket]


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


def connected(kind: str) -> Pair:
    """A receiving and a sending end that blocks."""
    if kind == "Unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sending = socket.create_connection(listener.getsockname())
        return listener.accept()[0], sending


@pytest.mark.parametrize("way", ["stream", "bundles", "connection"])
async def test_d5_drained_and_filled_again(ring: aiouring.AsyncRing, way: str) -> None:
    """A thousand messages, each of more than the four buffers hold, which run dry all the time: every byte comes."""
    group = ring.register_buffer_ring(count=4, size=128)
    messages = [bytes([number % 251]) * 1024 for number in range(1024)]
    receiving, sending = connected("TCP")

    def send() -> None:
        with sending:
            for message in messages:
                sending.sendall(message)

    got = bytearray()
    before = group.statistics().starved
    with receiving, meanwhile(send):
        async with asyncio.timeout(30):
            if way == "connection":
                async with Connection(ring, receiving, group) as connection:
                    async for chunk in connection:
                        with chunk:
                            got += chunk.view
            elif way == "stream":
                async for chunk in ring.recv_multishot(receiving, group, max_pending=1000):
                    with chunk:
                        await asyncio.sleep(0)  # so that others come meanwhile, until there is no buffer
                        got += chunk.view
            else:
                async for bundle in ring.recv_multishot(receiving, group, max_pending=1000, bundle=True):
                    with bundle:
                        await asyncio.sleep(0)
                        got += bytes(bundle)
    assert got == b"".join(messages)
    if way != "connection":
        assert group.statistics().starved > before, "this did not test an empty group"


@pytest.mark.parametrize("kind", ["Unix", "TCP"])
async def test_h3_a_shutdown_right_behind_the_data(ring: aiouring.AsyncRing, kind: str) -> None:
    """Data and the end that arrive at one wake-up of the kernel's request are both delivered, and no turn is lost."""
    group = ring.register_buffer_ring(count=4, size=256)
    for turn in range(300):
        receiving, sending = connected(kind)
        messages = turn % 3
        armed = threading.Event()

        def send(sending: socket.socket = sending, armed: threading.Event = armed, messages: int = messages) -> None:
            armed.wait(10)
            for _ in range(messages):
                sending.sendall(bytes(123))
            sending.shutdown(socket.SHUT_WR)

        with receiving, sending, meanwhile(send):
            total = 0
            async with asyncio.timeout(10), ring.recv_multishot(receiving, group) as stream:
                await ring.nop()
                armed.set()
                async for chunk in stream:
                    with chunk:
                        total += len(chunk)
            assert total == 123 * messages, turn


@pytest.mark.parametrize("bundle", [False, True])
async def test_d7_firehoses_are_served_alike(ring: aiouring.AsyncRing, bundle: bool) -> None:
    """Of four sockets that are full from the beginning none gets ahead by more than two rounds of its bound."""
    size, bound, total = 32, 32, 64 * 1024
    group = ring.register_buffer_ring(count=2048, size=size)
    pairs = [connected("TCP") for _ in range(4)]
    served = [0] * len(pairs)
    leads: list[int] = []

    async def read(number: int) -> None:
        arm: Callable[..., ReceiveStream[Any]] = ring.recv_multishot
        async with arm(pairs[number][0], group, max_pending=bound, bundle=bundle) as stream:
            while served[number] < total:
                with await anext(stream) as chunk:
                    served[number] += len(chunk)
                if max(served) < total:
                    leads.append(max(served) - min(served))
                await asyncio.sleep(0)

    for _, sending in pairs:
        sending.setblocking(False)
        assert sending.send(bytes(total)) == total
    async with asyncio.timeout(30):
        await asyncio.gather(*(read(number) for number in range(len(pairs))))
    assert served == [total] * len(pairs)
    assert max(leads) <= 2 * bound * size, (max(leads), "bytes ahead")
    for pair in pairs:
        for end in pair:
            end.close()


async def test_h7_connections_that_are_gone_at_once(ring: aiouring.AsyncRing) -> None:
    """A client that connects, sends a byte and closes, again and again: each connection is taken, with its byte."""
    count = 500
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.setblocking(False)
        address = listener.getsockname()

        def call() -> None:
            for _ in range(count):
                with socket.create_connection(address, timeout=20) as client:
                    client.send(b"\xa5")

        taken = 0
        with meanwhile(call):
            async with asyncio.timeout(30), ring.accept_multishot(listener) as stream:
                while taken < count:
                    with await anext(stream) as accepted:
                        with suppress(BlockingIOError):  # loopback is quick, but who promises?
                            assert accepted.recv(2) in (b"\xa5", b"")
                    taken += 1


async def test_h7_bursts(ring: aiouring.AsyncRing) -> None:
    """Bursts of connections that stay until all of theirs are taken: one stream takes each burst whole."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.setblocking(False)
        async with asyncio.timeout(30), ring.accept_multishot(listener, max_pending=16) as stream:
            for _ in range(6):
                clients: list[socket.socket] = []

                def call(clients: list[socket.socket] = clients) -> None:
                    clients += [socket.create_connection(listener.getsockname(), timeout=20) for _ in range(32)]

                with meanwhile(call):
                    for _ in range(32):
                        (await anext(stream)).close()
                assert all(client.recv(1) == b"" for client in clients)
                for client in clients:
                    client.close()
