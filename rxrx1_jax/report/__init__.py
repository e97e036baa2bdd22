"""Finished runs -> Table 1 of the paper, other tables, and a page of plots."""
