"""Methods on a made-up table of embeddings as large as the real screen: time, memory, accuracy.

    python -m benchmarks.methods

51 experiments of four plates with 277 siRNAs and 31 controls each, two sites per well. Biology by
siRNA, an offset per experiment and plate, a siRNA's own answer in each experiment. A third of the
experiments of each cell type is tested. Every method runs in a process of its own, and so does the
library that it is compared with. No method is quadratic in the number of rows. Retrieval is, which
judges them: ours in time, copairs, which keeps every pair, in memory, too. So it gets some wells.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.timing import describe
from rxrx1_jax.methods.catalogue import METHODS, find
from rxrx1_jax.methods.evidence import Evidence, scores

EXPERIMENTS = {"HUVEC": 24, "RPE": 11, "HEPG2": 11, "U2OS": 5}  # those of RxRx1
PLATES, POSITIVE, SITES = 4, 30, 2
PAIRS = 1500  # wells that copairs is given
LAYOUT = [("site_id", "U20"), ("well_id", "U18"), ("cell_type", "U8"), ("experiment", "U9"),
          ("plate", "i4"), ("site", "i4"), ("well_type", "U16"), ("sirna", "U8"),
          ("sirna_id", "i4")]  # fmt: skip


def screen(treatments: int, features: int, seed: int = 0) -> Evidence:
    """Made-up embeddings; treatments: siRNAs per plate."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(PLATES * treatments).reshape(PLATES, treatments)
    controls = PLATES * treatments + np.arange(POSITIVE + 1)
    kinds = ["treatment"] * treatments + ["positive_control"] * POSITIVE + ["negative_control"]
    rows, test = [], []
    for cell_type, count in EXPERIMENTS.items():
        for number in range(1, count + 1):
            name = f"{cell_type}-{number:02}"
            test += [name] if number > count - count // 3 else []
            for plate in range(PLATES):
                ids = [*groups[(plate + number) % PLATES], *controls]
                for well, (kind, sirna) in enumerate(zip(kinds, ids, strict=True)):
                    own = f"{name}_{plate + 1}_{well:03}"
                    rows += [(f"{own}_{site}", own, cell_type, name, plate + 1, site, kind,
                              f"s{sirna}", sirna) for site in range(1, SITES + 1)]  # fmt: skip
    sites = np.array(rows, LAYOUT)

    def of(*columns: str, size: float) -> np.ndarray:
        """A random vector for each combination of the columns, of this length."""
        code = np.zeros(len(sites), np.int64)
        for column in columns:
            values, own = np.unique(sites[column], return_inverse=True)
            code = code * len(values) + own
        values, own = np.unique(code, return_inverse=True)
        drawn = rng.normal(size=(len(values), features), scale=size / features**0.5)
        return drawn.astype(np.float32)[own]

    x = of("sirna_id", size=2) + of("sirna_id", "cell_type", size=1)
    x += of("experiment", size=3) + of("experiment", "plate", size=0.5)
    x += of("sirna_id", "experiment", size=1.2) + of("site_id", size=features**0.5 / 1.5)
    role = np.where(np.isin(sites["experiment"], test), "test", "train")
    role = np.where(sites["well_type"] == "treatment", role, "context")
    return Evidence(sites, role, x, None, np.arange(PLATES * treatments, dtype=np.int32))


def per_cell_type(make: Callable[[int], object]) -> Callable[[Evidence], float]:
    """Accuracy of scikit-learn's classifier make(rows), fitted per cell type."""

    def run(evidence: Evidence) -> float:
        right, sites = 0, evidence.sites
        for cell_type in EXPERIMENTS:
            here = sites["cell_type"] == cell_type
            train, test = (here & (evidence.role == role) for role in ("train", "test"))
            model = make(int(train.sum())).fit(evidence.x[train], sites["sirna_id"][train])  # type: ignore[attr-defined]
            right += (model.predict(evidence.x[test]) == sites["sirna_id"][test]).sum()
        return right / (evidence.role == "test").sum()

    return run


def sklearn_lda(rows: int) -> object:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def sklearn_softmax(rows: int) -> object:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(PCA(whiten=True), LogisticRegression(C=1 / (0.003 * rows), max_iter=50))


