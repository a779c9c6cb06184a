"""Tandem end to end on scripted models, and its parts against closed forms."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.lm.protocol import Caps, GenResult, LanguageModel, Ledger, ScoreResult, Unsupported
from zfu_lib.reasoning import routing
from zfu_lib.reasoning.insights import ChatFormat, Format, Question
from zfu_lib.reasoning.routing import replay, search_thresholds
from zfu_lib.reasoning.tandem import (
    FEATURES,
    SufficiencyClassifier,
    collect,
    split_by_question,
    tandem,
    uncertainty,
)

BUDGETS = (2, 4, 7)
TOKEN = re.compile(r"\s*\S+\s*$|\s*\S+")


def words(text):
    return TOKEN.findall(text)


class Scripted:
    """A model of a few rules; a token is a word with the space before it. ``writes`` maps a prompt to the whole answer
    (prefill included), of which it writes what the prefill leaves."""

    def __init__(self, name, n_params, writes, caps=None):
        self.name, self.identity, self.n_params, self.context, self.writes = name, name, n_params, 10**6, writes
        self.caps = caps or Caps("exact", prefill=True, logprobs=False, chat=True)
        self.requests = []

    def count(self, text):
        return len(words(text))

    def truncate(self, text, n_tokens):
        return "".join(words(text)[:n_tokens])

    def generate(self, requests):
        self.requests += requests
        return [self._write(r) for r in requests]

    def stream(self, request):
        yield self._write(request).text

    def _write(self, r):
        prompt = r.prompt if isinstance(r.prompt, str) else " ".join(turn.content for turn in r.prompt)
        if r.prefill and not self.caps.prefill:
            raise Unsupported(self.name)
        rest = self.writes(prompt, r.prefill, r.seed)
        ends = [rest.find(s) + len(s) for s in r.stop if s in rest]
        stopped = rest[: min(ends)] if ends else rest
        needed = len(words(stopped)) + (not ends)  # the end token counts
        n_prompt = self.count(prompt) + self.count(r.prefill)
        if needed > r.max_tokens:
            return GenResult("".join(words(rest)[: r.max_tokens]), n_prompt, r.max_tokens, "length", seconds=0.5)
        text = min((rest[: rest.find(s)] for s in r.stop if s in rest), key=len, default=rest)
        return GenResult(text, n_prompt, needed, "stop", seconds=needed / 4)

    def score(self, requests):
        results = []
        for r in requests:
            size = np.array([len(w) for w in words(r.continuation)], float)
            results.append(ScoreResult(-size / 3, size / 5, size / 4, self.count(r.context), seconds=0.25))
        return results


MENTOR_TEXT = {"q0": "a bb ccc dd e f g h i = 0", "q1": "a b c", "q2": "aa", "q3": "x y z u v w t s r q p = 3"}
NEEDS = {"q0": 4, "q1": 0, "q2": 1, "q3": 99}  # insight words the intern needs
QUESTIONS = [Question(qid, qid, qid[1]) for qid in MENTOR_TEXT]


class Plain(Format):
    def extract(self, text):
        return text.rsplit("= ", 1)[1].split()[0] if "= " in text else None

    def correct(self, question, text):
        return self.extract(text) == question.gold

    def force(self, question, thinking):
        return super().force(question, thinking + " so")


def mentor_writes(prompt, prefill, seed):
    whole = MENTOR_TEXT[prompt.split()[0]]
    if prefill.endswith(" so"):
        return " = 3"
    assert whole.startswith(prefill)
    return whole[len(prefill) :]


def intern_writes(prompt, prefill, seed):
    qid, *insight = (prompt + " " + prefill).split()
    if qid == "q1" and len(insight) > 2:
        return " so = 1" + " never" * 100  # right, had it ended
    return f" so = {qid[1] if len(insight) >= NEEDS[qid] and seed != 2 else 9}"


def mentor(**how):
    return Scripted("mentor", 1000, mentor_writes, **how)


def intern(**how):
    return Scripted("intern", 10, intern_writes, **how)


class Known:
    """A classifier that says what it is told: scores[stage]."""

    def __init__(self, *scores):
        self.known = scores

    def score(self, features, stage):
        assert features.shape == (16,)
        return self.known[stage]


def play(qid, classifier, tau=0.5, **how):
    options = {"budgets": BUDGETS, "format": Plain(), "intern_tokens": 20} | how
    models = (options.pop("mentor", mentor()), options.pop("intern", intern()))
    return tandem(QUESTIONS[int(qid[1])], *models, classifier, tau, **options)


def gather(**how):
    options = {"format": Plain(), "intern_tokens": 20, "mentor_tokens": 40} | how
    return collect(QUESTIONS, options.pop("mentor", mentor()), options.pop("intern", intern()), BUDGETS, **options)


def test_the_stub_is_a_language_model():
    assert isinstance(mentor(), LanguageModel)


# One question


def test_a_trace_step_by_step():
    trace = play("q0", Known(0.9, 0.1, 0.7, 0.8))
    assert (trace.t_star, trace.reason, trace.correct, trace.answer, trace.truncated) == (
        2,
        "threshold",
        True,
        "0",
        False,
    )
    assert [(s.t, s.budget, s.text, s.n_mentor, s.score, s.tau) for s in trace.stages] == [
        (1, 2, "a bb", 2, 0.1, 0.5),
        (2, 4, "a bb ccc dd", 4, 0.7, 0.5),
    ]
    assert trace.n_mentor == 4
    assert trace.n_intern == 4  # so = 0 <end>
    assert trace.paper() == pytest.approx(2 * (1000 * 4 + 10 * 8) / 1e12)
    # Mentor: 1 read + 2 written, then 1 + 2 read + 2 written. Intern: reads 1 + 2, then 1 + 4, answers 1 + 4 with 4.
    assert trace.honest() == pytest.approx(2 * (1000 * (3 + 5) + 10 * (3 + 5 + 5 + 4)) / 1e12)
    assert trace.money({"mentor": (1, 10), "intern": (0.1, 0.2)}) == pytest.approx(4 + 40 + 1.3 + 0.8)
    assert trace.latency() == pytest.approx(0.5 + 0.5 + 0.25 + 0.25 + 1.0)
    assert (
        trace.stages[1].features.tolist()
        == uncertainty(intern().score([Plain().read(QUESTIONS[0], "a bb ccc dd")])[0]).tolist()
    )


def test_the_same_run_twice_is_the_same_trace():
    def plain(trace):
        return repr(dataclasses.asdict(trace))

    assert plain(play("q3", Known(0, 0.2, 0.3, 0.1))) == plain(play("q3", Known(0, 0.2, 0.3, 0.1)))


def test_insights_grow():
    for transport in ("prompt", "continuation", "hint"):
        first, second, third = (s.text for s in play("q3", Known(0, 0.1, 0.1, 0.1), transport=transport).stages)
        assert third.startswith(second)
        assert second.startswith(first)
        assert (len(words(first)), len(words(second)), len(words(third))) == BUDGETS


def test_threshold_zero_stops_at_stage_one_and_above_one_at_the_argmax():
    assert (play("q3", Known(0, 0, 0, 0), 0.0).t_star, len(play("q3", Known(0, 0, 0, 0), 0.0).stages)) == (1, 1)
    trace = play("q3", Known(1, 0.5, 0.9, 0.2), 1.01)
    assert (trace.t_star, trace.reason, len(trace.stages), trace.n_mentor) == (2, "argmax", 3, 7)
    assert play("q3", Known(1, 0.9, 0.9, 0.9), 1.01).t_star == 1, "ties go to the earlier stage"


def test_the_mentor_is_not_asked_where_the_intern_needs_none():
    boss = mentor()
    trace = play("q1", Known(0.9, 0, 0, 0), [0.9, 0.5, 0.5, 0.5], allow_t0=True, mentor=boss)
    assert (trace.t_star, trace.reason, trace.n_mentor, boss.requests) == (0, "t0", 0, [])
    assert trace.paper() == pytest.approx(2 * 10 * trace.n_intern / 1e12)
    assert play("q1", Known(0.9, 0.6, 0, 0), [0.9, 0.5, 0.5, 0.5], mentor=boss).t_star == 1


def test_a_mentor_that_ends_early_has_its_last_stage():
    trace = play("q1", Known(0, 0.4, 0.1, 0.9))
    assert (trace.t_star, trace.reason, trace.stages[-1].text, trace.n_mentor) == (2, "ended", "a b c", 4)
    trace = play("q1", Known(0, 0.4, 0.1, 0.9), early_end="argmax")
    assert (trace.t_star, trace.reason, trace.n_mentor) == (1, "argmax", 4)


def test_a_truncated_answer_is_wrong_and_said_to_be():
    trace = play("q1", Known(0, 0.4, 0.9, 0.9))
    assert (trace.correct, trace.truncated, trace.n_intern) == (False, True, 20)


def test_the_ledger_given_gets_every_call():
    ledger = Ledger()
    trace = play("q0", Known(0, 0.1, 0.7, 0.8), ledger=ledger)
    assert ledger.calls == trace.ledger.calls
    assert [c.kind for c in ledger.calls] == ["generate", "score", "generate", "score", "generate"]
    play("q2", Known(0, 1, 1, 1), ledger=ledger)
    assert len(ledger.calls) == 8


def test_the_continuation_begins_the_answer_and_is_graded_with_it():
    small = intern()
    trace = play("q0", Known(0, 0.1, 0.7, 0.8), transport="continuation", intern=small)
    assert small.requests[-1].prefill == "a bb ccc dd"
    assert trace.text == "a bb ccc dd so = 0"
    assert trace.correct


def test_a_mentor_without_prefill_writes_once_and_is_paid_in_full():
    caps = Caps(None, prefill=False, logprobs=False, chat=True)
    boss = mentor(caps=caps)
    trace = play("q0", Known(0, 0.1, 0.7, 0.8), mentor=boss)
    assert [s.text for s in trace.stages] == ["a bb", "a bb ccc dd"]
    assert (trace.n_mentor, len(boss.requests)) == (7, 1)
    trace = play("q2", Known(0, 0.1, 0.7, 0.8), mentor=boss)
    assert (trace.reason, trace.stages[-1].text, trace.n_mentor) == ("ended", "aa", 2)


def test_a_mentor_that_says_nothing_leaves_the_intern_alone():
    silent = Scripted("mentor", 1000, lambda *_: "  ")
    trace = play("q1", Known(0, 0, 0, 0), mentor=silent)
    assert (trace.stages[0].text, trace.reason, trace.correct) == ("", "ended", True)
    table = gather(mentor=silent)
    assert (table.features == table.features[:, :1]).all()
    assert (table.correct == table.correct[:, :1]).all()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"budgets": (4, 2)}, ValueError, "budgets"),
        ({"budgets": ()}, ValueError, "budgets"),
        ({"transport": "post"}, ValueError, "transport"),
        ({"tau": [0.1, 0.2]}, ValueError, "thresholds"),
        ({"intern": intern(caps=Caps(None, True, False, True))}, Unsupported, "measure=False"),
        (
            {"intern": intern(caps=Caps("exact", False, False, True)), "transport": "continuation"},
            Unsupported,
            "transport='prompt'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(how, error, says):
    with pytest.raises(error, match=says):
        play("q0", Known(0, 0, 0, 0), **how)


def test_the_chat_format_runs_through():
    def writes(prompt, prefill, seed):
        return r" so \boxed{0}" if "sufficient" in prompt + prefill else r" hm \boxed{1}"

    boss = Scripted("mentor", 1000, lambda *_: "<think> Goal: it is sufficient to add </think> done")
    small = Scripted("intern", 10, writes)
    for transport, style in itertools.product(("prompt", "continuation", "hint"), ("simple", "structured")):
        form = ChatFormat(style=style)
        trace = tandem(QUESTIONS[0], boss, small, Known(0, 1, 1, 1), 0.5, (9, 12, 15), transport, format=form)
        assert trace.correct
        assert trace.answer == "0"
        table = collect(QUESTIONS[:1], boss, small, (9, 12, 15), format=form, transport=transport)
        assert table.correct.tolist() == [[False, True, True, True]]


# Many questions


def test_the_table_holds_what_happened():
    ledger, boss, small = Ledger(), mentor(), intern()
    table = gather(ledger=ledger, mentor=boss, intern=small)
    assert table.qid.tolist() == ["q0", "q1", "q2", "q3"]
    assert table.n_mentor.tolist() == [[0, 2, 4, 7], [0, 2, 4, 4], [0, 2, 2, 2], [0, 2, 4, 7]]
    assert table.last.tolist() == [3, 2, 1, 3]
    assert table.correct.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert table.truncated.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert not table.leak.any()
    assert table.alone_correct.tolist() == [True, False, False, True]
    assert table.alone_tokens.tolist() == [12, 4, 2, 14]
    assert table.n_intern[0].tolist() == [4, 4, 4, 4]
    assert table.intern_prompt[0].tolist() == [1, 3, 5, 8]
    assert table.n_score[0].tolist() == [1, 3, 5, 8]
    assert table.features.shape == (4, 4, 16)
    assert (table.theta_mentor, table.theta_intern, table.transport) == (1000, 10, "prompt")
    assert np.isnan(table.vote_agreement).all()
    assert len(boss.requests) == 4, "one text of the mentor is its insights and its answer"
    assert len(small.requests) == 4 + 3 + 2 + 4, "equal insights are answered once"
    assert ledger.tokens("written", "mentor") == 12 + 4 + 2 + 14


@pytest.mark.parametrize("early_end", ["answer", "argmax"])
@pytest.mark.parametrize("allow_t0", [False, True])
@pytest.mark.parametrize("transport", ["prompt", "continuation", "hint"])
def test_replay_is_the_online_method(transport, allow_t0, early_end):
    table = gather(transport=transport)
    rng = np.random.default_rng(0)
    for _ in range(12):
        s, tau = rng.random((4, 4)), rng.random(4)
        out = replay(table, s, tau, allow_t0=allow_t0, early_end=early_end)
        for i, q in enumerate(QUESTIONS):
            how = {"transport": transport, "allow_t0": allow_t0, "early_end": early_end}
            trace = play(q.qid, Known(*s[i]), tau, **how)
            assert trace.t_star == out.stage[i]
            assert trace.correct == out.correct[i]
            assert (trace.n_mentor, trace.n_intern) == (out.mentor_written[i], out.intern_written[i])
            assert trace.paper() == pytest.approx(out.paper[i])
            assert trace.honest() == pytest.approx(out.honest[i])


def test_insights_end_where_the_format_says():
    table = gather(format=Plain(insight_end=("ccc",)))
    assert table.n_mentor[0].tolist() == [0, 2, 3, 3]
    assert (table.last[0], table.alone_correct[0]) == (2, True)
    trace = play("q0", Known(0, 0, 0, 0), format=Plain(insight_end=("ccc",)))
    assert (trace.stages[-1].text.split(), trace.n_mentor, trace.reason) == (["a", "bb"], 3, "ended")


def test_leaks_and_edits():
    class Leaky(Plain):
        def leaks(self, question, insight):
            return "dd" in insight

    assert gather(format=Leaky()).leak.tolist()[0] == [False, False, True, True]
    table = gather(edit=lambda question, insight: "zz " * len(insight.split()))
    plain = gather()
    assert (table.n_mentor == plain.n_mentor).all()
    assert (table.features[:, 1:] != plain.features[:, 1:]).any()
    assert (table.features[:, 0] == plain.features[:, 0]).all()
    empty = gather(edit=lambda question, insight: " ")
    assert (empty.features == plain.features[:, :1]).all()


def test_budget_forcing_is_collected():
    table = gather(force=(3, 30))
    assert table.forced_tokens.tolist() == [[6, 12], [6, 4], [2, 2], [6, 14]]  # cut at 3, then = 3 <end>
    assert table.forced_correct.tolist() == [[False, True], [False, False], [False, False], [True, True]]
    assert table.forced_prompt[:, 1].tolist() == [0, 0, 0, 0]
    assert table.forced_prompt[0, 0] == 5  # question, three words, "so"
    assert table.forced_seconds[:, 1].tolist() == table.alone_seconds.tolist()
    with pytest.raises(Unsupported, match="force"):
        gather(force=(3,), mentor=mentor(caps=Caps(None, False, False, True)))


def test_votes_are_collected():
    table = gather(votes=3)
    assert table.vote_agreement.tolist() == [1, 2 / 3, 1, 1]
    assert table.vote_correct.tolist() == [False, True, False, False]
    assert table.vote_tokens.tolist() == [12] * 4
    assert table.vote_prompt.tolist() == [3] * 4


def test_an_intern_that_cannot_be_measured_still_has_fixed_levels():
    blind = intern(caps=Caps(None, True, False, True))
    with pytest.raises(Unsupported, match="measure=False"):
        gather(intern=blind)
    table = gather(intern=blind, measure=False)
    assert np.isnan(table.features).all()
    assert routing.fixed(table, 2).accuracy == 0.5


@pytest.mark.parametrize("how", [{"mentor_tokens": 6}, {"votes": 1}])
def test_collections_that_make_no_sense_are_refused(how):
    with pytest.raises(ValueError, match="mentor tokens"):
        gather(**how)


def test_a_collected_table_survives_its_file(tmp_path):
    table = gather(votes=2, force=(3,))
    table.save(tmp_path / "t.npz")
    assert repr(routing.Table.load(tmp_path / "t.npz")) == repr(table)


# Uncertainty


def scored(p, entropy):
    h = np.asarray(entropy, float)
    return ScoreResult(np.log(np.asarray(p, float)), h, h, 0)


def test_features_in_closed_form():
    f = dict(zip(FEATURES, uncertainty(scored([1 / 2, 1 / 4, 1, 1 / 8], [1, 2, 0, 3]))))
    assert len(f) == 16
    assert [f[f"ppl {x}"] for x in ("mean", "median", "max", "min", "q25", "q75")] == pytest.approx(
        [3.75, 3, 8, 1, 1.75, 5]
    )
    assert f["ppl std"] == pytest.approx(math.sqrt((1.75**2 + 0.25**2 + 2.75**2 + 4.25**2) / 4))
    assert [f[f"entropy {x}"] for x in ("mean", "median", "max", "min", "q25", "q75")] == [1.5, 1.5, 3, 0, 0.75, 2.25]
    assert f["entropy std"] == pytest.approx(math.sqrt(1.25))
    assert f["ppl trend"] == f["entropy trend"] == 0


def test_features_of_a_logit_table():
    """Uniform over 4 of 8 symbols: 2 bits, perplexity 4; all mass on one: 0 bits, perplexity 1."""
    logits = np.full((2, 8), -np.inf)
    logits[0, :4], logits[1, 0] = 0.0, 0.0
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    h = -np.sum(p * np.log2(np.where(p > 0, p, 1)), 1)
    f = dict(zip(FEATURES, uncertainty(scored(p[[0, 1], [2, 0]], h))))
    assert (f["ppl max"], f["ppl min"], f["entropy max"], f["entropy min"]) == pytest.approx((4, 1, 2, 0))


def test_perplexity_is_capped_and_trends_need_forty_tokens():
    z = np.arange(40) / 10
    f = dict(zip(FEATURES, uncertainty(ScoreResult(np.full(40, -1e6), z, z + 1, 0))))
    assert f["ppl mean"] == f["ppl min"] == pytest.approx(1000)
    assert f["entropy trend"] == pytest.approx(2.0)
    assert f["entropy mean"] == pytest.approx(z.mean() + 0.5), "the middle of the bounds"
    assert uncertainty(ScoreResult(np.full(39, -1.0), z[:39], z[:39], 0))[-1] == 0
    assert np.isfinite(uncertainty(ScoreResult(np.array([-np.inf]), z[:1], z[:1], 0))).all()
    with pytest.raises(ValueError, match="empty"):
        uncertainty(ScoreResult(np.zeros(0), np.zeros(0), np.zeros(0), 3))


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=60), st.integers(1, 59))
def test_features_of_top_k_bounds_bracket_the_exact_ones(weights, k):
    """What a server that tells k tokens leaves open: H between -sum p log p - r log r and r log(V - k) above that."""
    p = np.sort(np.array(weights) / sum(weights))[::-1]
    top, rest = p[:k], max(1 - p[:k].sum(), 0)
    exact = -np.sum(p * np.log2(p))
    low = -np.sum(top * np.log2(top)) - (rest * np.log2(rest) if rest > 1e-12 else 0)
    high = low + (rest * np.log2(len(p) - k) if len(p) > k else 0)
    assert low - 1e-6 <= exact <= high + 1e-6
    at = FEATURES.index("entropy mean")
    features = [
        uncertainty(ScoreResult(np.log(p[:1]), np.array([a]), np.array([b]), 0))[at]
        for a, b in ((low, low), (low, high), (high, high))
    ]
    assert features == sorted(features)
    assert abs(features[1] - exact) <= (high - low) / 2 + 1e-6


def test_scoring_stage_by_stage_with_a_cache_is_scoring_at_once():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(0, 50, (1, 70))
    question, edges = 10, (30, 55, 70)

    def result(logits, targets):
        logp = torch.log_softmax(logits.double(), -1)
        h = (-(logp.exp() * logp).sum(-1) / math.log(2)).numpy()
        return ScoreResult(logp.gather(-1, targets[:, None])[:, 0].numpy(), h, h, question)

    with torch.no_grad():
        whole = model(ids).logits[0]
        out = model(ids[:, : question - 1], use_cache=True)
        cache, begin, pieces = out.past_key_values, question - 1, []
        for end in edges:
            out = model(ids[:, begin : end - 1], past_key_values=cache, use_cache=True)
            cache, begin = out.past_key_values, end - 1
            pieces.append(out.logits[0])
            n = end - question
            stagewise = result(torch.cat(pieces), ids[0, question:end])
            assert len(stagewise.logprob) == n
            full = result(whole[question - 1 : end - 1], ids[0, question:end])
            np.testing.assert_allclose(uncertainty(stagewise), uncertainty(full), rtol=1e-4, atol=1e-4)


# Sufficiency


@given(st.lists(st.integers(0, 12), min_size=5, max_size=80), st.integers(0, 99))
def test_no_question_is_in_two_parts(qids, seed):
    qids = [f"q{k}" for k in qids]
    if len(set(qids)) < 4:
        with pytest.raises(ValueError, match="questions"):
            split_by_question(qids, seed=seed)
        return
    parts = split_by_question(qids, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(qids)))
    assert overlap(qids, parts) == 0


def overlap(qids, parts):
    """Questions found in more than one part."""
    asked = [{qids[row] for row in part} for part in parts]
    return sum(len(a & b) for a, b in itertools.combinations(asked, 2))


def test_a_split_by_row_is_found_out():
    qids = [f"q{k // 3}" for k in range(90)]
    rows = np.array_split(np.random.default_rng(0).permutation(90), 4)
    assert overlap(qids, rows) > 0
    assert overlap(qids, split_by_question(qids)) == 0


def test_shares_are_kept():
    parts = split_by_question([f"q{k}" for k in range(1000)], (0.6, 0.1, 0.2, 0.1), seed=5)
    assert [len(p) for p in parts] == [600, 100, 200, 100]
    assert not np.array_equal(parts.fit, split_by_question([f"q{k}" for k in range(1000)], seed=6).fit)
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_question(["a"] * 9, (0.5, 0.5, 0.5, 0.5))


def decided_by_features(make_table, n=900, seed=0):
    """A table where stage t suffices exactly if its mean entropy is low, later stages more often."""
    table = make_table(n=n, seed=seed)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4, 16))
    correct = features[:, :, 7] < np.array([-0.8, -0.4, 0.0, 0.4])
    return dataclasses.replace(table, features=features, correct=correct, last=np.full(n, 3))


def gain_over_random(table, train, seed=0, **how):
    """(AUC, accuracy minus random stop's of the same frequencies) on the test part."""
    parts = split_by_question(table.qid, seed=seed)
    clf = SufficiencyClassifier(**how)
    x, y = train
    clf.fit(x[parts.fit], y[parts.fit], (x[parts.early], y[parts.early]))
    held, test = table.take(parts.threshold), table.take(parts.test)
    tau = search_thresholds(held, clf.scores(held.features))
    out = replay(test, clf.scores(test.features), tau)
    random = [routing.random_stop(test, out.stage, seed=k).accuracy for k in range(20)]
    return routing.auc(clf.scores(test.features)[:, 1:], test.correct[:, 1:]), out.accuracy - np.mean(random), clf


@pytest.mark.parametrize(
    "how", [{"kind": "mlp"}, {"kind": "logistic"}, {"kind": "mlp", "per_stage": True, "epochs": 30}]
)
def test_a_classifier_with_shuffled_features_loses_its_advantage(make_table, how):
    table = decided_by_features(make_table)
    auc, gain, clf = gain_over_random(table, (table.features, table.correct), **how)
    assert auc > 0.95
    assert gain > 0.15
    shuffled = table.features[np.random.default_rng(1).permutation(len(table.qid))]
    mixed_auc, mixed_gain, _ = gain_over_random(table, (shuffled, table.correct), **how)
    assert mixed_auc < auc - 0.15
    assert mixed_gain < gain / 2


def test_the_papers_network_trains_a_little(make_table):
    table = decided_by_features(make_table)
    _, _, clf = gain_over_random(table, (table.features, table.correct), kind="dropout-mlp")
    assert len(clf.history) == 3
    losses = [loss for loss, _ in clf.history]
    assert losses[2] < losses[0], "three epochs at 1e-4 move the loss"
    _, _, longer = gain_over_random(
        table, (table.features, table.correct), kind="dropout-mlp", epochs=15, learning_rate=1e-3
    )
    assert longer.history[-1][0] < losses[2] - 0.1, "but are far from enough on rows this few"


def test_early_stopping_keeps_the_best_epoch(make_table):
    table = decided_by_features(make_table, n=120)
    noise = np.random.default_rng(3).random((60, 4)) < 0.5
    clf = SufficiencyClassifier(learning_rate=1e-2, patience=3)
    clf.fit(table.features[:60], noise, (table.features[60:], table.correct[60:]))
    early = [loss for _, loss in clf.history]
    assert len(early) < 200
    assert len(early) == int(np.argmin(early)) + 1 + 3
    s = clf.scores(table.features[60:])
    y = table.correct[60:]
    assert -np.mean(np.log(np.where(y, s, 1 - s))) == pytest.approx(min(early), rel=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "dropout-mlp", "logistic"])
