"""Owns the copying of one file: several reads and writes in flight, on buffers registered with the kernel.

    python examples/copy_file.py SOURCE DESTINATION
    python examples/copy_file.py --direct --depth 16 --block-size 1M SOURCE DESTINATION

`aiouring.copy_file()` copies in one call; this shows how such a thing is made of fixed reads and writes, with what cp
does around it.

The copy grows under a temporary name beside the destination.  It takes the destination's name when it is
complete and on disk, so under that name there is the old file or all of the new one, and nothing between.

Exit codes: 0, or 1 if there is no copy, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import mmap
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Self

import aiouring


async def copy(
    ring: aiouring.AsyncRing, source: "End", target: "End", size: int, *, depth: int, block_size: int
) -> None:
    """Copy `size` bytes, `depth` blocks at a time."""
    offsets = iter(range(0, size, block_size))  # one for all workers: whoever is free takes the next block

    async def copy_blocks() -> None:
        async with await buffers.acquire() as buffer:
            for offset in offsets:
                length = min(block_size, size - offset)
                await read_block(ring, source, buffer, offset, length)
                await write_block(ring, target, buffer, offset, length)
                progress.add(length)

    with ring.register_buffers(count=depth, size=block_size) as buffers, Progress(size) as progress:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(depth):
                    workers.create_task(copy_blocks())
        except ExceptionGroup as errors:  # on a full disk everybody fails; one reason is enough
            raise errors.exceptions[0] from None
        async with await buffers.acquire() as buffer:
            await check_end(ring, source, buffer, size)


async def read_block(
    ring: aiouring.AsyncRing, source: "End", buffer: aiouring.FixedBuffer, offset: int, length: int
) -> None:
    """Fill the first `length` bytes of `buffer`, with as many reads as it takes."""
    done = 0
    while done < length:
        file, most = source.choose(offset + done, length - done)
        with explained(f"error reading '{source.path}'"):
            count = await ring.read_fixed(file, buffer, offset + done, start=done, length=most)
        if not count:
            raise CopyError(f"'{source.path}' shrank to {offset + done} bytes while it was copied")
        done += count


async def write_block(
    ring: aiouring.AsyncRing, target: "End", buffer: aiouring.FixedBuffer, offset: int, length: int
) -> None:
    """Write the first `length` bytes of `buffer`, with as many writes as it takes."""
    done = 0
    while done < length:
        file, most = target.choose(offset + done, length - done)
        with explained(f"error writing '{target.path}'"):
            count = await ring.write_fixed(file, buffer, offset + done, start=done, length=most)
        if not count:
            raise CopyError(f"error writing '{target.path}': nothing was written, and no reason was given")
        done += count


async def check_end(ring: aiouring.AsyncRing, source: "End", buffer: aiouring.FixedBuffer, size: int) -> None:
    """Refuse a source that goes on after `size` bytes; reading tells, fstat() would not for files in /proc."""
    with explained(f"error reading '{source.path}'"):
        more = await ring.read_fixed(source.file, buffer, size)
    if more:
        raise CopyError(f"'{source.path}' grew beyond {size} bytes while it was copied")


class CopyError(Exception):
    """Why there is no copy, in the words that cp uses; with the kernel's errno if it was the kernel that refused."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the kernel's refusal into a `CopyError` that says what was being done."""
    try:
        yield
    except OSError as error:
        raise CopyError(f"{what}: {error.strerror}", error.errno or 0) from None


class Progress:
    """One line on a terminal: how much, how fast.  Elsewhere nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.done = 0
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal and self.done:
            self.show()
            print(file=sys.stderr)

    def add(self, count: int) -> None:
        """`count` bytes more have been copied."""
        self.done += count
        if self.terminal and time.monotonic() - self.shown > 0.1:
            self.show()

    def show(self) -> None:
        """Draw the line."""
        self.shown = time.monotonic()
        part = self.done / self.size
        speed = self.done / max(self.shown - self.start, 1e-6) / 1e6
        line = f"[{'#' * int(30 * part):30}] {part:4.0%} {self.done:,} of {self.size:,} bytes, {speed:,.0f} MB/s"
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


# ---- the two files -------------------------------------------------------------------------------------

#: O_DIRECT needs offsets, lengths and memory aligned to the disk's sectors, and pages are.  They also keep
#: what goes through the page cache, the tail of the file, out of the pages that are written directly.
ALIGNMENT = mmap.PAGESIZE


@dataclasses.dataclass
class End:
    """One end of the copy."""

    path: str  # for messages: as the user wrote it
    file: IO[bytes]
    direct: IO[bytes] | None  # the same file, opened once more with O_DIRECT

    def choose(self, offset: int, length: int) -> tuple[IO[bytes], int]:
        """Through which file to move the `length` bytes at `offset`, and how many of them at most.

        The page cache takes what is not aligned: the tail of the file, and what a short read or write left.
        """
        aligned = length - length % ALIGNMENT
        if self.direct and aligned and offset % ALIGNMENT == 0:
            return self.direct, aligned
        return self.file, length


