"""Tests of Line: who waits for a buffer, in which order, and what cancellation does to it."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from aiouring._line import Line

pytestmark = pytest.mark.needs_no_ring


def make_line() -> tuple[Line[str], list[str]]:
    """A line, and the list of what its waiters could not take."""
    returned: list[str] = []
    return Line(asyncio.get_running_loop().create_future, returned.append), returned


async def start(*coroutines: Coroutine[Any, Any, str]) -> list[asyncio.Task[str]]:
    """Tasks that have run up to their first wait."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


async def test_first_come_first_served() -> None:
    """Things are handed out in the order in which the waiters came."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait(), line.wait())
    assert len(line) == 3
    for thing in "abc":
        assert line.hand(thing)
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    assert len(line) == 0
    assert returned == []


async def test_nobody_waits() -> None:
    """What nobody waits for is not taken, and not kept for later."""
    line, returned = make_line()
    assert not line.hand("a")
    (task,) = await start(line.wait())
    assert not task.done()
    assert line.hand("b")
    assert await task == "b"
    assert returned == []


async def test_one_waiter_gets_one_thing() -> None:
    """A second thing in the same turn goes to the second waiter, or to nobody."""
    line, _ = make_line()
    (task,) = await start(line.wait())
    assert line.hand("a")
    assert not line.hand("b")
    assert await task == "a"


async def test_a_ticket_keeps_its_place() -> None:
    """Whoever had been called and could not be served comes back with the old ticket, to the old place."""
    line, _ = make_line()
    first, second, third = (line.draw_ticket() for _ in range(3))
    tasks = await start(line.wait(), line.wait(), line.wait(second), line.wait(first), line.wait(third))
    for thing in "abcde":
        line.hand(thing)
    assert await asyncio.gather(*tasks) == ["d", "e", "b", "a", "c"]


async def test_evicted_by_owner() -> None:
    """Those of one owner get the error; the others move up."""
    line, _ = make_line()
    tasks = await start(line.wait(owner="x"), line.wait(owner="y"), line.wait(owner="x"))
    assert line.evict("x".__eq__, KeyError("gone")) == 2
    assert line.evict("x".__eq__, KeyError("gone")) == 0
    assert line.hand("a")
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [KeyError, str, KeyError]


async def test_cancelled_waiter_is_passed_over() -> None:
    """A waiter that was cancelled leaves the line; those behind it move up."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait(), line.wait())
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert tasks[1].cancelled()
    assert len(line) == 2
    assert line.hand("a")
    assert line.hand("b")
    assert not line.hand("c")
    assert [await tasks[0], await tasks[2]] == ["a", "b"]
    assert returned == []


async def test_cancelled_then_handed_in_the_same_turn() -> None:
    """A waiter whose task has not yet noticed its cancellation is passed over as well."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait())
    tasks[0].cancel()
    assert line.hand("a")
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert tasks[1].result() == "a"
    assert returned == []
    assert len(line) == 0


async def test_all_cancelled_then_handed_in_the_same_turn() -> None:
    """If all who seem to wait have been cancelled, there is nobody."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait())
    for task in tasks:
        task.cancel()
    assert not line.hand("a")
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert returned == []


async def test_handed_then_cancelled_in_the_same_turn() -> None:
    """A thing whose taker was cancelled before it could take it is returned, and serves the next."""
    returned: list[str] = []

    def take_back(thing: str) -> None:
        returned.append(thing)
        line.hand(thing)

    line: Line[str] = Line(asyncio.get_running_loop().create_future, take_back)
    tasks = await start(line.wait(), line.wait())
    assert line.hand("a")
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert tasks[1].result() == "a"
    assert returned == ["a"]


async def test_cancelled_all_along_the_line() -> None:
    """A thing that is handed on and on, each taker being cancelled in turn, is never lost."""
    line, returned = make_line()
    tasks = await start(*(line.wait() for _ in range(5)))
    for task in tasks:
        assert line.hand(returned.pop() if returned else "a")
        task.cancel()
        await asyncio.wait([task])
        assert returned == ["a"]
    assert len(line) == 0


async def test_dismiss() -> None:
    """Everybody who waits gets the error; the line can be used again."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait())
    line.dismiss(RuntimeError("gone"))
    assert len(line) == 0
    for task in tasks:
        with pytest.raises(RuntimeError, match="gone"):
            await task
    (task,) = await start(line.wait())
    assert line.hand("a")
    assert await task == "a"
    assert returned == []


async def test_dismissed_and_cancelled_in_the_same_turn() -> None:
    """Cancellation wins, and nothing is returned, because nothing had been handed over."""
    line, returned = make_line()
    tasks = await start(line.wait(), line.wait())
    line.dismiss(RuntimeError("gone"))
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert isinstance(tasks[1].exception(), RuntimeError)
    assert returned == []


async def test_dismiss_passes_over_the_cancelled() -> None:
    """A waiter that is being cancelled does not get the error."""
    line, _ = make_line()
    tasks = await start(line.wait(), line.wait())
    tasks[0].cancel()
    line.dismiss(RuntimeError("gone"))
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert isinstance(tasks[1].exception(), RuntimeError)


async def test_wait_under_a_timeout() -> None:
    """A timeout takes the waiter out of the line like any cancellation."""
    line, returned = make_line()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await line.wait()
    assert len(line) == 0
    assert not line.hand("a")
    assert returned == []


@pytest.mark.parametrize("seed", range(20))
async def test_random_schedules(seed: int) -> None:
    """Over random arrivals, cancellations and hand-overs, order is kept and each thing ends in one place."""
    choose = random.Random(seed)
    line, returned = make_line()
    tasks: list[asyncio.Task[str]] = []
    handed = 0
    for _ in range(200):
        action = choose.choice(("arrive", "arrive", "hand", "hand", "cancel", "run"))
        if action == "arrive":
            tasks.append(asyncio.create_task(line.wait()))
        elif action == "hand":
            handed += line.hand(f"{handed:06}")
        elif action == "cancel" and tasks:
            choose.choice(tasks[-6:]).cancel()
        else:
            await asyncio.sleep(0)
    line.dismiss(RuntimeError("gone"))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    received = [task.result() for task in tasks if not task.cancelled() and task.exception() is None]
    assert received == sorted(received), "somebody was overtaken"
    assert sorted(received + returned) == [f"{number:06}" for number in range(handed)]
    assert len(line) == 0
