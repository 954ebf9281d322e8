"""Tests of the verbs that make descriptors and direct descriptors, and of every other verb on a slot."""

import asyncio
import errno
import fcntl
import os
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory
from injected_faults import real_register, replaced
from registered_slots import agrees, kernel_slots, opened

import aiouring
from aiouring import AsyncRing
from aiouring._uring import lib


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


# ---- ordinary descriptors ------------------------------------------------------------------------


async def test_openat(ring: AsyncRing, tmp_path: Path) -> None:
    """Flags, mode and directory are the kernel's; the descriptor is close-on-exec."""
    old = os.umask(0o022)
    try:
        number = await ring.openat(tmp_path / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o664)
    finally:
        os.umask(old)
    assert os.fstat(number).st_mode & 0o777 == 0o644
    assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert await ring.write(number, b"hello", 0) == 5
    await ring.close(number)
    folder = await ring.openat(str(tmp_path), os.O_PATH | os.O_DIRECTORY)
    number = await ring.openat(b"new", dir_fd=folder)
    assert await ring.read(number, memory := bytearray(9), 0) == 5
    assert memory[:5] == b"hello"
    for made in (number, folder):
        os.close(made)


async def test_openat_refuses(ring: AsyncRing, tmp_path: Path) -> None:
    """What the kernel refuses is its error; what cannot be meant is not asked for."""
    with pytest.raises(FileNotFoundError):
        await ring.openat(tmp_path / "none")
    with pytest.raises(PermissionError if os.getuid() else IsADirectoryError):
        await ring.openat("/", os.O_RDWR)
    with pytest.raises(ValueError, match="null byte"):
        await ring.openat("a\0b")
    with pytest.raises(OSError, match="Bad file descriptor"):
        await ring.openat("x", dir_fd=9999)
    with pytest.raises(TypeError):
        await ring.openat(5)  # type: ignore[arg-type]
    with ring.register_files([0]) as files:
        with pytest.raises(TypeError, match="takes no direct descriptor for dir_fd"):
            await ring.openat("x", dir_fd=files[0])


async def test_socket(ring: AsyncRing, listener: socket.socket) -> None:
    """A socket made by the ring is the standard library's, and connects."""
    made = await ring.socket(socket.AF_INET, socket.SOCK_STREAM)
    assert (made.family, made.type, made.gettimeout()) == (socket.AF_INET, socket.SOCK_STREAM, 0)
    assert not made.get_inheritable()
    await ring.connect(made, listener.getsockname())
    with listener.accept()[0] as accepted:
        await ring.send_all(made, b"hi")
        assert accepted.recv(2) == b"hi"
    await ring.close(made)
    with pytest.raises(OSError) as caught:
        await ring.socket(999)
    assert caught.value.errno == errno.EAFNOSUPPORT


# ---- into the table (as liburing's open-direct-pick, file-alloc-range-hint, fd-install) -----------


async def test_the_kernel_picks_until_the_table_is_full(ring: AsyncRing, tmp_path: Path) -> None:
    """Every slot is picked once, then ENFILE; a slot that is closed is picked again."""
    for number in range(6):
        (tmp_path / str(number)).write_text(str(number))
    with ring.register_files_sparse(6) as files:
        made = [await ring.openat_direct(tmp_path / str(number)) for number in range(6)]
        assert sorted(descriptor.index for descriptor in made) == list(range(6))
        for number, descriptor in enumerate(made):
            assert await ring.read(descriptor, memory := bytearray(2)) == 1
            assert memory[:1] == str(number).encode()
        for verb in (
            ring.openat_direct("/dev/null"),
            ring.socket_direct(),
            ring.pipe_direct(),
            ring.files_update_alloc([0]),
        ):
            with pytest.raises(OSError, match=r"no slot is free in the range \(0, 6\)") as caught:
                await verb
            assert caught.value.errno == errno.ENFILE
        await ring.close(made[3])
        assert sorted(agrees(ring, files)) == [at for at in range(6) if at != made[3].index]
        assert (await ring.openat_direct("/dev/null")).index == made[3].index
        assert len(agrees(ring, files)) == 6


