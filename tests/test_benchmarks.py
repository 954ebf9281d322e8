"""Tests of the benchmarks: the grid and TLS run to their end, and the load sees what a server does wrong."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import grid, tls
from benchmarks.echo_server import TLS_SERVERS

ROOT = Path(__file__).parent.parent


def test_the_grid_runs_and_says_how_it_stands(tmp_path: Path) -> None:
    """A short run measures every contestant at every point it has."""
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "grid", "--short", "--rounds", "1", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    tables = json.loads(results.read_text())["benchmarks"]["grid"]
    contestants = {name for table in tables for name in table["rows"]}
    assert {"uvloop, aiouring connection", "uvloop, protocol", grid.EPOLL, grid.IO_URING} <= contestants
    assert all(cell["median"] > 0 for row in tables[0]["rows"].values() for cell in row.values())
    assert "target for 'KiB each'" in done.stdout


@pytest.mark.parametrize("name", TLS_SERVERS)
def test_the_tls_servers_echo(name: str) -> None:
    """Each of them echoes what its load sends, and ends."""
    point = tls.Point(2, 3000, 20)
    assert list(tls.measure(name, (point,))) == [str(point)]


def test_file_objects_are_compared_with_everything_that_is_there(tmp_path: Path) -> None:
    """A short run measures every way to read that can be measured here, and says why it leaves one out."""
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "file_objects", "--short", "--rounds", "1", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    tables = json.loads(results.read_text())["benchmarks"]["file_objects"]
    random, targets, direct, sequential, cold = tables
    assert {"asyncio, read_at", "uvloop, read_at"} <= set(random["rows"])
    for table in (targets, sequential, cold):
        assert set(table["rows"]) >= {"asyncio", "uvloop"} or len(table["rows"]) >= 2
        assert all(cell is None or cell["median"] > 0 for row in table["rows"].values() for cell in row.values())
    for name in ("caio", "aiofiles"):
        assert f"asyncio, {name}" in random["rows"] or f"{name} is not installed" in done.stdout
    if direct["rows"]:
        assert len(direct["rows"]) == 6
        assert ("fio is not installed" in done.stdout) == (shutil.which("fio") is None)
    else:
        assert "cannot be opened with O_DIRECT" in done.stdout


@pytest.mark.parametrize("fault", ["other", "twice", "nothing"])
def test_the_load_sees_a_wrong_echo(fault: str) -> None:
    """Other bytes than were sent, more of them, or the end of the stream fail the run."""
    with grid.compiled() as programs, socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                data = connection.recv(64)
                connection.sendall({"other": bytes(64), "twice": data * 2, "nothing": b""}[fault])

        server = threading.Thread(target=serve)
        server.start()
        port = listener.getsockname()[1]
        command = [str(programs / "load"), str(port), "self", "0", "1", "64", "1", "0", "0.1", "0.1"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        server.join()
    assert done.returncode == 1
    said = {"other": "differs", "twice": "more came back", "nothing": "hung up"}[fault]
    assert said in done.stderr
