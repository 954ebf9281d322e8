"""Tests of the examples: they run as a user would run them, and end as they say they do."""

import errno
import hashlib
import importlib.util
import mmap
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from file_systems import mounted

import aiouring

EXAMPLES = Path(__file__).parent.parent / "examples"
ECHO_SERVER = EXAMPLES / "echo_server.py"
COPY_FILE = EXAMPLES / "copy_file.py"
UDP_ECHO = EXAMPLES / "udp_echo.py"
LOOPS = ("asyncio", "uvloop")

Finished = subprocess.CompletedProcess[str]


def run(*command: "str | Path", timeout: float = 50) -> Finished:
    """Run an example to its end, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, command)], capture_output=True, text=True, timeout=timeout
    )


def load(path: Path) -> Any:
    """An example as a module, for what cannot be brought about from outside."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- echo_server.py ------------------------------------------------------------------------------------


@contextmanager
def serving(*options: str, files: int = 1024) -> Iterator[tuple["subprocess.Popen[str]", tuple[str, int]]]:
    """An echo server in a process of its own, and its address; killed if the test leaves it running.

    It may have `files` descriptors, from the start: an accept that is armed goes by the limit of that moment.
    """
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); "
    limited += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    python = [sys.executable, "-c", limited, "-X", "dev", "-W", "error"]
    with subprocess.Popen(
        [*python, str(ECHO_SERVER), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on (\S+):(\d+)\n", line)
            assert found, line
            yield process, (found[1], int(found[2]))
        finally:
            process.kill()


def wait_for_line(file: "IO[str] | None", text: str) -> None:
    """Read lines until one has `text` in it; asyncio's debug mode may have something to say in between."""
    assert file is not None
    while text not in (line := file.readline()):
        assert line, f"the process ended before it said {text!r}"


def connect(address: tuple[str, int]) -> socket.socket:
    """A connection whose reads fail rather than hang."""
    return socket.create_connection(address, timeout=20)


def echoes(connection: socket.socket, data: bytes) -> bool:
    """Whether the server sends `data` back."""
    connection.sendall(data)
    received = bytearray()
    while len(received) < len(data) and (part := connection.recv(len(data))):
        received += part
    return bytes(received) == data


def interrupt(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Press Ctrl-C, and check that the process ends as it should; returns what it printed."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130), (process.returncode, errors)
    for word in ("Traceback", "Warning", "exception", "never"):
        assert word not in errors, errors
    assert "in_flight 0, detached 0" in output
    assert "in_use 0" in output
    return output, errors


def check_summary(done: Finished, loop: str) -> None:
    """The check passed, said so in one line, and left no buffer behind."""
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stderr == ""
    summary, ring, pool = done.stdout.splitlines()
    found = re.fullmatch(
        rf"ok on {loop}: 64 connections x 1,000 messages, [\d,.]+ MB each way, "
        r"every byte compared, [\d.]+ s, ([\d,]+) messages/s",
        summary,
    )
    assert found, summary
    assert int(found[1].replace(",", "")) > 0
    assert re.match(r"ring: submitted [\d,]+, completed [\d,]+, in_flight 0, detached 0,", ring), ring
    assert "strays 0" in ring
    assert "in_use 0" in pool


@pytest.mark.parametrize("loop", LOOPS)
def test_echo_check(loop: str) -> None:
    """64 connections get back 64,000 messages byte for byte, on either loop."""
    check_summary(run(ECHO_SERVER, "--check", "--loop", loop), loop)


def test_echo_check_with_two_small_buffers() -> None:
    """Two buffers of 64 bytes are enough for 64 connections: the others wait, and nothing is lost."""
    done = run(ECHO_SERVER, "--check", "--loop", "uvloop", "--buffers", "2", "--buffer-size", "64")
    check_summary(done, "uvloop")
    starved = re.search(r"high_water 2, waiting 0, starved ([\d,]+)", done.stdout)
    assert starved, done.stdout
    assert int(starved[1].replace(",", "")) > 0, "this did not test back-pressure"


@pytest.mark.parametrize("loop", LOOPS)
def test_echo_interrupted_with_open_connections(loop: str) -> None:
    """Ctrl-C ends a server whose connections are idle, in the middle of a message, or stuck in a send."""
    with ExitStack() as stack:
        process, address = stack.enter_context(serving("--loop", loop))
        idle, stuck, resting = (stack.enter_context(connect(address)) for _ in range(3))
        assert echoes(resting, b"hello" * 5000)
        stuck.setblocking(False)
        while select.select([], [stuck], [], 0.5)[1]:  # it reads nothing back, so the server's send fills up
            stuck.send(bytes(1 << 20))
        interrupt(process)
        assert resting.recv(1) == b""
        assert idle.recv(1) == b""


def test_echo_interrupted_while_receivers_wait_for_a_buffer() -> None:
    """Ctrl-C ends a server all of whose buffers are held up by peers that do not read."""
    with ExitStack() as stack:
        process, address = stack.enter_context(serving("--buffers", "1", "--buffer-size", "65536"))
        stuck, waiting = stack.enter_context(connect(address)), stack.enter_context(connect(address))
        stuck.setblocking(False)
        while select.select([], [stuck], [], 0.5)[1]:
            stuck.send(bytes(1 << 20))
        waiting.sendall(b"x")
        output, _ = interrupt(process)
        assert "high_water 1" in output


def test_echo_reset_ends_one_connection() -> None:
    """A peer that resets its connection ends that one; the others go on."""
    with ExitStack() as stack:
        process, address = stack.enter_context(serving())
        other = stack.enter_context(connect(address))
        assert echoes(other, b"before")
        with connect(address) as rude:
            assert echoes(rude, b"hello")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
        wait_for_line(process.stderr, f"a connection was lost: [Errno 104] {os.strerror(errno.ECONNRESET)}\n")
        assert echoes(other, b"after")
        interrupt(process)


def processor_time(pid: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_echo_out_of_descriptors() -> None:
    """Without a free descriptor the server neither ends nor spins, says so once, and accepts again when one is free."""
    with ExitStack() as stack:
        process, address = stack.enter_context(serving(files=32))
        used = len(os.listdir(f"/proc/{process.pid}/fd"))
        room = 32 - used
        connections = [stack.enter_context(connect(address)) for _ in range(room + 2)]
        wait_for_line(process.stderr, "Too many open files")
        before = processor_time(process.pid)
        time.sleep(0.5)  # nothing is waited for: this is the time that is measured
        assert processor_time(process.pid) - before < 0.1, "it spins"
        for connection in connections[:room]:
            assert echoes(connection, b"served")
            connection.close()
        for connection in connections[room:]:
            assert echoes(connection, b"served later")
        assert "Too many open files" not in interrupt(process)[1]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--buffers", "3"), 2, "count=3 is not a power of two"),
        (("--buffer-size", "0"), 2, "size=0 is outside"),
        (("--port", "70000"), 2, "--port 70000 is outside 0 to 65535"),
        (("--host", "192.0.2.1"), 1, os.strerror(errno.EADDRNOTAVAIL)),
    ],
)
def test_echo_wrong_options(options: tuple[str, ...], code: int, text: str) -> None:
    """A number or an address that cannot be used is refused in one line."""
    done = run(ECHO_SERVER, *options)
    assert done.returncode == code
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.needs_no_ring
def test_echo_without_uvloop() -> None:
    """Where uvloop is not installed, asking for it says how to get it."""
    script = """
        import runpy, sys
        sys.modules["uvloop"] = None
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    done = run("-c", textwrap.dedent(script), ECHO_SERVER, "--loop", "uvloop")
    assert done.returncode == 2
    assert "pip install uvloop" in done.stderr


BLOCK_IO_URING = """
    import ctypes, runpy, struct, sys
    program = [
        (0x20, 0, 0, 0),  # the system call's number
        (0x35, 0, 2, 425),  # below io_uring_setup: allow
        (0x25, 1, 0, 427),  # above io_uring_register: allow
        (0x06, 0, 0, 0x00050001),  # EPERM
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filter) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.needs_no_ring
@pytest.mark.parametrize(
    "options", [(ECHO_SERVER,), (ECHO_SERVER, "--check"), (UDP_ECHO,), (COPY_FILE, "source", "copy")]
)
def test_io_uring_blocked(options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a seccomp filter blocks io_uring, an example says so, and exits with 2."""
    monkeypatch.chdir(tmp_path)
    Path("source").write_bytes(b"text")
    done = run("-c", textwrap.dedent(BLOCK_IO_URING), *options)
    assert done.returncode == 2, done.stderr
    assert "io_uring is not available here: " in done.stderr
    assert "seccomp" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir() == ["source"]


def flip(data: bytes) -> bytes:
    """`data` with one bit of it wrong."""
    return data[:-1] + bytes([data[-1] ^ 1])


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "are not those that were sent": flip,
    "has sent nothing for": lambda data: data[:-1],
    "bytes and got": lambda data: data + data[-1:],
    "was closed by the server at byte": lambda data: b"",
}


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("text", FAULTS)
def test_echo_check_notices(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails for a server that changes, loses, or repeats a byte, or hangs up."""
    example = load(ECHO_SERVER)
    monkeypatch.setattr(example, "CONNECTIONS", 1)
    monkeypatch.setattr(example, "PATIENCE", 0.2)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for turn in range(1000):
                data = connection.recv(1 << 20)
                if not data:
                    break
                connection.sendall(data if turn < 5 else FAULTS[text](data))
                if turn == 5:
                    if not FAULTS[text](data):
                        connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        outcome = example.drive(listener.getsockname(), 4096)
        thread.join()
    assert text in outcome.failure, outcome


# ---- udp_echo.py ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_udp_check(loop: str) -> None:
    """32 clients get back 32,000 datagrams byte for byte, by IPv4 and IPv6, on either loop; no buffer stays lent."""
    done = run(UDP_ECHO, "--check", "--loop", loop)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stderr == ""
    summary, ring, *rest = done.stdout.splitlines()
    assert re.match(rf"ok on {loop}: [12] addresses x 16 clients x 1,000 datagrams, .* every byte compared", summary), (
        summary
    )
    assert "in_flight 0, detached 0" in ring
    assert "strays 0" in ring
    assert rest[0] == "127.0.0.1: echoed 16,000, cut_off 0, not_sent 0"
    assert all("in_use 0" in line for line in rest[1::2])


def test_udp_check_with_one_buffer() -> None:
    """One buffer, and datagrams of the largest size that UDP has."""
    done = run(UDP_ECHO, "--check", "--buffers", "1", "--largest", "65507", "--host", "127.0.0.1")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "high_water 1," in done.stdout


@contextmanager
def serving_datagrams(*options: str) -> Iterator[tuple["subprocess.Popen[str]", list[tuple[str, int]]]]:
    """A UDP echo server in a process of its own, and its two addresses; killed if the test leaves it running."""
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", str(UDP_ECHO), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            addresses = []
            for _ in range(2):
                found = re.fullmatch(r"listening on (\S+) port (\d+)\n", process.stdout.readline())
                assert found
                addresses.append((found[1], int(found[2])))
            yield process, addresses
        finally:
            process.kill()


@pytest.mark.parametrize("loop", LOOPS)
def test_udp_interrupted(loop: str) -> None:
    """What is too long is counted, not sent back; Ctrl-C ends the server with every buffer in its place."""
    options = "--loop", loop, "--largest", "100", "--host", "127.0.0.1", "--host", "127.0.0.2"
    with serving_datagrams(*options) as (process, addresses), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for address in addresses:
            client.sendto(bytes(200), address)
            client.sendto(b"hello", address)
            assert client.recvfrom(200) == (b"hello", address)
        output, _ = interrupt(process)
        for host, _ in addresses:
            assert re.search(rf"^{host}: echoed [01], cut_off 1, not_sent 0$", output, flags=re.M), output


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--buffers", "3"), 2, "count=3 is not a power of two"),
        (("--largest", "0"), 2, "--largest 0 is outside 1 to 65507"),
        (("--port", "-1"), 2, "--port -1 is outside 0 to 65535"),
        (("--host", "192.0.2.1"), 1, os.strerror(errno.EADDRNOTAVAIL)),
    ],
)
def test_udp_wrong_options(options: tuple[str, ...], code: int, text: str) -> None:
    """A number or an address that cannot be used is refused in one line."""
    done = run(UDP_ECHO, *options)
    assert done.returncode == code
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.needs_no_ring
@pytest.mark.parametrize(("text", "fault"), [("others back", flip), ("a datagram was lost", None)])
def test_udp_check_notices(text: str, fault: Callable[[bytes], bytes] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails for a server that changes a byte or loses a datagram."""
    example = load(UDP_ECHO)
    monkeypatch.setattr(example, "CLIENTS", 1)
    monkeypatch.setattr(example, "PATIENCE", 0.2)

    def serve() -> None:
        for turn in range(6):
            data, address = server.recvfrom(1 << 16)
            if turn < 5 or fault:
                server.sendto(fault(data) if turn == 5 and fault else data, address)

    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serve)
        thread.start()
        outcome = example.drive([server.getsockname()], 1000)
        thread.join()
    assert text in outcome.failure, outcome


# ---- echo_processes.py ---------------------------------------------------------------------------------


def sockets_of(pid: int) -> int:
    """How many sockets a process has open; other descriptors may come and go while it starts."""
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed since
            links.append(os.readlink(entry.path))
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_share_a_port(number: signal.Signals) -> None:
    """Two processes serve one port, each some of the connections; all end when the first is told to."""
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-W", "error", str(EXAMPLES / "echo_processes.py"), "--processes", "2", "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # print() would write a line's end by itself
                text=True,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        found = [re.fullmatch(r"process (\d+) listens on port (\d+)\n", line) for line in lines]
        pids = [int(line[1]) for line in found if line]
        ports = {int(line[2]) for line in found if line}
        assert len(set(pids)) == 2, lines
        assert len(ports) == 1, lines
        before = [sockets_of(pid) for pid in pids]
        connections = [stack.enter_context(connect(("127.0.0.1", min(ports)))) for _ in range(64)]
        for connection in connections:
            assert echoes(connection, b"hello")
        served = [sockets_of(pid) - old for pid, old in zip(pids, before, strict=True)]
        assert sum(served) == 64
        assert all(served), served
        process.send_signal(number)
        assert all(connection.recv(1) == b"" for connection in connections)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0


# ---- copy_file.py --------------------------------------------------------------------------------------


def make_file(path: Path, size: int) -> Path:
    """A file of `size` bytes that do not repeat at any block's edge."""
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def digest(path: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def options_for(*, direct: bool, directory: Path) -> tuple[str, ...]:
    """The options for a copy in `directory`; skips the test where its file system has no O_DIRECT."""
    if not direct:
        return ()
    try:
        os.close(os.open(make_file(directory / ".probe", 1), os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"the file system of {directory} does not support O_DIRECT: {error.strerror}")
    finally:
        (directory / ".probe").unlink()
    return ("--direct",)


direct_or_not = pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])


@direct_or_not
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 300_001, (5 << 20) + 13, 8 << 20])
def test_copy_is_identical(size: int, direct: bool, tmp_path: Path) -> None:
    """The copy has the source's content and permissions, whatever its size, and nothing else is left."""
    options = options_for(direct=direct, directory=tmp_path)
    source, target = make_file(tmp_path / "source", size), tmp_path / "target"
    source.chmod(0o641)
    done = run(COPY_FILE, *options, source, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.stat().st_size == size
    assert digest(target) == digest(source)
    assert target.stat().st_mode & 0o7777 == 0o641
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@direct_or_not
@pytest.mark.parametrize(("depth", "block_size"), [(1, "4096"), (64, "4K"), (3, "1M")])
def test_copy_with_other_blocks(depth: int, block_size: str, direct: bool, tmp_path: Path) -> None:
    """Any depth and block size gives the same copy."""
    options = options_for(direct=direct, directory=tmp_path)
    source, target = make_file(tmp_path / "source", (3 << 20) + 4097), tmp_path / "target"
    done = run(COPY_FILE, *options, "--depth", str(depth), "--block-size", block_size, source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert digest(target) == digest(source)


def test_copy_replaces_and_finds_its_place(tmp_path: Path) -> None:
    """An old file is replaced, a directory gets a file in it, and a symbolic link stays one."""
    source = make_file(tmp_path / "source", 5000)
    directory = tmp_path / "directory"
    directory.mkdir()
    old = make_file(tmp_path / "old", 9000)
    link = tmp_path / "link"
    link.symlink_to("old")
    for target, place in ((directory, directory / "source"), (link, old)):
        done = run(COPY_FILE, source, target)
        assert (done.returncode, done.stderr) == (0, "")
        assert digest(place) == digest(source)
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("missing", "copy", "cannot stat 'missing': No such file or directory"),
        ("file", "missing/copy", "cannot create regular file 'missing/copy': No such file or directory"),
        ("file", "missing/", "cannot create regular file 'missing/': Not a directory"),
        ("file", "file", "'file' and 'file' are the same file"),
        ("file", "hard link", "'file' and 'hard link' are the same file"),
        ("file", "directory/../file", "'file' and 'directory/../file' are the same file"),
        ("file", "dangling", "not writing through dangling symlink 'dangling'"),
        ("directory", "copy", "'directory' is not a regular file"),
        ("pipe", "copy", "'pipe' is not a regular file"),
        ("file", "/dev/null", "'/dev/null' exists and is not a regular file"),
    ],
)
def test_copy_refuses(source: str, target: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be copied is refused in one line that cp could have written, and nothing changes."""
    monkeypatch.chdir(tmp_path)
    content = digest(make_file(Path("file"), 5000))
    Path("hard link").hardlink_to("file")
    Path("dangling").symlink_to("nowhere")
    Path("directory").mkdir()
    os.mkfifo("pipe")
    before = sorted(os.listdir())
    done = run(COPY_FILE, source, target)
    assert (done.returncode, done.stderr) == (1, f"copy_file.py: {text}\n")
    assert sorted(os.listdir()) == before
    assert os.listdir("directory") == []
    assert digest(Path("file")) == content


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--direct", "--block-size", "1000"), "multiple of"),
        (("--depth", "0"), "'0' is not a number from 1"),
        (("--block-size", "12X"), "'12X' is not a number from 1"),
        (("--block-size", "2G"), "is outside 1 to 1073741824"),
    ],
)
def test_copy_wrong_options(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    """Numbers that cannot be used are refused, and leave no file."""
    done = run(COPY_FILE, *options, make_file(tmp_path / "source", 10), tmp_path / "target")
    assert done.returncode == 2
    assert text in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["source"]


@direct_or_not
def test_copy_disk_full(direct: bool, tmp_path: Path) -> None:
    """On a full disk the copy fails, the old file stays as it was, and no part of the new one does."""
    source = make_file(tmp_path / "source", 3 << 20)
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1m") as small:
        old = make_file(small / "old", 5000)
        content = digest(old)
        for target in (old, small / "new"):
            done = run(COPY_FILE, *options_for(direct=direct, directory=small), source, target)
            assert done.returncode == 1
            assert done.stderr == f"copy_file.py: error writing '{target}': No space left on device\n"
            assert os.listdir(small) == ["old"]
        assert digest(old) == content


def test_copy_without_direct_support(tmp_path: Path) -> None:
    """A file system without O_DIRECT is named as the reason, and copies without --direct."""
    source = make_file(tmp_path / "source", 5000)
    with mounted("ramfs", tmp_path / "ramfs") as ramfs:
        done = run(COPY_FILE, "--direct", source, ramfs / "copy")
        assert done.returncode == 1
        first, second = done.stderr.splitlines()
        assert first == f"copy_file.py: cannot open '{ramfs / 'copy'}' with O_DIRECT: Invalid argument"
        assert second.endswith("try without --direct")
        assert os.listdir(ramfs) == []
        assert run(COPY_FILE, source, ramfs / "copy").returncode == 0
        assert digest(ramfs / "copy") == digest(source)


@direct_or_not
def test_copy_interrupted(direct: bool, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a copy ends it without a traceback, and leaves no file; a terminal saw progress."""
    options = options_for(direct=direct, directory=tmp_path)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 40)  # all hole: too much to be copied before the signal comes
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(theirs, "wb", buffering=0) as its_stderr:
        with subprocess.Popen(
            [sys.executable, "-W", "error", str(COPY_FILE), *options, str(source), str(tmp_path / "target")],
            stderr=its_stderr,
        ) as process:
            its_stderr.close()
            shown = terminal.read(1000)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        while select.select([terminal], [], [], 0)[0]:
            try:
                shown += terminal.read(1000)
            except OSError:  # EIO: the other side has been closed
                break
    assert re.fullmatch(
        r"(\r\[#* *\] +\d+% [\d,]+ of 1,099,511,627,776 bytes, [\d,]+ MB/s\x1b\[K)+\r\n", shown.decode()
    ), shown
    assert os.listdir(tmp_path) == ["source"]


