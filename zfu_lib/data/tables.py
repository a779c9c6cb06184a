"""Tabular files of the catalogue as ``datasets.Dataset``, in memory, with no hub and no cache folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from pyarrow import csv

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError


def table(name: str, file: str) -> Dataset:
    """One file of a data set as rows.

    JSON lines (also gzipped) and JSON arrays keep their fields; CSV has its header's columns; header-less
    tab-separated text has the columns that the catalogue names; RecBole's atomic files keep ``float`` fields as
    float64 and everything else as text.

    Args:
        name: a data set of the catalogue.
        file: one of the keys of :func:`zfu_lib.data.catalogue.get`, such as ``train.txt``.

    Raises:
        DataError: unknown name or file, a file that is not a table, or whatever :func:`~zfu_lib.data.catalogue.get`
            says.
    """
    entry = catalogue.entry(name)
    by_key = {entry.key(f): f for f in entry.files}
    if file not in by_key:
        raise DataError(f"{name} has no file {file!r}; there are: {', '.join(by_key)}")
    return read_table(catalogue.get(name)[file], by_key[file].columns)


def read_table(file: Path, columns: tuple[str, ...] = ()) -> Dataset:
    """A file in one of the formats of :func:`table`, wherever it is.

    Raises:
        DataError: not a table in a known format; the message names the file and what is wrong.
    """
    try:
        if columns:
            return Dataset(_tab_separated(file, list(columns)))
        if file.suffix in (".json", ".jsonl") or file.name.endswith(".jsonl.gz"):
            return Dataset.from_list(_records(file))
        if file.suffix == ".csv":
            return Dataset(csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True)))
        if file.suffix in (".inter", ".item", ".user"):
            return Dataset(_atomic(file))
    except (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise DataError(f"{file.name} is not the table it should be: {error}") from None
    raise DataError(f"{file.name} is not a table; read it with the loader of its chapter")


def _records(file: Path) -> list[dict]:
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode("utf-8")
    array = text.lstrip().startswith("[")
    # Split on \n alone: splitlines() also cuts at separators that are legal inside a JSON string.
    rows = json.loads(text) if array else [json.loads(line) for line in text.split("\n") if line.strip()]
    if file.suffix == ".json" and not array and len(rows) == 1:
        raise DataError(f"{file.name} is one JSON object, not a table; read it with json.loads")
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise DataError(f"{file.name} is not a list of records with the same fields")
    return rows


def _tab_separated(
    file: Path, columns: list[str], types: dict[str, pa.DataType] | None = None, skip: int = 0
) -> pa.Table:
    return csv.read_csv(
        file,
        read_options=csv.ReadOptions(column_names=columns, skip_rows=skip),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=types or {}, strings_can_be_null=False),
    )


def _atomic(file: Path) -> pa.Table:
    with file.open(encoding="utf-8") as stream:
        fields = [field.partition(":") for field in stream.readline().rstrip("\n").split("\t")]
    types = {name: pa.float64() if kind == "float" else pa.string() for name, _, kind in fields}
    return _tab_separated(file, list(types), types, skip=1)
