"""Tests of ReceiveStream: leaving it in every way loses nothing, and the socket is free for the next receive."""

import asyncio
import os
import socket

import pytest
from conftest import RingFactory

import aiouring
from aiouring import _features

Pair = tuple[socket.socket, socket.socket]


async def test_async_for_until_the_end(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """The loop ends with the stream."""
    group = ring.register_buffer_ring(count=8, size=4)
    pair[1].send(b"aaaabbbbcc")
    pair[1].shutdown(socket.SHUT_WR)
    got = []
    async for chunk in ring.recv_multishot(pair[0], group):
        with chunk:
            got.append(bytes(chunk.view))
    assert b"".join(got) == b"aaaabbbbcc"


@pytest.mark.parametrize("leave", ["break", "aclose", "with"])
async def test_what_was_not_taken_is_the_next_receives(ring: aiouring.AsyncRing, pair: Pair, leave: str) -> None:
    """Leaving the loop early, by any door, keeps what arrived, in order, for the next receive of any kind."""
    group = ring.register_buffer_ring(count=8, size=4)
    pair[1].send(b"aaaabbbbcccc")
    if leave == "break":
        async for chunk in ring.recv_multishot(pair[0], group):
            chunk.release()
            break
    elif leave == "aclose":
        stream = ring.recv_multishot(pair[0], group)
        (await anext(stream)).release()
        await stream.aclose()
        await stream.aclose()
    else:
        async with ring.recv_multishot(pair[0], group) as stream:
            (await anext(stream)).release()
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"bbbb"
    memory = bytearray(8)
    assert await ring.recv_into(pair[0], memory) == 4
    assert memory[:4] == b"cccc"
    pair[1].send(b"dddd")
    async with ring.recv_multishot(pair[0], group) as stream:
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"dddd"
    assert group.statistics().in_use == 0


async def test_a9_timeouts_lose_nothing(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Waiting with a timeout, over and over, sees every byte once."""
    group = ring.register_buffer_ring(count=8, size=16)
    whole = b""
    async with ring.recv_multishot(pair[0], group) as stream:
        for number in range(50):
            try:
                async with asyncio.timeout(0):
                    chunk = await anext(stream)
            except TimeoutError:
                pair[1].send(b"%03d " % number)
            else:
                with chunk:
                    whole += bytes(chunk.view)
        pair[1].shutdown(socket.SHUT_WR)
        async for chunk in stream:
            with chunk:
                whole += bytes(chunk.view)
    assert whole == b"".join(b"%03d " % number for number in range(50) if b"%03d " % number in whole)
    assert whole.split() == sorted(whole.split())


async def test_the_socket_is_busy(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """While a stream has the socket, other receives, streams and connections are refused; two readers as well."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0], group) as stream:
        with pytest.raises(aiouring.ResourceBusyError):
            await ring.recv(pair[0], group)
        with pytest.raises(aiouring.ResourceBusyError):
            await ring.recv_into(pair[0], bytearray(4))
        with pytest.raises(aiouring.ResourceBusyError):
            ring.recv_multishot(pair[0], group)
        with pytest.raises(aiouring.ResourceBusyError):
            aiouring.Connection(ring, pair[0], group)
        first = asyncio.ensure_future(anext(stream))
        await ring.nop()
        with pytest.raises(aiouring.ResourceBusyError):
            await anext(stream)
        pair[1].send(b"x")
        (await first).release()


async def test_a_bare_descriptor(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A number is as good as a socket."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0].fileno(), group) as stream:
        pair[1].send(b"hello")
        with await anext(stream) as chunk:
            assert bytes(chunk.view) == b"hello"


async def test_cancel_and_close_of_the_socket_end_the_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """ring.cancel() and ring.close() on the socket are heard of by the reader."""
    group = ring.register_buffer_ring(count=8, size=16)
    stream = ring.recv_multishot(pair[0], group)
    await ring.nop()
    assert await ring.cancel(pair[0]) == 1
    with pytest.raises(OSError, match="cancel"):
        await anext(stream)
    await stream.aclose()
    stream = ring.recv_multishot(pair[0], group)
    await ring.nop()
    await ring.close(pair[0])
    with pytest.raises(OSError, match="cancel"):
        await anext(stream)
    await stream.aclose()


@pytest.mark.parametrize("wrong", [0, -1])
async def test_bad_max_pending(ring: aiouring.AsyncRing, pair: Pair, wrong: int) -> None:
    """At least one chunk must be able to wait."""
    group = ring.register_buffer_ring(count=8, size=16)
    with pytest.raises(ValueError, match=f"max_pending={wrong}"):
        ring.recv_multishot(pair[0], group, max_pending=wrong)
    with pytest.raises(TypeError, match="BufferRing"):
        ring.recv_multishot(pair[0], "group")  # type: ignore[call-overload]


async def test_closing_ends_a_reader(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A task that waits for the next chunk when another closes the stream hears of it; its data is the next's."""
    group = ring.register_buffer_ring(count=8, size=16)
    stream = ring.recv_multishot(pair[0], group)
    reading = asyncio.ensure_future(anext(stream))
    await ring.nop()
    await stream.aclose()
    async with asyncio.timeout(10):
        for waiting in (reading, anext(stream)):
            with pytest.raises(OSError, match="the stream was closed"):
                await waiting
    pair[1].send(b"later")
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"later"


async def test_h1_leftovers_are_never_another_files(ring: aiouring.AsyncRing) -> None:
    """What a stream did not hand out when its socket was closed is not given to the next socket of that number."""
    group = ring.register_buffer_ring(count=8, size=16)
    left, right = socket.socketpair()
    number = left.fileno()
    right.send(b"secret")
    stream = ring.recv_multishot(left, group)
    await ring.nop()
    await ring.close(left)
    ends = sorted(socket.socketpair(), key=lambda end: end.fileno() != number)
    assert ends[0].fileno() == number
    await stream.aclose()
    ends[1].send(b"mine")
    with await ring.recv(ends[0], group) as chunk:
        assert bytes(chunk.view) == b"mine"
    for end in (right, *ends):
        end.close()


async def test_h1_a_stream_goes_on_with_its_own_file_only(ring: aiouring.AsyncRing) -> None:
    """A stream by number that paused, and whose number is another socket's by then, ends with EBADF."""
    group = ring.register_buffer_ring(count=16, size=4)
    left, right = socket.socketpair()
    number = left.detach()
    right.send(b"aaaabbbbccccdddd")
    stream = ring.recv_multishot(number, group, max_pending=2)
    for _ in range(5):
        await ring.nop()
    await ring.close(number)
    ends = sorted(socket.socketpair(), key=lambda end: end.fileno() != number)
    assert ends[0].fileno() == number
    ends[1].send(b"mine")
    with pytest.raises(OSError, match="Bad file descriptor|[Cc]ancel"):
        while True:
            with await anext(stream) as chunk:
                assert bytes(chunk.view) != b"mine"
    await stream.aclose()
    assert ends[0].recv(10) == b"mine"
    for end in (right, *ends):
        end.close()


async def test_a_pipe_is_refused(ring: aiouring.AsyncRing) -> None:
    """What is no socket is refused, and no descriptor is left behind."""
    group = ring.register_buffer_ring(count=4, size=64)
    ends = os.pipe()
    with pytest.raises(OSError, match="non-socket"):
        ring.recv_multishot(ends[0], group)
    for end in ends:
        os.close(end)


async def test_datagrams_stay_apart(ring: aiouring.AsyncRing) -> None:
    """Datagrams that nobody took are the next receives', one each."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    group = ring.register_buffer_ring(count=8, size=64)
    with left, right:
        for message in (b"one", b"two", b"three"):
            right.send(message)
        async with ring.recv_multishot(left, group):
            await ring.nop()
        with await ring.recv(left, group) as chunk:
            assert bytes(chunk.view) == b"one"
        async with ring.recv_multishot(left, group) as stream:
            for message in (b"two", b"three"):
                with await anext(stream) as chunk:
                    assert bytes(chunk.view) == message


@pytest.mark.parametrize("end", ["aclose", "ring", "unregister", "cancel"])
async def test_e1_ended_before_there_was_room(new_ring: RingFactory, end: str) -> None:
    """Streams that found the submission queue full end like those that did not, whatever ends them."""
    ring = await new_ring(entries=4)
    group = ring.register_buffer_ring(count=4, size=64)
    pairs = [socket.socketpair() for _ in range(12)]
    streams = [ring.recv_multishot(left, group) for left, _ in pairs]
    readers = [asyncio.ensure_future(anext(stream)) for stream in streams]
    async with asyncio.timeout(10):
        if end == "ring":
            await ring.aclose()
        elif end == "unregister":
            group.unregister()
        elif end == "cancel":
            await asyncio.gather(*(ring.cancel(left) for left, _ in pairs))
        else:
            await asyncio.gather(*(stream.aclose() for stream in streams))
        await asyncio.wait(readers)
        for reader in readers:
            expected = aiouring.RingClosedError if end in ("ring", "unregister") else OSError
            assert isinstance(reader.exception(), expected), reader
        for stream in streams:
            await stream.aclose()
    for left, right in pairs:
        left.close()
        right.close()


async def test_a_kernel_without_it(ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no multishot receive the error names the version, and the socket is left as it was."""
    group = ring.register_buffer_ring(count=8, size=16)
    monkeypatch.setattr(_features, "_here", frozenset())
    with pytest.raises(aiouring.UnsupportedKernelError, match=r"multishot receive: needs Linux 6\.0"):
        ring.recv_multishot(pair[0], group)
    with pytest.raises(aiouring.UnsupportedKernelError, match=r"multishot receive: needs Linux 6\.0"):
        aiouring.Connection(ring, pair[0], group)
    assert pair[0].fileno() >= 0
    pair[1].send(b"x")
    with await ring.recv(pair[0], group) as chunk:
        assert len(chunk) == 1


async def test_empty_datagrams_that_nobody_took_are_kept(ring: aiouring.AsyncRing) -> None:
    """Each is the next receive's, in its place, whichever kind of receive that is."""
    group = ring.register_buffer_ring(count=8, size=256)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        sent = [b"", b"one", b"", b"", b"two", b"", b"three"]
        async with ring.recv_multishot(left, group, max_pending=16) as stream:
            for message in sent:
                right.send(message)
            while stream.pending < len(sent):
                await ring.nop()
        with await ring.recv(left, group) as chunk:
            assert bytes(chunk.view) == sent[0]
        memory = bytearray(10)
        assert [await ring.recv_into(left, memory) for _ in range(2)] == [3, 0]
        async with ring.recv_multishot(left, group) as stream:
            got = []
            for _ in range(2):
                with await anext(stream) as chunk:
                    got.append(bytes(chunk.view))
            assert got == sent[3:5]
        async with ring.recvmsg_multishot(left, group) as messages:
            for expected in sent[5:]:
                with await anext(messages) as received:
                    assert bytes(received.view) == expected


async def test_a_receive_of_no_bytes_leaves_what_is_kept(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """It returns 0 at once, and takes nothing of what nobody took before."""
    group = ring.register_buffer_ring(count=8, size=64)
    async with ring.recv_multishot(pair[0], group) as stream:
        pair[1].send(b"kept")
        while not stream.pending:
            await ring.nop()
    assert await ring.recv_into(pair[0], bytearray()) == 0
    memory = bytearray(10)
    assert await ring.recv_into(pair[0], memory) == 4
