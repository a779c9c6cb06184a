"""The measurements of the Hi-Merging chapter on cases whose answer is known."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from zfu_lib.data.bilingual import Item
from zfu_lib.experiments import hi_merging as e
from zfu_lib.experiments import merging_bench as bench
from zfu_lib.lm.tokenizer import byte_tokenizer
from zfu_lib.merging import hi_merging as hi
from zfu_lib.merging import low_rank, methods
from zfu_lib.report import claims, statistics, verdicts

TINY = replace(
    e.QUICK, seeds=2, steps=4, batch=8, calibration=12, test=12, ps=(1.0, 0.2), ss=(1.0,), draws=2,
    pairs=("two kinds",), lora=("two kinds",), studied=("two kinds",), methods=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    return e.Lab(TINY, device="cpu")


@pytest.fixture(scope="module")
def study(lab):
    return e.Study(lab)


@pytest.fixture(scope="module")
def trial(study):
    return study.trial("two kinds", 0)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


# Reading and answering.


def test_answers_are_what_generate_writes(lab):
    """The reader's own decoding against transformers', and its choice against the likelihood of whole options."""
    model, tokenizer = lab.source.model, lab.source.tokenizer
    for task in ("recall-latin", "choice-greek"):
        items = lab.source.questions(task, "test", 12, 0)
        batch = lab.source.prepared(items)
        found = lab.source.answers(lab.base, batch)
        for i, item in enumerate(items):
            ids = tokenizer(item.read, return_tensors="pt")["input_ids"]
            if item.options:
                with torch.no_grad():
                    likely = model(ids).logits[0, -1]
                of = {
                    o: likely[tokenizer(f" {o}", add_special_tokens=False)["input_ids"][0]].item() for o in item.options
                }
                assert found[i] == (max(of, key=of.get) == item.answer[0])
            else:
                told = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=258)
                words = [tokenizer.decode([i]).strip() for i in told[0, ids.shape[1] :].tolist()]
                assert found[i] == pytest.approx(np.mean([a == b for a, b in zip(words[1::2], item.answer[1::2])]))


def test_weights_are_exchanged_tensor_by_tensor(lab, trial):
    reader, block = lab.source.reader, trial.blocks[2]
    reader.load(lab.base)
    swapped = hi.take(lab.base, block, trial.experts[0])
    reader.load(swapped)
    now = {name: p.detach().numpy() for name, p in reader.model.named_parameters()}
    assert same(now, swapped)
    assert not same(now, lab.base)


def test_lessons_teach_the_answer_only(lab):
    tokenizer = lab.source.tokenizer
    texts = [("zer lide pick", " atis unel"), ("", "zer lide :")]
    inputs, targets = bench.lessons(texts, tokenizer)
    for (read, written), ids, wanted in zip(texts, inputs.tolist(), targets.tolist()):
        learnt = [t for t in wanted if t != bench.IGNORED]
        assert learnt == [*tokenizer(written, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        known = [tokenizer.bos_token_id, *tokenizer(read, add_special_tokens=False)["input_ids"]]
        assert ids[: len(known)] == known
        assert wanted[len(known) - 1] == learnt[0]


def test_words_of_several_tokens_are_refused(lab):
    with pytest.raises(ValueError):
        bench.encoded([Item("zer lide", ("notaword",))], lab.source.tokenizer)


# Experts.


def test_no_expert_practises_on_people_who_are_asked_about_later(lab):
    source = lab.source
    for task in source.tasks:
        practised = {" ".join(read.split(" ")[:2]) for read, _ in source.lessons(task, 400, 0) if read}
        for split in ("calibration", "test"):
            asked = {source.about(item) for item in source.questions(task, split, None, 0)}
            assert not practised & asked
    calibration, test = (
        {source.about(item) for item in source.questions("choice-latin", split, None, 0)}
        for split in ("calibration", "test")
    )
    assert not calibration & test


def test_experts_of_a_seed_repeat_and_differ_by_seed_and_share(lab):
    again = e.Lab(TINY, device="cpu")
    one = lab.expert("choice-latin", 0)
    assert same(one, again.expert("choice-latin", 0))
    assert not same(one, lab.expert("choice-latin", 1))
    assert not same(one, lab.expert("choice-latin", 0, "full", 0.5))
    assert lab.expert("choice-latin", 0) is one


def test_low_rank_changes_matrices_in_blocks_only_and_by_its_rank(lab):
    delta = methods.deltas(lab.base, lab.expert("choice-latin", 0, "lora"))
    for name, x in delta.items():
        if methods.layer(name) and x.ndim == 2:
            assert x.any(), name
            assert np.linalg.matrix_rank(x.astype(float), tol=1e-5 * np.linalg.norm(x)) <= TINY.lora_rank
        else:
            assert not x.any(), name


def test_low_rank_starts_at_the_model_and_trains_nothing_else(lab):
    model = copy.deepcopy(lab.source.model)
    x = torch.arange(8)[None]
    before = model(x).logits
    layers = low_rank.add_low_rank(model, 4, 8.0)
    assert len(layers) == 7 * 4
    assert torch.equal(model(x).logits, before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith((".a", ".b")) for name in trainable)
    assert not any(isinstance(m, nn.Embedding) for m in layers)


# Trials.


def test_a_trial_does_what_the_method_does(lab, trial):
    """Stage by stage with shared measurements, it builds the model of the one function in the method's module."""
    found = trial.hi_merging(weight=0.5)
    whole = hi.hi_merge(lab.base, trial.experts, trial.score, weights=[0.5, 0.5], ps=TINY.ps, ss=TINY.ss)
    assert same(found.model, whole.model)
    assert found.decisions == whole.decisions
    assert trial.budget == whole.evaluations + 2 * len(e.WEIGHTS)


