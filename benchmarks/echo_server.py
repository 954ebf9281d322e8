"""Owns the echo benchmark's servers: one process each, `python -m benchmarks.echo_server NAME CORE`.

Protocol with the process that started it: one JSON line on standard output says the port and the process
id; each line on standard input is answered with the ring's statistics; the end of standard input ends it.
"""

import asyncio
import dataclasses
import json
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import TypeAlias, cast

import aiouring
from benchmarks import loops, processor
from benchmarks.loops import LOOPS, TASK_RUNS, TaskRun

CHUNK = 4096
BUFFERS = 256
READ = 64 * 1024  # bytes that one read from a stream takes at most
LIFETIME = 600  # seconds after which a forgotten server dies

STREAMS, PROTOCOL = "streams", "protocol"


class Control:
    """The pipe to the process that started this one."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended = loop.create_future()
        self.statistics: Callable[[], dict[str, int]] = dict
        loop.add_reader(sys.stdin.fileno(), self._answer)

    def _answer(self) -> None:
        if os.read(sys.stdin.fileno(), 1):
            print(json.dumps(self.statistics()), flush=True)
        elif not self.ended.done():
            self.ended.set_result(None)


Server: TypeAlias = Callable[[socket.socket, Control], Coroutine[None, None, None]]


async def echo_stream(
    reader: asyncio.StreamReader | aiouring.StreamReader, writer: asyncio.StreamWriter | aiouring.StreamWriter
) -> None:
    """Echo one connection until its end, as one does with asyncio."""
    while data := await reader.read(READ):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_streams(listener: socket.socket, control: Control) -> None:
    """The high-level streams of asyncio."""
    async with await asyncio.start_server(echo_stream, sock=listener):
        await control.ended


class EchoProtocol(asyncio.Protocol):
    """The low-level callbacks of asyncio: no task, no future."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._write = cast("asyncio.Transport", transport).write  # not all transports of uvloop are instances

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._write(data)


async def serve_protocol(listener: socket.socket, control: Control) -> None:
    """A protocol of asyncio."""
    async with await asyncio.get_running_loop().create_server(EchoProtocol, sock=listener):
        await control.ended


async def serve_ring_protocol(listener: socket.socket, control: Control, task_run: TaskRun) -> None:
    """aiouring: the same protocol, on one buffer ring for all connections."""
    async with aiouring.AsyncRing(task_run=task_run) as ring:
        with ring.register_buffer_ring(count=BUFFERS, size=CHUNK) as group:
            control.statistics = lambda: dataclasses.asdict(ring.statistics())
            async with await aiouring.create_server(
                EchoProtocol, sock=listener.dup(), ring=ring, group=group
            ) as server:
                await control.ended
                server.abort_clients()


EchoOne: TypeAlias = Callable[[aiouring.AsyncRing, aiouring.BufferRing, socket.socket], Coroutine[None, None, None]]


async def serve_ring(listener: socket.socket, control: Control, task_run: TaskRun, echo_one: EchoOne) -> None:
    """aiouring: a task for each connection, one buffer ring for all of them."""
    async with aiouring.AsyncRing(task_run=task_run) as ring:
        with ring.register_buffer_ring(count=BUFFERS, size=CHUNK) as group:
            control.statistics = lambda: dataclasses.asdict(ring.statistics())
            accepting = asyncio.create_task(accept_all(ring, group, listener, echo_one))
            await control.ended
            accepting.cancel()
            await asyncio.wait([accepting])


async def accept_all(
    ring: aiouring.AsyncRing, group: aiouring.BufferRing, listener: socket.socket, echo_one: EchoOne
) -> None:
    """Accept until cancelled."""
    async with asyncio.TaskGroup() as connections:
        while True:
            connection = await ring.accept(listener)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio's transports do
            connections.create_task(echo_one(ring, group, connection))


async def echo_by_verbs(ring: aiouring.AsyncRing, group: aiouring.BufferRing, connection: socket.socket) -> None:
    """Echo one connection until its end: a receive and a send for each message."""
    with connection:
        while True:
            with await ring.recv(connection, group) as chunk:
                if not chunk:
                    break
                await ring.send_all(connection, chunk)


async def echo_connection(ring: aiouring.AsyncRing, group: aiouring.BufferRing, sock: socket.socket) -> None:
    """Echo one connection until its end: the kernel's receive stays armed, and sending waits for nothing."""
    async with aiouring.Connection(ring, sock, group) as connection:
        async for chunk in connection:
            connection.write(chunk)
            await connection.drain()


async def echo_chunks(connection: aiouring.Connection) -> None:
    """Echo one connection until its end, as a handler of `aiouring.start_server()`."""
    async for chunk in connection:
        connection.write(chunk)
        await connection.drain()


