"""Tests of the types written in C: what is awaited, what is half made or being collected, and what leaks."""

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import socket
import sys
import weakref
from inspect import getmembers, ismemberdescriptor
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring import AsyncRing, BufferRing, Connection
from aiouring._lease import Lease
from aiouring._multishot import Receiving
from aiouring._objects import FileRow, OpenRow, ReceivingRow, RequestRow, SendingRow, TurnsRow, new_bytes
from aiouring._provided_buffer import end_of_stream
from aiouring._request import Request
from aiouring._sending import Sending
from aiouring._uring import ffi

Pair = tuple[socket.socket, socket.socket]

ROWS = [Lease, Request, ReceivingRow, Receiving, TurnsRow, SendingRow, Sending, FileRow, OpenRow]


def group_of(ring: AsyncRing) -> BufferRing:
    """A small group."""
    return ring.register_buffer_ring(count=4, size=64)


# ---- what is awaited ---------------------------------------------------------------------------


async def test_next_is_a_coroutine(ring: AsyncRing, pair: Pair) -> None:
    """What `__anext__()` returns can be made a task of, waited for with a limit, and awaited by `anext()`."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            stream: Any = aiter(connection)
            task = asyncio.create_task(stream.__anext__())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 0.01)
            pair[1].send(b"one")
            with await task as chunk:
                assert bytes(chunk.view) == b"one"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.01)
            pair[1].send(b"two")
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"two"
            pair[1].close()
            assert await anext(stream, None) is None


async def test_next_is_awaited_once(ring: AsyncRing, pair: Pair) -> None:
    """It gives its chunk once; after that, and after `close()`, it is over."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            pair[1].send(b"one")
            following: Any = aiter(connection).__anext__()
            (await following).release()
            with pytest.raises(RuntimeError, match="awaited already"):
                await following
            closed: Any = aiter(connection).__anext__()
            closed.close()
            closed.close()
            with pytest.raises(RuntimeError, match="awaited already"):
                closed.send(None)
            with pytest.raises(TypeError):
                type(following)()


