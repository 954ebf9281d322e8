"""Owns `ProvidedBundle`: several received buffers, taken as one chunk."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Self

from aiouring._provided_buffer import ProvidedBuffer


class ProvidedBundle:
    """Consecutive bytes of a stream, in one or more buffers; `bytes()` joins them, iteration yields the buffers.

    `len()` is the number of bytes.  Give all buffers back with `release()` or by leaving `with`, or each by itself:
    they are the `ProvidedBuffer`s that a stream without bundles would have yielded one by one.
    """

    __slots__ = ("buffers",)

    def __init__(self, buffers: tuple[ProvidedBuffer, ...]) -> None:
        self.buffers = buffers

    def __len__(self) -> int:
        return sum(buffer.length for buffer in self.buffers)

    def __iter__(self) -> Iterator[ProvidedBuffer]:
        return iter(self.buffers)

    def __bytes__(self) -> bytes:
        return b"".join(self.views)

    def __repr__(self) -> str:
        return f"<ProvidedBundle of {len(self.buffers)} buffers, {len(self)} bytes>"

    @property
    def views(self) -> list[memoryview]:
        """The bytes of each buffer, in order; valid until it is released.  Raises `ValueError` after that.

        `os.writev()`, `socket.sendmsg()` and `Connection.send()` take such a list.
        """
        return [buffer.view for buffer in self.buffers]

    def release(self) -> None:
        """Give back those buffers that were not given back, or handed over, by themselves.

        Raises:
            ValueError: there were none.
            ResourceBusyError, BufferError, WrongContextError: as `ProvidedBuffer.release()`, of the first buffer that
                cannot be released; all others are.
        """
        left = [buffer for buffer in self.buffers if not buffer.ended]
        _do_all(buffer.release for buffer in left or self.buffers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: Any) -> None:
        _do_all(partial(buffer.__exit__, *why) for buffer in self.buffers)


def _do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take each step, whichever of them fail; raises what the first of those raised."""
    failure: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
