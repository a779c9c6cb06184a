import gzip
import hashlib

import pytest
import yaml

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError
from zfu_lib.data.tables import read_table, table


def test_json_lines_keep_nested_fields_and_odd_separators(tmp_path):
    content = '{"tokens": ["a", "b\u2028c"], "n": 1}\n{"tokens": [], "n": 2}\n'
    for name, data in (
        ("x.jsonl", content.encode()),
        ("x.json", content.encode()),
        ("x.jsonl.gz", gzip.compress(content.encode())),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_table(tmp_path / name).to_list() == [{"tokens": ["a", "b\u2028c"], "n": 1}, {"tokens": [], "n": 2}]


def test_csv_with_line_breaks_inside_a_field(tmp_path):
    (tmp_path / "x.csv").write_text('label,right\n"two\nlines",True\nb,False\n')
    assert read_table(tmp_path / "x.csv").to_list() == [
        {"label": "two\nlines", "right": True},
        {"label": "b", "right": False},
    ]


def test_tab_separated_text_takes_quotes_and_the_word_null_as_they_are(tmp_path):
    (tmp_path / "x.txt").write_text('"Citizen\t0\nnull\t1\n')
    assert read_table(tmp_path / "x.txt", ("name", "id")).to_list() == [
        {"name": '"Citizen', "id": 0},
        {"name": "null", "id": 1},
    ]


def test_atomic_files_keep_identifiers_as_text(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\trating:float\n007\t3\n1\t4.5\n")
    assert read_table(tmp_path / "x.inter").to_list() == [
        {"user_id": "007", "rating": 3.0},
        {"user_id": "1", "rating": 4.5},
    ]


@pytest.mark.parametrize(
    ("name", "content", "columns", "says"),
    [
        ("x.txt", "1\t2\n1\t2\t3\n", ("a", "b"), "x.txt is not the table"),
        ("x.json", '{"a": 1,\n "b": 2}', (), "x.json is not the table"),
        ("x.json", '{"a": 1}', (), "one JSON object"),
        ("x.jsonl", '{"a": 1}\n{"b": 1}\n', (), "same fields"),
        ("x.jsonl", "", (), "same fields"),
        ("x.txt", "words", (), "not a table"),
        ("x.jsonl.gz", "not gzip", (), "x.jsonl.gz is not the table"),
    ],
)
def test_what_is_not_a_table_is_named(tmp_path, name, content, columns, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read_table(tmp_path / name, columns)


def test_a_catalogue_file_is_read_with_its_columns(tmp_path, monkeypatch):
    content = b"0\t1\t2\n"
    file = {"path": "g/facts.txt", "url": None, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = {
        "name": "g",
        "description": "d",
        "licence": "l",
        "citation": "c",
        "note": "n",
        "files": [file | {"columns": ["s", "r", "o"]}],
    }
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump({"datasets": [entry]}))
    (tmp_path / "g").mkdir()
    (tmp_path / "g/facts.txt").write_bytes(content)
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.yml")
    monkeypatch.setenv("ZFU_DATA", str(tmp_path))
    assert table("g", "facts.txt").to_list() == [{"s": 0, "r": 1, "o": 2}]
    with pytest.raises(DataError, match="no file 'fact.txt'; there are: facts.txt"):
        table("g", "fact.txt")
