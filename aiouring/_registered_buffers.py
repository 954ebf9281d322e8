"""Owns `RegisteredBuffers`: the kernel's table of registered ("fixed") buffers.

The kernel pins the pages once, at registration, and a request names a buffer by its index.  That saves
pinning the pages for each request: a real gain with O_DIRECT files, none with sockets or the page cache
(KERNEL.md E18).

Ownership.  A slot is empty, or it has a buffer; a buffer is free or lent, to one lease at a time.  Replacing,
removing and unregistering never wait: requests in flight complete into the memory they were given, which lives
until they have (the request holds its lease, the lease its memory) and until the buffer's tag has come
(`RetiredBuffers`).  A lease of a buffer that has left the table stays good as plain memory, and no request can
name it any more: the slot's key has changed, or the table is closed.

A clone is a table of its own over the same memory: the memory lives as long as either table, or a lease of
either, needs it.  Each of the two lends a buffer to one lease at a time, and knows nothing of the other's
leases: who lends the same bytes from both has to agree with himself.
"""

import errno
from collections.abc import Iterable, Sequence
from typing import Any, Self

from aiouring._abi import Features
from aiouring._errors import (
    PartlyUpdatedError,
    RingClosedError,
    UnsupportedKernelError,
    failure,
    kernel_error,
)
from aiouring._fixed_buffer import Slots
from aiouring._registered_memory import Piece, let_go, piece_of, pinned_bytes, registration_error
from aiouring._retired_buffers import RetiredBuffers
from aiouring._ring import CoreRing
from aiouring._uring import ffi, lib