@pytest.mark.parametrize("per_stage", [False, True])
def test_scores_are_probabilities_that_repeat(make_table, kind, per_stage):
    table = decided_by_features(make_table, n=80)
    how = {"kind": kind, "per_stage": per_stage, "epochs": 2}
    one, two = (SufficiencyClassifier(**how).fit(table.features, table.correct) for _ in range(2))
    s = one.scores(table.features)
    assert s.shape == (80, 4)
    assert ((s > 0) & (s < 1)).all()
    assert (s == two.scores(table.features)).all()
    assert one.score(table.features[7, 2], 2) == pytest.approx(s[7, 2], abs=1e-6)
    assert one.score(table.features[7, 2], 1) != pytest.approx(s[7, 2], abs=1e-9), "the stage is an input"


def test_inputs_are_standardised_on_the_fit_rows(make_table):
    """Another unit of a feature changes nothing, and rows that are not fitted do not move the scale."""
    table = decided_by_features(make_table, n=200)
    clf = SufficiencyClassifier("logistic").fit(table.features, table.correct)
    scaled = SufficiencyClassifier("logistic").fit(table.features * 1000 + 7, table.correct)
    np.testing.assert_allclose(clf.scores(table.features), scaled.scores(table.features * 1000 + 7), atol=1e-4)
    far = np.concatenate([table.features[:5], table.features[5:10] + 100])
    np.testing.assert_array_equal(clf.scores(far)[:5], clf.scores(table.features[:5]))