def open_end(path: str, file: IO[bytes], files: contextlib.ExitStack, *, direct: bool) -> End:
    """The end that `file` is, with O_DIRECT as well if asked for."""
    if not direct:
        return End(path, file, None)
    with explained(f"cannot open '{path}' with O_DIRECT"):
        mode = "r+b" if file.writable() else "rb"
        return End(path, file, files.enter_context(open(file.name, mode, buffering=0, opener=open_directly)))


def open_directly(path: str, flags: int) -> int:
    """An opener for `open()`."""
    return os.open(path, flags | os.O_DIRECT)


def open_source(path: str, files: contextlib.ExitStack) -> IO[bytes]:
    """The file to read."""
    with explained(f"cannot stat '{path}'"):
        mode = os.stat(path).st_mode  # before open(), which would wait for the writer of a FIFO
    if not stat.S_ISREG(mode):
        raise CopyError(f"'{path}' is not a regular file")
    with explained(f"cannot open '{path}' for reading"):
        return files.enter_context(open(path, "rb", buffering=0))


def find_destination(source: str, destination: str) -> str:
    """The path that the copy is to have: as with cp, a directory means a file in it."""
    path = destination
    if os.path.isdir(path):
        path = os.path.join(path, os.path.basename(source))
    if not os.path.exists(path):
        if not os.path.basename(path):
            raise CopyError(f"cannot create regular file '{path}': {os.strerror(errno.ENOTDIR)}")
        if os.path.islink(path):
            raise CopyError(f"not writing through dangling symlink '{path}'")
        return path
    if os.path.samefile(source, path):
        raise CopyError(f"'{source}' and '{path}' are the same file")
    if not os.path.isfile(path):
        raise CopyError(f"'{path}' exists and is not a regular file")
    if not os.access(path, os.W_OK):  # replacing it would need the directory's permission only
        raise CopyError(f"cannot create regular file '{path}': {os.strerror(errno.EACCES)}")
    return path


@contextlib.contextmanager
def replacement(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of the one at `path` at the end of the block, or vanishes with an error."""
    place = os.path.realpath(path)  # what a symbolic link points to is replaced, not the link
    with contextlib.ExitStack() as files:
        with explained(f"cannot create regular file '{path}'"):
            file = files.enter_context(
                tempfile.NamedTemporaryFile(dir=os.path.dirname(place), prefix=".copy-", buffering=0, delete=False)
            )
        try:
            yield file.file
            with explained(f"cannot create regular file '{path}'"):
                os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)
            raise


async def run(options: argparse.Namespace) -> None:
    """Open both files, copy, and see to it that the copy is whole before it gets its name."""
    with contextlib.ExitStack() as files:
        from_file = open_source(options.source, files)
        status = os.fstat(from_file.fileno())
        path = find_destination(options.source, options.destination)
        to_file = files.enter_context(replacement(path))
        source = open_end(options.source, from_file, files, direct=options.direct)
        target = open_end(path, to_file, files, direct=options.direct)
        depth = max(1, min(options.depth, -(-status.st_size // options.block_size)))
        async with aiouring.AsyncRing() as ring:
            await copy(ring, source, target, status.st_size, depth=depth, block_size=options.block_size)
            written = os.fstat(to_file.fileno()).st_size
            if written != status.st_size:
                raise CopyError(f"'{path}' would have {written} bytes, and '{source.path}' has {status.st_size}")
            os.fchmod(to_file.fileno(), status.st_mode & 0o777)  # set-user-ID is not for another owner's file
            with explained(f"error writing '{path}'"):
                await ring.fsync(to_file)


# ---- the command line ----------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """A number of bytes, with K, M or G behind it if need be."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return parse_count(text[:-1]) * unit if unit else parse_count(text)


def parse_count(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def main() -> int:
    """Copy as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description="Copy a file with io_uring's fixed buffers.")
    parser.add_argument("source", help="the file to copy")
    parser.add_argument("destination", help="what to call the copy, or the directory to put it in")
    parser.add_argument("--depth", type=parse_count, default=8, help="blocks in flight (%(default)s)")
    parser.add_argument("--block-size", type=parse_size, default="256K", help="bytes, or 64K, 1M (%(default)s)")
    parser.add_argument("--direct", action="store_true", help="go around the page cache (O_DIRECT)")
    options = parser.parse_args()
    if options.direct and options.block_size % ALIGNMENT:
        parser.error(f"--direct needs a --block-size that is a multiple of {ALIGNMENT}, not {options.block_size}")
    try:
        with asyncio.Runner() as runner:
            runner.run(run(options))
    except KeyboardInterrupt:
        return 130
    except aiouring.RingUnavailableError as error:
        print(f"{parser.prog}: io_uring is not available here: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:  # a number that aiouring refuses; its text says why
        parser.error(str(error))
    except (CopyError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        if options.direct and isinstance(error, CopyError) and error.number == errno.EINVAL:
            print(f"{parser.prog}: this file system may not support O_DIRECT: try without --direct", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
