"""Tests of the memory behind registered buffers: the caller's own, huge pages, what is pinned, and what is refused."""

import array
import asyncio
import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, pinned_kilobytes

import aiouring
from aiouring._registered_memory import (
    Piece,
    huge_mapping,
    huge_page_size,
    piece_of,
    pieces_of,
    pieces_of_arena,
    pinned_bytes,
    registration_error,
)
from aiouring._uring import lib

PAGE = mmap.PAGESIZE


# ---- the caller's memory -----------------------------------------------------------------------


def private_of_file() -> mmap.mmap:
    """A private mapping of a file on a real file system."""
    with open(sys.executable, "rb") as file:
        return mmap.mmap(file.fileno(), 2 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def shared_of_memfd() -> mmap.mmap:
    """A shared mapping of a memfd, which is tmpfs."""
    file = os.memfd_create("memory")
    os.ftruncate(file, 2 * PAGE)
    mapping = mmap.mmap(file, 2 * PAGE)
    os.close(file)
    return mapping


KINDS: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(100),
    "part of a bytearray": lambda: memoryview(bytearray(100))[33:77],
    "array": lambda: array.array("q", [0] * 10),
    "ctypes": lambda: (ctypes.c_char * 50)(),
    "private anonymous": lambda: mmap.mmap(-1, 3 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "shared anonymous": lambda: mmap.mmap(-1, PAGE),
    "private of a file": private_of_file,
    "shared of a memfd": shared_of_memfd,
}


async def test_every_kind_of_memory(ring: aiouring.AsyncRing) -> None:
    """What the kernel reads into a buffer is in the caller's own object, and what is there it writes."""
    memories = [make() for make in KINDS.values()]
    file = os.memfd_create("file")
    with ring.register_buffers(memories) as table:
        sizes = [memoryview(memory).nbytes for memory in memories]
        assert (table.sizes, len(table), table.size) == (sizes, len(KINDS), 3 * PAGE)
        for index, memory in enumerate(memories):
            size = sizes[index]
            text = os.urandom(size)
            os.pwrite(file, text, 0)
            with table[index] as buffer:
                assert (len(buffer), buffer.index) == (size, index)
                assert await ring.read_fixed(file, buffer, 0) == size
                assert bytes(buffer.view) == text
                assert memoryview(memory).cast("B") == text
                assert await ring.write_fixed(file, buffer, size, start=size // 2, length=3) == 3
            assert os.pread(file, 3, size) == text[size // 2 : size // 2 + 3]
    os.close(file)


async def test_acquire_lends_the_callers_memory(ring: aiouring.AsyncRing) -> None:
    """acquire() lends whichever is free, in the order in which they were given."""
    memories = [bytearray(b"%d" % number) for number in range(3)]
    with ring.register_buffers(memories) as table:
        leases = [await table.acquire() for _ in range(3)]
        assert [bytes(lease.view) for lease in leases] == [b"0", b"1", b"2"]
        leases[1].view[0] = 120
        assert memories[1] == b"x"
        for lease in leases:
            lease.release()


async def test_resize_is_refused(ring: aiouring.AsyncRing) -> None:
    """Registered memory can be neither resized nor closed; once the kernel has let go it can."""
    data, numbers, mapping = bytearray(10), array.array("i", [1, 2]), mmap.mmap(-1, PAGE)
    table = ring.register_buffers([data, numbers, mapping])
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: data.append(1),
        lambda: numbers.append(1),
        mapping.close,
        lambda: mapping.resize(2 * PAGE),
    )
    for attempt in attempts:
        with pytest.raises(BufferError):
            attempt()
    await table.unregister().wait()
    for attempt in attempts[:3]:
        attempt()


async def test_same_memory_twice(ring: aiouring.AsyncRing) -> None:
    """Two slots may share memory; each pins it."""
    memory = bytearray(2 * PAGE)
    with ring.register_buffers([memory, memoryview(memory)[10:20]]) as table:
        with table[0] as whole, table[1] as part, open("/dev/zero", "rb") as zeros:
            whole.view[:] = b"\1" * (2 * PAGE)
            assert await ring.read_fixed(zeros, part, 0) == 10
        assert memory == b"\1" * 10 + bytes(10) + b"\1" * (2 * PAGE - 20)


# ---- what is refused before any system call ----------------------------------------------------


def read_only_mapping() -> mmap.mmap:
    """A mapping that cannot be written to."""
    with open(sys.executable, "rb") as file:
        return mmap.mmap(file.fileno(), PAGE, access=mmap.ACCESS_READ)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: b"bytes", BufferError, r"buffer 1 \(bytes\) cannot be registered: .* writable"),
    (lambda: memoryview(bytearray(4)).toreadonly(), BufferError, r"buffer 1 \(memoryview\)"),
    (read_only_mapping, BufferError, r"buffer 1 \(mmap\)"),
    (lambda: memoryview(bytearray(8))[::2], BufferError, r"buffer 1 \(memoryview\)"),
    (lambda: "text", TypeError, r"buffer 1 \(str\)"),
    (lambda: 4096, TypeError, r"buffer 1 \(int\)"),
    (lambda: None, TypeError, r"buffer 1 \(NoneType\)"),
    (lambda: bytearray(), ValueError, "buffer 1 has 0 bytes, outside 1 to 1073741824"),
    (lambda: mmap.mmap(-1, (1 << 30) + 1), ValueError, "buffer 1 has 1073741825 bytes"),
]


