"""Owns the echo server of many processes: each has a loop, a ring and a pool of its own, and they share one port.

    python examples/echo_processes.py                # one for each processor; then, elsewhere: nc 127.0.0.1 7777
    python examples/echo_processes.py --processes 2 --port 0

Every process listens on the port by itself (SO_REUSEPORT), and the kernel shares the connections out among them: there
is nothing to hand over and nothing to lock.  Ctrl-C, or SIGTERM to the first process, closes all of them: connections
that are open are closed when what was written to them has been sent, or after five seconds.

Exit codes: 0, 1 if the network failed or a process did, 2 for wrong options or no io_uring.
"""

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
import sys

import aiouring

PATIENCE = 5  # seconds that a peer has, in the end, to take what was written


async def echo(connection: aiouring.Connection) -> None:
    """Send back whatever one peer sends, until it has nothing more to say."""
    try:
        async for chunk in connection:
            connection.write(chunk)  # hands the buffer over: it goes back to the pool when it is sent
            await connection.drain()
    except (ConnectionResetError, BrokenPipeError) as error:  # that ends this connection and no other
        print(f"a connection was lost: {error}", file=sys.stderr)


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM, on the loop's own ring."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C goes to all of us: the first process tells us
    async with await aiouring.start_server(echo, host, port, reuse_port=True) as server:
        line = f"process {os.getpid()} listens on port {server.sockets[0].getsockname()[1]}\n"
        sys.stdout.write(line)  # in one piece, as print() need not: two processes write to one pipe
        sys.stdout.flush()
        await stop.wait()
        server.close()
        server.close_clients()
        try:
            async with asyncio.timeout(PATIENCE):
                await server.wait_closed()
        except TimeoutError:
            server.abort_clients()


def run(host: str, port: int) -> None:
    """One process."""
    asyncio.run(serve(host, port))


def main() -> int:
    """Start the processes and wait for them; returns the exit code."""
    parser = argparse.ArgumentParser(description="A TCP echo server in several processes on one port.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7777, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many (%(default)s)")
    options = parser.parse_args()
    if found := aiouring.probe().reason:
        print(f"io_uring is not available here: {found}", file=sys.stderr)
        return 2
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as reserved:  # bound but not listening: it keeps a free port for us, and takes nothing
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            reserved.bind((options.host, options.port))
        except OSError as error:
            print(f"{parser.prog}: {options.host} port {options.port}: {error.strerror}", file=sys.stderr)
            return 1
        address = reserved.getsockname()[:2]
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=run, args=address) for _ in range(options.processes)]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            started = [process for process in processes if process.pid is not None]
            for process in started:
                process.terminate()
            for process in started:
                process.join()
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main())