async def test_slots_are_no_descriptors(ring: AsyncRing, listener: socket.socket) -> None:
    """Where the process may have no more descriptors, files and connections still find slots."""
    with ring.register_files_sparse(4), socket.create_connection(listener.getsockname()):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
        filler = []
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    filler.append(os.dup(0))
            made = [
                await ring.openat_direct("/dev/null"),
                await ring.accept_direct(listener),
                await ring.socket_direct(),
            ]
            with pytest.raises(OSError) as caught:
                await ring.fixed_fd_install(made[0])
            assert caught.value.errno == errno.EMFILE
            with pytest.raises(OSError) as caught:
                await ring.openat("/dev/null")
            assert caught.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in filler:
                os.close(number)


async def test_a_slot_by_number(ring: AsyncRing) -> None:
    """A free slot is filled; one that holds a file is refused, and keeps it; update() replaces."""
    with ring.register_files_sparse(4) as files:
        made = await ring.openat_direct("/dev/null", os.O_RDWR, index=3)
        assert (made.index, kernel_slots(ring)) == (3, {3: "/dev/null"})
        for verb in (
            ring.openat_direct("/dev/zero", index=3),
            ring.socket_direct(index=3),
            ring.pipe_direct(index=2),
        ):
            with pytest.raises(aiouring.ResourceBusyError, match="slot 3 holds a file already"):
                await verb
        for index in (4, -1, 2**33):
            with pytest.raises(ValueError, match="not all in this table of 4"):
                await ring.openat_direct("/dev/zero", index=index)
        with pytest.raises(ValueError, match="not all in this table"):
            await ring.pipe_direct(index=3)
        assert agrees(ring, files) == {3: "/dev/null"}
        assert await ring.write(made, b"x", 0) == 1
        assert files.statistics() == aiouring.RegisteredFilesStatistics(4, 1, 0, 0, (0, 4))


async def test_failed_opens_leave_the_table_alone(ring: AsyncRing) -> None:
    """An error of the operation is that error, and the slot can be used at once."""
    with ring.register_files_sparse(2) as files:
        for index in (None, 1):
            with pytest.raises(FileNotFoundError):
                await ring.openat_direct("/nowhere/at/all", index=index)
            with pytest.raises(OSError) as caught:
                await ring.socket_direct(999, index=index)
            assert caught.value.errno == errno.EAFNOSUPPORT
            with pytest.raises(OSError):
                await ring.pipe_direct(0o1, index=index if index is None else 0)
        assert agrees(ring, files) == {}
        assert (files.statistics().busy, files.statistics().allocating) == (0, 0)
        assert (await ring.openat_direct("/dev/null", index=1)).index == 1


async def test_close_on_exec_has_no_meaning_for_a_slot(ring: AsyncRing) -> None:
    """The kernel refuses it with EINVAL; here the text says why."""
    with ring.register_files_sparse(2):
        for verb in (
            ring.openat_direct("/dev/null", os.O_CLOEXEC),
            ring.socket_direct(type=socket.SOCK_STREAM | socket.SOCK_CLOEXEC),
            ring.pipe_direct(os.O_CLOEXEC),
        ):
            with pytest.raises(ValueError, match="CLOEXEC: a slot"):
                await verb


async def test_without_a_table(ring: AsyncRing) -> None:
    """The verbs that need one say how to get it."""
    for verb in (
        ring.openat_direct("/dev/null"),
        ring.socket_direct(),
        ring.accept_direct(0),
        ring.pipe_direct(),
        ring.files_update(0, [0]),
        ring.files_update_alloc([0]),
    ):
        with pytest.raises(aiouring.RingClosedError, match="register_files_sparse"):
            await verb