async def test_m3_m6_memory_that_will_not_do(ring: aiouring.AsyncRing, register_calls: list[int]) -> None:
    """Memory that the kernel would refuse, or must not write to, is refused with its number; nothing is held."""
    good = bytearray(10)
    with ring.register_buffers_sparse(3) as sparse:
        register_calls.clear()
        for make, kind, text in BAD:
            with pytest.raises(kind, match=text):
                pieces_of([good, make()])
            if make() is not None:
                with pytest.raises(kind, match=text):
                    sparse.update(0, [good, make()])
        assert register_calls == []
    with pytest.raises(ValueError, match="count=0 is outside"):
        ring.register_buffers([])
    with pytest.raises(ValueError, match="count=16385 is outside 1 to 16384"):
        ring.register_buffers([good] * 16385)
    good.append(1)


async def test_either_or(ring: aiouring.AsyncRing) -> None:
    """Own memory and a request for memory exclude each other."""
    both: list[dict[str, Any]] = [{"count": 1, "size": 1}, {"count": 1}, {"size": 1}, {"huge_pages": True}]
    for arguments in both:
        with pytest.raises(TypeError, match="either the buffers, or count and size"):
            ring.register_buffers([bytearray(1)], **arguments)
    half: list[dict[str, Any]] = [{}, {"count": 1}, {"size": 1}]
    for missing in half:
        with pytest.raises(TypeError, match="must be an int, not NoneType"):
            ring.register_buffers(**missing)


# ---- what the kernel refuses -------------------------------------------------------------------


async def test_m6_shared_mapping_of_a_file(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A shared mapping of a real file cannot be pinned: EFAULT, with the buffer's number and the file."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(2 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 2 * PAGE) as mapping:
        if os.major(os.fstat(file.fileno()).st_dev) == 0:
            pytest.skip(f"{tmp_path} is not on a disk's file system")
        for _ in range(2):
            with pytest.raises(OSError, match=f"buffer 1 lies in a shared mapping of {path}") as caught:
                ring.register_buffers([bytearray(10), mapping])
            assert caught.value.errno == errno.EFAULT
            del caught
        with ring.register_buffers([bytearray(10)]) as table:
            assert table.registered


async def test_m6_memory_made_read_only(ring: aiouring.AsyncRing) -> None:
    """Memory that lost its write access behind Python's back is refused by the kernel, and the text says so."""
    mapping = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapping)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(address, ctypes.c_size_t(PAGE), 1) == 0
    with pytest.raises(OSError, match="buffer 0 lies in a mapping of nothing without write access") as caught:
        ring.register_buffers([mapping])
    assert caught.value.errno == errno.EFAULT