@pytest.fixture(scope="module")
def tuned(trial):
    """All tuned arms of a trial, and how many calibration scores they took."""
    count, real = 0, trial.lab.score

    def counting(task, tensors, split="test"):
        nonlocal count
        count += split == "calibration"
        return real(task, tensors, split)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial.lab, "score", counting)
        return trial.tuned(), count


def test_each_tuned_method_stays_within_the_budget(trial, tuned):
    arms, count = tuned
    assert len(arms) == 12
    assert all(0 < arm.evaluations <= trial.budget for arm in arms.values())
    assert sum(arm.evaluations for arm in arms.values()) == count
    assert min(arm.evaluations for name, arm in arms.items() if name != "layer swapping") > 0.6 * trial.budget


def test_tuned_task_arithmetic_is_the_best_factor(trial, tuned):
    n = trial.budget // 2
    factors = e.LONGEST * np.arange(1, n + 1) / n
    scored = [trial.calibrated(trial.summed(trial.deltas, float(f))) for f in factors]
    assert tuned[0]["task arithmetic"].calibration == pytest.approx(max(scored))
    assert trial.task_arithmetic() == tuned[0]["task arithmetic"]


@pytest.fixture
def hasty(monkeypatch):
    """Methods take their first setting, so that a test of everything around them is quick."""
    monkeypatch.setattr(e.Trial, "_best", lambda self, settings: self.judged(next(iter(settings))(), 1.0, 2))
    monkeypatch.setattr(e.Trial, "_greedy", lambda self, n: self.judged(self.base, 0.5, 2))


def test_layer_swapping_and_plain_merges_of_equal_experts_are_the_expert(lab, trial, monkeypatch):
    expert = trial.experts[0]
    monkeypatch.setattr(trial, "experts", [expert, expert])
    assert same(trial._swapped(2, 1), expert)
    arms = trial.untuned()
    assert arms["average"].scores == arms["first expert"].scores


def test_shuffled_labels_keep_their_numbers(trial, monkeypatch):
    moved = []
    settled = trial.settled
    monkeypatch.setattr(trial, "settled", lambda D, c, d, *more: moved.append(d) or settled(D, c, d, *more))
    trial.random_labels(3)
    expected = e.cases(trial.hi_merging().decisions)
    for decisions in moved[-3:]:
        assert e.cases(decisions) == expected
        assert {d.block for d in decisions} == set(trial.blocks)


def test_halves_of_the_calibration_questions(lab, trial):
    """Weighted by their sizes the two halves give the table of all questions, and they share no person."""
    whole = trial.hi_merging().table
    a, b = trial.halves()
    for m, task in enumerate(trial.tasks):
        half = lab.half(task)
        share = half.mean()
        assert (1 - share) * a.own[m] + share * b.own[m] == pytest.approx(whole.own[m], abs=1e-6)
        items = lab.source.questions(task, "calibration", TINY.calibration, e.QUESTIONS)
        people = [{lab.source.about(item) for item, h in zip(items, half) if h == side} for side in (0, 1)]
        assert not people[0] & people[1]


