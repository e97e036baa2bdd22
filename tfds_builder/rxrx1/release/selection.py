"""Which part of a release is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .metadata import PLATES, SITES, ReleaseError, Site


@dataclasses.dataclass(frozen=True)
class Selection:
    """A part of a release: the sites that match in every field. None: all.

    Raises:
      ReleaseError: a field is empty or holds what cannot be in any release.
    """

    experiments: tuple[str, ...] | None = None
    plates: tuple[int, ...] | None = None
    wells: tuple[str, ...] | None = None
    sites: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        choices = {"plates": [int(p) for p in PLATES], "sites": [int(s) for s in SITES]}
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values is None:
                continue
            kind = int if field.name in choices else str
            # A lone text is a sequence of texts, too: "HUVEC-01" would select "H", "U" ...
            sequence = isinstance(values, list | tuple)
            if not sequence or not all(type(value) is kind for value in values):
                raise ReleaseError(
                    f"Selection.{field.name}: found {values!r}, expected a tuple of {kind.__name__}"
                )
            if not values:
                raise ReleaseError(
                    f"Selection.{field.name} is empty, so that nothing is selected; None means all"
                )
            for value in values:
                if value not in choices.get(field.name, values):
                    raise ReleaseError(
                        f"Selection.{field.name}: found {value!r}, expected"
                        f" {', '.join(map(str, choices[field.name]))}"
                    )
            object.__setattr__(self, field.name, tuple(values))

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == ALL

    def takes(self, site: Site) -> bool:
        """Whether the site is selected."""
        return self.takes_well(site) and (self.sites is None or site.site in self.sites)

    def takes_well(self, site: Site) -> bool:
        """Whether the well of this site is selected, by experiment, plate and well."""
        return (
            (self.experiments is None or site.experiment in self.experiments)
            and (self.plates is None or site.plate in self.plates)
            and (self.wells is None or site.well in self.wells)
        )

    def check(self, sites: Iterable[Site], source: str) -> None:
        """Each experiment, plate and well asked for must occur; a typing error is no empty part.

        Raises:
          ReleaseError: names the value and the valid choices.
        """
        sites = list(sites)
        for name, attribute in (
            ("experiments", "experiment"),
            ("plates", "plate"),
            ("wells", "well"),
        ):
            wanted = getattr(self, name)
            if wanted is None:
                continue
            there = {getattr(site, attribute) for site in sites}
            for value in wanted:
                if value not in there:
                    shown = ", ".join(map(str, sorted(there)))
                    raise ReleaseError(
                        f"Selection.{name}: {value!r} is not in {source}; choose from {shown}"
                    )


ALL = Selection()  # the whole release
