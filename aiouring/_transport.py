"""Owns `Transport`: asyncio's transport on a `Connection`, for protocols: callbacks instead of awaits.

How this fits together

1. The connection's chunks go to the protocol by a `Taker`: right after the turn that brought them, without a task.
   Everything that the protocol is told is told in the context in which the transport was made, as asyncio does.
2. `write()` queues; the turn that follows the callbacks sends all of it as one request.
3. The protocol hears `connection_made` first, then data, at most one `eof_received`, and `connection_lost` once and
   last, whatever happens: each of them from the loop, never within a call of the protocol's own.
"""

import asyncio
import contextlib
import contextvars
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from aiouring._buffer_ring import BufferRing
from aiouring._connection import Connection
from aiouring._errors import AioUringError, ResourceBusyError
from aiouring._multishot import Receiving
from aiouring._sending import HIGH_WATER, Sending, checked_parts
from aiouring._stream_adapter import extra_info
from aiouring._takers import Taker
from aiouring._verbs import Bytes


def check_waits(group: BufferRing) -> None:
    """Raise where an empty group would be an error: there is nobody to raise it to."""
    if group.on_empty == "raise":
        raise ValueError(f"{group!r} has on_empty={group.on_empty!r}, which a protocol cannot be told of: use 'wait'")


