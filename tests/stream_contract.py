"""The contract of everything of ours that is a stream of bytes with two ends: `check_stream(make_pair)`.

Whatever passes it can be used where a `Connection` is: sends and receives from several tasks, half close, close and
abort at any moment, cancelling anywhere, and bad arguments that leave it as it was.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Protocol

import pytest

import aiouring


class Stream(Protocol):
    """One end."""

    async def receive(self) -> Any: ...
    async def receive_exactly(self, count: int) -> bytes: ...
    async def receive_until(self, separator: bytes, *, limit: int = ...) -> bytes: ...
    async def send(self, *parts: Any) -> None: ...
    def write(self, data: Any) -> None: ...
    async def drain(self) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def abort(self) -> None: ...
    async def wait_closed(self) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *_: Any) -> None: ...


#: Two ends that are connected; what one sends the other receives.
MakePair = Callable[[], Awaitable[tuple[Stream, Stream]]]

#: One part of the contract.
Check = Callable[[Stream, Stream], Awaitable[None]]

#: More than any pair of sockets takes while nobody reads.
FLOOD = b"x" * 20_000_000


async def check_stream(make_pair: MakePair, *, leaving_out: Sequence[Check] = ()) -> None:
    """Hold a kind of stream to the contract; the failure says which part was broken."""
    for check in CHECKS:
        if check in leaving_out:
            continue
        left, right = await make_pair()
        try:
            async with asyncio.timeout(20):
                await check(left, right)
        except BaseException as error:
            error.add_note(f"in {check.__name__}()")
            raise
        finally:
            for end in (left, right):
                end.abort()
                await end.aclose()
                await end.wait_closed()


async def read_all(stream: Stream) -> bytes:
    """Everything to the end of the stream."""
    got = bytearray()
    while chunk := await stream.receive():
        with chunk:
            got += chunk.view
    return bytes(got)


async def stuck(stream: Stream) -> "asyncio.Task[None]":
    """A send that waits for a peer who does not read."""
    sending = asyncio.ensure_future(stream.send(FLOOD))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not sending.done(), "20 MB went nowhere"
    return sending


async def both_ways_at_once(left: Stream, right: Stream) -> None:
    """Messages of all sizes in both directions arrive whole and in order; empty ones are nothing."""
    random = Random(1)

    async def talk(stream: Stream, messages: list[bytes]) -> None:
        for message in messages:
            await stream.send(message)
        await stream.send_eof()

    sizes = [0, 1, 2, 100, 4096, 70_000, 0, 300_000, 1]
    one, other = ([random.randbytes(size) for size in sizes] for _ in range(2))
    _, _, got, got_back = await asyncio.gather(talk(left, one), talk(right, other), read_all(right), read_all(left))
    assert got == b"".join(one)
    assert got_back == b"".join(other)


async def simultaneous_sends(left: Stream, right: Stream) -> None:
    """What several tasks send at once all arrives, the parts of each together."""
    words = [bytes([letter]) * 50_000 for letter in b"abcdef"]
    reading = asyncio.ensure_future(read_all(right))
    await asyncio.gather(*(left.send([word[:1], word[1:-1]], word[-1:]) for word in words))
    await left.send_eof()
    got = await reading
    assert len(got) == sum(map(len, words))
    assert {got[at : at + 50_000] for at in range(0, len(got), 50_000)} == set(words)


async def simultaneous_receives(left: Stream, right: Stream) -> None:
    """A second receive of any kind is refused while one waits, and takes nothing from it."""
    for first in (right.receive, lambda: right.receive_exactly(5), lambda: right.receive_until(b"o")):
        waiting = asyncio.ensure_future(first())
        await asyncio.sleep(0)
        for second in (right.receive, lambda: right.receive_exactly(1), lambda: right.receive_until(b"x")):
            with pytest.raises(aiouring.ResourceBusyError):
                await second()
        await left.send(b"hello")
        got = await waiting
        if not isinstance(got, bytes):
            with got:
                got = bytes(got.view)
        assert got == b"hello"


async def half_close(left: Stream, right: Stream) -> None:
    """After send_eof() the peer reads to the end, and still can send; sending more is refused."""
    left.write(b"question")
    await left.send_eof()
    assert await read_all(right) == b"question"
    assert not await right.receive()
    with pytest.raises(asyncio.IncompleteReadError):
        await right.receive_exactly(1)
    await right.send(b"answer")
    assert await left.receive_exactly(6) == b"answer"
    with pytest.raises(OSError):
        for _ in range(100):
            await left.send(b"more")
            await asyncio.sleep(0)
    await right.send_eof()
    assert not await left.receive()


async def receive_before_the_end(left: Stream, right: Stream) -> None:
    """What was sent before a close can be received after it."""
    left.write(b"farewell")
    await left.aclose()
    assert await right.receive_until(b"e") == b"fare"
    assert await right.receive_exactly(4) == b"well"
    assert not await right.receive()


async def use_after_close(left: Stream, right: Stream) -> None:
    """A closed stream refuses everything but to be closed."""
    await left.aclose()
    await left.aclose()
    left.abort()
    for use in (
        left.receive,
        lambda: left.receive_exactly(1),
        lambda: left.receive_until(b"x"),
        lambda: left.send(b"late"),
        left.send,
        left.drain,
        left.send_eof,
    ):
        with pytest.raises(OSError):
            await use()
    with pytest.raises(OSError):
        left.write(b"late")
    assert not await right.receive()


async def close_while_a_receive_waits(left: Stream, right: Stream) -> None:
    """Whoever waits for data is told."""
    waiting = asyncio.ensure_future(left.receive())
    await asyncio.sleep(0)
    await left.aclose()
    with pytest.raises(ConnectionAbortedError):
        await waiting
    framed = asyncio.ensure_future(right.receive_exactly(100))
    await asyncio.wait([framed])
    assert isinstance(framed.exception(), asyncio.IncompleteReadError)


async def abort_while_a_receive_waits(left: Stream, right: Stream) -> None:
    """So is a framed receive by an abort; and whoever waits for the close."""
    framed = asyncio.ensure_future(left.receive_until(b"\n"))
    closed = asyncio.ensure_future(left.wait_closed())
    await asyncio.sleep(0)
    assert not closed.done()
    left.abort()
    with pytest.raises(ConnectionAbortedError):
        await framed
    await closed


async def abort_while_a_send_waits(left: Stream, right: Stream) -> None:
    """A send to a peer who does not read ends with an abort."""
    sending = await stuck(left)
    left.abort()
    with pytest.raises(ConnectionAbortedError):
        await sending


async def the_peer_goes_while_a_send_waits(left: Stream, right: Stream) -> None:
    """A send to a peer who is gone fails, and so do all after it."""
    sending = await stuck(left)
    right.abort()
    with pytest.raises(ConnectionError):
        await sending
    with pytest.raises(ConnectionError):
        await left.send(b"more")


async def back_pressure(left: Stream, right: Stream) -> None:
    """A sender waits for its reader, and loses nothing by that."""
    sending = await stuck(left)
    assert await right.receive_exactly(len(FLOOD)) == FLOOD
    await sending


async def cancelled_receives(left: Stream, right: Stream) -> None:
    """Receives that are cancelled at any moment lose nothing."""
    random = Random(2)
    data = bytes(random.choice(b"ab\n") for _ in range(20_000))

    async def feed() -> None:
        at = 0
        while at < len(data):
            size = random.choice((1, 10, 500))
            await left.send(data[at : at + size])
            at += size
            for _ in range(random.randrange(6)):  # so that receives find part of what they want, and wait on
                await asyncio.sleep(0)
        await left.send_eof()

    async def plain() -> bytes:
        with await right.receive() as chunk:
            return bytes(chunk.view)

    feeding, at = asyncio.ensure_future(feed()), 0
    while at < len(data):
        count = min(random.choice((1, 20, 2000)), len(data) - at)
        way = random.choice(
            (plain, lambda count=count: right.receive_exactly(count), lambda: right.receive_until(b"\n"))
        )
        task = asyncio.ensure_future(way())
        for _ in range(random.randrange(12)):
            await asyncio.sleep(0)
        if random.random() < 0.4:
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            continue
        error = task.exception()
        got = error.partial if isinstance(error, asyncio.IncompleteReadError) else task.result()
        assert got == data[at : at + len(got)], f"at byte {at}"
        at += len(got)
    await feeding
    assert not await right.receive()


async def cancelled_sends(left: Stream, right: Stream) -> None:
    """What was written by a send that is cancelled is still sent, once; one that never began sends nothing."""
    expected = b""
    for number in range(20):
        message = bytes([65 + number]) * 30_000
        task = asyncio.ensure_future(left.send(message))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        expected += message if number % 4 else b""
        assert await right.receive_exactly(30_000 if number % 4 else 0) == (message if number % 4 else b"")
    draining = await stuck(left)
    for wait in (left.drain, left.send_eof):
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    assert await right.receive_exactly(len(FLOOD)) == FLOOD
    await draining
    await left.send(b"!")
    assert await right.receive_exactly(1) == b"!"


async def cancelled_close(left: Stream, right: Stream) -> None:
    """A close that is cancelled closes at once: what was not sent by then is lost, on purpose."""
    sending = await stuck(left)
    closing = asyncio.ensure_future(left.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ConnectionAbortedError):
        await sending
    await left.wait_closed()
    try:
        assert len(await read_all(right)) < len(FLOOD)
    except (ConnectionResetError, ssl.SSLEOFError):
        return


async def leaving_a_block(left: Stream, right: Stream) -> None:
    """The end of `async with` sends what was written; an exception does not."""
    async with left:
        left.write(b"x" * 10_000)
    assert await right.receive_exactly(10_000) == b"x" * 10_000
    with pytest.raises(KeyError):
        async with right:
            right.write(FLOOD)
            raise KeyError
    with pytest.raises(ConnectionAbortedError):
        await right.send()


async def bad_sends(left: Stream, right: Stream) -> None:
    """What has no bytes is refused with everything beside it, and the stream is as it was."""
    for wrong in ("text", 5, None, ["text"], [b"never sent", 5]):
        with pytest.raises(TypeError):
            await left.send(wrong)
    with pytest.raises(TypeError):
        left.write("text")
    await left.send(b"fine")
    assert await right.receive_exactly(4) == b"fine"


async def bad_receives(left: Stream, right: Stream) -> None:
    """Bad arguments are refused by kind, and the stream is as it was."""
    with pytest.raises(ValueError):
        await left.receive_exactly(-1)
    with pytest.raises(ValueError):
        await left.receive_until(b"")
    with pytest.raises(ValueError):
        await left.receive_until(b"x", limit=0)
    bad: Any
    for bad in ("x", None, 5.5):
        with pytest.raises(TypeError):
            await left.receive_exactly(bad)
    for bad in ("x", None, 5, ""):
        with pytest.raises(TypeError):
            await left.receive_until(bad)
    await right.send(b"fine")
    assert await left.receive_exactly(4) == b"fine"


CHECKS: list[Check] = [
    both_ways_at_once,
    simultaneous_sends,
    simultaneous_receives,
    half_close,
    receive_before_the_end,
    use_after_close,
    close_while_a_receive_waits,
    abort_while_a_receive_waits,
    abort_while_a_send_waits,
    the_peer_goes_while_a_send_waits,
    back_pressure,
    cancelled_receives,
    cancelled_sends,
    cancelled_close,
    leaving_a_block,
    bad_sends,
    bad_receives,
]
