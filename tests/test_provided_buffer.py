"""Tests of ProvidedBuffer where no group is involved; see test_buffer_ring and test_incremental for the others."""

import pytest

from aiouring._provided_buffer import end_of_stream, private_copy

pytestmark = pytest.mark.needs_no_ring


def test_the_end_of_a_stream() -> None:
    """It is empty and falsy, has no number, and may be released or forgotten."""
    chunk = end_of_stream()
    assert not chunk
    assert (len(chunk), chunk.buffer_id, chunk.offset, bytes(chunk.view)) == (0, None, 0, b"")
    chunk.release()
    with pytest.raises(ValueError, match="released already"):
        chunk.release()
    del chunk
    end_of_stream()


def test_a_private_copy() -> None:
    """It has the face of any other chunk, and belongs to no group."""
    with private_copy(b"kept") as chunk:
        assert chunk
        assert (len(chunk), chunk.buffer_id, chunk.offset, bytes(chunk.view)) == (4, None, 0, b"kept")
