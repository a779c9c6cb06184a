"""The AdapTime laboratory: one run through every arm, the paper's profile on a miniature, what the real readers make of
files, and the arithmetic on the printed tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zfu_lib.data.worlds import chronobio
from zfu_lib.experiments import adaptime
from zfu_lib.experiments.adaptime import MASK_NAMES, PAPER, QUICK, Lab
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.protocol import Caps, GenResult
from zfu_lib.lm.recipes import temporal
from zfu_lib.lm.tokenizer import byte_tokenizer
from zfu_lib.reasoning import adaptime as method

SMALL = {"items": 6, "plans": 6, "dial_items": 4, "seeds": 2}


class Reader:
    """Answers each of the small model's prompts as its training texts would: a control, not a model."""

    name, identity, n_params, context = "reader", "reader", 1, 100_000
    caps = Caps(entropy=None, prefill=True, logprobs=False, chat=True)

    def __init__(self, items, *, wrong=()):
        self.items, self.wrong = items, wrong

    def count(self, text):
        return len(text.split())

    def generate(self, requests):
        texts = [self.told(r.prompt) for r in requests]
        return [GenResult(t, self.count(r.prompt), self.count(t), "stop") for r, t in zip(requests, texts, strict=True)]

    def told(self, prompt):
        head = prompt.splitlines()[-1]
        step = next(step for step, text in temporal.HEADS.items() if text == head)
        questions = [line.removeprefix("Question : ") for line in prompt.splitlines() if line.startswith("Question : ")]
        whole = {i.question: i for i in self.items}
        parts = {q: i for i in self.items for q, _ in i.sub}
        item = whole.get(questions[-1]) or parts[questions[-1]]
        if step in self.wrong:
            return " ...\n...\n"
        if step == "answer" and questions[-1] not in whole:
            return f" {dict(item.sub)[questions[-1]]}\n"
        return temporal.told(step, item, answer=None)


@pytest.fixture
def lab():
    found = Lab(replace(QUICK, **SMALL), model=Reader([]))
    found.model.items = [q.item for s in range(2) for part in ("test", "plans") for q in found.questions(s, part)]
    found.model.items += [q.item for dial in (0.0, 1.0) for q in found.dialled(dial)]
    return found


def test_a_reader_that_writes_the_truth_is_right_in_every_arm(lab):
    for name in adaptime.arms():
        if name != "step-back":
            assert lab.right(name).mean() == 1.0, name
            assert lab.tokens(name).min() > 0
    assert adaptime.stages(lab)["right"] == 12
    assert adaptime.review_effect(lab, MASK_NAMES[adaptime.ALL])["net"].mean == 0
    assert adaptime.tracks_need(lab, "planner")["reformulate"].mean == 1.0


def test_wrong_answers_are_put_down_to_the_first_stage_that_fails(lab):
    lab.model.wrong = ("timeline",)
    outcomes = lab.arm("rewrite", 0)
    assert all(o.trace.failures == ["rewrite"] for o in outcomes)
    question = lab.questions(0)[0]
    bad = outcomes[0]._replace(answer="nobody")
    assert adaptime._stage(bad, question) == "text not usable"
    bad.trace.failures.clear()
    bad.trace.first = "nobody"
    assert adaptime._stage(bad, question) == "first answer"
    bad.trace.timeline = "1900 to 1901 : x"
    assert adaptime._stage(bad, question) == "timeline"
    bad.trace.first = question.gold[0]
    bad.trace.timeline = ""
    assert adaptime._stage(bad, question) == "review made it wrong"


def test_the_oracle_is_at_least_as_good_as_every_mask(lab):
    lab.model.wrong = ("review", "aggregate")
    best = max(lab.right(MASK_NAMES[mask]).mean() for mask in method.MASKS)
    assert lab.right("oracle").mean() >= best
    cheap = lab.tokens("oracle").mean()
    assert cheap <= lab.tokens(MASK_NAMES[adaptime.ALL]).mean()


def test_kinds_of_questions_split_the_whole(lab):
    right = np.arange(12.0).reshape(2, 6)
    found = adaptime.by_kind(lab, right, -right)
    asked = [q.kind for s in range(2) for q in lab.questions(s)]
    assert set(found) == set(asked)
    for kind, (mean, negated) in found.items():
        assert mean.mean == pytest.approx(np.mean([v for v, k in zip(right.ravel(), asked) if k == kind]))
        assert (mean.n, negated.mean) == (asked.count(kind), -mean.mean)


