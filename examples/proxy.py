"""Owns the TCP forwarder: every connection to it is passed on to one other place, in both directions.

    python examples/proxy.py example.org 80            # then, elsewhere: curl -H 'Host: example.org' 127.0.0.1:7777
    python examples/proxy.py --port 7000 127.0.0.1 7777 --loop uvloop

A buffer that the kernel filled on one side is handed to the other side as it is, and goes back to the pool when it is
sent: nothing is copied in this process.  The end of a stream is passed on, and the other direction goes on until its
own end; a connection that fails ends both.  Who does not read stops the other side, because only so much is received
in advance; one for whom that takes more than `--patience` seconds is given up, since the buffers that wait for him are
missed by the others.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import collections
import dataclasses
import sys

import aiouring

AHEAD = 4  # chunks that are received in advance, on each connection


@dataclasses.dataclass
class Proxy:
    """Where connections are passed on to, and what has been passed on."""

    host: str
    port: int
    pool: aiouring.BufferRing
    patience: float  # seconds
    open: int = 0
    served: int = 0
    failed: int = 0
    passed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # bytes in each direction

    def __str__(self) -> str:
        return (
            f"proxy: {self.open} connections open, {self.served:,} served, {self.failed:,} failed, "
            f"{self.passed['there']:,} bytes there, {self.passed['back']:,} bytes back"
        )

    async def serve(self, near: aiouring.Connection) -> None:
        """Connect to the other place, and pass everything on in both directions."""
        self.open += 1
        try:
            async with (
                await aiouring.open_connection(self.host, self.port, group=self.pool, max_pending=AHEAD) as far,
                asyncio.TaskGroup() as directions,
            ):
                directions.create_task(self.pass_on(near, far, "there"))
                directions.create_task(self.pass_on(far, near, "back"))
            self.served += 1
        except* (OSError, TimeoutError) as errors:  # that ends this connection and no other
            self.failed += 1
            near.abort()
            reason = errors.exceptions[0]
            if not isinstance(reason, ConnectionAbortedError):  # it is we who closed it
                print(f"a connection was lost: {str(reason) or 'a peer did not read'}", file=sys.stderr)
        finally:
            self.open -= 1

    async def pass_on(self, source: aiouring.Connection, sink: aiouring.Connection, way: str) -> None:
        """One direction, to the end of its stream."""
        async for chunk in source:
            self.passed[way] += len(chunk)
            sink.write(chunk)  # hands the buffer over: it goes back to the pool when it is sent
            async with asyncio.timeout(self.patience):
                await sink.drain()
        async with asyncio.timeout(self.patience):
            await sink.send_eof()


async def run(options: argparse.Namespace) -> int:
    """Listen until cancelled; shows on a terminal what goes on."""
    ring = aiouring.default_ring()
    pool = ring.register_buffer_ring(count=options.buffers, size=options.buffer_size)
    proxy = Proxy(options.target_host, options.target_port, pool, options.patience)
    server = await aiouring.start_server(proxy.serve, options.host, options.port, group=pool, max_pending=AHEAD)
    async with server:
        try:
            print("listening on {}:{}".format(*server.sockets[0].getsockname()[:2]), flush=True)
            while True:
                await asyncio.sleep(1)
                if sys.stderr.isatty():
                    print(f"\r\033[K{proxy}", end="", file=sys.stderr, flush=True)
        finally:
            server.close()
            server.abort_clients()
            await server.wait_closed()
            print(f"{proxy}; {pool.statistics().in_use} buffers in use", flush=True)


def main() -> int:
    """Run the proxy on the loop that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="A TCP forwarder that hands received buffers on.")
    parser.add_argument("target_host", help="where connections are passed on to")
    parser.add_argument("target_port", type=int, help="its port")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7777, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a peer has to read (%(default)s)")
    parser.add_argument("--buffers", type=int, default=256, help="buffers in the pool, a power of two (%(default)s)")
    parser.add_argument("--buffer-size", type=int, default=16384, help="bytes in each (%(default)s)")
    options = parser.parse_args()
    for name in ("port", "target_port"):
        if not 0 <= getattr(options, name) < 1 << 16:
            parser.error(f"{name} {getattr(options, name)} is outside 0 to {(1 << 16) - 1}")
    loop_factory = None
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