class RegisteredBuffers(Slots):
    """The buffers that a ring has registered with the kernel; made by `AsyncRing.register_buffers()`.

    Leaving the `with` block unregisters them.  `len()` counts slots, `table[index]` lends one buffer.
    Since Linux 5.1.  See io_uring_register_buffers(3).
    """

    def __repr__(self) -> str:
        state = f"{len(self._free)} free" if self.registered else "unregistered"
        return f"<RegisteredBuffers {len(self)} x {self.size} bytes, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    # ---- registering, replacing, cloning -------------------------------------------------------

    def register(self, pieces: Sequence[Piece] | None, tags: Sequence[int] | None) -> None:
        """Hand the kernel the whole table, or with None a sparse one; `Registry` does."""
        count = len(self)
        numbers = self._number([pieces is not None] * count, tags)
        sizes = [piece.size for piece in pieces or ()]
        code = lib.au_buffers_register(
            self.raw,
            ffi.new("void *[]", [piece.memory for piece in pieces or ()]),
            ffi.new("uint64_t[]", sizes),
            ffi.new("uint64_t[]", numbers) if any(numbers) else ffi.NULL,
            lib.AU_RSRC_REGISTER_SPARSE if pieces is None else 0,
        )
        if code == -errno.EINVAL and pieces is None:
            raise UnsupportedKernelError("a sparse table of registered buffers needs Linux 5.19")
        if code < 0:
            what = f"{count} buffers of {sizes[0]} bytes" if len(set(sizes)) == 1 else f"{count} buffers"
            error = registration_error(code, pinned_bytes(pieces or ()), f"registering {what}", pieces or ())
            let_go(pieces or ())
            raise error
        for index in range(count - 1, -1, -1):
            self._adopt(index, pieces[index] if pieces else None, numbers[index])

    def _number(self, filled: Sequence[bool], tags: Sequence[int] | None) -> list[int]:
        """The tags for slots: given by the caller of a `Ring`, or drawn from the count of an `AsyncRing`'s requests."""
        tagging = Features.RSRC_TAGS in self._ring.features
        if tags is None:
            return [self._attendant.draw_number() if full and tagging else 0 for full in filled]
        if self._attendant.draw_number():
            raise ValueError("an AsyncRing draws its tags itself, from the numbers of its requests")
        if not tagging:
            raise UnsupportedKernelError("tags of registered buffers need Linux 5.13")
        if len(tags) != len(filled):
            raise ValueError(f"{len(tags)} tags are given for {len(filled)} buffers")
        given = [tag for tag in tags if tag]
        taken = set(self._tags).union(self._retiring)
        for tag, full in zip(tags, filled, strict=True):
            if not 0 <= tag < 2**63:
                raise ValueError(f"tag={tag} is outside 0 to {2**63 - 1}")
            if tag and (not full or tag in taken or given.count(tag) > 1):
                raise ValueError(f"tag={tag} is for an empty slot, or used already: the two could not be told apart")
        return list(tags)

    def update(self, index: int, buffers: Iterable[Any], *, tags: Sequence[int] | None = None) -> list[RetiredBuffers]:
        """Replace the buffers from slot `index` on by the caller's memory; None empties a slot.

        Requests in flight go on with the old buffers, and leases of those stay good as plain memory.  What is
        queued is submitted first.

        Args:
            index: the first slot.
            buffers: for each slot a writable buffer as for `AsyncRing.register_buffers()`, or None.
            tags: only on a `Ring`: for each slot the user_data that announces its end, 0 for none.

        Returns:
            For each slot that had a buffer, in order, a `RetiredBuffers` to be awaited.

        Raises:
            ValueError: slots outside the table, empty or too large buffers.
            BufferError, TypeError: memory that cannot be written to.
            PartlyUpdatedError: the kernel refused one after replacing others; its `changed` says which.
            OSError: the kernel refused the first.

        Since Linux 5.13.  See io_uring_register_buffers_update_tag(3).
        """
        self._check()
        if Features.RSRC_TAGS not in self._ring.features:
            raise UnsupportedKernelError("replacing registered buffers in place needs Linux 5.13")
        pieces = [None if one is None else piece_of(one, index + at) for at, one in enumerate(buffers)]
        if not pieces or not 0 <= index <= len(self) - len(pieces):
            raise ValueError(f"index={index} and {len(pieces)} buffer(s) are outside the table's {len(self)} slots")
        numbers = self._number([piece is not None for piece in pieces], tags)
        self._attendant.submit_queued()
        done, retired = 0, []
        while done < len(pieces):
            rest = pieces[done:]
            code = lib.au_buffers_update(
                self.raw,
                index + done,
                len(rest),
                ffi.new("void *[]", [ffi.NULL if piece is None else piece.memory for piece in rest]),
                ffi.new("uint64_t[]", [0 if piece is None else piece.size for piece in rest]),
                ffi.new("uint64_t[]", numbers[done:]),
            )
            if code <= 0:
                break
            for at in range(done, done + code):
                retired += self._retire(index + at)
                self._adopt(index + at, pieces[at], numbers[at])
            done += code
        self._serve()
        if done < len(pieces):
            self._refused(code, index, done, pieces, retired)
        return retired

    def _refused(
        self, code: int, index: int, done: int, pieces: list[Piece | None], retired: list[RetiredBuffers]
    ) -> None:
        """The kernel stopped at `pieces[done]`."""
        size = pinned_bytes(piece for piece in pieces[done:] if piece is not None)
        doing = f"putting a buffer into slot {index + done}"
        error = registration_error(code, size, doing, pieces[done : done + 1], index + done)
        let_go(pieces[done:])
        if not done or not isinstance(error, OSError):
            raise error
        partly = PartlyUpdatedError(
            error.errno, f"{error.strerror} (slots {index} to {index + done - 1} were replaced)"
        )
        partly.changed = range(index, index + done)
        partly.retired = retired
        raise partly

    def remove(self, index: int) -> RetiredBuffers:
        """Empty one slot; as `update(index, [None])`, which it must not be already.

        Since Linux 5.13.
        """
        self._check()
        if not 0 <= index < len(self) or self._pieces[index] is None:
            raise ValueError(f"slot {index} has no buffer")
        return self.update(index, [None])[0]

    def clone(self, source: "RegisteredBuffers", index: int, source_index: int, count: int, *, replace: bool) -> None:
        """Take `count` buffers of `source` into this table, which grows as needed; `Registry` does."""
        pieces = source._pieces[source_index : source_index + count]
        before = self._slots
        if index + count > len(before):
            self._slots = ffi.new("struct au_slot[]", index + count)
            ffi.memmove(self._slots, before, ffi.sizeof(before))
        lib.au_buffers_init(self.raw, self._ring.raw, self._slots, len(self._slots))
        self._attendant.submit_queued()
        flags = lib.AU_CLONE_DST_REPLACE if replace else 0
        code = lib.au_buffers_clone(self.raw, index, source.raw, source_index, count, flags)
        if code < 0:
            self._slots = before
            lib.au_buffers_init(self.raw, self._ring.raw, before, len(before))
            raise clone_error(self._ring, code)
        missing = len(self._slots) - len(self._pieces)
        self._pieces += [None] * missing
        self._tags += [0] * missing
        for at in range(count - 1, -1, -1):
            self._retire(index + at)
            piece = pieces[at]
            self._adopt(index + at, piece and piece._replace(arena=None), 0)
        self._serve()

    # ---- the end -------------------------------------------------------------------------------

    def unregister(self) -> RetiredBuffers:
        """Take the buffers back from the kernel; idempotent.

        Requests in flight complete into the same memory, which lives as long as they do; what is queued is
        submitted first.  Leases stay valid as plain memory.  Whoever waits in `acquire()` gets
        `RingClosedError`.

        Returns:
            All of them, to be awaited until the kernel has let go of them.
        """
        if self._retired is not None:
            return self._retired
        self._attendant.submit_queued()
        filled = [index for index, piece in enumerate(self._pieces) if piece is not None]
        tags, pieces = [self._tags[index] for index in filled], [self._pieces[index] for index in filled]
        retired = RetiredBuffers(self._attendant, filled, tags, pieces)
        closed = self._ring.closed
        code = lib.au_buffers_unregister(self.raw)
        if code < 0:
            raise failure(code, "unregistering the buffers")
        self._retired = retired
        if closed:
            retired.dismiss(RingClosedError("the ring was closed before these buffers were unregistered"))
        else:
            self._expect(retired)
        self._pieces = [None] * len(self._pieces)
        self._lendable.clear()
        self.dismiss(RingClosedError("the registered buffers were unregistered while this waited for one"))
        return retired


def clone_error(ring: CoreRing, code: int) -> Exception:
    """The exception for a refused clone; the kernel has one EINVAL for two things."""
    if code != -errno.EINVAL:
        return failure(code, "cloning registered buffers")
    if not lib.au_ring_can_clone(ring.raw):
        return UnsupportedKernelError(
            "cloning registered buffers needs Linux 6.12, and with offsets, a count or replace=True Linux 6.13"
        )
    return kernel_error(
        errno.EINVAL,
        "cloning registered buffers: both rings must have been made by the same user and process, and both with "
        "CAP_IPC_LOCK or both without, since the memory is charged once",
    )
