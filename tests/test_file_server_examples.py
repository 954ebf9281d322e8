"""Tests of the examples that serve files, by real clients: on h11, on aiohttp, and on Starlette with uvicorn."""

import asyncio
import http.client
import importlib
import os
import signal
import socket
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from example_servers import EXAMPLES, LOOPS, in_thread, read_to_end, running

#: The servers, and the packages that they need.
SERVERS = {
    "http_file_server.py": ("h11",),
    "static_files_aiohttp.py": ("aiohttp",),
    "static_files_asgi.py": ("starlette", "uvicorn"),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """The name of an example that serves files; skipped where it lacks a package."""
    name: str = request.param
    for package in SERVERS[name]:
        pytest.importorskip(package, reason=f"{name} needs {package}, which is not installed")
    return name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with files of all sizes."""
    root = tmp_path_factory.mktemp("site")
    random = Random(2)
    for size in (0, 1, 65535, 65536, 65537, 1_000_003):
        (root / f"{size}.bin").write_bytes(random.randbytes(size))
    (root / "index.html").write_text("<p>here</p>")
    (root / "sub").mkdir()
    (root / "sub" / "a b.txt").write_text("text")
    (root / "link").symlink_to("/etc/passwd")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.parametrize("loop", LOOPS)
def test_http_files(server: str, loop: str, site: Path) -> None:
    """A real client gets every file whole, by GET; HEAD says the same without it; keep-alive serves all on one."""
    with running(server, site, "--loop", loop) as example:
        connection = http.client.HTTPConnection(*example.address, timeout=20)
        connection.connect()
        sock = connection.sock
        for path in [*site.glob("*.bin"), site / "index.html", site / "sub" / "a b.txt"]:
            name = str(path.relative_to(site)).replace(" ", "%20")
            for method in ("GET", "HEAD"):
                connection.request(method, f"/{name}?query")
                answer = connection.getresponse()
                assert answer.status == 200
                assert int(answer.headers["Content-Length"]) == path.stat().st_size
                assert answer.read() == (path.read_bytes() if method == "GET" else b"")
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"<p>here</p>"
        assert connection.sock is sock, "keep-alive was not kept"
        connection.close()
        output = example.stop()
        assert "in_use=0" in output
        assert "17 requests" in output or server != "http_file_server.py"


def test_http_ranges_and_versions(server: str, site: Path) -> None:
    """One range, several, none that is there, and those that cannot be understood; and what is known already."""
    data = (site / "1000003.bin").read_bytes()
    with (
        running(server, site) as example,
        httpx.Client(base_url="http://{}:{}".format(*example.address), timeout=20) as client,
    ):
        name = "/1000003.bin"
        for asked, start, stop in [
            ("0-0", 0, 1),
            ("5-70000", 5, 70001),
            ("999999-", 999_999, 1_000_003),
            ("-3", 1_000_000, 1_000_003),
            ("1000000-9999999", 1_000_000, 1_000_003),
            ("-9999999", 0, 1_000_003),
        ]:
            answer = client.get(name, headers={"Range": f"bytes={asked}"})
            assert answer.status_code == 206
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/1000003"
            assert answer.content == data[start:stop]
        for asked in ("1000003-", "5000000-6000000", "-0"):
            answer = client.get(name, headers={"Range": f"bytes={asked}"})
            assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */1000003")
        for asked in ("bytes=7-3", "bytes=x", "lines=1-2", "bytes=-", "bytes=" + "1-2," * 20 + "5-6"):
            answer = client.get(name, headers={"Range": asked})
            assert (answer.status_code, len(answer.content)) == (200, 1_000_003)
        answer = client.get(name, headers={"Range": "bytes=0-9, 500-599,-2, 7777777-"})
        message = message_from_bytes(
            b"Content-Type: " + answer.headers["Content-Type"].encode() + b"\n\n" + answer.content
        )
        parts = [part.get_payload(decode=True) for part in message.get_payload()]  # type: ignore[union-attr]
        assert parts == [data[:10], data[500:600], data[-2:]]
        tag, date = answer.headers["ETag"], answer.headers["Last-Modified"]
        for headers, status in [
            ({"If-None-Match": tag}, 304),
            ({"If-None-Match": f'"other", W/{tag}'}, 304),
            ({"If-None-Match": "*"}, 304),
            ({"If-None-Match": '"other"', "If-Modified-Since": date}, 200),
            ({"If-Modified-Since": date}, 304),
            ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
            ({"If-Modified-Since": "yesterday"}, 200),
            ({"Range": "bytes=0-4", "If-Range": tag}, 206),
            ({"Range": "bytes=0-4", "If-Range": '"other"'}, 200),
        ]:
            answer = client.get(name, headers=headers)
            assert answer.status_code == status, headers
            assert (answer.content == b"") == (status == 304)
        example.stop()


def test_http_refuses(server: str, site: Path) -> None:
    """Nothing but files below the directory is served, whatever a path looks like."""
    (site.parent / "secret").write_text("secret")
    with running(server, site) as example:
        for path, status in [
            ("/../secret", 404),
            ("/%2e%2e/secret", 404),
            ("/sub/../../secret", 404),
            ("/up/secret", 404),
            ("/link", 404),
            ("//etc/passwd", 404),
            ("/sub//a%20b.txt", 404),
            ("/index.html%00.txt", 404),
            ("/index.html/x", 404),
            ("/fifo", 404),
            ("/sub/", 404),
            ("/nothing", 404),
            ("/sub", 301),
        ]:
            for method in ("GET", "HEAD"):
                connection = http.client.HTTPConnection(*example.address, timeout=20)
                connection.putrequest(method, path)
                connection.endheaders()
                answer = connection.getresponse()
                assert answer.status == status, path
                assert b"secret" not in answer.read()
                connection.close()
        example.stop()


def test_http_requests_that_are_none(site: Path) -> None:
    """Bad requests are told so."""
    with running("http_file_server.py", site) as example:
        for request, line in [
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"405"),
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\n\r\n", b"400"),
            (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        ]:
            with example.connect() as sock:
                sock.sendall(request)
                assert sock.recv(100).startswith(b"HTTP/1.1 " + line)
        example.stop()


def test_http_pipelined(site: Path) -> None:
    """Hundreds of requests sent at once are answered in order, and the end of theirs is the end of ours."""
    with running("http_file_server.py", site) as example, example.connect() as sock:
        count = 300
        sending = in_thread(
            lambda: sock.sendall(b"".join(b"GET /%d.bin HTTP/1.1\r\nHost: x\r\n\r\n" % (n % 2) for n in range(count)))
        )
        sending.join()
        sock.shutdown(socket.SHUT_WR)
        answers = read_to_end(sock).split(b"HTTP/1.1 200")[1:]
        assert len(answers) == count
        assert all(b"Content-Length: %d\r\n" % (n % 2) in answer for n, answer in enumerate(answers))
        assert f"{count} requests" in example.stop()


def test_http_file_that_shrinks(server: str, tmp_path: Path) -> None:
    """The client gets what there was, and a closed connection where more was promised; the server goes on."""
    path = tmp_path / "large"
    path.write_bytes(bytes(50 << 20))
    with running(server, tmp_path) as example:
        with example.connect() as sock:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            os.truncate(path, 1000)
            got = 0
            with suppress(ConnectionResetError):
                while data := sock.recv(1 << 16):
                    got += len(data)
            assert got < 50 << 20
        assert httpx.get("http://{}:{}/large".format(*example.address)).content == bytes(1000)
        example.process.send_signal(signal.SIGINT)
        _, errors = example.process.communicate(timeout=20)
        assert errors.splitlines()[-1].removeprefix("EOFError: ") == (
            f"a file became shorter than {50 << 20} bytes while it was sent"
        )
        assert "Warning" not in errors


def test_http_many_clients_few_buffers(server: str, site: Path) -> None:
    """Thirty clients share two buffers, one of them never reads; the others get their files."""
    patience = ("--patience", "1") if server == "http_file_server.py" else ()  # the others lend buffers to no client
    data = (site / "1000003.bin").read_bytes()
    with running(server, site, "--buffers", "2", *patience) as example:
        with example.connect() as stuck:
            stuck.sendall(b"GET /1000003.bin HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            url = "http://{}:{}/1000003.bin".format(*example.address)
            with httpx.Client(timeout=30) as client, ThreadPoolExecutor(30) as threads:
                for got in threads.map(lambda _: client.get(url).content, range(90)):
                    assert got == data
        assert "in_use=0" in example.stop()


# ---- in applications of others -------------------------------------------------------------------------


def load(name: str, monkeypatch: pytest.MonkeyPatch, *packages: str) -> Any:
    """An example as a module; skips the test where it lacks a package."""
    for package in packages:
        pytest.importorskip(package, reason=f"this needs {package}, which is not installed")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def get(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """The scope of a GET."""
    return {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": headers}


async def test_asgi_client_that_goes_away(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the client is gone no more is read, even if send() does not tell; and all buffers are back."""
    asgi = load("static_files_asgi", monkeypatch, "starlette", "uvicorn")
    gone, sent = asyncio.Event(), list[MutableMapping[str, Any]]()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 3:
            gone.set()
        await asyncio.sleep(0)

    async with asgi.open_files(str(site), 2, 4096) as files:
        await asgi.FileResponse(files, "1000003.bin")(get("/1000003.bin"), receive, send)
        assert 2 * 4096 <= files.sent < 20 * 4096
        assert sent[0]["status"] == 200
        assert files.buffers.statistics().in_use == 0


async def test_asgi_cancelled(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is cancelled while its client is slow holds no buffer then, and leaves no file open."""
    asgi = load("static_files_asgi", monkeypatch, "starlette", "uvicorn")
    never, slow = asyncio.Event(), asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            slow.set()
            await never.wait()

    async with asgi.open_files(str(site), 1, 4096) as files:
        task = asyncio.create_task(asgi.FileResponse(files, "1000003.bin")(get("/"), never.wait, send))
        await slow.wait()
        assert files.buffers.statistics().in_use == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_asgi_file_that_shrinks_behind_a_middleware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file shrinks the response raises, through Starlette's middleware too: the server hears of it."""
    asgi = load("static_files_asgi", monkeypatch, "starlette", "uvicorn")
    from starlette.applications import Starlette
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.routing import Route

    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    sent = list[MutableMapping[str, Any]]()

    async def endpoint(request: Any) -> Any:
        return asgi.FileResponse(files, "file")

    async def receive() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def pass_on(request: Any, call_next: Callable[..., Any]) -> Any:
        return await call_next(request)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        os.truncate(path, 5000)

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with asgi.open_files(str(tmp_path), 1, 4096) as files:
        with pytest.raises(EOFError, match="became shorter than 100000 bytes"):
            await app(get("/"), receive, send)
    assert sum(len(message.get("body", b"")) for message in sent) == 5000


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_asgi_in_an_application(framework: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint of Starlette or FastAPI returns a file with more headers, a cookie and a background task."""
    asgi = load("static_files_asgi", monkeypatch, "starlette", "uvicorn", framework)
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response

    done = list[str]()

    async def endpoint(request: Request) -> Response:
        response: Response = asgi.FileResponse(
            files, "65537.bin", {"Cache-Control": "no-cache"}, BackgroundTask(done.append, "done")
        )
        response.set_cookie("name", "value")
        return response

    module = importlib.import_module(f"{framework}.applications")
    app = module.Starlette() if framework == "starlette" else module.FastAPI()
    app.router.add_route("/file", endpoint) if framework == "starlette" else app.get("/file")(endpoint)
    app.mount("/static", asgi.StaticFiles())

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"files": files}}, receive, send)

    async with asgi.open_files(str(site), 2, 4096) as files:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://here") as client:
            answer = await client.get("/file", headers={"Range": "bytes=1-5"})
            assert (answer.status_code, answer.content) == (206, (site / "65537.bin").read_bytes()[1:6])
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.cookies["name"] == "value"
            assert done == ["done"]
            assert (await client.get("/static/sub/a%20b.txt")).content == b"text"
            answer = await client.get("/static/sub")
            assert str(answer.next_request and answer.next_request.url) == "http://here/static/sub/"
            assert (await client.post("/static/index.html")).status_code == 405


async def test_aiohttp_in_an_application(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory under a path of an application of aiohttp's, asked by aiohttp's own client."""
    example = load("static_files_aiohttp", monkeypatch, "aiohttp")
    import aiohttp
    from aiohttp.test_utils import TestServer

    app = aiohttp.web.Application()
    example.add_files(app, "/static", str(site), buffers=2, buffer_size=4096)
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/")) as client:
        async with client.get("/static/1000003.bin") as answer:
            assert await answer.read() == (site / "1000003.bin").read_bytes()
        async with client.get("/static/sub/a b.txt", headers={"If-None-Match": "*"}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with client.get("/static/sub", allow_redirects=False) as answer:
            assert urljoin("/static/sub", answer.headers["Location"]) == "/static/sub/"
        async with client.post("/static/index.html") as answer:
            assert answer.status == 405
        assert app[example.FILES].buffers.statistics().in_use == 0
