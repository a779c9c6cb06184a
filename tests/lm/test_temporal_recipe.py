"""What the small model of AdapTime reads: every text true, every way to an answer taught on as much."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from zfu_lib.data.worlds import chronobio
from zfu_lib.lm.recipes import make, temporal
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import IGNORED

(RECIPE,) = temporal.RECIPES
TOKENIZER = word_tokenizer(temporal.WORDS)


def quizzes(way, n=60):
    rng = np.random.default_rng(1)
    return [temporal._quiz(item, way, rng) for item in chronobio.items(n, 3, temporal.WORLD)]


@pytest.mark.parametrize("way", temporal.FURTHER)
def test_a_quiz_reads_its_document_once_and_answers_every_question_right(way):
    for parts in quizzes(way):
        document = parts[0].partition("\n")[0]
        assert sum(document in part for part in parts) == 1
        assert ("Timeline :" in parts[0]) == (way == "beside")
        questions = [re.search(r"Question : (.*)\n", read)[1] for read in parts[0::2]]
        assert len(set(questions)) == len(questions)
        for question, told in zip(questions, parts[1::2], strict=True):
            assert temporal.final(told) == chronobio.solve(document, question)
            assert ("Answer :" in told) == (way == "think")


def test_the_first_question_of_a_quiz_is_asked_as_at_test_time():
    for item, direct, beside, think in zip(
        chronobio.items(60, 3, temporal.WORLD), quizzes("direct"), quizzes("beside"), quizzes("think"), strict=True
    ):
        text = temporal.timeline(item)
        assert direct[0] == temporal.ask("answer", item.document, item.question)
        assert beside[0] == temporal.ask("answer", item.document, item.question, timeline=text)
        assert think[0] == temporal.ask("think", item.document, item.question)
        assert think[1] == temporal.told("think", item)


def test_the_three_ways_are_taught_on_about_as_many_tokens():
    sizes = {}
    for way in temporal.FURTHER:
        sizes[way] = np.mean([len(TOKENIZER("".join(parts)).input_ids) for parts in quizzes(way)])
    assert max(sizes.values()) < 1.5 * min(sizes.values())
    assert len({temporal.SHARES[way] for way in temporal.FURTHER}) == 1


def test_drills_are_true():
    rng = np.random.default_rng(0)
    kinds = Counter()
    for _ in range(60):
        parts = temporal._drill(rng)
        for read, told in zip(parts[0::2], parts[1::2], strict=True):
            kinds[read.split()[0] if not read[0].isdigit() else "sum"] += 1
            if read.startswith("Question"):
                assert chronobio.solve("", re.search(r"Question : (.*)\n", read)[1]) == told.strip()
            elif read.startswith("Check"):
                t, a, b = map(int, re.findall(r"\d+", read))
                assert told.strip() == ("yes" if a <= t < b else "no")
            else:
                a, b = map(int, re.findall(r"\d+", read))
                assert int(told) == a + b
    assert min(kinds.values()) > 60


def test_short_answers_and_long_ones_do_not_share_batches():
    batch, mixed = make.batches(RECIPE, TOKENIZER), 0
    for step in range(make.POOL):
        learnt = (batch(2 * make.POOL + step)[1] != IGNORED).sum(1)
        mixed += bool((learnt > RECIPE.short).any() and (learnt <= RECIPE.short).any())
    assert mixed <= 1, "only where the two meet"


def test_what_is_read_in_between_is_not_learnt():
    parts = quizzes("direct", 1)[0]
    recipe = replace(RECIPE, examples=lambda n, *_: [parts] * n)
    inputs, targets = (row[0].tolist() for row in make.batches(recipe, TOKENIZER)(0))
    learnt = [t for t in targets if t != IGNORED]
    told = [TOKENIZER(part, add_special_tokens=False).input_ids for part in parts[1::2]]
    assert learnt == [*(i for ids in told for i in ids), TOKENIZER.eos_token_id]
    assert all(target in (IGNORED, after) for target, after in zip(targets, inputs[1:]))
