"""Tests of what must not happen to registered files: another's file, a slot in doubt, a lost or leaked one."""

import asyncio
import errno
import gc
import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, open_files
from injected_faults import real_register, replaced
from registered_slots import agrees, kernel_slots, opened

import aiouring
from aiouring import AsyncRing, Opcode, Ring
from aiouring._abi import SubmissionFlags
from aiouring._uring import ffi, lib

Listener = socket.socket


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of two files that say which they are."""
    made = opened(tmp_path / "old", b"old"), opened(tmp_path / "new", b"new")
    yield made
    for number in made:
        os.close(number)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def errno_of(task: "asyncio.Task[int]") -> int | None:
    """The errno a task ended with."""
    error = task.exception()
    assert isinstance(error, OSError)
    return error.errno


@pytest.mark.parametrize("how", ["update", "remove", "release", "unregister", "again"])
async def test_h2_queued_request_never_meets_the_next_file(ring: AsyncRing, two: tuple[int, int], how: str) -> None:
    """Queued on a slot that gets another file within the turn: EBADF, and the new file is not read."""
    old, new = two
    files = ring.register_files([old, old])
    first, other = files[0], files[1]
    task = asyncio.create_task(ring.read(first, memory := bytearray(8), 0))
    untouched = asyncio.create_task(ring.read(other, bytearray(8), 0))
    await asyncio.sleep(0)
    before = ring.statistics().submitted
    if how == "update":
        files.update(0, [new])
    elif how == "remove":
        files.update(0, [None])
    elif how == "release":
        first.release()
        files.update(0, [new, files.SKIP])
    else:
        files.unregister()
        if how == "again":
            files = ring.register_files([new, new])
    assert ring.statistics().submitted == before, "the request must still be queued for this test to mean anything"
    await asyncio.wait([task, untouched])
    assert errno_of(task) == errno.EBADF
    assert memory == bytes(8)
    if how in ("unregister", "again"):
        assert errno_of(untouched) == errno.EBADF
    else:
        assert untouched.result() == 3


def test_h2_queued_on_a_ring_without_a_loop(two: tuple[int, int]) -> None:
    """What is prepared on a slot that then changes gets EBADF; what was submitted goes on with its file."""
    old, new = two
    reader, writer = os.pipe()
    with Ring(8) as ring, ring.register_files([old, reader]) as files:
        memory = ffi.new("char[8]")
        other = ffi.new("char[8]")
        ring.prepare_memory(Opcode.READ, other, user_data=2, fd=files[1])
        assert ring.submit() == []
        ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=files[0], offset=0)
        files.update(0, [new, new])
        assert ring.wait() == [aiouring.Completion(1, -errno.EBADF, 0)]
        os.write(writer, b"pipe")
        assert [done.result for done in ring.wait()] == [4]
        assert ffi.buffer(other, 4)[:] == b"pipe"
    os.close(reader)
    os.close(writer)


async def test_m8_update_and_unregister_in_flight(ring: AsyncRing) -> None:
    """A request that was submitted goes on with its file, whatever becomes of the slot, the table, the descriptor."""
    ours, theirs = socket.socketpair()
    files = ring.register_files([ours])
    task = asyncio.create_task(ring.recv_into(files[0], memory := bytearray(8)))
    await ring.nop()
    files.update(0, [theirs])
    files.unregister()
    ours.close()
    theirs.send(b"data")
    assert await task == 4
    assert memory[:4] == b"data"
    theirs.close()


async def test_slot_5_is_not_descriptor_5(ring: AsyncRing) -> None:
    """cancel() and close() of a slot leave alone what is in flight on the descriptor of that number, and vice versa."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    inner, outer = socket.socketpair()
    with ring.register_files_sparse(number + 1) as files:
        files.update(number, [inner])
        slot = files[number]
        by_number = asyncio.create_task(ring.recv_into(number, bytearray(8)))
        by_slot = asyncio.create_task(ring.recv_into(slot, bytearray(8)))
        await ring.nop()
        assert await ring.cancel(slot) == 1
        await asyncio.wait([by_slot])
        assert errno_of(by_slot) == errno.ECANCELED
        assert not by_number.done()
        by_slot = asyncio.create_task(ring.recv_into(slot, bytearray(8)))
        await ring.nop()
        assert await ring.cancel(number) == 1
        await asyncio.wait([by_number])
        assert errno_of(by_number) == errno.ECANCELED
        assert not by_slot.done()
        await ring.close(slot)
        await asyncio.wait([by_slot])
        assert errno_of(by_slot) == errno.ECANCELED
        assert slot.closed
        assert kernel_slots(ring) == {}
        with pytest.raises(OSError, match="does not hold this file"):
            await ring.close(slot)
    theirs.send(b"x")
    assert ours.recv(1) == b"x", "the descriptor was not closed"
    for end in (ours, theirs, inner, outer):
        end.close()


