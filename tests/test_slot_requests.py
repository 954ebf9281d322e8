"""Tests of the requests that fill and empty slots: what is in the table, whatever the kernel answers and when."""

import errno
import os
from collections.abc import Callable, Iterator

import pytest
from registered_slots import agrees, kernel_slots

import aiouring
from aiouring import RegisteredFiles, Ring
from aiouring._request import Leftovers, Request
from aiouring._slot_requests import CloseSlot, Install, InstallArray, Sources, Update
from aiouring._uring import ffi, lib

Pair = tuple[Ring, RegisteredFiles]


@pytest.fixture
def table() -> Iterator[Pair]:
    """A ring with a table of four slots, files in the first two."""
    with Ring(8) as ring, ring.register_files([0, 1, None, None]) as files:
        yield ring, files


def end(ring: Ring, request: Request, code: int) -> int:
    """Submit what was filled, and let the request end as the kernel says."""
    assert code == 0
    (done,) = ring.wait()
    request.result, request.ended = done.result, True
    return done.result


def test_a_request_that_never_started(table: Pair) -> None:
    """What was reserved is free again, and nothing else has changed."""
    ring, files = table
    before = files.slots()
    makers: list[Callable[[], Request]] = [
        lambda: Install(files, None),
        lambda: Install(files, 2),
        lambda: InstallArray(files, 2, count=2),
        lambda: Update(files, 0, [None, 1, 0]),
    ]
    for make in makers:
        request = make()
        assert files.changing
        request.let_go()
        assert files.changing, "it has not ended"
        request.ended = True
        request.let_go()
        request.let_go()
        assert not files.changing
        assert files.slots() == before
    agrees(ring, files)


def test_a_close_that_never_started(table: Pair) -> None:
    """It is done all the same."""
    ring, files = table
    request = CloseSlot(files[0].slot)
    assert files.statistics().busy == 1
    request.ended = True
    request.let_go()
    request.let_go()
    assert list(agrees(ring, files)) == [1]
    assert not files.changing


def test_a_close_whose_slot_was_filled_again_at_once(table: Pair) -> None:
    """The kernel may give the slot to another request whose completion comes first: it keeps its file."""
    ring, files = table
    close = CloseSlot(files[0].slot)
    code = lib.au_prepare_slot(ring.raw, 1, lib.AU_OP_CLOSE, 0, 0, 0, 0, 0, 0)
    assert end(ring, close, code) == 0
    files.set_allocation_range(0, 1)
    opening = Install(files, None, hold=ffi.new("char[]", b"/dev/null"))
    path = (opening.hold, ffi.NULL, ffi.NULL)
    code = lib.au_prepare_path(ring.raw, 2, lib.AU_OP_OPENAT, lib.AU_AT_FDCWD, *path, 0, 0, opening.slot, 0)
    assert end(ring, opening, code) == 0
    (descriptor,) = opening.claim()
    close.let_go()
    assert descriptor.index == 0
    assert not descriptor.closed
    agrees(ring, files)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_update_that_stops(table: Pair, stop: int) -> None:
    """What the completion says is in the table: files before it stopped, an empty slot, and what was there before."""
    ring, files = table
    files.update(2, [0])
    before = files.slots()
    entries: list[int | None] = [1, None, 1]
    request = Update(files, 0, entries)
    request.hold[stop] = ring.fd
    code = lib.au_prepare_array(ring.raw, 1, lib.AU_OP_FILES_UPDATE, request.hold, 3, 0, 0, 0)
    assert end(ring, request, code) == (stop or -errno.EBADF)
    for at in range(3):
        with pytest.raises(OSError, match="in use by a request in flight"):
            _ = files[at]
    request.let_go()
    agrees(ring, files)
    now = files.slots()
    assert now[stop] is None
    assert now[stop + 1 :] == before[stop + 1 :]
    assert (stop > 0) == (now[0] is not None)
    assert now[0] != before[0]


def test_unclaimed_files_are_closed(table: Pair) -> None:
    """What a request put into the table for nobody is taken out again."""
    ring, files = table
    request = InstallArray(files, None, hold=ffi.new("int32_t[]", [0, 0, 0]))
    code = lib.au_prepare_array(ring.raw, 1, lib.AU_OP_FILES_UPDATE, request.hold, 3, lib.AU_FILE_INDEX_ALLOC, 0, 0)
    assert end(ring, request, code) == 2
    assert len(kernel_slots(ring)) == 4
    request.unclaimed(Leftovers())
    request.let_go()
    assert list(agrees(ring, files)) == [0, 1]


def test_nothing_to_discard_in_a_table_that_is_gone(table: Pair) -> None:
    """After unregister() the request settles without touching the kernel."""
    _, files = table
    requests: list[Request] = [Install(files, 2), CloseSlot(files[0].slot), Update(files, 1, [None])]
    files.unregister()
    for request in requests:
        request.ended = True
        request.result = 0
        request.unclaimed(Leftovers())
        request.let_go()
    assert not files.changing
    with pytest.raises(aiouring.RingClosedError, match="unregistered while"):
        files.place(2)


def test_sources_notice_a_file_that_was_closed() -> None:
    """A descriptor that is not what it was is taken out of the array, and the others stay."""
    number = os.dup(0)
    array = ffi.new("int32_t[]", [0, number])
    sources = Sources([0, number], [0, number], array)
    assert sources.fileno() == -1
    assert list(array) == [0, number]
    os.close(number)
    sources.fileno()
    assert list(array) == [0, lib.AU_FIRST_SLOT]
    with pytest.raises(OSError, match=rf"files\[1\] is descriptor {number}"):
        Sources([0, number], [0, number], array)


def test_array_requests_are_bounded(table: Pair) -> None:
    """The C core takes no array into slots outside the table, and no pipe of another length than two."""
    ring, _ = table
    array = ffi.new("int32_t[4]")
    for opcode, count, slot in (
        (lib.AU_OP_PIPE, 2, 3),
        (lib.AU_OP_PIPE, 2, -2),
        (lib.AU_OP_FILES_UPDATE, 2, 3),
        (lib.AU_OP_FILES_UPDATE, 1, -1),
        (lib.AU_OP_FILES_UPDATE, 1, 2**40),
    ):
        assert lib.au_prepare_array(ring.raw, 1, opcode, array, count, slot, 0, 0) == lib.AU_BAD_SLOT
    assert lib.au_prepare_array(ring.raw, 1, lib.AU_OP_PIPE, array, 1, 0, 0, 0) == lib.AU_BAD_LENGTH
    assert lib.au_prepare_slot(ring.raw, 1, lib.AU_OP_CLOSE, 0, 0, 0, 0, 4, 0) == lib.AU_BAD_SLOT
    path = (ffi.new("char[]", b"x"), ffi.NULL, ffi.NULL)
    assert lib.au_prepare_path(ring.raw, 1, lib.AU_OP_OPENAT, -100, *path, 0, 0, 4, 0) == lib.AU_BAD_SLOT
    assert lib.au_files_update(ring.raw, 3, array, 2) == lib.AU_BAD_SLOT
    assert lib.au_slot_set(ring.raw, 4, 1) == lib.AU_BAD_SLOT
    assert lib.au_ring_unsubmitted(ring.raw) == 0
