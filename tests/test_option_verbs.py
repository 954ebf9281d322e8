"""Tests of socket options through the ring: the same answers as the socket's own methods."""

import asyncio
import errno
import os
import socket
import struct

import pytest
from conftest import RESTRICTED, RingFactory

import aiouring
from aiouring import Opcode, Restrictions

pytestmark = pytest.mark.needs("socket options")


@pytest.fixture
async def ring(new_ring: RingFactory) -> aiouring.AsyncRing:
    """A ring that may send commands."""
    made: aiouring.AsyncRing = await new_ring(
        restrictions=Restrictions.default(Opcode.URING_CMD) if RESTRICTED else None
    )
    return made


async def test_ints(ring: aiouring.AsyncRing) -> None:
    """What is set is what the socket's own getsockopt() says, and the other way round, on every level and family."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as sock:
                for option in (socket.SO_REUSEADDR, socket.SO_KEEPALIVE, socket.SO_PRIORITY):
                    for value in (1, 0):
                        await ring.setsockopt(sock, socket.SOL_SOCKET, option, value)
                        assert sock.getsockopt(socket.SOL_SOCKET, option) == value
                        assert await ring.getsockopt(sock, socket.SOL_SOCKET, option) == value
                assert await ring.getsockopt(sock.fileno(), socket.SOL_SOCKET, socket.SO_TYPE) == kind
    with socket.socket() as sock:
        await ring.setsockopt(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_bytes_and_none(ring: aiouring.AsyncRing) -> None:
    """Values of several fields as bytes, of their true length; no value at all; memory that changes meanwhile."""
    with socket.socket() as sock:
        value = bytearray(struct.pack("@ii", 1, 7))
        setting = asyncio.ensure_future(ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, value))
        await asyncio.sleep(0)
        value.clear()  # it was copied
        await setting
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("@ii", 1, 7)
        assert await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, 100) == struct.pack("@ii", 1, 7)
        assert await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, 3) == struct.pack("@i", 1)[:3]
        for name in ("ours", "theirs"):
            outcome: object = None
            try:
                if name == "ours":
                    await ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, None, 4)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, None, 4)
            except OSError as error:
                outcome = error.errno
            assert outcome == errno.EFAULT


async def test_direct_descriptors(ring: aiouring.AsyncRing) -> None:
    """For them there is no other way."""
    with ring.register_files_sparse(2):
        sock = await ring.socket_direct(socket.AF_INET, socket.SOCK_DGRAM)
        await ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        assert await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
        await ring.close(sock)
        with pytest.raises(OSError) as caught:
            await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_DOMAIN)
        assert caught.value.errno == errno.EBADF


async def test_how_much_is_there(ring: aiouring.AsyncRing) -> None:
    """SIOCINQ and SIOCOUTQ: what can be read, and what the peer has not got yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as left:
        right = listener.accept()[0]
        with right:
            assert (await ring.siocinq(right), await ring.siocoutq(right)) == (0, 0)
            left.send(b"hello")
            assert await ring.siocinq(right) == 5
            left.setblocking(False)
            total = 5
            with pytest.raises(BlockingIOError):
                while True:
                    total += left.send(bytes(100000))
            assert 0 < await ring.siocoutq(left) < total
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"one", receiver.getsockname())
        sender.sendto(b"three", receiver.getsockname())
        assert await ring.siocinq(receiver) == 3


async def test_what_is_refused(ring: aiouring.AsyncRing) -> None:
    """The kernel's refusals with their errno, the caller's mistakes before the kernel sees them."""
    with socket.socket() as sock:
        for level, option, number in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, errno.EOPNOTSUPP),
            (socket.SOL_SOCKET, 9999, errno.ENOPROTOOPT),
        ):
            with pytest.raises(OSError) as caught:
                await ring.getsockopt(sock, level, option)
            assert caught.value.errno == number
            assert ("only SOL_SOCKET can be read" in str(caught.value)) == (number == errno.EOPNOTSUPP)
        for size in (-1, 2**21):
            with pytest.raises(ValueError, match="size="):
                await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, size)
        with pytest.raises(ValueError, match="value=None"):
            await ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, None)
        with pytest.raises(TypeError):
            await ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, "text")
        with pytest.raises(OverflowError):
            await ring.setsockopt(sock, socket.SOL_SOCKET, socket.SO_LINGER, 2**40)
    reader, writer = os.pipe()
    with pytest.raises(OSError) as caught:
        await ring.getsockopt(reader, socket.SOL_SOCKET, socket.SO_TYPE)
    assert caught.value.errno == errno.EOPNOTSUPP
    os.close(reader)
    os.close(writer)
    left, right = socket.socketpair()
    with left, right, pytest.raises(OSError) as caught:
        await ring.siocinq(left)
    assert caught.value.errno == errno.EOPNOTSUPP


async def test_restrictions_must_allow_it(new_ring: RingFactory) -> None:
    """The default restrictions do not, and the error says what to give instead."""
    strict = await new_ring(restrictions=True)
    with socket.socket() as sock:
        with pytest.raises(PermissionError, match=r"URING_CMD \(.*Restrictions.default\(Opcode.URING_CMD\)"):
            await strict.getsockopt(sock, socket.SOL_SOCKET, socket.SO_TYPE)
        ring = await new_ring(restrictions=Restrictions.default(Opcode.URING_CMD))
        assert await ring.getsockopt(sock, socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