async def test_next_by_hand(ring: AsyncRing, pair: Pair) -> None:
    """Driven by hand it yields the future that it waits for; whatever ends it, another may wait afterwards."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            receiving: Any = connection._receiving
            for end in ("throw", "throw a class", "throw what is none", "close", "drop"):
                following: Any = receiving.__anext__()
                assert isinstance(next(following), asyncio.Future)
                assert receiving._ready is not None
                with pytest.raises(aiouring.ResourceBusyError):
                    await receiving.__anext__()
                if end == "throw":
                    with pytest.raises(ZeroDivisionError, match="thrown"):
                        following.throw(ZeroDivisionError("thrown"))
                elif end == "throw a class":
                    with pytest.raises(ZeroDivisionError, match="made of it"):
                        following.throw(ZeroDivisionError, "made of it", None)
                elif end == "throw what is none":
                    with pytest.raises(TypeError, match="exceptions are thrown"):
                        following.throw(5)
                elif end == "close":
                    following.close()
                del following
                assert receiving._ready is None, end
            pair[1].send(b"all of it")
            with await connection.receive() as chunk:
                assert bytes(chunk.view) == b"all of it"


async def test_next_that_is_cancelled_with_its_chunk(ring: AsyncRing, pair: Pair) -> None:
    """A reader that is woken and cancelled in one turn has taken nothing."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            for number in range(20):
                task = asyncio.create_task(connection.receive())
                await asyncio.sleep(0)
                pair[1].send(b"%d" % number)
                while not connection.statistics().pending:
                    ring._bound()._turn(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                with await connection.receive() as chunk:
                    assert bytes(chunk.view) == b"%d" % number


async def test_a_chunk_that_cannot_be_lent_is_not_lost(
    ring: AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lease can be made, or the receive not be armed, what came is there for the next try."""

    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            pair[1].send(b"data")
            while not connection.statistics().pending:
                await asyncio.sleep(0)
            following: Any = aiter(connection).__anext__()
            monkeypatch.setattr(group, "lease", refuse)
            with pytest.raises(KeyboardInterrupt):
                following.send(None)
            monkeypatch.undo()
            with await connection.receive() as chunk:
                assert bytes(chunk.view) == b"data"


async def test_drain_that_is_over(ring: AsyncRing, pair: Pair) -> None:
    """A `drain()` that need not wait is awaited at once, by a task, or not at all, as often as one likes."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            over: Any = connection.drain()
            for _ in range(2):
                assert await over is None
                assert await asyncio.create_task(over) is None
                assert list(over) == []
            with pytest.raises(ZeroDivisionError):
                over.throw(ZeroDivisionError())
            over.close()
            with pytest.raises(StopIteration):
                over.send(None)
            with pytest.raises(TypeError):
                type(over)()


# ---- what is half made, or being collected -----------------------------------------------------


def use(row: Any) -> None:
    """Whatever can be called of a row that may be none: it raises, or does nothing."""
    for name, arguments in {
        "_turn": (0,), "_flush": (), "_wake": (), "_deliver": (1,), "ask_for_turn": (), "arrived": (1, 2),
        "write": (b"x",), "write_bytes": (b"x",), "drain": (), "read_at_once": (1, 0), "read": (), "read_at": (1, 0),
    }.items():  # fmt: skip
        method = getattr(row, name, None)
        if method is not None:
            with contextlib.suppress(RuntimeError, TypeError, AttributeError, SystemError):
                method(*arguments)
    if hasattr(row, "__anext__"):
        with pytest.raises((RuntimeError, TypeError, AttributeError, SystemError)):
            row.__anext__().send(None)
    repr(object.__repr__(row))


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("kind", ROWS)
def test_half_made(kind: Any) -> None:
    """An object whose `__init__` never ran crashes nobody."""
    row = kind.__new__(kind)
    use(row)
    if kind is Lease:
        row.ended = True


#: To things that the collector does not know: one dies when the collector clears what has it, and no sooner.
LAST: "list[weakref.ref[Any]]" = []


def last(row: object) -> Any:
    """Something that has `row` used when it dies."""
    address = id(row)
    code = compile("0", "", "eval")
    LAST.append(weakref.ref(code, lambda _: use(ctypes.cast(address, ctypes.py_object).value)))
    return code


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("kind", ROWS)
def test_used_while_it_is_collected(kind: Any) -> None:
    """One whose references the collector takes, and that somebody uses in that moment, crashes nobody either."""

    class Of(kind):  # type: ignore[misc]
        """One that can be in a cycle."""

    fixed = {"_raw", "loop", "inflight", "raw", "_driver", "_group", "_raw_group", "_buffer_type"}
    fields = {name for name, _ in getmembers(kind, ismemberdescriptor)} - {"__weakref__", "ended"}
    for field in {"_raw_group"} if issubclass(kind, SendingRow) else fields - fixed:
        row: Any = Of.__new__(Of)
        if kind is TurnsRow:
            TurnsRow.__init__(row, row, last(row), 8)  # nothing is there: it goes first
        elif issubclass(kind, SendingRow):
            turns: Any = TurnsRow(None, None, 0)  # type: ignore[arg-type]
            SendingRow.__init__(row, turns, row, None, 8, last(row), 8, bytes)  # type: ignore[arg-type]
        else:
            row.ended = True
            setattr(row, next(name for name in fields - fixed if name != field), row)  # the cycle
        if field not in fixed:
            setattr(row, field, last(row))
        assert LAST
        del row
        gc.collect()
        assert all(reference() is None for reference in LAST), field
        LAST.clear()


async def test_what_a_pointer_depends_on_is_fixed(ring: AsyncRing, pair: Pair) -> None:
    """What keeps the memory of the core's structures can neither be replaced nor deleted."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:
            rows: list[tuple[Any, str]] = [(connection._sending, name) for name in ("raw", "_group", "_driver")]
            rows += [(ring._bound(), name) for name in ("_raw", "loop", "inflight")]
            for row, name in rows:
                with pytest.raises(AttributeError):
                    setattr(row, name, None)
                with pytest.raises(AttributeError):
                    delattr(row, name)


async def test_what_is_no_request(ring: AsyncRing) -> None:
    """What got among the requests in flight and is none is refused, and harms no other."""
    driver = ring._bound()
    number = driver.next_number() + 1
    driver.inflight[number] = "no request"  # type: ignore[assignment]
    task = asyncio.create_task(ring.nop())
    await asyncio.sleep(0)
    real, driver.inflight[number] = driver.inflight[number], "no request"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="has not the row"):
        driver._turn(0)
    driver.inflight[number] = real
    await task


async def test_weak_references_to_a_lease(ring: AsyncRing, pair: Pair) -> None:
    """They are dead when it is: who asks them later meets no freed memory."""
    with group_of(ring) as group:
        references = []
        for _ in range(10):
            pair[1].send(b"x")
            chunk = await ring.recv(pair[0], group)
            references.append(weakref.ref(chunk))
            chunk.release()
            del chunk
        assert [reference() for reference in references] == [None] * 10


# ---- what leaks --------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since Python 3.12 these are not counted")
async def test_references_are_balanced(ring: AsyncRing, pair: Pair) -> None:
    """A thousand messages, reads and cancellations hold no more references than ten: to None, True, 0 and types."""
    with group_of(ring) as group:
        async with Connection(ring, pair[0], group) as connection:

            async def some(count: int) -> None:
                for _ in range(count):
                    pair[1].send(b"ping")
                    chunk = await connection.receive()
                    connection.write(chunk)
                    connection.write(b"pong")
                    await connection.drain()
                    await connection.send()
                    assert pair[1].recv(100) == b"pingpong"
                    task = asyncio.create_task(connection.receive())
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    await ring.nop()
                    end_of_stream()

            shared: list[Any] = [
                None,
                True,
                False,
                0,
                64,
                ring,
                group,
                group.arena,
                type(end_of_stream()),
                Receiving,
                group.raw,
            ]
            shared += [type(aiter(connection).__anext__()), type(connection.drain())]
            await some(10)
            gc.collect()
            before = [sys.getrefcount(thing) for thing in shared]
            await some(1000)
            gc.collect()
            after = [sys.getrefcount(thing) for thing in shared]
            assert all(abs(now - then) < 200 for now, then in zip(after, before, strict=True)), (before, after)


# ---- bytes for the kernel to fill --------------------------------------------------------------


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("size", [1, 2, 4096, 1 << 20])
def test_an_object_of_its_own(size: int) -> None:
    """Each call makes another object, which holds what is written to it."""
    one, other = new_bytes(size), new_bytes(size)
    assert one is not other
    for data, byte in ((one, b"x"), (other, b"y")):
        ffi.memmove(ffi.from_buffer(data), byte * size, size)
    assert one == b"x" * size
    assert other == b"y" * size


@pytest.mark.needs_no_ring
def test_sizes_that_cannot_be() -> None:
    """Sizes that bytes() refuses are refused in the same way."""
    assert new_bytes(0) == b""
    with pytest.raises(ValueError, match="negative"):
        new_bytes(-1)
    with pytest.raises(TypeError):
        new_bytes("1")  # type: ignore[arg-type]
    with pytest.raises((MemoryError, OverflowError)):
        new_bytes(sys.maxsize)


@pytest.mark.needs_no_ring
def test_arguments_that_are_no_numbers() -> None:
    """What the quick read is called with wrongly is an error; a number that is too large is left to the request."""
    row = FileRow()
    for wrong in ((), (1,), (1, 2, 3), ("1", 0), (1, None)):
        with pytest.raises(TypeError):
            row.read_at_once(*wrong)
    row.cached = True
    for size, offset in ((1 << 70, 0), (1, 1 << 70), (0, 0), (-1, 0), (1, -1), (1, 0)):
        assert row.read_at_once(size, offset) == b""


@pytest.mark.needs_no_ring
def test_a_request_by_its_names() -> None:
    """A request takes what it is made of by position and by name, and nothing else."""
    request = Request(5, hold="hold")
    assert (request.fd, request.file, request.hold, request.lease) == (5, None, "hold", None)
    assert (request.result, request.flags, request.ended, request.waiter) == (0, 0, False, None)
    assert Request().fd == -1
    with pytest.raises(TypeError):
        Request(1, 2, 3, 4, 5)  # type: ignore[call-arg, arg-type]
    assert isinstance(request, RequestRow)


# ---- what a read returns -----------------------------------------------------------------------


async def test_reading_is_a_coroutine(ring: AsyncRing, tmp_path: Path) -> None:
    """A read can be made a task of, waited for with a limit, given its arguments by name; and is awaited once."""
    data = bytes(range(256)) * 512
    (tmp_path / "file").write_bytes(data)
    async with aiouring.open(tmp_path / "file", "rb", ring=ring) as opened:
        file: Any = opened
        task: asyncio.Task[bytes] = asyncio.create_task(file.read_at(size=100, offset=7))
        assert await task == data[7:107]
        assert await asyncio.wait_for(file.read(size=65_536), 5) == data[:65_536]
        reading = file.read(10)
        assert await reading == data[65_536:65_546]
        with pytest.raises(RuntimeError, match="awaited already"):
            await reading
        for wrong in ((), (1,), (1, 2, 3)):
            with pytest.raises(TypeError):
                file.read_at(*wrong)
        with pytest.raises(TypeError):
            file.read(1, size=1)
        with pytest.raises(TypeError):
            file.read(length=1)
        with pytest.raises(TypeError):
            type(reading)()


async def test_a_read_that_never_began_moves_nothing(ring: AsyncRing, tmp_path: Path) -> None:
    """What is dropped, closed, or cancelled before its first step has neither read nor moved the position."""
    data = bytes(range(256)) * 512
    (tmp_path / "file").write_bytes(data)
    async with aiouring.open(tmp_path / "file", "rb", ring=ring) as opened:
        file: Any = opened
        for size in (10, 65_536):
            file.read(size)
            file.read(size).close()
            with pytest.raises(ZeroDivisionError):
                file.read(size).throw(ZeroDivisionError())
            task = asyncio.create_task(file.read(size))
            task.cancel()
            await asyncio.wait([task])
            assert await file.tell() == 0


async def test_reading_by_hand(ring: AsyncRing, tmp_path: Path) -> None:
    """One that waits is thrown into and closed as the coroutine that it handed over to."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", 0, ring=ring) as file:
        for end in ("throw", "close"):
            reading: Any = file.read(10)
            assert isinstance(next(reading), asyncio.Future)
            if end == "close":
                reading.close()
            else:
                with pytest.raises(ZeroDivisionError):
                    reading.throw(ZeroDivisionError())
            await asyncio.sleep(0)
        os.write(writer, b"data")
        os.close(writer)
        assert await file.read(10) == b"data"
        assert await file.read(10) == b""


async def test_large_reads_in_order(ring: AsyncRing, tmp_path: Path) -> None:
    """Large and small reads, ahead and past what is read ahead, by many tasks: each byte comes once, in order."""
    data = random.Random(4).randbytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    choose = random.Random(5)
    sizes = [choose.choice([1, 100, 5_000, 32_767, 32_768, 65_536, 300_000]) for _ in range(60)]
    async with aiouring.open(tmp_path / "file", "rb", ring=ring) as file:
        parts = await asyncio.gather(*(file.read(size) for size in sizes))
        assert b"".join(parts) == data[: sum(map(len, parts))]
        assert [len(part) for part in parts] == [
            min(size, max(0, len(data) - sum(sizes[:at]))) for at, size in enumerate(sizes)
        ]
        rest = await file.read()
        assert b"".join(parts) + rest == data
