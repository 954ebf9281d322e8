"""Tests of the examples that talk to strangers, by real clients: the chat and the proxy."""

import hashlib
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from random import Random

import pytest
from example_servers import LOOPS, Address, Example, in_thread, read_to_end, running

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
