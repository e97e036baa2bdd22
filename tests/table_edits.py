"""Random edits of the bytes of a table, and what must hold of whatever is then read from it."""

import csv
import io

from hypothesis import strategies as st
from tiny_release import COLUMNS, tiny_rows

from tfds_builder.rxrx1.release import metadata


def table(rows, columns=COLUMNS) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


VALID = table(tiny_rows()[:12])
TOKENS = [b"\0", b"\r", b"\n", b'"', b",", b"\xef\xbb\xbf", b"\xff", b"-1", b"EMPTY", b"1138", b"",
          b"B02", b"x" * 140_000, "\u00b2".encode(), b"../..", b" "]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(VALID)),
        st.integers(0, 8),  # bytes replaced
        st.sampled_from(TOKENS) | st.binary(max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits) -> bytes:
    for position, length, new in edits:
        data = data[:position] + new + data[position + length :]
    return data


def check_sites(sites) -> None:
    """What the rest of the builder relies on, whatever the file was."""
    assert sites and len({s.site_id for s in sites}) == len(sites)
    for s in sites:
        assert s.well_id == f"{s.experiment}_{s.plate}_{s.well}"
        assert s.site_id == f"{s.well_id}_{s.site}" and s.experiment[:-3] == s.cell_type
        assert s.cell_type in metadata.CELL_TYPES and s.dataset in ("train", "test")
        assert s.plate in range(1, 5) and s.site in (1, 2)
        assert s.row in range(1, 17) and s.column in range(1, 25)
        known = s.sirna_id in metadata.SIRNA_IDS[s.well_type]
        assert known or (s.sirna_id == -1 and s.well_type == "treatment")
        assert (s.sirna == "EMPTY") == (s.well_type == "negative_control")
        assert s.sirna.isprintable() and not (s.sirna and s.sirna_id == -1)
