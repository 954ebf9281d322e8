"""Tests of RegisteredFiles on the kernel's own tables: what is registered, updated, removed, and where it stops."""

import os
import random
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from registered_slots import agrees, kernel_slots, opened

import aiouring
from aiouring import DirectDescriptor, Opcode, Ring
from aiouring._uring import ffi


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A ring without a loop."""
    with Ring(8) as made:
        yield made


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors of three files, which say which they are."""
    made = [opened(tmp_path / name, name.encode()) for name in ("zero", "one", "two")]
    yield made
    for number in made:
        os.close(number)


def content(ring: Ring, file: "int | DirectDescriptor") -> bytes:
    """The first bytes of a file."""
    memory = ffi.new("char[16]")
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=file, offset=0)
    (done,) = ring.wait()
    if done.result < 0:
        raise OSError(-done.result, os.strerror(-done.result))
    return bytes(ffi.buffer(memory, done.result))


def test_a_table_of_files(ring: Ring, three: list[int]) -> None:
    """Requests name slots; the kernel has the files itself, so the descriptors may be closed."""
    with os.fdopen(os.dup(three[1]), "rb") as one:
        files = ring.register_files([three[0], None, one])
    with files:
        assert len(files) == 3
        assert [content(ring, descriptor) for descriptor in files] == [b"zero", b"one"]
        assert list(agrees(ring, files)) == [0, 2]
        assert [descriptor and descriptor.index for descriptor in files.slots()] == [0, None, 2]
        assert files[-1].index == 2
    assert not files.registered
    assert kernel_slots(ring) == {}


def test_one_table_and_again_afterwards(ring: Ring, three: list[int]) -> None:
    """A second table is refused and changes nothing; after unregister(), which may be repeated, it is not."""
    files = ring.register_files(three)
    with pytest.raises(aiouring.ResourceBusyError, match="one table"):
        ring.register_files_sparse(4)
    assert len(agrees(ring, files)) == 3
    old = files[0]
    files.unregister()
    files.unregister()
    for use in (
        lambda: files[0],
        lambda: files.update(0, [None]),
        files.slots,
        lambda: files.set_allocation_range(0, 1),
    ):
        with pytest.raises(aiouring.RingClosedError, match="have been unregistered"):
            use()
    with ring.register_files(three) as again:
        assert content(ring, again[0]) == b"zero"
        with pytest.raises(OSError, match="does not hold this file"):
            content(ring, old)
    assert files.statistics().in_use == 0


def test_closing_the_ring_unregisters(three: list[int]) -> None:
    """The end of the ring is the table's, and nothing after that touches the kernel."""
    with Ring(8) as ring:
        files = ring.register_files(three)
        descriptor = files[0]
    assert not files.registered
    assert descriptor.closed
    descriptor.release()
    files.unregister()
    with pytest.raises(aiouring.RingClosedError):
        files.update(0, [None])


def test_on_a_ring_that_is_not_enabled_yet(three: list[int]) -> None:
    """A table can be registered before the ring is enabled."""
    with Ring(8, disabled=True) as ring, ring.register_files(three) as files:
        ring.enable()
        assert content(ring, files[2]) == b"two"


def test_empty_slots(ring: Ring, three: list[int]) -> None:
    """An empty slot is EBADF; an index outside the table is an IndexError."""
    with ring.register_files_sparse(3) as files:
        assert files.slots() == [None] * 3
        with pytest.raises(OSError, match="slot 1 is empty") as caught:
            _ = files[1]
        assert caught.value.errno == 9
        for index in (3, -4):
            with pytest.raises(IndexError, match="table of 3"):
                _ = files[index]
        files.update(1, [three[1]])
        assert content(ring, files[1]) == b"one"


def test_update_fills_replaces_removes_and_skips(ring: Ring, three: list[int]) -> None:
    """Each entry does what it says, and skipped slots keep their file and their direct descriptors."""
    zero, one, two = three
    with ring.register_files([zero, one, None, two]) as files:
        kept = files[1]
        assert files.update(0, [two, files.SKIP, one, None]) == 4
        assert [content(ring, files[at]) for at in range(3)] == [b"two", b"one", b"one"]
        assert content(ring, kept) == b"one"
        assert list(agrees(ring, files)) == [0, 1, 2]
        assert files.update(1, [-1]) == 1
        assert list(agrees(ring, files)) == [0, 2]


