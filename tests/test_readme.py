"""Tests that the README is true: its commands are the ones CI runs, and its code works as printed."""

import asyncio
import re
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest

import aiouring

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.mark.needs_no_ring
def test_first_screen() -> None:
    """The first screen has two commands, each complete, and a program of about fifteen lines."""
    commands = [block.strip() for block in blocks("sh")]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert commands[0].endswith("examples/echo_server.py --check")
    assert commands[1].endswith("-m pytest")
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 15
    assert README.index(blocks("python")[0]) < len(README) / 3


def test_the_program_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program reads the file that it names through a registered buffer."""
    program = tmp_path / "program.py"
    program.write_text(blocks("python")[0])
    runpy.run_path(str(program))
    assert capsys.readouterr().out.strip() == Path("/etc/os-release").read_text().strip()


def listens(port: int) -> bool:
    """Whether a server listens on a port of IPv4."""
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


async def test_the_echo_works() -> None:
    """The server of the second block echoes on many connections."""
    names: dict[str, Any] = {"aiouring": aiouring, "asyncio": asyncio}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    with socket.socket() as reserved:  # a port that nobody else will be given
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
        serving = asyncio.create_task(names["serve"](*address))
        async with asyncio.timeout(10):
            while not listens(address[1]):
                await asyncio.sleep(0)
        for number in range(20):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"message %d" % number)
            writer.write_eof()
            assert await reader.read() == b"message %d" % number
            writer.close()
            await writer.wait_closed()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    await aiouring.default_ring().aclose()


async def test_the_files_work(tmp_path: Path) -> None:
    """The function of the third block puts files together."""
    names: dict[str, Any] = {"aiouring": aiouring}
    exec(compile(blocks("python")[2], "README.md", "exec"), names)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 500_000)
    await names["concatenate"]([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert (tmp_path / "both").read_bytes() == b"one" * 500_000 + b"two" * 500_000
    await aiouring.default_ring().aclose()
