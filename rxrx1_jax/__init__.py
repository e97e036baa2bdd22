"""RxRx1 experiments in JAX: from the records of a dataset to a result that can be trusted."""
