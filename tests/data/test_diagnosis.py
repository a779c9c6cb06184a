"""Loaders of the real tables, on files of their form; and what the small models are taught."""

import json
import zipfile

import pytest

from zfu_lib.data import catalogue, diagnosis
from zfu_lib.data.catalogue import DataError
from zfu_lib.data.worlds import clinic
from zfu_lib.lm.recipes import diagnosis as language

SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def excel(file, rows):
    words = [cell for row in rows for cell in row]
    shared = "".join(f"<si><t>{word}</t></si>" for word in words)
    lines, at = "", 0
    for r, row in enumerate(rows, 1):
        cells = ""
        for c, cell in enumerate(row):
            if cell:
                cells += f'<c r="{"ABC"[c]}{r}" t="s"><v>{at}</v></c>'
            at += 1
        lines += f'<row r="{r}">{cells}</row>'
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f"<sst {SPACE}>{shared}</sst>")
        archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {SPACE}><sheetData>{lines}</sheetData></worksheet>")


def test_a_sheet_is_read_cell_by_cell(tmp_path, monkeypatch):
    file = tmp_path / "graph.xlsx"
    excel(file, [["subject", "relation", "object"], ["flu", "has_symptomatology", "dry  cough"], ["", "x", "y"]])
    assert diagnosis.sheet(file)[2] == ["", "x", "y"]
    monkeypatch.setattr(catalogue, "get", lambda name: {"x": file})
    assert diagnosis.ddxplus_graph() == [("flu", "has_symptomatology", "dry cough")]
    file.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not an Excel sheet"):
        diagnosis.sheet(file)


def test_profiles_and_graphs(tmp_path, monkeypatch):
    file = tmp_path / "Asthma.json"
    monkeypatch.setattr(catalogue, "get", lambda name: {"x": file})
    file.write_text(json.dumps({"C1": {"count": 3, "binary_fr": {"toux": 0.5}}, "C2": {"count": 9, "binary_fr": {}}}))
    assert [p.concept for p in diagnosis.ddxplus_profiles()] == ["C2", "C1"]
    file.write_text(json.dumps({"C1": {"binary_fr": {}}}))
    with pytest.raises(DataError, match="another form"):
        diagnosis.ddxplus_profiles()
    file.write_text(json.dumps({"knowledge": {"Suspected Asthma": {"Signs": "wheezing", "Symptoms": "cough"}}}))
    assert diagnosis.direct_graphs() == {"Asthma": {"Suspected Asthma": "wheezing cough"}}
    file.write_text("[]")
    with pytest.raises(DataError, match="DiReCT"):
        diagnosis.direct_graphs()


def test_the_taught_order_is_a_count():
    said = [clinic.Mention(f, s, f) for f, s in (("arm-pain", "present"), ("arm-rash", "absent"), ("leg-ache", "past"))]
    facts = [("a", "arm-pain"), ("b", "arm-pain"), ("b", "arm-rash"), ("c", "leg-ache")]
    assert language.ranking(said, facts, frozenset()) == [("a", 1)]
    known = clinic.memory(0.55, 0.30)
    disease, finding = next(iter(known))
    one = [clinic.Mention(finding, "present", finding)]
    assert (disease, 2) in language.ranking(one, [(disease, finding)], known)
    assert language.supporting(disease, one, [], known) == [finding]


def test_texts_come_from_the_seed_and_hold_no_unknown_word():
    drawn = language.examples(200, 5, 0.0, common=0.55, rare=0.3)
    assert drawn == language.examples(200, 5, 0.9, common=0.55, rare=0.3)
    words = set(language.WORDS)
    assert {word for text in drawn for part in text for word in part.split()} <= words
    told = [read for read, _ in drawn if "disease-" in read]
    assert told
    assert not any(d in read for read in told for d in clinic.world().diseases)


def test_a_vote_counts_lists_first():
    assert language.vote([["a", "b"], ["b"], ["c", "b"]])[0] == "b"
    assert len(language.vote([[str(i) for i in range(15)]])) == 10
