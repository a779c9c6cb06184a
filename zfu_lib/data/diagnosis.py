"""Real tables about diagnoses: DDXPlus rates, the DDXPlus knowledge graph, MedlinePlus passages, DiReCT's graphs.

All of it is research data. Nothing here advises anybody.
"""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError


class DiseaseProfile(NamedTuple):
    """A disease of DDXPlus: its UMLS concept, how many patients have it, and the rate of each binary evidence."""

    concept: str
    patients: int
    rates: dict[str, float]


class Triple(NamedTuple):
    """A row of the knowledge graph."""

    subject: str
    relation: str
    object: str


def ddxplus_profiles() -> list[DiseaseProfile]:
    """The 49 diseases, the most frequent first.

    Raises:
        DataError: not at hand, damaged, or of another form.
    """
    (file,) = catalogue.get("ddxplus_profiles").values()
    rows = json.loads(file.read_text(encoding="utf-8"))
    try:
        found = [
            DiseaseProfile(concept, int(row["count"]), {k: float(v) for k, v in _rates(row).items()})
            for concept, row in rows.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file.name} has another form than the DDXPlus profiles ({error!r})") from None
    return sorted(found, key=lambda p: -p.patients)


def _rates(row: Mapping) -> Mapping[str, float]:
    (name,) = [key for key in row if key.startswith("binary")]
    return row[name]


def ddxplus_graph() -> list[Triple]:
    """The triples of the knowledge graph, in the order of the sheet.

    Raises:
        DataError: not at hand, damaged, or no sheet with three columns.
    """
    (file,) = catalogue.get("ddxplus_graph").values()
    rows = [row for row in sheet(file) if len(row) >= 3 and all(row[:3])]
    if not rows:
        raise DataError(f"{file.name} has no row of three cells")
    return [Triple(*(" ".join(cell.split()) for cell in row[:3])) for row in rows[1:]]


def sheet(file: Path) -> list[list[str]]:
    """The cells of the first sheet of an Excel file as text; empty cells are empty strings.

    Raises:
        DataError: not such a file.
    """
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    try:
        with zipfile.ZipFile(file) as archive:
            shared = []
            if "xl/sharedStrings.xml" in archive.namelist():
                for item in ElementTree.fromstring(archive.read("xl/sharedStrings.xml")):
                    shared.append("".join(t.text or "" for t in item.iter(f"{space}t")))
            root = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise DataError(f"{file.name} is not an Excel sheet ({error}); get it again: zfu data get") from None
    rows = []
    for row in root.iter(f"{space}row"):
        cells: dict[int, str] = {}
        for cell in row.iter(f"{space}c"):
            column = 0
            for letter in "".join(c for c in cell.get("r", "A") if c.isalpha()):
                column = 26 * column + ord(letter) - 64
            value, kind = cell.find(f"{space}v"), cell.get("t")
            if kind == "inlineStr":
                cells[column - 1] = "".join(t.text or "" for t in cell.iter(f"{space}t"))
            elif value is not None and value.text:
                cells[column - 1] = shared[int(value.text)] if kind == "s" else value.text
        rows.append([cells.get(i, "") for i in range(max(cells, default=-1) + 1)])
    return rows


def medlineplus() -> list[dict[str, str]]:
    """The passages: ``cui``, ``title``, ``text``.

    Raises:
        DataError: not at hand or damaged.
    """
    (file,) = catalogue.get("medlineplus").values()
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def direct_graphs() -> dict[str, dict[str, str]]:
    """For each disease group of DiReCT, what is known of each node of its graph: group -> node -> text.

    Raises:
        DataError: not at hand, damaged, or of another form.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for file in catalogue.get("direct_graphs").values():
        try:
            knowledge = json.loads(file.read_text(encoding="utf-8"))["knowledge"]
            for node, told in knowledge.items():
                found[file.stem][node] = " ".join(told.values()) if isinstance(told, dict) else str(told)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file.name} is not a DiReCT graph ({error!r})") from None
    return dict(found)
