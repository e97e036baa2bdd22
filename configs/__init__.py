"""Configs that ship with rxrx1_jax: `--config=demo`. Installed as `rxrx1_jax.configs`."""
