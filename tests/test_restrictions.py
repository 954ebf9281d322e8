"""Tests of restricted and of disabled rings: what is not allowed answers so, and what is needed works."""

import asyncio
import errno
import os
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, open_files
from injected_faults import real_register, real_setup, replaced

import aiouring
from aiouring import Opcode, Registration, Restrictions, Ring, SubmissionFlags, _setup
from aiouring._restrictions import ON_REQUEST
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib

ROOT = Path(__file__).parent.parent
PAGE = 4096


def restricted(profile: TaskRun, restrictions: Restrictions | bool, **options: Any) -> Ring:
    """A ring of the profile under test with restrictions."""
    return Ring(8, cq_entries=16, task_run=profile, restrictions=restrictions, **options)


def result(ring: Ring, opcode: int, **options: Any) -> int:
    """What one request completes with."""
    ring.prepare(opcode, user_data=1, **options)
    (completion,) = ring.wait()
    return completion.result


# ---- operations ------------------------------------------------------------------------------------


def test_only_listed_operations(profile: TaskRun) -> None:
    """What is listed works, and everything else completes with EACCES."""
    with restricted(profile, Restrictions(opcodes={Opcode.NOP, Opcode.FSYNC})) as ring:
        assert result(ring, Opcode.NOP) == 0
        assert result(ring, Opcode.POLL_ADD, fd=0, op_flags=select.POLLIN) == -errno.EACCES
        assert result(ring, 200) in (-errno.EACCES, -errno.EINVAL)
        assert result(ring, Opcode.NOP) == 0


def test_no_operation_at_all(profile: TaskRun) -> None:
    """An empty set is none, not all."""
    with restricted(profile, Restrictions(opcodes=frozenset())) as ring:
        assert result(ring, Opcode.NOP) == -errno.EACCES
        ring.register_eventfd()
        ring.unregister_eventfd()


def test_flags_allowed(profile: TaskRun) -> None:
    """A submission flag that is not allowed is EACCES, with operations unrestricted as well."""
    with restricted(profile, Restrictions(flags_allowed=SubmissionFlags.ASYNC)) as ring:
        assert result(ring, Opcode.NOP) == 0
        assert result(ring, Opcode.NOP, flags=SubmissionFlags.ASYNC) == 0
        assert result(ring, Opcode.NOP, flags=SubmissionFlags.IO_DRAIN) == -errno.EACCES
        assert result(ring, Opcode.NOP, flags=SubmissionFlags.IO_LINK | SubmissionFlags.ASYNC) == -errno.EACCES


def test_flags_required(profile: TaskRun) -> None:
    """A submission without a required flag is EACCES."""
    required = Restrictions(opcodes={Opcode.NOP}, flags_required=SubmissionFlags.ASYNC)
    with restricted(profile, required) as ring:
        assert result(ring, Opcode.NOP) == -errno.EACCES
        assert result(ring, Opcode.NOP, flags=SubmissionFlags.ASYNC) == 0


def test_flags_that_contradict() -> None:
    """A flag that is required and not allowed is the caller's mistake."""
    with pytest.raises(ValueError, match="required and not allowed"):
        Restrictions(flags_allowed=SubmissionFlags(0), flags_required=SubmissionFlags.ASYNC)


def test_what_is_no_operation() -> None:
    """Only operations and registrations can be listed."""
    with pytest.raises(ValueError):
        Restrictions(opcodes={200})  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Restrictions(registrations={7})  # type: ignore[arg-type]


# ---- registrations ---------------------------------------------------------------------------------


def test_only_listed_registrations(profile: TaskRun) -> None:
    """A registration that is not listed is a PermissionError that says why; operations are not restricted by it."""
    allowed = {Registration.REGISTER_BUFFERS, Registration.UNREGISTER_BUFFERS}
    with restricted(profile, Restrictions(registrations=allowed)) as ring:
        with ring.register_buffers(count=1, size=16) as buffers:
            assert buffers.registered
        for refused in (ring.register_eventfd, ring.probe_opcodes, lambda: ring.register_buffer_ring(count=1, size=16)):
            with pytest.raises(PermissionError, match="restrictions that this ring was made with") as caught:
                refused()
            assert caught.value.errno == errno.EACCES
        assert result(ring, Opcode.NOP) == 0


def test_no_registration_at_all(profile: TaskRun) -> None:
    """An empty set is none, not all; what was registered before enabling stays."""
    files = open_files()
    with restricted(profile, Restrictions(registrations=frozenset()), disabled=True) as ring:
        event_fd = ring.register_eventfd()
        buffers = ring.register_buffers(count=1, size=16)
        ring.enable()
        ring.enable()
        assert result(ring, Opcode.NOP) == 0
        with pytest.raises(PermissionError):
            ring.register_region(PAGE)
        with pytest.raises(PermissionError):
            buffers.unregister()
        with pytest.raises(PermissionError):
            ring.unregister_eventfd()
        assert ring.raw.event_fd == event_fd, "the kernel signals it still"
    assert open_files() == files