async def serve_connections(listener: socket.socket, control: Control) -> None:
    """What most users of aiouring have: its server, the loop's own ring, and that ring's own group of buffers."""
    async with await aiouring.start_server(echo_chunks, sock=listener):
        control.statistics = default_statistics
        await control.ended


async def serve_adapted(listener: socket.socket, control: Control) -> None:
    """The same, with the handler that was written for asyncio's streams."""
    async with await aiouring.start_server(echo_stream, sock=listener, streams=True):
        control.statistics = default_statistics
        await control.ended


def tls_context() -> ssl.SSLContext:
    """A server's, with a certificate that was made for the run."""
    import trustme  # here: the other servers are measured without its many modules

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


async def serve_tls_streams(listener: socket.socket, control: Control) -> None:
    """The high-level streams of asyncio, with TLS."""
    async with await asyncio.start_server(echo_stream, sock=listener, ssl=tls_context()):
        await control.ended


async def serve_tls_connections(listener: socket.socket, control: Control) -> None:
    """The server of aiouring, with TLS."""
    async with await aiouring.start_server(echo_chunks, sock=listener, ssl=tls_context()):
        await control.ended


async def serve_tls_adapted(listener: socket.socket, control: Control) -> None:
    """The same, with the handler that was written for asyncio's streams."""
    async with await aiouring.start_server(echo_stream, sock=listener, streams=True, ssl=tls_context()):
        await control.ended


async def serve_default_protocol(listener: socket.socket, control: Control) -> None:
    """The same, with the protocol that was written for asyncio."""
    async with await aiouring.create_server(EchoProtocol, sock=listener) as server:
        control.statistics = default_statistics
        await control.ended
        server.abort_clients()


def default_statistics() -> dict[str, int]:
    """What the loop's own ring has done so far, and how its group of buffers stands."""
    group = dataclasses.asdict(aiouring.default_group().statistics())
    ring = dataclasses.asdict(aiouring.default_ring().statistics())
    return {**ring, **{f"buffers {key}": number for key, number in group.items()}}


def _ring_protocol_server(task_run: TaskRun) -> Server:
    return lambda listener, control: serve_ring_protocol(listener, control, task_run)


def _ring_server(task_run: TaskRun, echo_one: EchoOne) -> Server:
    return lambda listener, control: serve_ring(listener, control, task_run, echo_one)


_RING_KINDS: dict[str, Server] = {
    f"aiouring {name}, {task_run}": _ring_server(task_run, echo_one)
    for name, echo_one in (("connection", echo_connection), ("verbs", echo_by_verbs))
    for task_run in TASK_RUNS
}
_RING_KINDS |= {f"aiouring {PROTOCOL}, {task_run}": _ring_protocol_server(task_run) for task_run in TASK_RUNS}
_KINDS: dict[str, Server] = {STREAMS: serve_streams, PROTOCOL: serve_protocol, **_RING_KINDS}

#: Every server by its name: the event loop, and the kind of server on it.
SERVERS: dict[str, tuple[str, Server]] = {
    f"{loop}, {kind}": (loop, server) for loop in LOOPS for kind, server in _KINDS.items()
}
#: Those that only the grid compares.
DEFAULT_SERVERS: dict[str, tuple[str, Server]] = {
    f"{loop}, {kind}": (loop, server)
    for loop in LOOPS
    for kind, server in {
        "aiouring connection": serve_connections,
        "aiouring streams": serve_adapted,
        f"aiouring {PROTOCOL}": serve_default_protocol,
    }.items()
}
#: Those that speak TLS.
TLS_SERVERS: dict[str, tuple[str, Server]] = {
    f"{loop}, TLS, {kind}": (loop, server)
    for loop in LOOPS
    for kind, server in {
        STREAMS: serve_tls_streams,
        "aiouring connection": serve_tls_connections,
        "aiouring streams": serve_tls_adapted,
    }.items()
}
#: The names of aiouring's own.
RING_SERVERS = tuple(f"{loop}, {kind}" for loop in LOOPS for kind in _RING_KINDS)


async def serve(server: Server) -> None:
    """Listen on a free port of the loopback interface until told to end."""
    control = Control()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.settimeout(0)
        print(json.dumps({"port": listener.getsockname()[1], "pid": os.getpid()}), flush=True)
        await server(listener, control)


if __name__ == "__main__":
    signal.alarm(LIFETIME)
    processor.pin(int(sys.argv[2]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop_name, chosen = {**SERVERS, **DEFAULT_SERVERS, **TLS_SERVERS}[sys.argv[1]]
    loops.run(loop_name, serve(chosen))
