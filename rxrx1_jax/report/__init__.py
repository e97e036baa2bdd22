"""The tables, figures and page of finished runs."""
