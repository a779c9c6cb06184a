"""The measurements of the SWAT chapter on cases whose answer is known."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from zfu_lib.attention import swat as method
from zfu_lib.data.hub import hub_corpus
from zfu_lib.experiments import language, swat
from zfu_lib.lm import harness
from zfu_lib.lm.tokenizer import byte_tokenizer
from zfu_lib.report import claims, statistics, verdicts

TINY = replace(
    swat.QUICK, seeds=2, layers=2, width=32, window=8, tokens=2000, batch_tokens=128, evaluation_tokens=1024,
    sweep=(1, 2), longest=8, needle_tokens=2000,
)  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    return swat.Lab(TINY, device="cpu")


def test_audit_of_the_printed_tables():
    # By hand: (40.81+69.80+48.65+51.69+65.15+33.53+39.95+61.07)/8 = 51.33125; Titans' row gives 51.55625.
    found = swat.audit(swat.quoted())
    assert found["s2_average_error"] == pytest.approx(51.85 - 51.33125)
    assert found["s2_lead_over_titans"] == pytest.approx(51.33125 - 51.55625)
    assert found["a1_largest_repeat_gap"] == pytest.approx(5.0274 - 4.5447)
    assert found["a2_gain_of_8_4"] == pytest.approx(2.6200 - 2.6492)
    assert found["a2_gain_of_6_6"] == pytest.approx(2.6200 - 2.7275)
    assert found["a3_copied_cells"] == 2


def test_audit_passes_tables_that_add_up():
    tables = copy.deepcopy(swat.quoted())
    for row in (tables["table_1"]["760M"][name] for name in ("SWAT (-)", "Titans")):
        row[-1] = float(np.mean(row[2:10]))
    tables["table_1"]["760M"]["SWAT (-)"][2] += 8
    tables["table_1"]["760M"]["SWAT (-)"][-1] += 1
    tables["table_2"]["Vanilla B (1024, 1024, 16384)"][4:6] = [5.6, 5.3]
    found = swat.audit(tables)
    assert found["s2_average_error"] < 1e-9
    assert found["s2_lead_over_titans"] > 0
    assert found["a3_copied_cells"] == 0


def test_rows_that_do_not_average():
    assert [(row["size"], row["model"]) for row in swat.averages(swat.quoted())] == [
        ("760M", "TTT"),
        ("760M", "SWAT (-)"),
    ]


def test_largest_jump():
    falling = np.linspace(5, 1, 100)
    assert swat.largest_jump(falling) == 0
    spiked = falling.copy()
    spiked[60] += 3
    assert swat.largest_jump(spiked) == pytest.approx(spiked[60] - np.median(spiked[40:60]))


def verdict_of_reach(violations):
    (claim,) = [c for c in claims.load("swat").claims if c.id == "swat.S14"]
    return verdicts.judge(claim, "quick", {"s14_violations": statistics.exact(violations)}).verdict


def test_a_window_that_is_one_too_wide_loses_its_verdict(monkeypatch):
    assert verdict_of_reach(swat.receptive_field_violations()) == "reproduced"
    build = swat.SwatConfig
    monkeypatch.setattr(swat, "SwatConfig", lambda **kw: build(**kw | {"window": kw["window"] + 1}))
    assert verdict_of_reach(swat.receptive_field_violations()) == "not reproduced"


@pytest.mark.parametrize("name", ["windowed", "full"])
def test_probe_of_content_free_softmax(lab, name):
    """With all scores equal every row is uniform: no sink, every token gets its share, entropy and density 1."""
    model = lab.build(swat.ARMS[name], 0)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.attention.qkv_proj.weight[: 2 * TINY.width].detach())
    found = swat.probe(model.eval(), lab.sample(4), TINY.window)
    assert found.sink == pytest.approx(0, abs=1e-6)
    assert found.strongest == pytest.approx(1, rel=1e-5)
    assert found.sink_rate == 0
    assert found.entropy == pytest.approx(1, rel=1e-5)
    assert found.density == found.mass == pytest.approx(1, rel=1e-5)


def test_probe_of_content_free_sigmoid(lab):
    """Without slopes every weight is one half, so a full row has mass ω/2 and is as even as softmax's."""
    model = lab.build(replace(swat.ARMS["recency"], slopes=None), 0)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.attention.qkv_proj.weight[: 2 * TINY.width].detach())
    found = swat.probe(model.eval(), lab.sample(4), TINY.window)
    assert found.mass == pytest.approx(TINY.window / 2)
    assert found.entropy == pytest.approx(1, rel=1e-5)


