"""Tests of Arena, Home and Lease: one owner per buffer, and no view of it that outlives its lease."""

import ctypes
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from aiouring._errors import ResourceBusyError, WrongContextError
from aiouring._lease import PAGE, Arena, Home, Lease
from aiouring._uring import ffi

if TYPE_CHECKING:
    import asyncio

pytestmark = pytest.mark.needs_no_ring

SIZE = 256
FILL = bytes(range(SIZE))

EXPORTS: dict[str, Callable[[memoryview], object]] = {
    "slice": lambda view: view[1:3],
    "slice of a slice": lambda view: view[10:][5:],
    "empty slice": lambda view: view[:0],
    "memoryview": memoryview,
    "cast": lambda view: view.cast("I"),
    "read-only": lambda view: view.toreadonly(),
    "ctypes array": (ctypes.c_char * 16).from_buffer,
    "ctypes array of a slice": lambda view: (ctypes.c_char * 16).from_buffer(view[4:20]),
    "pickle buffer": pickle.PickleBuffer,
    "cffi array": lambda view: ffi.from_buffer(view),
}


class Clerk:
    """An attendant that only notes what other threads ask of it."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], object]] = []

    def new_future(self) -> "asyncio.Future[Any]":
        """Nobody waits here."""
        raise NotImplementedError

    def ask_for_turn(self) -> None:
        """There is no ring."""

    def submit_queued(self) -> None:
        raise AssertionError

    def draw_number(self) -> int:
        raise AssertionError

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Keep it for the test to call."""
        self.asked.append(what)

    def cancel_receives(self, group: object) -> None:
        """There are none."""

    def groups_in_flight(self) -> set[int]:
        """There are none."""
        return set()


class Shelf(Home):
    """A home that lists what came back, and belongs to the thread that made it."""

    def __init__(self) -> None:
        self.clerk = Clerk()
        super().__init__(self.clerk)
        self.arena = Arena(4, SIZE, SIZE)
        self.returned: list[int] = []
        self.thread = threading.get_ident()

    def lend(self, number: int, length: int = SIZE) -> Lease:
        """A lease of buffer `number`, filled with FILL."""
        self.arena.exporters[number][:SIZE] = FILL
        return Lease(self, self.arena, number, length)

    def take_back(self, number: int) -> None:
        """Note it."""
        if threading.get_ident() != self.thread:
            raise WrongContextError("another thread")
        self.returned.append(number)


@pytest.mark.parametrize(("count", "size", "stride"), [(1, 1, 1), (3, 100, PAGE), (5, PAGE, PAGE), (64, 48, 48)])
def test_arena_layout(count: int, size: int, stride: int) -> None:
    """The arena starts on a page; its buffers are a stride apart, zeroed, and do not overlap."""
    arena = Arena(count, size, stride)
    base = int(ffi.cast("uintptr_t", arena.base))
    assert base % PAGE == 0
    for number, memory in enumerate(arena.memories):
        assert int(ffi.cast("uintptr_t", memory)) == base + number * stride
        assert len(arena.exporters[number]) == size
        assert bytes(ffi.buffer(memory, size)) == bytes(size)
    for number in range(count):
        memoryview(arena.exporters[number])[:] = bytes([number + 1]) * size
    for number, memory in enumerate(arena.memories):
        assert bytes(ffi.buffer(memory, size)) == bytes([number + 1]) * size


def test_length_and_repr() -> None:
    """A lease is as long as what it lends, and says which buffer it is and whether it has ended."""
    lease = Shelf().lend(2, 5)
    assert len(lease) == 5
    assert bytes(lease.view) == FILL[:5]
    assert repr(lease) == "<Lease 2 5 bytes>"
    lease.release()
    assert repr(lease) == "<Lease 2 released>"


def test_release_returns_the_buffer() -> None:
    """Each release returns one buffer, at once."""
    shelf = Shelf()
    first, second = shelf.lend(0), shelf.lend(3)
    second.release()
    assert shelf.returned == [3]
    first.release()
    assert shelf.returned == [3, 0]


def test_with_releases() -> None:
    """Leaving the block is a release; a lease that was released inside is left alone."""
    shelf = Shelf()
    with shelf.lend(1) as lease:
        assert bytes(lease.view) == FILL
    assert shelf.returned == [1]
    with shelf.lend(2) as lease:
        lease.release()
    assert shelf.returned == [1, 2]


async def test_async_with_releases() -> None:
    """`async with` works as `with` does."""
    shelf = Shelf()
    async with shelf.lend(1) as lease:
        assert not lease.ended
    assert shelf.returned == [1]


def test_d1_released_twice() -> None:
    """The second release is refused with the buffer's number, and returns nothing."""
    shelf = Shelf()
    lease = shelf.lend(2)
    lease.release()
    for _ in range(3):
        with pytest.raises(ValueError, match="buffer 2 has been released already"):
            lease.release()
    assert shelf.returned == [2]


def test_d2_view_after_release() -> None:
    """After the release neither the lease nor a view that was taken before gives access to the memory."""
    lease = Shelf().lend(0)
    view = lease.view
    assert lease.view is view
    lease.release()
    with pytest.raises(ValueError, match="released memoryview"):
        view[0]
    with pytest.raises(ValueError, match="buffer 0 has been released already"):
        lease.view
    with pytest.raises(ValueError, match="buffer 0 has been released already"):
        lease.memory()


