"""Tests of Ring where system calls fail, signals strike, and descriptors are closed at the wrong moment."""

import errno
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import open_files, until
from injected_faults import Failing, no_more_descriptors, real_enter, real_register, real_setup, replaced

import aiouring
from aiouring import Completion, Opcode, Ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of the profile under test."""
    with Ring(128, cq_entries=256, task_run=profile) as made:
        yield made


def nops(ring: Ring, *numbers: int) -> None:
    """Prepare one nop for each number."""
    for number in numbers:
        ring.prepare(Opcode.NOP, user_data=number)


def numbers(completions: list[Completion]) -> list[int]:
    """The user_data of each completion."""
    return [completion.user_data for completion in completions]


# ---- enter -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EBADR, errno.EPERM])
def test_e4_enter_fails(ring: Ring, error: int) -> None:
    """What enter() refuses is an OSError; the requests stay queued, and the next submit() takes them, in order."""
    nops(ring, 1, 2, 3)
    enter = Failing(real_enter, error)
    with replaced(enter=enter):
        with pytest.raises(OSError, match="io_uring_enter: ") as caught:
            ring.submit()
        assert caught.value.errno == error
        assert enter.calls == 1
        assert numbers(ring.submit()) == [1, 2, 3]
    assert ring.raw.submit_errors == 1


def test_e4_interrupted_enter_is_taken_again(ring: Ring) -> None:
    """EINTR is not the caller's business."""
    nops(ring, 1, 2, 3)
    with replaced(enter=Failing(real_enter, *[errno.EINTR] * 10)):
        assert numbers(ring.submit()) == [1, 2, 3]


def test_e4_lost_completions_say_so(ring: Ring) -> None:
    """EBADR is not `Invalid request descriptor` but what io_uring means by it."""
    nops(ring, 1)
    with replaced(enter=Failing(real_enter, errno.EBADR)), pytest.raises(OSError, match="lost completions"):
        ring.submit()
    assert numbers(ring.submit()) == [1]


def test_e5_short_submit(ring: Ring) -> None:
    """A kernel that takes one entry at a time is asked until it has taken all."""
    taken: list[int] = []

    def enter(fd: int, to_submit: int, *rest: Any) -> int:
        taken.append(real_enter(fd, min(to_submit, 1), *rest))
        return taken[-1]

    nops(ring, *range(10))
    with replaced(enter=enter):
        assert numbers(ring.submit()) == list(range(10))
    assert taken == [1] * 10


def test_e5_kernel_that_takes_nothing(ring: Ring) -> None:
    """A kernel that neither takes an entry nor says why is not asked for ever."""
    nops(ring, 1)
    enter = Failing(real_enter, *[0] * 100)
    with replaced(enter=enter), pytest.raises(BlockingIOError):
        ring.submit()
    assert enter.calls < 10
    assert numbers(ring.submit()) == [1]


@pytest.mark.parametrize("missing", [0, lib.AU_SETUP_SUBMIT_ALL])
def test_e5_bad_entry_stops_no_batch(profile: TaskRun, missing: int) -> None:
    """A bad entry between two good ones completes with its error, and they complete as well, on any kernel."""

    def setup(entries: int, params: Any) -> int:
        flags = ffi.cast("struct au_params *", params).flags
        return -errno.EINVAL if flags & missing else real_setup(entries, params)

    with pytest.MonkeyPatch.context() as patch, replaced(setup=setup):
        patch.setattr("aiouring._setup._refused", aiouring.SetupFlags(0))
        ring = Ring(8, cq_entries=16, task_run=profile)
    with ring:
        assert not ring.setup_flags & missing
        nops(ring, 1)
        ring.prepare(200, user_data=2)
        nops(ring, 3)
        assert [completion[:2] for completion in ring.submit()] == [(1, 0), (2, -errno.EINVAL), (3, 0)]


# ---- signals ---------------------------------------------------------------------------------------