def test_one_label_only_gives_its_share():
    clf = SufficiencyClassifier(per_stage=True, epochs=1)
    y = np.stack([np.zeros(8), np.ones(8), np.arange(8) % 2], 1).astype(bool)
    s = clf.fit(np.random.default_rng(0).normal(size=(8, 3, 16)), y).scores(np.zeros((1, 3, 16)))
    assert s[0, :2].tolist() == [0.1, 0.9]


def test_other_numbers_of_features_are_fine(make_table):
    table = make_table()
    clf = SufficiencyClassifier("logistic").fit(table.n_mentor[..., None].astype(float), table.correct)
    assert clf.scores(table.n_mentor[..., None]).shape == (40, 4)


def test_wrong_inputs_of_a_classifier_are_refused():
    with pytest.raises(ValueError, match="kind"):
        SufficiencyClassifier("forest")
    for x, y in (
        (np.zeros((3, 4)), np.zeros((3, 4))),
        (np.zeros((3, 4, 16)), np.zeros((3, 3))),
        (np.full((3, 4, 16), np.nan), np.zeros((3, 4))),
    ):
        with pytest.raises(ValueError, match="finite features"):
            SufficiencyClassifier().fit(x, y)


def test_importing_the_method_loads_nothing_heavy():
    code = (
        "import sys, zfu_lib.reasoning.tandem; print(sorted({'torch', 'sklearn', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
