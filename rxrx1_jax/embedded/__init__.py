"""Embeddings of any network, judged: a table and methods -> accuracy, batch and biology, a page."""
