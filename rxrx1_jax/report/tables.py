"""The one table of the project: its cells are given once and shown as Markdown or HTML.

Text cells are prose: they stand left and wrap. Values stand right and never wrap.
"""

import csv
import io
import json
import math
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rxrx1_jax.data.files import write_text
from rxrx1_jax.methods.statistics import Comparison, Score, summarise

NOTHING = "–"
MANY = 9  # links of one cell
ADJUSTED = "p (Holm)"  # head of a column: adjusted for the rows of the table

# Of the page that shows such tables. On a narrow screen a row is a block, each cell under its
# heading. The first column, or the heading of a block, stays where the rest is scrolled.
STYLE = """
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  margin: 1rem 0 .3rem; max-width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .5rem; text-align: left; vertical-align: top; font-weight: 400;
  border-top: 1px solid #ddd; overflow-wrap: anywhere; min-width: 2.5rem; }
th.value, td.value { text-align: right; }
th.value { width: 1px; } td.value { overflow-wrap: normal; }
thead th { border-top: 0; border-bottom: 1px solid #222; vertical-align: bottom; font-weight: 600;
  overflow-wrap: normal; }
@media print, (min-width: 1200px) { td.value { white-space: nowrap; } }
tr > th:first-child { padding-left: 0; position: sticky; left: 0; background: #fff; }
tbody th:first-child { min-width: 7rem; }
tr.heading th { font-weight: 600; padding-top: .8rem; }
.wide { overflow-x: auto; }
@media print {
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .1rem .25rem; }
  tr { break-inside: avoid; } tbody tr:first-child { break-before: avoid; }
  thead { display: table-header-group; break-after: avoid; }
  tr > th:first-child { position: static; } tbody th:first-child { min-width: 8.5rem; }
  [data-label="runs"] { display: none; }
}
"""
# Columns of a table -> width of a screen, px, up to which its rows are blocks.
BLOCKS = {4: 640, 8: 900}
STYLE += "".join(
    f"""@media screen and (max-width: {width}px) {{
  .c{n} thead {{ position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden;
    width: 1px; }}
  .c{n} :is(table, tbody, tr, th, td, caption) {{ display: block; }}
  .c{n} td, .c{n} td.value {{ display: flex; justify-content: space-between; gap: 1rem;
    padding: .1rem 0; border: 0; text-align: right; max-width: 30rem; }}
  .c{n} td:empty {{ display: none; }}
  .c{n} td::before {{ content: attr(data-label); color: #555; text-align: left; }}
  .c{n} tr > th:first-child {{ font-weight: 600; top: 0; padding-top: .5rem; }}
}}
"""
    for n, width in BLOCKS.items()
)
PARTS = ("", " sd", " low", " high")  # of a value, in CSV and JSON


class Value(NamedTuple):
    """A figure, and either its standard deviation or its interval."""

    value: float  # NaN: there is none
    digits: int | None = 1  # after the point; None: as many as the value has
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    signed: bool = False
    n: int = 0  # number of folds or runs, where it must be said
    interval: bool = False  # whether one is expected: NOTHING is said where there is none

    def __str__(self) -> str:
        if math.isnan(self.value):
            return NOTHING
        text = self._number(self.value)
        if not math.isnan(self.sd):
            text += f" ± {format(self.sd, self._places)}"
        if not math.isnan(self.low):
            text += f" ({self._number(self.low)} to {self._number(self.high)})"
        elif self.interval:
            text += f" ({NOTHING})"
        return text + (f" (n = {self.n})" if self.n else "")

    def apart(self, other: str) -> str:
        """A difference in words: 3.0 ± 1.0 points above OTHER, 3.0 points below OTHER (...)."""
        size = Value(abs(self.value), self.digits, self.sd)
        interval = f" (95 % interval {self._number(self.low)} to {self._number(self.high)})"
        where = "above" if self.value >= 0 else "below"
        return f"{size} points {where} {other}{'' if math.isnan(self.low) else interval}"

    def _number(self, value: float) -> str:
        return format(value, ("+" if self.signed else "") + self._places)

    @property
    def _places(self) -> str:
        return "" if self.digits is None else f",.{self.digits}f"


class Links(NamedTuple):
    """Names, each with the folder or the place in the page (#NAME) that it leads to.

    Of more than MANY a reader sees the number, and on the page the names on demand.
    """

    items: tuple[tuple[str, Path | str], ...]  # "": to nowhere
    more: str = ""  # what is said after them

    def __str__(self) -> str:
        return " ".join(name for name, _ in self.items) + self.more

    @property
    def number(self) -> str:
        """"" where the names can be seen at once."""
        return f"{len(self.items)}" if len(self.items) > MANY else ""


Cell = str | Value | Links


def _brief(cell: Cell) -> str:
    return str(cell.number or cell) if isinstance(cell, Links) else str(cell)


