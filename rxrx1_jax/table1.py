"""Table 1 by one command: two splits x three folds x (all cell types, each of the four alone).

    python -m rxrx1_jax.table1 --config=configs/batch_split.py --workdir=runs/table1

runs or resumes the 30 runs, prints the table beside the paper's, and writes it and the report page
to WORKDIR/report. --collect does only the latter; --task=I runs the I-th run alone, for an array
job (launch/slurm_table1.sh). Any field of the config can be changed, as for rxrx1_jax.main.

A run is `python -m rxrx1_jax.main` with data.protocol, fold and cell_type set, in
WORKDIR/PROTOCOL-CELLTYPE-FOLD and in a process of its own: a crash leaves the others alone, and
memory and device are free again after each, for 2 to 3 s of start-up. This process takes no
device. The same command goes on after a kill. Several may work in one WORKDIR, each with a device
of its own: a run that another one holds is passed over.
"""

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax import records, report, report_table, run, splits
from rxrx1_jax.report_page import write_page

PROTOCOLS = ("batch", "random_site")  # the paper's Batch and Random
# (protocol, fold, cell type) of each run, in the order that --task counts.
RUNS = list(itertools.product(PROTOCOLS, range(splits.FOLDS), report_table.COLUMNS))

_TASK = flags.DEFINE_integer(
    "task", None, "Index of the one run to run; no table.", lower_bound=0, upper_bound=len(RUNS) - 1
)
_COLLECT = flags.DEFINE_bool("collect", False, "Only the table, from the runs that are complete.")
flags.declare_key_flag("config")
flags.declare_key_flag("workdir")


class Plan(NamedTuple):
    """One run, and what its settings and the data say of it before it is started."""

    path: Path
    overrides: dict[str, Any]  # field of the config -> value
    train_sites: int
    obstacle: str  # why these data allow no such run; empty where they do


def make_plans(config: ConfigDict, workdir: Path, runs: list[tuple[str, int, str]]) -> list[Plan]:
    """Splits the data for each of `runs`, and compares the settings of those that exist.

    Raises:
      DatasetError: there is no dataset.
      RunError: a run in `workdir` has other settings or data.
    """
    dataset = records.Records(records.find_dataset(config.data.dir, config.data.name))
    plans = []
    for protocol, fold, cell_type in runs:
        path = workdir / f"{protocol}-{cell_type}-{fold}"
        overrides = {"data.protocol": protocol, "data.fold": fold, "data.cell_type": cell_type}
        size, obstacle = 0, ""
        try:
            split = splits.make_split(
                dataset.sites, protocol, fold=fold, seed=config.data.seed, cell_type=cell_type
            )
            size, batch = len(split.train), config.optim.batch_size
            if size < batch:
                obstacle = f"{size} training sites, fewer than optim.batch_size={batch}"
        except splits.SplitError as error:
            obstacle = str(error)
        if not obstacle and (path / "config.json").exists():
            settings = config.copy_and_resolve_references()
            settings.update_from_flattened_dict(overrides)
            data = run.describe_data(dataset.path.name, dataset.sites, split)
            run.open_run(path, settings, data)
        plans.append(Plan(path, overrides, size, obstacle))
    return plans


def train_all(plans: list[Plan], arguments: list[str]) -> dict[Path, str]:
    """Runs what is neither complete nor impossible; returns why runs did not complete."""
    reasons: dict[Path, str] = {}
    waiting = [plan for plan in plans if not plan.obstacle and not run.is_complete(plan.path)]
    print(f"{len(waiting)} of {len(plans)} runs to do", flush=True)
    seconds, sites = 0.0, 0  # of the runs that were done here from their first step
    for i, plan in enumerate(waiting):
        print(f"\nrun {plans.index(plan) + 1} of {len(plans)}: {plan.path}", end="")
        if sites:
            left = sum(other.train_sites for other in waiting[i:]) * seconds / sites
            print(f", about {timedelta(seconds=round(left))} left", end="")
        print(flush=True)
        fresh, started = not plan.path.exists(), time.monotonic()
        if reason := train_one(plan, arguments):
            reasons[plan.path] = reason
            print(f"{plan.path}: {reason}", flush=True)
        elif fresh:
            seconds, sites = seconds + time.monotonic() - started, sites + plan.train_sites
    return reasons


