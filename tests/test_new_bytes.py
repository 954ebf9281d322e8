"""Tests of new_bytes: objects of the right size, which are nobody else's, however large."""

import sys

import pytest

from aiouring._new_bytes import _CALLED_FROM, new_bytes
from aiouring._uring import ffi


@pytest.mark.parametrize("size", [1, 2, 4096, _CALLED_FROM - 1, _CALLED_FROM, 1 << 20])
def test_an_object_of_its_own(size: int) -> None:
    """Each call makes another object, which holds what is written to it."""
    one, other = new_bytes(size), new_bytes(size)
    assert one is not other
    for data, byte in ((one, b"x"), (other, b"y")):
        ffi.memmove(ffi.from_buffer(data), byte * size, size)
    assert one == b"x" * size
    assert other == b"y" * size


def test_what_cannot_be() -> None:
    """Sizes that bytes() refuses are refused in the same way."""
    assert new_bytes(0) == b""
    with pytest.raises(ValueError, match="negative"):
        new_bytes(-1)
    with pytest.raises((MemoryError, OverflowError)):
        new_bytes(sys.maxsize)
