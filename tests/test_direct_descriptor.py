"""Tests of DirectDescriptor: what stands for a file in a slot, and never for another."""

import asyncio
import os
import socket

import pytest

import aiouring


@pytest.fixture
def ring() -> aiouring.Ring:
    """A ring without a loop."""
    return aiouring.Ring(8)


def test_what_it_says(ring: aiouring.Ring) -> None:
    """It knows its slot and table; repr() names both."""
    with ring, ring.register_files([0, None, 1]) as files:
        descriptor = files[2]
        assert (descriptor.index, descriptor.table, descriptor.closed) == (2, files, False)
        assert repr(descriptor) == "<DirectDescriptor 2 of <RegisteredFiles 3 slots>>"
        assert repr(descriptor.slot) == "slot 2"


def test_equal_as_long_as_it_is_the_same_file(ring: aiouring.Ring) -> None:
    """Two of the same file in the same slot are equal; the next file in that slot is another."""
    with ring, ring.register_files([0]) as files:
        first = files[0]
        assert first == files[0]
        assert hash(first) == hash(files[0])
        assert first.slot == files[0].slot
        stale = first.slot
        files.update(0, [0])
        assert first != files[0]
        assert stale != files[0].slot
        assert stale != int(stale)
        assert first.closed


def test_it_is_no_descriptor(ring: aiouring.Ring) -> None:
    """Nothing outside this package can take slot 0 for descriptor 0."""
    with ring, ring.register_files([0]) as files:
        descriptor = files[0]
        assert not hasattr(descriptor, "fileno")
        with pytest.raises(TypeError):
            os.read(descriptor, 1)  # type: ignore[arg-type]
        with pytest.raises(OSError) as caught:
            os.read(descriptor.slot, 1)
        assert caught.value.errno == 9
        with asyncio.Runner() as runner, pytest.raises(ValueError):
            runner.get_loop().add_reader(descriptor.slot, print)


def test_release_empties_the_slot_once(ring: aiouring.Ring) -> None:
    """release() and the end of `with` empty the slot, and leave alone what came after."""
    with ring, ring.register_files([0, 1]) as files:
        with files[0] as descriptor:
            pass
        assert descriptor.closed
        assert files.slots() == [None, files[1]]
        files.update(0, [1])
        descriptor.release()
        assert not files[0].closed
        with pytest.raises(OSError, match="slot 0 does not hold this file any more") as caught:
            ring.prepare(aiouring.Opcode.FSYNC, user_data=1, fd=descriptor)
        assert caught.value.errno == 9


def test_what_is_known_of_a_socket(ring: aiouring.Ring) -> None:
    """Family, type and protocol are those of the socket it was made from, and nobody else's afterwards."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring, ring.register_files([ours, theirs.fileno()]) as files:
        descriptor = files[0]
        assert (descriptor.family, descriptor.type, descriptor.proto) == (ours.family, ours.type, ours.proto)
        assert (files[1].family, files[1].type, files[1].proto) == (0, 0, 0)
        files.update(0, [0])
        assert files[0].family == 0
