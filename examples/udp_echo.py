"""Owns the UDP echo server: one receive that stays armed per address, and a reply straight from the received buffer.

    python examples/udp_echo.py                     # then, elsewhere: nc -u 127.0.0.1 7777, or nc -u ::1 7777
    python examples/udp_echo.py --loop uvloop --host 0.0.0.0
    python examples/udp_echo.py --check             # drives it on 127.0.0.1 and ::1 and compares every byte

The kernel puts each datagram into a buffer of the pool, with its sender's address before it; sending it back needs no
copy of ours, and returns the buffer.

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
from typing import Any

import aiouring


@dataclasses.dataclass
class Counts:
    """What became of the datagrams of one socket."""

    echoed: int = 0
    cut_off: int = 0  # longer than a buffer: not sent back
    not_sent: int = 0  # the network refused the reply


async def echo(ring: aiouring.AsyncRing, pool: aiouring.BufferRing, sock: socket.socket, counts: Counts) -> None:
    """Send each datagram back to where it came from, until cancelled."""
    async with ring.recvmsg_multishot(sock, pool) as stream:
        async for message in stream:
            with message:  # ... whose buffer goes back to the pool at the end of this block
                if message.flags & socket.MSG_TRUNC:
                    counts.cut_off += 1
                    continue
                try:
                    await ring.sendto(sock, message, message.address)
                    counts.echoed += 1
                except OSError as error:  # unreachable, forbidden: that concerns this one and no other
                    counts.not_sent += 1
                    print(f"no reply to {message.address}: {error}", file=sys.stderr)


async def run(options: argparse.Namespace) -> int:
    """Make the ring, and a socket and a pool for each address; serve; returns the exit code."""
    hosts = options.host or local_hosts()
    size = options.largest + 64  # room for what comes before each payload: 16 bytes and an address
    async with aiouring.AsyncRing() as ring:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(bound(host, 0 if options.check else options.port)) for host in hosts]
            pools = [stack.enter_context(ring.register_buffer_ring(count=options.buffers, size=size)) for _ in sockets]
            counts = [Counts() for _ in sockets]
            status = 0
            try:
                async with asyncio.TaskGroup() as tasks:
                    servers = [
                        tasks.create_task(echo(ring, *each)) for each in zip(pools, sockets, counts, strict=True)
                    ]
                    if options.check:
                        status = await check([sock.getsockname() for sock in sockets], options)
                        for server in servers:
                            server.cancel()
                    else:
                        for sock in sockets:
                            print("listening on {} port {}".format(*sock.getsockname()[:2]), flush=True)
            except* OSError as failures:
                print(f"the network failed: {failures.exceptions}", file=sys.stderr)
                status = 1
            finally:
                print_counts("ring", ring.statistics())
                for sock, pool, count in zip(sockets, pools, counts, strict=True):
                    print_counts(sock.getsockname()[0], count)
                    print_counts("pool", pool.statistics())
            return status


def local_hosts() -> list[str]:
    """127.0.0.1, and ::1 where there is IPv6."""
    with contextlib.suppress(OSError), bound("::1", 0):
        return ["127.0.0.1", "::1"]
    return ["127.0.0.1"]


def bound(host: str, port: int) -> socket.socket:
    """A UDP socket with an address; port 0 takes a free one."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
        sock.settimeout(0)  # non-blocking
    except BaseException:
        sock.close()
        raise
    return sock


def print_counts(name: str, counts: Any) -> None:
    """Print one line of counts."""
    found = dataclasses.asdict(counts).items()
    print(f"{name}:", ", ".join(f"{key} {value:,}" for key, value in found if value is not None), flush=True)


# ---- the check: plain sockets in another process, where a mistake of ours cannot hide ------------------

CLIENTS = 16  # to each address; fewer where their datagrams together would not fit a socket's buffer
IN_FLIGHT = 1 << 16  # bytes
MESSAGES = 1_000  # of each client
PATIENCE = 30.0  # seconds without a datagram before one is said to be lost


