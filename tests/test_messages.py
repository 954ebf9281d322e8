"""Tests of messages: control data there and back, and who closes descriptors that nobody takes."""

import os
import socket
from array import array

import pytest

from aiouring._messages import SendMessage, new_message, unpack_ancillary
from aiouring._request import Kept, Leftovers
from aiouring._uring import ffi, lib

pytestmark = pytest.mark.needs_no_ring
RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


def test_control_data_there_and_back() -> None:
    """What is packed is unpacked, in its order, whatever its length; a piece that was cut off is what is there."""
    pieces = [(1, 7, b""), (2, 8, b"x"), (3, 9, bytes(range(8))), (4, 10, b"nine byte")]
    message, parts = new_message([], writable=False)
    request = SendMessage(-1, None, message, parts, pieces)
    packed = ffi.buffer(request.control)[:-1]  # without the zero that cffi adds
    assert unpack_ancillary(packed) == (tuple(pieces), ())
    assert unpack_ancillary(packed[:-12])[0][-1] == (4, 10, b"nine")
    assert unpack_ancillary(packed[:10]) == ((), ())
    assert unpack_ancillary(bytes(64)) == ((), ())
    assert lib.au_message_control_size(message) == len(packed)


def test_descriptors_are_duplicated_and_closed() -> None:
    """Ours go when the request lets go, or when one of them cannot be had."""
    message, parts = new_message([], writable=False)
    reader, writer = os.pipe()
    request = SendMessage(-1, None, message, parts, [(*RIGHTS, array("i", [writer]))])
    os.close(writer)
    request.let_go()
    assert os.read(reader, 1) == b"", "the pipe has no writer left"
    with pytest.raises(OSError):
        SendMessage(-1, None, *new_message([], writable=False), [(*RIGHTS, array("i", [reader, 987654]))])
    os.close(reader)


def test_the_vector_is_bounded() -> None:
    """No part is added beyond the vector, none that reaches beyond its memory, no address that is too long."""
    message, (memory,) = new_message([b"data"], writable=False)
    assert lib.au_message_add(message, memory, 4, 0, 4) == lib.AU_BAD_LENGTH
    message.capacity = 0
    assert lib.au_message_add(message, memory, 4, 2, 3) == lib.AU_BAD_LENGTH
    assert lib.au_message_address(message, bytes(129), 129) == lib.AU_BAD_LENGTH
    for size in (-1, (1 << 20) + 1):
        assert lib.au_message_control(message, memory, size) == lib.AU_BAD_LENGTH


def test_messages_are_kept_whole() -> None:
    """Bytes of a datagram socket are kept one by one, also where they came by a plain receive; a stream's joined."""
    leftovers = Leftovers()
    for kind, expected in ((socket.SOCK_DGRAM, [b"one", b"tw"]), (socket.SOCK_STREAM, [b"one", b"two"])):
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        with left, right:
            for data in (b"one", b"two"):
                leftovers.keep(left.fileno(), data)
            assert leftovers.take(left.fileno(), 3) == expected[0]
            rest = (leftovers.take(left.fileno(), 2) or b"") + (leftovers.take(left.fileno(), 2) or b"")
            assert rest == expected[1], "a message is cut off, a stream is not"


def test_what_nobody_takes_is_closed() -> None:
    """Descriptors that came with a message are closed with it."""
    reader, writer = os.pipe()
    kept = Kept(b"data")
    kept.descriptors = (writer,)
    del kept
    assert os.read(reader, 1) == b""
    os.close(reader)