def train_one(plan: Plan, arguments: list[str]) -> str:
    """Runs or resumes one run; returns why it did not complete, empty if it did.

    Exits if it was refused before it began, as the others would be; it has said why.
    """
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rxrx1_jax.main", *arguments, f"--workdir={plan.path}"]
    command += [f"--config.{field}={value}" for field, value in plan.overrides.items()]
    last = ""
    with open(plan.path.with_name(f".{plan.path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process is at it"
        except OSError as error:  # some network filesystems have no locks
            print(f"{lock.name}: {error}; see to it that nothing else runs it", file=sys.stderr)
        # The child inherits the lock, and so keeps it should this process be killed alone.
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[lock.fileno()]
        ) as child:
            assert child.stderr is not None
            try:
                for line in child.stderr:
                    sys.stderr.write(line)
                    last = line.strip() or last
            except BaseException:
                child.terminate()
                child.communicate()
                raise
    if run.is_complete(plan.path):
        return ""
    if child.returncode < 0:
        return f"ended by {signal.Signals(-child.returncode).name}"
    if last.startswith("error: ") and not plan.path.exists():
        sys.exit(child.returncode)
    return last.removeprefix("error: ") or f"ended with status {child.returncode}"


def collect(plans: list[Plan], workdir: Path, reasons: dict[Path, str]) -> bool:
    """Prints the table and why it lacks what it lacks, writes both and the page.

    Returns whether every run that the data allow is in it.
    """
    complete = [p.path for p in plans if not p.obstacle and run.is_complete(p.path)]
    missing: dict[str, list[str]] = {}
    for plan in plans:
        if plan.path not in complete:
            state = "not finished" if (plan.path / "config.json").exists() else "not started"
            reason = plan.obstacle or reasons.get(plan.path, state)
            missing.setdefault(reason, []).append(plan.path.name)
    screens = report_table.load_runs(complete)
    parts = [report.table_markdown(screen, runs) for screen, runs in screens.items()]
    if missing:
        lines = [f"- {', '.join(names)}: {reason}\n" for reason, names in missing.items()]
        parts.append("Not in the table:\n\n" + "".join(lines))
    text = "\n".join(parts)
    print(f"\n{text}")
    if complete:
        page, remarks = write_page(screens, workdir / "report")
        partial = page.with_name("table1.md.tmp")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, page.with_name("table1.md"))
        print("\n".join([*remarks, f"Page: {page}"]))
    return bool(complete) and all(plan.obstacle or plan.path in complete for plan in plans)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    if flags.FLAGS["mode"].present or (_COLLECT.value and _TASK.value is not None):
        raise app.UsageError("expected --task, --collect or neither; --mode is of rxrx1_jax.main")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the child would go on alone
    flag, workdir = flags.FLAGS["config"], Path(flags.FLAGS.workdir)
    arguments = [f"--config={config_flags.get_config_filename(flag)}"]
    for field, value in config_flags.get_override_values(flag).items():
        arguments.append(f"--config.{field}={value}")
    try:
        if _TASK.value is not None:
            (plan,) = make_plans(flag.value, workdir, [RUNS[_TASK.value]])
            reason = plan.obstacle or train_one(plan, arguments)
            print(f"{plan.path}: {reason or 'complete'}")
            return int(bool(reason) and not plan.obstacle)
        plans = make_plans(flag.value, workdir, RUNS)
        reasons = {} if _COLLECT.value else train_all(plans, arguments)
        return int(not collect(plans, workdir, reasons))
    except (run.RunError, records.DatasetError, report_table.ReportError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


if __name__ == "__main__":
    app.run(main, flags_parser=main_lib.parse_flags)