def test_bias_only_control_is_what_the_slopes_do(lab):
    """The control's row mass is the closed form, whatever was learnt."""
    probes = lab.probes("balanced")["bias only"]
    expected = method.row_mass(TINY.window, method.balanced_slopes(TINY.heads, "balanced")).mean()
    assert [found.mass for found in probes] == pytest.approx([float(expected)] * TINY.seeds, rel=1e-5)


def test_probe_sees_a_sink(lab, monkeypatch):
    """A model whose every query looks at one token alone has all weight there and entropy 0."""
    model = lab.build(swat.ARMS["full"], 0).eval()
    forward = model.forward
    chosen = TINY.window + 3

    def all_on_one(*args, **kw):
        out = forward(*args, **kw)
        weights = [torch.zeros_like(a).index_fill_(-1, torch.tensor([0, chosen]), 1.0).tril() for a in out.attentions]
        for a in weights:
            a[..., chosen:, 0] = 0
        out.attentions = tuple(weights)
        return out

    monkeypatch.setattr(model, "forward", all_on_one)
    found = swat.probe(model, lab.sample(4), TINY.window)
    uniform = np.mean([1 / (m + 1) for m in range(1, TINY.window)])
    assert found.sink == pytest.approx(1 - uniform, rel=1e-5)
    assert found.sink_rate == 1
    assert found.strongest > TINY.window
    assert abs(found.entropy) < 1e-6


