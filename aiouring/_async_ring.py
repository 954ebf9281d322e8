"""Owns `AsyncRing`: io_uring's operations as coroutines on the running event loop.

Each verb checks its arguments, makes a `Request`, and lets the driver perform it; nothing more.  Names are
liburing's without the prefix.  A file is a descriptor number or an object with `fileno()`; prefer the object:
the request holds it, and notices when it is closed between being queued and being submitted.
"""

import asyncio
import errno
import select
import socket
import warnings
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

from aiouring._address import pack_address
from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer, end_of_stream, private_copy
from aiouring._driver import Driver
from aiouring._errors import ResourceBusyError, RingClosedError, kernel_error
from aiouring._lease import Lease
from aiouring._registered_buffers import FixedBuffer, RegisteredBuffers
from aiouring._request import Accept, ProvidedReceive, Read, Receive, Request, Timeout, Write, identify
from aiouring._ring import MAX_ENTRIES, Ring, TaskRun, check_size
from aiouring._uring import ffi, lib


class HasFileno(Protocol):
    """An open file, socket or pipe."""

    def fileno(self) -> int:
        """Its descriptor."""


File: TypeAlias = int | HasFileno
Bytes: TypeAlias = Any  # any C-contiguous buffer: bytes, bytearray, memoryview, array, mmap, numpy array ...


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """What a ring has done so far, and what it is doing; counts."""

    submitted: int  # requests the kernel has taken, cancels included
    completed: int  # completions drained
    in_flight: int  # requests whose final completion is to come
    detached: int  # requests that were given up on by their awaiter so far
    enters: int  # io_uring_enter calls
    wakeups: int  # times the eventfd woke the loop
    overflow_flushes: int  # enters that flushed an overflowed completion queue
    submit_errors: int  # enters that failed, and were tried again
    strays: int  # completions nobody was waiting for


