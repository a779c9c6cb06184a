"""The Tandem chapter on miniatures: every measurement is made or said to be missing, comparisons are what they claim to
be, and the path of the paper's models and problems runs from end to end."""

import contextlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError, State
from zfu_lib.data.worlds import chaincalc
from zfu_lib.data.worlds.problem import solution
from zfu_lib.experiments import sandbox, tandem
from zfu_lib.experiments import tandem_transfer as transfer
from zfu_lib.experiments.tandem_transfer import Transfer
from zfu_lib.lm import tiny
from zfu_lib.lm.protocol import GenResult, ModelError
from zfu_lib.lm.recipes import reasoning
from zfu_lib.lm.recipes import transfer as worlds
from zfu_lib.lm.recipes.words import WORDS
from zfu_lib.lm.tokenizer import byte_tokenizer, word_tokenizer
from zfu_lib.reasoning import routing
from zfu_lib.report import claims, paths, record, statistics, verdicts


def random_model(folder, tokenizer, layers, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two random models: all they know is how to end."""
    place, words = tmp_path_factory.mktemp("pair"), word_tokenizer(WORDS)
    mentor, intern = (random_model(place / name, words, k, k) for name, k in (("mentor", 2), ("intern", 1)))
    small = {"tuning": 24, "test": 20, "visited": 24, "controls": 6, "limit": 24, "timed": 2, "seeds": 2}
    small |= {"lengths": (4, 20)}
    models = {"mentor": mentor, "intern": intern, "peer": intern, "interns": (intern, mentor)}
    models |= {"travellers": (mentor, intern)}
    profile = replace(tandem.QUICK, budgets=(4, 8, 16), forced=(4,), **models, **small)
    return tandem.Lab(profile, cache=False, device="cpu")


def served_by(lab, mentor):
    """What :meth:`Lab.served` finds if ``mentor`` is what answers at the server's address."""

    @contextlib.contextmanager
    def serving(folder):
        assert f"hf:{folder}" == lab.profile.mentor
        yield "http://127.0.0.1:1#mentor"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tandem, "serving", serving)
        patch.setattr(tandem.models, "load", lambda url, **options: mentor)
        return lab.served()


def measured(lab):
    found = lab.gate() | lab.classifier() | lab.outcomes() | lab.savings() | lab.rivals() | lab.controls()
    found |= lab.brief() | {"latency_ratio": lab.latency(), "tandem_minus_random": lab.random_stop()}
    found |= lab.sizes()
    pair = Transfer(lab.profile, cache=False, device="cpu")
    for world in lab.profile.worlds:
        found |= pair.measure(world)
    return found | served_by(lab, lab.mentor)


def needed(profile):
    """Measurements that claims of the models need; those of the audit have another source."""
    tests = [claim.test[profile] for claim in claims.load("tandem").claims if ".A" not in claim.id]
    return {rule.measurement for test in tests for rule in (*test.requires, *test.conditions)}


def test_every_measurement_of_a_claim_is_made_or_said_to_be_missing(lab):
    found, missing = measured(lab), lab.omitted()
    assert needed("quick") == needed("full")
    assert needed("quick") - set(found) - set(missing) == set()
    assert not set(found) & set(missing)
    for name, interval in found.items():
        assert interval is None or np.isfinite(interval[:3]).all(), name
        assert interval is None or interval.low <= interval.mean <= interval.high, name


def test_models_that_know_nothing_decide_no_claim(lab):
    """Nobody answers, so there is no skill, no gap, and no verdict in either direction; an AUC without right answers is
    undefined, not a number."""
    found = measured(lab)
    assert lab.test.correct.sum() == 0
    assert [found[f"auc_stage_{k}"] for k in (1, 2, 3)] == [None] * 3
    known = {
        name: record.Measurement(**dict(zip(statistics.Interval._fields, interval, strict=True)), unit="", values=[])
        for name, interval in found.items()
        if interval is not None
    }
    missing = lab.omitted() | {name: "undefined" for name, interval in found.items() if interval is None}
    for claim in claims.load("tandem").claims:
        if ".A" not in claim.id:
            verdict = verdicts.judge(claim, "quick", known, missing).verdict
            assert verdict in ("inconclusive", "cannot run here"), (claim.id, verdict)