class Transport(asyncio.Transport):
    """Runs an `asyncio.Protocol` or `asyncio.BufferedProtocol` on a connection; has all that asyncio's transports have.

    Args:
        connection: what the protocol talks through.  Nobody else reads from it, writes to it, or closes it.
        protocol: its `connection_made()` is called soon.

    What had come and was not received is the protocol's first data.  Where it differs from asyncio's: `write()` takes
    received buffers, too; writing is paused by what is queued, and everything is queued until the turn's end; `close()`
    and errors of the ring are heard of by `connection_lost()` only.

    Raises:
        ResourceBusyError: a task is receiving from the connection.
        ValueError: it is closed, or its group was registered with on_empty="raise", which nobody could be told.

    Since Linux 6.0.
    """

    __slots__ = (
        "__weakref__",
        "_buffered",
        "_closing",
        "_connection",
        "_context",
        "_eof",
        "_high",
        "_loop",
        "_lost",
        "_low",
        "_protocol",
        "_sending",
        "_taker",
        "_write_bytes",
        "_writing_paused",
    )

    def __init__(self, connection: Connection, protocol: asyncio.BaseProtocol) -> None:
        receiving, sending, framing = connection._receiving, connection._sending, connection._framing
        if connection._closed:
            raise ValueError(f"{connection!r} cannot have a transport: it is closed")
        if not isinstance(receiving, Receiving) or not isinstance(sending, Sending):
            raise ValueError(f"{connection!r} cannot have a transport: protocols do not speak TLS here, streams do")
        if receiving._ready is not None or receiving.taker is not None or (framing is not None and framing.busy):
            raise ResourceBusyError(f"somebody is receiving from {connection!r} already")
        check_waits(receiving.group)
        super().__init__(extra_info(connection))
        self._connection = connection
        self._sending = sending
        self._write_bytes = sending.write_bytes
        self._loop = connection._driver.loop
        self._context = contextvars.copy_context()
        self._taker = Taker(receiving, self._ended, self._data_refused)
        self._closing = self._eof = self._lost = self._writing_paused = False
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self.set_protocol(protocol)
        self._call_when(self._sending.when_failed(), self._sending_failed)
        self._loop.call_soon(protocol.connection_made, self, context=self._context)
        self._loop.call_soon(self._start, context=self._context)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "paused" if self._taker.paused else "open"
        return f"<Transport {state} on {self._connection!r}>"

    def _call_when(self, future: "asyncio.Future[None]", callback: Any) -> None:
        future.add_done_callback(callback, context=self._context)

    # ---- receiving -----------------------------------------------------------------------------

    def _start(self) -> None:
        """The protocol has been told of the connection: it may have data."""
        if not self._closing:
            taker = self._taker
            taker.start(partial(self._context.run, taker.take))

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told what happens; None when it was told that the connection is lost."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol from now on; it is not told of the connection."""
        self._protocol = told = cast("Any", protocol)
        self._taker.received = self._fill if isinstance(protocol, asyncio.BufferedProtocol) else told.data_received

    def is_reading(self) -> bool:
        """Whether data goes to the protocol."""
        return not (self._taker.paused or self._closing)

    def pause_reading(self) -> None:
        """Hand nothing over until `resume_reading()`; what comes stays with the kernel if it can.  Idempotent."""
        self._taker.paused = True

    def resume_reading(self) -> None:
        """Hand over again, soon.  Idempotent."""
        if self._taker.paused and not self._closing:
            self._taker.go_on()

    def _fill(self, data: bytes) -> None:
        """Copy a chunk into the memory of a BufferedProtocol, as much at a time as that takes."""
        protocol, left = self._protocol, memoryview(data)
        while left:
            with memoryview(protocol.get_buffer(len(left))).cast("B") as memory:
                if not memory:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                count = min(len(memory), len(left))
                memory[:count] = left[:count]
            left = left[count:]
            protocol.buffer_updated(count)
            if left and (self._closing or self._taker.paused or self._protocol is not protocol):
                self._taker.keep(bytes(left))
                return

    def _data_refused(self, error: BaseException) -> None:
        self._fail(error, "protocol.data_received() or buffer_updated() raised")

    def _ended(self, failure: Exception | None) -> None:
        """The stream's end, or what has become of it; nothing more comes."""
        if failure is not None:
            self._fail(failure, "receiving failed")
            return
        try:
            stays_open = self._protocol.eof_received()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._fail(error, "protocol.eof_received() raised")
        else:
            if not stays_open:
                self.close()

    # ---- sending -------------------------------------------------------------------------------

    def write(self, data: Bytes) -> None:
        """Queue bytes to be sent; a received buffer is handed over.  Does nothing when the connection is lost.

        Raises:
            RuntimeError: after `write_eof()`.
            TypeError: these are no bytes.
        """
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        try:
            if type(data) is bytes:
                crowded = self._write_bytes(data)
            else:
                self._sending.write(data)
                crowded = bool(self._sending.raw.crowded)
        except (OSError, AioUringError):
            if self._sending.failure is None:  # else the protocol is told, or was
                raise
        else:
            if crowded and not self._writing_paused:
                self._pause_writing()

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """Queue all of them; raises `TypeError` where one has no bytes, and queues none."""
        for data in checked_parts(list_of_data):
            self.write(data)

    def can_write_eof(self) -> bool:
        """True: TCP and Unix sockets can be half-closed."""
        return True

    def write_eof(self) -> None:
        """Send what is queued, then the end of the stream; receiving goes on.  Idempotent."""
        if not (self._eof or self._closing):
            self._eof = True
            self._when_all_is_sent(self._shut_down)

    def _shut_down(self) -> None:
        if not self._lost:
            with contextlib.suppress(OSError):  # the peer has gone
                self._connection._socket.shutdown(socket.SHUT_WR)

    def _when_all_is_sent(self, what: Any) -> None:
        """Call `what` when nothing is queued; not at all if sending fails before."""
        if self._sending.failure is not None:
            return
        if not self._sending.raw.pending:
            what()
        else:
            self._call_when(self._sending.reach(0), lambda _: self._when_all_is_sent(what))

    def get_write_buffer_size(self) -> int:
        """Bytes that are queued for sending."""
        return self._sending.raw.pending

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Above how many queued bytes the protocol is told to pause writing, and at how many to resume.

        Raises:
            ValueError: not high >= low >= 0.
        """
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._sending.set_high_water(high)
        if self._sending.raw.crowded and not (self._lost or self._writing_paused):
            self._pause_writing()

    def _pause_writing(self) -> None:
        self._writing_paused = True
        self._tell_writer("pause_writing")
        self._call_when(self._sending.reach(self._low), self._resume_writing)

    def _resume_writing(self, _: "asyncio.Future[None]") -> None:
        """Little is left to send, unless more was written since."""
        if self._sending.failure is not None:
            return
        if self._sending.raw.pending > self._low:
            self._call_when(self._sending.reach(self._low), self._resume_writing)
        elif self._writing_paused:
            self._writing_paused = False
            self._tell_writer("resume_writing")

    def _tell_writer(self, what: str) -> None:
        try:
            getattr(self._protocol, what)()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._report(error, f"protocol.{what}() raised")

    # ---- the end -------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the transport is closed, or being closed."""
        return self._closing

    def close(self) -> None:
        """Receive nothing more, send what is queued, then close.  Idempotent."""
        if not self._closing:
            self._closing = True
            self._taker.stop()
            self._when_all_is_sent(partial(self._lose, None))

    def abort(self) -> None:
        """Close without sending what is queued.  Idempotent."""
        self._lose(None)

    def _sending_failed(self, _: "asyncio.Future[None]") -> None:
        failure = self._sending.failure
        if failure is not None:
            self._fail(failure, "sending failed")

    def _fail(self, error: BaseException, what: str) -> None:
        """The connection is lost; a fault of the protocol's is reported, one of the network is its life."""
        if not self._lost and not isinstance(error, OSError | AioUringError):
            self._report(error, what)
        self._lose(error)

    def _report(self, error: BaseException, what: str) -> None:
        self._loop.call_exception_handler(
            {"message": what, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _lose(self, error: BaseException | None) -> None:
        """Neither receive nor send any more, and tell the protocol."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._taker.stop()
        self._connection._stop_sending()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the protocol will never know
            self._loop.call_soon(self._tell_lost, error, context=self._context)

    def _tell_lost(self, error: BaseException | None) -> None:
        protocol, self._protocol = self._protocol, None
        self._taker.forget()
        try:
            protocol.connection_lost(error)
        finally:
            self._connection.abort()