@contextmanager
def ring_that(example: Any, read: Callable[[int], None], *, unit: int = 0) -> Iterator[None]:
    """In `example`, rings that call `read` with the offset before each fixed read.

    With `unit` they move fewer bytes than asked for: a random multiple of it, as a transfer that ends short would.
    """
    luck = random.Random(1)

    def shorter(length: int | None) -> int | None:
        return length if not unit or not length or length <= unit else luck.randrange(unit, length, unit)

    class Ring(aiouring.AsyncRing):
        async def read_fixed(
            self, fd: Any, buffer: Any, offset: Any = None, *, start: int = 0, length: int | None = None, **how: Any
        ) -> int:
            read(offset)
            return await super().read_fixed(fd, buffer, offset, start=start, length=shorter(length), **how)

        async def write_fixed(
            self, fd: Any, buffer: Any, offset: Any = None, *, start: int = 0, length: int | None = None, **how: Any
        ) -> int:
            return await super().write_fixed(fd, buffer, offset, start=start, length=shorter(length), **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example.aiouring, "AsyncRing", Ring)
        yield


def sector(path: Path) -> int:
    """The least that O_DIRECT can move from a file, which is where a transfer may end short."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page)[:512] as least:
            os.preadv(fd, [least], 0)
        return 512
    except OSError:
        return mmap.PAGESIZE
    finally:
        os.close(fd)


def copy_here(example: Any, monkeypatch: pytest.MonkeyPatch, *arguments: "str | Path") -> int:
    """Run a loaded copy_file.py in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["copy_file.py", *map(str, arguments)])
    code = example.main()
    assert isinstance(code, int)
    return code


