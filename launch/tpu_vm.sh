#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice (TPU VMs), driven from a machine with gcloud.
#   TPU=mine ZONE=us-central2-b FOLDER=/mnt/shared/rxrx1_jax launch/tpu_vm.sh \
#     --config=batch_split --workdir=/mnt/shared/runs/mine
# TPU, ZONE: of the slice; gcloud's default project. FOLDER: this project on every host, with its
# .venv (pip install -e '.[tpu]'). The workdir and the dataset lie on a filesystem that all hosts
# mount. The arguments are those of rxrx1_jax.main. PYTHON: .venv/bin/python unless set.
# A run that was preempted on a slice that is still there (maintenance) is started again. For a
# slice that is taken away (spot), give CREATE, the options of `gcloud compute tpus tpu-vm create`,
# such as "--accelerator-type=v4-32 --version=tpu-ubuntu2204-base --spot", and SETUP, a command that
# mounts and installs what a new host needs: it is deleted, created again, and the run resumes.
# RESTARTS: how often at most, 100 unless set. PAUSE: seconds before each, 60 unless set.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${TPU:?the name of the slice}" "${ZONE:?its zone}" "${FOLDER:?the folder of this project there}"
PREEMPTED=75
tpus=(gcloud compute tpus tpu-vm)

on_all() { # a command on every host
  "${tpus[@]}" ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}
state() {
  "${tpus[@]}" describe "$TPU" --zone="$ZONE" --format='value(state)' 2> /dev/null || echo GONE
}
make() { # the slice again
  read -ra options <<< "$CREATE"
  [[ $(state) == GONE ]] || "${tpus[@]}" delete "$TPU" --zone="$ZONE" --quiet
  "${tpus[@]}" create "$TPU" --zone="$ZONE" "${options[@]}" && on_all "${SETUP:-true}"
}

# TPU hosts learn of each other from the metadata server, which JAX asks when it is told to. The
# status is said in words too: gcloud need not pass on that of a command on several hosts.
python=${PYTHON:-.venv/bin/python} said="a host was preempted: status $PREEMPTED"
printf -v command '%q ' "$python" -m rxrx1_jax.main "$@"
printf -v folder '%q' "$FOLDER"
command="cd $folder && { JAX_NUM_PROCESSES=auto $command|| { code=\$?; \
test \$code != $PREEMPTED || echo '$said'; exit \$code; }; }"
output=$(mktemp)
trap 'rm -f "$output"' EXIT

code=0
if [[ $(state) != READY && -n ${CREATE:-} ]]; then make; fi
for ((restart = 0; ; restart++)); do
  code=0
  on_all "$command" 2>&1 | tee "$output" || code=$?
  ((code)) || exit 0
  now=$(state)
  if [[ $now == READY ]] && ! grep -qF "$said" "$output"; then exit "$code"; fi
  if [[ $now != READY && -z ${CREATE:-} ]]; then
    echo "$TPU is $now; when there is a slice of this name again, the same command goes on" >&2
    exit "$PREEMPTED"
  fi
  if ((restart >= ${RESTARTS:-100})); then exit "$PREEMPTED"; fi
  echo "$TPU is $now; restart $((restart + 1)) of ${RESTARTS:-100}" >&2
  sleep "${PAUSE:-60}"
  if [[ $now != READY ]]; then
    make || { echo "$TPU could not be made; trying again" >&2; sleep "${PAUSE:-60}"; make; }
  fi
done
