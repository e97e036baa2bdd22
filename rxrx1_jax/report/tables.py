"""The one table of the project: its cells are given once and shown as text, Markdown or HTML.

Text cells are prose: they stand left and wrap. Values stand right and never wrap.
"""

import math
import textwrap
from dataclasses import dataclass, field
from html import escape
from itertools import zip_longest
from typing import NamedTuple

from rxrx1_jax.methods.statistics import Comparison, Score, summarise

NOTHING = "–"
ADJUSTED = "p (Holm)"  # head of a column: adjusted for the rows of the table
WIDEST = 48  # characters of a line of prose in a text table

# Of the page that shows such tables. The first column stays where a wide table is scrolled; print
# has no scrolling, so there the table shrinks.
STYLE = """
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; font-weight: 400;
  border-top: 1px solid #ddd; }
th.value, td.value { text-align: right; }
td.value { white-space: nowrap; }
thead th { border-top: 0; border-bottom: 1px solid #222; vertical-align: bottom; font-weight: 600; }
tr > th:first-child { padding-left: 0; position: sticky; left: 0; background: #fff; }
tr.heading th { font-weight: 600; padding-top: .8rem; }
.wide { overflow-x: auto; }
@media print {
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  table, tr { break-inside: avoid; } thead { display: table-header-group; }
  tr > th:first-child { position: static; }
}
"""


class Value(NamedTuple):
    """A figure, and either its standard deviation or its interval."""

    value: float  # NaN: there is none
    digits: int | None = 1  # after the point; None: as many as the value has
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    signed: bool = False
    n: int = 0  # number of folds or runs, where it must be said

    def __str__(self) -> str:
        if math.isnan(self.value):
            return NOTHING
        text = self._number(self.value)
        if not math.isnan(self.sd):
            text += f" ± {format(self.sd, self._places)}"
        if not math.isnan(self.low):
            text += f" ({self._number(self.low)} to {self._number(self.high)})"
        return text + (f" (n = {self.n})" if self.n else "")

    def _number(self, value: float) -> str:
        return format(value, ("+" if self.signed else "") + self._places)

    @property
    def _places(self) -> str:
        return "" if self.digits is None else f",.{self.digits}f"


Cell = str | Value


@dataclass(frozen=True)
class Table:
    caption: str
    head: list[str]
    rows: list[list[Cell]]  # a row of one cell is a heading over the rows below it
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Aligned columns, two spaces between them."""
        rows: list[list[Cell]] = [[*self.head], *self.rows]
        lines = [[textwrap.wrap(str(cell), WIDEST) or [""] for cell in row] for row in rows]
        full = [row for row in lines if len(row) > 1]
        columns = zip(*full, strict=True)
        widths = [max(len(part) for cell in column for part in cell) for column in columns]
        out = [self.caption]
        for given, row in zip(rows, lines, strict=True):
            if len(row) == 1:
                out.append(str(given[0]))
                continue
            for parts in zip_longest(*row, fillvalue=""):
                cells = (
                    part.rjust(width) if value else part.ljust(width)
                    for part, width, value in zip(parts, widths, self._of_values(), strict=True)
                )
                out.append("  ".join(cells).rstrip())
        return "\n".join([*out, *self.notes]) + "\n"

    def markdown(self) -> str:
        def line(cells: list[Cell]) -> str:
            return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

        blank: list[Cell] = [""] * (len(self.head) - 1)
        out = [f"{self.caption}:", "", line([*self.head])]
        out.append("|" + "|".join("---:" if value else "---" for value in self._of_values()) + "|")
        out += [line(row if len(row) > 1 else [f"**{row[0]}**", *blank]) for row in self.rows]
        return "\n".join([*out, "", *self.notes]).rstrip("\n") + "\n"

    def html(self) -> str:
        columns = self._of_values()

        def row(cells: list[Cell]) -> str:
            if len(cells) == 1:
                text = f'<th scope="rowgroup" colspan="{len(self.head)}">{escape(str(cells[0]))}'
                return f'</tbody>\n<tbody><tr class="heading">{text}</th></tr>'
            first, *rest = (escape(str(cell)) for cell in cells)
            kinds = (_kind(isinstance(cell, Value)) for cell in cells[1:])
            found = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, rest, strict=True))
            return f'<tr><th scope="row">{first}</th>{"".join(found)}</tr>'

        head = "".join(
            f'<th scope="col"{_kind(value)}>{escape(cell)}</th>'
            for value, cell in zip(columns, self.head, strict=True)
        )
        body = "\n".join(row(cells) for cells in self.rows)
        return (
            f'<div class="wide"><table><caption>{escape(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
            + "".join(f'<p class="note">{escape(note)}</p>\n' for note in self.notes)
        )

    def _of_values(self) -> list[bool]:
        """Whether each column holds values, not prose."""
        full = [row for row in self.rows if len(row) > 1]
        return [any(isinstance(row[k], Value) for row in full) for k in range(len(self.head))]


def percent(score: Score, signed: bool = False) -> Value:
    """The mean of a score in %, ± sd over worlds, or over the folds of a single one."""
    found = summarise(score)
    return Value(100 * found.mean, sd=100 * found.over_units, signed=signed)


def gain(found: Comparison) -> Value:
    """A difference of fractions in points, with its interval."""
    return Value(100 * found.mean, low=100 * found.low, high=100 * found.high, signed=True)


def _kind(value: bool) -> str:
    return ' class="value"' if value else ""
