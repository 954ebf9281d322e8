"""Tests of Registry: what a ring has registered, and its end."""

import gc
import weakref

import pytest

import aiouring
from aiouring._registry import Registry
from aiouring._ring import CoreRing


class Clerk:
    """An attendant that has nothing to do."""

    def new_future(self) -> None:
        raise AssertionError

    def ask_for_turn(self) -> None:
        pass

    def submit_queued(self) -> None:
        pass

    def draw_number(self) -> int:
        return 0

    def ask_from_elsewhere(self, what: object) -> None:
        raise AssertionError

    def cancel_receives(self, group: object) -> None:
        pass

    def groups_in_flight(self) -> set[int]:
        return {1}


def test_a_number_in_flight_is_not_given_again() -> None:
    """A group gets the first number that neither a group nor a request in flight has."""
    registry = Registry(Clerk())  # type: ignore[arg-type]
    with CoreRing(2, cq_entries=4) as ring:
        groups = [registry.register_buffer_ring(ring, count=1, size=16, on_empty="raise") for _ in range(3)]
        assert [group.group_id for group in groups] == [0, 2, 3]
        groups[1].unregister()
        again = registry.register_buffer_ring(ring, count=1, size=16, on_empty="raise")
        assert again.group_id == 2
        registry.unregister()
        assert not any(group.registered for group in (*groups, again))


def test_unregister_takes_everything_back() -> None:
    """After unregister() the kernel has nothing, and the same can be registered again."""
    registry = Registry(Clerk())  # type: ignore[arg-type]
    with CoreRing(2, cq_entries=4) as ring:
        for _ in range(2):
            buffers = registry.register_buffers(ring, None, count=1, size=16)
            with pytest.raises(aiouring.ResourceBusyError, match="one table"):
                registry.register_buffers(ring, None, count=1, size=16)
            registry.unregister()
            assert not buffers.registered


def test_a_ring_without_registrations_dies_at_once() -> None:
    """The registry does not keep its ring alive."""
    gc.disable()
    try:
        ring = aiouring.Ring(2, cq_entries=4)
        gone = weakref.ref(ring)
        del ring
        assert gone() is None
    finally:
        gc.enable()
