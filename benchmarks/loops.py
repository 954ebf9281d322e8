"""Owns the grid of what is compared: the event loops, and the ring's two ways to run completions."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias, TypeVar

import uvloop

T = TypeVar("T")

TaskRun: TypeAlias = Literal["coop", "defer"]
TASK_RUNS: tuple[TaskRun, ...] = ("coop", "defer")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(loop: str, main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a new loop of the kind named."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(main)
