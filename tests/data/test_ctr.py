"""Logs of impressions: what they refuse, and real files in miniature."""

import json

import numpy as np
import pytest

from zfu_lib.data import ctr
from zfu_lib.data.catalogue import DataError


def log(**changes):
    columns = {
        "fields": ("user", "item"),
        "sizes": (3, 4),
        "scenarios": ("feed", "search"),
        "ids": np.array([[0, 1], [2, 3], [1, 0]]),
        "scenario": np.array([0, 1, 0]),
        "label": np.array([1, 0, 1]),
        "time": np.array([3.0, 1.0, 2.0]),
    }
    return ctr.Log(**columns | changes)


@pytest.mark.parametrize(("changes", "why"), [
    ({"ids": np.array([[0, 1], [3, 3], [1, 0]])}, "user id 3 of row 1"),
    ({"ids": np.array([[0, 1], [2, -1], [1, 0]])}, "item id -1 of row 1"),
    ({"ids": np.array([[0, 1], [2, np.nan], [1, 0]])}, "not integers"),
    ({"scenario": np.array([0, 2, 0])}, "scenario 2 of row 1"),
    ({"scenario": np.array([0.0, np.nan, 0.0])}, "missing one"),
    ({"label": np.array([1, 0.5, 1])}, "label of row 1"),
    ({"time": np.array([1.0, np.nan, 2.0])}, "time of row 1"),
    ({"label": np.array([1, 0])}, "another length"),
    ({"sizes": (3,)}, "sizes"),
])  # fmt: skip
def test_bad_rows_are_refused_by_field_row_and_value(changes, why):
    with pytest.raises(DataError, match=why):
        log(**changes)


def test_unseen_values_are_refused_or_mapped():
    assert ctr.encode(["b", "a"], ["a", "b"], field="item").tolist() == [1, 0]
    with pytest.raises(DataError, match="item 'z' of row 1"):
        ctr.encode(["a", "z"], ["a"], field="item")
    assert ctr.encode(["a", "z"], ["a"], field="item", unseen=9).tolist() == [0, 9]


def test_a_split_loses_no_row_and_repeats_none():
    whole = ctr.Log(("user", "item"), (100, 1), ("s",), np.c_[np.arange(100), np.zeros(100, int)],
                    np.zeros(100, int), np.zeros(100, int), np.arange(100.0))  # fmt: skip
    parts = whole.split(seed=1)
    assert [len(part) for part in parts] == [80, 10, 10]
    assert sorted(np.concatenate([part.ids[:, 0] for part in parts])) == list(range(100))
    assert all((np.diff(part.time) > 0).all() for part in parts)


def test_history_is_of_the_rows_given_in_the_order_of_time():
    words = ["a", "b", "c", "d"]
    told = ctr.history(log(ids=np.array([[0, 1], [0, 3], [0, 0]]), label=np.array([1, 1, 1])), words)
    assert told[0] == {"search": ["d"], "feed": ["a", "b"]}
    assert told[1] == {}
    assert ctr.history(log(), words)[2] == {}  # seen, not clicked
    assert ctr.history(log(), words, liked_only=False)[2] == {"search": ["d"]}


@pytest.fixture
def movielens(tmp_path, monkeypatch):
    (tmp_path / "item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tFirst\t1995\tAnimation Comedy\n20\tSecond\t1931\tDrama\n30\tThird\t\tDrama Thriller\n"
    )
    (tmp_path / "inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t10\t5\t0\n7\t20\t3\t25200\n8\t30\t4\t50000\n8\t10\t1\t80000\n"
    )
    files = {"ml-100k.item": tmp_path / "item", "ml-100k.inter": tmp_path / "inter"}
    monkeypatch.setattr(ctr, "table", lambda name, file: _read(files[file]))


def _read(file):
    head, *rows = (line.split("\t") for line in file.read_text().splitlines())
    return {name.partition(":")[0]: list(column) for name, column in zip(head, zip(*rows))}


@pytest.mark.usefixtures("movielens")
def test_movielens_by_genre_and_by_hour():
    found, words = ctr.movielens("genre")
    assert found.scenarios == tuple(ctr.GENRES)
    assert found.scenario.tolist() == [1, 3, 0, 1]
    assert found.label.tolist() == [1, 0, 1, 0]
    assert found.ids[:, 0].tolist() == [0, 0, 1, 1]
    assert words[0] == "First (Animation, Comedy)"
    assert ctr.movielens("hour")[0].scenario.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="not 'age'"):
        ctr.movielens("age")


def test_amazon_pair_shares_users_and_draws_what_was_not_bought(monkeypatch):
    rows = {"user": [0, 1, 0], "item": [0, 1, 2]}
    monkeypatch.setattr(ctr, "table", lambda name, file: rows)
    found = ctr.amazon_pair(negatives=2)
    assert found.sizes == (2, 6)
    assert found.label.sum() == 12  # both files of both domains
    bought = {tuple(row) for row in found.ids[found.label == 1]}
    assert not bought & {tuple(row) for row in found.ids[found.label == 0]}
    assert (found.ids[found.scenario == 1, 1] >= 3).all()


def test_kuaisar_in_miniature(tmp_path):
    (tmp_path / "rec_inter.csv").write_text("user_id,item_id,timestamp,click\n5,1,10,1\n6,2,11,0\n")
    (tmp_path / "src_inter.csv").write_text("user_id,item_id,search_session_timestamp,click_cnt\n5,2,9,3\n")
    with pytest.raises(DataError, match=r"item_features\.csv cannot be read"):
        ctr.kuaisar(tmp_path)
    header = "item_id,first_level_category_name,second_level_category_name\n"
    (tmp_path / "item_features.csv").write_text(header + "1,Food,Soup\n2,Music,Jazz\n")
    found, words = ctr.kuaisar(tmp_path)
    assert found.scenario.tolist() == [0, 0, 1]
    assert found.label.tolist() == [1, 0, 1]
    assert found.ids.tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 1]]
    assert words == ["a video on Food, Soup", "a video on Music, Jazz"]


def test_amazon_reviews_in_miniature(tmp_path):
    for name, people in (("beauty", "ab"), ("health", "bc")):
        lines = [{"reviewerID": u, "asin": "X", "overall": 4.0 - i, "unixReviewTime": i} for i, u in enumerate(people)]
        (tmp_path / f"{name}.r").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / f"{name}.p").write_text(json.dumps({"asin": "X", "title": f"a {name} thing"}))
    found, words = ctr.amazon_reviews({n: (tmp_path / f"{n}.r", tmp_path / f"{n}.p") for n in ("beauty", "health")})
    assert found.sizes == (3, 2)
    assert found.label.tolist() == [1, 0, 1, 0]
    assert words == ["a beauty thing", "a health thing"]
    (tmp_path / "beauty.r").write_text('{"reviewerID": "a", "asin": "X", "overall": 4}')
    with pytest.raises(DataError, match=r"beauty\.r, line 1: no field unixReviewTime"):
        ctr.amazon_reviews({"beauty": (tmp_path / "beauty.r", tmp_path / "beauty.p")})
