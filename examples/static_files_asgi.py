"""Owns the files of an ASGI application, for Starlette, FastAPI and any server: read through registered buffers.

    python examples/static_files_asgi.py DIRECTORY            # then, elsewhere: curl -O http://127.0.0.1:8080/name
    python examples/static_files_asgi.py DIRECTORY --loop uvloop

* `FileResponse` is a response of Starlette that an endpoint returns, of FastAPI's as well; here `/download/NAME` does.
* `StaticFiles` is an application that answers with one, to be mounted.
* `lifespan()` opens the files when the application starts, and closes their ring when it ends.

GET and HEAD, ranges (one or several), ETag and Last-Modified with what browsers ask about them; which files, and what
is said of them, is in `served_files.py`.  The server is uvicorn; it needs `pip install starlette uvicorn`.

Starlette's own files are read in threads.  Here no thread is used, and the loop is never blocked by the disk.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping

import uvicorn
from served_files import File, Files, RefusedError, make_parser, open_files, run_server
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send


class FileResponse(Response):
    """A file, or the parts of it that are asked for, or why there is none.

    Args:
        files: where it is; `lifespan()` puts them into the state of the application.
        path: which it is, below their directory, without escapes.
        headers: more headers.  `set_cookie()` works, too.
        background: what is done afterwards, as with any response of Starlette.
    """

    def __init__(
        self,
        files: Files,
        path: str,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        self.files = files
        self.path = path
        self.status_code = 200  # what it is comes out when it is sent
        self.background = background
        self.body = b""
        self.raw_headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            EOFError: the file became shorter meanwhile.  The server then closes the connection, and the client notices
                that less has come than Content-Length said.
        """
        method = scope["method"].encode()
        async with contextlib.AsyncExitStack() as stack:
            file: File | None = None
            try:
                if method not in (b"GET", b"HEAD"):
                    raise RefusedError(405, [(b"Allow", b"GET, HEAD")])
                file = await self.files.open(b"/" + self.path.encode(errors="surrogateescape"), stack)
                answer = file.answer(method, dict(scope["headers"]))
            except RefusedError as error:
                answer = error.answer(method)
            self.status_code = answer.status
            headers = [*self.raw_headers, *((name.lower(), value) for name, value in answer.headers)]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            body = await stack.enter_async_context(contextlib.aclosing(self.files.body(file, answer)))
            gone = asyncio.create_task(disconnected(receive))
            try:
                async for piece in body:
                    if gone.done():
                        break  # send() may not tell: the rest would be read for nobody
                    await send({"type": "http.response.body", "body": piece, "more_body": True})  # waits for the client
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                gone.cancel()
        if self.background is not None:
            await self.background()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StaticFiles:
    """An application that serves files, to be mounted: `Mount("/static", StaticFiles())`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", scope["type"]
        path = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        await FileResponse(scope["state"]["files"], path)(scope, receive, send)


def lifespan(
    directory: str, *, buffers: int = 64, buffer_size: int = 65536
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[dict[str, Files]]]:
    """What opens the files of an application when it starts: `Starlette(lifespan=lifespan(directory))`."""

    @contextlib.asynccontextmanager
    async def context(_: Starlette) -> AsyncIterator[dict[str, Files]]:
        async with open_files(directory, buffers, buffer_size) as files:
            yield {"files": files}
            print(f"asgi: {files}", flush=True)

    return context


async def download(request: Request) -> Response:
    """An endpoint: a file, to be saved and not shown."""
    headers = {"Content-Disposition": "attachment"}
    return FileResponse(request.state.files, request.path_params["path"], headers)


async def run(options: argparse.Namespace) -> None:
    """Serve until cancelled."""
    app = Starlette(
        routes=[Route("/download/{path:path}", download), Mount("/", StaticFiles())],
        lifespan=lifespan(options.directory, buffers=options.buffers, buffer_size=options.buffer_size),
    )
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family) as listener:
        print("listening on {}:{}".format(*listener.getsockname()[:2]), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    return run_server(make_parser("Files of an ASGI application, on registered buffers."), run)


if __name__ == "__main__":
    sys.exit(main())