def test_seeds_and_parts_ask_different_questions(lab):
    texts = [tuple(q.document for q in lab.questions(s, part)) for s in (0, 1) for part in ("test", "plans", "shift")]
    assert len(set(texts)) == 6
    assert {q.kind for q in lab.questions(0, "shift")} <= set(chronobio.KINDS) - set(temporal.KINDS)


def test_the_small_model_runs_through_the_arms():
    lab = Lab(replace(QUICK, items=4, plans=4, seeds=2))
    for name in ("ICL", "CoT", "step-back", "self-refine", "planner", "A2 rule", "A3 one prompt"):
        assert all(len(o.trace.calls) >= 1 for o in lab.arm(name, 0))
    assert set(adaptime.contents(lab)) == {"own", "true", "another's", "filler", "none"}


def test_the_papers_profile_runs_on_a_miniature():
    tokenizer = byte_tokenizer(20_000)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, intermediate_size=16, max_position_embeddings=20_000,
    )  # fmt: skip
    model = TransformersLM(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="miniature")
    profile = replace(PAPER, items=1, plans=1, seeds=2, real=False, action_tokens=6, decision_tokens=4)
    lab = Lab(profile, model=model)
    assert lab.prompts is adaptime.STYLES["plain"]  # it has no chat template
    for name in ("direct", "CoT", "planner", MASK_NAMES[adaptime.ALL], "A2 rule", "A3 one prompt"):
        (outcome,) = lab.arm(name, 0)
        assert outcome.trace.tokens() > 100
    chatty = Lab(profile, model=Reader([]))
    assert chatty.prompts is adaptime.STYLES["chat"]


FACTS = "Ada plays for Rovers from Jan, 1901 to Jan, 1903.\nAda plays for United from Jan, 1903 to Jan, 1904."
ROWS = [
    {"question": f"Which team did Ada play for {when}?", "answer": [gold], "context": text, "fact_context": facts}
    for when, gold, text, facts in (
        ("in Jul, 1902", "Rovers", "Ada was at Rovers . Then", FACTS),
        ("after Rovers", "United", "Nothing here.", FACTS),
        ("in May, 1999", "unanswerable", "", ""),
    )
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    paths = {}
    for name in (*adaptime.REAL, "tempreason_l1"):
        file = tmp_path / f"{name}_timebench.jsonl"
        file.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
        paths[file.name] = file
    monkeypatch.setattr(adaptime.catalogue, "get", lambda name: paths)
    monkeypatch.setattr(adaptime.catalogue, "used", lambda name: ())


def test_real_items_are_read_and_scored(files):
    found = adaptime.solved("tempreason_l2")
    assert found["right"].mean == pytest.approx(2 / 3)  # the solver does not say "unknown"
    assert found["parsed"].mean == found["behind"].mean == 1
    assert adaptime.evidence("tempreason_l2").mean == 0.5
    assert adaptime.sentence_recall("timeqa_easy", 1).mean == 1
    assert [q.document for q in adaptime.real_questions("tempreason_l3", "document", 2)] == [
        r["context"] for r in ROWS[:2]
    ]
    lab = Lab(replace(PAPER, items=1, seeds=2, real_items=2), model=Echo())
    rows = adaptime.real_arms(lab, ("direct", "planner"))
    assert len(rows) == 6
    assert rows["tempreason_l2, facts"][0].mean == 0.5


class Echo(Reader):
    """Answers Rovers, and no to every decision."""

    def __init__(self):
        super().__init__([])

    def generate(self, requests):
        asked = ["yes or no" in r.prompt[-1].content for r in requests]
        return [GenResult("No." if a else "Answer: Rovers", 10, 2, "stop") for a in asked]


def test_the_papers_tables_are_added_up():
    found = adaptime.audit()
    assert found["audit_worst_average"].mean == pytest.approx(0.625)  # GPT-4: 53.675 printed as 54.3
    assert found["audit_cot_gain_v3"].mean == pytest.approx(1.9)
    assert found["audit_token_ratio"].mean == pytest.approx(4873 / 4345)
    assert found["audit_drops_beyond_noise"].mean == pytest.approx(1 / 8)
    n = adaptime.short_answers.questions_needed
    low = found["audit_detectable"].mean / 100
    assert n(low, 0.05) <= 1000 < n(low * 0.99, 0.05)


def test_differences_are_over_the_questions_of_all_seeds(lab):
    gap = adaptime.gap(lab, "CoT", "direct")
    assert (gap.mean, gap.n) == (0.0, 12)
    assert np.isfinite(adaptime.costs(lab)["a7_a1_cached_ratio"].mean)
