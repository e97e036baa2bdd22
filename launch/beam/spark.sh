#!/usr/bin/env bash
# A Spark cluster whose machines mount the same filesystem.
#   MASTER=spark://host:7077 MANUAL_DIR=/shared/release DATA_DIR=/shared/data launch/beam/spark.sh
# CONFIG: native unless set. The parallelism is that of the cluster.
# On every machine of the cluster, where this project is installed, Beam's workers are started by
#   python -m apache_beam.runners.worker.worker_pool_main --service_port=50000
# (workers in containers would not see the shared filesystem). Needs Java here.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${DATA_DIR:?on the shared filesystem}" "${MANUAL_DIR:?on the shared filesystem}"
: "${MASTER:?address of the Spark master}"
options="runner=SparkRunner,spark_master_url=$MASTER"
options+=",environment_type=EXTERNAL,environment_config=localhost:50000"
exec tfds build --imports=tfds_builder.rxrx1 "rxrx1/${CONFIG:-native}" \
  --data_dir="$DATA_DIR" --manual_dir="$MANUAL_DIR" --beam_pipeline_options="$options" "$@"