async def test_cancel_knows_the_file_from_the_next_in_its_slot(ring: AsyncRing) -> None:
    """What is in flight on a file that was replaced is not cancelled with its successor."""
    pairs = [socket.socketpair() for _ in range(2)]
    with ring.register_files([pairs[0][0]]) as files:
        old = asyncio.create_task(ring.recv_into(files[0], bytearray(8)))
        await ring.nop()
        files.update(0, [pairs[1][0]])
        new = asyncio.create_task(ring.recv_into(files[0], bytearray(8)))
        await ring.nop()
        assert await ring.cancel(files[0]) == 1
        await asyncio.wait([new])
        assert errno_of(new) == errno.ECANCELED
        assert not old.done()
        pairs[0][1].send(b"old")
        assert await old == 3
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("verb", ["recv_into", "recv", "read"])
async def test_a2_bytes_of_a_cancelled_receive_stay_with_the_file(ring: AsyncRing, verb: str, replace: bool) -> None:
    """They go to the next receive on that slot, and to nobody if it has another file by then."""
    ours, theirs = socket.socketpair()
    other, far = socket.socketpair()
    with (
        ring.register_files([ours]) as files,
        ring.register_buffer_ring(count=2, size=16) as group,
    ):

        async def receive(descriptor: aiouring.DirectDescriptor) -> bytes:
            if verb == "recv":
                with await ring.recv(descriptor, group) as chunk:
                    return bytes(chunk.view)
            memory = bytearray(16)
            call = ring.recv_into if verb == "recv_into" else ring.read
            return bytes(memory[: await call(descriptor, memory)])

        task = asyncio.create_task(receive(files[0]))
        await ring.nop()
        theirs.send(b"first")
        assert ring._driver is not None
        ring._driver._turn(0)  # the completion is delivered, and the task has not run yet
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        theirs.send(b"second")
        if replace:
            files.update(0, [other])
            far.send(b"other")
            assert await receive(files[0]) == b"other"
        else:
            assert await receive(files[0]) == b"first"
            assert await receive(files[0]) == b"second"
    for end in (ours, theirs, other, far):
        end.close()


async def test_h11_two_receives_on_a_slot(ring: AsyncRing) -> None:
    """The second is refused, also through another object for the same slot."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_files([ours]) as files:
        task = asyncio.create_task(ring.recv_into(files[0], bytearray(8)))
        await ring.nop()
        with pytest.raises(aiouring.ResourceBusyError, match="already receiving"):
            await ring.recv_into(files[0], bytearray(8))
        theirs.send(b"x")
        assert await task == 1


async def test_closing_a_slot_ends_the_wait_for_a_buffer(ring: AsyncRing) -> None:
    """Who waits in line for a buffer to receive on a slot is called out of the line by close()."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_files([ours]) as files, ring.register_buffer_ring(count=1, size=16) as group:
        theirs.send(b"one")
        with await ring.recv(files[0], group):
            task = asyncio.create_task(ring.recv(files[0], group))
            theirs.send(b"two")
            while not group.statistics().waiting:
                await ring.nop()
            await ring.close(files[0])
            await asyncio.wait([task])
            assert isinstance(error := task.exception(), OSError)
            assert error.errno == errno.ECANCELED


async def test_the_kernel_picks_while_others_wait(ring: AsyncRing, listener: Listener, two: tuple[int, int]) -> None:
    """While a request may get any free slot, nobody touches those that look free; what holds a file may be replaced."""
    old, new = two
    with ring.register_files([None, old, None]) as files:
        task = asyncio.create_task(ring.accept_direct(listener))
        await ring.nop()
        assert files.statistics().allocating == 1
        for entries in ([new], [None], [files.SKIP, new, new]):
            with pytest.raises(aiouring.ResourceBusyError, match="the kernel may pick slot"):
                files.update(0, entries)
        with pytest.raises(aiouring.ResourceBusyError, match="the kernel may pick slot"):
            await ring.files_update(0, [new])
        with pytest.raises(aiouring.ResourceBusyError, match="the kernel may pick slot"):
            await ring.openat_direct("/dev/null", index=2)
        with pytest.raises(aiouring.ResourceBusyError, match="in flight are having slots allocated"):
            files.set_allocation_range(0, 1)
        files.update(1, [new])
        with socket.create_connection(listener.getsockname()):
            connection = await task
            free = 2 - connection.index
            assert free in (0, 2)
            files.update(free, [new])
            assert list(agrees(ring, files)) == [0, 1, 2]


