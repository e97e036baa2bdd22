"""Table 1 by one command: two splits x three folds x (all cell types, each of the four alone).

    python -m rxrx1_jax.table1 --config=batch_split --workdir=runs/table1

runs or resumes the 30 runs, prints the tables, the paper's figures below ours, and writes them and
the report page to WORKDIR/report. --collect does only the latter; --task=I runs the I-th run alone,
for an array job (launch/slurm_table1.sh). Any field of the config can be changed, as for
rxrx1_jax.main.

A run is `python -m rxrx1_jax.main` with data.protocol, fold and cell_type set, in
WORKDIR/PROTOCOL-CELLTYPE-FOLD and in a process of its own: a crash leaves the others alone, and
memory and device are free again after each, for 2 to 3 s of start-up. This process takes no
device. The same command goes on after a kill. Several may work in one WORKDIR, each with a device
of its own: a run that another one holds is passed over.
"""

import itertools
import signal
import sys
from pathlib import Path

from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.data import records, splits
from rxrx1_jax.data.files import write_text
from rxrx1_jax.report import command, table1
from rxrx1_jax.report.runs import load_runs
from rxrx1_jax.training import run_dir, sweep
from rxrx1_jax.training.sweep import Plan, train_one

PROTOCOLS = ("batch", "random_site")  # the paper's Batch and Random
# (protocol, fold, cell type) of each run, in the order that --task counts.
RUNS = list(itertools.product(PROTOCOLS, range(splits.FOLDS), table1.COLUMNS))


def make_plans(config: ConfigDict, workdir: Path, runs: list[tuple[str, int, str]]) -> list[Plan]:
    """Splits the data for each of `runs`, and compares the settings of those that exist.

    Raises:
      DatasetError: there is no dataset.
      RunError: a run in `workdir` has other settings or data.
    """
    dataset = records.open_images(config.data.dir, config.data.name)
    plans = []
    for protocol, fold, cell_type in runs:
        overrides = {"data.protocol": protocol, "data.fold": fold, "data.cell_type": cell_type}
        path = workdir / f"{protocol}-{cell_type}-{fold}"
        plans.append(sweep.make_plan(config, dataset, path, overrides))
    return plans


def collect(plans: list[Plan], workdir: Path, reasons: dict[Path, str]) -> bool:
    """Prints the table and why it lacks what it lacks, writes both and the page.

    Returns whether every run that the data allow is in it.
    """
    complete = [p.path for p in plans if not p.obstacle and run_dir.is_complete(p.path)]
    missing: dict[str, list[str]] = {}
    for plan in plans:
        if plan.path not in complete:
            state = "not finished" if (plan.path / "config.json").exists() else "not started"
            reason = plan.obstacle or reasons.get(plan.path, state)
            missing.setdefault(reason, []).append(plan.path.name)
    from rxrx1_jax.report.page import results_of, write_page  # here: --help needs no matplotlib

    results = results_of(load_runs(complete))
    parts = [table.markdown() for _, _, tables in results.values() for table in tables.values()]
    if missing:
        lines = [f"- {', '.join(names)}: {reason}\n" for reason, names in missing.items()]
        parts.append("Not in the table:\n\n" + "".join(lines))
    text = "\n".join(parts)
    print(f"\n{text}")
    if complete:
        page, remarks = write_page(results, workdir / "report")
        write_text(page.with_name("table1.md"), text)
        print("\n".join([*remarks, f"Page: {page}"]))
    return bool(complete) and all(plan.obstacle or plan.path in complete for plan in plans)


def main(argv: list[str]) -> int:
    parser = main_lib.Parser("table1", __doc__ or "")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--task", type=int, choices=range(len(RUNS)), metavar="I",
                     help=f"run the I-th run alone, 0 to {len(RUNS) - 1}; no table")  # fmt: skip
    one.add_argument("--collect", action="store_true", help="only make table and page")
    options = parser.parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the child would go on alone

    def work() -> int:
        config, workdir = main_lib.read_config(options), options.workdir
        arguments = main_lib.arguments_of_config(options)
        command.check_writable("--workdir", workdir)
        if options.task is not None:
            (plan,) = make_plans(config, workdir, [RUNS[options.task]])
            reason = plan.obstacle or train_one(plan, arguments)
            print(f"{plan.path}: {reason or 'complete'}")
            return int(bool(reason) and not plan.obstacle)
        plans = make_plans(config, workdir, RUNS)
        reasons: dict[Path, str] = {}
        if not options.collect:  # exits if one is refused before it begins, as the others would be
            reasons = sweep.do_all(
                plans, run_dir.is_complete, lambda plan, worker: train_one(plan, arguments, worker)
            )
        return int(not collect(plans, workdir, reasons))

    return command.run(work, options.workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
