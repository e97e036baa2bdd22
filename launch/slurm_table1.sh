#!/usr/bin/env bash
# Table 1 on a Slurm cluster: an array job with one task for each of its 30 runs, and a job that
# waits for all of them and collects the table and the page from what is complete.
#   CONFIG=batch_split WORKDIR=/shared/runs/table1 \
#     OPTIONS="--gpus=1 --cpus-per-task=8 --mem=64G --time=2-0" launch/slurm_table1.sh
# From the folder of this project, on the login node. WORKDIR and the dataset lie on the shared
# filesystem. Arguments are fields of the config, the same for all runs:
#   ... launch/slurm_table1.sh --config.model.dtype=bfloat16 --config.data.dir=/shared/data
# CONFIG: one of ours by its name, or a file. OPTIONS: of sbatch, for each run, which is one process
# on one machine with all GPUs it is given.
# COLLECT_OPTIONS: the same for the table, which needs no GPU. PYTHON: .venv/bin/python unless set.
# ARRAY: 0-29 unless set; 0-29%4 runs four at a time, 0,5 only these two.
# A run that was killed, preempted or out of time resumes when the same command is given again;
# those that are complete end at once.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${CONFIG:?a config, for example batch_split}"
: "${WORKDIR:?the folder of the runs, on the shared filesystem}"
export CONFIG WORKDIR PYTHON="${PYTHON:-.venv/bin/python}"

table1=("$PYTHON" -m rxrx1_jax.table1 "--config=$CONFIG" "--workdir=$WORKDIR")
case "${1:-}" in
  run) # a task of the array
    # srun passes signals on; since Slurm 22.05 it does not take over --cpus-per-task by itself.
    exec srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
      "${table1[@]}" "--task=${SLURM_ARRAY_TASK_ID:?set by Slurm in an array job}" "${@:2}"
    ;;
  collect)
    exec "${table1[@]}" --collect "${@:2}"
    ;;
  *)
    : "${OPTIONS:?for sbatch, for example --gpus=1 --cpus-per-task=8 --mem=64G --time=2-0}"
    read -ra options <<< "$OPTIONS"
    read -ra collect_options <<< "${COLLECT_OPTIONS:---cpus-per-task=2 --mem=16G --time=1:00:00}"
    file=${CONFIG%%:*}
    test -f "$file" || test -f "configs/$file.py" || {
      echo "CONFIG=$CONFIG: no such file in $PWD" >&2
      exit 1
    }
    logs=$WORKDIR/logs
    mkdir -p "$logs"
    common=(--parsable --export=ALL --open-mode=append)
    runs=$(sbatch "${common[@]}" --job-name=table1 --array="${ARRAY:-0-29}" --requeue \
      --output="$logs/run-%a.log" "${options[@]}" "$0" run "$@")
    table=$(sbatch "${common[@]}" --job-name=table1-collect --dependency="afterany:${runs%%;*}" \
      --output="$logs/table.log" "${collect_options[@]}" "$0" collect "$@")
    echo "runs: job ${runs%%;*}; table: job ${table%%;*}, printed to $logs/table.log"
    ;;
esac
