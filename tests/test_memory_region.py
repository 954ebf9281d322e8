"""Tests of MemoryRegion: the caller's memory and the kernel's, their lives, and what is refused."""

import errno
import gc
import mmap
import os
import select
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from conftest import until
from injected_faults import real_register, replaced, run_python

import aiouring
from aiouring import Opcode, Ring, _features
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib

pytestmark = pytest.mark.needs("memory regions")

PAGE = mmap.PAGESIZE


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of 8 submissions and 16 completions, of the profile under test."""
    with Ring(8, cq_entries=16, task_run=profile) as made:
        yield made


def ring_mappings() -> int:
    """How many mappings of rings this process has."""
    return Path("/proc/self/maps").read_text().count("io_uring")


def test_the_kernels_memory(ring: Ring) -> None:
    """Memory that the kernel allocates is zeros, writable, and the same in every view."""
    region = ring.register_region(2 * PAGE)
    assert len(region) == len(region.view) == 2 * PAGE
    assert not any(region.view)
    region.view[5] = 42
    region.view[-1] = 43
    assert (region.view[5], region.view[-1]) == (42, 43)
    assert region.registered
    assert region.wait_arguments == 0
    assert repr(region) == f"<MemoryRegion {2 * PAGE} bytes, no wait arguments, registered>"


def test_the_callers_memory(ring: Ring) -> None:
    """The caller's memory is used as it is, and cannot be unmapped while the ring has it."""
    memory = mmap.mmap(-1, PAGE)
    memory[:5] = b"hello"
    region = ring.register_region(memory=memory)
    assert bytes(region.view[:5]) == b"hello"
    region.view[0] = ord("j")
    assert memory[:5] == b"jello"
    del region
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    ring.close()
    memory.close()


def test_a_view_survives_its_ring(profile: TaskRun) -> None:
    """Views outlive the ring and the region, with the bytes that were there; the ring's file is really closed."""
    before = ring_mappings()
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        region = ring.register_region(PAGE)
        view = region.view
        view[:5] = b"bytes"
    assert ring_mappings() == before
    assert not region.registered
    assert bytes(view[:5]) == b"bytes"
    view[0] = 0
    del region, ring
    gc.collect()
    assert bytes(view[:5]) == b"\0ytes"


def test_e2_a_region_does_not_keep_requests_running(profile: TaskRun) -> None:
    """Closing a ring whose region is still looked at ends its requests: the peer of its socket sees the end."""
    reader, writer = os.pipe()
    ring = Ring(8, cq_entries=16, task_run=profile)
    view = ring.register_region(PAGE).view
    memory = ffi.new("char[8]")
    assert lib.au_prepare_memory(ring.raw, 1, Opcode.READ, reader, memory, 8, 0, 8, 0, 0, 0) == 0
    ring.submit()
    lib.au_ring_close(ring.raw)  # not in good order: nothing is cancelled
    os.close(reader)

    assert until(lambda: broken(writer)), "the request still holds the pipe's other end"
    os.close(writer)
    assert view[0] == 0