def test_arms_of_a_seed_start_equal_and_read_as_asked(lab):
    a, b = (lab.build(swat.ARMS[name], 1).state_dict() for name in ("full", "balanced"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    as_trained = lab.losses("windowed", [2, 4])
    assert as_trained.shape == (2, 2)
    assert np.array_equal(as_trained, lab.losses("windowed", [2, 4], windowed=True))
    assert not np.allclose(as_trained, lab.losses("windowed", [2, 4], windowed=False))


def test_extrapolation_penalty_is_zero_for_the_arm_itself(lab, monkeypatch):
    penalty = lab.extrapolation_penalty()
    assert list(penalty) == [1, 2]
    # Were the arm trained at two windows the one trained at eight, nothing would be left.
    twin = lab.trained("windowed", 0), lab.trained("windowed", 1)
    for seed in range(2):
        monkeypatch.setitem(lab._trained, ("windowed_2", seed), twin[seed])
    assert lab.extrapolation_penalty()[2] == pytest.approx([0, 0], abs=1e-12)


def test_losses_of_all_lengths_read_the_same_bytes(lab):
    """A model that predicts the same distribution everywhere has the same loss at every length, but for the first
    byte of each piece, which nothing predicts."""
    model = lab.build(swat.ARMS["windowed"], 0)
    torch.nn.init.zeros_(model.lm_head.weight)
    found = swat.loss_by_length(model, lab.text().reshape(-1), [8, 64], tokens_per_length=lab.text().size)
    assert found[8].mean == pytest.approx(np.log(256), rel=1e-5)
    assert found[8].mean == pytest.approx(found[64].mean, rel=1e-6)


def test_counting_loss_is_the_formula(lab):
    text, p = lab.text().reshape(-1, 8 * TINY.window), TINY
    config = lab._schedule(p.tokens, 8 * p.window, 0)
    batches = swat.random_slices(lab.corpus.train, 8 * p.window, config.batch_size, 0)
    read = torch.cat([batches(step) for step in range(config.steps)]).numpy()
    pairs = np.zeros((256, 256))
    for row in read:
        for a, b in zip(row[:-1], row[1:], strict=True):
            pairs[a, b] += 1
    single = (pairs.sum(axis=0) + 0.1) / (pairs.sum() + 25.6)
    total = [
        -np.log((pairs[a, b] + 2 * single[b]) / (pairs[a].sum() + 2))
        for row in text
        for a, b in zip(row[:-1], row[1:], strict=True)
    ]
    assert lab.counting_loss()[0] == pytest.approx(np.mean(total), rel=1e-9)


def test_held_out_texts_are_spread_and_untouched_by_training(lab):
    text = lab.text()
    assert text.shape == (TINY.evaluation_tokens // (8 * TINY.window), 8 * TINY.window)
    assert np.array_equal(text[0], lab.corpus.validation[: text.shape[1]])
    assert np.array_equal(text[-1], lab.corpus.validation[-text.shape[1] :])


def test_recall_zones():
    n = swat.RECALL_ITEMS
    recall = swat.Recall(3, 4, 0.125, [1, 2, 3, 4, 5, 6], [n, n, n // 2, n // 4, 0, n // 8])
    zones = swat.recall_by_zone([recall, recall])
    means = {name: zone.mean for name, zone in zones.items()}
    assert means == pytest.approx({"inside": 1, "carried": 0.375, "at reach": 0.25, "beyond": 1 / 16})
    assert zones["inside"].n == 4 * n
    assert zones["inside"].low < 1
    assert swat.recall_curve([recall, recall])["y"] == pytest.approx([1, 1, 0.5, 0.25, 0, 0.125])


def test_recall_beyond_the_reach_is_chance_whatever_was_learnt(lab):
    zone = swat.recall_by_zone([lab.recall(0)["swat"]])["beyond"]
    assert zone.low < 0.125 < zone.high


def test_decoding_keeps_exactly_the_window(lab):
    model = lab.build(swat.ARMS["balanced"], 0)
    found = swat.decode(model, (TINY.window // 2, 3 * TINY.window, 200), rounds=2, tokens=4, chunk=16)
    assert found.cache_bytes[-1] == found.cache_bytes[1] == found.formula_bytes == 2 * 2 * 8 * 32 * 4
    assert len(found.ratios) == 2


def test_exponents_of_power_laws():
    x = np.array([1.0, 2.0, 4.0])
    assert swat.exponents(x, np.stack([3 * x, x**2])) == pytest.approx([1, 2])


def test_full_profile_says_how_far_a_cpu_scales_it_down(monkeypatch):
    monkeypatch.setitem(language.CORPORA, "books", language.CORPORA["standard"])
    lab = swat.Lab(swat.FULL, device="cpu")
    assert "Scaled down for a CPU" in lab.description()
    assert "50 times" in lab.description()
    assert lab.omitted().keys() == {"s18_loss_gap"}
    assert not lab.long_context_gap()
    assert lab.profile.profile == "full"


def test_paper_path_in_miniature(tmp_path, monkeypatch):
    """The code path of the published scale: streamed corpus, its tokenizer, harness benchmarks, long arms."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for name in ("web", "books"):
        rows = (json.dumps({"text": f"{name} {i} " * 40}) for i in range(200))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    question = {"question": "a", "choices": ["b", "c"], "answer": 0}
    (tmp_path / "task.jsonl").write_text("\n".join([json.dumps(question)] * 4))

    def corpus():
        files = {name: {"split": "train", "data_files": str(tmp_path / f"{name}.jsonl")} for name in ("web", "books")}
        return hub_corpus(
            "json", **files["web"], tokenizer=str(tmp_path / "tokenizer"), train_tokens=20_000, held_out_tokens=4_000,
            ood="json", ood_options=files["books"], folder=tmp_path / "tokens",
        )  # fmt: skip

    def local(model, tokenizer, tasks, **options):
        return harness.evaluate(
            model, tokenizer, [harness.multiple_choice(task, tmp_path / "task.jsonl") for task in tasks], **options
        )

    monkeypatch.setitem(language.CORPORA, "fineweb-edu", corpus)
    monkeypatch.setattr(swat, "TOKENIZER", str(tmp_path / "tokenizer"))
    monkeypatch.setattr(swat, "evaluate", local)
    monkeypatch.setenv("ZFU_CHECKPOINTS", str(tmp_path / "checkpoints"))
    small = {name: getattr(TINY, name) for name in ("seeds", "layers", "width", "window", "tokens", "batch_tokens")}
    lab = swat.Lab(replace(swat.PAPER, **small, evaluation_tokens=2048), device="cpu")
    assert lab.build(swat.ARMS["full"], 0).config.vocab_size == len(byte_tokenizer())
    gaps = lab.benchmark_gap()
    assert len(gaps) == 3
    assert all(gap.shape == (2,) and np.isfinite(gap).all() for gap in gaps.values())
    assert np.isfinite(lab.long_context_gap()["s18_loss_gap"]).all()
    assert (tmp_path / "checkpoints" / "swat-paper-full-0.safetensors").exists()
