"""Owns the memory behind registered buffers: arenas, huge pages, the caller's own, and why the kernel refuses some.

Ownership.  The caller's memory is held by an export (a Py_buffer, as a memoryview holds one) from before the
kernel sees it until the slot has been replaced, removed or unregistered, its tag has come, and no lease of it
is left.  As long, a bytearray refuses to be resized, and a mmap to be closed, with `BufferError`: the kernel would
go on writing to the old pages, which by then are somebody else's (KERNEL.md C6).
"""

import errno
import mmap
import os
import resource
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aiouring._errors import failure
from aiouring._lease import PAGE, Arena
from aiouring._ring import check_size
from aiouring._setup import in_bytes
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._uring import CMemory

MAX_BUFFERS = lib.AU_MAX_BUFFERS
MAX_BUFFER_BYTES = lib.AU_MAX_BUFFER_BYTES


class Piece(NamedTuple):
    """The memory of one slot.  `arena` is None where the slot is to have one of its own."""

    memory: "CMemory"
    size: int
    arena: Arena | None = None
    page: int = PAGE

    def pages(self) -> range:
        """The pages that hold it, by number; the kernel pins whole ones."""
        address = int(ffi.cast("uintptr_t", self.memory))
        return range(address // self.page, (address + self.size - 1) // self.page + 1)


class SlotArena(Arena):
    """The memory of one slot, the caller's or shared with another table, lent under one key."""

    __slots__ = ()

    def __init__(self, key: int, piece: Piece) -> None:
        self.base = piece.memory
        self.memories = {key: piece.memory}
        self.exporters = {key: ffi.buffer(piece.memory, piece.size)}


def pieces_of_arena(count: int, size: int, *, huge_pages: bool) -> list[Piece]:
    """Page-aligned memory of our own for `count` buffers of `size` bytes."""
    check_size("count", count, MAX_BUFFERS)
    check_size("size", size, MAX_BUFFER_BYTES)
    stride = -(-size // PAGE) * PAGE
    page = huge_page_size() if huge_pages else PAGE
    arena = Arena(count, size, stride, huge_mapping(count * stride, page) if huge_pages else None)
    return [Piece(arena.memories[index], size, arena, page) for index in range(count)]


def piece_of(buffer: Any, index: int) -> Piece:
    """The caller's memory, exported; `index` is the slot that it is for."""
    try:
        memory = ffi.from_buffer(buffer, require_writable=True)
    except (BufferError, TypeError, ValueError) as error:
        raise type(error)(
            f"buffer {index} ({type(buffer).__name__}) cannot be registered: {error}; the kernel writes to registered "
            "memory, so it must be a writable C-contiguous buffer: bytearray, array, mmap, memoryview, numpy array ..."
        ) from None
    size = len(memory)
    if not 1 <= size <= MAX_BUFFER_BYTES:
        raise ValueError(f"buffer {index} has {size} bytes, outside 1 to {MAX_BUFFER_BYTES}")
    return Piece(memory, size)


def pieces_of(buffers: Iterable[Any]) -> list[Piece]:
    """The caller's memory for a whole table."""
    listed = list(buffers)
    check_size("count", len(listed), MAX_BUFFERS)
    return [piece_of(buffer, index) for index, buffer in enumerate(listed)]


def let_go(pieces: Iterable[Piece | None]) -> None:
    """The kernel would not have them: end the exports now, since the exception's traceback would keep them."""
    for piece in pieces:
        if piece is not None and piece.arena is None:
            ffi.release(piece.memory)


def pinned_bytes(pieces: Iterable[Piece]) -> int:
    """What the kernel pins for them: whole pages, and a page as often as it is registered.

    Huge pages count once in a table.  Pages that the kernel merged behind our back (transparent huge pages) are
    charged as a whole, and cannot be seen from here: this is the least.
    """
    small = 0
    huge: set[tuple[int, int]] = set()
    for piece in pieces:
        if piece.page == PAGE:
            small += len(piece.pages()) * PAGE
        else:
            huge.update((number, piece.page) for number in piece.pages())
    return small + sum(page for _, page in huge)


# ---- huge pages ------------------------------------------------------------------------------------


def _meminfo() -> dict[str, int]:
    """The numbers of /proc/meminfo, in its own units."""
    with open("/proc/meminfo") as lines:
        return {line.partition(":")[0]: int(line.split()[1]) for line in lines}


def huge_page_size() -> int:
    """Bytes in a huge page of the default size."""
    kilobytes = _meminfo().get("Hugepagesize")
    if kilobytes is None:
        raise OSError(errno.EOPNOTSUPP, "this kernel was built without huge pages (no Hugepagesize in /proc/meminfo)")
    return kilobytes * 1024


def huge_mapping(size: int, page: int) -> mmap.mmap:
    """Private anonymous huge pages for `size` bytes; they are reserved here, so using them cannot fail."""
    needed = -(-size // page)
    try:
        return mmap.mmap(-1, needed * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | lib.AU_MAP_HUGETLB)
    except OSError as error:
        found = _meminfo()
        total, free, reserved = (found.get(f"HugePages_{name}", 0) for name in ("Total", "Free", "Rsvd"))
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno or 0)}: {size} bytes need {needed} huge page(s) of {page} bytes, and "
            f"/proc/meminfo has HugePages_Total: {total}, HugePages_Free: {free}, HugePages_Rsvd: {reserved}; "
            f"reserve more as root (sysctl vm.nr_hugepages={total + max(0, needed - (free - reserved))}), "
            "or do without huge_pages=True",
        ) from None


