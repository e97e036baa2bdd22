#!/usr/bin/env bash
# Table 1, a leaderboard or a search on a Slurm cluster: an array job with one task for each run, and a
# job that waits for all of them and collects the table and the page from what is complete.
#   OPTIONS="--gpus=1 --cpus-per-task=8 --mem=64G --time=2-0" launch/slurm_sweep.sh table1 \
#     --config=batch_split --workdir=/shared/runs/table1 --config.data.dir=/shared/data
# From the folder of this project, on the login node. The workdir and the dataset lie on the shared
# filesystem. The first argument is a command of rxrx1_jax that takes --task, the others are its own.
# OPTIONS: of sbatch, for each run, which is one process on one machine with all GPUs it is given.
# COLLECT_OPTIONS: the same for the table, which needs no GPU. PYTHON: .venv/bin/python unless set.
# SETUP: a command before each Python, such as SETUP="module load cuda".
# AT_ONCE: the most runs at a time. ARRAY: the runs, all unless set; 0,5 is only these two.
# Two minutes before the time is up, or when Slurm takes the node for another job, a run saves its
# step and its task queues again, RESTARTS times at most (100 unless set). The same command resumes
# what was killed or cancelled; runs that are complete end at once.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
export PYTHON="${PYTHON:-.venv/bin/python}" SETUP="${SETUP:-true}" RESTARTS="${RESTARTS:-100}"
PREEMPTED=75

case "${1:-}" in
  run) # a task of the array: its command and arguments follow
    trap : TERM # so that what follows srun is still done
    eval "$SETUP"
    code=0
    # Since Slurm 22.05 srun does not take over --cpus-per-task by itself.
    srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$PYTHON" \
      -m "rxrx1_jax.$2" "${@:3}" "--task=${SLURM_ARRAY_TASK_ID:?set by Slurm in an array job}" \
      || code=$?
    if ((code == PREEMPTED && ${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
      # Cancelled, or taken for another job (Slurm queues it again itself), it is not RUNNING.
      case "$(scontrol show job --oneliner "${SLURM_JOB_ID:?set by Slurm}")" in
        *JobState=RUNNING*) scontrol requeue "$SLURM_JOB_ID" ;;
      esac
    fi
    exit "$code"
    ;;
  collect)
    eval "$SETUP"
    exec "$PYTHON" -m "rxrx1_jax.$2" "${@:3}" --collect
    ;;
esac

: "${1:?a command: table1, leaderboard or search}"
: "${OPTIONS:?for sbatch, for example --gpus=1 --cpus-per-task=8 --mem=64G --time=2-0}"
workdir=''
for argument in "$@"; do
  case "$argument" in --workdir=*) workdir=${argument#*=} ;; esac
done
: "${workdir:?give --workdir=FOLDER, on the shared filesystem}"
eval "$SETUP"
count=$("$PYTHON" -m "rxrx1_jax.$1" "${@:2}" --tasks) # it says what is wrong with the arguments
read -ra options <<< "$OPTIONS"
read -ra collect_options <<< "${COLLECT_OPTIONS:---cpus-per-task=2 --mem=16G --time=1:00:00}"
logs=$workdir/logs
mkdir -p "$logs"
common=(--parsable --export=ALL --open-mode=append)
runs=$(sbatch "${common[@]}" --job-name="$1" \
  --array="${ARRAY:-0-$((count - 1))}${AT_ONCE:+%$AT_ONCE}" --requeue --signal=TERM@120 \
  --output="$logs/task-%a.log" "${options[@]}" "$0" run "$@")
table=$(sbatch "${common[@]}" --job-name="$1-collect" --dependency="afterany:${runs%%;*}" \
  --output="$logs/table.log" "${collect_options[@]}" "$0" collect "$@")
echo "$count runs: job ${runs%%;*}; table: job ${table%%;*}, printed to $logs/table.log"