async def check(addresses: list[Any], options: argparse.Namespace) -> int:
    """Have another process drive the server; print a summary; returns the exit code."""
    spawn = multiprocessing.get_context("spawn")
    # The driver dies of Ctrl-C in silence: it is this process that has something to say then.
    with ProcessPoolExecutor(1, spawn, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as executor:
        outcome = await asyncio.get_running_loop().run_in_executor(executor, drive, addresses, options.largest)
    if outcome.failure:
        print(f"FAILED on {options.loop}: {outcome.failure}", flush=True)
        return 1
    clients = clients_for(options.largest)
    count = len(addresses) * clients * MESSAGES
    print(
        f"ok on {options.loop}: {len(addresses)} addresses x {clients} clients x {MESSAGES:,} datagrams, "
        f"{outcome.size / 1e6:,.1f} MB each way, every byte compared, {outcome.seconds:.2f} s, "
        f"{count / outcome.seconds:,.0f} datagrams/s",
        flush=True,
    )
    return 0


def clients_for(largest: int) -> int:
    """How many clients each address gets."""
    return max(1, min(CLIENTS, IN_FLIGHT // largest))


@dataclasses.dataclass
class Outcome:
    """What the driving process has to tell: bytes sent, how long it took, and the first difference if any."""

    size: int
    seconds: float
    failure: str = ""


class EchoError(Exception):
    """The server did not send back what it was sent."""


class Client:
    """One socket: sends a datagram, waits until it is back, sends the next.  One at a time, so that none is lost."""

    def __init__(self, number: int, address: Any, largest: int) -> None:
        source = random.Random(number)
        self.name = f"client {number} of {address[0]}"
        self.address = address
        self.messages = datagrams(source, largest)
        self.message = b""
        self.size = 0
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(0)  # non-blocking

    def send(self) -> bool:
        """Send the next datagram; False if there is none."""
        message = next(self.messages, None)
        if message is None:
            self.socket.close()
            return False
        self.message = message
        self.size += len(message)
        self.socket.sendto(message, self.address)
        return True

    def receive(self) -> None:
        """Take the reply, and compare it."""
        reply, sender = self.socket.recvfrom(65536)
        if sender[:2] != self.address[:2]:
            raise EchoError(f"{self.name} got a reply from {sender}")
        if reply != self.message:
            raise EchoError(f"{self.name} sent {len(self.message)} bytes and got {len(reply)} others back")


def datagrams(source: random.Random, largest: int) -> Iterator[bytes]:
    """The empty one, the largest, and then each order of magnitude as often as any other."""
    yield b""
    yield source.randbytes(largest)
    for _ in range(MESSAGES - 2):
        yield source.randbytes(int(largest ** source.random()))


def drive(addresses: list[Any], largest: int) -> Outcome:
    """Drive the server; runs in a process of its own and knows nothing of aiouring."""
    start = time.monotonic()
    clients = [Client(number, address, largest) for address in addresses for number in range(clients_for(largest))]
    failure = ""
    with selectors.DefaultSelector() as selector:
        try:
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
                client.send()
            exchange(selector, len(clients))
        except (EchoError, OSError) as error:
            failure = str(error)
            for client in clients:
                client.socket.close()
    return Outcome(sum(client.size for client in clients), time.monotonic() - start, failure)


def exchange(selector: selectors.BaseSelector, count: int) -> None:
    """Let every client go on until all have ended; shows the progress on a terminal."""
    done, shown = 0, time.monotonic()
    while selector.get_map():
        ready = selector.select(PATIENCE)
        if not ready:
            raise EchoError(f"a datagram was lost: none came for {PATIENCE:.0f} s, after {done:,}")
        for key, _ in ready:
            key.data.receive()
            done += 1
            number = key.fd
            if not key.data.send():
                selector.unregister(number)
        if sys.stderr.isatty() and time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            print(f"\r{done:,} of {count * MESSAGES:,} datagrams", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


# ---- the command line ----------------------------------------------------------------------------------


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="A UDP echo server on io_uring's multishot receive.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", action="append", help="address to listen on, may be repeated (127.0.0.1 and ::1)")
    parser.add_argument("--port", type=int, default=7777, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--buffers", type=int, default=64, help="buffers per socket, a power of two (%(default)s)")
    parser.add_argument("--largest", type=int, default=2048, help="bytes of the largest datagram (%(default)s)")
    parser.add_argument("--check", action="store_true", help="check the server on free loopback ports, then exit")
    options = parser.parse_args()
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port {options.port} is outside 0 to {(1 << 16) - 1}")
    if not 1 <= options.largest <= 65507:
        parser.error(f"--largest {options.largest} is outside 1 to 65507, the most that UDP carries over IPv4")
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
