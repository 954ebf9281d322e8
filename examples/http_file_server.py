"""Owns the HTTP server for files: read into registered buffers, and sent from where they were read.

    python examples/http_file_server.py DIRECTORY         # then, elsewhere: curl -O http://127.0.0.1:8080/name
    python examples/http_file_server.py DIRECTORY --loop uvloop --port 80 --host ::

HTTP/1.1 with keep-alive and pipelining, GET and HEAD, ranges (one or several), ETag and Last-Modified with what
browsers ask about them.  The protocol is h11's (pip install h11); which files, and what is said of them, is in
`served_files.py`.  Where a file has become shorter since its length was sent the connection is closed: that is how HTTP
tells that not all of it has come.

A client has `--patience` seconds for each request, and as many to take what waits for it: it holds a buffer meanwhile.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from email.utils import formatdate
from urllib.parse import unquote_to_bytes

import h11
from served_files import Answer, File, Files, RefusedError, make_parser, run_server

import aiouring


class FileServer:
    """Serves them, one client at a time in each task."""

    def __init__(self, files: Files, patience: float) -> None:
        self.files = files
        self.patience = patience  # seconds
        self.requests = 0

    def __str__(self) -> str:
        return f"http: {self.requests:,} requests, {self.files}"

    async def serve(self, connection: aiouring.Connection) -> None:
        """One client, request by request, as long as both want to go on."""
        try:
            protocol = h11.Connection(h11.SERVER)
            while True:
                async with asyncio.timeout(self.patience):
                    request = await self.next_request(connection, protocol)
                if request is None:
                    return
                self.requests += 1
                await self.answer(connection, protocol, request)
                if set(protocol.states.values()) != {h11.DONE}:
                    break  # one of both wants to go on no more
                protocol.start_next_cycle()
            await connection.send_eof()
        except (OSError, TimeoutError, EOFError) as error:  # that ends this connection and no other
            connection.abort()
            if isinstance(error, EOFError):
                print(error, file=sys.stderr)

    async def next_request(self, connection: aiouring.Connection, protocol: h11.Connection) -> h11.Request | None:
        """The next request, whose body is passed over; None at the end."""
        request: h11.Request | None = None
        try:
            while True:
                event = protocol.next_event()
                if event is h11.NEED_DATA:
                    with await connection.receive() as chunk:
                        protocol.receive_data(bytes(chunk.view))
                elif isinstance(event, h11.Request):
                    request = event
                    if protocol.they_are_waiting_for_100_continue:
                        return request  # it is answered without its body, and that is the last
                elif isinstance(event, h11.EndOfMessage):
                    return request
                elif isinstance(event, h11.ConnectionClosed):
                    return None
        except h11.RemoteProtocolError as error:
            if protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self.send(connection, protocol, RefusedError(error.error_status_hint).answer(b""))
                await connection.send_eof()
            return None

    async def answer(self, connection: aiouring.Connection, protocol: h11.Connection, request: h11.Request) -> None:
        """Send what was asked for, or why not."""
        try:
            if request.method not in (b"GET", b"HEAD"):
                raise RefusedError(405, [(b"Allow", b"GET, HEAD")])
            path = unquote_to_bytes(request.target.partition(b"?")[0].partition(b"#")[0])
            async with contextlib.AsyncExitStack() as stack:
                file = await self.files.open(path, stack)
                await self.send(connection, protocol, file.answer(request.method, dict(request.headers)), file)
        except RefusedError as error:
            await self.send(connection, protocol, error.answer(request.method))
        async with asyncio.timeout(self.patience):
            await connection.drain()

    async def send(
        self, connection: aiouring.Connection, protocol: h11.Connection, answer: Answer, file: File | None = None
    ) -> None:
        """Send an answer, with the parts of the file that it is of."""
        date = (b"Date", formatdate(usegmt=True).encode())
        connection.write(protocol.send(h11.Response(status_code=answer.status, headers=[date, *answer.headers])) or b"")
        for each in answer.body:
            if isinstance(each, bytes):
                self.data(connection, protocol, each)
            else:
                assert file is not None
                await self.send_part(connection, protocol, file, each)
        connection.write(protocol.send(h11.EndOfMessage()) or b"")

    async def send_part(
        self, connection: aiouring.Connection, protocol: h11.Connection, file: File, part: range
    ) -> None:
        """Send some bytes of a file, a buffer at a time: the next is read while the last is on its way."""
        at = part.start
        while at < part.stop:
            buffer = await self.files.buffers.acquire()
            try:
                count = await self.files.fill(file, buffer, at, part.stop)
                if count == len(buffer):
                    self.data(connection, protocol, buffer)  # handed over: it is free again when it is sent
                else:
                    self.data(connection, protocol, bytes(buffer.view[:count]))
                    buffer.release()
            except BaseException:
                with contextlib.suppress(ValueError):  # it was handed over
                    buffer.release()
                raise
            at += count
            async with asyncio.timeout(self.patience):
                await connection.drain()

    def data(
        self, connection: aiouring.Connection, protocol: h11.Connection, data: bytes | aiouring.FixedBuffer
    ) -> None:
        """Go on with an answer; h11 only counts what passes through."""
        for piece in protocol.send_with_data_passthrough(h11.Data(data=data)) or ():  # type: ignore[arg-type]
            connection.write(piece)


async def run(options: argparse.Namespace) -> None:
    """Serve until cancelled."""
    root = os.open(options.directory, os.O_PATH | os.O_DIRECTORY)
    ring = aiouring.default_ring()
    try:
        with ring.register_buffers(count=options.buffers, size=options.buffer_size) as buffers:
            files = FileServer(Files(ring, buffers, root), options.patience)
            async with await aiouring.start_server(files.serve, options.host, options.port) as server:
                try:
                    print("listening on {}:{}".format(*server.sockets[0].getsockname()[:2]), flush=True)
                    await asyncio.get_running_loop().create_future()
                finally:
                    server.close()
                    server.abort_clients()
                    await server.wait_closed()
                    print(files, flush=True)
    finally:
        os.close(root)


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    parser = make_parser("An HTTP server for files, on registered buffers.")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a client has (%(default)s)")
    return run_server(parser, run)


if __name__ == "__main__":
    sys.exit(main())