async def test_the_allocation_range(ring: AsyncRing) -> None:
    """The kernel picks from the range only, finds it full while others are free, and follows when it moves."""
    with ring.register_files_sparse(10) as files:
        files.set_allocation_range(4, 3)
        assert {(await ring.openat_direct("/dev/null")).index for _ in range(3)} == {4, 5, 6}
        with pytest.raises(OSError, match=r"range \(4, 3\)") as caught:
            await ring.openat_direct("/dev/null")
        assert caught.value.errno == errno.ENFILE
        files[5].release()
        assert (await ring.openat_direct("/dev/null")).index == 5
        files.set_allocation_range(9, 1)
        assert (await ring.openat_direct("/dev/null")).index == 9
        files.set_allocation_range(0, 10)
        assert (await ring.openat_direct("/dev/null")).index in (0, 1, 2, 3, 7, 8)


async def test_pipes_and_what_goes_through_them(ring: AsyncRing) -> None:
    """Both ends are direct descriptors, wherever they lie; closing one ends the other."""
    with ring.register_files_sparse(4) as files:
        files.update(1, [0])
        for index in (2, None):
            if index is None:
                files.update(0, [None, 0, None, None])
            reader, writer = await ring.pipe_direct(os.O_NONBLOCK, index=index)
            assert index is None or (reader.index, writer.index) == (2, 3)
            assert await ring.write(writer, b"through") == 7
            assert await ring.read(reader, memory := bytearray(9)) == 7
            assert memory[:7] == b"through"
            await ring.close(writer)
            assert await ring.read(reader, memory) == 0
            await ring.close(reader)
        files.update(0, [0])
        with pytest.raises(OSError) as caught:
            files.update(2, [0])
            await ring.pipe_direct()
        assert caught.value.errno == errno.ENFILE, "one slot is not enough"
        assert list(agrees(ring, files)) == [0, 1, 2]