def broken(writer: int) -> bool:
    """Whether a pipe has no reader any more."""
    poll = select.poll()
    poll.register(writer, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def test_the_ring_holds_the_region(profile: TaskRun) -> None:
    """A region that the caller drops stays: the ring waits by it."""
    with Ring(8, cq_entries=16, task_run=profile, disabled=True) as ring:
        gone = weakref.ref(ring.register_region(PAGE, wait_argument=True))
        ring.enable()
        gc.collect()
        assert gone() is not None
        assert ring.wait(timeout=0.001) == []


def test_a_dropped_ring_leaves_nothing(profile: TaskRun) -> None:
    """A ring and a region that are dropped in one cycle with a view leave no mapping of the ring."""
    before = ring_mappings()
    seen: list[int] = []

    class Holder:
        """Looks at its view at the very end, when the collector has taken everything apart."""

        def __init__(self) -> None:
            self.ring = Ring(8, cq_entries=16, task_run=profile)
            self.region = self.ring.register_region(PAGE)
            self.view = self.region.view
            self.me = self

        def __del__(self) -> None:
            seen.append(len(bytes(self.view)))

    for _ in range(20):
        Holder()
    gc.collect()
    assert seen == [PAGE] * 20
    assert ring_mappings() == before


def test_c5_views_in_a_forks_child(ring: Ring) -> None:
    """In a child the kernel's memory reads as zeros and does not crash; the parent's is untouched."""
    view = ring.register_region(PAGE).view
    view[0] = 7
    child = os.fork()
    if child == 0:
        empty = view[0] == 0
        view[0] = 9
        os._exit(0 if empty and ring_mappings() == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert view[0] == 7


def test_wait_arguments_need_a_disabled_ring(ring: Ring) -> None:
    """Wait arguments on an enabled ring are refused before the kernel is asked, and say what to do."""
    with pytest.raises(aiouring.WrongContextError, match="disabled=True"):
        ring.register_region(PAGE, wait_argument=True)
    assert ring.register_region(PAGE).registered


def test_one_region_for_life(ring: Ring) -> None:
    """A second region is refused, and the first is as it was."""
    region = ring.register_region(PAGE)
    with pytest.raises(aiouring.ResourceBusyError, match="until it is closed"):
        ring.register_region(PAGE)
    with pytest.raises(aiouring.ResourceBusyError):
        ring.register_region(memory=mmap.mmap(-1, PAGE))
    assert region.registered


@pytest.mark.parametrize(
    ("options", "kind", "error"),
    [
        ({}, TypeError, "a size, or memory"),
        ({"size": PAGE, "memory": bytearray(1)}, TypeError, "not both"),
        ({"size": 0}, ValueError, "size=0"),
        ({"size": PAGE + 1}, ValueError, "not a multiple of the page size"),
        ({"size": -PAGE}, ValueError, "size="),
        ({"size": 1 << 50}, ValueError, "size="),
        ({"size": "4096"}, TypeError, "must be an int"),
        ({"memory": bytearray(100)}, ValueError, "not a multiple of the page size"),
        ({"memory": bytes(PAGE)}, BufferError, "not writable"),
        ({"memory": 5}, TypeError, "bytes-like"),
    ],
)
def test_m3_what_is_no_region(ring: Ring, options: dict[str, Any], kind: type[Exception], error: str) -> None:
    """Sizes and memory that cannot be a region are the caller's mistake, before the kernel is asked."""
    _features.require("memory regions")

    def never(*_: Any) -> int:
        raise AssertionError("the kernel was asked")

    with replaced(do_register=never), pytest.raises(kind, match=error):
        ring.register_region(**options)
    assert ring.register_region(PAGE).registered


def test_m3_memory_off_a_page(ring: Ring) -> None:
    """Memory that does not begin with a page says by how many bytes."""
    memory = memoryview(mmap.mmap(-1, 3 * PAGE))[16 : 16 + PAGE]
    with pytest.raises(ValueError, match="begins 16 bytes into a page"):
        ring.register_region(memory=memory)


def test_m4_read_only_pages(ring: Ring) -> None:
    """Pages that cannot be written are refused by the buffer protocol."""
    with pytest.raises(BufferError):
        ring.register_region(memory=mmap.mmap(-1, PAGE, prot=mmap.PROT_READ))


def test_the_kernel_refuses(ring: Ring) -> None:
    """What the kernel refuses is its errno, and leaves a ring without a region, that can have one."""
    errors = {errno.ENOMEM: "RLIMIT_MEMLOCK", errno.EFAULT: "registering a region"}
    _features.require("memory regions")
    for number, text in errors.items():

        def refuse(fd: int, opcode: int, *rest: Any, number: int = number) -> int:
            return -number if opcode == lib.AU_REGISTER_MEM_REGION else real_register(fd, opcode, *rest)

        with replaced(do_register=refuse), pytest.raises(OSError, match=text) as caught:
            ring.register_region(PAGE)
        assert caught.value.errno == number
    assert ring.register_region(PAGE).registered


def test_older_kernel(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without regions is told apart, with the version that has them, before anything is done."""
    monkeypatch.setattr(_features, "_here", frozenset({"eventfd"}))
    with pytest.raises(aiouring.UnsupportedKernelError, match=r"memory regions: needs Linux 6\.13"):
        ring.register_region(PAGE)


MEMLOCK = """
import os, resource, mmap, aiouring
ring = aiouring.Ring(8, cq_entries=16)  # with the capability: this ring is exempt
resource.setrlimit(resource.RLIMIT_MEMLOCK, (256 << 10, 256 << 10))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ring.close()
with aiouring.Ring(8, cq_entries=16) as ring:
    try:
        ring.register_region(memory=mmap.mmap(-1, 1 << 20))
    except OSError as error:
        print(error.errno, "RLIMIT_MEMLOCK" in str(error), "1048576" in str(error))
    print(ring.register_region(4096).registered)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_m9_memlock() -> None:
    """A region counts against RLIMIT_MEMLOCK, and the error says so."""
    done = run_python(MEMLOCK)
    assert done.stderr == ""
    assert done.stdout.split() == [str(errno.ENOMEM), "True", "True", "True"]


async def test_on_an_async_ring(ring_of_the_loop: aiouring.AsyncRing) -> None:
    """An AsyncRing has regions, too; they last as long as it does."""
    region = ring_of_the_loop.register_region(PAGE)
    region.view[0] = 1
    with pytest.raises(aiouring.ResourceBusyError):
        ring_of_the_loop.register_region(memory=mmap.mmap(-1, PAGE))
    await ring_of_the_loop.nop()
    await ring_of_the_loop.aclose()
    assert not region.registered
    assert region.view[0] == 1


@pytest_asyncio.fixture
async def ring_of_the_loop(new_ring: Any) -> aiouring.AsyncRing:
    """A ring on the loop under test."""
    made: aiouring.AsyncRing = await new_ring()
    return made
