"""Owns `RetiredBuffers`: buffers that left their table, until the kernel has let go of them.

Ownership.  A buffer that is replaced, removed or unregistered goes on being used by the requests in flight that
name it; the kernel lets go of it when the last of them ends.  It says so with a *tag*: a completion whose
user_data was given at registration, posted behind the last request's own.  Until then this object holds the
buffer's memory, and `Registry.retiring` holds this object, so it matters to nobody whether the table or the
caller's own reference is still there.

A tag is no request.  It is not in the table of requests in flight, cannot be cancelled, and is looked for only
when a completion belongs to no request.  Its number comes from the same count as theirs.
"""

from collections.abc import Iterable, Sequence

from aiouring._line import Attendant, Line

#: What left a table of a `Ring` that was closed before the kernel had let go of it; kept for the life of the process.
KEPT: "list[list[RetiredBuffers]]" = []


class RetiredBuffers:
    """Buffers that were taken out of their table together; `await wait()` returns when the kernel is done with them.

    Made by `RegisteredBuffers.update()`, `remove()` and `unregister()`.  Since Linux 5.13.  See
    io_uring_register_buffers_update_tag(3).
    """

    def __init__(
        self, attendant: Attendant, indexes: Sequence[int], tags: Sequence[int], memories: Iterable[object]
    ) -> None:
        self.indexes = indexes  # the slots they had
        self._outstanding = {tag: memory for tag, memory in zip(tags, memories, strict=True) if tag}
        self._tagged = all(tags)
        self._error: Exception | None = None
        self._line: Line[None] = Line(attendant.new_future, lambda _: None)

    def __repr__(self) -> str:
        state = {True: "done", False: f"{len(self._outstanding)} in use", None: "not tagged"}[self.done]
        return f"<RetiredBuffers of {len(self.indexes)} slots, {state}>"

    @property
    def done(self) -> bool | None:
        """Whether the kernel has let go of all of them; None where one had no tag and nobody will say.

        A clone has no tags, and on a `Ring` only those that its caller gave.
        """
        if self._outstanding:
            return False
        return True if self._tagged else None

    async def wait(self) -> None:
        """Wait until the kernel has let go of all of them, and the ring of their memory.

        Raises:
            ValueError: one had no tag.
            RingClosedError: the ring was closed before the kernel said so.
        """
        if not self._tagged:
            raise ValueError(
                "a buffer without a tag (a clone's, or on a Ring one that was given none) leaves silently: "
                "await the requests that use it instead"
            )
        if self._outstanding:
            if self._error is not None:
                raise self._error
            await self._line.wait()

    @property
    def outstanding(self) -> frozenset[int]:
        """The tags that have not come yet."""
        return frozenset(self._outstanding)

    def arrived(self, tag: int) -> None:
        """The kernel has let go of the buffer with this tag.  Taking this step twice does no harm."""
        self._outstanding.pop(tag, None)
        if not self._outstanding:
            while self._line.hand(None):
                pass

    def finish(self) -> None:
        """The ring was closed with nothing in flight: the kernel has let go of everything."""
        self._outstanding.clear()
        self.arrived(0)

    def dismiss(self, error: Exception) -> None:
        """No completion will come any more: who waits gets `error`; the memory is kept."""
        self._error = error
        self._line.dismiss(error)
