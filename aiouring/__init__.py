"""Linux io_uring for Python's asyncio: files, sockets, registered buffers and buffer rings as awaitables."""

from aiouring._abi import CompletionFlags, Features, Opcode, SetupFlags
from aiouring._async_ring import AsyncRing, RingStatistics
from aiouring._buffer_ring import BufferRing, BufferRingStatistics, ProvidedBuffer
from aiouring._connection import Connection, ConnectionStatistics
from aiouring._errors import (
    AioUringError,
    BuffersExhaustedError,
    PartlyUpdatedError,
    ResourceBusyError,
    RingClosedError,
    RingUnavailableError,
    UnsupportedKernelError,
    WrongContextError,
)
from aiouring._fixed_buffer import FixedBuffer, RegisteredBuffersStatistics
from aiouring._probe import Probe, probe
from aiouring._receive_stream import ReceiveStream
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._retired_buffers import RetiredBuffers
from aiouring._ring import Completion
from aiouring._synchronous_ring import Ring

__version__ = "0.1.0"

__all__ = [
    "AioUringError",
    "AsyncRing",
    "BufferRing",
    "BufferRingStatistics",
    "BuffersExhaustedError",
    "Completion",
    "CompletionFlags",
    "Connection",
    "ConnectionStatistics",
    "Features",
    "FixedBuffer",
    "Opcode",
    "PartlyUpdatedError",
    "Probe",
    "ProvidedBuffer",
    "ReceiveStream",
    "RegisteredBuffers",
    "RegisteredBuffersStatistics",
    "ResourceBusyError",
    "RetiredBuffers",
    "Ring",
    "RingClosedError",
    "RingStatistics",
    "RingUnavailableError",
    "SetupFlags",
    "UnsupportedKernelError",
    "WrongContextError",
    "probe",
]
