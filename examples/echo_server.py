"""Owns the echo server: one task per connection, and one pool of buffers for all of them.

    python examples/echo_server.py                  # then, elsewhere: nc 127.0.0.1 7777
    python examples/echo_server.py --loop uvloop
    python examples/echo_server.py --check          # drives 64 connections through it and compares every byte

A waiting connection holds no buffer: the kernel picks one when data is there.  A connection holds buffers
while the peer takes the echo, though, so peers that never read can together hold them all.  A server for
strangers would bound that, with `asyncio.timeout()` around the drain.

Exit codes: 0, or 1 if the check or the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import multiprocessing
import random
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import aiouring


async def echo(ring: aiouring.AsyncRing, pool: aiouring.BufferRing, sock: socket.socket) -> None:
    """Send back whatever one peer sends, until it has nothing more to say."""
    try:
        async with aiouring.Connection(ring, sock, pool) as connection:
            async for chunk in connection:
                connection.write(chunk)  # hands the buffer over: it goes back to the pool when it is sent
                await connection.drain()
    except OSError as error:  # reset, gone, unreachable: that ends this connection and no other
        print(f"a connection was lost: {error}", file=sys.stderr)


async def serve(ring: aiouring.AsyncRing, pool: aiouring.BufferRing, listener: socket.socket) -> None:
    """Accept connections, each in a task of its own, until cancelled."""
    async with asyncio.TaskGroup() as connections, ring.accept_multishot(listener) as stream:
        async for connection in stream:  # pauses by itself while no descriptor is free
            connections.create_task(echo(ring, pool, connection))


async def run(options: argparse.Namespace) -> int:
    """Make the ring, the pool and the listener, and serve; returns the exit code."""
    address = ("127.0.0.1", 0) if options.check else (options.host, options.port)
    async with aiouring.AsyncRing() as ring:
        with (
            ring.register_buffer_ring(count=options.buffers, size=options.buffer_size) as pool,
            listen(*address) as listener,
        ):
            try:
                if options.check:
                    return await check(ring, pool, listener, options.loop)
                print("listening on {}:{}".format(*listener.getsockname()[:2]), flush=True)
                await serve(ring, pool, listener)
                return 0
            finally:
                print_statistics("ring", ring.statistics())
                print_statistics("pool", pool.statistics())


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=socket.SOMAXCONN)
    # Connections inherit this.  Without it the second chunk of an echo waits for the first one's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def print_statistics(name: str, statistics: aiouring.RingStatistics | aiouring.BufferRingStatistics) -> None:
    """Print one line of counts."""
    counts = dataclasses.asdict(statistics).items()
    print(f"{name}:", ", ".join(f"{key} {value:,}" for key, value in counts if value is not None), flush=True)


# ---- the check: plain sockets in another process, where a mistake of ours cannot hide ------------------

CONNECTIONS = 64
MESSAGES = 1_000  # on each connection
LARGEST = 5  # the largest message, in buffers
PERIOD = 61_001  # bytes; no multiple of any buffer's size, so that a buffer out of turn is noticed
PATIENCE = 30.0  # seconds without a byte before the server is said to hang


async def check(ring: aiouring.AsyncRing, pool: aiouring.BufferRing, listener: socket.socket, loop: str) -> int:
    """Serve while another process drives the server; print a summary; returns the exit code."""
    spawn = multiprocessing.get_context("spawn")
    # The driver dies of Ctrl-C in silence: it is this process that has something to say then.
    with ProcessPoolExecutor(1, spawn, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as executor:
        try:
            async with asyncio.TaskGroup() as tasks:
                server = tasks.create_task(serve(ring, pool, listener))
                outcome = await asyncio.get_running_loop().run_in_executor(
                    executor, drive, listener.getsockname(), LARGEST * pool.size
                )
                server.cancel()
        finally:
            listener.close()  # a driver that waits to be accepted would keep the executor from ending
    if outcome.failure:
        print(f"FAILED on {loop}: {outcome.failure}", flush=True)
        return 1
    rate = CONNECTIONS * MESSAGES / outcome.seconds
    print(
        f"ok on {loop}: {CONNECTIONS} connections x {MESSAGES:,} messages, {outcome.size / 1e6:,.1f} MB each way, "
        f"every byte compared, {outcome.seconds:.2f} s, {rate:,.0f} messages/s",
        flush=True,
    )
    return 0


@dataclasses.dataclass
class Outcome:
    """What the driving process has to tell: bytes sent, how long it took, and the first difference if any."""

    size: int
    seconds: float
    failure: str = ""


class EchoError(Exception):
    """The server did not send back what it was sent."""


class Client:
    """One connection: sends a message, waits until all of it is back, sends the next.

    What byte a stream has at a position is fixed beforehand and differs from stream to stream.  So a byte
    that is lost, repeated, moved, or another connection's is noticed.
    """

    def __init__(self, number: int, address: tuple[str, int], largest: int, selector: selectors.BaseSelector) -> None:
        source = random.Random(number)
        self.name = f"connection {number}"
        self.sizes = message_sizes(source, largest)
        period = source.randbytes(PERIOD)
        self.pattern = period * (1 + -(-largest // PERIOD))
        self.sent = self.received = self.end = 0  # positions in the stream; `end` is where the message ends
        self.finished = False
        self.socket = socket.create_connection(address, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)  # non-blocking
        self.selector = selector
        self.interest = selectors.EVENT_READ
        selector.register(self.socket, self.interest, self)

    def step(self, events: int) -> int:
        """Do what the socket is ready for; returns how many messages that completed, 0 or 1."""
        if events & selectors.EVENT_WRITE:
            self.send()
        if not events & selectors.EVENT_READ:
            return 0
        self.receive()
        if self.finished or self.received < self.end:
            return 0
        self.start_message()
        return 1

    def start_message(self) -> None:
        """Send the next message, or say that there is none."""
        size = next(self.sizes, 0)
        if size:
            self.end += size
            self.send()
        else:
            self.finished = True
            self.socket.shutdown(socket.SHUT_WR)

    def send(self) -> None:
        """Send what the socket takes of the message, and ask to be called again for the rest."""
        at = self.sent % PERIOD
        with contextlib.suppress(BlockingIOError):
            self.sent += self.socket.send(self.pattern[at : at + self.end - self.sent])
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.sent < self.end else 0)
        if interest != self.interest:
            self.interest = interest
            self.selector.modify(self.socket, interest, self)

    def receive(self) -> None:
        """Receive what there is and compare it; at the end of the stream, close."""
        data = self.socket.recv(self.sent - self.received + 1)  # one more, to notice what nobody sent
        start = self.received
        self.received += len(data)
        if not data:
            if not self.finished:
                raise EchoError(f"{self.name} was closed by the server at byte {start}")
            self.selector.unregister(self.socket)
            self.socket.close()
        elif self.received > self.sent:
            raise EchoError(f"{self.name} sent {self.sent} bytes and got {self.received} back")
        elif not self.pattern.startswith(data, start % PERIOD):
            raise EchoError(f"{self.name}: bytes {start} to {self.received} are not those that were sent")


def message_sizes(source: random.Random, largest: int) -> Iterator[int]:
    """Sizes in bytes: the smallest, the largest, and then each order of magnitude as often as any other."""
    yield 1
    yield largest
    for _ in range(MESSAGES - 2):
        yield int(largest ** source.random())


def drive(address: tuple[str, int], largest: int) -> Outcome:
    """Drive the server at `address`; runs in a process of its own and knows nothing of aiouring."""
    start = time.monotonic()
    clients: list[Client] = []
    failure = ""
    with selectors.DefaultSelector() as selector:
        try:
            clients.extend(Client(number, address, largest, selector) for number in range(CONNECTIONS))
            for client in clients:
                client.start_message()
            exchange(selector)
        except (EchoError, OSError) as error:
            failure = str(error)
            for client in clients:
                client.socket.close()
    return Outcome(sum(client.received for client in clients), time.monotonic() - start, failure)


def exchange(selector: selectors.BaseSelector) -> None:
    """Let every client do its steps until all have closed; shows the progress on a terminal."""
    done, shown = 0, time.monotonic()
    while selector.get_map():
        ready = selector.select(PATIENCE)
        if not ready:
            raise EchoError(f"the server has sent nothing for {PATIENCE:.0f} s, after {done:,} messages")
        for key, events in ready:
            done += key.data.step(events)
        if sys.stderr.isatty() and time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            print(f"\r{done:,} of {CONNECTIONS * MESSAGES:,} messages", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


# ---- the command line ----------------------------------------------------------------------------------


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="A TCP echo server on io_uring's provided buffers.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7777, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--buffers", type=int, default=256, help="buffers in the pool, a power of two (%(default)s)")
    parser.add_argument("--buffer-size", type=int, default=4096, help="bytes in each (%(default)s)")
    parser.add_argument("--check", action="store_true", help="check the server on a free loopback port, then exit")
    options = parser.parse_args()
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port {options.port} is outside 0 to {(1 << 16) - 1}")
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if options.loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            parser.error("--loop uvloop needs uvloop, which is not installed: pip install uvloop")
        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(run(options))
    except KeyboardInterrupt:
        return 130
    except aiouring.RingUnavailableError as error:
        print(f"io_uring is not available here: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:  # a number that aiouring refuses; its text says why
        parser.error(str(error))
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