async def test_a_range_keeps_the_two_kinds_apart(ring: AsyncRing, listener: Listener) -> None:
    """Slots outside the allocation range are filled by number while the kernel picks others."""
    with ring.register_files_sparse(4) as files:
        files.set_allocation_range(2, 2)
        assert files.statistics().allocation_range == (2, 2)
        task = asyncio.create_task(ring.accept_direct(listener))
        named = asyncio.create_task(ring.accept_direct(listener, index=1))
        await ring.nop()
        assert (await ring.openat_direct("/dev/null", index=0)).index == 0
        assert files.update(0, [0]) == 1
        with pytest.raises(aiouring.ResourceBusyError, match="slot 1 is being changed"):
            files.update(1, [0])
        with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
            assert sorted([(await task).index, (await named).index]) == [1, 2]
            assert list(agrees(ring, files)) == [0, 1, 2]


async def test_a_slot_that_is_being_filled_by_number(ring: AsyncRing, listener: Listener) -> None:
    """The kernel does not pick slots while one in its reach is promised to somebody else."""
    with ring.register_files_sparse(3) as files:
        task = asyncio.create_task(ring.accept_direct(listener, index=1))
        await ring.nop()
        assert files.statistics().busy == 1
        with pytest.raises(OSError, match="slot 1 is in use by a request in flight"):
            _ = files[1]
        for verb in (
            ring.openat_direct("/dev/null"),
            ring.socket_direct(),
            ring.pipe_direct(),
            ring.accept_direct(listener),
            ring.files_update_alloc([0]),
        ):
            with pytest.raises(aiouring.ResourceBusyError, match="slot 1 is being filled by number"):
                await verb
        with pytest.raises(aiouring.ResourceBusyError, match="slot 1 is being changed"):
            await ring.pipe_direct(index=0)
        assert files.statistics().busy == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files.statistics().busy == 0
        assert (await ring.openat_direct("/dev/null", index=1)).index == 1


async def test_unregistered_while_a_file_was_to_come(ring: AsyncRing, listener: Listener) -> None:
    """Whoever waits for a file in the table gets RingClosedError, the file is closed, and no new table gets it."""
    files = ring.register_files_sparse(2)
    tasks = [asyncio.create_task(ring.accept_direct(listener))]
    await ring.nop()
    files.unregister()
    with pytest.raises(aiouring.ResourceBusyError, match="was unregistered: await them first"):
        ring.register_files_sparse(2)
    with socket.create_connection(listener.getsockname()) as peer:
        with pytest.raises(aiouring.RingClosedError, match="unregistered while"):
            await tasks[0]
        peer.settimeout(5)
        assert peer.recv(1) == b"", "the connection was closed"
    with ring.register_files_sparse(2) as again:
        assert list(again) == []


@pytest.mark.parametrize("index", [None, 1])
async def test_a7_a_file_that_nobody_takes(ring: AsyncRing, listener: Listener, index: int | None) -> None:
    """A connection that comes together with the cancellation is closed, and its slot is free again."""
    with ring.register_files_sparse(2) as files:
        task = asyncio.create_task(ring.accept_direct(listener, index=index))
        await ring.nop()
        with socket.create_connection(listener.getsockname()) as peer:
            assert ring._driver is not None
            while not kernel_slots(ring):
                ring._driver._turn(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert agrees(ring, files) == {}
            assert (files.statistics().busy, files.statistics().allocating) == (0, 0)
            peer.settimeout(5)
            assert peer.recv(1) == b""
        assert (await ring.openat_direct("/dev/null", index=1)).index == 1


@pytest.mark.parametrize(
    "verb", ["openat", "openat_direct", "socket", "socket_direct", "pipe_direct", "alloc", "install"]
)
async def test_a7_nothing_leaks_with_a_cancellation(ring: AsyncRing, verb: str) -> None:
    """Cancelled at each point between the call and the result, no descriptor and no slot is left behind."""
    with ring.register_files([0, *[None] * 7]) as files:
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "openat": lambda: ring.openat("/dev/null"),
            "openat_direct": lambda: ring.openat_direct("/dev/null"),
            "socket": ring.socket,
            "socket_direct": ring.socket_direct,
            "pipe_direct": ring.pipe_direct,
            "alloc": lambda: ring.files_update_alloc([0, 1, 2]),
            "install": lambda: ring.fixed_fd_install(files[0]),
        }
        before = open_files()
        for steps in range(5):
            task = asyncio.ensure_future(calls[verb]())
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.done():
                result: Any = task.result()
                for made in result if isinstance(result, list | tuple) else [result]:
                    await ring.close(made)
                continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list(agrees(ring, files)) == [0]
        assert steps
        gc.collect()
        assert open_files().keys() == before.keys()
        assert files.statistics().allocating == 0