async def test_m5_mapping_of_a_truncated_file(ring: aiouring.AsyncRing) -> None:
    """A mapping that reaches beyond its file's end is refused; one that was registered before stays usable."""
    file = os.memfd_create("file")
    os.ftruncate(file, 2 * PAGE)
    mapping = mmap.mmap(file, 2 * PAGE)
    with ring.register_buffers([mapping]) as table, table[0] as buffer, open("/dev/zero", "rb") as zeros:
        os.ftruncate(file, 0)
        assert await ring.read_fixed(zeros, buffer, 0) == 2 * PAGE  # the kernel's pages, no longer the file's
    await table.unregister().wait()
    with pytest.raises(OSError, match="beyond the end of its file") as caught:
        ring.register_buffers([mapping])
    assert caught.value.errno == errno.EFAULT
    os.close(file)


def test_other_errors_are_the_kernels() -> None:
    """What is neither EFAULT nor ENOMEM keeps its type and says what was being done."""
    error = registration_error(-errno.EPERM, 1, "doing this")
    assert isinstance(error, PermissionError)
    assert "doing this" in str(error)
    assert isinstance(registration_error(lib.AU_CLOSED, 1, "doing this"), aiouring.RingClosedError)


# ---- what is pinned ----------------------------------------------------------------------------


async def test_pinned_bytes(ring: aiouring.AsyncRing) -> None:
    """Whole pages are pinned, two for two bytes across a border; the number is the kernel's own."""
    before = pinned_kilobytes()
    memory = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(memory)
    with ring.register_buffers([view[PAGE - 1 : PAGE + 1], view[:PAGE], view[10:11]]) as table:
        assert table.pinned_bytes == 4 * PAGE == (pinned_kilobytes() - before) * 1024
        table.update(1, [None, view[: 3 * PAGE]])
        assert table.pinned_bytes == 5 * PAGE == (pinned_kilobytes() - before) * 1024
    assert table.pinned_bytes == 0
    await table.unregister().wait()
    assert pinned_kilobytes() == before
    view.release()


async def test_pinned_bytes_of_an_arena(ring: aiouring.AsyncRing) -> None:
    """Buffers of our own start on a page."""
    before = pinned_kilobytes()
    with ring.register_buffers(count=3, size=PAGE + 1) as table:
        assert table.pinned_bytes == 6 * PAGE == (pinned_kilobytes() - before) * 1024


def test_a_piece_knows_its_pages() -> None:
    """Pages are those of the piece's own size."""
    (piece,) = pieces_of_arena(1, 3 * PAGE, huge_pages=False)
    assert len(piece.pages()) == 3
    assert pinned_bytes([piece, piece]) == 6 * PAGE
    assert pinned_bytes([Piece(piece.memory, 1, page=1 << 40)] * 2) == 1 << 40
    assert piece_of(bytearray(7), 0).size == 7


# ---- huge pages --------------------------------------------------------------------------------