class AsyncRing:
    """One io_uring for one event loop; use it with `async with`, in the loop's thread.

    Args:
        entries: size of the submission queue, 1 to 32768.  More requests than that may be in flight.
        cq_entries: size of the completion queue; an overflow is slower, and loses nothing.
        task_run: "coop" or "defer", see `Ring`; None takes the measured default.
        cancel_timeout: seconds that a cancelled await waits for a request which the kernel will not stop.
            After that the request goes on alone and keeps its memory: do not reuse a buffer that it fills.
        close_timeout: seconds that closing waits for such requests, before it keeps their memory for ever.

    Raises:
        RingUnavailableError: io_uring is blocked here; the text says by what.  See `probe()`.
        OSError: ENOMEM (RLIMIT_MEMLOCK), EMFILE.

    Every verb raises `OSError` where the kernel refuses, `RingClosedError` after or during close, and
    `WrongContextError` from another loop, another thread or a forked process.  Needs Linux 5.19.
    """

    def __init__(
        self,
        entries: int = 256,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        cancel_timeout: float = 5.0,
        close_timeout: float = 5.0,
    ) -> None:
        self._driver: Driver | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._receiving: set[Any] = set()
        self._cancel_timeout = cancel_timeout
        self._close_timeout = close_timeout
        check_size("entries", entries, MAX_ENTRIES)
        self._ring = Ring(entries, cq_entries=max(cq_entries, entries), task_run=task_run, disabled=True)

    # ---- life ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self._closed or self._driver is None:
            return f"<AsyncRing {'closed' if self._closed else 'not used yet'}>"
        return f"<AsyncRing fd={self._ring.fd} in_flight={len(self._driver.inflight)}>"

    async def __aenter__(self) -> Self:
        self._bound()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _bound(self) -> Driver:
        """The driver; the first use binds the ring to the running loop and its thread."""
        driver = self._driver
        if driver is None:
            if self._closed:
                raise RingClosedError("the ring has been closed")
            driver = self._driver = Driver(self._ring, asyncio.get_running_loop(), self._cancel_timeout)
        return driver

    async def aclose(self) -> None:
        """Cancel everything, wait for its end (`close_timeout` bounds that), and close; idempotent.

        Whoever is waiting gets `RingClosedError`.  Memory that the kernel may still write to after the
        deadline is kept until the process ends, with a `ResourceWarning`.
        """
        driver = self._driver
        if self._closed or driver is None:
            self._closed = True
            self._ring.close()
            return
        if self._closing is None:
            driver.check()
            driver.stop_intake()
            self._closing = driver.loop.create_task(driver.close(self._close_timeout), name="aiouring close")
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.shield(self._closing)
            except asyncio.CancelledError as error:  # closing always ends: bounded, so wait for it
                cancelled = error
        self._closed = True
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is None or self._closed or driver.ring.closed:
            return  # a ring that nobody used closes itself
        warnings.warn(f"{self!r} was never closed: use 'async with', or await aclose()", ResourceWarning, 1, self)
        driver.abandon()

    def statistics(self) -> RingStatistics:
        """What the ring has done so far."""
        raw, driver = self._ring.raw, self._driver
        return RingStatistics(
            submitted=raw.submitted,
            completed=raw.completed,
            in_flight=len(driver.inflight) if driver else 0,
            detached=driver.detached if driver else 0,
            enters=raw.enters,
            wakeups=raw.wakeups,
            overflow_flushes=raw.overflow_flushes,
            submit_errors=raw.submit_errors,
            strays=driver.strays if driver else 0,
        )

    # ---- buffers -------------------------------------------------------------------------------

    def register_buffers(self, *, count: int, size: int) -> RegisteredBuffers:
        """Register `count` page-aligned buffers of `size` bytes for `read_fixed` and `write_fixed`.

        Raises:
            ValueError: over 16384 buffers, or over 1 GiB in one.
            OSError: ENOMEM beyond RLIMIT_MEMLOCK; the text says how to raise it.
            ResourceBusyError: this ring has a table already.

        Since Linux 5.1.  See io_uring_register_buffers(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        if driver.buffers is not None and driver.buffers.registered:
            raise ResourceBusyError("this ring has registered buffers already: a ring has one table of them")
        driver.buffers = RegisteredBuffers(self._ring, driver, count, size)
        return driver.buffers

    def register_buffer_ring(self, *, count: int, size: int, on_empty: OnEmpty = "wait") -> BufferRing:
        """Register a pool of `count` buffers (a power of two) of `size` bytes for `recv`.

        `on_empty` says what a receive does when all are lent: wait in line, or raise `BuffersExhaustedError`.

        Since Linux 5.19.  See io_uring_setup_buf_ring(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        driver.groups = {number: group for number, group in driver.groups.items() if group.registered}
        group_id = next(number for number in range(len(driver.groups) + 1) if number not in driver.groups)
        if group_id > lib.AU_MAX_GROUP_ID:
            raise ResourceBusyError(f"this ring has {len(driver.groups)} buffer rings already")
        group = BufferRing(self._ring, driver, group_id, count, size, on_empty)
        driver.groups[group_id] = group
        return group

    # ---- files ---------------------------------------------------------------------------------

    async def nop(self) -> None:
        """Do nothing, by way of the kernel: for measuring."""
        await (self._driver or self._bound()).perform(Request(), lib.au_prepare, lib.AU_OP_NOP, -1, 0, 0, 0, 0, 0)

    async def read(self, fd: File, buffer: Bytes, offset: int | None = None) -> int:
        """Read into `buffer`; returns the number of bytes, 0 at the end of the file.

        Args:
            buffer: any writable C-contiguous buffer, or a lent one.  Held until the kernel is done.
            offset: where in the file, in bytes; None means, and moves, the file's own position.

        Since Linux 5.6.  See io_uring_prep_read(3).
        """
        number, file, how = _resolve(fd)
        memory, length, lease = _memory(buffer, writable=True)
        driver = self._driver or self._bound()
        if offset is None:
            if driver.leftovers and (data := driver.leftovers.take(number, length)):
                return _fill(memory, data)
            request: Request = Read(number, file, memory, lease)
        else:
            request = Request(number, file, memory, lease)
        return await driver.perform(
            request, lib.au_prepare_memory, lib.AU_OP_READ, number, memory, length, 0, length, _offset(offset), 0, how
        )

    async def write(self, fd: File, data: Bytes, offset: int | None = None) -> int:
        """Write `data`; returns the number of bytes written, which may be fewer.

        `offset` is where in the file; None means, and moves, the file's own position.

        Since Linux 5.6.  See io_uring_prep_write(3).
        """
        number, file, how = _resolve(fd)
        memory, length, lease = _memory(data, writable=False)
        request = Write(number, file, memory, lease)
        return await (self._driver or self._bound()).perform(
            request, lib.au_prepare_memory, lib.AU_OP_WRITE, number, memory, length, 0, length, _offset(offset), 0, how
        )

    async def read_fixed(
        self, fd: File, buffer: FixedBuffer, offset: int | None = None, *, start: int = 0, length: int | None = None
    ) -> int:
        """Read into a registered buffer, at `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes, 0 at the end of the file.  Since Linux 5.1.  See io_uring_prep_read_fixed(3).
        """
        return await self._fixed(Request, lib.AU_OP_READ_FIXED, fd, buffer, offset, start, length)

    async def write_fixed(
        self, fd: File, buffer: FixedBuffer, offset: int | None = None, *, start: int = 0, length: int | None = None
    ) -> int:
        """Write from a registered buffer, from `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes written.  Since Linux 5.1.  See io_uring_prep_write_fixed(3).
        """
        return await self._fixed(Write, lib.AU_OP_WRITE_FIXED, fd, buffer, offset, start, length)

    async def _fixed(
        self,
        kind: type[Request],
        opcode: int,
        fd: File,
        buffer: FixedBuffer,
        offset: int | None,
        start: int,
        length: int | None,
    ) -> int:
        number, file, how = _resolve(fd)
        if not isinstance(buffer, FixedBuffer):
            raise TypeError(f"a FixedBuffer from RegisteredBuffers.acquire() is needed, not {type(buffer).__name__}")
        memory = buffer.memory  # ValueError after release
        if length is None:
            length = len(buffer) - start
        if kind is Request and offset is None:
            kind, hold = Read, memory[start : start + length] if 0 <= start <= start + length <= len(buffer) else None
        else:
            hold = memory
        return await (self._driver or self._bound()).perform(
            kind(number, file, hold, buffer),
            lib.au_prepare_fixed,
            opcode,
            number,
            buffer.table,
            buffer.index,
            start,
            length,
            _offset(offset),
            how,
        )

    async def fsync(self, fd: File, *, data_only: bool = False) -> None:
        """Flush a file to its device; `data_only` leaves out metadata that reading does not need.

        Since Linux 5.1.  See io_uring_prep_fsync(3).
        """
        number, file, how = _resolve(fd)
        flags = lib.AU_FSYNC_DATASYNC if data_only else 0
        await (self._driver or self._bound()).perform(
            Write(number, file), lib.au_prepare, lib.AU_OP_FSYNC, number, 0, 0, 0, flags, how
        )

    # ---- sockets -------------------------------------------------------------------------------

    async def accept(self, sock: File) -> socket.socket:
        """Accept a connection; returns a non-blocking, close-on-exec socket.

        A connection that comes together with a cancellation is closed.  Since Linux 5.5.  See
        io_uring_prep_accept(3).
        """
        number, file, how = _resolve(sock)
        flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        fd = await (self._driver or self._bound()).perform(
            Accept(number, file), lib.au_prepare, lib.AU_OP_ACCEPT, number, 0, 0, 0, flags, how
        )
        if isinstance(sock, socket.socket):
            connection = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
        else:
            connection = socket.socket(fileno=fd)
        connection.setblocking(False)
        return connection

    async def connect(self, sock: socket.socket, address: Any) -> None:
        """Connect to `address`, written as for `socket.connect()`; host names are resolved by the loop.

        After a cancellation the socket's state is undefined: close it.  Since Linux 5.5.  See
        io_uring_prep_connect(3).
        """
        driver = self._driver or self._bound()
        try:
            packed = pack_address(sock.family, address)
        except OSError:
            found = await driver.loop.getaddrinfo(
                address[0], address[1], family=sock.family, type=sock.type, proto=sock.proto
            )
            packed = pack_address(sock.family, found[0][4])
        number, file, how = _resolve(sock)
        memory = ffi.new("char[]", packed)
        size = len(packed)
        await driver.perform(
            Write(number, file, memory),
            lib.au_prepare_memory,
            lib.AU_OP_CONNECT,
            number,
            memory,
            size,
            0,
            0,
            size,
            0,
            how,
        )

    async def recv(self, sock: File, group: BufferRing, *, on_empty: OnEmpty | None = None) -> ProvidedBuffer:
        """Receive into a buffer that the kernel picks from `group` when the data is there.

        Returns it lent: release it, or use it in a `with` block.  It is empty, and falsy, at the end of the
        stream.  While all buffers are lent this waits in line, unless `on_empty` (here or of the group) is
        "raise".  Cancelling it loses no byte: what arrives with the cancellation is the next receive's.

        Raises:
            BuffersExhaustedError: no buffer, and "raise".
            ResourceBusyError: another receive is waiting on this socket.

        Since Linux 5.19.  See io_uring_prep_recv(3) and io_uring_setup_buf_ring(3).
        """
        number, file, how = _resolve(sock)
        driver = self._driver or self._bound()
        key = self._enter_receive(sock)
        try:
            if driver.leftovers and (data := driver.leftovers.take(number, group.size)):
                return private_copy(data)
            request = ProvidedReceive(number, file, group)
            result = -errno.ENOBUFS if group.has_line else 0
            refused = False
            while True:
                if result == -errno.ENOBUFS:
                    identity = identify(number)
                    await group.wait_in_line(on_empty=on_empty, refused=refused)
                    if identify(number) != identity:
                        raise kernel_error(errno.EBADF, "the socket was closed while this waited for a buffer")
                result = await driver.perform(
                    request, lib.au_prepare_select, lib.AU_OP_RECV, number, group.raw, 0, 0, 0, how
                )
                if result != -errno.ENOBUFS:
                    break
                refused = True
        except OSError as error:
            if error.errno == errno.ECANCELED and not group.registered:
                raise RingClosedError(f"buffer ring {group.group_id} was unregistered during a receive") from None
            raise
        finally:
            self._receiving.discard(key)
        if not request.flags & lib.AU_CQE_F_BUFFER:
            return end_of_stream()
        chunk = group.take(request.flags, result)
        if not chunk:
            chunk.release()  # an empty datagram that took a buffer
        return chunk if chunk else end_of_stream()

    async def recv_into(self, sock: File, buffer: Bytes) -> int:
        """Receive into `buffer`; returns the number of bytes, 0 at the end of the stream.

        Cancelling it loses no byte, as with `recv`.  Since Linux 5.6.  See io_uring_prep_recv(3).
        """
        number, file, how = _resolve(sock)
        memory, length, lease = _memory(buffer, writable=True)
        driver = self._driver or self._bound()
        key = self._enter_receive(sock)
        try:
            if driver.leftovers and (data := driver.leftovers.take(number, length)):
                return _fill(memory, data)
            return await driver.perform(
                Receive(number, file, memory, lease),
                lib.au_prepare_memory,
                lib.AU_OP_RECV,
                number,
                memory,
                length,
                0,
                length,
                0,
                0,
                how,
            )
        finally:
            self._receiving.discard(key)

    def _enter_receive(self, sock: File) -> Any:
        """One receive at a time on a socket: two would share the stream's bytes in an undefined way."""
        if sock in self._receiving:
            raise ResourceBusyError(f"another task is already receiving from {sock!r}")
        self._receiving.add(sock)
        return sock

    async def send(self, sock: File, data: Bytes) -> int:
        """Send what the socket takes of `data`, a buffer or a lent one; returns the number of bytes.

        Since Linux 5.6.  See io_uring_prep_send(3).
        """
        number, file, how = _resolve(sock)
        memory, length, lease = _memory(data, writable=False)
        return await (self._driver or self._bound()).perform(
            Write(number, file, memory, lease),
            lib.au_prepare_memory,
            lib.AU_OP_SEND,
            number,
            memory,
            length,
            0,
            length,
            0,
            socket.MSG_NOSIGNAL,
            how,
        )

    async def send_all(self, sock: File, data: Bytes) -> None:
        """Send all of `data`, waiting for room as often as it takes.

        After a cancellation it is unknown how much was sent: close the connection.  Since Linux 5.6.
        """
        number, file, how = _resolve(sock)
        memory, length, lease = _memory(data, writable=False)
        driver = self._driver or self._bound()
        start = 0
        flags = socket.MSG_NOSIGNAL | socket.MSG_WAITALL
        while start < length:
            start += await driver.perform(
                Write(number, file, memory, lease),
                lib.au_prepare_memory,
                lib.AU_OP_SEND,
                number,
                memory,
                length,
                start,
                length - start,
                0,
                flags,
                how,
            )

    # ---- any descriptor ------------------------------------------------------------------------

    async def close(self, file: int | socket.socket) -> None:
        """Close a descriptor or socket, after stopping what this ring has in flight on it.

        Closing alone would not stop it: the kernel goes on with the open file (KERNEL.md C9).  Tasks that
        wait on it get `OSError` (ECANCELED).  Since Linux 5.6.  See io_uring_prep_close(3).
        """
        number, _, how = _resolve(file)
        driver = self._driver or self._bound()
        await self._stop(driver, number, file)
        driver.leftovers.forget(number)
        if isinstance(file, socket.socket):
            number, how = file.detach(), 0
        await driver.perform(Write(number), lib.au_prepare, lib.AU_OP_CLOSE, number, 0, 0, 0, 0, how)

    async def cancel(self, file: File) -> int:
        """Cancel every request of this ring on a file; returns how many there were.

        Whoever awaits them gets `OSError` (ECANCELED), or the result if it came first.  Returns when the
        kernel is done with all of them.  Since Linux 5.5.  See io_uring_prep_cancel(3).
        """
        number, _, _ = _resolve(file)
        return await self._stop(self._bound(), number, file)

    async def _stop(self, driver: Driver, number: int, file: Any) -> int:
        owner = None if isinstance(file, int) else file
        driver.check()
        return await driver.stop([r for r in driver.inflight.values() if r.fd == number and r.file is owner])

    async def poll(self, fd: File, events: int = select.POLLIN) -> int:
        """Wait until one of `events` (`select.POLLIN` ...) is true of a file; returns those that are.

        Since Linux 5.1.  See io_uring_prep_poll_add(3).
        """
        number, file, how = _resolve(fd)
        return await (self._driver or self._bound()).perform(
            Request(number, file), lib.au_prepare, lib.AU_OP_POLL_ADD, number, 0, 0, 0, events, how
        )

    async def timeout(self, seconds: float) -> None:
        """Wait, by the kernel's monotonic clock.  Since Linux 5.4.  See io_uring_prep_timeout(3)."""
        if not 0 <= seconds < 2**32:
            raise ValueError(f"seconds={seconds} is outside 0 to {2**32}")
        whole = int(seconds)
        time = ffi.new("int64_t[2]", [whole, int((seconds - whole) * 1e9)])
        await (self._driver or self._bound()).perform(
            Timeout(hold=time), lib.au_prepare_memory, lib.AU_OP_TIMEOUT, -1, time, 16, 0, 1, 0, 0, 0
        )


def _resolve(file: File) -> tuple[int, Any, int]:
    """The descriptor, the object to hold (None for a bare number), and how the C core is to treat it."""
    if isinstance(file, int):
        if file < 0:
            raise kernel_error(errno.EBADF, f"descriptor {file}")
        return file, None, lib.AU_GUARD_FD
    number = file.fileno()
    if number < 0:
        raise kernel_error(errno.EBADF, "the file has been closed")
    return number, file, 0


def _memory(data: Bytes, *, writable: bool) -> tuple[Any, int, Lease | None]:
    """The memory of a buffer as a C array that holds its export, its length in bytes, and its lease."""
    if isinstance(data, Lease):
        return data.memory, len(data), data
    memory = ffi.from_buffer(data, require_writable=writable)
    return memory, len(memory), None


def _fill(memory: Any, data: bytes) -> int:
    ffi.buffer(memory)[: len(data)] = data
    return len(data)


def _offset(offset: int | None) -> int:
    if offset is None:
        return -1
    if offset < 0:
        raise ValueError(f"offset={offset} is negative; None means the file's own position")
    return offset
