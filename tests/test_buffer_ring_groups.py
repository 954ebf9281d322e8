"""Tests of several buffer rings on one ring: their numbers, their registration again and again, and their end."""

import asyncio
import errno
import gc
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring import Opcode, Ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib

Pair = tuple[socket.socket, socket.socket]


def exchange(ring: Ring, group: aiouring.BufferRing, pair: Pair, data: bytes) -> None:
    """A message arrives in a buffer of `group`."""
    pair[1].send(data)
    ring.prepare_select(Opcode.RECV, group, user_data=1, fd=pair[0].fileno())
    (completion,) = ring.wait()
    with group.take(completion.flags, completion.result) as chunk:
        assert bytes(chunk.view) == data


# ---- numbers -----------------------------------------------------------------------------------


async def test_d12_given_numbers(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Any number from 0 to 65535 can be given, and names the group to the kernel; the rest take the first free ones."""
    for number in (1, 0, 65535, 300):
        group = ring.register_buffer_ring(count=2, size=64, group_id=number)
        assert (group.group_id, group.statistics().group_id) == (number, number)
        assert repr(group).startswith(f"<BufferRing {number}: ")
        pair[1].send(b"data")
        with await ring.recv(pair[0], group) as chunk:
            assert bytes(chunk.view) == b"data"
        assert group.head() == 1
    assert [ring.register_buffer_ring(count=1, size=1).group_id for _ in range(3)] == [2, 3, 4]


async def test_d12_impossible_numbers(ring: aiouring.AsyncRing, register_calls: list[int]) -> None:
    """A number out of range is refused with the range, before any system call."""
    wrong: list[tuple[Any, type[Exception], str]] = [
        (-1, ValueError, "group_id=-1 is outside 0 to 65535"),
        (65536, ValueError, "group_id=65536 is outside 0 to 65535"),
        (1 << 64, ValueError, "group_id=18446744073709551616 is outside"),
        ("7", TypeError, "group_id must be an int, not str"),
        (7.0, TypeError, "group_id must be an int, not float"),
    ]
    for number, kind, text in wrong:
        with pytest.raises(kind, match=text):
            ring.register_buffer_ring(count=1, size=1, group_id=number)
    assert register_calls == []


async def test_d12_taken_number(ring: aiouring.AsyncRing, pair: Pair, register_calls: list[int]) -> None:
    """A number that a group has is refused, by name and before any system call; that group is not disturbed."""
    group = ring.register_buffer_ring(count=2, size=64, group_id=7)
    register_calls.clear()
    for _ in range(3):
        with pytest.raises(aiouring.ResourceBusyError, match="group_id=7 is taken by <BufferRing 7: 2 x 64 bytes"):
            ring.register_buffer_ring(count=4, size=16, group_id=7)
    assert register_calls == []
    pair[1].send(b"data")
    with await ring.recv(pair[0], group) as chunk:
        assert bytes(chunk.view) == b"data"
    group.unregister()
    again = ring.register_buffer_ring(count=4, size=16, group_id=7)
    assert (len(again), again.size) == (4, 16)


async def test_d11_number_of_a_receive_in_flight(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A number that a request in flight still names cannot be given to another group until that has ended."""
    group = ring.register_buffer_ring(count=2, size=64, group_id=7)
    task = asyncio.create_task(ring.recv(pair[0], group))
    await ring.nop()
    group.unregister()
    with pytest.raises(aiouring.ResourceBusyError, match="group_id=7 is still named by a request in flight"):
        ring.register_buffer_ring(count=2, size=64, group_id=7)
    with pytest.raises(aiouring.RingClosedError):
        await task
    with ring.register_buffer_ring(count=2, size=64, group_id=7) as again:
        pair[1].send(b"data")
        with await ring.recv(pair[0], again) as chunk:
            assert bytes(chunk.view) == b"data"


# ---- registered again and again, as liburing's buf-ring ----------------------------------------


def test_d12_registered_again(profile: TaskRun, pair: Pair) -> None:
    """A number can be registered again and again, with another size each time, and every group works."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        for lap in range(300):
            with ring.register_buffer_ring(count=1 << lap % 9, size=8 + lap % 5, group_id=42) as group:
                assert group.available() == len(group)
                exchange(ring, group, pair, b"%d" % lap)


def test_every_group_its_own(profile: TaskRun, pair: Pair) -> None:
    """Many groups side by side: each gives its own buffers, and unregistering one leaves the others alone."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        groups = [ring.register_buffer_ring(count=2, size=16 + number, group_id=13 * number) for number in range(100)]
        received = dict.fromkeys(groups, 0)
        while groups:
            for group in groups[:: max(1, len(groups) // 10)]:
                exchange(ring, group, pair, b"x" * group.size)
                received[group] += 1
                assert group.head() == received[group]
            groups.pop(len(groups) // 2).unregister()


def test_d12_the_kernel_says_so_too(profile: TaskRun) -> None:
    """Sizes that our own rules let through are what the kernel takes: 1 to 32768, powers of two."""
    with Ring(2, cq_entries=4, task_run=profile) as ring:
        for exponent in range(16):
            with ring.register_buffer_ring(count=1 << exponent, size=1) as group:
                assert group.available() == 1 << exponent


# ---- unregistered while in use -----------------------------------------------------------------


def test_d4_lent_while_the_number_is_registered_again(profile: TaskRun, pair: Pair) -> None:
    """A buffer of an unregistered group stays readable, and returning it does nothing to the group with its number."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        held = []
        for lap in range(10):
            group = ring.register_buffer_ring(count=2, size=16, group_id=5)
            pair[1].send(b"lap %d" % lap)
            ring.prepare_select(Opcode.RECV, group, user_data=1, fd=pair[0].fileno())
            (completion,) = ring.wait()
            held.append(group.take(completion.flags, completion.result))
            group.unregister()
        with ring.register_buffer_ring(count=2, size=16, group_id=5) as last:
            for lap, chunk in enumerate(held):
                assert bytes(chunk.view) == b"lap %d" % lap
                chunk.release()
                ring.submit()
            assert (last.available(), last.statistics().published, last.head()) == (2, 2, 0)
            exchange(ring, last, pair, b"last")


def test_d4_released_after_the_ring_was_closed(profile: TaskRun, pair: Pair) -> None:
    """The memory of what is lent outlives group and ring; its release is quiet."""
    ring = Ring(8, cq_entries=16, task_run=profile)
    group = ring.register_buffer_ring(count=2, size=16)
    pair[1].send(b"data")
    ring.prepare_select(Opcode.RECV, group, user_data=1, fd=pair[0].fileno())
    (completion,) = ring.wait()
    chunk = group.take(completion.flags, completion.result)
    ring.close()
    del ring, group
    gc.collect()
    assert bytes(chunk.view) == b"data"
    chunk.release()


async def test_d11_a_stale_head(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """An unregistered group does not answer with the head of the one that has its number now."""
    old = ring.register_buffer_ring(count=2, size=16, group_id=3)
    old.unregister()
    new = ring.register_buffer_ring(count=2, size=16, group_id=3)
    pair[1].send(b"data")
    (await ring.recv(pair[0], new)).release()
    assert new.head() == 1
    with pytest.raises(aiouring.RingClosedError):
        old.head()


# ---- what is left behind, as liburing's buf-ring-put -------------------------------------------


def mappings() -> int:
    """How many mappings of anonymous memory this process has."""
    return Path("/proc/self/maps").read_text().count("\n")


@pytest.mark.parametrize("end", ["unregister", "close", "drop"])
def test_nothing_is_left_mapped(profile: TaskRun, end: str) -> None:
    """However groups end, by name, with their ring, or forgotten, their memory does."""

    def life() -> None:
        ring = Ring(2, cq_entries=4, task_run=profile)
        groups = [ring.register_buffer_ring(count=1024, size=64) for _ in range(16)]
        if end == "unregister":
            for group in groups:
                group.unregister()
            assert ring.submit() == []
        if end != "drop":
            ring.close()

    life()
    gc.collect()
    before = mappings()
    for _ in range(10):
        life()
    gc.collect()
    assert mappings() <= before + 2


# ---- limits ------------------------------------------------------------------------------------

POOR = """
import errno, os, resource
import aiouring
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
with aiouring.Ring(2, cq_entries=4) as ring:
    with ring.register_buffer_ring(count=64, size=16):
        pass
    try:
        with ring.register_buffer_ring(count=32768, size=16):
            print("not limited")
    except OSError as error:
        assert error.errno == errno.ENOMEM
        print(error.strerror)
    with ring.register_buffer_ring(count=64, size=16) as group:
        assert group.group_id == 0
"""


def test_m9_memlock() -> None:
    """Beyond RLIMIT_MEMLOCK the text says what would be locked, what is allowed and what to do; nothing is lost."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", POOR], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    if done.stdout == "not limited\n":
        pytest.skip("this kernel does not count rings of buffers against RLIMIT_MEMLOCK")
    for part in ("ring of 32768 buffers of 16 bytes", "524288 bytes would be locked", "65536", "ulimit -l"):
        assert part in done.stdout


async def test_several_rings_have_their_own_numbers(new_ring: RingFactory, pair: Pair) -> None:
    """The same number on two rings is two groups; one ring's group is refused on the other."""
    first, second = await new_ring(), await new_ring()
    ours, theirs = (made.register_buffer_ring(count=2, size=16, group_id=1) for made in (first, second))
    pair[1].send(b"data")
    with await first.recv(pair[0], ours) as chunk:
        assert bytes(chunk.view) == b"data"
    with pytest.raises(ValueError, match="on this ring"):
        await first.recv(pair[0], theirs)
    assert (ours.head(), theirs.head()) == (1, 0)


async def test_d12_number_taken_behind_our_back(ring: aiouring.AsyncRing) -> None:
    """What the kernel knows and we do not is the kernel's refusal."""
    wanted = ffi.new("struct au_buf_reg *")
    memory = aiouring._lease.Arena(1, 4096, 4096)
    wanted.ring_addr = int(ffi.cast("uintptr_t", memory.base))
    wanted.ring_entries, wanted.bgid = 1, 3
    await ring.nop()
    assert lib.au_ring_register(ring._ring.raw, lib.AU_REGISTER_PBUF_RING, wanted, 1) == 0
    with pytest.raises(FileExistsError) as caught:
        ring.register_buffer_ring(count=1, size=1, group_id=3)
    assert caught.value.errno == errno.EEXIST
    assert lib.au_ring_register(ring._ring.raw, lib.AU_UNREGISTER_PBUF_RING, wanted, 1) == 0
    with ring.register_buffer_ring(count=1, size=1, group_id=3) as group:
        assert group.registered
