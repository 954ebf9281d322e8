"""Owns what every test runs under: both loops, both ring profiles, the teardown oracle and the deadline.

* An async test runs on asyncio's loop and on uvloop's.  A test that asks for `ring` or `new_ring` runs on
  both task-run profiles as well.
* The teardown oracle (an autouse fixture) compares the process before and after the test: descriptors,
  pinned memory, io_uring worker threads, threads, rings still open, loop exceptions, warnings.
* Every test has a deadline; past it, everything in flight and every stack is printed and the test fails.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from injected_faults import real_register, replaced
from registered_slots import agrees
from socket_ends import KINDS, make_ends

import aiouring
from aiouring._driver import GRAVEYARD, LIVE
from aiouring._features import FEATURES

DEADLINE_SECONDS = 60
PROFILES = ("coop", "defer")
RESTRICTED = bool(os.environ.get("AIOURING_RESTRICTED"))  # every ring of `new_ring` has the default restrictions

RingFactory = Callable[..., Any]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """Every async test runs on both loops."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Say what is tested, and refuse to pass for want of io_uring where it is required."""
    found = aiouring.probe()
    if not found and os.environ.get("AIOURING_REQUIRE"):
        pytest.exit(f"AIOURING_REQUIRE is set and io_uring is not available: {found.reason}", returncode=3)
    config.stash[_FOUND] = found
    uvloop.new_event_loop().close()  # libuv opens a pair of descriptors once, for good
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the examples, run as children, are interrupted


_FOUND: "pytest.StashKey[aiouring.Probe]" = pytest.StashKey()


def pytest_report_header(config: pytest.Config) -> str:
    """One line on the kernel and loops under test."""
    found = config.stash[_FOUND]
    state = "available" if found else f"NOT AVAILABLE: {found.reason}"
    rings = "; rings restricted to the default set" if RESTRICTED else ""
    return f"io_uring: {state}; Linux {found.kernel}; uvloop {version('uvloop')}{rings}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What this machine cannot run is skipped, with the reason: no io_uring at all, or an older kernel."""
    found = config.stash[_FOUND]
    for item in items:
        if not found and not item.get_closest_marker("needs_no_ring"):
            item.add_marker(pytest.mark.skip(reason=f"io_uring is not available: {found.reason}"))
        for name in (name for marker in item.iter_markers("needs") for name in marker.args):
            assert name in FEATURES, f"{item.nodeid} needs {name!r}, which is no feature"
            if found and name not in found.supported:
                reason = f"{name}: needs Linux {FEATURES[name].since}, and this is {found.kernel}"
                item.add_marker(pytest.mark.skip(reason=reason))


def in_flight() -> str:
    """What every open ring is waiting for, as text."""
    lines = []
    for driver in list(LIVE):
        lines.append(f"{driver.ring!r}: {len(driver.inflight)} in flight, unsubmitted={len(driver._queued)}")
        lines += [f"    {request!r}" for request in list(driver.inflight.values())[:40]]
        lines += [f"    {group!r} {group.statistics()}" for group in driver.registry.groups.values()]
        lines += Path(f"/proc/self/fdinfo/{driver.ring.fd}").read_text().splitlines()[:40]
    return "\n".join(lines) or "no ring is open"


