"""The typed face of the types that are written in C; see `_native/objects.c`."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sized
from typing import Any

from aiouring._buffer_ring import BufferRing, ProvidedBuffer
from aiouring._driver import Driver
from aiouring._file_object import InOrder
from aiouring._lease import Arena, Home, Lease
from aiouring._raw_file import RawFile
from aiouring._read_ahead import ReadAhead
from aiouring._request import Request
from aiouring._takers import Takers
from aiouring._turns import Turns
from aiouring._uring import CGroup, CRing, CSender

class LeaseRow:
    _home: Home
    arena: Arena
    number: int
    length: int
    _view: memoryview | None
    pins: int
    abandoned: bool
    ended: bool
    def __init__(self, home: Home, arena: Arena, number: int, length: int) -> None: ...

class RequestRow:
    fd: int
    file: Any
    hold: Any
    lease: Lease | None
    result: int
    flags: int
    ended: bool
    waiter: asyncio.Future[int] | None
    user_data: int
    pinned: bool
    def __init__(self, fd: int = -1, file: Any = None, hold: Any = None, lease: Lease | None = None) -> None: ...

class ReceivingRow(RequestRow):
    _arrivals: list[tuple[Any, int]]
    _driver: Driver
    group: Any
    _early: deque[Any]
    _ready: asyncio.Future[None] | None
    taker: Callable[[], object] | None
    _new_future: Callable[[], asyncio.Future[None]]
    _high: int
    _low: int
    _ticket: int
    armed: bool
    over: bool
    _stopping: bool
    _direct: bool
    arrived: Any
    def __anext__(self) -> Coroutine[Any, Any, ProvidedBuffer]: ...

class TurnsRow:
    _raw: CRing
    loop: asyncio.AbstractEventLoop
    inflight: dict[int, Request]
    _scheduled: bool
    _position: int
    _undelivered: bool
    takers: Takers
    _queued: list[Request]
    due: list[Callable[[], object]]
    _cancels_due: list[int]
    _starts_due: deque[tuple[Request, Callable[..., int], tuple[Any, ...]]]
    _room_wanted: Sized
    _groups: dict[int, BufferRing]
    _emptied: asyncio.Future[None] | None
    _retries: int
    _usable: bool
    _is_running: Callable[[], bool]
    def __init__(self, loop: asyncio.AbstractEventLoop, raw: CRing, address: int) -> None: ...
    def _turn(self, woken: int) -> None: ...
    def _flush(self) -> None: ...
    def _wake(self) -> None: ...
    def _deliver(self, count: int) -> None: ...
    def ask_for_turn(self) -> None: ...

class SendingRow:
    raw: CSender
    _driver: Turns
    _group: BufferRing
    _raw_group: CGroup
    _buffer_type: type[ProvidedBuffer]
    def __init__(
        self,
        driver: Turns,
        group: BufferRing,
        raw: CSender,
        address: int,
        raw_group: CGroup,
        group_address: int,
        buffer_type: type[ProvidedBuffer],
    ) -> None: ...
    def write(self, data: Any) -> None: ...
    def write_bytes(self, data: bytes) -> bool: ...
    def drain(self) -> Coroutine[Any, Any, None]: ...

class FileRow:
    _driver: Driver
    fd: int
    cached: bool
    def read_at_once(self, size: int, offset: int) -> bytes: ...

class OpenRow:
    _raw: RawFile
    _order: InOrder
    _ahead: ReadAhead
    _position: int
    _writable: bool
    _thread: int
    def read(self, size: int | None = -1) -> Coroutine[Any, Any, bytes]: ...
    def read_at(self, size: int, offset: int) -> Coroutine[Any, Any, bytes]: ...

def new_bytes(size: int) -> bytes: ...