# ---- what the kernel refuses -----------------------------------------------------------------------


def registration_error(
    code: int, size: int, doing: str, pieces: Sequence[Piece | None] = (), index: int = 0
) -> Exception:
    """The exception for a refused registration of `size` bytes; it says what can be done (KERNEL.md C6).

    `pieces` were to be in the slots from `index` on.
    """
    if code == -errno.EFAULT:
        return OSError(errno.EFAULT, f"{doing}: {os.strerror(errno.EFAULT)}: {_why_not_pinned(pieces, index)}")
    if code != -errno.ENOMEM:
        return failure(code, doing)
    soft, hard = (in_bytes(limit) for limit in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    return OSError(
        errno.ENOMEM,
        f"{doing}: {os.strerror(errno.ENOMEM)}: {size} bytes would be locked, and RLIMIT_MEMLOCK allows this user "
        f"{soft} in all its processes (hard limit: {hard}); "
        "raise it (ulimit -l, LimitMEMLOCK= in a systemd unit, docker run --ulimit memlock=-1), "
        "ask for less, or make the ring with CAP_IPC_LOCK, which alone is exempt",
    )


def _why_not_pinned(pieces: Sequence[Piece | None], index: int) -> str:
    """Which buffer the kernel could not pin, as far as the process's mappings tell."""
    rule = (
        "the kernel pins only writable memory that is anonymous, a private mapping, or shared on tmpfs or a memfd, "
        "and that exists as a whole"
    )
    with open("/proc/self/maps") as lines:
        areas = [line.split(maxsplit=5) for line in lines]
    for slot, piece in enumerate(pieces, index):
        if piece is None:
            continue
        first = int(ffi.cast("uintptr_t", piece.memory))
        for area in areas:
            start, end = (int(number, 16) for number in area[0].split("-"))
            if end <= first or first + piece.size <= start:
                continue
            path = area[5].strip() if len(area) > 5 else "nothing"
            if area[1][3] == "s" and not path.startswith(("/memfd:", "/dev/shm/", "/dev/zero")):  # noqa: S108
                return f"buffer {slot} lies in a shared mapping of {path}; {rule}"
            if "w" not in area[1]:
                return f"buffer {slot} lies in a mapping of {path} without write access; {rule}"
    return f"{rule}; a mapping that reaches beyond the end of its file does not"
