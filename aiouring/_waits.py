"""Owns `WaitingRing`: blocking until completions are there, by whichever argument the kernel knows.

1. Without a time there is no argument.  With one, the kernel is given the extended argument, or, where the ring has a
   region of wait arguments, the offset of one of those: nothing is copied then.
2. An enter() that submitted something, or that found anything, reports success whatever ended its wait.  So the end of
   the time is looked for on the clock, and until then the wait is taken up again: after a signal, for instance, when
   Python's handlers have run (PEP 475).
3. `minimum_wait` lets completions gather: until it is over `count` of them end the wait, afterwards one does.
"""

import errno
import time
from typing import Literal, NamedTuple

from aiouring._abi import Features
from aiouring._errors import failure, unsupported
from aiouring._ring import Completion, CoreRing, check_size
from aiouring._uring import ffi, lib

Clock = Literal["monotonic", "boottime"]
_CLOCKS: dict[Clock, int] = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME}
_SECONDS_MAX = 2**32
_MINIMUM_MAX = 4294  # seconds: the kernel counts microseconds in 32 bits


class Times(NamedTuple):
    """When a wait ends, on the ring's clock in seconds; None is never."""

    end: float | None
    minimum_end: float | None


def check_times(timeout: float | None, minimum_wait: float | None) -> None:
    """Refuse times that are negative, or longer than the kernel can count."""
    if timeout is not None and not 0 <= timeout < _SECONDS_MAX:
        raise ValueError(f"timeout={timeout} is not from 0 to {_SECONDS_MAX}; None waits for as long as it takes")
    if minimum_wait is not None and not 0 <= minimum_wait <= _MINIMUM_MAX:
        raise ValueError(f"minimum_wait={minimum_wait} is not from 0 to {_MINIMUM_MAX}")


