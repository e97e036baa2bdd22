#!/usr/bin/env bash
# One run on several nodes of a Slurm cluster, one process per node with all its GPUs.
#   OPTIONS="--nodes=2 --gpus-per-node=8 --cpus-per-task=64 --mem=0 --time=1-0" launch/slurm.sh \
#     --config=batch_split --workdir=/shared/runs/mine --config.data.dir=/shared/data
# From the folder of this project, on the login node. This folder, the workdir and the dataset lie
# on the shared filesystem. The arguments are those of rxrx1_jax.main, OPTIONS those of sbatch.
# LOG: file of the output, WORKDIR.log unless set. PYTHON: .venv/bin/python unless set.
# Two minutes before the time is up, or when Slurm takes the nodes for another job, the run saves
# its step and the job queues again, RESTARTS times at most (100 unless set). A cancelled job does
# not; the same command resumes it.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
export PYTHON="${PYTHON:-.venv/bin/python}" RESTARTS="${RESTARTS:-100}"
PREEMPTED=75

if [[ ${1:-} == run ]]; then # in the job
  trap : TERM # so that what follows srun is still done
  code=0
  # Slurm's own stopping of the other tasks would hide the status of those that were preempted;
  # JAX ends them. Since Slurm 22.05 srun does not take over --cpus-per-task by itself.
  srun --kill-on-bad-exit=0 --wait=120 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "$PYTHON" -m rxrx1_jax.main "${@:2}" || code=$?
  if ((code == PREEMPTED && ${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
    # Cancelled, or taken for another job (Slurm queues it again itself), it is not RUNNING.
    case "$(scontrol show job --oneliner "${SLURM_JOB_ID:?set by Slurm}")" in
      *JobState=RUNNING*) scontrol requeue "$SLURM_JOB_ID" ;;
    esac
  fi
  exit "$code"
fi

: "${OPTIONS:?for sbatch, for example --nodes=2 --gpus-per-node=8 --cpus-per-task=64 --time=1-0}"
config='' workdir=''
for argument in "$@"; do
  case "$argument" in
    --config=*) config=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
  esac
done
: "${config:?give --config=CONFIG}" "${workdir:?give --workdir=RUN}"
file=${config%%:*}
test -f "$file" || test -f "configs/$file.py" || {
  echo "--config=$config: no such file in $PWD" >&2
  exit 1
}
log=${LOG:-${workdir%/}.log}
mkdir -p "$(dirname "$log")"
read -ra options <<< "$OPTIONS"
job=$(sbatch --parsable --export=ALL --open-mode=append --requeue --signal=TERM@120 \
  --ntasks-per-node=1 --job-name="$(basename "$workdir")" --output="$log" \
  "${options[@]}" "$0" run "$@")
echo "job ${job%%;*}; output in $log"
