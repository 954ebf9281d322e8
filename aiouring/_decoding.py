"""Owns `Decoding`: bytes that become text piece by piece, and where in the file each character comes from.

How this fits together

1. Each piece that was fed is a segment: where it begins in the file, the decoder's state before it, its bytes, and how
   many characters it gave.  `text` is what all segments gave, and `used` of its characters have been taken.  Segments
   that are used up are let go of when the next is fed.
2. A position in text is a number as `io.TextIOWrapper.tell()` makes it, and either can be given to the other: where to
   start reading bytes, the decoder's state there, how many bytes to feed it, whether the end of the file as well, and
   how many characters to skip then.  Where a character begins at a byte and the decoder has nothing in mind, which is
   nearly always, that is just the number of bytes from the beginning.
"""

import codecs
import io
from _multibytecodec import MultibyteIncrementalDecoder
from collections import deque
from typing import NamedTuple, Protocol

_OFFSET = (1 << 64) - 1
_FIELD = (1 << 32) - 1
_LARGEST_STATE = (1 << 31) - 1


class Decoder(Protocol):
    """What `codecs.IncrementalDecoder` and `io.IncrementalNewlineDecoder` have in common."""

    def decode(self, input: bytes, final: bool = False) -> str:  # noqa: A002, FBT001, FBT002 - the library's
        """The characters of the next bytes."""

    def getstate(self) -> tuple[bytes, int]:
        """What it has in mind: bytes that are no character yet, and a number."""

    def setstate(self, state: tuple[bytes, int]) -> None:
        """Have that in mind again."""

    def reset(self) -> None:
        """Have nothing in mind, as at the beginning of a file."""


class Cookie(NamedTuple):
    """A position in text, taken apart."""

    position: int  # in bytes
    state: int = 0
    feed: int = 0  # bytes
    skip: int = 0  # characters
    at_end: int = 0

    @classmethod
    def unpack(cls, number: int) -> "Cookie":
        """From one number."""
        return cls(
            number & _OFFSET, number >> 64 & _FIELD, number >> 96 & _FIELD, number >> 128 & _FIELD, number >> 160
        )

    def pack(self) -> int:
        """As one number.

        Raises `OverflowError` for the few encodings whose decoders have more in mind than fits: iso2022_jp, say.
        """
        if not 0 <= self.state <= _LARGEST_STATE:
            raise OverflowError(f"the decoder's state {self.state:#x} does not fit a position: tell() at a line's end")
        return self.position | self.state << 64 | self.feed << 96 | self.skip << 128 | self.at_end << 160


class Segment(NamedTuple):
    """A piece that was fed: its place in the file; the decoder's state before; the bytes; how many characters."""

    start: int  # of `data`
    before: tuple[bytes, int]
    data: bytes
    length: int


class Decoding:
    """The text of a file, from the place where `restart()` began.

    Args:
        encoding: as `codecs` knows it.
        errors: what to do about bytes that are no character.
        newline: as for the built-in `open()`: with None each kind of line's end becomes a newline character.
    """

    def __init__(self, encoding: str, errors: str, newline: str | None) -> None:
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        # Theirs is never 0 where it matters (iso2022_jp), and CPython's decoder crashes when it is made so.
        self._multibyte = isinstance(decoder, MultibyteIncrementalDecoder)
        self._newlines: io.IncrementalNewlineDecoder | None = None
        self._decoder: Decoder = decoder
        if not newline:
            self._newlines = io.IncrementalNewlineDecoder(decoder, translate=newline is None)
            self._decoder = self._newlines
        self._segments: deque[Segment] = deque()
        self._fresh = True  # nothing was fed since the beginning: the decoder's state says nothing
        self.text = ""
        self.used = 0

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The kinds of line's end seen so far, where each is taken for one."""
        return self._newlines.newlines if self._newlines is not None else None

    def restart(self, state: int = 0, *, beginning: bool = True) -> None:
        """Go on elsewhere in the file, in a given state."""
        self._segments.clear()
        self.text = ""
        self.used = 0
        self._fresh = beginning
        if beginning or (not state and self._multibyte):
            self._decoder.reset()
        else:
            self._decoder.setstate((b"", state))

    def feed(self, start: int, data: bytes, *, final: bool) -> bool:
        """Decode bytes that stand at `start` in the file, `final` at its end; returns whether there was any text.

        Raises `UnicodeDecodeError`; nothing has changed then.
        """
        before = self._decoder.getstate()
        try:
            text = self._decoder.decode(data, final)
        except UnicodeError:
            self._decoder.setstate(before)
            raise
        dropped = 0
        while self._segments and self.used - dropped >= self._segments[0].length:
            dropped += self._segments.popleft().length
        self.text = self.text[dropped:] + text
        self.used -= dropped
        self._segments.append(Segment(start, before, data, len(text)))
        self._fresh = False
        return bool(text)

    def where(self, end: int) -> Cookie:
        """The position of the first character not used; `end` is where the next bytes to be fed stand."""
        skip = self.used
        for segment in self._segments:
            if skip < segment.length:
                return self._within(segment, skip)
            skip -= segment.length
        if self._fresh:
            return Cookie(end)
        pending, state = self._decoder.getstate()
        return Cookie(end - len(pending), state)

    def _within(self, segment: Segment, skip: int) -> Cookie:
        """The position of character `skip` of a segment: by feeding it as few bytes as give so many."""
        now = self._decoder.getstate()
        try:
            return self._replay(segment, skip)
        finally:
            self._decoder.setstate(now)

    def _replay(self, segment: Segment, skip: int) -> Cookie:
        decoder = self._decoder
        pending, state = segment.before
        data = pending + segment.data
        decoder.setstate((b"", state))
        start = segment.start - len(pending)
        safe = Cookie(start, state)
        if not skip:
            return safe
        done = count = seen = 0  # bytes and characters; `seen` of the characters came before `safe`
        step = 1 << len(data).bit_length()
        while step:
            # As many bytes as can be fed without getting to the character, by halves.
            before = decoder.getstate()
            piece = data[done : done + step]
            given = len(decoder.decode(piece)) if len(piece) == step else skip
            if count + given >= skip:
                decoder.setstate(before)
            else:
                done += step
                count += given
                safe, seen = _safe(decoder, start + done, count, safe, seen)
            step >>= 1
        if done < len(data):  # the next byte brings it
            count += len(decoder.decode(data[done : done + 1]))
            done += 1
            if count == skip:
                safe, seen = _safe(decoder, start + done, count, safe, seen)
        feed = start + done - safe.position
        if count < skip:  # it comes with the end only
            return safe._replace(feed=feed, skip=skip - seen, at_end=1)
        return safe if count == skip == seen else safe._replace(feed=feed, skip=skip - seen)


def _safe(decoder: Decoder, position: int, count: int, safe: Cookie, seen: int) -> tuple[Cookie, int]:
    """A position that a decoder can be started at, and the characters before it: this one, or `safe`."""
    pending, state = decoder.getstate()
    return (safe, seen) if pending else (Cookie(position, state), count)