def microseconds(seconds: float | None) -> int:
    """A minimum wait as the kernel takes it, rounded up."""
    return -int(-(seconds or 0) * 1e6 // 1)


class WaitingRing(CoreRing):
    """A `CoreRing` whose thread may sleep in the kernel until something completes."""

    _clock: int = time.CLOCK_MONOTONIC

    def register_clock(self, clock: Clock) -> None:
        """Choose the clock of `wait()`: "monotonic" stands still while the machine is suspended, "boottime" does not.

        Since Linux 6.12.  See io_uring_register_clock(3).
        """
        if clock not in _CLOCKS:
            raise ValueError(f"clock={clock!r} is neither 'monotonic' nor 'boottime'")
        if Features.MIN_TIMEOUT not in self.features:  # the same release
            raise unsupported("clocks", "6.12")
        argument = ffi.new("struct au_clock_register *", {"clockid": _CLOCKS[clock]})
        self._checked(lib.au_ring_register(self.raw, lib.AU_REGISTER_CLOCK, argument, 0), "choosing the clock")
        self._clock = _CLOCKS[clock]

    def now(self) -> float:
        """The time on the ring's clock, in seconds; what `wait(deadline=...)` is compared with."""
        return time.clock_gettime(self._clock)

    def wait(
        self,
        count: int = 1,
        timeout: float | None = None,
        *,
        deadline: float | None = None,
        minimum_wait: float | None = None,
        argument: int | None = None,
    ) -> list[Completion]:
        """Submit, then block until `count` completions are there or the time is over; returns what is there.

        Args:
            count: completions to wait for, at most `cq_entries`; more of them may be returned.
            timeout: seconds at most; None waits for as long as it takes.
            deadline: instead of `timeout`, a time on the ring's clock, see `now()`.  Since Linux 6.12.
            minimum_wait: seconds after which one completion is enough.  Since Linux 6.12.
            argument: instead of all of these, the number of a wait argument in the ring's region, 1 or higher; see
                `MemoryRegion.set_wait()`.  Since Linux 6.13.

        Signal handlers of Python run while it waits, and what they raise ends the wait.  A timeout needs Linux 5.11.
        See io_uring_submit_and_wait_timeout(3), io_uring_submit_and_wait_min_timeout(3) and
        io_uring_submit_and_wait_reg(3).
        """
        check_size("count", count, self.cq_entries)
        if argument is not None:
            return self._wait_for_argument(count, argument, timeout, deadline, minimum_wait)
        if timeout is not None and deadline is not None:
            raise ValueError("timeout and deadline are two ways to say the same: give one of them")
        check_times(timeout, minimum_wait)
        if deadline is not None and not 0 <= deadline < _SECONDS_MAX:
            raise ValueError(f"deadline={deadline} is no time on the ring's clock: it says {self.now()} now")
        self._require_times(timeout=timeout is not None, exact=deadline is not None or bool(minimum_wait))
        now = self.now()
        times = Times(
            deadline if timeout is None else now + timeout, now + minimum_wait if minimum_wait is not None else None
        )
        return self._wait_until(count, times, absolute=deadline is not None)

    def _require_times(self, *, timeout: bool, exact: bool) -> None:
        if exact and Features.MIN_TIMEOUT not in self.features:
            raise unsupported("waiting with minimum_wait or to a deadline", "6.12")
        if timeout and Features.EXT_ARG not in self.features:
            raise unsupported("waiting with a timeout", "5.11")

    def _block(self, count: int, timeout: float | None) -> None:
        """Submit, then block as `wait()` does, without taking what is there."""
        check_size("count", count, self.cq_entries)
        check_times(timeout, None)
        self._require_times(timeout=timeout is not None, exact=False)
        self._block_until(count, Times(None if timeout is None else self.now() + timeout, None), absolute=False)

    def _wait_until(self, count: int, times: Times, *, absolute: bool) -> list[Completion]:
        self._block_until(count, times, absolute=absolute)
        return self.submit()

    def _block_until(self, count: int, times: Times, *, absolute: bool) -> None:
        end, minimum_end = times
        flags = lib.AU_ENTER_ABS_TIMER if absolute else 0
        while True:
            now = self.now()
            minimum = 0
            if minimum_end is not None and (end is None or minimum_end < end):  # else the kernel would forget the end
                minimum = microseconds(max(0.0, minimum_end - now))
                count = count if minimum else 1
            left = -1 if end is None else int(max(0.0, end if absolute else end - now) * 1e9)
            code = lib.au_ring_wait(self.raw, count, left, minimum, flags)
            if self._over(code, count, times):
                return

    def _wait_for_argument(self, count: int, argument: int, *others: float | None) -> list[Completion]:
        """Wait by a registered argument; after a signal, for what is left of it."""
        if any(other is not None for other in others):
            raise ValueError("a registered wait argument has its own times: give argument alone")
        if not 1 <= argument < self.raw.wait_slots:
            raise ValueError(
                f"argument={argument} is not from 1 to {self.raw.wait_slots - 1}"
                if self.raw.wait_slots
                else "this ring has no wait arguments: register_region(..., wait_argument=True) before enabling it"
            )
        timeout, minimum = self._argument_times(argument)
        now = self.now()
        times = Times(None if timeout is None else now + timeout, now + minimum if minimum else None)
        code = lib.au_ring_wait_slot(self.raw, count, argument, 0)
        if self._over(code, count, times):
            return self.submit()
        return self._wait_until(count, times, absolute=False)

    def _argument_times(self, argument: int) -> tuple[float | None, float | None]:
        """The timeout and the minimum wait of a registered argument."""
        raise NotImplementedError

    def _over(self, code: int, count: int, times: Times) -> bool:
        """Whether a wait that returned `code`, a count of completions or an error, is to end."""
        if code >= count or code == -errno.ETIME:
            return True
        if code < 0 and code != -errno.EINTR:
            raise failure(code, "io_uring_enter")
        now = self.now()
        if times.end is not None and now >= times.end:
            return True
        return code > 0 and times.minimum_end is not None and now >= times.minimum_end
