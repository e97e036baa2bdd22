"""Embeddings of any model, from a table in any usual file, as `Embeddings` with metadata.

    found = read("rxrx1-dl-embeddings.zip", "rxrx1-metadata.zip")
    found.embeddings.x, found.embeddings.sites, found.remarks

Rows match the metadata by id, in any order. What is missing, too much or left out is counted and
said in `remarks`; what would mislead is refused.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rxrx1_jax.config import user_path
from rxrx1_jax.data import embeddings as embeddings_lib
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import DatasetError, Sites
from rxrx1_jax.data.table_columns import feature_columns, judged, listed, metadata_columns
from rxrx1_jax.data.table_files import matrix, read_table
from rxrx1_jax.data.table_ids import Ids, ids_of
from rxrx1_jax.data.table_metadata import metadata_in, read_metadata

HALF = 0.5  # so much missing, of one kind of sites, is no accident
KINDS = ("site", "well_type", "experiment")


class Found(NamedTuple):
    """A table that was read."""

    embeddings: Embeddings
    remarks: list[str]  # a line each


def read(path: str | os.PathLike, metadata: str | os.PathLike = "") -> Found:
    """Reads embeddings of sites or wells.

    Args:
      path: CSV, TSV, either in gzip or zip, Parquet, .h5ad, or a run's embeddings.parquet; of
        sites or wells. `table_ids` has the names that ids may have.
      metadata: a file of `table_metadata.read_metadata`; "": the table has well_type and sirna_id
        itself.

    Returns:
      Rows in the order of the metadata, all columns METADATA; a well has its own id as site_id,
      and site 1. `source` holds file, metadata, and a digest of all that was read.

    Raises ValueError: one line with the file, what was found, what was expected and what to do;
    OSError.
    """
    path = user_path(path)
    table = read_table(path)
    if not metadata and embeddings_lib.DIGEST.encode() in (table.schema.metadata or {}):
        return Found(embeddings_lib.read(path), [])
    given = metadata_columns(table.column_names)
    found = ids_of(table, given, path)
    if metadata:
        known = read_metadata(metadata, found.unit)
        rows, sites, remarks = _matched(found, known, path, user_path(metadata))
    else:
        rows, remarks = np.arange(len(table)), []
        sites = metadata_in(table, given, found.unit, found.ids, path)
        _check_once(found.ids, found.unit, path)
    try:
        names, others = feature_columns(table)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    x = matrix(table, names, rows)
    del table
    others = [name for name in others if name not in found.columns]
    if others:
        remarks.append(f"no features, by name or kind: {listed(others)}")
    reasons = judged(x, sites)
    if reasons:
        out = np.any(list(reasons.values()), axis=0)
        for reason, columns in reasons.items():
            left = listed([names[i] for i in np.flatnonzero(columns)])
            remarks.append(f"left out, {reason}: {left}")
        if out.all():
            raise DatasetError(
                f"{path}: no features left: {'; '.join(remarks)}; expected numbers that differ"
                " from site to site"
            )
        names, x = [names[i] for i in np.flatnonzero(~out)], x[:, ~out]
    _check_finite(x, names, sites[f"{found.unit}_id"], path)
    source = {"file": str(path), "metadata": str(metadata), "digest": _digest(sites, x)}
    return Found(Embeddings(sites, x, unit=found.unit, source=source), remarks)


def _check_once(ids: np.ndarray, unit: str, path: Path) -> None:
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        also = "" if unit == "site" else ", or a column site"
        raise DatasetError(
            f"{path}: {(counts > 1).sum()} {unit}s have several rows (the first:"
            f" {names[counts > 1][0]}; {counts.max()} rows at most); expected a row per"
            f" {unit}{also}: remove the others, or average them"
        )


def _matched(
    found: Ids, known: Sites, path: Path, metadata: Path
) -> tuple[np.ndarray, Sites, list[str]]:
    """Rows of the table in the order of the metadata, their sites, and what does not match."""
    ids = known[f"{found.unit}_id"]
    order = np.argsort(found.ids)
    place = np.minimum(np.searchsorted(found.ids, ids, sorter=order), len(order) - 1)
    there = found.ids[order[place]] == ids
    rows = order[place[there]]
    known_rows = np.isin(found.ids, ids)
    extra, missing = found.ids[~known_rows], len(ids) - len(rows)
    if not len(rows) or min(len(extra) / len(found.ids), missing / len(ids)) > HALF:
        raise DatasetError(
            f"{path}: {known_rows.sum()} of {len(found.ids)} rows are {found.unit}s of {metadata}"
            f" (one that is not: {str(extra[0])!r}); expected ids such as {ids[0]}: is one of the"
            " files of another screen?"
        )
    _check_once(found.ids[known_rows], found.unit, path)
    _check_halves(known, there, found.unit, path, metadata)
    remarks = []
    if missing:
        remarks.append(
            f"{missing} of {len(ids)} {found.unit}s of {metadata} have no row in {path} (the"
            f" first: {ids[~there][0]})"
        )
    if len(extra):
        remarks.append(
            f"{len(extra)} of {len(found.ids)} rows of {path} are not in {metadata} and are left"
            f" out (the first: {str(extra[0])!r})"
        )
    return rows, known[there], remarks


def _check_halves(known: Sites, there: np.ndarray, unit: str, path: Path, metadata: Path) -> None:
    """Refuses a table without half of the sites of a kind; whole experiments may be missing."""
    begun = np.isin(known["experiment"], known["experiment"][there])
    shares = []
    for kind in KINDS if unit == "site" else KINDS[1:]:
        for value in np.unique(known[kind][begun]).tolist():
            of_kind = there[begun & (known[kind] == value)]
            shares.append((of_kind.mean(), f"{of_kind.sum()} of {len(of_kind)}", kind, value))
    share, count, kind, value = min(shares, key=lambda found: found[0])
    if share <= 1 - HALF:
        raise DatasetError(
            f"{path}: {count} {unit}s with {kind} {value} have a row; expected more than half: add"
            f" them or, if the table is meant so, give the metadata of its {unit}s alone in place"
            f" of {metadata}"
        )


def _check_finite(x: np.ndarray, names: list[str], ids: np.ndarray, path: Path) -> None:
    bad = ~np.isfinite(x)
    rows, columns = bad.any(1), bad.any(0)
    if rows.any():
        left = listed([names[i] for i in np.flatnonzero(columns)])
        raise DatasetError(
            f"{path}: {rows.sum()} of {len(x)} rows have missing or infinite numbers (the first:"
            f" {ids[rows.argmax()]}; in {left}); expected finite ones: drop these rows or columns"
        )


def _digest(sites: Sites, x: np.ndarray) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=8)
    digest.update(sites.tobytes())
    return digest.hexdigest()