async def test_accept_and_connect_without_a_descriptor(ring: AsyncRing, listener: socket.socket) -> None:
    """Listener, client and server in slots: data both ways, and the connection's end."""
    with ring.register_files([listener, *[None] * 5]) as files:
        files.set_allocation_range(1, 3)
        for index in (None, 4):
            accepting = asyncio.create_task(ring.accept_direct(files[0], index=index))
            client = await ring.socket_direct()
            await ring.connect(client, listener.getsockname())
            server = await accepting
            assert (server.family, server.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert index is None or server.index == index
            await ring.send_all(client, b"ping")
            assert await ring.recv_into(server, memory := bytearray(8)) == 4
            assert memory[:4] == b"ping"
            await ring.close(client)
            assert await ring.recv_into(server, memory) == 0
            await ring.close(server)
        assert list(agrees(ring, files)) == [0]


async def test_connect_needs_the_family(ring: AsyncRing) -> None:
    """What was registered by number cannot be connected by an address of unknown kind."""
    with socket.socket() as sock, ring.register_files([sock.fileno()]) as files:
        with pytest.raises(ValueError, match="registered by number"):
            await ring.connect(files[0], ("127.0.0.1", 1))


async def test_installing_gives_an_ordinary_descriptor(ring: AsyncRing, tmp_path: Path) -> None:
    """The descriptor is of the same open file, close-on-exec unless asked otherwise, and outlives the slot."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with ring.register_files_sparse(2) as files:
        descriptor = await ring.openat_direct(tmp_path / "file")
        assert await ring.read(descriptor, bytearray(3)) == 3
        made = await ring.fixed_fd_install(descriptor)
        other = await ring.fixed_fd_install(descriptor, cloexec=False)
        assert fcntl.fcntl(made, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert not fcntl.fcntl(other, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.lseek(made, 0, os.SEEK_CUR) == 3
        await ring.close(descriptor)
        assert os.read(made, 2) == b"34"
        assert os.read(other, 2) == b"56"
        with pytest.raises(OSError, match="does not hold this file"):
            await ring.fixed_fd_install(descriptor)
        with pytest.raises(TypeError, match="DirectDescriptor is needed, not int"):
            await ring.fixed_fd_install(made)  # type: ignore[arg-type]
        files.update(0, [made])
        for number in (made, other):
            os.close(number)


# ---- updates by request (as liburing's file-update) ------------------------------------------------


async def test_files_update(ring: AsyncRing, tmp_path: Path) -> None:
    """Fills, replaces, removes and skips as update() does; old direct descriptors end, skipped ones do not."""
    numbers = [opened(tmp_path / name, name.encode()) for name in ("a", "b")]
    with ring.register_files([numbers[0], numbers[0], None, numbers[1]]) as files:
        first, kept = files[0], files[1]
        assert await ring.files_update(0, [numbers[1], files.SKIP, numbers[0], None]) == 4
        assert list(agrees(ring, files)) == [0, 1, 2]
        assert first.closed
        assert not kept.closed
        for descriptor, expected in zip(files, (b"b", b"a", b"a"), strict=True):
            assert await ring.read(descriptor, memory := bytearray(1), 0) == 1
            assert memory == expected
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_files_update_says_where_it_stopped(new_ring: RingFactory, place: int) -> None:
    """An io_uring among the files: what comes before it took effect, its slot is empty, the rest can be used again."""
    ring, other = await new_ring(), await new_ring()
    with ring.register_files([0] * 4) as files:
        before = files.slots()
        entries = [1, 1, 1]
        entries[place] = other._ring.fd
        with pytest.raises(aiouring.FilesUpdateError, match=f"slot {place} is empty now") as caught:
            await ring.files_update(0, entries)
        assert (caught.value.errno, caught.value.updated) == (errno.EBADF, place)
        assert sorted(agrees(ring, files)) == [at for at in range(4) if at != place]
        assert files.slots()[place + 1 :] == before[place + 1 :]
        assert all(now != then for now, then in zip(files.slots()[:place], before, strict=False))


async def test_files_update_refuses_what_is_closed(ring: AsyncRing) -> None:
    """A descriptor that is closed when the call is made changes nothing at all."""
    closed = os.dup(0)
    os.close(closed)
    with ring.register_files([0, 0]) as files:
        before = files.slots()
        with pytest.raises(OSError, match=rf"files\[1\] is descriptor {closed}"):
            await ring.files_update(0, [1, closed])
        for index, entries in ((2, [0]), (-1, [0]), (0, [])):
            with pytest.raises(ValueError):
                await ring.files_update(index, entries)
        assert files.slots() == before


async def test_files_update_alloc(new_ring: RingFactory) -> None:
    """As many as find a slot are returned, in order; those that do not, and what follows a bad file, are not."""
    ring, other = await new_ring(), await new_ring()
    with ring.register_files([None, 0, None, None]) as files:
        made = await ring.files_update_alloc([1, 2])
        assert len(made) == 2
        assert len(agrees(ring, files)) == 3
        assert len(await ring.files_update_alloc([1, 2])) == 1
        with pytest.raises(OSError, match="no slot is free"):
            await ring.files_update_alloc([1])
        files.update(0, [None] * 4)
        assert len(await ring.files_update_alloc([1, other._ring.fd, 1])) == 1
        with pytest.raises(OSError) as caught:
            await ring.files_update_alloc([other._ring.fd])
        assert caught.value.errno == errno.EBADF
        for entries in ([], [None], [files.SKIP]):
            with pytest.raises(ValueError, match="one or more files"):
                await ring.files_update_alloc(entries)
        assert len(agrees(ring, files)) == 1


async def test_unregistered_during_an_update(ring: AsyncRing) -> None:
    """An update whose table goes away before it is submitted changes nothing, and says so."""
    files = ring.register_files([0, 0])
    task = asyncio.create_task(ring.files_update(0, [1]))
    await asyncio.sleep(0)
    files.unregister()
    with pytest.raises(aiouring.RingClosedError, match="were unregistered"):
        await task
    with ring.register_files([0]) as again:
        assert list(agrees(ring, again)) == [0]


# ---- every verb takes a direct descriptor ----------------------------------------------------------


async def test_files_by_slot(ring: AsyncRing, tmp_path: Path) -> None:
    """read, write, read_fixed, write_fixed, fsync and poll; with offsets and at the file's own position."""
    with ring.register_files_sparse(2), ring.register_buffers(count=1, size=4096) as buffers:
        file = await ring.openat_direct(tmp_path / "file", os.O_CREAT | os.O_RDWR)
        assert await ring.write(file, b"0123456789", 0) == 10
        memory = bytearray(4)
        assert await ring.read(file, memory) == 4
        assert await ring.read(file, memory) == 4
        assert memory == b"4567"
        async with await buffers.acquire() as buffer:
            assert await ring.read_fixed(file, buffer, 5) == 5
            assert bytes(buffer.view[:5]) == b"56789"
            assert await ring.read_fixed(file, buffer) == 2
            buffer.view[:3] = b"abc"
            assert await ring.write_fixed(file, buffer, 10, length=3) == 3
        await ring.fsync(file)
        await ring.fsync(file, data_only=True)
        assert await ring.poll(file, select.POLLIN) & select.POLLIN
        with pytest.raises(OSError) as caught:
            await ring.recv_into(file, memory)
        assert caught.value.errno == errno.ENOTSOCK
    assert (tmp_path / "file").read_bytes() == b"0123456789abc"


async def test_sockets_by_slot(ring: AsyncRing) -> None:
    """recv, recv_into, send, send_all, poll and cancel."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_files([ours]) as files, ring.register_buffer_ring(count=2, size=64) as group:
        sock = files[0]
        assert await ring.send(sock, b"one") == 3
        await ring.send_all(sock, b"two")
        assert theirs.recv(16) == b"onetwo"
        theirs.send(b"three")
        assert await ring.poll(sock) == select.POLLIN
        with await ring.recv(sock, group) as chunk:
            assert bytes(chunk.view) == b"three"
        waiting = asyncio.create_task(ring.poll(sock))
        await ring.nop()
        assert await ring.cancel(sock) == 1
        with pytest.raises(OSError) as caught:
            await waiting
        assert caught.value.errno == errno.ECANCELED
        theirs.close()
        with await ring.recv(sock, group) as chunk:
            assert not chunk


async def test_streams_by_slot(ring: AsyncRing) -> None:
    """recv_multishot(): data, the end of the stream, and close() of the slot below it."""
    pairs = [socket.socketpair() for _ in range(2)]
    with ring.register_files([pair[0] for pair in pairs]) as files:
        with ring.register_buffer_ring(count=8, size=16) as group:
            async with ring.recv_multishot(files[0], group) as stream:
                for message in (b"one", b"two"):
                    pairs[0][1].send(message)
                    with await anext(stream) as chunk:
                        assert bytes(chunk.view) == message
                with pytest.raises(aiouring.ResourceBusyError):
                    await ring.recv_into(files[0], bytearray(1))
                pairs[0][1].close()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            async with ring.recv_multishot(files[1], group) as stream:
                await ring.nop()
                await ring.close(files[1])
                with pytest.raises(OSError) as caught:
                    await anext(stream)
                assert caught.value.errno == errno.ECANCELED
            files.update(1, [pairs[1][0].fileno()])
            with pytest.raises(ValueError, match="registered by number"):
                ring.recv_multishot(files[1], group)
    for pair in pairs:
        for end in pair:
            end.close()


async def test_h2_a_stream_is_not_armed_again_on_the_next_file(ring: AsyncRing) -> None:
    """The armed receive goes on with its file; armed again after the slot got another, it is EBADF."""
    ours, theirs = socket.socketpair()
    other, far = socket.socketpair()
    with ring.register_files([ours]) as files, ring.register_buffer_ring(count=2, size=16) as group:
        async with ring.recv_multishot(files[0], group, max_pending=1) as stream:
            await ring.nop()
            files.update(0, [other])
            far.send(b"secret")
            theirs.send(b"old")
            with await anext(stream) as chunk:
                assert bytes(chunk.view) == b"old"
            with pytest.raises(OSError) as caught:
                for _ in range(3):
                    theirs.send(b"x" * 16)
                    with await anext(stream) as chunk:
                        assert bytes(chunk.view) == b"x" * 16
            assert caught.value.errno == errno.EBADF
    assert other.recv(16) == b"secret"
    for end in (ours, theirs, other, far):
        end.close()


async def test_accept_by_slot(ring: AsyncRing, listener: socket.socket) -> None:
    """accept() on a slot returns an ordinary socket."""
    with ring.register_files([listener]) as files, socket.create_connection(listener.getsockname()) as client:
        with await ring.accept(files[0]) as server:
            assert server.family == socket.AF_INET
            client.send(b"x")
            assert await ring.recv_into(server, bytearray(2)) == 1


async def test_waiting_for_room_in_the_queue(new_ring: RingFactory) -> None:
    """More requests on a slot than the submission queue holds all get their answer."""
    ring = await new_ring(4)
    with ring.register_files([0, None, None]) as files:
        reader, writer = await ring.pipe_direct()
        writes = [ring.write(writer, bytes([number])) for number in range(64)]
        assert sum(await asyncio.gather(*writes)) == 64
        memory = bytearray(64)
        assert await ring.read(reader, memory) == 64
        assert sorted(memory) == list(range(64))
        assert len(list(files)) == 3


async def test_e6_operations_that_an_old_kernel_has_not(ring: AsyncRing) -> None:
    """EINVAL from a kernel whose probe lacks the operation names the version that has it; nothing has changed."""

    def register(fd: int, opcode: int, argument: object, count: int) -> int:
        code = real_register(fd, opcode, argument, count)
        if opcode == lib.AU_REGISTER_PROBE:
            from aiouring._uring import ffi

            answer = ffi.cast("struct au_probe *", argument)
            for known in (lib.AU_OP_PIPE, lib.AU_OP_SOCKET):
                answer.ops[known].flags = 0
        return code

    with ring.register_files_sparse(4) as files, replaced(do_register=register):
        for verb, version in (
            (ring.pipe_direct(0o1), r"6\.16"),  # flags that this kernel refuses with EINVAL, as an old one all of it
            (ring.socket_direct(socket.AF_INET, 0x7F), r"5\.19"),
            (ring.openat_direct("/dev/null", os.O_TMPFILE), r"5\.19"),
        ):
            with pytest.raises(aiouring.UnsupportedKernelError, match=f"needs Linux {version}"):
                await verb
        assert agrees(ring, files) == {}
        assert (files.statistics().busy, files.statistics().allocating) == (0, 0)


async def test_pipe(ring: AsyncRing) -> None:
    """Two descriptors, close-on-exec, with the flags asked for; what comes with a cancellation is closed."""
    reader, writer = await ring.pipe(os.O_NONBLOCK)
    os.write(writer, b"through")
    assert os.read(reader, 9) == b"through"
    assert not os.get_blocking(reader)
    for number in (reader, writer):
        assert not os.get_inheritable(number)
        os.close(number)
    files = set(os.listdir("/proc/self/fd"))
    for turns in range(20):
        task = asyncio.create_task(ring.pipe())
        for _ in range(turns // 5):
            await asyncio.sleep(0)
        task.cancel()
        try:
            for number in await task:
                os.close(number)
        except asyncio.CancelledError:
            pass
    assert set(os.listdir("/proc/self/fd")) == files
    with pytest.raises(OSError) as caught:
        await ring.pipe(os.O_APPEND)
    assert caught.value.errno == errno.EINVAL
