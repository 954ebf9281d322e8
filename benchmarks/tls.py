"""Owns the TLS benchmark: the CPU time of echo servers that speak TLS, with few connections and messages of all sizes.

The load is blocking sockets of the standard library: it sends a message on each connection, and then reads all echoes.
"""

import os
import socket
import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks import processor
from benchmarks.echo import ServerProcess
from benchmarks.echo_load import PATIENCE
from benchmarks.echo_server import STREAMS, TLS_SERVERS
from benchmarks.loops import LOOPS
from benchmarks.rounds import Sample, Table, interleave, ratio


@dataclass(frozen=True, slots=True)
class Point:
    """What the load does."""

    connections: int
    size: int  # bytes of a message
    messages: int

    def __str__(self) -> str:
        size = f"{self.size} B" if self.size < 1024 else f"{self.size // 1024} KiB"
        return f"{self.connections} x {size}"


POINTS = (
    Point(1, 64, 4_000),
    Point(1, 16 * 1024, 1_500),
    Point(1, 64 * 1024, 600),
    Point(16, 512, 6_400),
    Point(16, 64 * 1024, 960),
)


def run(rounds: int) -> list[Table]:
    """Measure every server and compare with the streams of asyncio's loop and of uvloop's."""
    processor.pin(processor.LOAD_CORE)
    done = interleave({name: partial(measure, name) for name in TLS_SERVERS}, rounds)
    tables = []
    for loop in LOOPS:
        baseline = f"{loop}, TLS, {STREAMS}"
        table = Table(
            f"tls: CPU time of an echo server per message, divided by {baseline!r}",
            "Connections x bytes of a message, one in flight on each; user and system time; lower is better.\n"
            "Median over the rounds (min..max).",
            [str(point) for point in POINTS],
        )
        for name in TLS_SERVERS:
            table.rows.append((name, [ratio(done, column, name, baseline) for column in table.columns]))
        tables.append(table)
    return tables


def measure(name: str, points: tuple[Point, ...] = POINTS) -> Sample:
    """One run of one server, point after point."""
    with ServerProcess(name) as server:
        clock = processor.cpu_clock(server.pid)
        found = {}
        for point in points:
            with ExitStack() as stack:
                sockets = [connect(server.port) for _ in range(point.connections)]
                for sock in sockets:
                    stack.callback(goodbye, sock)
                exchange(sockets, point.size, point.messages // 10)
                cpu = processor.cpu_seconds(clock)
                exchange(sockets, point.size, point.messages)
                found[str(point)] = (processor.cpu_seconds(clock) - cpu) / point.messages
    return found


def connect(port: int) -> ssl.SSLSocket:
    """A connection; whose certificate it is does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock)


def goodbye(sock: ssl.SSLSocket) -> None:
    """End the connection as TLS wants it, or the servers have something to say about that."""
    with sock:
        sock.unwrap().close()


def exchange(sockets: list[ssl.SSLSocket], size: int, count: int) -> None:
    """Send `count` messages in all, all alike; raises `RuntimeError` at a wrong echo."""
    message, echo = os.urandom(size), bytearray(size)
    for _ in range(max(1, count // len(sockets))):
        for sock in sockets:
            sock.sendall(message)
        for sock in sockets:
            view = memoryview(echo)
            while view:
                got = sock.recv_into(view)
                if not got:
                    raise RuntimeError("the server hung up")
                view = view[got:]
            if echo != message:
                raise RuntimeError(f"an echo of {size} bytes differs from its message")