async def test_files_update_cancelled(ring: AsyncRing) -> None:
    """However it is cancelled, the table knows afterwards what is in the slots."""
    with ring.register_files([0, 1, None]) as files:
        for steps in range(4):
            files.update(0, [0, 1, None])
            task = asyncio.create_task(ring.files_update(0, [None, files.SKIP, 2]))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert list(agrees(ring, files)) in ([0, 1], [1, 2])
            assert files.statistics().busy == 0


async def test_h2_files_of_an_update_that_is_queued(ring: AsyncRing, two: tuple[int, int]) -> None:
    """A queued update never registers the file that took over a number: it stops there, like at any closed file."""
    old, new = two
    for by in ("number", "object"):
        with ring.register_files([old, None]) as files:
            number = os.dup(old)
            source = os.fdopen(number, "rb") if by == "object" else None
            task = asyncio.create_task(ring.files_update(0, [files.SKIP, source or number]))
            await asyncio.sleep(0)
            if source:
                source.close()
            else:
                os.close(number)
            assert os.dup2(new, number) == number
            with pytest.raises(aiouring.FilesUpdateError) as caught:
                await task
            assert caught.value.updated == 1
            assert list(agrees(ring, files)) == [0]
            os.close(number)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_a_slot_that_was_never_submitted(ring: AsyncRing, cancelled: bool) -> None:
    """A close that is cancelled closes nevertheless: the slot is empty afterwards."""
    with ring.register_files([0, 1]) as files:
        descriptor = files[0]
        task = asyncio.create_task(ring.close(descriptor))
        await asyncio.sleep(0)
        assert descriptor.closed
        with pytest.raises(OSError, match="does not hold this file"):
            await ring.read(descriptor, bytearray(1))
        with pytest.raises(aiouring.ResourceBusyError, match="slot 0 is being changed"):
            files.update(0, [1])
        if cancelled:
            task.cancel()
        await asyncio.wait([task])
        assert list(agrees(ring, files)) == [1]
        assert files.statistics().busy == 0


async def test_another_rings_slot(new_ring: RingFactory) -> None:
    """A direct descriptor is refused by every ring but its own, before anything is submitted."""
    first, second = await new_ring(), await new_ring()
    with first.register_files([0]) as mine, second.register_files([0]):
        before = second.statistics().submitted
        with pytest.raises(OSError, match="another ring's"):
            await second.read(mine[0], bytearray(1), 0)
        with pytest.raises(OSError, match="another ring's"):
            await second.close(mine[0])
        assert second.statistics().submitted == before
        assert not mine[0].closed


async def test_c1_wrong_thread(ring: AsyncRing) -> None:
    """The table belongs to the ring's thread, as the ring does."""
    with ring.register_files([0, None]) as files:
        descriptor = files[0]
        for use in (lambda: files.update(1, [0]), descriptor.release, lambda: files[0], files.unregister, files.slots):
            with pytest.raises(aiouring.WrongContextError, match="thread"):
                await asyncio.to_thread(use)
        assert list(agrees(ring, files)) == [0]


async def test_c5_in_a_forks_child(ring: AsyncRing) -> None:
    """A child's use of the table is refused, and does not disturb the parent's."""
    with ring.register_files([0, None]) as files:
        descriptor = files[0]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for use in (descriptor.release, lambda: files.update(1, [0]), files.unregister):
                    try:
                        use()
                    except aiouring.WrongContextError:
                        continue
                    break
                else:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert list(agrees(ring, files)) == [0]


