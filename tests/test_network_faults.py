"""Tests of connections and servers where the network, the peers or the kernel do what they should not."""

import asyncio
import contextlib
import errno
import gc
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import echo, open_files, until
from injected_faults import Failing, real_register, real_setup, replaced, run_python

import aiouring
from aiouring import AsyncRing, Connection, open_connection, start_server
from aiouring._setup import TaskRun
from aiouring._uring import lib

HOST = "127.0.0.1"


async def echo_lines(connection: Connection) -> None:
    """Send every line back."""
    while True:
        try:
            line = await connection.receive_until(b"\n")
        except asyncio.IncompleteReadError:
            return
        await connection.send(line)


# ---- H4: slow peers ----------------------------------------------------------------------------


async def test_h4_slow_peers_hold_no_buffers(ring: AsyncRing) -> None:
    """Two hundred who send a line byte by byte, over four buffers, are no burden to one who does not."""
    loop = asyncio.get_running_loop()
    group = ring.register_buffer_ring(count=4, size=256)
    async with await start_server(echo_lines, HOST, 0, ring=ring, group=group) as server:
        address = server.sockets[0].getsockname()
        slow = [socket.socket() for _ in range(200)]
        for sock in slow:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        async with await open_connection(*address, ring=ring) as good:
            for letter in b"slow":
                for sock in slow:
                    await loop.sock_sendall(sock, bytes([letter]))
                for number in range(50):
                    line = b"line %d\n" % number
                    await good.send(line)
                    async with asyncio.timeout(5):
                        assert await good.receive_until(b"\n") == line
                found = group.statistics()
                assert (found.in_use, found.waiting) == (0, 0), "an unfinished line holds no buffer"
        for sock in slow:
            await loop.sock_sendall(sock, b"\n")
            assert await loop.sock_recv(sock, 10) == b"slow\n"
            sock.close()


# ---- H6: the network drops, or rejects -----------------------------------------------------------


async def test_h6_a_connect_that_nobody_answers(ring: AsyncRing) -> None:
    """Where a full backlog drops what comes, a timeout ends the attempt, and leaves no descriptor."""
    with socket.create_server((HOST, 0), backlog=0) as full:
        fillers = []
        for _ in range(3):  # one that was accepted by the kernel, and those that it ignores
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        aiouring.default_group(ring)
        files = open_files()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await open_connection(*full.getsockname(), ring=ring)
        assert open_files() == files
        for filler in fillers:
            filler.close()