def test_unrestricted_until_enabled(profile: TaskRun) -> None:
    """Restrictions are in force from the enabling on."""
    with restricted(profile, Restrictions(registrations={Registration.REGISTER_PROBE}), disabled=True) as ring:
        ring.register_eventfd()
        ring.unregister_eventfd()
        ring.enable()
        with pytest.raises(PermissionError):
            ring.register_eventfd()


def test_restricted_once(profile: TaskRun) -> None:
    """Neither an enabled ring nor one that is restricted already takes restrictions."""
    entry = ffi.new("struct au_restriction[1]", [{"opcode": lib.AU_RESTRICTION_SQE_OP, "value": Opcode.NOP}])
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        assert lib.au_ring_restrict(ring.raw, entry, 1) == -errno.EBADFD
        assert not ring.raw.restricted
    with restricted(profile, Restrictions(opcodes={Opcode.NOP}), disabled=True) as ring:
        assert lib.au_ring_restrict(ring.raw, entry, 1) == -errno.EBUSY


def test_eacces_of_an_unrestricted_ring(profile: TaskRun) -> None:
    """Where there are no restrictions, EACCES is the kernel's, and no restrictions are blamed."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        with replaced(do_register=lambda *_: -errno.EACCES), pytest.raises(PermissionError) as caught:
            ring.register_eventfd()
    assert "restrictions" not in str(caught.value)


# ---- kernels ---------------------------------------------------------------------------------------


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has not learned what its kernel refuses, and forgets what this test teaches it."""
    monkeypatch.setattr(_setup, "_refused", aiouring.SetupFlags(0))


@pytest.mark.usefixtures("forgetful")
def test_a_kernel_without_restrictions() -> None:
    """Before Linux 5.10 a restricted ring is refused, by the version, and nothing is left open."""

    def older(entries: int, params: Any) -> int:
        asked = ffi.cast("struct au_params *", params).flags
        return -errno.EINVAL if asked & ~(lib.AU_SETUP_CQSIZE | lib.AU_SETUP_CLAMP) else real_setup(entries, params)

    files = open_files()
    with (
        replaced(setup=older),
        pytest.raises(aiouring.UnsupportedKernelError, match=r"restrictions: needs Linux 5\.10"),
    ):
        Ring(8, cq_entries=16, restrictions=True)
    assert open_files() == files


def test_registrations_that_the_kernel_does_not_know() -> None:
    """Newer registrations than the kernel's are left out; the rest is in force."""
    newest_known = lib.AU_REGISTER_PBUF_STATUS

    def older(fd: int, opcode: int, argument: Any, count: int) -> int:
        if opcode == lib.AU_REGISTER_RESTRICTIONS:
            entries = ffi.cast(f"struct au_restriction(*)[{count}]", argument)[0]
            if any(e.opcode == lib.AU_RESTRICTION_REGISTER_OP and e.value > newest_known for e in entries):
                return -errno.EINVAL
        return real_register(fd, opcode, argument, count)

    with replaced(do_register=older), Ring(8, cq_entries=16, restrictions=True) as ring:
        assert result(ring, Opcode.NOP) == 0
        with ring.register_buffers(count=1, size=16):
            pass
        with pytest.raises(PermissionError):
            ring.register_clock("boottime")


def test_refused_restrictions_leave_nothing(profile: TaskRun) -> None:
    """A ring that could not be restricted is not made."""
    files = open_files()

    def refuse(fd: int, opcode: int, *rest: Any) -> int:
        return -errno.ENOMEM if opcode == lib.AU_REGISTER_RESTRICTIONS else real_register(fd, opcode, *rest)

    with replaced(do_register=refuse), pytest.raises(OSError, match="restricting the ring"):
        restricted(profile, restrictions=True)
    assert open_files() == files


# ---- the default set -------------------------------------------------------------------------------


def test_the_default_is_no_free_ride(profile: TaskRun) -> None:
    """The default set has no commands to drivers, changes of names, messages to rings, or lasting grants."""
    found = Restrictions.default()
    assert found.opcodes is not None
    assert not found.opcodes & {
        Opcode.URING_CMD, Opcode.MSG_RING, Opcode.UNLINKAT, Opcode.RENAMEAT, Opcode.LINKAT, Opcode.SYMLINKAT,
        Opcode.SETXATTR, Opcode.EPOLL_CTL, Opcode.PROVIDE_BUFFERS, Opcode.REMOVE_BUFFERS, Opcode.WAITID,
    }  # fmt: skip
    with restricted(profile, restrictions=True) as ring:
        assert ring.restrictions == found
        assert result(ring, Opcode.MSG_RING) == -errno.EACCES
        personality = lib.au_ring_register(ring.raw, 9, ffi.NULL, 0)
        assert personality == lib.AU_FORBIDDEN


