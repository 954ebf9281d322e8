"""Owns the copying of a directory with everything in it: several files at a time, and a bar that shows how far it is.

    python examples/copy_tree.py SOURCE DESTINATION
    python examples/copy_tree.py --direct --files 8 SOURCE DESTINATION

Directories, regular files and symbolic links are copied, with their permissions; anything else is left out, and said
so.  Each file is copied by `aiouring.copy_file()`, which has several blocks in flight.

Exit codes: 0, or 1 if something was not copied, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import os
import stat
import sys
import time
from collections.abc import Iterator

import aiouring


class Bar:
    """One line on a terminal: how much, how fast.  Elsewhere nothing."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.start = self.shown = time.monotonic()

    def add(self, count: int) -> None:
        """`count` bytes more have been copied."""
        self.done += count
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self.shown > 0.1 or self.done == self.total):
            self.shown = now
            part = self.done / max(self.total, 1)
            speed = self.done / max(now - self.start, 1e-6) / 1e6
            bar = f"[{'#' * int(30 * part):30}] {part:4.0%}"
            print(f"\r{bar} of {self.total:,} bytes, {speed:,.0f} MB/s\033[K", end="", file=sys.stderr, flush=True)


class Tree:
    """One copy on its way."""

    def __init__(self, source: str, destination: str, *, direct: bool, files: int) -> None:
        self.source = source
        self.destination = destination
        self.direct = direct
        self.bar = Bar()
        self.turns = asyncio.Semaphore(files)
        self.failures = 0

    async def copy(self) -> None:
        """Find everything, make the directories, copy the files, and set the directories' permissions in the end."""
        directories, others = await asyncio.to_thread(self.find)  # io_uring cannot list a directory
        for path, _ in directories:
            await aiouring.makedirs(self.target(path), exist_ok=True)
        async with asyncio.TaskGroup() as group:
            for path, status in others:
                await self.turns.acquire()
                group.create_task(self.copy_one(path, status))
        for path, status in reversed(directories):  # one that nobody may write to had to be filled first
            os.chmod(self.target(path), stat.S_IMODE(status.st_mode))

    def find(self) -> tuple[list[tuple[str, os.stat_result]], list[tuple[str, os.stat_result]]]:
        """The directories, those above before those below, and everything else; counts the bytes."""
        directories, others = [], []
        for path, status in walk(self.source):
            if stat.S_ISDIR(status.st_mode):
                directories.append((path, status))
            else:
                others.append((path, status))
                self.bar.total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return directories, others

    def target(self, path: str) -> str:
        """Where the copy of `path` is."""
        return os.path.normpath(os.path.join(self.destination, os.path.relpath(path, self.source)))

    async def copy_one(self, path: str, status: os.stat_result) -> None:
        """Copy a file or a link; what goes wrong is said, and the rest goes on."""
        seen = 0

        def progress(done: int, _: int) -> None:
            nonlocal seen
            self.bar.add(done - seen)
            seen = done

        try:
            if stat.S_ISREG(status.st_mode):
                await aiouring.copy_file(path, self.target(path), progress=progress, direct=self.direct)
                os.chmod(self.target(path), stat.S_IMODE(status.st_mode))
            elif stat.S_ISLNK(status.st_mode):
                await aiouring.symlink(os.readlink(path), self.target(path))
            else:
                raise OSError(f"left out: '{path}' is neither a file, a directory nor a link")
        except OSError as error:
            self.failures += 1
            print(f"\r{error}\033[K" if sys.stderr.isatty() else error, file=sys.stderr)
        finally:
            self.turns.release()


def walk(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """A directory, and everything in it, with what each is."""
    yield path, os.stat(path)
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
            else:
                yield entry.path, entry.stat(follow_symlinks=False)


def main() -> int:
    """Copy as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description="Copy a directory with everything in it.")
    parser.add_argument("source", help="the directory to copy")
    parser.add_argument("destination", help="what to call the copy")
    parser.add_argument("--direct", action="store_true", help="go around the page cache (O_DIRECT)")
    parser.add_argument("--files", type=int, default=4, help="files at a time (%(default)s)")
    options = parser.parse_args()
    if not os.path.isdir(options.source):
        parser.error(f"'{options.source}' is not a directory")
    if options.files < 1:
        parser.error(f"--files is a number from 1, not {options.files}")
    inside = os.path.commonpath(map(os.path.realpath, (options.source, options.destination)))
    if inside == os.path.realpath(options.source):
        parser.error(f"'{options.destination}' is in '{options.source}': the copy would be copied, too")
    tree = Tree(options.source, options.destination, direct=options.direct, files=options.files)
    try:
        asyncio.run(tree.copy())
    except KeyboardInterrupt:
        return 130
    except aiouring.RingUnavailableError as error:
        print(f"{parser.prog}: io_uring is not available here: {error.strerror}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    return 1 if tree.failures else 0


if __name__ == "__main__":
    sys.exit(main())
