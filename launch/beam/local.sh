#!/usr/bin/env bash
# Beam in processes of this machine.
#   MANUAL_DIR=/path/to/release DATA_DIR=data launch/beam/local.sh
# CONFIG: native unless set. WORKERS: number of processes, all cores unless set.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${DATA_DIR:?the folder that the dataset goes into}" "${MANUAL_DIR:?the folder of the release}"
exec tfds build --imports=tfds_builder.rxrx1 "rxrx1/${CONFIG:-native}" \
  --data_dir="$DATA_DIR" --manual_dir="$MANUAL_DIR" \
  --beam_pipeline_options="runner=FnApiRunner,direct_running_mode=multi_processing,direct_num_workers=${WORKERS:-$(nproc)}" \
  "$@"
