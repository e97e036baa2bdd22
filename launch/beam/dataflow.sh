#!/usr/bin/env bash
# Google Cloud Dataflow. Release, dataset and temporary files lie in buckets.
#   PROJECT=my-project REGION=us-central1 IMAGE=REGISTRY/rxrx1-beam TEMP=gs://BUCKET/temp \
#   MANUAL_DIR=gs://BUCKET/release DATA_DIR=gs://BUCKET/data launch/beam/dataflow.sh
# CONFIG: native unless set. WORKERS: the most machines at a time, 64 unless set.
# Needs `pip install -e '.[beam]'` here, and the image of launch/beam/Dockerfile.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '/^set/q; s/^# //p' "$0"; exit; }
: "${DATA_DIR:?gs://...}" "${MANUAL_DIR:?gs://..., the release, extracted}" "${TEMP:?gs://...}"
: "${PROJECT:?the Google Cloud project}" "${REGION:?of the buckets}" "${IMAGE:?of the workers}"
options="runner=DataflowRunner,project=$PROJECT,region=$REGION,temp_location=$TEMP"
options+=",job_name=rxrx1-${CONFIG:-native},max_num_workers=${WORKERS:-64}"
# The command line of TFDS is no module that workers could load, nor do they need it.
options+=",sdk_container_image=$IMAGE,no_save_main_session"
exec tfds build --imports=tfds_builder.rxrx1 "rxrx1/${CONFIG:-native}" \
  --data_dir="$DATA_DIR" --manual_dir="$MANUAL_DIR" --beam_pipeline_options="$options" "$@"
