"""Which columns of a table are features, and which are ids, metadata or labels.

By name, as others call them; by kind; and by content: what has one value per siRNA, per plate or
per position of a well is no feature, whatever its name.
"""

import numpy as np
import pyarrow as pa

from rxrx1_jax.data.images import METADATA, DatasetError, Sites

ALIASES = {  # as others call them, in lower case and without Metadata_ -> our name
    "id_code": "well_id", "experiment_name": "experiment", "batch": "experiment",
    "plate_number": "plate", "well_position": "well", "address": "well", "field": "site",
    "fov": "site", "cell_line": "cell_type",
}  # fmt: skip
PREFIXES = ("image_metadata_", "metadata_")
# Further numbers that are no features: what our own tables and others' have beside them.
NO_FEATURES = frozenset(
    "role label labels target class y prediction probability loss well_prediction release_row row"
    " column col index _index level_0 split fold imagenumber objectnumber tablenumber".split()
)
GROUPS = {"siRNA": ["sirna_id"], "plate": ["experiment", "plate"], "position": ["well"]}


def known_as(name: str) -> str:
    """Our name of a column of metadata; "" if it is none."""
    plain = name.strip().lower()
    for prefix in PREFIXES:
        plain = plain.removeprefix(prefix)
    plain = ALIASES.get(plain, plain)
    return plain if plain in METADATA else ""


def metadata_columns(names: list[str]) -> dict[str, str]:
    """Our name of each column of metadata: the column. Our own spelling goes before others'."""
    given: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.lower() not in METADATA):
        if known_as(name):
            given.setdefault(known_as(name), name)
    return given


def feature_columns(table: pa.Table) -> tuple[list[str], list[str]]:
    """The columns that may be features, and those that are none: ids, labels, text.

    Raises DatasetError: text in a column whose other values are numbers; no feature at all.
    """
    features, others = [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if known_as(name) or name.lower() in NO_FEATURES or name.lower().startswith(PREFIXES):
            others.append(name)
        elif name in ("", "Unnamed: 0") or name.startswith("__index_level_"):
            others.append(name)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            features.append(name)
        else:
            if pa.types.is_string(kind):
                _check_text(name, column)
            others.append(name)
    if not features:
        last = others[-1]
        raise DatasetError(
            f"no columns of numbers beside {listed(others)} ({last} holds {table[last][0]});"
            " expected features, such as feature_0 with 0.25"
        )
    return features, others


def _check_text(name: str, column: pa.ChunkedArray) -> None:
    """Refuses text in a column that else holds numbers."""
    texts = [text or "" for text in column.to_pylist()]
    numbers = [_is_number(text) for text in texts]
    if len(numbers) > sum(numbers) >= len(numbers) / 2:
        row = numbers.index(False)
        raise DatasetError(
            f"column {name}, row {row + 1}: found the text {texts[row]!r} among {sum(numbers)}"
            " numbers; expected numbers alone: correct it or drop the column"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def judged(x: np.ndarray, sites: Sites) -> dict[str, np.ndarray]:
    """Why a column of x, f32 [n, d], is no feature: the reason, and bool [d] of the columns."""
    empty = np.isnan(x).all(0)
    constant = (x == x[0]).all(0)
    found = {"not a number in any row": empty, "constant": constant}
    left = np.flatnonzero(~empty & ~constant)
    for what, names in GROUPS.items():
        known = sites["sirna_id"] >= 0 if what == "siRNA" else np.full(len(sites), True)
        rows = np.flatnonzero(known)
        _, group = np.unique(sites[names][rows], return_inverse=True)
        rows = rows[np.argsort(group, kind="stable")]
        group = np.sort(group)
        same = np.flatnonzero(group[1:] == group[:-1])  # pairs of rows of one group
        for some in (same[:64], same):  # nearly all are ruled out by a few rows
            here, after = x[np.ix_(rows[some], left)], x[np.ix_(rows[some + 1], left)]
            left = left[(here == after).all(0)] if len(some) else left[:0]
        found[f"one value per {what}"] = np.isin(np.arange(x.shape[1]), left)
        left = np.flatnonzero(~np.any(list(found.values()), axis=0))
    return {reason: columns for reason, columns in found.items() if columns.any()}


def listed(names: list[str], shown: int = 8) -> str:
    """Names in a sentence; of many, the first."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
