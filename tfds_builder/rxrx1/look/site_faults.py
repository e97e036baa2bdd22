"""What a record says of its site: can it be?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ..release import metadata


def site_faults(
    fields: Mapping[str, Any], experiment: str, features: tfds.features.FeaturesDict
) -> list[str]:
    """What a record of split `experiment` says that cannot be; [] if it is sane."""
    faults = []
    for name, feature in features.items():
        if name == "image":
            continue  # `inflate` looks at it
        if name not in fields:
            faults.append(f"no feature {name}")
        elif isinstance(feature, tfds.features.Text):
            if not isinstance(fields[name], str):
                faults.append(f"{name} is {fields[name]!r}, expected text")
        elif feature.shape == () and not isinstance(fields[name], int):
            faults.append(f"{name} is {fields[name]!r}, expected an integer")
    if faults:
        return faults

    def expect(name: str, valid: Any) -> None:
        choices = valid if isinstance(valid, tuple | list | range) else (valid,)
        if fields[name] not in choices:
            shown = f"{valid[0]} to {valid[-1]}" if isinstance(valid, range) else repr(valid)
            faults.append(f"{name} is {fields[name]!r}, expected {shown}")

    expect("experiment", experiment)
    expect("cell_type", experiment.rpartition("-")[0])
    expect("dataset", ("train", "val", "test"))
    expect("plate", range(1, 5))
    expect("site", range(1, 3))
    expect("row", range(1, 17))
    expect("column", range(1, 25))
    expect("well", f"{chr(ord('A') - 1 + fields['row'] % 256)}{fields['column']:02d}")
    expect("well_id", f"{experiment}_{fields['plate']}_{fields['well']}")
    expect("site_id", f"{fields['well_id']}_{fields['site']}")
    well_type, sirna_id = fields["well_type"], fields["sirna_id"]
    expect("well_type", tuple(metadata.SIRNA_IDS))
    if (well_type, sirna_id) != ("treatment", metadata.UNKNOWN):
        expect("sirna_id", metadata.SIRNA_IDS.get(well_type, range(1139)))
    if (fields["sirna"] == metadata.UNTREATED) != (well_type == "negative_control"):
        faults.append(f"sirna is {fields['sirna']!r} of a {well_type}")
    for name in ("control_mean", "control_std"):
        values = np.asarray(fields[name])
        if values.shape != features[name].shape or not ((values >= 0) & (values <= 255)).all():
            faults.append(
                f"{name} is {values}, expected {features[name].shape} values from 0 to 255"
            )
    return faults
