"""Owns the method: contenders take turns, and every round gives one ratio to that same round's baseline."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

#: What one run of one contender measured, by the name of the quantity.
Sample: TypeAlias = Mapping[str, float]
#: One round: a sample of every contender, taken one after the other.
Round: TypeAlias = Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Spread:
    """One ratio as the rounds saw it."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds' ratios."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        digits = 3 if self.median < 0.3 else 2 if self.median < 20 else 1
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


@dataclass(slots=True)
class Table:
    """Named rows of ratios; a cell is None where nothing was measured."""

    title: str
    meaning: str
    columns: Sequence[str]
    rows: list[tuple[str, list[Spread | None]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [["", *self.columns]]
        cells += [[name, *("-" if spread is None else str(spread) for spread in row)] for name, row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.title, *(f"  {line}" for line in self.meaning.splitlines()), ""]
        for first, *rest in cells:
            aligned = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
            lines.append("  ".join(["  " + first.ljust(widths[0]), *aligned]).rstrip())
        return "\n".join([*lines, "", *(f"  {remark}" for remark in self.remarks)]).rstrip()

    def as_json(self) -> dict[str, object]:
        """The table with the ratio of every round, for `json.dump`."""
        rows = {
            name: {
                column: None if spread is None else {"median": spread.median, "rounds": spread.values}
                for column, spread in zip(self.columns, row, strict=True)
            }
            for name, row in self.rows
        }
        return {"title": self.title, "meaning": self.meaning, "rows": rows, "remarks": self.remarks}


def interleave(contenders: Mapping[str, Callable[[], Sample]], rounds: int) -> list[Round]:
    """Run A B C, A B C, ...: what disturbs the machine for a while disturbs all of them."""
    done: list[Round] = []
    for number in range(1, rounds + 1):
        started = time.monotonic()
        done.append({name: contender() for name, contender in contenders.items()})
        print(f"  round {number} of {rounds}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return done


def ratio(rounds: Sequence[Round], quantity: str, name: str, baseline: str) -> Spread:
    """`quantity` of contender `name` divided by the baseline's of the same round."""
    return Spread(tuple(each[name][quantity] / each[baseline][quantity] for each in rounds))


def verdict(table: Table, column: str, target: float, *, at_most: bool, rows: str = "", every: bool = False) -> str:
    """A remark that compares a column with a target: its best row, or `every` one and so its worst.

    `rows` limits it to those whose names begin with that.
    """
    at = list(table.columns).index(column)
    medians = {
        name: spread.median for name, row in table.rows if name.startswith(rows) and (spread := row[at]) is not None
    }
    if not medians:
        return f"target for {column!r}: not measured"
    name = (min if at_most is not every else max)(medians, key=lambda each: medians[each])
    met = medians[name] <= target if at_most else medians[name] >= target
    return (
        f"target for {column!r}: {'at most' if at_most else 'at least'} {target:g}; "
        f"the {'worst' if every else 'best'} is {name} with {medians[name]:.3g}: {'met' if met else 'MISSED'}"
    )