async def test_closing_the_ring_with_a_table_and_requests_on_it(new_ring: RingFactory, listener: Listener) -> None:
    """aclose() ends what is in flight on slots and into slots, and takes the table back."""
    ring = await new_ring()
    ours, theirs = socket.socketpair()
    files = ring.register_files([ours, None])
    tasks = [
        asyncio.create_task(ring.recv_into(files[0], bytearray(8))),
        asyncio.create_task(ring.accept_direct(listener)),
    ]
    await ring.nop()
    await ring.aclose()
    await asyncio.wait(tasks)
    for task in tasks:
        assert isinstance(task.exception(), aiouring.RingClosedError)
    assert not files.registered
    assert files.statistics().allocating == 0
    ours.close()
    theirs.close()


async def test_e6_an_old_kernel(ring: AsyncRing) -> None:
    """Without a range for allocations the error names the kernel that has it, and the table is as it was."""

    def register(fd: int, opcode: int, argument: object, count: int) -> int:
        if opcode == lib.AU_REGISTER_FILE_ALLOC_RANGE:
            return -errno.EINVAL
        return real_register(fd, opcode, argument, count)

    with ring.register_files_sparse(4) as files:
        with replaced(do_register=register), pytest.raises(aiouring.UnsupportedKernelError, match=r"Linux 6\.0"):
            files.set_allocation_range(1, 1)
        assert files.statistics().allocation_range == (0, 4)


@pytest.mark.parametrize("seed", range(4))
async def test_model_many_tasks_one_table(ring: AsyncRing, tmp_path: Path, seed: int) -> None:
    """Opened, read, replaced, closed and cancelled at random, each sees its own file, and nothing is left over."""
    chance = random.Random(seed)
    for number in range(9):
        (tmp_path / str(number)).write_text(str(number))
    spare = [opened(tmp_path / f"spare{number}", b"s") for number in range(2)]
    refused = done = 0

    async def work() -> None:
        nonlocal done
        number = chance.randrange(9)
        index = chance.choice([None, None, None, 6, 7])
        descriptor = await ring.openat_direct(tmp_path / str(number), index=index)
        try:
            for _ in range(chance.randrange(3)):
                memory = bytearray(2)
                assert await ring.read(descriptor, memory, 0) == 1
                assert memory[:1] == str(number).encode()
        finally:
            if chance.random() < 0.5:
                descriptor.release()
            else:
                await ring.close(descriptor)
        done += 1

    async def update() -> None:
        entries = [chance.choice([*spare, None]) for _ in range(2)]
        await ring.files_update(4, entries)

    with ring.register_files_sparse(8) as files:
        files.set_allocation_range(0, 4)
        for _ in range(60):
            tasks = [asyncio.ensure_future(chance.choice([work, work, work, update])()) for _ in range(6)]
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
                if chance.random() < 0.3:
                    chance.choice(tasks).cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, aiouring.ResourceBusyError):
                    refused += 1
                elif isinstance(outcome, OSError):
                    assert outcome.errno == errno.ENFILE
                else:
                    assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
            agrees(ring, files)
            assert files.changing == 0
            assert sorted(set(kernel_slots(ring)) - {4, 5}) == []
        assert done > 30
        assert refused > 0
    for number in spare:
        os.close(number)


@pytest.mark.parametrize("flag", ["IO_LINK", "IO_HARDLINK", "IO_DRAIN", "ASYNC"])
def test_h2_a_request_that_would_start_late(two: tuple[int, int], flag: str) -> None:
    """Where the kernel would look the slot up later, it might find another file: refused, on either side of a link."""
    old, _ = two
    with Ring(8) as ring, ring.register_files([old]) as files:
        with pytest.raises(ValueError, match="a request on slot 0 cannot be linked"):
            ring.prepare(Opcode.FSYNC, user_data=1, fd=files[0], flags=SubmissionFlags[flag])
        assert lib.au_ring_unsubmitted(ring.raw) == 0
        ring.prepare(Opcode.NOP, user_data=2, flags=SubmissionFlags[flag])
        if flag == "ASYNC":
            ring.prepare(Opcode.FSYNC, user_data=3, fd=files[0])
        else:
            with pytest.raises(ValueError, match="nor follow a request that is"):
                ring.prepare(Opcode.FSYNC, user_data=3, fd=files[0])
        while ring.in_flight:
            ring.wait()
        if flag != "IO_DRAIN":  # that ring has drained: nobody knows until when
            ring.prepare(Opcode.FSYNC, user_data=4, fd=files[0])
            assert [done.result for done in ring.wait()] == [0]
