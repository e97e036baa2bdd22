#!/usr/bin/env bash
# A Flink cluster whose machines mount the same filesystem.
#   MASTER=host:8081 MANUAL_DIR=/shared/release DATA_DIR=/shared/data launch/beam/flink.sh
# CONFIG: native unless set. WORKERS: parallelism, 64 unless set.
# On every machine of the cluster, where this project is installed, Beam's workers are started by
#   python -m apache_beam.runners.worker.worker_pool_main --service_port=50000
# (workers in containers would not see the shared filesystem). Needs Java here.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${DATA_DIR:?on the shared filesystem}" "${MANUAL_DIR:?on the shared filesystem}"
: "${MASTER:?address of the Flink master}"
options="runner=FlinkRunner,flink_master=$MASTER,parallelism=${WORKERS:-64}"
options+=",environment_type=EXTERNAL,environment_config=localhost:50000"
exec tfds build --imports=tfds_builder.rxrx1 "rxrx1/${CONFIG:-native}" \
  --data_dir="$DATA_DIR" --manual_dir="$MANUAL_DIR" --beam_pipeline_options="$options" "$@"
