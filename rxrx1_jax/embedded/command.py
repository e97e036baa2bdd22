"""Methods on a table of embeddings, from what was asked to what a page says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rxrx1_jax.data import table_styles
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.splits import make_split
from rxrx1_jax.embedded import judging
from rxrx1_jax.embedded.jobs import FIGURES, Job, do_all
from rxrx1_jax.embedded.page import Judged
from rxrx1_jax.embedded.tables import reference, rows_of
from rxrx1_jax.methods import catalogue
from rxrx1_jax.methods.catalogue import METHODS, find
from rxrx1_jax.methods.evidence import Method

PROTOCOLS = ("batch", "random_site", "random_well", "official")
MOST_WORKERS = 8  # unless told; each has the table in its memory


class Asked(NamedTuple):
    """What is to be tried."""

    methods: Mapping[str, Method]  # with those that they are compared with
    references: Mapping[str, str]  # name -> name of what it is compared with; "": nothing
    protocols: Sequence[str] = ("batch",)  # the first is that of the tables
    folds: Sequence[int] = (0, 1, 2)
    val_experiments: int = 0  # of each cell type, for methods with a grid


def usable() -> list[str]:
    """The methods of the catalogue that need no network."""
    return [name for name, of in METHODS.items() if of.classify and not of.adapt]


def asked_for(
    names: Sequence[str] | Mapping[str, Method], protocols: Sequence[str], folds: Sequence[int],
    val_experiments: int = 0,
) -> Asked:  # fmt: skip
    """Raises ValueError: an unknown method, or one that needs a network; another protocol."""
    given = dict(names) if isinstance(names, Mapping) else {name: find(name) for name in names}
    references = {}
    for name, method in given.items():
        if any(one.classify is None or one.adapt for one in method.grid or (method,)):
            raise ValueError(
                f"method {name!r} needs the network, and a table has none; expected some of"
                f" {', '.join(usable())}, chains of them, or your own with a classifier"
            )
        by_name = not isinstance(names, Mapping)
        found = catalogue.reference(name) if by_name else reference(method)
        references[name] = found.replace("none", "")
    plain = {name: find(name) for name in references.values() if name and name not in given}
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r}: expected some of {', '.join(PROTOCOLS)}")
    return Asked(plain | given, references, protocols, folds, val_experiments)


def judge(
    table: Embeddings, asked: Asked, place: Path | None = None, workers: int = 1,
    remarks: Sequence[str] = (),
) -> Judged:  # fmt: skip
    """Tries the methods; what is computed is kept in `place`, and found there again.

    workers: processes. More than one find the methods by their names.

    Raises SplitError before work starts; ValueError: every method refuses the table.
    """
    drawn = [
        (protocol, fold, asked.val_experiments) for protocol in asked.protocols
        for fold in (asked.folds if protocol != "official" else (0,))
    ]  # fmt: skip
    for protocol, fold, val in drawn:
        make_split(table.sites, protocol, fold, val_experiments=val)
    jobs, seen = list[Job](), list[object]()
    for name, method in asked.methods.items():
        changes = method.transforms, bool(method.uses & {"test_controls", "test_images"})
        key = method.grid or (changes if method.transforms else ())
        if key not in seen:  # the same embeddings are looked at once
            seen.append(key)
            jobs.append(Job(name, FIGURES, asked.folds[0], asked.val_experiments))
    jobs += [Job(name, *split) for split in drawn for name in asked.methods]
    results = do_all(jobs, table, asked.methods, place, min(workers, len(jobs)))
    world = Path(table.source.get("file", "table")).stem
    rows = rows_of(results, asked.methods, asked.references, world)
    if not any(row.score(asked.protocols[0]) for row in rows):
        refused = next(of["refused"] for of in results.values() if of["refused"])
        raise ValueError(f"every method refuses the table; the first: {refused}")
    return Judged(table, asked.methods, rows, results, asked.protocols[0], remarks)


def write_corrected(judged: Judged, style: str, folder: Path) -> list[Path]:
    """FOLDER/METHOD.parquet or .h5ad: all rows after the transforms of each method that has some.

    What a method learns from training sites it learns from those of the first fold.
    """
    written, folds = [], [unit.fold for unit in judged.rows[0].accuracy[judged.protocol]]
    for name, method in judged.methods.items():
        if method.transforms and name in {row.name for row in judged.rows}:
            path = folder / f"{name}{table_styles.STYLES[style]}"
            folder.mkdir(parents=True, exist_ok=True)
            after = judging.corrected_table(judged.table, method, judged.protocol, min(folds))
            table_styles.write(after, path, style)
            written.append(path)
    return written
