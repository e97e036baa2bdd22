"""Which part of a release is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .metadata import PLATES, SITES, ReleaseError, Site

_CHOICES = {"plates": PLATES, "sites": SITES}


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
        for name, values in vars(self).items():
            if values is None:
                continue
            choices = [int(choice) for choice in _CHOICES.get(name, ())]
            # A lone text is a sequence of texts, too: "HUVEC-01" would select "H", "U" ...
            if not isinstance(values, list | tuple) or not all(
                type(value) is int and value in choices if choices else type(value) is str
                for value in values
            ):
                expected = f"some of {', '.join(map(str, choices))}" if choices else "texts"
                raise ReleaseError(
                    f"Selection.{name}: found {values!r}, expected a tuple of {expected}"
                )
            if not values:
                raise ReleaseError(
                    f"Selection.{name} is empty, so that nothing is selected; None means all"
                )
            object.__setattr__(self, name, tuple(values))

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
            ("experiments", "experiment"), ("plates", "plate"), ("wells", "well")
        ):  # fmt: skip
            there = {getattr(site, attribute) for site in sites}
            for value in getattr(self, name) or ():
                if value not in there:
                    shown = ", ".join(map(str, sorted(there)))
                    raise ReleaseError(
                        f"Selection.{name}: {value!r} is not in {source}; choose from {shown}"
                    )


ALL = Selection()  # the whole release
