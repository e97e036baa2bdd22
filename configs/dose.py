"""The methods of `make dose`: one training per split, and the corrections whose gains are drawn."""

TRAINED = {"baseline": {}}
CORRECTIONS = {
    # centroids: what the next two are compared with
    "baseline": ["adabn_experiment", "centroids", "centre_experiment", "centre_scale_plate"],
}
GAP = ["baseline"]
PROTOCOLS = ["random_well"]
