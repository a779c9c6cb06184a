"""Readers of temporal knowledge graphs refuse what is broken; the generated one has the truth it promises."""

import numpy as np
import pytest

from zfu_lib.data import tkg
from zfu_lib.data.catalogue import DataError

FILES = {
    "entity2id.txt": "China\t0\nPolice_(Kenya)\t1\n",
    "relation2id.txt": "Consult\t0\n",
    "train.txt": "0\t0\t1\t1\t0\n1\t0\t0\t2\t0\n",
    "valid.txt": "0\t0\t1\t3\n",
    "test.txt": "1\t0\t1\t4\n",
}


def folder(place, **changed):
    for name, text in (FILES | {k.replace("_txt", ".txt"): v for k, v in changed.items()}).items():
        if text is not None:
            (place / name).write_text(text, encoding="utf-8")
    return place


def test_a_folder(tmp_path):
    found = tkg.read_events(folder(tmp_path))
    assert found.entities == ("China", "Police_(Kenya)")
    assert found.train.tolist() == [[0, 0, 1, 1], [1, 0, 0, 2]]
    assert (len(found.valid), len(found.test)) == (1, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_txt": None}, "no test.txt"),
        ({"train_txt": "0\t0\t1\t1\n1\t0\t0"}, "train.txt ends in the middle of line 2"),
        ({"train_txt": "0\t0\t1\t1\n1\t0\t0\n"}, "train.txt, line 2: .*four integers"),
        ({"valid_txt": "0\tConsult\t1\t3\n"}, "valid.txt, line 1"),
        ({"valid_txt": ""}, "valid.txt is empty"),
        ({"entity2id_txt": "China\t0\nIran\t2\n"}, "entity2id.txt names 2 ids but not id 1: truncated"),
        ({"entity2id_txt": "China\t0\nIran\t0\n"}, "line 2: id 0 was given to 'China'"),
        ({"relation2id_txt": "Consult\n"}, "relation2id.txt, line 1"),
    ],
)
def test_broken_files(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        tkg.read_events(folder(tmp_path, **changed))


def test_generated_events_keep_their_promise():
    found = tkg.generated_events(3)
    facts = np.concatenate([found.train, found.valid, found.test])
    days = [set(part[:, 3].tolist()) for part in (found.train, found.valid, found.test)]
    assert days == [set(range(1, 33)), set(range(33, 37)), set(range(37, 41))]
    triples, times = np.unique(facts[:, :3], axis=0, return_counts=True)
    often = triples[times >= 5]
    # 2,880 draws from 200 triples: each comes about 14 times, a new fact once or, by chance, twice.
    assert 180 <= len(often) <= 200
    new = triples[times == 1]
    size = len(tkg.ROLES)
    country = {}
    for s, r, o in new.tolist():
        country.setdefault((s // size, r), []).append(o // size)
    # The object's country is fixed by the subject's country and the event.
    agree = [max(c.count(x) for x in set(c)) / len(c) for c in country.values() if len(c) >= 5]
    assert np.mean(agree) > 0.95
    assert found.entities[0] == "Army (Arcadia)"
    assert found.entities[size] == "Army (Atlantis)"


def test_the_seed_alone_decides():
    a, b, c = tkg.generated_events(1), tkg.generated_events(1), tkg.generated_events(2)
    assert (a.train == b.train).all()
    assert a.used == b.used != c.used
