"""Tests of requests, and of the bytes that nobody took."""

import os
import socket
import sys
from types import FrameType

from aiouring._request import Leftovers, Request, Write, identify, keeps_boundaries


def test_request_representation() -> None:
    """repr() says what a request is waiting for, as the in-flight table prints it."""
    request = Write(5)
    request.user_data = 9
    assert repr(request) == "<Write 9 fd=5 detached>"
    request.ended = True
    request.result = -4
    assert repr(request) == "<Write 9 fd=5 ended -4>"


def test_letting_go_ends_the_export() -> None:
    """let_go() unlocks the caller's memory although the request lives on."""
    from aiouring._uring import ffi

    memory = bytearray(8)
    request = Request(3, None, ffi.from_buffer(memory, require_writable=True))
    request.let_go()
    assert request.hold is not None, "the kernel is not done yet"
    request.ended = True
    request.let_go()
    memory.extend(b"x")
    request.let_go()


def test_leftovers_come_back_in_order() -> None:
    """What is kept for a file is taken once, in order, in the portions asked for."""
    leftovers = Leftovers()
    left, right = socket.socketpair()
    assert not leftovers.kept
    assert leftovers.take(left.fileno(), 9) is None
    leftovers.keep(left.fileno(), b"abc")
    leftovers.keep(left.fileno(), b"def")
    leftovers.keep(right.fileno(), b"other")
    assert leftovers.kept
    assert leftovers.take(left.fileno(), 4) == b"abcd"
    assert leftovers.take(left.fileno(), 4) == b"ef"
    assert leftovers.take(left.fileno(), 4) is None
    assert leftovers.take(right.fileno(), 99) == b"other"
    assert not leftovers.kept
    left.close()
    right.close()


def test_leftovers_are_never_another_files() -> None:
    """A file that gets the number of a closed one does not see its bytes."""
    leftovers = Leftovers()
    left, right = socket.socketpair()
    number = left.fileno()
    leftovers.keep(number, b"secret")
    left.close()
    reader, writer = os.pipe()
    os.dup2(reader, number)
    assert leftovers.take(number, 99) is None
    leftovers.keep(number, b"pipe's")
    leftovers.forget(number)
    assert leftovers.take(number, 99) is None
    os.close(number)
    leftovers.keep(number, b"nobody's")
    assert not leftovers.kept
    if reader != number:
        os.close(reader)
    os.close(writer)
    right.close()


def test_identify() -> None:
    """Two descriptors of one file are the same file, two files are not."""
    first, second = os.pipe()
    again = os.dup(first)
    assert identify(first) == identify(again)
    left, right = socket.socketpair()
    assert identify(left.fileno()) != identify(right.fileno())
    for s in (left, right):
        s.close()
    for descriptor in (first, second, again):
        os.close(descriptor)


def test_c8_h1_interrupted_while_a_socket_is_asked_what_it_is() -> None:
    """At any line, as in a delivery: nobody's socket is closed by that."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    at = lines = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    with left, right:
        identity, whole = identify(left.fileno()), False
        while not whole:
            at, lines = at + 1, 0
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                whole = keeps_boundaries(left.fileno())
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert identify(left.fileno()) == identity
        assert at > 3
        assert not keeps_boundaries(0)