@direct_or_not
def test_copy_with_short_reads_and_writes(direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes that move less than was asked for are continued where they ended."""
    options = options_for(direct=direct, directory=tmp_path)
    source, target = make_file(tmp_path / "source", (1 << 20) + 77), tmp_path / "target"
    example = load(COPY_FILE)
    reads: list[int] = []
    with ring_that(example, reads.append, unit=sector(source) if direct else 1):
        assert copy_here(example, monkeypatch, "--block-size", "64K", *options, source, target) == 0
    assert len(reads) > 2 * 17, "this did not test short reads"
    assert digest(target) == digest(source)


@pytest.mark.needs_no_ring
def test_copy_moves_only_aligned_pages_directly(tmp_path: Path) -> None:
    """O_DIRECT gets whole pages from a page's edge on; a tail, and what a short transfer left, does not."""
    example = load(COPY_FILE)
    page = mmap.PAGESIZE
    path = make_file(tmp_path / "file", 1)
    with path.open("rb") as cached, path.open("rb") as direct:
        end = example.End("file", cached, direct)
        assert end.choose(0, 3 * page) == (direct, 3 * page)
        assert end.choose(2 * page, page + 1) == (direct, page)
        assert end.choose(2 * page, page - 1) == (cached, page - 1)
        assert end.choose(512, 3 * page) == (cached, 3 * page)
        assert example.End("file", cached, None).choose(0, page + 1) == (cached, page + 1)


@pytest.mark.parametrize(
    ("new_size", "text"),
    [(1000, "shrank to 1000 bytes"), (400_000, "grew beyond 300000 bytes")],
    ids=["shrinks", "grows"],
)
def test_copy_of_a_file_that_changes_its_size(
    new_size: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that grows or shrinks meanwhile is an error that says so, and leaves no copy."""
    source = make_file(tmp_path / "source", 300_000)
    example = load(COPY_FILE)
    with ring_that(example, lambda _: os.truncate(source, new_size)):
        assert copy_here(example, monkeypatch, "--depth", "1", source, tmp_path / "target") == 1
    assert f"copy_file.py: '{source}' {text} while it was copied\n" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["source"]