@pytest.mark.needs_no_ring
def test_the_default_has_what_the_verbs_name() -> None:
    """Every operation and registration that the package's own code names is in the default set, or given on request."""
    found = Restrictions.default()
    assert found.opcodes is not None
    assert found.registrations is not None
    sources = [
        path.read_text()
        for path in (ROOT / "aiouring").glob("_*.py")
        if path.stem not in ("_abi", "_restrictions", "_features")
    ]
    operations = {name for text in sources for name in re.findall(r"\blib\.AU_OP_(\w+)", text)}
    native = "".join(path.read_text() for path in (ROOT / "aiouring" / "_native").glob("*.c"))
    operations |= set(re.findall(r"\bAU_OP_(\w+)", native))
    possible = {opcode.name for opcode in found.opcodes | ON_REQUEST}
    assert {"READ_FIXED", "RECV", "ASYNC_CANCEL", "SENDMSG"} <= operations <= possible
    assert {opcode.name for opcode in ON_REQUEST} <= operations, "each of these is a verb"
    assert not found.opcodes & ON_REQUEST
    assert Restrictions.default(*ON_REQUEST).opcodes == found.opcodes | ON_REQUEST
    named = set(re.findall(r"\bAU_((?:UN)?REGISTER_\w+)", native)) - {"REGISTER_ENABLE_RINGS", "REGISTER_RESTRICTIONS"}
    assert {"REGISTER_BUFFERS", "REGISTER_EVENTFD"} <= named <= {each.name for each in found.registrations}


async def test_async_errors_name_what_is_forbidden(profile: TaskRun) -> None:
    """A verb whose operation is not allowed raises PermissionError with the operation's name; others work."""
    allowed = Restrictions(opcodes={Opcode.ASYNC_CANCEL, Opcode.POLL_ADD, Opcode.NOP})
    async with aiouring.AsyncRing(task_run=profile, restrictions=allowed) as ring:
        await ring.nop()
        with pytest.raises(PermissionError, match="forbid the operation READ") as caught:
            await ring.read(0, bytearray(1))
        assert caught.value.errno == errno.EACCES
        await ring.nop()


async def test_async_cancellation_under_restrictions(new_ring: RingFactory) -> None:
    """Cancelling, closing and the file's own EACCES work as they do without restrictions."""
    ring = await new_ring(restrictions=True)
    reader, writer = os.pipe()
    task = asyncio.ensure_future(ring.read(reader, bytearray(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(writer)
    await ring.close(reader)
    request_error = ring._ring.request_error(errno.EACCES, Opcode.READ)
    assert "restrictions" not in str(request_error)


@pytest.mark.parametrize(
    ("restrictions", "missing"),
    [
        (Restrictions(opcodes={Opcode.NOP}), "ASYNC_CANCEL, POLL_ADD"),
        (Restrictions(registrations=frozenset()), "REGISTER_EVENTFD, UNREGISTER_EVENTFD"),
        (Restrictions(flags_required=SubmissionFlags.ASYNC), "no flags to be required"),
    ],
)
async def test_what_an_async_ring_cannot_do_without(restrictions: Restrictions, missing: str) -> None:
    """Restrictions that leave no way to wake the loop or to cancel are refused at once."""
    with pytest.raises(ValueError, match=missing):
        aiouring.AsyncRing(restrictions=restrictions)


def test_objections() -> None:
    """Each reason why a request is refused is told apart."""
    found = Restrictions(
        opcodes={Opcode.NOP}, flags_allowed=SubmissionFlags.ASYNC, flags_required=SubmissionFlags.ASYNC
    )
    assert found.objection(Opcode.NOP, SubmissionFlags.ASYNC) == ""
    assert "operation READ" in found.objection(Opcode.READ)
    assert "operation 200" in found.objection(200)
    assert "IO_LINK" in found.objection(Opcode.NOP, SubmissionFlags.ASYNC | SubmissionFlags.IO_LINK)
    assert "without the submission flag" in found.objection(Opcode.NOP, lib.AU_GUARD_FD)


#: A good part of the suite, to be run once more with every AsyncRing restricted to the default set.
UNDER_RESTRICTIONS = (
    "test_file_verbs", "test_socket_verbs", "test_verbs", "test_registered_buffers", "test_buffer_ring",
    "test_registration_verbs", "test_close", "test_async_ring", "test_wake_ups", "test_connection", "test_multishot",
    "test_receive_stream", "test_sending", "test_registered_files", "test_direct_verbs", "test_slot_requests",
    "test_listener_verbs", "test_message_verbs", "test_descriptor_verbs", "test_path_verbs", "test_attribute_verbs",
    "test_range_verbs", "test_late_requests", "test_reading", "test_linked",
    "test_chaining", "test_futex_verbs", "test_process_verbs", "test_open", "test_copy", "test_sockets_of_all_kinds",
)  # fmt: skip


@pytest.mark.deadline(300)
@pytest.mark.skipif(bool(os.environ.get("AIOURING_RESTRICTED")), reason="this is that run")
def test_the_suite_under_the_default_restrictions() -> None:
    """Files, sockets, buffers, buffer rings, cancelling and closing work under the default restrictions."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *(f"tests/{name}.py" for name in UNDER_RESTRICTIONS)],
        cwd=ROOT,
        env=os.environ | {"AIOURING_RESTRICTED": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "restricted" in done.stdout
