"""Owns the examples that listen, as tests run them: each in a process of its own, with warnings as errors."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
