"""Owns what the servers for files here share: the files below a directory, and what HTTP says about one.

`http_file_server.py`, `static_files_aiohttp.py` and `static_files_asgi.py` are built on it.  Only files below the
directory are served: each step of a path is opened from the last, no symbolic link is followed, and nothing leads
upwards.
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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote_from_bytes

import aiouring

RANGES = 16  # in one request; more are answered with the whole file
INDEX = b"index.html"
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """What is to be sent: a status, headers, and a body of bytes and of parts of the file."""

    status: int
    headers: Headers
    body: list[bytes | range]


class RefusedError(Exception):
    """A request is answered with an error, by its status."""

    def __init__(self, status: int, headers: Headers | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or []

    def answer(self, method: bytes) -> Answer:
        """What is sent instead of a file."""
        text = b"%d\n" % self.status
        headers = [(b"Content-Type", b"text/plain"), (b"Content-Length", b"%d" % len(text)), *self.headers]
        return Answer(self.status, headers, [] if method == b"HEAD" else [text])


@dataclass(frozen=True)
class File:
    """An open file, as it was when it was opened."""

    fd: int
    kind: bytes
    size: int  # bytes
    modified: int  # seconds
    tag: bytes

    def answer(self, method: bytes, asked: dict[bytes, bytes]) -> Answer:
        """What a GET or HEAD of it with these headers (names in lower case) is to be sent."""
        date = formatdate(self.modified, usegmt=True).encode()
        headers = [(b"ETag", self.tag), (b"Last-Modified", date), (b"Accept-Ranges", b"bytes")]
        if self.is_known(asked):
            return Answer(304, headers, [])
        ranges = self.ranges(asked) if method == b"GET" else None
        kind, body = self.kind, list[bytes | range]()
        if ranges is None:
            body.append(range(self.size))
        elif len(ranges) == 1:
            body.append(ranges[0])
            headers.append((b"Content-Range", self.place(ranges[0])))
        else:
            boundary = secrets.token_hex(12).encode()
            for part in ranges:
                lines = (b"--" + boundary, b"Content-Type: " + kind, b"Content-Range: " + self.place(part))
                body += [b"\r\n".join(lines) + b"\r\n\r\n", part, b"\r\n"]
            body.append(b"--%b--\r\n" % boundary)
            kind = b"multipart/byteranges; boundary=" + boundary
        headers += [(b"Content-Type", kind), (b"Content-Length", b"%d" % sum(map(len, body)))]
        return Answer(200 if ranges is None else 206, headers, [] if method == b"HEAD" else body)

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

    def place(self, part: range) -> bytes:
        """Where a part lies in it."""
        return b"bytes %d-%d/%d" % (part.start, part.stop - 1, self.size)


class Files:
    """The files below one directory, and the registered buffers into which they are read."""

    def __init__(self, ring: aiouring.AsyncRing, buffers: aiouring.RegisteredBuffers, root: int) -> None:
        self.ring = ring
        self.buffers = buffers
        self.root = root  # a descriptor
        self.sent = 0  # bytes

    def __str__(self) -> str:
        return f"{self.sent:,} bytes of files, {self.buffers.statistics()}"

    async def open(self, path: bytes, stack: contextlib.AsyncExitStack) -> File:
        """Open what a path (that begins with a slash, and has no escapes any more) names, until `stack` is left."""
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
        if stat.S_ISDIR(status.st_mode):  # relative, so that it is right wherever this is mounted
            raise RefusedError(301, [(b"Location", b"./" + quote_from_bytes(steps[-1]).encode() + b"/")])
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(404)
        kind = (mimetypes.guess_type(os.fsdecode(steps[-1]))[0] or "application/octet-stream").encode()
        tag = b'"%x-%x"' % (status.st_mtime_ns, status.st_size)
        return File(fd, kind, status.st_size, int(status.st_mtime), tag)

    async def fill(self, file: File, buffer: aiouring.FixedBuffer, at: int, stop: int) -> int:
        """Read bytes of a file, from `at` to `stop` at most, into a buffer; returns how many.

        Raises:
            EOFError: the file has become shorter.  Its length has been sent by then, so all that can be said is that
                not everything comes: the connection is to be closed.
        """
        count = await self.ring.read_fixed(file.fd, buffer, offset=at, length=min(len(buffer), stop - at))
        if not count:
            raise EOFError(f"a file became shorter than {stop} bytes while it was sent")
        self.sent += count
        return count

    async def body(self, file: File | None, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The body of an answer, piece by piece, for servers that take bytes.

        Such a server keeps what it is given until the client has taken it, and does not say when that is.  So it gets a
        copy, and a buffer is lent no longer than a read takes: slow clients hold none.
        """
        for each in answer.body:
            if isinstance(each, bytes):
                yield each
                continue
            assert file is not None
            at = each.start
            while at < each.stop:
                async with await self.buffers.acquire() as buffer:
                    count = await self.fill(file, buffer, at, each.stop)
                    piece = bytes(buffer.view[:count])
                yield piece
                at += count


@contextlib.asynccontextmanager
async def open_files(directory: str, buffers: int, buffer_size: int) -> AsyncIterator[Files]:
    """The files below a directory, with a ring of their own, whose table of registered buffers is theirs."""
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        async with aiouring.AsyncRing() as ring:
            with ring.register_buffers(count=buffers, size=buffer_size) as table:
                yield Files(ring, table, root)
    finally:
        os.close(root)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The command line of a server for files."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", help="what is below it is served")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--buffers", type=int, default=64, help="registered buffers (%(default)s)")
    parser.add_argument("--buffer-size", type=int, default=65536, help="bytes in each (%(default)s)")
    return parser


def run_server(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Coroutine[Any, Any, object]]
) -> int:
    """Run a server on the loop that was asked for; returns the exit code."""
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
            runner.run(run(options))
            return 0
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
