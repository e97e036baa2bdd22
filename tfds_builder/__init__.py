"""Dataset builders for TensorFlow Datasets. They import neither jax nor rxrx1_jax."""
