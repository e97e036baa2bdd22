"""Table 1 by one command: two splits x three folds x (all cell types, each of the four alone).

    python -m rxrx1_jax.table1 --config=batch_split --workdir=runs/table1

runs or resumes the 30 runs, prints the tables, the paper's figures below ours, and writes them and
the report page to WORKDIR/report. --collect does only the latter; --task=I runs the I-th run alone,
for a cluster (launch/slurm_sweep.sh, launch/sweep.yaml). Any field of the config can be changed, as
for rxrx1_jax.main.

A run is `python -m rxrx1_jax.main` with data.protocol, fold and cell_type set, in
WORKDIR/PROTOCOL-CELLTYPE-FOLD. A child process does run after run, so that start-up is paid once;
one that fails ends it, and the next run has a new one. This process takes no device. --workers=N
runs N at once on an equal share of the cores, and of the GPUs: one each, or a part of one's memory;
what a run says is then in PROTOCOL-CELLTYPE-FOLD.log. Unless given, one run per GPU; on CPUs one.

The same command goes on after a kill. Several may work in one WORKDIR, on any number of hosts: each
takes runs that no other holds, and waits at the end until those are done, too.
"""

import itertools
import sys
from pathlib import Path

from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.data import records, splits
from rxrx1_jax.data.files import write_text
from rxrx1_jax.report import command, table1
from rxrx1_jax.report.runs import load_runs
from rxrx1_jax.training import run_dir, sweep, workers
from rxrx1_jax.training.sweep import Plan
from rxrx1_jax.training.workers import REFUSED, Ending, Worker

PROTOCOLS = ("batch", "random_site")  # the paper's Batch and Random
# (protocol, fold, cell type) of each run, in the order that --task counts.
RUNS = list(itertools.product(PROTOCOLS, range(splits.FOLDS), table1.COLUMNS))


def make_plans(config: ConfigDict, workdir: Path, runs: list[tuple[str, int, str]]) -> list[Plan]:
    """Splits the data for each of `runs`, and compares the settings of those that exist.

    Raises:
      DatasetError: there is no dataset.
      RunError: a run in `workdir` has other settings or data.
    """
    plan = sweep.Planner(config, records.open_images(config.data.dir, config.data.name))
    plans = []
    for protocol, fold, cell_type in runs:
        overrides = {"data.protocol": protocol, "data.fold": fold, "data.cell_type": cell_type}
        path = workdir / f"{protocol}-{cell_type}-{fold}"
        plans.append(plan(path, overrides))
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
    parser = main_lib.SweepParser("table1", __doc__ or "")
    options = parser.parse(argv)
    workers.interrupt_by_signals()

    def work() -> int:
        config, workdir = main_lib.read_config(options), options.workdir
        if options.tasks:
            print(len(RUNS))
            return 0
        runs, alone = main_lib.of_task(RUNS, options.task), options.task is not None
        arguments, team = main_lib.arguments_of_config(options), workers.deal(options.workers)
        command.check_writable("--workdir", workdir)

        def train(plan: Plan, worker: Worker) -> Ending:
            log = sweep.log_of(plan.path) if len(team) > 1 else None
            ending = sweep.train_one(plan, arguments, worker, log)
            if ending.how == REFUSED:  # as the others would be
                sys.exit(f"error: {ending.reason}" if log else 1)  # else it has said why
            return ending

        plans = make_plans(config, workdir, runs)
        reasons: dict[Path, str] = {}
        if not options.collect:
            reasons = sweep.do_all(plans, run_dir.is_complete, train, team[: len(plans)])
        return sweep.tell(plans[0], reasons) if alone else int(not collect(plans, workdir, reasons))

    return command.run(work, options.workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
