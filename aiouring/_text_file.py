"""Owns `TextFile`: an open file of text, as the built-in `open(path)` returns one, awaited.

What is read goes through a `Decoding`, from the blocks that the `BinaryFile` below reads ahead; what is written is
encoded at once and goes behind there.  Operations are done one after the other, in the order in which they were begun.
A read takes characters when it has all that it wanted: cancelled, it has taken none.
"""

import codecs
import io
import locale
import os
from threading import get_ident
from typing import Any

from aiouring._binary_file import BinaryFile
from aiouring._decoding import Cookie, Decoding
from aiouring._file_object import FileObject

#: Bytes that are decoded at a time.  `tell()` in the middle of them decodes them again.
CHUNK = 32 * 1024

_NEWLINES = (None, "", "\n", "\r", "\r\n")


class TextFile(FileObject[str]):
    """A file of text, opened by `aiouring.open()`; use it with `async with`, or `async for` its lines.

    The methods are those of the built-in text files, awaited where aiofiles awaits them.  `tell()` and `seek()` use the
    same numbers as the built-in's; unlike there, `tell()` works between lines, and a write after a read goes to where
    the reading stopped.  Errors of writing come as in `BinaryFile`, which is below, as `buffer`.
    """

    def __init__(
        self,
        buffer: BinaryFile,
        mode: str,
        *,
        encoding: str,
        errors: str,
        newline: str | None,
        line_buffering: bool = False,
    ) -> None:
        self._buffer = buffer
        super().__init__(mode, buffer._raw.check_here)
        self._encoding = encoding
        self._errors = errors
        self._line_buffering = line_buffering
        self._translated = newline if newline in ("\r", "\r\n") else None
        self._ends = {"": None, None: "\n"}.get(newline, newline)  # None: any
        self._decoding = Decoding(encoding, errors, newline)
        self._encoder = codecs.getincrementalencoder(encoding)(errors)
        if buffer._position:
            self._encoder.setstate(0)  # what marks the beginning is there already

    # ---- about it ------------------------------------------------------------------------------

    @property
    def buffer(self) -> BinaryFile:
        """The file of bytes below."""
        return self._buffer

    @property
    def name(self) -> Any:
        """The path it was opened with, or the descriptor."""
        return self._buffer.name

    @property
    def closed(self) -> bool:
        """Whether it is closed, or being closed."""
        return self._buffer.closed

    def _check(self, what: str = "") -> None:
        self._buffer._check(what)

    @property
    def encoding(self) -> str:
        """How characters are bytes."""
        return self._encoding

    @property
    def errors(self) -> str:
        """What is done about characters that cannot be encoded, or bytes that cannot be decoded."""
        return self._errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        r"""The kinds of line's end read so far, where it was opened with newline=None or ""; None before any."""
        return self._decoding.newlines

    @property
    def line_buffering(self) -> bool:
        """Whether each write that ends a line is flushed."""
        return self._line_buffering

    def fileno(self) -> int:
        """The descriptor.  Raises `ValueError` when the file is closed."""
        return self._buffer.fileno()

    def readable(self) -> bool:
        """Whether the mode lets it be read."""
        return self._buffer.readable()

    async def writable(self) -> bool:
        """Whether the mode lets it be written."""
        return await self._buffer.writable()

    async def seekable(self) -> bool:
        """Whether it has a position that can be changed."""
        return await self._buffer.seekable()

    # ---- reading -------------------------------------------------------------------------------

    async def read(self, size: int | None = -1) -> str:
        """Read `size` characters, fewer only at the end of the file; everything up to there if negative or None."""
        async with self._order:
            self._check("read")
            decoding = self._decoding
            if size is None or size < 0:
                start = await self._start()
                self._feed(start, await self._buffer.read(), final=True)
                return self._take(len(decoding.text))
            while len(decoding.text) - decoding.used < size and await self._more():
                pass
            return self._take(decoding.used + size)

    async def readline(self, size: int | None = -1) -> str:
        """Read a line with its end; at most `size` characters where that is not negative."""
        decoding = self._decoding
        if not self._order.users and self._ends == "\n" and size == -1 and get_ident() == self._thread:
            end = decoding.text.find("\n", decoding.used) + 1
            if end:
                return self._take(end)
        async with self._order:
            self._check("read")
            most = -1 if size is None else size
            searched = 0  # characters behind those that are used
            while not (end := self._find(decoding.used + searched)):
                searched = max(len(decoding.text) - decoding.used - 1, 0)  # the half of a line's end, maybe
                if 0 <= most <= len(decoding.text) - decoding.used or not await self._more():
                    end = len(decoding.text)
                    break
            return self._take(end if most < 0 else min(end, decoding.used + most))

    def _take(self, end: int) -> str:
        decoding = self._decoding
        taken = decoding.text[decoding.used : end]
        decoding.used += len(taken)
        return taken

    def _find(self, start: int) -> int:
        """Where the line ends, with its end, among what is decoded; 0 if not there."""
        text, ends = self._decoding.text, self._ends
        if ends is not None:
            found = text.find(ends, start)
            return found + len(ends) if found >= 0 else 0
        newline, end = text.find("\n", start), text.find("\r", start)
        if end < 0 or 0 <= newline < end:
            return newline + 1
        return end + (2 if newline == end + 1 else 1)

    async def _start(self) -> int:
        """Where the next bytes to be decoded stand; of no matter where there are no positions."""
        return await self._buffer.tell() if self._buffer._raw.seekable else 0

    async def _more(self) -> bool:
        """Decode some more; False at the end of the file."""
        start = await self._start()
        data = await self._buffer.read1(CHUNK)
        return self._feed(start, data, final=not data) or bool(data)

    def _feed(self, start: int, data: bytes, *, final: bool) -> bool:
        try:
            return self._decoding.feed(start, data, final=final)
        except UnicodeError:
            self._buffer._position = start  # nothing has been read, then
            raise

    # ---- writing -------------------------------------------------------------------------------

    async def write(self, text: str) -> int:
        """Write all of `text`; returns its length in characters.

        Raises:
            UnicodeEncodeError: of the text, nothing is written then.
            OSError: as `BinaryFile.write()`.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        async with self._order:
            self._check("write")
            if self._decoding.text:
                await self._go_where_reading_stopped()
            data = text if self._translated is None else text.replace("\n", self._translated)
            before = self._encoder.getstate()
            try:
                await self._buffer.write(self._encoder.encode(data))
            except BaseException:
                self._encoder.setstate(before)
                raise
        if self._line_buffering and ("\n" in text or "\r" in text):
            await self._buffer.flush()
        return len(text)

    async def flush(self) -> None:
        """Wait until the file has everything that was written; see also `sync()`."""
        await self._buffer.flush()

    async def sync(self, *, data_only: bool = False) -> None:
        """Flush, and wait until the device has it, too; see `BinaryFile.sync()`."""
        await self._buffer.sync(data_only=data_only)

    async def _go_where_reading_stopped(self) -> int:
        """Make the position of the bytes the one of the text."""
        cookie = self._decoding.where(await self._start())
        self._decoding.restart()
        if self._buffer._raw.seekable:
            await self._buffer.seek(cookie.position + cookie.feed)
        return cookie.position + cookie.feed

    # ---- the position --------------------------------------------------------------------------

    async def tell(self) -> int:
        """The position: a number for `seek()`, and for the built-in's, and in simple cases a count of bytes."""
        async with self._order:
            return self._decoding.where(await self._buffer.tell()).pack()

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to where `tell()` said `offset`; or, with offset 0, to the end (os.SEEK_END).  Returns the position."""
        async with self._order:
            self._check()
            if not await self._buffer.seekable():
                raise io.UnsupportedOperation("underlying stream is not seekable")
            if whence == os.SEEK_CUR:
                if offset:
                    raise io.UnsupportedOperation("can't do nonzero cur-relative seeks")
                offset = self._decoding.where(await self._buffer.tell()).pack()
            elif whence == os.SEEK_END:
                if offset:
                    raise io.UnsupportedOperation("can't do nonzero end-relative seeks")
                offset = await self._buffer.seek(0, os.SEEK_END)
            elif whence != os.SEEK_SET:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
            if offset < 0:
                raise ValueError(f"negative seek position {offset}")
            await self._restore(Cookie.unpack(offset))
            return offset

    async def _restore(self, cookie: Cookie) -> None:
        decoding = self._decoding
        await self._buffer.seek(cookie.position)
        data = await self._buffer.read(cookie.feed) if cookie.skip else b""
        decoding.restart(cookie.state, beginning=not (cookie.position or cookie.state))
        if cookie.skip:
            decoding.feed(cookie.position, data, final=bool(cookie.at_end))
            if len(decoding.text) < cookie.skip:
                raise OSError("can't restore logical file position")
            decoding.used = cookie.skip
        if cookie.position or cookie.state:
            self._encoder.setstate(0)
        else:
            self._encoder.reset()

    async def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long, or end it at the position; returns its new length in bytes."""
        async with self._order:
            self._check("write")
            if size is None:
                size = await self._go_where_reading_stopped()
            return await self._buffer.truncate(size)

    # ---- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is unwritten, then close; idempotent.  See `BinaryFile.close()`."""
        self._buffer._raw.check_here()
        self._decoding.restart()
        await self._buffer.close()


def encoding_of(encoding: str | None) -> str:
    """The encoding to use: None, and "locale", are the locale's, or UTF-8 in Python's UTF-8 mode."""
    encoding = io.text_encoding(encoding, 4)
    return locale.getencoding() if encoding == "locale" else encoding


def check_text(encoding: str, errors: str, newline: str | None) -> None:
    """Raise what the built-in `open()` raises for what is wrong with these."""
    if newline is not None and not isinstance(newline, str):
        raise TypeError(f"newline must be str or None, not {type(newline).__name__}")
    if newline not in _NEWLINES:
        raise ValueError(f"illegal newline value: {newline!r}")
    if not codecs.lookup(encoding)._is_text_encoding:  # what open() asks, too
        raise LookupError(f"{encoding!r} is not a text encoding; use codecs.open() to handle arbitrary codecs")
    codecs.lookup_error(errors)