@pytest.fixture(autouse=True)
def deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, with everything that is in flight."""
    marker = request.node.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else DEADLINE_SECONDS

    def expired(_signal: int, frame: FrameType | None) -> None:
        sys.stderr.write(f"\n=== deadline of {seconds} s: {request.node.nodeid}\n{in_flight()}\n")
        pytest.fail(f"deadline of {seconds} s is over; in flight:\n{in_flight()}", pytrace=True)

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again: the loop may swallow one
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def open_files() -> dict[int, str]:
    """What each descriptor of this process is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def pinned_kilobytes() -> int:
    """Memory the kernel has pinned for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPin:"):
            return int(line.split()[1])
    return 0


def workers() -> list[str]:
    """The io_uring worker threads of this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("iou-"):
            found.append(name)
    return found


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for what the kernel does in its own time after a close."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(autouse=True)
def oracle(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, nothing is left behind."""
    if request.node.get_closest_marker("leaves_things"):
        yield
        return
    gc.collect()
    gc.freeze()  # what is left is pytest's, more with every test, and need not be looked through again
    files, pinned, threads, buried = open_files(), pinned_kilobytes(), threading.active_count(), len(GRAVEYARD)
    rings = set(LIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    opened = [driver for driver in LIVE if driver not in rings and not driver.ring.closed]
    assert not opened, f"a ring is still open:\n{in_flight()}"
    assert len(GRAVEYARD) == buried, f"memory was kept for requests that never ended: {GRAVEYARD[buried:]}"
    assert until(lambda: not set(open_files()) - set(files)), (
        f"left open: {set(open_files().items()) - set(files.items())}"
    )
    assert until(lambda: pinned_kilobytes() <= pinned), f"{pinned_kilobytes() - pinned} kB are still pinned"
    assert until(lambda: not workers()), f"still running: {workers()}"
    assert until(lambda: threading.active_count() <= threads), f"still running: {threading.enumerate()}"


async def settle(ring: aiouring.AsyncRing) -> None:
    """Let every task run until it waits, the kernel see what was queued, and its tags arrive."""
    for _ in range(3):
        await ring.nop()


async def turns(count: int = 5) -> None:
    """Let the loop turn a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def echo(connection: aiouring.Connection) -> None:
    """A server's handler: send everything back."""
    async for chunk in connection:
        connection.write(chunk)
        await connection.drain()


def check_idle(ring: aiouring.AsyncRing) -> None:
    """The oracle's part that looks into an open ring: nothing in flight, every buffer where it belongs."""
    driver = ring._driver
    if driver is None or driver.broken or driver.ring.closed:
        return
    assert not driver.inflight, in_flight()
    assert driver.strays == 0
    assert not driver.registry.retiring, driver.registry.retiring
    for group in driver.registry.groups.values():
        found = group.statistics()
        assert (found.in_use, found.parts, found.private) == (0, 0, 0), found
        assert not group.registered or found.with_kernel == found.count, found
        assert found.waiting == 0, found
    if driver.registry.buffers is not None:
        assert driver.registry.buffers.statistics().in_use == 0, driver.registry.buffers.statistics()
    if driver.registry.files is not None:
        assert driver.registry.files.changing == 0, driver.registry.files.statistics()
        if driver.registry.files.registered:
            agrees(ring, driver.registry.files)
    lines = Path(f"/proc/self/fdinfo/{driver.ring.fd}").read_text().splitlines()
    for title in ("PollList:", "CqOverflowList:"):
        if title in lines:
            following = lines[lines.index(title) + 1 :][:1]
            assert not following or following[0].endswith(":") or not following[0].startswith(" "), lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected stream sockets that do not block."""
    ends = socket.socketpair()
    with ends[0], ends[1]:
        for end in ends:
            end.setblocking(False)
        yield ends


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, of every kind that has messages or addresses."""
    yield from make_ends(request.param, tmp_path)


@pytest.fixture
def register_calls() -> Iterator[list[int]]:
    """The opcodes of all io_uring_register() calls of the test."""
    calls: list[int] = []

    def spy(fd: int, opcode: int, argument: Any, count: int) -> int:
        calls.append(opcode)
        return real_register(fd, opcode, argument, count)

    with replaced(do_register=spy):
        yield calls


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    """The ring's task-run profile."""
    return str(request.param)


@pytest_asyncio.fixture
async def new_ring(profile: str) -> AsyncIterator[RingFactory]:
    """Makes rings of the profile under test, and closes them after the test; checks that they are idle."""
    problems: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: problems.append(context))
    async with AsyncExitStack() as stack:
        made: list[aiouring.AsyncRing] = []

        async def make(*arguments: Any, **options: Any) -> aiouring.AsyncRing:
            options.setdefault("task_run", profile)
            if RESTRICTED:
                options.setdefault("restrictions", True)
            ring = await stack.enter_async_context(aiouring.AsyncRing(*arguments, **options))
            made.append(ring)
            return ring

        yield make
        for ring in made:
            if not ring._closed:
                await ring.nop()  # what was returned in the test's last turn is published now
                check_idle(ring)
    await asyncio.sleep(0)
    assert not problems, f"the loop's exception handler was called: {problems}"


@pytest_asyncio.fixture
async def ring(new_ring: RingFactory) -> aiouring.AsyncRing:
    """A ring of the profile under test."""
    made: aiouring.AsyncRing = await new_ring()
    return made
