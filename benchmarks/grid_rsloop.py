"""Owns the grid's servers on rsloop, a loop in Rust on io_uring: `python -c TEXT streams|protocol CORE`.

rsloop needs a newer C library than most of what aiouring supports has, so an interpreter of its own runs this, perhaps
in another root directory: the text imports nothing of ours, and asyncio's streams and protocols are all it knows.
"""

import asyncio
import importlib
import json
import os
import signal
import socket
import sys
from typing import cast

READ = 64 * 1024
LIFETIME = 600  # seconds after which a forgotten server dies


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo one connection until its end."""
    while data := await reader.read(READ):
        writer.write(data)
        await writer.drain()
    writer.close()


class EchoProtocol(asyncio.Protocol):
    """The same with callbacks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._write(data)


async def serve(kind: str) -> None:
    """Listen on a free port of the loopback interface until standard input ends."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.settimeout(0)
        if kind == "streams":
            await asyncio.start_server(echo_stream, sock=listener)
        else:
            await loop.create_server(EchoProtocol, sock=listener)
        print(json.dumps({"port": listener.getsockname()[1], "pid": os.getpid()}), flush=True)
        while await loop.run_in_executor(None, os.read, 0, 1):
            print("{}", flush=True)
        os._exit(0)


if __name__ == "__main__":
    signal.alarm(LIFETIME)
    os.sched_setaffinity(0, {int(sys.argv[2])})
    importlib.import_module("rsloop").run(serve(sys.argv[1]))
