"""Logs of impressions with a scenario: the checked table that recommenders train on, and real logs in that form.

Shape letters: N impressions, F fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zfu_lib.data.catalogue import DataError
from zfu_lib.data.tables import table


@dataclass(frozen=True)
class Log:
    """Impressions. Field 0 is the user, field 1 the item.

    ``ids`` int64 [N, F] with ``sizes`` values in each of ``fields``; ``scenario`` int64 [N], one of ``scenarios``;
    ``label`` 0 or 1 [N]; ``time`` [N], by which a user's history is ordered.

    Raises:
        DataError: columns of different lengths, an id or a scenario that is missing or was never seen, a label that is
            not 0 or 1, a time that is not finite; the message names field, row and value.
    """

    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    scenarios: tuple[str, ...]
    ids: np.ndarray
    scenario: np.ndarray
    label: np.ndarray
    time: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.ids.shape != (n, len(self.fields)) or len(self.sizes) != len(self.fields) or len(self.fields) < 2:
            raise DataError(f"ids have shape {self.ids.shape} for fields {self.fields} of sizes {self.sizes}")
        if any(column.shape != (n,) for column in (self.scenario, self.label, self.time)):
            raise DataError(f"{n} impressions, but scenario, label or time have another length")
        for i, (field, size) in enumerate(zip(self.fields, self.sizes)):
            _in_range(self.ids[:, i], size, f"{field} id", f"the {size} that the model knows")
        _in_range(self.scenario, len(self.scenarios), "scenario", f"{', '.join(self.scenarios)}")
        for name, column, fine in (
            ("label", self.label, np.isin(self.label, (0, 1))),
            ("time", self.time, np.isfinite(self.time)),
        ):
            if not fine.all():
                row = int(np.flatnonzero(~fine)[0])
                raise DataError(f"{name} of row {row} is {column[row]}: labels are 0 or 1, times finite numbers")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Log:
        """Some of the rows."""
        columns = {name: getattr(self, name)[rows] for name in ("ids", "scenario", "label", "time")}
        return replace(self, **columns)

    def split(self, seed: int, parts: Sequence[float] = (0.8, 0.1, 0.1)) -> list[Log]:
        """Rows in random parts; in each, in the order they had."""
        order = np.random.default_rng(seed).permutation(len(self))
        ends = np.round(np.cumsum(parts)[:-1] * len(self)).astype(int)
        return [self.take(np.sort(rows)) for rows in np.split(order, ends)]


def _in_range(values: np.ndarray, size: int, what: str, known: str) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{what}s are {values.dtype}, not integers: a missing one (NaN) makes a column float")
    wrong = np.flatnonzero((values < 0) | (values >= size))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{what} {values[row]} of row {row} is none of {known}; encode it as a known one or drop the row"
        )


def encode(values: Sequence, known: Sequence, *, field: str, unseen: int | None = None) -> np.ndarray:
    """Numbers of ``values`` in ``known``: int64 [N].

    Args:
        unseen: the number of a value that is not in ``known``; None refuses it.

    Raises:
        DataError: a value that is not known, by field and row.
    """
    number = {value: i for i, value in enumerate(known)}
    found = np.array([number.get(value, -1) for value in values], dtype=np.int64)
    if unseen is not None:
        return np.where(found < 0, unseen, found)
    if (found < 0).any():
        row = int(np.flatnonzero(found < 0)[0])
        raise DataError(f"{field} {values[row]!r} of row {row} was not seen before; give `unseen` a number for such")
    return found


def history(log: Log, words: Sequence[str], *, liked_only: bool = True) -> list[dict[str, list[str]]]:
    """What each user liked in each scenario, in words and in the order of time; only rows of ``log`` are read.

    Args:
        words: one text per item.

    Returns:
        For each user: scenario -> texts; scenarios without any are left out.
    """
    found: list[dict[str, list[str]]] = [{} for _ in range(log.sizes[0])]
    for row in np.argsort(log.time, kind="stable"):
        if log.label[row] or not liked_only:
            told = found[log.ids[row, 0]].setdefault(log.scenarios[log.scenario[row]], [])
            told.append(words[log.ids[row, 1]])
    return found


GENRES = {
    "action and thrillers": ("Action", "Adventure", "Thriller", "Crime", "War", "Western", "Film-Noir", "Mystery"),
    "family and fantasy": ("Children's", "Animation", "Fantasy", "Sci-Fi", "Musical"),
    "comedies": ("Comedy",),
    "dramas": ("Drama", "Romance", "Documentary", "Horror", "unknown"),
}
HOURS = {"night": range(0, 6), "morning": range(6, 12), "afternoon": range(12, 18), "evening": range(18, 24)}


def movielens(scenario: str = "genre") -> tuple[Log, list[str]]:
    """MovieLens-100k as a multi-scenario log; a rating above 3 is a click.

    A user's rows fall into several scenarios: a scenario is a property of the item (``genre``: the first group of
    :data:`GENRES` that one of its genres belongs to) or of the moment (``hour``: part of the day, UTC). Never of the
    user: split by age, each would live in one scenario and nothing could cross.

    Returns:
        The log with fields user, item, and decade of the film; and each item in words (title and genres).

    Raises:
        DataError: what :func:`zfu_lib.data.catalogue.get` says, or an unknown ``scenario``.
    """
    if scenario not in ("genre", "hour"):
        raise DataError(f"MovieLens is split by 'genre' or 'hour', not {scenario!r}")
    items = table("movielens_100k", "ml-100k.item")
    rows = table("movielens_100k", "ml-100k.inter")
    known_items, genres = list(items["item_id"]), [text.split() for text in items["class"]]
    years = [int(float(year)) if year and year.replace(".", "").isdigit() else 1990 for year in items["release_year"]]
    decades = np.clip((np.array(years) - 1920) // 10, 0, 7)
    users = sorted(set(rows["user_id"]), key=int)
    item = encode(rows["item_id"], known_items, field="item")
    time = np.asarray(rows["timestamp"], dtype=float)
    if scenario == "genre":
        names, group = tuple(GENRES), list(GENRES.values())
        of_item = [next((g for g, of in enumerate(group) if set(of) & set(has)), 3) for has in genres]
        where = np.array(of_item)[item]
    else:
        names = tuple(HOURS)
        where = (time.astype(np.int64) // 3600 % 24) // 6
    ids = np.stack([encode(rows["user_id"], users, field="user"), item, decades[item]], axis=1)
    label = (np.asarray(rows["rating"], dtype=float) > 3).astype(np.int64)
    log = Log(("user", "item", "decade"), (len(users), len(known_items), 8), names, ids, where, label, time)
    words = [f"{title} ({', '.join(has)})" for title, has in zip(items["movie_title"], genres)]
    return log, words


def amazon_pair(a: str = "phone", b: str = "sport", *, negatives: int = 1, seed: int = 0) -> Log:
    """Two Amazon domains with the same users as two scenarios; ids only. Purchases are clicks.

    Items a user did not buy are drawn uniformly from the domain, ``negatives`` for each purchase.

    Raises:
        DataError: what :func:`zfu_lib.data.catalogue.get` says.
    """
    rng, parts, first = np.random.default_rng(seed), [], 0
    for s, pair in enumerate((f"{a}_{b}", f"{b}_{a}")):
        rows = [table("amazon_pairs", f"{pair}/{part}.txt") for part in ("train", "test")]
        user, item = (np.concatenate([np.asarray(r[c], dtype=np.int64) for r in rows]) for c in ("user", "item"))
        count = int(item.max()) + 1
        bought = np.unique(user * count + item)
        other = rng.integers(0, count, (negatives, len(user)))
        while (clash := np.isin(user * count + other, bought)).any():
            other[clash] = rng.integers(0, count, int(clash.sum()))
        users, items = np.tile(user, negatives + 1), np.concatenate([item, *other])
        label = np.repeat([1] + [0] * negatives, len(user))
        parts.append(np.stack([users, items + first, np.full_like(users, s), label], axis=1))
        first += count
    rows = np.concatenate(parts)
    sizes = (int(rows[:, 0].max()) + 1, first)
    return Log(("user", "item"), sizes, (a, b), rows[:, :2], rows[:, 2], rows[:, 3], np.zeros(len(rows)))


def kuaisar(folder: Path) -> tuple[Log, list[str]]:
    """KuaiSAR (or its small version): the two scenarios *recommendation* and *search* of Kuaishou.

    Args:
        folder: with ``rec_inter.csv``, ``src_inter.csv`` and ``item_features.csv`` of the Zenodo record 8181109
            (CC BY-NC-SA 4.0; not fetched by this book).

    Returns:
        The log with fields user, item, first-level category; and each item in words (its category names).

    Raises:
        DataError: a missing file or column.
    """
    from pyarrow import ArrowException, csv

    def read(name: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            options = csv.ConvertOptions(include_columns=list(columns))
            return {
                c: np.asarray(v) for c, v in csv.read_csv(folder / name, convert_options=options).to_pydict().items()
            }
        except (OSError, ArrowException) as error:
            raise DataError(f"KuaiSAR: {name} cannot be read from the folder given: {error}") from None

    recommended = read("rec_inter.csv", ("user_id", "item_id", "timestamp", "click"))
    searched = read("src_inter.csv", ("user_id", "item_id", "search_session_timestamp", "click_cnt"))
    features = read("item_features.csv", ("item_id", "first_level_category_name", "second_level_category_name"))
    known_items, categories = features["item_id"].tolist(), features["first_level_category_name"].tolist()
    known_categories = sorted(set(categories))
    user = np.concatenate([recommended["user_id"], searched["user_id"]])
    item = np.concatenate([recommended["item_id"], searched["item_id"]])
    time = np.concatenate([recommended["timestamp"], searched["search_session_timestamp"]]).astype(float)
    label = np.concatenate([recommended["click"], np.minimum(searched["click_cnt"], 1)]).astype(np.int64)
    where = np.repeat([0, 1], [len(recommended["user_id"]), len(searched["user_id"])])
    users = np.unique(user).tolist()
    item = encode(item.tolist(), known_items, field="item")
    category = encode(categories, known_categories, field="category")
    ids = np.stack([encode(user.tolist(), users, field="user"), item, category[item]], axis=1)
    sizes = (len(users), len(known_items), len(known_categories))
    log = Log(("user", "item", "category"), sizes, ("recommendation", "search"), ids, where, label, time)
    second = features["second_level_category_name"].tolist()
    return log, [f"a video on {a}, {b}" for a, b in zip(categories, second)]


def amazon_reviews(files: Mapping[str, tuple[Path, Path]]) -> tuple[Log, list[str]]:
    """Amazon 5-core reviews of several categories, a category as a scenario; a rating above 3 is a click.

    Args:
        files: category -> (reviews, products), JSON lines with ``reviewerID``, ``asin``, ``overall``,
            ``unixReviewTime``, and ``asin``, ``title``.

    Returns:
        The log with fields user and item; and each item in words (its title, or its category where it has none).

    Raises:
        DataError: a missing file or field, by line.
    """
    rows: list[tuple] = []
    titles: dict[tuple[str, str], str] = {}
    for s, (category, (reviews, products)) in enumerate(files.items()):
        for record in _json_lines(products, ("asin",)):
            titles[category, record["asin"]] = record.get("title") or category
        for record in _json_lines(reviews, ("reviewerID", "asin", "overall", "unixReviewTime")):
            key = (category, record["asin"])
            titles.setdefault(key, category)
            rows.append((record["reviewerID"], key, s, record["overall"] > 3, record["unixReviewTime"]))
    user, item, where, label, time = (list(column) for column in zip(*rows))
    users, items = sorted(set(user)), sorted(set(item))
    ids = np.stack([encode(user, users, field="user"), encode(item, items, field="item")], axis=1)
    log = Log(
        ("user", "item"), (len(users), len(items)), tuple(files), ids,
        np.array(where), np.array(label, dtype=np.int64), np.array(time, dtype=float),
    )  # fmt: skip
    return log, [titles[key] for key in items]


def _json_lines(file: Path, needed: Sequence[str]) -> list[dict]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file.name}, line {number}: not JSON ({error.msg})") from None
        if missing := [field for field in needed if field not in record]:
            raise DataError(f"{file.name}, line {number}: no field {', '.join(missing)}")
        found.append(record)
    return found
