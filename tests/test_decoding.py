"""Tests of decoding piece by piece: the characters and the positions of io.TextIOWrapper, wherever bytes are cut."""

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiouring._decoding import Cookie, Decoding

pytestmark = pytest.mark.needs_no_ring

ENCODINGS = [
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1", "cp1252", "shift_jis", "gb18030",
    "iso2022_jp", "hz",
]  # fmt: skip
NEWLINES = [None, "", "\n", "\r", "\r\n"]

texts = st.text(st.sampled_from("ab\r\n\r\néß日本~😀"), max_size=40)
newlines = st.sampled_from(NEWLINES)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in parts."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if b > a]


@settings(max_examples=600, deadline=None)
@given(texts, st.sampled_from(ENCODINGS), newlines, st.lists(st.integers(0, 500), max_size=6), st.data())
def test_any_cuts(text: str, encoding: str, newline: str | None, cuts: list[int], choose: st.DataObject) -> None:
    """Bytes cut anywhere give the text of the whole, and each position leads back to its character."""
    data = text.encode(encoding, "ignore")
    whole = io.TextIOWrapper(io.BytesIO(data), encoding, newline=newline).read()
    decoding = Decoding(encoding, "strict", newline)
    start = 0
    position = 0  # of `decoding.used`, in characters
    for piece in [*pieces(data, cuts), b""]:
        before = len(decoding.text)
        dropped = decoding.used
        decoding.feed(start, piece, final=not piece)
        dropped -= decoding.used
        assert len(decoding.text) >= before - dropped
        start += len(piece)
        step = choose.draw(st.integers(0, len(decoding.text) - decoding.used))
        decoding.used += step
        position += step
        where = decoding.where(start)
        assert Cookie.unpack(where.pack()) == where
        again = io.TextIOWrapper(io.BytesIO(data), encoding, newline=newline)
        again.seek(where.pack())
        assert again.read() == whole[position:], (where, position)
    assert decoding.text[decoding.used :] == whole[position:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_a_bad_byte_changes_nothing(encoding: str) -> None:
    """After UnicodeDecodeError the decoding is as it was before."""
    decoding = Decoding(encoding, "strict", None)
    good = "né\r".encode(encoding)
    decoding.feed(0, good, final=False)
    decoding.used = 1
    where = decoding.where(len(good))
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            decoding.feed(len(good), b"\xff\xff\xff" if encoding != "utf-16" else b"\x00\xdc\x00\xdc", final=False)
        assert decoding.where(len(good)) == where
    decoding.feed(
        len(good), "\nx".encode(encoding.removesuffix("-sig"))[-4 if encoding == "utf-16" else 0 :], final=True
    )
    assert decoding.text[decoding.used :] == "é\nx"


def test_segments_are_let_go() -> None:
    """However long a text is, only what is not used up is kept."""
    decoding = Decoding("utf-8", "strict", "\n")
    for number in range(1000):
        decoding.feed(number * 10, b"123456789\n", final=False)
        decoding.used = len(decoding.text) - 1
    assert len(decoding.text) < 25
    assert len(decoding._segments) < 4
    assert decoding.where(10_000) == Cookie(9999)


def test_newlines_seen() -> None:
    """The kinds of line's end seen so far, where they are looked for."""
    for newline, expected in ((None, ("\r", "\n", "\r\n")), ("", ("\r", "\n", "\r\n")), ("\n", None)):
        decoding = Decoding("ascii", "strict", newline)
        assert decoding.newlines is None
        decoding.feed(0, b"a\rb\nc\r\nd", final=True)
        assert decoding.newlines == expected
        decoding.restart()
        assert decoding.text == ""
        assert decoding.where(5) == Cookie(5)
