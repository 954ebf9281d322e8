"""Owns the server for files on aiohttp: aiohttp speaks HTTP, and the files are read through registered buffers.

    python examples/static_files_aiohttp.py DIRECTORY         # then, elsewhere: curl -O http://127.0.0.1:8080/name
    python examples/static_files_aiohttp.py DIRECTORY --loop uvloop

GET and HEAD, ranges (one or several), ETag and Last-Modified with what browsers ask about them; which files, and what
is said of them, is in `served_files.py`.  `add_files()` adds a directory to an application of yours.  It needs
`pip install aiohttp`.

aiohttp's own static files read in a thread.  Here no thread is used, and the loop is never blocked by the disk.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

from aiohttp import web
from served_files import Answer, File, Files, RefusedError, make_parser, open_files, run_server

FILES = web.AppKey("FILES", Files)


def add_files(
    app: web.Application, prefix: str, directory: str, *, buffers: int = 64, buffer_size: int = 65536
) -> None:
    """Serve the files below a directory under a path of an application.

    Args:
        app: it has one such directory; others are sub-applications.
        prefix: "" or a path without a slash at its end.
        directory: what is below it is served.
        buffers: how many reads may be in flight; others wait.
        buffer_size: bytes in each.
    """

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with open_files(directory, buffers, buffer_size) as app[FILES]:
            yield

    app.cleanup_ctx.append(context)
    app.router.add_get(prefix + "/{path:.*}", serve)  # and HEAD


async def serve(request: web.Request) -> web.StreamResponse:
    """Answer one request."""
    files, method = request.app[FILES], request.method.encode()
    path = b"/" + request.match_info["path"].encode(errors="surrogateescape")
    asked = {name.lower().encode(): value.encode(errors="surrogateescape") for name, value in request.headers.items()}
    async with contextlib.AsyncExitStack() as stack:
        try:
            file = await files.open(path, stack)
            return await send(request, files, file.answer(method, asked), file)
        except RefusedError as error:
            return await send(request, files, error.answer(method))


async def send(request: web.Request, files: Files, answer: Answer, file: File | None = None) -> web.StreamResponse:
    """Send an answer."""
    response = web.StreamResponse(status=answer.status)
    response.headers.extend((name.decode(), value.decode("latin-1")) for name, value in answer.headers)
    try:
        await response.prepare(request)
        async with contextlib.aclosing(files.body(file, answer)) as body:
            async for piece in body:
                await response.write(piece)  # waits while the client is slow
        await response.write_eof()
    except ConnectionError:
        pass  # the client has gone, which aiohttp finds out itself
    except EOFError as error:
        print(error, file=sys.stderr)
        response.force_close()  # less than was promised: the client notices by the end of the connection
    return response


async def run(options: argparse.Namespace) -> None:
    """Serve until cancelled."""
    app = web.Application()
    add_files(app, "", options.directory, buffers=options.buffers, buffer_size=options.buffer_size)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    try:
        await runner.setup()
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family)
        await web.SockSite(runner, listener).start()
        print("listening on {}:{}".format(*listener.getsockname()[:2]), flush=True)
        await asyncio.get_running_loop().create_future()
    finally:
        if FILES in app:
            print(f"aiohttp: {app[FILES]}", flush=True)
        await runner.cleanup()


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    return run_server(make_parser("A server for files on aiohttp and registered buffers."), run)


if __name__ == "__main__":
    sys.exit(main())
