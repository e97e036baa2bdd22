"""Atomic writing: a reader sees the old file or the new one; writers do not meet."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rxrx1_jax.data.files import replacing, write_text


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old ±")
    with replacing(path) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path and path.read_text("utf-8") == "old ±"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    texts = [letter * 10_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [write_text(path, text) for _ in range(50)], texts))
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]
