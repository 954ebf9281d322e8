"""Tests of the examples that talk to strangers, by real clients: the chat, the proxy, and the server for files."""

import hashlib
import http.client
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email import message_from_bytes
from pathlib import Path
from random import Random

import httpx
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = ("asyncio", "uvloop")
Address = tuple[str, int]


class Example:
    """An example that listens, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", address: Address) -> None:
        self.process = process
        self.address = address

    def connect(self) -> socket.socket:
        """A connection whose reads fail rather than hang."""
        return socket.create_connection(self.address, timeout=20)

    def stop(self) -> str:
        """Press Ctrl-C, and check that it ends as it should; returns what it printed."""
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=20)
        assert self.process.returncode in (0, 130), (self.process.returncode, errors)
        for word in ("Traceback", "Warning", "exception", "never"):
            assert word not in errors, errors
        return output


@contextmanager
def running(name: str, *options: "str | Path") -> Iterator[Example]:
    """An example on a free port; killed if the test leaves it running."""
    command = [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / name, "--port", "0", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on (\S+):(\d+)\n", line)
            assert found, line
            yield Example(process, (found[1], int(found[2])))
        finally:
            process.kill()


def read_to_end(sock: socket.socket) -> bytes:
    """Everything to the end of the stream."""
    got = bytearray()
    while data := sock.recv(1 << 16):
        got += data
    return bytes(got)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Do something beside the test."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# ---- chat_server.py ------------------------------------------------------------------------------------


def join(stack: ExitStack, example: Example, name: str) -> socket.socket:
    """A client who has said his name."""
    sock = stack.enter_context(example.connect())
    sock.sendall(name.encode() + b"\n")
    return sock


def hears(sock: socket.socket, text: bytes) -> bytes:
    """Read until `text` has come; returns everything."""
    got = bytearray()
    while text not in got:
        data = sock.recv(1 << 16)
        assert data, f"the end came before {text!r}: {bytes(got[-200:])!r}"
        got += data
    return bytes(got)


@pytest.mark.parametrize("loop", LOOPS)
def test_chat(loop: str) -> None:
    """What one says the others hear, and he does not; they hear who comes and goes; too long a line ends one."""
    with ExitStack() as stack:
        example = stack.enter_context(running("chat_server.py", "--loop", loop))
        ann = join(stack, example, "ann")
        bob = join(stack, example, "bob")
        assert hears(ann, b"\n") == b"* bob is here\n"
        cid = join(stack, example, "cid")
        hears(ann, b"cid is here\n")
        hears(bob, b"cid is here\n")
        bob.sendall(b"hello\nworld\n")
        assert hears(ann, b"world\n") == b"bob: hello\nbob: world\n"
        assert hears(cid, b"world\n") == b"bob: hello\nbob: world\n"
        bob.shutdown(socket.SHUT_WR)
        assert hears(ann, b"\n") == b"* bob has left\n"
        assert read_to_end(bob) == b""
        cid.sendall(b"x" * 100_000)
        assert hears(ann, b"\n") == b"* cid has left\n"
        assert example.stop().startswith("chat: 8 messages")
        assert ann.recv(1) == b""


@pytest.mark.parametrize("slow", ["drop", "skip"])
def test_chat_with_one_who_never_reads(slow: str) -> None:
    """One who never reads is dropped, or misses messages; all others hear everything, in order."""
    with ExitStack() as stack:
        example = stack.enter_context(running("chat_server.py", "--slow", slow, "--backlog", "100"))
        stuck = socket.socket()
        stack.callback(stuck.close)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.settimeout(20)
        stuck.connect(example.address)
        stuck.sendall(b"stuck\n")
        speaker, listener = join(stack, example, "speaker"), join(stack, example, "listener")
        hears(speaker, b"listener is here\n")
        messages, heard = 6_000, b""
        for number in range(messages):
            speaker.sendall(b"%06d" % number + b"." * 990 + b"\n")
            if number % 50 == 49:  # the listener keeps up: fewer than the backlog are on their way
                heard += hears(listener, b"speaker: %06d" % number)
        speaker.sendall(b"the end\n")
        heard += hears(listener, b"the end\n")
        numbers = [int(found) for found in re.findall(rb"speaker: (\d{6})\.", heard)]
        assert numbers == list(range(messages))
        if slow == "drop":
            assert b"* stuck has left\n" in heard
            got = b""
            with suppress(ConnectionResetError):
                got = read_to_end(stuck)
            assert got.count(b"speaker: 0") < messages
            assert "1 clients dropped, 0 messages skipped" in example.stop()
        else:
            told = hears(stuck, b"you missed")
            assert told.count(b"speaker: 0") < messages
            assert "0 clients dropped" in example.stop()


# ---- proxy.py ------------------------------------------------------------------------------------------


@contextmanager
def target(serve: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that serves one connection after the other, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    sock.settimeout(20)
                    serve(sock)

        thread = in_thread(work)
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # or accept() would go on
            thread.join()


@pytest.mark.parametrize("loop", LOOPS)
def test_proxy_passes_on_both_ways(loop: str) -> None:
    """64 MiB each way at once arrive unchanged; one end comes first, and the other direction goes on."""
    block = Random(1).randbytes(1 << 20)
    size = 64 << 20
    digests: dict[str, bytes] = {}

    def swallow(name: str, sock: socket.socket) -> None:
        digest, count = hashlib.sha256(), 0
        while data := sock.recv(1 << 18):
            digest.update(data)
            count += len(data)
        digests[name] = digest.digest() + b"%d" % count

    def serve(sock: socket.socket) -> None:
        swallowing = in_thread(lambda: swallow("there", sock))
        for _ in range(size // len(block)):
            sock.sendall(block)
        swallowing.join()  # to the client's end: ours comes later
        sock.sendall(b"the last word")
        sock.shutdown(socket.SHUT_WR)

    with target(serve) as address, running("proxy.py", "--loop", loop, address[0], str(address[1])) as example:
        with example.connect() as sock:
            swallowing = in_thread(lambda: swallow("back", sock))
            for _ in range(size // len(block)):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)
            swallowing.join()
        expected = hashlib.sha256(block * 64)
        assert digests["there"] == expected.digest() + b"%d" % size
        expected.update(b"the last word")
        assert digests["back"] == expected.digest() + b"%d" % (size + 13)
        output = example.stop()
        assert f"1 served, 0 failed, {size:,} bytes there, {size + 13:,} bytes back; 0 buffers in use" in output


def test_proxy_is_stopped_by_who_does_not_read() -> None:
    """A sender is held up when the other side does not read; other connections go on, and it all comes in the end."""
    go_on = threading.Event()
    connections = 0

    def serve(sock: socket.socket) -> None:
        nonlocal connections
        connections += 1
        go_on.wait(20)
        sock.sendall(b"%d" % len(read_to_end(sock)))

    with target(serve) as address, running("proxy.py", address[0], str(address[1])) as example:
        with example.connect() as sock:
            sock.setblocking(False)
            sent = 0
            while select.select([], [sock], [], 1)[1]:
                sent += sock.send(bytes(1 << 16))
                assert sent < 100 << 20, "nothing holds it up"
            go_on.set()
            sock.settimeout(20)
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b"%d" % sent
        assert "0 buffers in use" in example.stop()


def test_proxy_gives_up_who_does_not_read() -> None:
    """After its patience the proxy closes both sides; a target that is not there, or resets, costs one connection."""
    done = threading.Event()

    def serve(sock: socket.socket) -> None:
        if sock.recv(5) == b"reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            done.wait(20)

    with target(serve) as address, running("proxy.py", "--patience", "0.3", address[0], str(address[1])) as example:
        for word in (b"reset", b"stuck"):
            with example.connect() as sock:
                sock.sendall(word)
                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    while True:
                        sock.sendall(bytes(1 << 20))
        done.set()
        assert "2 failed" in example.stop()
    with running("proxy.py", address[0], str(address[1])) as example:  # nobody listens there any more
        with example.connect() as sock:
            assert sock.recv(1) == b""
        assert "1 failed" in example.stop()


# ---- http_file_server.py -------------------------------------------------------------------------------


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
def test_http_files(loop: str, site: Path) -> None:
    """A real client gets every file whole, by GET; HEAD says the same without it; keep-alive serves all on one."""
    with running("http_file_server.py", site, "--loop", loop) as example:
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
        assert "17 requests" in output
        assert "in_use=0" in output


def test_http_ranges_and_versions(site: Path) -> None:
    """One range, several, none that is there, and those that cannot be understood; and what is known already."""
    data = (site / "1000003.bin").read_bytes()
    with (
        running("http_file_server.py", site) as example,
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


def test_http_refuses(site: Path) -> None:
    """Nothing but files below the directory is served, whatever a path looks like; bad requests are told so."""
    (site.parent / "secret").write_text("secret")
    with running("http_file_server.py", site) as example:
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


def test_http_file_that_shrinks(tmp_path: Path) -> None:
    """The client gets what there was, and a closed connection where more was promised; the server goes on."""
    path = tmp_path / "large"
    path.write_bytes(bytes(50 << 20))
    with running("http_file_server.py", tmp_path) as example:
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
        assert errors == f"a file became shorter than {50 << 20} bytes while it was sent\n"


def test_http_many_clients_few_buffers(site: Path) -> None:
    """Thirty clients share two buffers, one of them never reads; he is given up, and the others get their files."""
    data = (site / "1000003.bin").read_bytes()
    with (
        running("http_file_server.py", site, "--buffers", "2", "--patience", "1") as example,
        example.connect() as stuck,
    ):
        stuck.sendall(b"GET /1000003.bin HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        url = "http://{}:{}/1000003.bin".format(*example.address)
        with httpx.Client(timeout=30) as client, ThreadPoolExecutor(30) as threads:
            for got in threads.map(lambda _: client.get(url).content, range(90)):
                assert got == data
        assert "in_use=0" in example.stop()
