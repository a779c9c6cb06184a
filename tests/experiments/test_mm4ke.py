"""The measurements of the MM4KE chapter on cases whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from zfu_lib.data import edits, gazetteer
from zfu_lib.data.edits import Case
from zfu_lib.experiments import mm4ke as e
from zfu_lib.lm import harness, tiny
from zfu_lib.lm.tokenizer import byte_tokenizer
from zfu_lib.merging import mm4ke
from zfu_lib.report import claims, figures, statistics, verdicts

TINY = replace(
    e.QUICK, seeds=2, lengths=(1, 4), closer=4, ps=(1.0, 0.3), ss=(1.0, 0.5), ability=8, texts=20, rows=60, editors=()
)


@pytest.fixture(scope="module")
def study():
    return e.Study(e.Bench(TINY, device="cpu"))


def test_the_model_knows_the_facts_and_nothing_has_changed(study):
    assert study.gate()["known_before"].min() == 100
    result = study.result("unedited", 4, 0)
    assert result.of("locality") == result.of("locality", "forced") == 100
    assert (result.of("reliability"), result.changed, result.updates) == (0, 0, 0)
    assert result.kept.skills["larger"] == 100


@pytest.mark.parametrize("name", [*e.EDITORS, *e.MERGED])
def test_every_editor_runs_and_leaves_the_original_alone(study, name):
    before = {n: w.copy() for n, w in study.bench.original.items()}
    result = study.result(name, 4, 0)
    assert 0 <= result.total <= 100
    now = mm4ke.weights_of(study.bench.model)
    assert all((now[n] == w).all() for n, w in before.items())
    assert (result.changed > 0) == (name not in ("unedited", "GRACE", "ICE"))
    assert (result.immediate is not None) == (name in ("FT-M", "FT-L", "ROME", "GRACE"))
    assert (result.stored > 0) == (name in ("MEMIT", "AlphaEdit", "GRACE", "ICE"))


def test_r_sft_learns_what_it_is_told_and_the_merge_is_between(study):
    tuned, merged = study.result("R-SFT", 4, 0), study.merge("R-SFT", 4, 0, 1.0, 0.5)
    assert tuned.of("reliability") == 100
    assert study.merge("R-SFT", 4, 0, 1.0, 1.0).of("reliability") == 100
    assert merged.of("ability") >= tuned.of("ability") - 15
    assert study.merge("R-SFT", 4, 0, 1.0, 0.0).of("locality") == 100


def test_grace_keeps_every_edit_and_every_neighbour(study):
    result = study.result("GRACE", 4, 0)
    assert (result.of("reliability"), result.of("locality"), result.immediate) == (100, 100, 100)


def test_stage_two_is_chosen_on_other_edits(study):
    ours, theirs = study.bench.cases(4, 0), study.bench.cases(4, e.CALIBRATION)
    assert not {c.prompt for c in ours} & {c.prompt for c in theirs}
    choice = study.choice(0)
    assert choice.scores.shape == (2, 2)
    assert choice.scores.max() == choice.scores[TINY.ps.index(choice.p), TINY.ss.index(choice.s)]
    skills = [study.bench.source.abilities(8, seed)["reading"] for seed in (e.QUESTIONS, e.QUESTIONS + 1)]
    assert not set(skills[0]) & set(skills[1])


def test_an_edited_model_that_is_not_held_is_made_again(study):
    frugal = e.Study(study.bench)
    frugal.profile = replace(TINY, held=1)
    frugal._choices = study._choices
    for name in ("SFT", "MM4KE", "SFT"):
        assert frugal.result(name, 4, 0).of("kept") == study.result(name, 4, 0).of("kept")
        assert len(frugal._tuned) == 1


def test_a_shorter_sequence_begins_a_longer_one(study):
    assert study.bench.cases(1, 0) == study.bench.cases(4, 0)[:1]


def test_curves_and_sweeps_have_the_shape_of_the_profile(study):
    curve = study.curves("edit", ["R-SFT"])["R-SFT"]
    assert curve["x"] == [1, 4]
    assert study.sweep("kept").shape == (2, 2)


def test_no_interval_of_a_percentage_leaves_0_to_100(study):
    assert e.percent([100.0, 100.0, 95.0]).high == 100
    assert e.percent([0.0, 0.0, 5.0]).low == 0
    assert e.percent([40.0, 50.0, 60.0]) == statistics.over_seeds([40.0, 50.0, 60.0])
    for metric in ("reliability", "locality", "ability"):
        found = study.curves(metric, ["R-SFT", "FT-M"]).values()
        assert all(0 <= low <= y <= high <= 100 for c in found for low, y, high in zip(c["low"], c["y"], c["high"]))


def test_every_editor_is_in_a_figure_that_can_tell_its_lines_apart(study):
    shown = study.families
    assert set().union(*shown.values()) == {*e.MERGED, *e.EDITORS} - {"unedited"}
    assert all("MM4KE" in names and len(names) <= len(figures.MARKERS) - 1 for names in shown.values())


def test_lm_eval_finds_what_the_model_says_where_it_is_sure(study):
    asked = study.bench.source.abilities(8, e.QUESTIONS + 2)
    scores = study.general("unedited", 4)
    assert set(scores) == set(asked)
    assert scores["larger"].tolist() == [100, 100]
    right = sum(study.bench.holds(study.bench.model, Case("", q.prompt, q.answer)) for q in asked["reading"])
    assert scores["reading"][0] >= 100 * right / 8  # scoring alternatives is easier than writing the answer


def test_the_closer_studies_measure_what_their_claims_ask_for(study, monkeypatch):
    monkeypatch.setattr(e, "PENALTIES", {"l2": (0.01,), "kl": (1.0,)})
    closer = e.Study(study.bench)
    closer.profile = replace(TINY, studies=e.FULL.studies, few_seeds=2)
    closer._tuned, closer._results = study._tuned, study._results
    found = set(closer.closer())
    for claim in claims.load("mm4ke").claims:
        if "quick" not in claim.test:
            rule = claim.test["full"]
            assert {c.measurement for c in rule.conditions} <= found, claim.id


def fake(mean, spread=0.1):
    return statistics.over_seeds([mean - spread, mean, mean + spread])


def test_a_sabotaged_merge_loses_its_verdict():
    """If merging gave nothing back, or lost the edits, K3 would say so; without harm it would say nothing."""
    claim = next(c for c in claims.load("mm4ke").claims if c.id == "mm4ke.K3")
    good = {"known_before": 100, "rsft_learns": 100, "k3_taken": 20, "k3_gap": 5, "k3_reliability": 3}

    def verdict(**changed):
        return verdicts.judge(claim, "quick", {k: fake(v) for k, v in (good | changed).items()}).verdict

    assert verdict() == "direction holds"
    assert verdict(k3_gap=-5) == "not reproduced"
    assert verdict(k3_reliability=-5) == "not reproduced"
    assert verdict(k3_taken=-1) == "inconclusive"
    assert verdict(known_before=50) == "inconclusive"


# Published data, in miniature.


SCORES = {name.split(":")[0]: {"acc": {"value": 0.5}} for name in e.PAPER.tasks}
SCORES["leaderboard_mmlu_pro"]["acc"]["value"] = 0.25


def test_the_paper_profile_runs_on_a_miniature(tmp_path, monkeypatch):
    """A checkpoint of the Qwen2 layout, edits in a file of KnowEdit's form, and stand-ins for the hub's texts."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=259, num_key_value_heads=2, max_position_embeddings=512, **shape)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    edits.write(gazetteer.cases(8, 0), tmp_path / "recent.json", "knowedit")

    def load_dataset(name, *_, split, **__):
        if "mmlu" in name:
            return [{"question": f"{i} and 1?", "choices": [str(i), str(i + 1)], "answer": 1} for i in range(5)]
        return [{"text": text} for text in gazetteer.texts(40, 4, 2)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    profile = replace(
        e.PAPER,
        model=str(tmp_path / "model"), edits=f"knowedit:{tmp_path / 'recent.json'}",
        seeds=2, lengths=(1, 3), closer=3, ps=(1.0,), ss=(1.0, 0.5), ability=3, texts=2, rows=4, studies=(),
    )  # fmt: skip
    study = e.Study(e.Bench(profile, device="cpu"))
    study.bench.settings = replace(
        study.bench.settings, rsft=replace(e.TINY.rsft, epochs=2, learning_rate=5e-3), ft=replace(e.TINY.ft, steps=3)
    )
    assert len(study.bench.settings.rome.prefixes) == 5
    for name in ("MM4KE", "R-SFT", "FT-M", "ROME", "MEMIT", "ICE"):
        result = study.result(name, 3, 0)
        assert np.isfinite(result.total), name
    assert not {c.prompt for c in study.bench.cases(3, 0)} & {c.prompt for c in study.bench.cases(3, e.CALIBRATION)}
    with pytest.raises(ValueError, match="5 edits of 4 in half of the file"):
        study.bench.cases(5, 0)
    with pytest.raises(ValueError, match="edits 'zsre' are neither FORM:FILE nor one of WikiRecent, CounterFact, ZsRE"):
        e.Bench(replace(profile, edits="zsre"), device="cpu")
    asked = []
    monkeypatch.setattr(harness, "evaluate", lambda m, t, tasks, **_: asked.extend(tasks) or {"scores": SCORES})
    study.bench.source.named = e.PAPER.tasks
    assert study.bench.general(study.bench.model) == {"leaderboard_mmlu_pro": 25.0} | dict.fromkeys(asked[1:], 50.0)


def test_a_checkpoint_folder_is_edited_into_another(tmp_path):
    cases = gazetteer.cases(2, 3)
    log = e.edit_checkpoint(tiny.path("gazetteer"), cases, tmp_path / "out", e.TINY.rsft, 1.0, 1.0)
    assert sum(log.updates) > 0
    bench = e.Bench(TINY, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert all(bench.holds(model, case) for case in cases)
    assert not any(bench.holds(bench.model, case) for case in cases)
    written, source = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", tiny.path("gazetteer")))
    assert written["model_type"] == "llama"
    assert written["dtype"] == source["dtype"] == "bfloat16"


def test_a_cpu_scales_the_full_profile_down_and_says_so():
    bench = e.Bench.__new__(e.Bench)
    assert set(e.FULL_ON_CPU) <= set(vars(e.FULL))
    text = e.Bench(replace(e.FULL, model="gazetteer"), device="cpu").description()
    assert "Scaled down for a CPU" in text
    assert "1000 edits" in text
    assert bench is not None