CUT_OFF = """
import asyncio, socket, subprocess, sys, time, uvloop
import aiouring
from conftest import echo

def lo(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

async def main():
    async with aiouring.AsyncRing(task_run=sys.argv[2]) as ring:
        async with await aiouring.start_server(echo, "127.0.0.1", 0, ring=ring) as server:
            address = server.sockets[0].getsockname()
            connection = await aiouring.open_connection(*address, ring=ring)
            await connection.send(b"hello")
            assert await connection.receive_exactly(5) == b"hello"
            lo("down")
            begin = time.monotonic()
            with socket.socket() as nowhere:
                for waiting in (
                    connection.send(b"into the dark"),
                    connection.receive_exactly(5),
                    aiouring.open_connection(*address, ring=ring),
                    ring.connect(nowhere, address),
                ):
                    try:
                        async with asyncio.timeout(0.1):
                            print("ended:", type(await waiting).__name__)
                    except TimeoutError:
                        print("timed out")
            connection.abort()
            server.abort_clients()
        print("closed" if time.monotonic() - begin < 3 else "closed late")

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    lo("up")
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_h6_the_network_drops_everything(profile: TaskRun, loop: str) -> None:
    """Peers that are cut off: what waits can be timed out, what is written does not block, and closing ends."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("a network of its own needs root, ip and unshare")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make a network of our own")
    done = run_python(CUT_OFF, loop, profile, before=("unshare", "-n"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ended: NoneType", "timed out", "timed out", "timed out", "closed"]
    assert "Warning" not in done.stderr, done.stderr


# ---- H8: connections that come and go --------------------------------------------------------------


async def rude_echo(choose: random.Random, connection: Connection) -> None:
    """Send back, or leave in the middle of it in one of the ways there are."""
    with contextlib.suppress(OSError):  # the other is no better
        async for chunk in connection:
            way = choose.randrange(8)
            if way <= 2:
                chunk.release()
            if way == 0:
                connection.abort()
            if way == 1:
                raise RudeError
            if way <= 2:
                return
            connection.write(chunk)
            if way == 3:
                await connection.send_eof()
            else:
                await connection.drain()


class RudeError(Exception):
    """What a handler raises that fails."""


async def call(choose: random.Random, ring: AsyncRing, group: aiouring.BufferRing, address: Any) -> None:
    """Connect, send something, and leave somehow, at some moment."""
    connection = await open_connection(*address, ring=ring, group=group)
    waiting = asyncio.ensure_future(connection.receive_exactly(choose.randrange(1, 3000)))
    try:
        for _ in range(choose.randrange(4)):
            connection.write(choose.randbytes(choose.randrange(1, 1000)))
            await asyncio.sleep(0)
        if choose.random() < 0.3:
            await asyncio.wait([waiting], timeout=0.001)
    except OSError:
        pass  # it was gone before
    way = choose.randrange(4)
    if way == 0:
        waiting.cancel()
    if way <= 1:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            linger = struct.pack("ii", 1, 0)
            connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # so that it is a reset
    if way <= 2:
        connection.abort()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            await connection.aclose()
    await asyncio.wait([waiting])
    waiting.cancelled() or waiting.exception()


async def test_h8_connections_that_come_and_go(ring: AsyncRing) -> None:
    """A thousand that end in every way there is, at either side, leave no descriptor, buffer, request or memory."""
    choose = random.Random(8)
    group = ring.register_buffer_ring(count=16, size=256)
    loop, before = asyncio.get_running_loop(), None
    usual = loop.get_exception_handler()
    assert usual is not None

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), RudeError):
            usual(loop, context)

    loop.set_exception_handler(handle)
    memory = [0, 0]
    async with await start_server(partial(rude_echo, choose), HOST, 0, ring=ring, group=group) as server:
        address = server.sockets[0].getsockname()
        for turn in range(10):
            for _ in range(4):
                await asyncio.gather(*(call(choose, ring, group, address) for _ in range(25)))
            while server._clients:
                await asyncio.sleep(0.001)
            before = before or open_files()
            assert open_files() == before
            assert group.statistics().in_use == 0
            gc.collect()
            if turn in (4, 9):
                memory[turn // 9] = sys.getallocatedblocks()
    assert abs(memory[1] - memory[0]) < 500
    loop.set_exception_handler(usual)


# ---- E9, E11: the kernel refuses, once --------------------------------------------------------------


def refusing(opcode: int, error: int) -> Callable[..., int]:
    """A register() that refuses `opcode`."""

    def register(fd: int, asked: int, argument: Any, count: int) -> int:
        return -error if asked == opcode else real_register(fd, asked, argument, count)

    return register


@pytest.mark.parametrize("way", ["entered", "default ring", "used"])
async def test_e9_register_denied(profile: TaskRun, way: str) -> None:
    """A ring that may be made and not enabled is unmade at once, before its exception is dropped."""
    files = open_files()
    ring = aiouring.AsyncRing(task_run=profile) if way == "used" else None
    with replaced(do_register=Failing(real_register, errno.EPERM)):
        with pytest.raises(aiouring.RingUnavailableError) as caught:
            if ring:
                await ring.nop()
            elif way == "entered":
                async with aiouring.AsyncRing(task_run=profile):
                    pass
            else:
                aiouring.default_ring()
    assert caught.value.errno == errno.EPERM
    if ring:  # somebody has it, who can use it when that is allowed again
        async with ring:
            await ring.nop()
    assert set(open_files()) == set(files)
    del caught


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM])
async def test_e9_no_group_for_connections(ring: AsyncRing, tmp_path: Path, error: int) -> None:
    """Where no buffer ring may be registered nobody listens and nobody connects; later, everything works."""
    with socket.create_server((HOST, 0)) as listener:
        aiouring.probe()  # what it asks is asked once
        files = open_files()
        with replaced(do_register=refusing(lib.AU_REGISTER_PBUF_RING, error)):
            for _ in range(2):
                with pytest.raises(OSError) as caught:
                    await start_server(echo, path=tmp_path / "socket", ring=ring)
                assert caught.value.errno == error
                with pytest.raises(OSError) as caught:
                    await open_connection(*listener.getsockname(), ring=ring)
                assert caught.value.errno == error
        assert open_files() == files
        assert not (tmp_path / "socket").exists()
    await talk(ring)