@pytest.fixture
def pair(lab):
    """The second pair, with outcomes that the features tell in one world and not in the other."""
    made = Transfer(replace(lab.profile, visited=150), cache=False, device="cpu")
    rng = np.random.default_rng(0)
    for world, sign in (("chaincalc", 1), ("stackprog", 1), ("chronofacts", -1)):
        for part in ("tuning", "test"):
            t = made.table(world, part)
            features = rng.normal(size=t.features.shape)
            right = sign * features[..., 0] + 0.3 * rng.normal(size=t.correct.shape) > 0
            made._tables[world, part] = replace(t, features=features, correct=right)
    return made


def test_what_travels_is_what_the_features_tell_in_both_worlds(pair):
    same, turned = pair.measure("stackprog"), pair.measure("chronofacts")
    assert same["auc_transfer_stackprog"].low > 0.8
    assert same["auc_transfer_stackprog_over_stage_only"].low > 0.2
    assert abs(same["auc_lost_stackprog"].mean) < 0.05
    # Where the same features mean the opposite, a classifier from elsewhere is worse than a coin, a local one is not.
    assert turned["auc_transfer_chronofacts"].high < 0.2
    assert turned["auc_local_chronofacts"].low > 0.8
    assert turned["auc_lost_chronofacts"].mean == pytest.approx(
        turned["auc_local_chronofacts"].mean - turned["auc_transfer_chronofacts"].mean
    )


def test_a_travelling_classifier_has_seen_its_own_world_only(pair):
    ids = {(w, part): set(pair.table(w, part).qid) for w in ("chaincalc", "stackprog") for part in ("tuning", "test")}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))
    tuned = pair.tuned("chaincalc", "stackprog", 0)
    assert set(pair.table("chaincalc", "tuning").qid[tuned.split.fit]) <= ids["chaincalc", "tuning"]
    # Other outcomes in the new world change no score there.
    t = pair.table("stackprog", "test")
    pair._tables["stackprog", "test"] = replace(t, correct=~t.correct)
    pair._tuned.clear()
    np.testing.assert_array_equal(pair.tuned("chaincalc", "stackprog", 0).scores, tuned.scores)


def test_an_auc_over_stages_is_that_of_scikit_learn(pair):
    t = pair.table("stackprog", "test")
    scores = np.random.default_rng(1).random(t.correct.shape)
    expected = roc_auc_score(t.correct[:, 1:].ravel(), scores[:, 1:].ravel())
    assert transfer.auc(t, [scores, scores]).mean == pytest.approx(expected)
    assert transfer.auc(t, [scores], [scores]).mean == 0
    assert transfer.auc(replace(t, correct=np.ones_like(t.correct)), [scores]) is None


def test_answers_of_the_worlds_are_found_in_insights_that_hold_them():
    format = transfer.WorldFormat()
    for world in ("stackprog", "chronofacts"):
        for p in worlds.problems(world, 40, 9):
            asked = tandem.Question("q", p.question, p.answer)
            told = solution(p)
            assert format.leaks(asked, told[: told.index("Answer :")])
            assert format.correct(asked, told)


def test_the_room_for_a_better_calculator_is_counted(lab):
    class Knows:
        def generate(self, requests):
            told = []
            for request in requests:
                a, operation = request.prompt.split(" ")[4:6]
                value = chaincalc.OPERATIONS[operation[0]](int(a), int(operation[1:])) % reasoning.MODULUS
                told.append(GenResult(f" {value}\n", 1, 1, "stop"))
            return told

    assert lab.operations() == (0, 126)
    assert tandem.Lab.operations(SimpleNamespace(mentor=Knows())) == (126, 126)
    assert "of the 126 single operations the mentor does 0 right" in lab.omitted()["calculator_step_advantage"]


