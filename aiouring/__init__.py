"""Linux io_uring for Python's asyncio: files, sockets, registered buffers and buffer rings as awaitables."""

from aiouring._abi import CompletionFlags, Features, Opcode, Registration, SetupFlags, SubmissionFlags
from aiouring._async_ring import AsyncRing, RingStatistics
from aiouring._binary_file import BinaryFile
from aiouring._buffer_ring import BufferRing, BufferRingStatistics, ProvidedBuffer
from aiouring._bundle import ProvidedBundle
from aiouring._chaining import Link
from aiouring._connection import Connection, ConnectionStatistics
from aiouring._copy import copy_file
from aiouring._default_ring import default_group, default_ring
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._errors import (
    AioUringError,
    BuffersExhaustedError,
    FilesUpdateError,
    PartlyUpdatedError,
    ResourceBusyError,
    RingClosedError,
    RingUnavailableError,
    UnsupportedKernelError,
    WrongContextError,
    bytes_written,
)
from aiouring._file_flags import (
    AtFlags,
    FallocateFlags,
    ReadWriteFlags,
    RenameFlags,
    ResolveFlags,
    StatxAttributes,
    StatxMask,
    SyncFileRangeFlags,
)
from aiouring._fixed_buffer import FixedBuffer, RegisteredBuffersStatistics
from aiouring._inbox import Inbox
from aiouring._linked import Chain
from aiouring._memory_region import MemoryRegion
from aiouring._open import open  # noqa: A004
from aiouring._opening import open_connection, open_unix_connection
from aiouring._path import Path
from aiouring._path_functions import (
    exists,
    link,
    listdir,
    makedirs,
    mkdir,
    read_bytes,
    read_text,
    remove,
    rename,
    replace,
    rmdir,
    stat,
    symlink,
    sync_directory,
    truncate,
    write_bytes,
    write_text,
)
from aiouring._probe import Probe, probe
from aiouring._protocols import create_connection, create_server, create_unix_connection
from aiouring._receive_stream import MessageStream, ReceiveStream
from aiouring._received_message import ReceivedMessage
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import RegisteredFiles, RegisteredFilesStatistics
from aiouring._restrictions import Restrictions
from aiouring._retired_buffers import RetiredBuffers
from aiouring._ring import Completion
from aiouring._server import Server, start_server
from aiouring._standing_streams import AcceptStream, PollStream
from aiouring._stat import StatxResult
from aiouring._stream_adapter import StreamReader, StreamWriter
from aiouring._synchronous_ring import Ring
from aiouring._text_file import TextFile
from aiouring._transport import Transport
from aiouring._zero_copy_verbs import ZeroCopySent

__version__ = "0.1.0"

__all__ = [
    "AcceptStream",
    "AioUringError",
    "AsyncRing",
    "AtFlags",
    "BinaryFile",
    "BufferRing",
    "BufferRingStatistics",
    "BuffersExhaustedError",
    "Chain",
    "Completion",
    "CompletionFlags",
    "Connection",
    "ConnectionStatistics",
    "DirectDescriptor",
    "FallocateFlags",
    "Features",
    "FilesUpdateError",
    "FixedBuffer",
    "Inbox",
    "Link",
    "MemoryRegion",
    "MessageStream",
    "Opcode",
    "PartlyUpdatedError",
    "Path",
    "PollStream",
    "Probe",
    "ProvidedBuffer",
    "ProvidedBundle",
    "ReadWriteFlags",
    "ReceiveStream",
    "ReceivedMessage",
    "RegisteredBuffers",
    "RegisteredBuffersStatistics",
    "Registration",
    "RegisteredFiles",
    "RegisteredFilesStatistics",
    "RenameFlags",
    "ResolveFlags",
    "ResourceBusyError",
    "Restrictions",
    "RetiredBuffers",
    "Ring",
    "RingClosedError",
    "RingStatistics",
    "RingUnavailableError",
    "Server",
    "SetupFlags",
    "StatxAttributes",
    "StatxMask",
    "StatxResult",
    "StreamReader",
    "StreamWriter",
    "SubmissionFlags",
    "SyncFileRangeFlags",
    "Transport",
    "TextFile",
    "UnsupportedKernelError",
    "WrongContextError",
    "ZeroCopySent",
    "bytes_written",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "copy_file",
    "default_group",
    "default_ring",
    "exists",
    "link",
    "listdir",
    "makedirs",
    "mkdir",
    "open",
    "open_connection",
    "open_unix_connection",
    "probe",
    "read_bytes",
    "read_text",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "start_server",
    "stat",
    "symlink",
    "sync_directory",
    "truncate",
    "write_bytes",
    "write_text",
]
