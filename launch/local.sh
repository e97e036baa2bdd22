#!/usr/bin/env bash
# One run on several processes of this machine: a rehearsal of several hosts, or one per GPU.
#   launch/local.sh N --config=demo:fold=0 --workdir=runs/mine [--config.FIELD=VALUE]
# From the folder of this project. What follows N is for rxrx1_jax.main.
# The processes share the GPUs of CUDA_VISIBLE_DEVICES evenly (all of them unless set). Without a
# GPU, or with JAX_PLATFORMS=cpu, they share JAX_NUM_CPU_DEVICES simulated ones (N unless set).
# RESTARTS: how often a run that was preempted (exit status 75) is started again; 10 unless set.
# PYTHON: .venv/bin/python unless set.
# SIGTERM, SIGHUP and Ctrl-C reach all processes as SIGTERM: they save the step and the script exits
# with 75; the same command resumes. When one process fails, the others have GRACE seconds (30
# unless set) to end before they are killed; the exit status is that of the first that failed.
# Process 0 writes to stdout, the others to stderr alone, each line behind their number.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
usage="usage: launch/local.sh N --config=CONFIG --workdir=RUN"
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || { echo "$usage: expected the number of processes" >&2; exit 2; }
count=$1
shift
python=${PYTHON:-.venv/bin/python}
PREEMPTED=75

if [[ ${JAX_PLATFORMS:-} != cpu && -z ${CUDA_VISIBLE_DEVICES+set} ]] \
  && command -v nvidia-smi > /dev/null; then
  CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)
fi
gpus=()
[[ ${JAX_PLATFORMS:-} == cpu ]] || IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-}"
devices=${#gpus[@]}
((devices)) || devices=${JAX_NUM_CPU_DEVICES:-$count}
if ((devices % count)); then
  echo "error: $devices devices cannot be dealt out evenly to $count processes" >&2
  exit 2
fi
each=$((devices / count))

told=0 pids=()
forward() {
  told=1
  ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2> /dev/null || true
}
trap forward TERM INT HUP

start() { # the processes; sets pids
  local port i mine
  port=$("$python" -c 'from socket import create_server as server
print(server(("127.0.0.1", 0)).getsockname()[1])')
  export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
  export JAX_NUM_PROCESSES=$count
  pids=()
  for ((i = 0; i < count; i++)); do
    if ((${#gpus[@]})); then
      mine=$(IFS=,; echo "${gpus[*]:i * each:each}")
      devices_of=(CUDA_VISIBLE_DEVICES="$mine")
    else
      devices_of=(JAX_NUM_CPU_DEVICES="$each")
    fi
    if ((i)); then
      env JAX_PROCESS_ID="$i" "${devices_of[@]}" "$python" -m rxrx1_jax.main "$@" \
        > /dev/null 2> >(trap '' INT TERM HUP; exec sed -u "s/^/[$i] /" >&2) &
    else
      env JAX_PROCESS_ID=0 "${devices_of[@]}" "$python" -m rxrx1_jax.main "$@" &
    fi
    pids+=($!)
  done
}

finish() { # waits for all; sets code: 0, or the status of the first that failed
  local running=("${!pids[@]}") alive i status since=
  code=0
  while ((${#running[@]})); do
    sleep 0.2 & wait $! || true # a signal ends the wait, not the sleep
    alive=()
    for i in "${running[@]}"; do
      if kill -0 "${pids[i]}"; then
        alive+=("$i")
        continue
      fi
      status=0
      wait "${pids[i]}" || status=$?
      if ((status && !code)); then
        code=$status since=$SECONDS
        ((code == PREEMPTED)) || echo "process $i of the run ended with status $status" >&3
      fi
    done
    running=("${alive[@]}")
    if [[ -n $since ]] && ((${#running[@]} && SECONDS - since > ${GRACE:-30})); then
      for i in "${running[@]}"; do
        echo "process $i of the run did not end by itself; killed" >&3
        kill -KILL "${pids[i]}" || true
      done
      since=
    fi
  done
} 3>&2 2> /dev/null # bash has lines of its own on processes that were killed

for ((restart = 0; ; restart++)); do
  start "$@"
  ((!told)) || forward # while they were started
  finish
  if ((code != PREEMPTED || told || restart >= ${RESTARTS:-10})); then
    exit "$code"
  fi
  echo "preempted; restart $((restart + 1)) of ${RESTARTS:-10}" >&2
done
