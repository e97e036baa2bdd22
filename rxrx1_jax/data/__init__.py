"""From the records of a dataset, or a user's arrays, to batches."""