# Statistics of a study.


def arm(score, calibration=float("nan"), evaluations=0):
    return e.Arm((score, score), calibration, evaluations)


def test_rank_and_best():
    arms = {"base": arm(90), "first expert": arm(80), "second expert": arm(80), "average": arm(50), "x": arm(60, 70, 4)}
    arms |= {"y": arm(70, 65, 4), "Hi-Merging": arm(60, 99, 4)}
    assert e.rank(arms) == 2.5
    assert e.best(arms) == "x"
    assert e.interference(arms) == 30


def table(gamma):
    gamma = np.array(gamma, float)
    return hi.Table(tuple(("l", k) for k in range(gamma.shape[1])), gamma, np.zeros_like(gamma))


def test_agreement():
    mixed, other = table([[1, -1, 1, -1]]), table([[-1, 1, -1, 1]])
    assert e.agreement([(mixed, mixed)]) == (1.0, 1.0)
    assert e.agreement([(mixed, other)]) == (0.0, -1.0)
    always = table([[1, 1, 1, 1]])
    assert e.agreement([(always, always)]) == (1.0, 0.0), "agreement of constants is chance"


def test_agreement_of_noise_is_chance():
    rng = np.random.default_rng(0)
    share, kappa = e.agreement(
        [(table(rng.normal(0.7, 1, (2, 50))), table(rng.normal(0.7, 1, (2, 50)))) for _ in range(20)]
    )
    assert share > 0.6
    assert abs(kappa) < 0.1


def test_early_sizes_and_signs():
    assert e.early(table([[4, 2, 1, 1], [0, 2, 1, 1]])) == 1
    base = {"h.0.w": np.full(4, 3.0), "h.1.w": np.full(4, 2.0), "end": np.ones(2)}
    delta = {"h.0.w": np.full(4, -0.3), "h.1.w": np.array([1.0, -1, 1, 0]), "end": np.ones(2)}
    assert e.sizes(base, delta) == pytest.approx([0.1, 3**0.5 / 4])
    other = {"h.0.w": np.full(4, 1.0), "h.1.w": np.array([1.0, 1, 1, 1]), "end": np.ones(2)}
    assert e.same_sign(delta, other) == pytest.approx([0, 2 / 3])


def test_a_study_measures_everything_the_rules_name(study, hasty):
    measured = study.gate() | study.signs() | study.pruning() | study.growth() | study.low_rank()
    measured |= {"h7_gap": study.against_random_labels(), "h2_gap": study.mixed()}
    for name, values in measured.items():
        assert values.shape == (2,), name
        assert np.isfinite(values).all(), name
    assert sum(study.counted().values()) == pytest.approx([100, 100])
    parts = study.ablation()
    assert parts["both stages"] == pytest.approx(
        study.each(TINY.pairs, lambda p, s: study.arms(p, s)["Hi-Merging"].mean)
    )
    read = study.readings()
    assert read["as it stands"] == pytest.approx(parts["both stages"])
    assert study.gradient_steps() == 0
    assert study.gap(TINY.pairs, "Hi-Merging") == pytest.approx([0, 0])


def test_gradients_would_be_counted(study, monkeypatch):
    def learning(task, tensors, split="test"):
        w = torch.ones(1, requires_grad=True)
        w.sum().backward()
        return 0.0

    monkeypatch.setattr(study.lab, "score", learning)
    assert study.gradient_steps() > 0


def verdict(name, **measured):
    (claim,) = [c for c in claims.load("hi_merging").claims if c.id == f"hi_merging.{name}"]
    return verdicts.judge(claim, "quick", {k: statistics.over_seeds(v) for k, v in measured.items()}).verdict


GATE = {"skill_worst": [9, 10, 11], "interference": [9, 10, 11]}


def test_verdicts_follow_the_measurements():
    assert verdict("H3", **GATE, h3_gap=[1, 1.1, 1.2]) == "direction holds"
    assert verdict("H3", **GATE, h3_gap=[-1, -1.1, -1.2]) == "not reproduced"
    assert verdict("H3", **GATE, h3_gap=[-1, 0, 1]) == "inconclusive"
    assert verdict("H3", **GATE | {"interference": [-1, 0, 1]}, h3_gap=[1, 1.1, 1.2]) == "inconclusive"


