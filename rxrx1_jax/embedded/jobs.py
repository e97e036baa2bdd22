"""What is computed of a table: methods x splits x folds, in processes, kept and found again.

OUT/results/METHOD/SPLIT-FOLD.json keeps a result, with what it was computed from: the digests of
the table and of the split, and the method's version. SPLIT-FOLD.parquet beside it has the
predictions. A method that refuses these data is kept with its reason.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.files import parse_json, write_text
from rxrx1_jax.embedded import judging
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.methods.evidence import Method, choose
from rxrx1_jax.training.predictions import accuracies, write_predictions

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
FIGURES = "figures"  # in place of a split: those of the embeddings after the transforms


class Job(NamedTuple):
    method: str
    split: str  # a protocol, or FIGURES: of the batch split
    fold: int
    val_experiments: int = 0  # of each cell type, as in `make_split`

    @property
    def name(self) -> str:
        return f"{self.method}/{self.split}-{self.fold}"


def work_of(
    job: Job, table: Embeddings, method: Method, digest: str, place: Path | None
) -> tuple[dict[str, Any], float]:
    """The result of a job, stored before in `place` or computed and stored; and the seconds taken.

    A result is {"made_by", "refused": why or ""} and of a split {"accuracy", "shared": test sites
    per training site, "external"}, else {"figures"}.
    """
    figures = job.split == FIGURES
    protocol = "batch" if figures else job.split
    evidence = judging.evidence_of(table, protocol, job.fold, job.val_experiments)
    made_by = {
        "table": digest, "method": method.version,
        "split": hashlib.blake2b(evidence.role.tobytes(), digest_size=8).hexdigest(),
        "figures": f"{judging.VERSION}.{diagnosis.VERSION}" if figures else "",
    }  # fmt: skip
    path = place / "results" / f"{job.name}.json" if place else None
    if path and (found := _stored(path)).get("made_by") == made_by:
        return found, 0.0
    begun, result = time.monotonic(), dict[str, Any](made_by=made_by, refused="")
    try:
        method = choose(method, evidence)
        given = judging.corrected(method, evidence)
        if figures:
            result["figures"] = judging.figures(given.x, evidence.sites, evidence.role)
        else:
            predictions = judging.predicted(method, evidence, given)
            train, test = ((evidence.role == role).sum() for role in ("train", "test"))
            result |= {
                "accuracy": accuracies(predictions), "shared": float(test / train),
                "external": judging.is_external(table, evidence),
            }  # fmt: skip
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_predictions(path.with_suffix(".parquet"), predictions)
    except ImportError as error:  # a library of an extra: not kept, it may be installed
        return {**result, "refused": str(error)}, 0.0
    except ValueError as error:  # data that a method is not for
        result["refused"] = str(error)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, indent=1) + "\n")
    return result, time.monotonic() - begun


def do_all(
    jobs: Sequence[Job], table: Embeddings, methods: Mapping[str, Method], place: Path | None,
    workers: int,
) -> dict[Job, dict[str, Any]]:  # fmt: skip
    """{job: its result}, with the time left on stderr.

    workers: processes; each finds its methods by name and has an equal share of the cores. 1: here.
    """
    digest, found, taken = digest_of(table), dict[Job, dict[str, Any]](), list[float]()
    for job, (result, seconds) in _results(jobs, table, methods, digest, place, workers):
        found[job] = result
        taken += [seconds] if seconds else []
        text = f"{len(found)} of {len(jobs)}: {job.name}"
        if result["refused"]:
            text += f" is left out: {result['refused']}"
        elif taken and len(found) < len(jobs):
            left = sum(taken) / len(taken) / workers * (len(jobs) - len(found))
            text += f", about {timedelta(seconds=round(left))} left"
        print(text, file=sys.stderr, flush=True)
    return {job: found[job] for job in jobs}


def _results(
    jobs: Sequence[Job], table: Embeddings, methods: Mapping[str, Method], digest: str,
    place: Path | None, workers: int,
) -> Iterator[tuple[Job, tuple[dict[str, Any], float]]]:  # fmt: skip
    if workers == 1:
        for job in jobs:
            yield job, work_of(job, table, methods[job.method], digest, place)
        return
    share = str(max(1, (os.cpu_count() or 1) // workers))
    given = dict.fromkeys(THREADS, share) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given  # children inherit them, before they load a library
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin, (table, digest, place)
    )
    try:
        queue: dict[Future[Any], Job] = {pool.submit(_do, job): job for job in jobs}
        for future in as_completed(queue):
            yield queue[future], future.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {workers} workers was ended from outside, maybe for lack of memory; the same"
            " command goes on, and with fewer --workers it needs less"
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


_of_process: tuple[Embeddings, str, Path | None]


def _begin(*given: Any) -> None:
    """What a worker keeps for its jobs. It ends with the process that started it, however that
    ends."""
    global _of_process
    _of_process = given  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told once, by the first process
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _do(job: Job) -> tuple[dict[str, Any], float]:
    table, digest, place = _of_process
    return work_of(job, table, find(job.method), digest, place)


def digest_of(table: Embeddings) -> str:
    """Of all that a result can depend on."""
    digest = hashlib.blake2b(table.x.tobytes(), digest_size=8)
    digest.update(table.sites.tobytes())
    digest.update(b"" if table.role is None else table.role.tobytes())
    return digest.hexdigest()


def _stored(path: Path) -> dict[str, Any]:
    """What is kept at a path; empty where it is not what was written."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "refused" in found else {}
