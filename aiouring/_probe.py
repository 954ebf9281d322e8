"""Owns `probe()`: what io_uring can do on this machine, found by asking the kernel on a throw-away ring."""

import os
import resource
from dataclasses import dataclass

from aiouring._abi import Features, Opcode, SetupFlags
from aiouring._errors import UnsupportedKernelError
from aiouring._features import ask
from aiouring._ring import CoreRing
from aiouring._setup import PROFILES

_NO_FEATURES = Features(0)
_NO_FLAGS = SetupFlags(0)


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine can do; falsy where io_uring cannot be used at all.

    `features` and `setup_flags` hold only flags that aiouring knows, `opcodes` only operations that it
    knows; `opcode_count` counts all that this kernel supports.  `supported` names what `FEATURES` lists and this
    kernel has, such as "memory regions": each was asked for, or tried, on a throw-away ring.
    """

    available: bool
    reason: str  # why not, and what to change; empty where it is available
    kernel: str  # the release, as uname -r prints it
    opcodes: frozenset[Opcode] = frozenset()
    opcode_count: int = 0
    features: Features = _NO_FEATURES
    setup_flags: SetupFlags = _NO_FLAGS
    supported: frozenset[str] = frozenset()
    memlock_limit: int | None = None  # bytes; None is unlimited, or no limit applies to this process

    def __bool__(self) -> bool:
        return self.available

    @property
    def buffer_rings(self) -> bool:
        """Whether there are buffer rings.  Since Linux 5.19."""
        return "buffer rings" in self.supported


def probe() -> Probe:
    """Ask this machine what it can do.  Never raises; takes about a millisecond, and leaves nothing behind."""
    kernel = os.uname().release
    try:
        with CoreRing(2, cq_entries=4) as ring:
            supported = ring.probe_opcodes()
            features = ring.features
            flags = ring.setup_flags
        names = ask()
        flags |= _flags_of_other_profile(flags)
    except OSError as error:
        return Probe(available=False, reason=error.strerror or str(error), kernel=kernel)
    except UnsupportedKernelError as error:
        return Probe(available=False, reason=str(error), kernel=kernel)
    return Probe(
        available=True,
        reason="",
        kernel=kernel,
        opcodes=frozenset(opcode for opcode in Opcode if opcode in supported),
        opcode_count=len(supported),
        features=features,
        setup_flags=flags,
        supported=names,
        memlock_limit=_memlock_limit(),
    )


def _flags_of_other_profile(flags: SetupFlags) -> SetupFlags:
    """What the profile that was not tried would add."""
    for name, wanted in PROFILES.items():
        if wanted & ~flags:
            with CoreRing(2, cq_entries=4, task_run=name) as ring:
                flags |= ring.setup_flags
    return flags


def _memlock_limit() -> int | None:
    """The limit on registered memory; who has CAP_IPC_LOCK is exempt (KERNEL.md C6)."""
    cap_ipc_lock = 1 << 14
    with open("/proc/self/status") as status:
        effective = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if effective & cap_ipc_lock or soft == resource.RLIM_INFINITY else soft