@pytest.fixture
def struck() -> Iterator[threading.Event]:
    """Set when SIGUSR1 has been handled, in Python."""
    event = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        event.set()

    before = signal.signal(signal.SIGUSR1, handler)
    yield event
    signal.signal(signal.SIGUSR1, before)


def is_in_enter(thread: int) -> bool:
    """Whether a thread of this process sleeps in io_uring_enter."""
    return Path(f"/proc/self/task/{thread}/syscall").read_text().startswith("426 ")


def strike_in_enter(main: int, ident: int, struck: threading.Event, then: Callable[[], object]) -> threading.Thread:
    """A thread that signals the main thread once it sleeps in enter(), and does `then` after the handler ran."""

    def strike() -> None:
        until(lambda: is_in_enter(main))
        signal.pthread_kill(ident, signal.SIGUSR1)
        struck.wait(10)
        until(lambda: is_in_enter(main), 1.0)
        then()

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


@pytest.mark.parametrize("submitted", [True, False])
def test_c8_signal_during_wait(ring: Ring, pipe: tuple[int, int], struck: threading.Event, submitted: bool) -> None:
    """A signal runs its handler, and wait() goes on until what it waits for is there."""
    memory = ffi.new("char[1]")
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    if submitted:
        assert ring.submit() == []
    thread = strike_in_enter(threading.get_native_id(), threading.get_ident(), struck, lambda: os.write(pipe[1], b"."))
    try:
        found = ring.wait(1, timeout=10)
    finally:
        thread.join()
    assert struck.is_set()
    assert found == [Completion(1, 1, 0)]


def test_c9_signals_do_not_prolong_wait(ring: Ring, struck: threading.Event) -> None:
    """Signals that come faster than the timeout do not keep wait() from ending in time."""
    over = threading.Event()
    main = threading.get_ident()

    def storm() -> None:
        for _ in range(200):
            if over.wait(0.005):
                break
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=storm)
    thread.start()
    begin = time.monotonic()
    assert ring.wait(1, timeout=0.1) == []
    seconds = time.monotonic() - begin
    over.set()
    thread.join()
    assert struck.is_set()
    assert seconds < 0.6


# ---- setup and register ----------------------------------------------------------------------------


def ring_maps() -> int:
    """How many mappings of rings this process has."""
    return Path("/proc/self/maps").read_text().count("[io_uring]")


def check_nothing_left(files: dict[int, str], maps: int) -> None:
    """No descriptor and no mapping more than before."""
    assert open_files() == files
    assert ring_maps() == maps


def test_e8_no_descriptor_left(profile: TaskRun) -> None:
    """EMFILE is an OSError, not a sign that io_uring is not available."""
    files, maps = open_files(), ring_maps()
    with no_more_descriptors(), pytest.raises(OSError, match="io_uring_setup") as caught:
        Ring(8, cq_entries=16, task_run=profile)
    assert caught.value.errno == errno.EMFILE
    assert not isinstance(caught.value, aiouring.RingUnavailableError)
    check_nothing_left(files, maps)


def test_e8_no_memory_for_the_ring(profile: TaskRun) -> None:
    """ENOMEM names the limit, its value, and how to raise it."""
    with replaced(setup=Failing(real_setup, errno.ENOMEM)):
        with pytest.raises(OSError, match=r"RLIMIT_MEMLOCK, which is .* raise it \(ulimit -l") as caught:
            Ring(8, cq_entries=16, task_run=profile)
    assert caught.value.errno == errno.ENOMEM
    assert not isinstance(caught.value, aiouring.RingUnavailableError)


def test_e8_memlock_limit_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no limit the text does not print it as a number."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with replaced(setup=Failing(real_setup, errno.ENOMEM)), pytest.raises(OSError) as caught:
        Ring(8, cq_entries=16)
    assert "-1 bytes" not in str(caught.value)