# What the paper prints.


def test_audit_of_the_printed_tables():
    found = e.audit(e.quoted())
    # By hand: (60.16 + 89.07) / (51.41 + 74.62) - 1 = 18.408%, printed 18.41; sqrt(.6016 * .3984 / 1273) = 1.3721%.
    assert found["a1_largest_error"] < 0.01
    assert found["a2_lead_medqa"] == pytest.approx(0.63 / 1.3721, rel=1e-3)
    assert found["a2_discordant_medqa"] == pytest.approx(100 * (0.0063 / 1.96) ** 2 * 1273)
    assert found["a2_figure_2_gain"] == pytest.approx(60.5469 - 59.1406)
    assert found["a3_slope_hcm"] < 0 < found["a3_slope_cmedqa2"]
    assert found["a4_equal_cells"] == 10


def test_audit_sees_a_wrong_average_and_honest_rows():
    tables = copy.deepcopy(e.quoted())
    tables["bilingual"]["rows"]["TIES"][2] += 1
    tables["figure_2"]["rows"][0.9] = [x + 0.08 for x in tables["figure_2"]["rows"][1.0]]
    found = e.audit(tables)
    assert found["a1_largest_error"] == pytest.approx(1, abs=0.01)
    assert found["a4_equal_cells"] == 0


# Profiles.


def test_full_profile_says_how_far_a_cpu_scales_it_down():
    lab = e.Lab(e.FULL, device="cpu")
    assert "Scaled down for a CPU" in lab.description()
    assert "bilingual-large" in lab.description()
    assert lab.profile.profile == "full"
    assert lab.profile.model == "bilingual"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Miniatures of the paper's base (its architecture with random weights) and data (its schemas in local files)."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=257,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    rows = {
        "medqa": lambda i: {"question": f"q{i}?", "options": {"A": "yes", "B": f"no{i}"}, "answer": "yes"},
        "cmexam": lambda i: {
            "Question": f"问{i}", "Answer": "AB" if i == 3 else "B",
            "Options": [{"key": "A", "value": "是"}, {"key": "B", "value": "否"}],
        },
        "healthcaremagic": lambda i: {"instruction": "", "input": f"pain {i}", "output": f"rest {i}"},
        "cmedqa2": lambda i: {"instruction": "", "input": f"痛{i}", "output": f"休息{i}"},
    }  # fmt: skip
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row(i)) for i in range(20)))
        options = {"path": "json", "data_files": str(tmp_path / f"{name}.jsonl")}
        split = {"train": {"split": "train[:14]"}, "test": {"split": "train[14:]"}}
        monkeypatch.setitem(bench.MEDICAL, name, ({"all": options} | split, bench.MEDICAL[name][1]))
    monkeypatch.setattr(bench.Published, "answer_tokens", 4)
    return replace(
        e.PAPER, model=str(tmp_path / "qwen"), seeds=2, steps=2, batch=2, lora_rank=2, calibration=4, test=4,
        ps=(1.0, 0.2), ss=(1.0,),
    )  # fmt: skip


def test_paper_path_in_miniature(hub, hasty):
    """The code path of the published scale: Qwen2, LoRA, likelihood of options, ROUGE-L, all methods on a pair."""
    study = e.Study(e.Lab(hub, device="cpu"))
    lab = study.lab
    assert type(lab.source.model).__name__ == "Qwen2ForCausalLM"
    assert all(not item.read.startswith("问题：问3\n") for item in lab.source.questions("cmexam", "train", None, 0))
    train, calibration, test = (
        {item.read for item in lab.source.questions("medqa", split, None, 0)}
        for split in ("train", "calibration", "test")
    )
    assert not train & calibration
    assert not (train | calibration) & test
    moved = methods.deltas(lab.base, lab.expert("medqa", 0))
    assert not moved["lm_head.weight"].any()
    assert any(x.any() for x in moved.values())
    arms = study.arms("two kinds", 0)
    assert all(0 <= score <= 100 for arm in arms.values() for score in arm.scores)
    assert np.isfinite(study.gap(("two languages",), "task arithmetic")).all()
    assert study.low_rank() == {}
    assert study.other_bases() == {}
