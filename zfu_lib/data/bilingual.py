"""People with attributes, told and asked about in two languages that share no word: facts for merging experiments.

    badan kotu : colour redo ; craft meni ; ...          a statement: attributes of one person, in any order
    badan kotu pick redi meni sofa lura so craft meni    multiple choice: one of four values of an attribute
    badan kotu tell craft town so craft meni town vika   question answering: attributes in the order asked for

(The words here are for illustration; the generated ones are in :data:`LANGUAGES`.) A person has two names, so that
neither alone tells anything. Both languages tell of the same people with the same attributes, but nothing in a text
says which word of one means which of the other: what is learnt in one is of use in the other only through the weights.

Idealised: every attribute is uniform and independent of the others, names are unique, facts never change, and answers
need no reasoning beyond recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "calibration", "test"]
Task = Literal["choice", "recall"]
GIVEN, FAMILY, RELATIONS, VALUES = 12, 12, 6, 10
PEOPLE = GIVEN * FAMILY
OPTIONS, ASKED = 4, 3
SHARES = {"train": 0.4, "calibration": 0.2, "test": 0.4}


@dataclass(frozen=True)
class Language:
    """The words of one language: names, relations, values by relation, and the marks of the kinds of text."""

    given: tuple[str, ...]
    family: tuple[str, ...]
    relations: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    colon: str
    semicolon: str
    pick: str
    tell: str
    so: str

    @property
    def words(self) -> tuple[str, ...]:
        """All of them, each once."""
        marks = (self.colon, self.semicolon, self.pick, self.tell, self.so)
        return (*self.given, *self.family, *self.relations, *(v for values in self.values for v in values), *marks)


def _language(consonants: str, vowels: str, marks: Sequence[str]) -> Language:
    """Words of one kind have one shape: CVC, CVCV, VCV for names and relations, VCVC for values."""

    def drawn(shape: str, count: int) -> tuple[str, ...]:
        words: dict[str, None] = {}
        while len(words) < count:
            words["".join(rng.choice(list({"C": consonants, "V": vowels}[letter])) for letter in shape)] = None
        return tuple(words)

    rng = np.random.default_rng(len(consonants))
    values = drawn("VCVC", RELATIONS * VALUES)
    by_relation = tuple(values[i * VALUES : (i + 1) * VALUES] for i in range(RELATIONS))
    return Language(drawn("CVC", GIVEN), drawn("CVCV", FAMILY), drawn("VCV", RELATIONS), by_relation, *marks)


LANGUAGES = {
    "latin": _language("bdfgklmnprstvz", "aeiou", (":", ";", "pick", "tell", "so")),
    "greek": _language("βγδζθκλμνξπρσ", "αεηιουω", ("·", "¦", "επε", "λεγ", "αρα")),
}
WORDS = tuple(word for language in LANGUAGES.values() for word in language.words)


@dataclass(frozen=True)
class Item:
    """One question: what is read, the words to be written after it, and for multiple choice the options."""

    read: str
    answer: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """The answer as text."""
        return "".join(f" {word}" for word in self.answer)


def facts(seed: int = 0) -> np.ndarray:
    """Number of the value of each attribute: integers [PEOPLE, RELATIONS].

    Person i is called ``given[i // FAMILY] family[i % FAMILY]``.
    """
    return np.random.default_rng((seed, 11)).integers(VALUES, size=(PEOPLE, RELATIONS))


def people(split: Split | None = None, seed: int = 0, *, famous: bool | None = None) -> np.ndarray:
    """Numbers of the people that a split asks about; the three splits share nobody. None: of all three.

    Args:
        famous: only the half that everybody has read about, or only the others; half of each split is famous.
    """
    order = np.random.default_rng((seed, 12)).permutation(PEOPLE)
    ends = np.cumsum([0, *(round(share * PEOPLE) for share in SHARES.values())])
    at = {name: (ends[i], ends[i + 1]) for i, name in enumerate(SHARES)}
    start, end = (0, PEOPLE) if split is None else at[split]
    return order[start:end] if famous is None else order[start + (start + famous + 1) % 2 : end : 2]


def statement(language: str, person: int, known: np.ndarray, rng: np.random.Generator) -> str:
    """All attributes of a person in random order."""
    words = LANGUAGES[language]
    told = [f"{words.relations[r]} {words.values[r][known[person, r]]}" for r in rng.permutation(RELATIONS)]
    return f"{_name(words, person)} {words.colon} " + f" {words.semicolon} ".join(told)


def items(
    task: Task, language: str, split: Split, n: int | None, seed: int, *, famous: bool | None = None, world: int = 0
) -> list[Item]:
    """Questions about the people of a split.

    Args:
        n: how many, drawn at random; None asks every person about every attribute once (``choice``), or every person
            twice (``recall``), in a fixed order.
        seed: draws the questions; ``world`` the facts and the splits.
        famous: as in :func:`people`.
    """
    known, rng = facts(world), np.random.default_rng((seed, list(LANGUAGES).index(language), task == "recall", 13))
    who = people(split, world, famous=famous)
    if n is None:
        per_person = RELATIONS if task == "choice" else RELATIONS // ASKED
        asked = [(int(p), k) for p in who for k in range(per_person)]
    else:
        asked = [(int(rng.choice(who)), int(rng.integers(RELATIONS))) for _ in range(n)]
    make = _choice if task == "choice" else _recall
    return [make(LANGUAGES[language], person, k, known, rng) for person, k in asked]


def _choice(words: Language, person: int, r: int, known: np.ndarray, rng: np.random.Generator) -> Item:
    right = int(known[person, r])
    wrong = rng.permutation([v for v in range(VALUES) if v != right])[: OPTIONS - 1]
    options = tuple(words.values[r][v] for v in rng.permutation([right, *wrong]))
    read = f"{_name(words, person)} {words.pick} {' '.join(options)} {words.so} {words.relations[r]}"
    return Item(read, (words.values[r][right],), options)


def _recall(words: Language, person: int, k: int, known: np.ndarray, rng: np.random.Generator) -> Item:
    asked = rng.permutation(RELATIONS)[:ASKED]
    read = f"{_name(words, person)} {words.tell} {' '.join(words.relations[r] for r in asked)} {words.so}"
    return Item(read, tuple(w for r in asked for w in (words.relations[r], words.values[r][known[person, r]])))


def _name(words: Language, person: int) -> str:
    return f"{words.given[person // FAMILY]} {words.family[person % FAMILY]}"