@pytest.mark.parametrize("bad", ["closed", "ring"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_update_says_where_it_stopped(ring: Ring, three: list[int], place: int, bad: str) -> None:
    """A bad file in an update: the entries before it took effect, its own slot is empty now, the rest is as before."""
    zero, one, _ = three
    closed = os.dup(zero)
    os.close(closed)
    number = closed if bad == "closed" else ring.fd
    with ring.register_files([zero] * 6) as files:
        before = files.slots()
        entries: list[int | None] = [one] * 4
        entries[place] = number
        with pytest.raises(aiouring.FilesUpdateError, match=f"descriptor {number} for slot {place + 1}") as caught:
            files.update(1, entries)
        assert caught.value.errno == 9
        assert caught.value.updated == place
        assert f"slot {place + 1} is empty now" in str(caught.value)
        assert sorted(agrees(ring, files)) == [at for at in range(6) if at != place + 1]
        expected = [b"zero"] + [b"one"] * place + [b"empty"] + [b"zero"] * (4 - place)
        found = [content(ring, descriptor) if descriptor else b"empty" for descriptor in files.slots()]
        assert found == expected
        assert files.slots()[place + 2 :] == before[place + 2 :]


def test_what_is_refused_before_the_kernel_is_asked(ring: Ring, three: list[int]) -> None:
    """Slots outside the table, nothing at all, and what is no file."""
    with ring.register_files([*three, None]) as files:
        before = agrees(ring, files)
        for index, entries in ((4, [None]), (3, [None, None]), (-1, [None]), (0, []), (2**40, [None])):
            with pytest.raises(ValueError):
                files.update(index, entries)
        with pytest.raises(TypeError, match="fixed_fd_install"):
            files.update(0, [files[0]])
        with pytest.raises(AttributeError):
            files.update(0, ["name"])  # type: ignore[list-item]
        for number in (-3, 2**31):
            with pytest.raises(OSError, match=f"descriptor {number}") as caught:
                files.update(0, [number])
            assert caught.value.errno == 9
        left, right = socket.socketpair()
        left.close()
        right.close()
        with pytest.raises(OSError, match="has been closed"):
            files.update(0, [left])
        for offset, length in ((0, 5), (4, 1), (-1, 2), (0, 0)):
            with pytest.raises(ValueError):
                files.set_allocation_range(offset, length)
        assert agrees(ring, files) == before


def test_what_cannot_be_registered(ring: Ring, three: list[int]) -> None:
    """A closed file and an io_uring are EBADF that say which; nothing is registered then."""
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(OSError, match=rf"files\[1\] is descriptor {closed}") as caught:
        ring.register_files([three[0], closed])
    assert caught.value.errno == 9
    with pytest.raises(OSError, match="io_uring"):
        ring.register_files([three[0], ring.fd])
    for entries in ([], [aiouring.RegisteredFiles.SKIP]):
        with pytest.raises(ValueError):
            ring.register_files(entries)
    for count in (0, -1, (1 << 20) + 1):
        with pytest.raises(ValueError, match=f"count={count}"):
            ring.register_files_sparse(count)
    assert kernel_slots(ring) == {}
    with ring.register_files(three):
        pass


def test_no_more_files_than_rlimit_nofile(ring: Ring) -> None:
    """EMFILE names the limit and how to raise it; the largest table that the limit allows works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(
            OSError, match=rf"RLIMIT_NOFILE allows descriptors, 256 \(hard limit: {hard}\); raise it"
        ) as caught:
            ring.register_files_sparse(257)
        assert caught.value.errno == 24
        with ring.register_files_sparse(256) as files:
            files.update(255, [0])
            assert list(agrees(ring, files)) == [255]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_rings_descriptor(ring: Ring, three: list[int]) -> None:
    """A direct descriptor works on its own ring only, also where both have a file in that slot."""
    with Ring(8) as other, ring.register_files(three) as mine, other.register_files(three) as theirs:
        assert content(ring, mine[0]) == content(other, theirs[0])
        with pytest.raises(OSError, match="another ring's"):
            content(ring, theirs[0])
        assert ring.submit() == []
        stale = theirs[0]
        theirs.unregister()
        with pytest.raises(OSError, match="unregistered"):
            content(ring, stale)


def test_every_way_to_prepare(ring: Ring, three: list[int]) -> None:
    """prepare(), prepare_memory(), prepare_fixed() and prepare_select() take a direct descriptor."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_files([three[0], ours]) as files:
        with ring.register_buffers(count=1, size=64) as buffers, ring.register_buffer_ring(count=1, size=64) as group:
            ring.prepare(Opcode.FSYNC, user_data=1, fd=files[0])
            assert ring.wait()[0].result == 0
            buffer = buffers.try_acquire()
            assert buffer is not None
            with buffer:
                ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=2, fd=files[0], offset=0)
                assert ring.wait()[0].result == 4
            theirs.send(b"hello")
            ring.prepare_select(Opcode.RECV, group, user_data=3, fd=files[1])
            (done,) = ring.wait()
            with group.take(done.flags, done.result) as chunk:
                assert bytes(chunk.view) == b"hello"


def test_model_the_table_is_the_kernels(ring: Ring, three: list[int]) -> None:
    """Whatever is updated, with bad files in between, the table knows what is in the kernel's slots."""
    closed = os.dup(0)
    os.close(closed)
    names = dict(zip(three, (b"zero", b"one", b"two"), strict=True))
    chance = random.Random(5)
    with ring.register_files_sparse(12) as files:
        for _ in range(300):
            index = chance.randrange(12)
            entries = [
                chance.choice([*three, *three, None, files.SKIP, closed]) for _ in range(chance.randint(1, 12 - index))
            ]
            before = files.slots()
            try:
                done = files.update(index, entries)
            except aiouring.FilesUpdateError as error:
                done = error.updated
                assert entries[done] == closed
                before[index + done] = None
            agrees(ring, files)
            now = files.slots()
            for at, entry in enumerate(entries[:done], index):
                descriptor = now[at]
                if entry == files.SKIP:
                    assert descriptor == before[at]
                elif entry is None:
                    assert descriptor is None
                else:
                    assert descriptor is not None
                    assert descriptor != before[at]
                    assert content(ring, descriptor) == names[entry]
            assert now[:index] == before[:index]
            assert now[index + done :] == before[index + done :]


def test_a_big_table(ring: Ring) -> None:
    """A table as large as the process may have; its last slot works."""
    count = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20)
    with ring.register_files_sparse(count) as files:
        files.update(count - 1, [0])
        assert files[count - 1].index == count - 1
        assert files.statistics().in_use == 1
