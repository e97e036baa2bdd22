"""What the settings in a run's config.json mean when runs are compared. Needs no JAX."""

from typing import Any

# Settings that change where or how fast a run computes, not what: free to differ on resuming.
FREE = ("data.dir", "data.threads", "eval.batch_size", "train.keep", "train.parallelism")


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"section": {"name": value}} -> {"section.name": value}."""
    return {
        f"{s}.{name}": value for s, fields in settings.items() for name, value in fields.items()
    }