@dataclass(frozen=True)
class Table:
    caption: str
    head: list[str]
    rows: list[list[Cell]]  # a row of one cell is a heading over the rows below it
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """With aligned columns, so that a terminal can show it, too."""
        rows: list[list[Cell]] = [[*self.head], *self.rows]
        lines = [[_brief(cell).replace("|", "\\|") for cell in row] for row in rows]
        blank = [""] * (len(self.head) - 1)
        lines = [row if len(row) > 1 or not blank else [f"**{row[0]}**", *blank] for row in lines]
        values = self._of_values()
        full = [line for line, row in zip(lines, rows, strict=True) if len(row) > 1] or lines
        widths = [max(map(len, column)) for column in zip(*full, strict=True)]

        def line(cells: list[str]) -> str:
            parts = zip(cells, widths, values, strict=True)
            return f"| {' | '.join(x.rjust(n) if right else x.ljust(n) for x, n, right in parts)} |"

        pairs = zip(widths, values, strict=True)
        rule = "|".join("-" * (n + 1) + (":" if right else "-") for n, right in pairs)
        out = [f"{self.caption}:", "", line(lines[0]), f"|{rule}|", *map(line, lines[1:])]
        return "\n".join([*out, "", *self.notes]).rstrip("\n") + "\n"

    def records(self) -> list[dict[str, str | float | None]]:
        """A row each, all with the same keys: the columns, and what their values have of PARTS."""
        group, found = "", list[dict[str, str | float | None]]()
        for row in self.rows:
            if len(row) == 1:
                group = str(row[0])
                continue
            record: dict[str, str | float | None] = {"group": group}
            for name, cell in zip(self.head, row, strict=True):
                if not isinstance(cell, Value):
                    record[name] = str(cell)
                    continue
                parts = zip(PARTS, (cell.value, cell.sd, cell.low, cell.high), strict=True)
                record |= {name + part: x for part, x in parts if not math.isnan(x)}
            found.append(record)
        possible = ["group"] * bool(group) + [name + part for name in self.head for part in PARTS]
        keys = [key for key in possible if any(key in record for record in found)]
        return [{key: record.get(key) for key in keys} for record in found]

    def write(self, folder: Path, name: str) -> None:
        """Writes FOLDER/NAME.csv and FOLDER/NAME.json, with all digits."""
        records, text = self.records(), io.StringIO()
        writer = csv.DictWriter(text, list(records[0]) if records else self.head)
        writer.writeheader()
        writer.writerows(records)
        write_text(folder / f"{name}.csv", text.getvalue())
        content = {"caption": self.caption, "rows": records, "notes": self.notes}
        write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def html(self, folder: Path = Path()) -> str:
        """folder: of the page, which links are relative to."""
        columns = self._of_values()

        def text(cell: Cell) -> str:
            if isinstance(cell, Links):
                linked = (
                    f'<a href="{escape(_address(to, folder), quote=True)}">{escape(name)}</a>'
                    if to else escape(name) for name, to in cell.items
                )  # fmt: skip
                names = f"<span>{' '.join(linked)}{escape(cell.more)}</span>" if cell.items else ""
                hidden = f"<details><summary>{cell.number}</summary>{names}</details>"
                return hidden if cell.number else names
            if isinstance(cell, Value):  # breaks before its bracket alone
                return escape(str(cell).replace(" ", "\xa0").replace("\xa0(", " ("))
            return escape(cell)

        def labelled(name: str) -> str:
            return f'data-label="{escape(name, quote=True)}"'

        def width(column: int) -> str:  # of prose: its longest word, if that is not too long
            cells = (str(row[column]).split() for row in self.rows if len(row) > 1)
            longest = max((len(word) for words in cells for word in words), default=0)
            return "" if columns[column] else f' style="min-width: {min(longest, 8)}ch"'

        def row(cells: list[Cell]) -> str:
            if len(cells) == 1:
                named = f'<th scope="rowgroup" colspan="{len(self.head)}">{text(cells[0])}'
                return f'</tbody>\n<tbody><tr class="heading">{named}</th></tr>'
            found = (
                f'<td{_kind(value)} {labelled(name)}>{text(cell)}</td>'
                for name, cell, value in zip(self.head[1:], cells[1:], columns[1:], strict=True)
            )
            return f'<tr><th scope="row">{text(cells[0])}</th>{"".join(found)}</tr>'

        head = "".join(
            f'<th scope="col"{_kind(columns[k])} {labelled(name)}{width(k)}>{escape(name)}</th>'
            for k, name in enumerate(self.head)
        )
        body = "\n".join(row(cells) for cells in self.rows)
        blocks = "".join(f" c{n}" for n in BLOCKS if len(self.head) >= n)
        return (
            f'<div class="wide{blocks}"><table><caption>{escape(self.caption)}</caption>\n'
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
    return Value(
        100 * found.mean, low=100 * found.low, high=100 * found.high, signed=True, interval=True
    )


def _address(to: Path | str, folder: Path) -> str:
    return to if isinstance(to, str) else quote(os.path.relpath(to, folder)) + "/"


def _kind(value: bool) -> str:
    return ' class="value"' if value else ""