RESERVED = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Four reserved huge pages; their size."""
    if not os.access(RESERVED, os.W_OK):
        pytest.skip(f"{RESERVED} cannot be written to here")
    before = RESERVED.read_text()
    RESERVED.write_text(str(int(before) + 4))
    try:
        if int(RESERVED.read_text()) < int(before) + 4:
            pytest.skip("no memory is left for huge pages")
        yield huge_page_size()
    finally:
        RESERVED.write_text(before)


async def test_huge_pages(ring: aiouring.AsyncRing, huge_pages: int) -> None:
    """An arena of huge pages works as any other; huge pages are pinned as a whole, each once."""
    with ring.register_buffers(count=5, size=huge_pages // 3, huge_pages=True) as table:
        assert table.pinned_bytes == 2 * huge_pages
        smaps = Path("/proc/self/smaps").read_text()
        assert f"KernelPageSize:     {huge_pages // 1024} kB" in smaps
        text = os.urandom(huge_pages // 3)
        file = os.memfd_create("file")
        os.write(file, text)
        for index in range(5):
            with table[index] as buffer:
                assert await ring.read_fixed(file, buffer, 0) == len(text)
                assert bytes(buffer.view) == text
        os.close(file)


async def test_huge_pages_that_are_not_there(ring: aiouring.AsyncRing) -> None:
    """Without reserved huge pages the error has the numbers of /proc/meminfo and the cure; nothing is registered."""
    size = huge_page_size()
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("HugePages_Free")).split()[1])
    total = int(RESERVED.read_text())
    with pytest.raises(OSError, match=f"HugePages_Total: {total}, HugePages_Free: {free}") as caught:
        ring.register_buffers(count=free + 1, size=size, huge_pages=True)
    assert caught.value.errno == errno.ENOMEM
    assert f"sysctl vm.nr_hugepages={total + 1}" in str(caught.value)
    with ring.register_buffers(count=1, size=1) as table:
        assert table.registered


def test_a_huge_mapping_is_whole_pages(huge_pages: int) -> None:
    """One byte takes a whole huge page."""
    with huge_mapping(1, huge_pages) as mapping:
        assert len(mapping) == huge_pages


# ---- RLIMIT_MEMLOCK ----------------------------------------------------------------------------

# A user without CAP_IPC_LOCK; its number is its own, as the kernel counts per user.  Prints what could be pinned.
UNPRIVILEGED = """
import asyncio, mmap, os, resource
import aiouring

PAGE = mmap.PAGESIZE
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(50_000 + os.getpid() % 9000)

def most(ring):
    "How many pages can be registered, by trying."
    count = 0
    tables = []
    for size in (128, 64, 32, 16, 8, 4, 2, 1):
        try:
            with ring.register_buffers(count=count + size, size=PAGE):
                count += size
        except OSError as error:
            assert error.errno == 12, error
    return count

resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 18, 1 << 18))
with aiouring.Ring(8, cq_entries=16) as ring:
    alone = most(ring)
    print("alone", alone)
    with aiouring.Ring(8, cq_entries=16) as other:
        print("beside", most(other))
        table = ring.register_buffers(count=alone // 2, size=PAGE)
        assert table.pinned_bytes == alone // 2 * PAGE
        print("shared", most(other))
        clone = other.clone_buffers(table)
        assert clone.pinned_bytes == table.pinned_bytes
        table.unregister()
        print("cloned", most(ring))
        memory = bytearray(PAGE)
        try:
            ring.register_buffers([memoryview(mmap.mmap(-1, 10 * PAGE))] * 10)
        except OSError as error:
            print("twice", error)
        else:
            print("twice was free")
"""


def test_m9_what_is_charged() -> None:
    """Per user: another ring's buffers count, a clone's do not, and a page counts as often as it is registered."""
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    alone, beside, shared, cloned = (int(said[name]) for name in ("alone", "beside", "shared", "cloned"))
    limit = (1 << 18) // PAGE
    assert limit // 2 < alone <= limit
    assert beside <= alone
    assert beside - alone // 2 - 4 <= shared <= beside - alone // 2 + 4
    assert shared - 4 <= cloned <= shared + 4  # the source is gone: the clone is charged once, as the source was
    assert f"{100 * PAGE} bytes would be locked" in said["twice"]
    assert "RLIMIT_MEMLOCK allows this user 262144 bytes" in said["twice"]
    assert "CAP_IPC_LOCK, which alone is exempt" in said["twice"]


async def test_m9_nothing_is_held_after_a_refusal(new_ring: RingFactory) -> None:
    """Memory that was refused is free again, as soon as the error is."""
    ring = await new_ring()
    memory = bytearray(10)
    with ring.register_buffers(count=1, size=1):
        with pytest.raises(aiouring.ResourceBusyError):
            ring.register_buffers([memory])
    memory.append(1)
    await asyncio.sleep(0)