def test_the_size_table_says_what_closes(lab):
    table = lab.size_table()
    assert list(table) == ["small", "medium", "large"]
    assert table["small"][1:] == table["medium"][1:] == ("0.0", "0.0", "no gap")
    assert not tandem.Lab.sizes(SimpleNamespace(profile=replace(lab.profile, interns=None)))


def test_seeds_share_the_models_and_differ_in_the_questions_they_tune_on(lab):
    one, two = lab.tuned(0), lab.tuned(1)
    assert lab.tuned(0) is one
    assert not np.array_equal(one.split.fit, two.split.fit)
    parts = [set(lab.tuning.qid[rows]) for rows in (one.split.fit, one.split.early, one.split.threshold)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(lab.tuning.qid)
    assert not set(lab.tuning.qid) & set(lab.test.qid)
    assert {q.text for q in lab.tuning_questions}.isdisjoint(q.text for q in lab.questions)


def test_a_saving_is_its_two_parts(lab):
    parts = {name.rpartition("_")[2]: interval.mean for name, interval in lab.savings().items()}
    assert parts["total"] == pytest.approx(parts["cap"] + parts["stopping"])
    mentor, pair = routing.single_mentor(lab.test).paper.mean(), [lab.tuned(s).outcome.paper.mean() for s in lab.seeds]
    assert parts["total"] == pytest.approx(100 * (1 - np.mean(pair) / mentor))


def test_a_smaller_cap_never_helps_and_the_largest_changes_nothing(make_lab_table):
    lab, table = make_lab_table
    caps = lab.by_cap()
    for series in caps.values():
        assert series["y"] == sorted(series["y"])
    last = {name: series["y"][-1] for name, series in caps.items()}
    assert last["mentor alone"] == 100 * table.alone_correct.mean()
    assert last["intern, last level"] == 100 * table.correct[:, -1].mean()
    assert caps["intern alone"]["y"][0] == 100 * (table.correct[:, 0] & (table.n_intern[:, 0] <= 2)).mean()


def test_the_example_is_one_that_tells_the_models_apart(make_lab_table):
    lab, table = make_lab_table
    k = [q.qid for q in lab.questions].index(lab.example().qid)
    assert table.alone_correct[k]
    assert not table.correct[k, 0]
    assert not (table.alone_correct & ~table.correct[:, 0])[:k].any()


@pytest.fixture
def make_lab_table(lab):
    """The lab with another table of outcomes, some of them right."""
    rng, t = np.random.default_rng(0), lab.test
    right = rng.random(t.correct.shape) < [0.2, 0.4, 0.6, 0.8]
    changed = replace(t, correct=right, alone_correct=rng.random(len(t.qid)) < 0.9)
    other = tandem.Lab.__new__(tandem.Lab)
    other.__dict__.update(lab.__dict__, test=changed)
    return other, changed


def test_a_mentor_behind_a_server_is_compared_with_the_one_here(lab, monkeypatch):
    assert served_by(lab, lab.mentor)["http_differences"].mean == 0
    assert served_by(lab, lab.intern)["http_differences"].mean == len(lab.questions)

    def fails(folder):
        raise ModelError("transformers serve does not answer")

    monkeypatch.setattr(tandem, "serving", fails)
    assert lab.served() == "transformers serve does not answer"
    elsewhere = tandem.Lab.__new__(tandem.Lab)
    elsewhere.__dict__.update(lab.__dict__, profile=replace(lab.profile, mentor="hf:someone/large"))
    assert "not hf:someone/large" in elsewhere.served()


def test_leaks_are_counted_and_set_aside(make_lab_table):
    lab, table = make_lab_table
    leak = np.zeros_like(table.leak)
    leak[:5, -1] = True
    lab.test = replace(table, leak=leak)
    found = lab.leaks()
    assert found["leak_share"].mean == pytest.approx(100 * 5 / len(leak))
    gain = table.correct[5:, -1].mean() - table.correct[5:, 0].mean()
    assert found["gain_without_leak"].mean == pytest.approx(100 * gain)
    lab.test = replace(table, leak=np.ones_like(leak))
    assert set(lab.leaks()) == {"leak_share"}


def test_an_auc_of_too_few_answers_is_none(make_lab_table, monkeypatch):
    lab, table = make_lab_table
    right = table.correct[:, 1:].sum(0)
    rarer = np.minimum(right, len(table.qid) - right)
    assert len(set(rarer)) > 1
    monkeypatch.setattr(tandem, "RARE", rarer.max())
    found = lab.classifier()
    assert [found[f"auc_stage_{k}"] is not None for k in (1, 2, 3)] == (rarer == rarer.max()).tolist()
    differences = [found[f"auc_minus_{name}"] for name in ("question_only", "length_only", "logistic")]
    assert all(np.isfinite(interval[:3]).all() for interval in differences)
    monkeypatch.setattr(tandem, "RARE", rarer.max() + 1)
    assert set(lab.classifier().values()) == {None}


def test_the_gap_is_what_size_and_teaching_make(make_lab_table):
    lab, table = make_lab_table
    lab.__dict__["peer"] = np.arange(len(table.qid)) % 2.0
    gate = lab.gate()
    parts = [gate[name].mean for name in ("gap_of_size", "gap_of_teaching")]
    assert gate["gap_mentor_intern"].mean == pytest.approx(sum(parts))
    assert parts[0] == pytest.approx(100 * (table.alone_correct.mean() - 0.5))
    assert lab.alone()["apprentice alone"].mean == pytest.approx(50)
    alone = tandem.Lab.__new__(tandem.Lab)
    alone.__dict__.update(lab.__dict__, profile=replace(lab.profile, peer=None))
    assert not {"gap_of_size", "gap_of_teaching"} & set(alone.gate())


def test_half_of_the_gain_is_where_it_is():
    assert tandem.half_length({"x": [0, 4, 8, 16], "y": [40.0, 45.0, 60.0, 80.0]}) == 8
    assert tandem.half_length({"x": [0, 4], "y": [40.0, 40.0]}) == 0


def test_insights_of_no_length_are_the_intern_alone(lab):
    curve = lab.by_length()
    assert curve["x"] == [0, *lab.profile.lengths]
    assert curve["y"][0] == 100 * lab.test.correct[: lab.profile.controls, 0].mean()


# What models read


def test_the_models_are_asked_as_they_were_taught():
    """Every prompt of the chapter is a text that the recipe of that model trains on."""
    format, taught = tandem.ChainFormat(), {}
    for name in ("mentor", "intern"):
        recipe = next(recipe for recipe in reasoning.RECIPES if recipe.name == name)
        taught[name] = {read for read, _ in recipe.examples(4000, 1, 1.0)}
    mentor = {read for read in taught["mentor"] if read.startswith("Problem") and not re.search("recall|Hint", read)}
    intern = {read for read in taught["intern"] if read.startswith("Problem") and "recall" not in read}

    def question(read):
        return tandem.Question("q", read.partition("\n")[0].removeprefix("Problem : "))

    assert {format.mentor(question(read)).prompt for read in mentor if read.endswith("Mode : insights\n")} <= mentor
    assert {format.alone(question(read)).prompt for read in mentor if read.endswith("Mode : think\n")} <= mentor
    for transport, mark in (("prompt", "\nInsights :\n"), ("hint", "\nHint :\n")):
        seen = 0
        for read in intern:
            if mark in read:
                insight = read.partition(mark)[2].partition("\nMode :")[0]
                made = format.intern(question(read), insight, transport)
                assert (made.prompt, made.prefill) == (read, "")
                seen += 1
        assert seen > 20
    for read in intern:
        asked, mode, begun = read.partition("Mode : think\n")
        if begun:
            made = format.intern(question(read), begun, "continuation")
            assert (made.prompt, made.prefill) == (asked + mode, begun)
    alone = [read for read in intern if read.endswith("Mode : think\n") and "Hint" not in read]
    assert {format.intern(question(read), "", "prompt").prompt for read in alone} == set(alone)


def test_insights_do_not_hold_the_answer_and_a_solution_does():
    format = tandem.ChainFormat()
    for p in reasoning.problems(200, 5):
        asked = tandem.Question("q", p.question, p.answer)
        assert not format.leaks(asked, solution(p, "insights")) or p.level == 1
        assert format.leaks(asked, solution(p))
        assert format.correct(asked, solution(p))
        assert not format.correct(asked, solution(p, "insights"))


# Comparisons at equal cost


def curve(name, accuracy, cost, n=400, seed=0):
    rng = np.random.default_rng(seed)
    return tandem.Curve(
        name,
        np.array([rng.permutation(np.arange(n) < round(a * n)) for a in accuracy]),
        np.repeat(np.array(cost, float)[:, None], n, 1),
    )


def test_equal_curves_differ_by_nothing_and_shifted_ones_by_the_shift():
    theirs = curve("theirs", (0.5, 0.7), (1, 3))
    same = tandem.equal_cost([theirs, theirs], theirs, resamples=50)
    assert same.mean == same.low == same.high == 0
    better = tandem.equal_cost([curve("ours", (0.6, 0.8), (1, 3), seed=1)], theirs, resamples=200)
    assert better.mean == pytest.approx(10)
    assert 0 < better.low < 10 < better.high
    # Costs that only one of them reaches do not count: at 2 both have 0.6.
    there = tandem.equal_cost([curve("ours", (0.6, 0.6), (2, 2 + 1e-9))], theirs, resamples=20)
    assert there.mean == pytest.approx(0, abs=1e-6)


def test_curves_without_a_cost_in_common_are_not_compared():
    assert tandem.equal_cost([curve("ours", (0.5, 0.7), (4, 5))], curve("theirs", (0.5, 0.7), (1, 3))) is None


@given(st.integers(1, 3), st.integers(1, 4))
def test_a_band_encloses_its_curve(seeds, points):
    rng = np.random.default_rng(seeds * 10 + points)
    curves = [curve("c", rng.random(points), rng.random(points) + 1, n=30, seed=s) for s in range(seeds)]
    found = tandem.band(curves, resamples=50)
    assert {len(values) for values in found.values()} == {len(found["x"])}
    slack = 1e-9 + 100 / 30
    assert all(a - slack <= y <= b + slack for a, y, b in zip(found["low"], found["y"], found["high"], strict=True))
    if seeds == 1:
        x, y = curves[0].points
        np.testing.assert_allclose(found["x"], np.unique(x))
        np.testing.assert_allclose(found["y"], y)


# The paper's path

SOLVED = {"train": "The sum is $\\boxed{%d}$.", "test": "Thus \\boxed{%d}."}


@pytest.fixture
def math(tmp_path_factory, monkeypatch):
    """Two problems a subject, in the layout of the hub's data set."""
    monkeypatch.setattr(tandem, "SUBJECTS", tandem.SUBJECTS[:2])
    place = tmp_path_factory.mktemp("math")
    listed = ["---", "configs:"]
    for subject in tandem.SUBJECTS:
        listed += [f"- config_name: {subject}", "  data_files:"]
        for split, text in SOLVED.items():
            rows = [{"problem": f"{subject} {split}: {k} + 1?", "solution": text % (k + 1)} for k in range(2)]
            file = place / f"{subject}-{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            listed += [f"  - split: {split}", f"    path: {file.name}"]
    (place / "README.md").write_text("\n".join([*listed, "---", ""]))
    return str(place)


def test_problems_are_read_with_their_boxed_answers(math):
    found = tandem.math_questions(math, "test", 100)
    assert len(found) == 4
    assert {q.gold for q in found} == {"1", "2"}
    assert len({q.qid for q in found}) == 4
    assert tandem.math_questions(math, "test", 3) == found[:3]
    with pytest.raises(DataError, match="cannot be read"):
        tandem.math_questions(math + "-not-there", "test", 3)


def test_the_papers_profile_runs_with_miniatures(math, tmp_path):
    """Chat models that write whatever they write: prompts, transports, budgets, grading, table and thresholds."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    mentor = random_model(tmp_path / "mentor", tokenizer, 2, 0)
    intern = random_model(tmp_path / "intern", tokenizer, 1, 1)
    small = {
        "questions": math,
        "budgets": (4, 8),
        "forced": (4,),
        "limit": 12,
        "lengths": (3,),
        "controls": 3,
        "timed": 1,
    }
    profile = replace(tandem.PAPER, mentor=mentor, intern=intern, tuning=4, test=3, seeds=2, **small)
    lab = tandem.Lab(profile, cache=False, device="cpu")
    assert isinstance(lab.format, tandem.ChatFormat)
    found = lab.gate() | lab.outcomes() | lab.controls() | lab.transports() | lab.savings()
    assert all(np.isfinite(interval.mean) for interval in found.values())
    assert set(lab.test.alone_tokens) <= set(range(1, 13))
    assert (lab.test.n_mentor[:, -1] <= 8).all()
    (foreign,) = lab.insights(lab.questions[:1], 8)
    assert lab.mentor.count(lab._filler(lab.questions[0], foreign)) >= 1


# Recorded outcomes, programs, and the committed models


def test_recorded_outcomes_are_measured_only_where_they_are():
    here = set(catalogue.verify("routellm_gsm8k").values()) == {State.OK}
    found = tandem.recorded()
    if not here:
        assert "routellm_gsm8k" in found
        return
    arms, difference = found
    assert arms["random"].apgr.mean == pytest.approx(0.5)
    assert arms["oracle"].apgr.low > arms["cascade"].apgr.high > 0.5
    assert difference.low <= difference.mean <= difference.high
    assert tandem.recorded_data()


@pytest.mark.skipif(bool(sandbox.unavailable()), reason="this machine cannot isolate a program")
def test_only_the_right_program_passes():
    verdicts_of = tandem.sandboxed()
    assert [name for name, said in verdicts_of.items() if said == "passed"] == ["right"]
    assert verdicts_of["never ends"].startswith("timeout")
    assert set(verdicts_of) == set(tandem.PROGRAMS)


@pytest.mark.skipif(not {"mentor", "intern"} <= set(tiny.names()), reason="the pair is not committed")
def test_the_pair_has_what_the_claims_require():
    """A mentor ahead of the intern, and an intern that true insights bring to the mentor's level."""
    scores = {name: {s["name"]: s for s in tiny.card(name)["scores"]} for name in ("mentor", "intern")}
    assert scores["mentor"]["think"]["low"] > scores["intern"]["think"]["high"]
    assert scores["intern"]["after true insights"]["low"] > scores["mentor"]["think"]["low"]
    assert scores["intern"]["think"]["low"] > scores["intern"]["think"]["chance"]


def test_costs_are_those_of_the_models_themselves(lab):
    assert (lab.test.theta_mentor, lab.test.theta_intern) == (lab.mentor.n_params, lab.intern.n_params)
    assert lab.mentor.n_params > lab.intern.n_params > 0


def test_the_claims_state_the_sizes_of_the_profiles():
    text = paths.claims("tandem").read_text(encoding="utf-8")
    sizes = {int(n.replace(",", "")) for n in re.findall(r"([\d,]+) questions show", text)}
    assert sizes == {tandem.QUICK.test, tandem.FULL.test}
