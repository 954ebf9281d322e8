"""Owns the HTTP server for files: read into registered buffers, and sent from where they were read.

    python examples/http_file_server.py DIRECTORY         # then, elsewhere: curl -O http://127.0.0.1:8080/name
    python examples/http_file_server.py DIRECTORY --loop uvloop --port 80 --host ::

HTTP/1.1 with keep-alive and pipelining, GET and HEAD, ranges (one or several), ETag and Last-Modified with what
browsers ask about them.  The protocol is h11's (pip install h11).  Only files below the directory are served: each step
of a path is opened from the last, no symbolic link is followed, and nothing leads upwards.  Where a file has become
shorter since its length was sent the connection is closed: that is how HTTP tells that not all of it has come.

A client has `--patience` seconds for each request, and as many to take what waits for it: it holds a buffer meanwhile.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import errno
import mimetypes
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import unquote_to_bytes

import h11

import aiouring

RANGES = 16  # in one request; more are answered with the whole file
INDEX = b"index.html"
Headers = list[tuple[bytes, bytes]]


class RefusedError(Exception):
    """A request is answered with an error, by its status."""

    def __init__(self, status: int, headers: Headers | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or []


@dataclass(frozen=True)
class File:
    """An open file, as it was when it was opened."""

    fd: int
    kind: bytes
    size: int  # bytes
    modified: int  # seconds
    tag: bytes

    @property
    def headers(self) -> Headers:
        """What is said of it in every answer."""
        date = formatdate(self.modified, usegmt=True).encode()
        return [(b"ETag", self.tag), (b"Last-Modified", date), (b"Accept-Ranges", b"bytes")]

    def is_known(self, asked: dict[bytes, bytes]) -> bool:
        """Whether the client has this version already."""
        if (tags := asked.get(b"if-none-match")) is not None:
            return tags.strip() == b"*" or self.tag in [tag.strip().removeprefix(b"W/") for tag in tags.split(b",")]
        with contextlib.suppress(ValueError):
            since = parsedate_to_datetime(asked.get(b"if-modified-since", b"").decode("latin-1"))
            return self.modified <= since.timestamp()
        return False

    def ranges(self, asked: dict[bytes, bytes]) -> list[range] | None:
        """What is wanted of it, None for all; raises where there is no such part."""
        found = re.fullmatch(rb"bytes=([0-9, \t-]+)", asked.get(b"range", b""))
        if found is None or asked.get(b"if-range", self.tag) != self.tag:
            return None
        wanted = []
        for each in found[1].split(b","):
            part = re.fullmatch(rb"(\d*)-(\d*)", each.strip())
            if part is None or (not part[1] and not part[2]) or (part[1] and part[2] and int(part[1]) > int(part[2])):
                return None  # it says nothing that can be understood, so it is passed over
            if part[1]:
                wanted.append(range(int(part[1]), min(int(part[2] or self.size) + 1, self.size)))
            else:
                wanted.append(range(max(0, self.size - int(part[2])), self.size))
        there = [each for each in wanted if each]
        if not there:
            raise RefusedError(416, [(b"Content-Range", b"bytes */%d" % self.size)])
        return there if len(there) <= RANGES else None


class FileServer:
    """The files below one directory."""

    def __init__(
        self, ring: aiouring.AsyncRing, buffers: aiouring.RegisteredBuffers, root: int, patience: float
    ) -> None:
        self.ring = ring
        self.buffers = buffers
        self.root = root  # a descriptor
        self.patience = patience  # seconds
        self.requests = self.sent = 0

    def __str__(self) -> str:
        return f"http: {self.requests:,} requests, {self.sent:,} bytes of files, {self.buffers.statistics()}"

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
                self.refuse(connection, protocol, RefusedError(error.error_status_hint), body=True)
                await connection.send_eof()
            return None

    async def answer(self, connection: aiouring.Connection, protocol: h11.Connection, request: h11.Request) -> None:
        """Send what was asked for, or why not."""
        asked = dict(request.headers)
        try:
            if request.method not in (b"GET", b"HEAD"):
                raise RefusedError(405, [(b"Allow", b"GET, HEAD")])
            async with contextlib.AsyncExitStack() as stack:
                file = await self.open(request.target, stack)
                if file.is_known(asked):
                    self.head(connection, protocol, 304, file.headers)
                else:
                    ranges = file.ranges(asked) if request.method == b"GET" else None
                    await self.send(connection, protocol, file, ranges, body=request.method == b"GET")
            self.end(connection, protocol)
        except RefusedError as error:
            self.refuse(connection, protocol, error, body=request.method != b"HEAD")
        async with asyncio.timeout(self.patience):
            await connection.drain()

    # ---- files ---------------------------------------------------------------------------------

    async def open(self, target: bytes, stack: contextlib.AsyncExitStack) -> File:
        """Open what a request names, until `stack` is left."""
        path = unquote_to_bytes(target.partition(b"?")[0].partition(b"#")[0])
        steps = path.split(b"/")
        if steps[0] or b"\0" in path or any(step in (b".", b"..") for step in steps) or b"" in steps[1:-1]:
            raise RefusedError(404)
        steps = [*steps[1:-1], steps[-1] or INDEX]
        fd = self.root
        for number, step in enumerate(steps, 1):
            flags = os.O_NOFOLLOW | (os.O_DIRECTORY | os.O_PATH if number < len(steps) else os.O_NONBLOCK)
            try:
                fd = await self.ring.openat(step, flags, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise RefusedError(503, [(b"Retry-After", b"1")]) from None
                raise RefusedError(403 if error.errno == errno.EACCES else 404) from None
            stack.push_async_callback(self.ring.close, fd)
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise RefusedError(301, [(b"Location", b"/" + target.partition(b"?")[0].strip(b"/") + b"/")])
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(404)
        kind = (mimetypes.guess_type(os.fsdecode(steps[-1]))[0] or "application/octet-stream").encode()
        tag = b'"%x-%x"' % (status.st_mtime_ns, status.st_size)
        return File(fd, kind, status.st_size, int(status.st_mtime), tag)

    async def send(
        self,
        connection: aiouring.Connection,
        protocol: h11.Connection,
        file: File,
        ranges: list[range] | None,
        *,
        body: bool,
    ) -> None:
        """Send the file, or the ranges of it."""
        whole = range(file.size)
        headers = [*file.headers, (b"Content-Type", file.kind)]
        if ranges is None or len(ranges) == 1:
            part = whole if ranges is None else ranges[0]
            if ranges is not None:
                headers.append((b"Content-Range", content_range(part, file)))
            self.head(
                connection, protocol, 200 if ranges is None else 206, [*headers, (b"Content-Length", b"%d" % len(part))]
            )
            if body:
                await self.send_part(connection, protocol, file, part)
            return
        boundary = secrets.token_hex(12).encode()
        parts = list(multipart(file, ranges, boundary))
        end = b"--%b--\r\n" % boundary
        length = sum(len(intro) + len(part) + 2 for intro, part in parts) + len(end)
        headers[-1] = (b"Content-Type", b"multipart/byteranges; boundary=" + boundary)
        self.head(connection, protocol, 206, [*headers, (b"Content-Length", b"%d" % length)])
        for intro, part in parts:
            self.data(connection, protocol, intro)
            await self.send_part(connection, protocol, file, part)
            self.data(connection, protocol, b"\r\n")
        self.data(connection, protocol, end)

    async def send_part(
        self, connection: aiouring.Connection, protocol: h11.Connection, file: File, part: range
    ) -> None:
        """Send some bytes of a file, a buffer at a time: the next is read while the last is on its way."""
        at = part.start
        while at < part.stop:
            buffer = await self.buffers.acquire()
            try:
                count = await self.ring.read_fixed(file.fd, buffer, offset=at, length=min(len(buffer), part.stop - at))
                if not count:
                    raise EOFError(f"a file became shorter than {part.stop} bytes while it was sent")
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
            self.sent += count
            async with asyncio.timeout(self.patience):
                await connection.drain()

    # ---- what h11 says of it -------------------------------------------------------------------

    def head(self, connection: aiouring.Connection, protocol: h11.Connection, status: int, headers: Headers) -> None:
        """Begin an answer."""
        date = (b"Date", formatdate(usegmt=True).encode())
        connection.write(protocol.send(h11.Response(status_code=status, headers=[date, *headers])) or b"")

    def data(
        self, connection: aiouring.Connection, protocol: h11.Connection, data: bytes | aiouring.FixedBuffer
    ) -> None:
        """Go on with it; h11 only counts what passes through."""
        for piece in protocol.send_with_data_passthrough(h11.Data(data=data)) or ():  # type: ignore[arg-type]
            connection.write(piece)

    def end(self, connection: aiouring.Connection, protocol: h11.Connection) -> None:
        """End it."""
        connection.write(protocol.send(h11.EndOfMessage()) or b"")

    def refuse(
        self, connection: aiouring.Connection, protocol: h11.Connection, error: RefusedError, *, body: bool
    ) -> None:
        """Answer with an error."""
        text = b"%d\n" % error.status
        headers = [(b"Content-Type", b"text/plain"), (b"Content-Length", b"%d" % len(text)), *error.headers]
        self.head(connection, protocol, error.status, headers)
        if body:
            self.data(connection, protocol, text)
        self.end(connection, protocol)


def content_range(part: range, file: File) -> bytes:
    """Where a part lies in its file."""
    return b"bytes %d-%d/%d" % (part.start, part.stop - 1, file.size)


def multipart(file: File, ranges: list[range], boundary: bytes) -> Iterator[tuple[bytes, range]]:
    """Each range with what stands before it."""
    for part in ranges:
        lines = (b"--" + boundary, b"Content-Type: " + file.kind, b"Content-Range: " + content_range(part, file))
        yield b"\r\n".join(lines) + b"\r\n\r\n", part


async def run(options: argparse.Namespace) -> int:
    """Serve until cancelled."""
    root = os.open(options.directory, os.O_PATH | os.O_DIRECTORY)
    ring = aiouring.default_ring()
    try:
        with ring.register_buffers(count=options.buffers, size=options.buffer_size) as buffers:
            files = FileServer(ring, buffers, root, options.patience)
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
    return 0


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="An HTTP server for files, on registered buffers.")
    parser.add_argument("directory", help="what is below it is served")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a client has (%(default)s)")
    parser.add_argument("--buffers", type=int, default=64, help="registered buffers (%(default)s)")
    parser.add_argument("--buffer-size", type=int, default=65536, help="bytes in each (%(default)s)")
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
