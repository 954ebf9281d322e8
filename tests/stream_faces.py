"""What asyncio's faces look like to the contract of streams: a pair of reader and writer, and protocols for transports.

The faces say some things in other words than a `Connection` does, and those are translated here, nothing else: a reader
is told of a close by the end of the stream, and a writer that was closed says so by `is_closing()` and `drain()`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import aiouring
from aiouring import Connection, Transport

#: The faces of asyncio, whosever they are.
Reader = aiouring.StreamReader | asyncio.StreamReader
Writer = aiouring.StreamWriter | asyncio.StreamWriter


class Chunk:
    """Bytes that were read, with the face of a lent buffer."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)

    def __len__(self) -> int:
        return len(self.view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.view.release()


class Face:
    """One end: a reader and a writer, as a stream of the contract.

    Args:
        limited: makes a reader with another limit, which `asyncio.StreamReader.readuntil()` takes no argument for.
        lost: what to wait for instead of asyncio's `wait_closed()`, which is over for all when one who waits is
            cancelled.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        limited: Callable[[int], object],
        lost: "asyncio.Future[None] | None" = None,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._limited = limited
        self._lost = lost

    # ---- receiving: the end of the stream is also what one is told whose stream was closed

    async def receive(self) -> Chunk:
        return Chunk(await self._received(self.reader.read(65536)))

    async def receive_exactly(self, count: int) -> bytes:
        return await self._received(self.reader.readexactly(count))

    async def receive_until(self, separator: bytes, *, limit: int | None = None) -> bytes:
        if limit is not None:
            self._limited(limit)
        return await self._received(self.reader.readuntil(separator))

    async def _received(self, reading: Any) -> bytes:
        try:
            got: bytes = await reading
        except asyncio.IncompleteReadError:
            self._check_open()
            raise
        except RuntimeError as error:  # asyncio's reader is read by another task
            raise aiouring.ResourceBusyError(str(error)) from None
        if not got:
            self._check_open()
        return got

    def _check_open(self) -> None:
        if self.writer.is_closing():
            raise ConnectionAbortedError("the stream was closed")

    # ---- sending: drain() says what has become of what write() has taken

    def write(self, data: Any) -> None:
        self._check_open()
        self.writer.write(data)

    async def drain(self) -> None:
        try:
            await self.writer.drain()
        except ConnectionError:
            self._check_open()
            raise
        if isinstance(self.writer, asyncio.StreamWriter):
            self._check_open()  # asyncio's protocol lets whoever drains go on where nobody is to blame for the loss

    async def send(self, *parts: Any) -> None:
        try:
            self.writer.writelines(
                [piece for part in parts for piece in (part if isinstance(part, list | tuple) else (part,))]
            )
        except RuntimeError as error:  # after write_eof()
            raise BrokenPipeError(str(error)) from None
        await self.drain()

    async def send_eof(self) -> None:
        """It may be cancelled as long as something is queued, as a connection's may."""
        await self.drain()
        self.writer.write_eof()

    # ---- the end

    async def aclose(self) -> None:
        self.writer.close()
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        self.writer.transport.abort()

    async def wait_closed(self) -> None:
        if self._lost is None:
            await self.writer.wait_closed()
        else:
            await asyncio.shield(self._lost)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        await self.aclose()


class Recording(asyncio.StreamReaderProtocol):
    """asyncio's own streams, and whether they are told things in the order that they count on."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=2**16)
        super().__init__(self.reader)
        self.told: list[str] = []
        self.transport: Transport | None = None
        self.paused = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert not self.told
        self.told.append("made")
        assert isinstance(transport, Transport)
        self.transport = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        assert self.told == ["made"], self.told
        assert self.transport is not None
        assert self.transport.is_reading(), "data came while reading was paused"
        assert data
        super().data_received(data)

    def eof_received(self) -> bool:
        assert self.told == ["made"], self.told
        self.told.append("eof")
        super().eof_received()
        return True

    def pause_writing(self) -> None:
        assert "lost" not in self.told
        assert not self.paused
        self.paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        assert "lost" not in self.told
        assert self.paused
        self.paused = False
        super().resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        assert self.told in (["made"], ["made", "eof"]), self.told
        self.told.append("lost")
        self.lost.set_result(None)
        super().connection_lost(error)


class RecordingBuffered(Recording, asyncio.BufferedProtocol):
    """The same as a `BufferedProtocol`, whose buffer is smaller than most of what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(1500)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        assert 0 < nbytes <= len(self.memory)
        self.data_received(bytes(self.memory[:nbytes]))


def streams(connection: Connection) -> Face:
    """Our streams on a connection."""
    reader, writer = aiouring.StreamReader(connection), aiouring.StreamWriter(connection)
    return Face(reader, writer, lambda limit: aiouring.StreamReader(connection, limit=limit))


async def on_transport(connection: Connection, protocol: Recording) -> Face:
    """asyncio's streams on our transport, with a high mark that the contract's messages reach."""
    transport = Transport(connection, protocol)
    await asyncio.sleep(0)
    assert protocol.told == ["made"]
    writer = asyncio.StreamWriter(transport, protocol, protocol.reader, asyncio.get_running_loop())
    return Face(protocol.reader, writer, lambda limit: asyncio.StreamReader(limit=limit), protocol.lost)