def neurocombat(evidence: Evidence) -> None:
    import pandas as pd
    from neuroCombat import neuroCombat

    for cell_type in EXPERIMENTS:
        here = evidence.sites["cell_type"] == cell_type
        batch = pd.DataFrame({"batch": evidence.sites["experiment"][here]})
        neuroCombat(evidence.x[here].T.astype(float), batch, "batch")


def harmonypy(evidence: Evidence) -> None:
    import harmonypy as library

    for cell_type in EXPERIMENTS:
        here = evidence.sites["cell_type"] == cell_type
        batch = {"batch": evidence.sites["experiment"][here]}
        library.run_harmony(evidence.x[here].astype(float), batch, ["batch"], verbose=False)


def some_wells(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """x [PAIRS, d] and the sites of wells that stand in every experiment."""
    control = (evidence.sites["well_type"] == "positive_control") & (evidence.sites["site"] == 1)
    rows = np.flatnonzero(control & (evidence.sites["cell_type"] == "HUVEC"))[:PAIRS]
    return evidence.x[rows], evidence.sites[rows]


def our_map(evidence: Evidence) -> float:
    from rxrx1_jax.methods.retrieval import retrieval_map

    x, sites = some_wells(evidence)
    return retrieval_map(x, sites["sirna_id"], sites["experiment"]).mean


def copairs(evidence: Evidence) -> float:
    import pandas as pd
    from copairs.map import average_precision

    x, sites = some_wells(evidence)
    table = pd.DataFrame({"sirna": sites["sirna_id"], "experiment": sites["experiment"]})
    found = average_precision(
        table, x, pos_sameby=["sirna"], pos_diffby=["experiment"], neg_sameby=[],
        neg_diffby=["sirna"], progress_bar=False,
    )  # fmt: skip
    return float(found["average_precision"].mean())


MAP = f"retrieval mAP of {PAIRS} wells"
RIVALS: dict[str, dict[str, Callable]] = {  # method -> library -> what it does
    "lda": {"scikit-learn, shrinkage by class": per_cell_type(sklearn_lda)},
    "softmax": {"scikit-learn, one penalty": per_cell_type(sklearn_softmax)},
    "combat_experiment": {"neuroCombat alone": neurocombat},
    "harmony_experiment": {"harmonypy alone": harmonypy},
    MAP: {"copairs": copairs},
}
NAMES = [name for name, method in METHODS.items() if method.classify and not method.adapt]


def measure(name: str, library: str, treatments: int, features: int) -> dict[str, float | None]:
    """What one process finds."""
    evidence = screen(treatments, features)
    began, before = time.perf_counter(), time.process_time()
    if library:
        found = RIVALS[name][library](evidence)
    elif name == MAP:
        found = our_map(evidence)
    else:
        predicted = evidence.classes[scores(find(name), evidence).argmax(1)]
        found = (predicted == evidence.sites["sirna_id"][evidence.role == "test"]).mean()
    wall, cpu = time.perf_counter() - began, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"cpu": cpu, "wall": wall, "gb": peak, "found": None if found is None else float(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--treatments", type=int, default=277, help="siRNAs per plate")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--methods", nargs="+", default=[*NAMES, MAP])
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "LIBRARY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.treatments, options.features
    if options.one:
        print(json.dumps(measure(*options.one, *size)))
        return
    rows = sum(EXPERIMENTS.values()) * PLATES * (options.treatments + POSITIVE + 1) * SITES
    packages = ("numpy", "scipy", "jax", "scikit-learn", "neuroCombat", "harmonypy", "copairs")
    print(describe(packages, rows=rows, features=options.features))
    print("| method | by | CPU s | wall s | peak GB | accuracy or mAP, % |\n|" + 6 * "---|")
    for name in options.methods:
        for library in ("", *RIVALS.get(name, {})):
            command = [sys.executable, "-m", "benchmarks.methods", "--one", name, library,
                       f"--treatments={size[0]}", f"--features={size[1]}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {name} | {library or 'ours'} | {done.stderr.strip().splitlines()[-1]} |")
                continue
            of = json.loads(done.stdout.splitlines()[-1])
            found = "–" if of["found"] is None else f"{100 * of['found']:.1f}"
            figures = f"{of['cpu']:.1f} | {of['wall']:.1f} | {of['gb']:.2f} | {found}"
            print(f"| {name} | {library or 'ours'} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
