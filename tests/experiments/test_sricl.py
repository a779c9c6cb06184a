"""The measurements of the SRICL chapter: small runs, known answers, sabotage, and the published scale in miniature."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from zfu_lib.experiments import sricl
from zfu_lib.experiments.sricl import Arm, Lab
from zfu_lib.lm.encoder import TextEncoder
from zfu_lib.lm.tokenizer import byte_tokenizer, word_tokenizer
from zfu_lib.report import claims, statistics, verdicts
from zfu_lib.skills import shape
from zfu_lib.skills.spans import Span, to_tags

SMALL = replace(
    sricl.QUICK, seeds=2, train=24, test=10, sft_steps=2, copy_steps=2, tagger_steps=2, frozen=1, simulated=10,
    max_tokens=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    tokenizer = word_tokenizer(sorted(sricl.COPYIST_WORDS))
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    return TextEncoder(BertModel(settings), tokenizer, name="miniature", normalise=True)


@pytest.fixture(scope="module")
def lab(encoder):
    made = Lab(SMALL, device="cpu")
    made._kept["encoder",] = encoder
    return made


def test_samples_differ_by_seed_and_share_the_test_set(lab):
    a, b = lab.sample("jobads", 0), lab.sample("jobads", 1)
    assert len(a.train) == 24
    assert a.train != b.train
    assert a.test == b.test
    split = {sricl.sricl.normal(s.text) for s in lab._split("jobads", "train")}
    assert a.repeated.tolist() == [sricl.sricl.normal(s.text) in split for s in a.test]


def test_every_measurement_of_the_claims_is_made(lab):
    """Names in the claims file against what the chapter measures, in a run too small to mean anything."""
    pairs = sricl.model_pairs(lab) | sricl.retrieval_pairs(lab) | sricl.label_pairs(lab)
    pairs |= sricl.simulated_pairs({rate: sricl.simulate(lab, rate) for rate in (0.05, 0.15, 0.3, 0.5)})
    assert all(len(a) == len(b) == 2 and np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs.values())
    needed = {
        condition.measurement
        for claim in claims.load("sricl").claims
        if "quick" in claim.test
        for condition in (*claim.test["quick"].requires, *claim.test["quick"].conditions)
    }
    assert needed <= set(pairs)
    assert set(sricl.MODEL_MEASUREMENTS) <= set(pairs)
    grid = sricl.grid(lab)
    assert list(grid) == list(sricl.GRID)
    assert all(len(row) == 6 for row in grid.values())
    assert set(sricl.f1_intervals(lab)) == set(sricl.named(lab))
    assert len(sricl.repeats(lab)) == 3
    assert sricl.over_sentences(lab, "crf", "jobads", against="crf")[:3] == (0, 0, 0)


def test_a_profile_without_a_model_says_what_it_leaves_out():
    lab = Lab(replace(SMALL, base=""), device="cpu")
    assert set(sricl.omitted(lab)) == set(sricl.MODEL_MEASUREMENTS)
    assert sricl.model_pairs(lab) == {}
    assert sricl.grid(lab) == {}
    assert len(sricl.failures(lab, 3)) == 3
    assert not sricl.omitted(Lab(SMALL, device="cpu"))


def test_the_full_profile_says_how_far_a_cpu_scales_it_down():
    lab = Lab(sricl.FULL, device="cpu")
    assert "Scaled down for a CPU" in lab.description()
    assert lab.profile.train < sricl.FULL.train
    assert {u.name.partition("/")[0] for u in lab.used} == {"skillspan", "sayfullina", "green", "esco"}


def test_the_simulation_follows_the_law(lab):
    """Independent errors at rate p leave p^(R+1); without feedback nothing changes."""
    big = Lab(replace(SMALL, seeds=3, test=150, simulated=150), device="cpu")
    found = sricl.simulate(big, 0.5)
    for r in range(4):
        # 450 sentences, boilerplate counted as often as it stands there: four deviations of 300 distinct ones.
        assert abs(found.by_retries[:, r].mean() - 0.5 ** (r + 1)) < 4 * np.sqrt(0.25 / 300)
    assert (found.hallucinated_final == 0).all()
    assert (found.hallucinated_raw > 0).all()
    silent = sricl.simulate(big, 0.5, explain=False)
    assert (silent.by_retries[:, 3] == silent.raw).all()


def verdict(pairs, name):
    claim = next(c for c in claims.load("sricl").claims if c.id == f"sricl.{name}")
    measured = {key: statistics.paired(a, b) for key, (a, b) in pairs.items()}
    return verdicts.judge(claim, "full", measured).verdict


def test_a_verifier_that_lets_everything_pass_loses_its_verdicts(lab, monkeypatch):
    def run():
        big = Lab(replace(SMALL, seeds=3, test=100, simulated=100), device="cpu")
        return sricl.simulated_pairs({rate: sricl.simulate(big, rate) for rate in (0.05, 0.15, 0.3, 0.5)})

    sound = run()
    assert verdict(sound, "S2") == "direction holds"
    # A verifier whose feedback never arrives repairs nothing.
    monkeypatch.setattr(sricl.sricl.prompts, "again", lambda turns, *args, **options: turns)
    assert verdict(run(), "S2") == "not reproduced"


def test_leaving_failures_out_keeps_the_score(lab):
    curves = sricl.conventions(Lab(replace(SMALL, test=100, simulated=100), device="cpu"), [0.0, 0.5])
    honest, flattering = curves["all sentences"]["y"], curves["valid answers only"]["y"]
    assert honest[0] == flattering[0]
    assert honest[1] < honest[0] - 0.15
    assert flattering[1] > honest[1] + 0.15


def test_progress():
    stages = {"zero": np.array([0.4, 1.0]), "tenth": np.array([0.1, 1.0]), "all": np.array([0.0, 1.0])}
    assert sricl.progress(stages) == pytest.approx([0.75, 0.0])


def test_lengths_of_spans():
    sentences = sricl.generated(50, 3)
    empty, *bins = sricl.lengths(sentences)
    assert sum(bins) == pytest.approx(1)
    assert empty == np.mean([not s.spans for s in sentences])
    assert len(bins) == len(shape.BINS)


def test_mixing_neighbours_is_its_formula(lab):
    class Tags:
        tags = ("O", "B-Skill")

    store, tags = np.eye(3), np.array([1, 0, 0])
    found = sricl.neighbours(store, tags, np.array([[1.0, 0.0, 0.0]]), Tags, None)
    weights = np.exp(np.array([0.0, -1, -1]) / sricl.KNN_TEMPERATURE)
    assert found == pytest.approx(np.array([[weights[1:].sum(), weights[0]]]) / weights.sum(), rel=1e-5)
    control = sricl.neighbours(store, tags, np.zeros((500, 3)) + 1.0, Tags, np.random.default_rng(0))
    assert control.mean(axis=0) == pytest.approx([2 / 3, 1 / 3], abs=0.03), "the share of each tag"


def test_paper_path_in_miniature(tmp_path, monkeypatch, encoder):
    """The code path of the published scale: hub model and chat template, LoRA, chat prompts, real corpora's layout."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8192, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(tmp_path)

    def rows(name, split, **options):
        return Dataset.from_list(
            [
                {"id": s.id, "tokens": list(s.tokens), "tags": to_tags(s, typed=False), "posting": "", "source": ""}
                for s in sricl.generated(12, len(name) + len(split))
            ]
        )

    monkeypatch.setattr(sricl.corpora, "spans", rows)
    monkeypatch.setattr(sricl.corpora, "descriptions", lambda: [("use Python", "use Python"), ("SQL", "use SQL")])
    profile = replace(
        sricl.PAPER, seeds=2, corpora=("green",), train=8, test=4, base=f"hf:{tmp_path}", sft_steps=2, sft_batch=2,
        context=8000, max_tokens=8, simulated=4,
    )  # fmt: skip
    lab = Lab(profile, device="cpu")
    lab._kept["encoder",] = encoder
    outcomes = lab.outcomes("green", 0, replace(sricl.WHOLE, retries=1))
    assert [len(o.attempts) for o in outcomes] == [2] * 4, "random weights answer nothing legal"
    assert all(len(o.context.demonstrations) == 3 for o in outcomes)
    layers = lab._kept["adapted",][1]
    lab.model("green", 0, "varied")
    assert len(layers) == 4
    assert any(layer.b.abs().sum() > 0 for layer in layers)
    lab.model("green", 0, "none")
    assert all((layer.b == 0).all() for layer in layers), "the base again"
    assert lab.f1(Arm(retries=0)).tolist() == [0.0, 0.0]


def test_chat_batches_learn_the_answer_only():
    tokenizer = byte_tokenizer()
    schedule = sricl.TrainConfig(2, 2, 20, 1e-3, warmup=0)
    recipe = sricl.Recipe("x", "", {}, schedule, lambda n, seed, progress: [("ask", "yes"), ("a", "no")], None, 0)
    inputs, targets = sricl.chat_batches(recipe, tokenizer)(0)
    assert inputs.shape == targets.shape == (2, 6)
    learnt = [[int(x) for x in row if x != sricl.IGNORED] for row in targets]
    assert learnt == [[*b"yes", 257], [*b"no", 257]]
    assert inputs[0].tolist() == [*b"askyes"]
    with pytest.raises(ValueError, match="7 tokens, more than context = 5"):
        sricl.chat_batches(replace(recipe, train=replace(schedule, seq_len=5)), tokenizer)(0)


def test_a_row_becomes_a_sentence():
    row = {"id": "7", "tokens": ["a", "b"], "tags": ["O", "I"], "posting": "p", "source": ""}
    found = sricl.sentence_of(row)
    assert (found.spans, found.meta) == ((Span(1, 2),), {"posting": "p"})