@pytest.mark.parametrize("name", EXPORTS)
def test_d3_export_alive(name: str) -> None:
    """A buffer is not returned while something made from its view is alive; the lease stays good."""
    shelf = Shelf()
    lease = shelf.lend(1)
    export = EXPORTS[name](lease.view)
    with pytest.raises(BufferError):
        lease.release()
    assert shelf.returned == []
    assert not lease.ended
    assert bytes(lease.view) == FILL
    del export
    lease.release()
    assert shelf.returned == [1]


@pytest.mark.parametrize("name", EXPORTS)
def test_d3_export_alive_at_the_second_try(name: str) -> None:
    """Trying again does not help while the export is alive."""
    shelf = Shelf()
    lease = shelf.lend(1)
    export = EXPORTS[name](lease.view)
    for _ in range(2):
        with pytest.raises(BufferError):
            lease.release()
    del export
    lease.release()
    assert shelf.returned == [1]


def test_d3_copies_are_free() -> None:
    """What was copied out of the view does not hold the buffer."""
    shelf = Shelf()
    lease = shelf.lend(1)
    kept = [bytes(lease.view), bytes(lease.view.tolist()), bytearray(lease.view[3:7])]
    lease.release()
    assert shelf.returned == [1]
    assert kept == [FILL, FILL, FILL[3:7]]


def test_d3_neighbours_do_not_count() -> None:
    """Views of one buffer do not hold another."""
    shelf = Shelf()
    lease, neighbour = shelf.lend(1), shelf.lend(2)
    view = neighbour.view[3:9]
    lease.release()
    assert shelf.returned == [1]
    assert bytes(view) == FILL[3:9]
    del view
    neighbour.release()


def test_d3_leaving_with_a_slice_alive() -> None:
    """At the end of a block that went well, a slice that is still alive is an error."""
    shelf = Shelf()
    lease = shelf.lend(1)
    with pytest.raises(BufferError, match="buffer 1's view is still alive"):
        with lease:
            part = lease.view[1:3]
    assert shelf.returned == []
    assert bytes(part) == FILL[1:3]
    del part
    lease.release()
    assert shelf.returned == [1]


def fail_inside(lease: Lease, act: Callable[[Lease], object]) -> None:
    """Do something in a lease's block, and leave it by an exception."""
    with lease:
        act(lease)
        raise KeyError("mine")


def pin(lease: Lease) -> None:
    """What the driver does for a request on the lease's memory."""
    lease.pins += 1


def test_exception_is_not_replaced_by_buffer_error() -> None:
    """An exception leaves the block as it is, slice or not; the buffer comes back when the slice is gone."""
    shelf = Shelf()
    lease = shelf.lend(1)
    parts: list[memoryview] = []
    with pytest.raises(KeyError, match="mine"):
        fail_inside(lease, lambda lease: parts.append(lease.view[1:3]))
    assert lease.ended
    assert shelf.returned == []
    assert bytes(parts[0]) == FILL[1:3]
    parts.clear()
    assert shelf.returned == [1]
    with pytest.raises(ValueError, match="released already"):
        lease.release()


def test_exception_is_not_replaced_by_busy_error() -> None:
    """The same holds for a request in flight: the buffer comes back at its completion."""
    shelf = Shelf()
    lease = shelf.lend(1)
    with pytest.raises(KeyError, match="mine"):
        fail_inside(lease, pin)
    assert shelf.returned == []
    lease.pins -= 1
    lease.unpinned()
    assert shelf.returned == [1]


def test_exception_while_pinned_and_viewed() -> None:
    """A view that was taken before makes no difference, and is invalid after the block."""
    shelf = Shelf()
    lease = shelf.lend(1)
    view = lease.view
    with pytest.raises(KeyError, match="mine"):
        fail_inside(lease, pin)
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(ValueError, match="released"):
        lease.view
    lease.pins -= 1
    lease.unpinned()
    assert shelf.returned == [1]


def test_pinned_lease_cannot_be_released() -> None:
    """While requests use the memory a release is refused, with their number; afterwards it works."""
    shelf = Shelf()
    lease = shelf.lend(1)
    lease.pins += 2
    with pytest.raises(ResourceBusyError, match=r"buffer 1 is in use by 2 request\(s\)"):
        lease.release()
    assert bytes(lease.view) == FILL
    lease.pins -= 2
    lease.release()
    assert shelf.returned == [1]


def test_leaving_while_pinned() -> None:
    """A block that ends well with a request still in flight is an error of the caller's."""
    shelf = Shelf()
    lease = shelf.lend(1)
    with pytest.raises(ResourceBusyError), lease:
        lease.pins += 1
    lease.pins -= 1
    lease.release()


def test_leaving_an_abandoned_lease() -> None:
    """If the kernel would not stop the request, the block ends quietly and the buffer comes back later."""
    shelf = Shelf()
    with shelf.lend(1) as lease:
        lease.pins += 1
        lease.abandoned = True
    assert shelf.returned == []
    lease.pins -= 1
    lease.unpinned()
    assert shelf.returned == [1]


def test_released_in_another_thread() -> None:
    """A release in the wrong thread is refused, and the lease stays good."""
    shelf = Shelf()
    lease = shelf.lend(1)
    raised: list[BaseException] = []

    def release() -> None:
        try:
            lease.release()
        except WrongContextError as error:
            raised.append(error)

    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert bytes(lease.view) == FILL
    lease.release()
    assert shelf.returned == [1]