async def talk(ring: AsyncRing) -> None:
    """One connection to a server, on the ring's default group: a message, and its echo."""
    async with await start_server(echo, HOST, 0, ring=ring) as server:
        async with await open_connection(*server.sockets[0].getsockname(), ring=ring) as connection:
            await connection.send(b"hello")
            assert await connection.receive_exactly(5) == b"hello"


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EMFILE])
async def test_e11_each_call_fails_once(profile: TaskRun, error: int) -> None:
    """Whichever setup() or register() of a ring with a server and a connection fails: its error, and nothing stays."""
    made: list[int] = []
    failing = -1

    def called(real: Callable[..., int], *arguments: Any) -> int:
        made.append(arguments[1] if real is real_register else -1)
        return -error if len(made) - 1 == failing else real(*arguments)

    async def everything() -> None:
        async with aiouring.AsyncRing(task_run=profile) as ring:
            with ring.register_buffers(count=1, size=64), ring.register_files_sparse(4):
                await talk(ring)

    await everything()
    with replaced(setup=partial(called, real_setup), do_register=partial(called, real_register)):
        await everything()
        needed = list(made)
        assert len(needed) >= 6, needed
        for failing, opcode in enumerate(needed):
            made.clear()
            files = open_files()
            outcome = (await asyncio.gather(everything(), return_exceptions=True))[0]
            if isinstance(outcome, OSError):
                assert outcome.errno == error, (failing, opcode)
            else:
                assert outcome is None, (failing, opcode, outcome)
                assert opcode in FORGIVEN, (failing, opcode, "failed, and nobody said so")
            assert until(partial(same_files, files)), (failing, opcode)
    await everything()


#: What unmakes: the ring's end unmakes it anyway, and close() has nobody to tell.
FORGIVEN = {lib.AU_UNREGISTER_EVENTFD, lib.AU_UNREGISTER_PBUF_RING, lib.AU_UNREGISTER_FILES, lib.AU_UNREGISTER_BUFFERS}


def same_files(files: dict[int, str]) -> bool:
    """Whether these are the descriptors that are open."""
    return set(open_files()) == set(files)


SWEPT = """
import asyncio, gc, os, sys, uvloop
import aiouring
from conftest import open_files, until
from test_network_faults import same_files, talk

async def everything():
    async with aiouring.AsyncRing(task_run=sys.argv[2]) as ring:
        with ring.register_buffers(count=1, size=64), ring.register_files_sparse(4):
            await talk(ring)

async def main():
    aiouring.probe()
    files = open_files()
    os.access("here", 0)
    outcome = (await asyncio.gather(everything(), return_exceptions=True))[0]
    os.access("there", 0)
    if not until(lambda: same_files(files), 2):
        print("left open:", set(open_files().items()) - set(files.items()))
    print("refused" if isinstance(outcome, OSError | MemoryError) else repr(outcome))

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["eventfd2", "mmap", "epoll_ctl"])
def test_e11_each_system_call_fails_once(profile: TaskRun, name: str, loop: str, tmp_path: Path) -> None:
    """Each mmap(), eventfd() and so on of a ring with a server and a connection fails once: it says so, or goes on."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    if (name, loop) == ("epoll_ctl", "uvloop"):
        pytest.skip("libuv ends the process where epoll_ctl() fails")
    log = tmp_path / "log"
    trace = ("strace", "-qq", "-o", str(log), "-e", f"trace=faccessat2,access,{name}")

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        done = run_python(SWEPT, loop, profile, before=(*trace, *more), strict=False)
        if "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
        return done

    done = run()
    assert done.stdout == "None\n", (done.stdout, done.stderr)
    calls = log.read_text().splitlines()
    start = next(number for number, line in enumerate(calls) if '"here"' in line)
    end = next(number for number, line in enumerate(calls) if '"there"' in line)
    before = sum(line.startswith(name) for line in calls[:start])
    within = sum(line.startswith(name) for line in calls[start:end])
    assert within, f"no {name} in what is tested"
    for number in range(before + 1, before + within + 1):
        done = run("-e", f"inject={name}:error=ENOMEM:when={number}")
        assert done.returncode == 0, (number, done.stderr)
        assert done.stdout in ("refused\n", "None\n"), (number, done.stdout, done.stderr)