def test_e9_register_denied(profile: TaskRun) -> None:
    """A ring that may be made but not enabled is unmade at once, before its exception is dropped."""
    files = open_files()
    with replaced(do_register=Failing(real_register, errno.EPERM)):
        with pytest.raises(aiouring.RingUnavailableError) as caught:
            Ring(8, cq_entries=16, task_run=profile)
    assert caught.value.errno == errno.EPERM
    left = set(open_files()) - set(files)
    del caught
    assert not left


def test_e12_no_descriptor_for_the_eventfd(ring: Ring) -> None:
    """A refused eventfd leaves a ring that works, and can be asked for again."""
    with no_more_descriptors(), pytest.raises(OSError, match="registering the eventfd") as caught:
        ring.register_eventfd()
    assert caught.value.errno == errno.EMFILE
    event_fd = ring.register_eventfd()
    nops(ring, 1)
    assert numbers(ring.submit()) == [1]
    os.set_blocking(event_fd, False)
    ring.unregister_eventfd()
    with pytest.raises(OSError, match="unregistering the eventfd"):
        ring.unregister_eventfd()


def use_everything(task_run: TaskRun) -> None:
    """Make every call of setup() and register() that a Ring makes."""
    with Ring(8, cq_entries=16, task_run=task_run) as ring:
        ring.register_eventfd()
        ring.probe_opcodes()
        ring.unregister_eventfd()


@pytest.mark.parametrize("failing", [None, 0, 1, 2, 3, 4])
def test_e11_each_call_fails_once(profile: TaskRun, failing: int | None) -> None:
    """Whichever system call of a ring's life fails, the error comes out and nothing stays open."""
    files, maps = open_files(), ring_maps()
    made: list[str] = []

    def call(name: str, real: Callable[..., int], *arguments: Any) -> int:
        made.append(name)
        return -errno.ENOMEM if failing == len(made) - 1 else real(*arguments)

    with replaced(setup=partial(call, "setup", real_setup), do_register=partial(call, "register", real_register)):
        if failing is None:
            use_everything(profile)
            assert made == ["setup", "register", "register", "register", "register"]
        else:
            with pytest.raises(OSError) as caught:
                use_everything(profile)
            assert caught.value.errno == errno.ENOMEM
            del caught
    check_nothing_left(files, maps)


@pytest.mark.parametrize("which", ["queues", "entries"])
def test_e11_mapping_fails(profile: TaskRun, which: str) -> None:
    """A ring whose memory cannot be mapped, all of it or its second half, is unmade at once."""
    files, maps = open_files(), ring_maps()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    room = {"queues": 0, "entries": 3 << 19}[which]  # the queues take 1 MiB, the entries 2 MiB

    def setup(entries: int, params: Any) -> int:
        fd = real_setup(entries, params)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, limits[1]))
        return fd

    try:
        with replaced(setup=setup), pytest.raises(OSError) as caught:
            Ring(32768, cq_entries=65536, task_run=profile)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert caught.value.errno == errno.ENOMEM
    check_nothing_left(files, maps)


def test_old_kernel_without_probe(ring: Ring) -> None:
    """Asking for the opcodes of a kernel that cannot tell says since when one can."""
    with replaced(do_register=Failing(real_register, errno.EINVAL)):
        with pytest.raises(aiouring.UnsupportedKernelError, match=r"Linux 5\.6"):
            ring.probe_opcodes()


def test_e13_registers_are_named() -> None:
    """Every register opcode in the C core is one of the ABI header's, and none of those is EVENTFD_ASYNC (7)."""
    native = Path(aiouring.__file__).parent / "_native"
    used = re.findall(
        r"(?:do_register|au_ring_register)\(\s*[\w>-]+, (\w+)", "".join(path.read_text() for path in native.glob("*.c"))
    )
    known = dict(re.findall(r"(AU_(?:UN)?REGISTER_\w+) = (\d+)", (native / "uapi.h").read_text()))
    assert set(used) - {"opcode"} <= set(known)
    assert "7" not in known.values()
