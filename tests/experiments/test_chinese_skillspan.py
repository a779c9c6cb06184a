"""The measurements of the Chinese-SkillSpan chapter: small runs, known answers, sabotage, the published scale in
miniature."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from zfu_lib.data import catalogue
from zfu_lib.experiments import chinese_skillspan as x
from zfu_lib.experiments import simulated_coders as simulated
from zfu_lib.experiments.chinese_skillspan import Lab
from zfu_lib.experiments.simulated_coders import EXPERT, MODEL, Coder
from zfu_lib.lm.encoder import TextEncoder
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.tokenizer import byte_tokenizer, word_tokenizer
from zfu_lib.report import claims, statistics, verdicts
from zfu_lib.skills import agreement, metrics
from zfu_lib.skills.spans import Sentence, Span

SMALL = replace(x.QUICK, seeds=2, train=60, test=40, coded=40, tagger_steps=5, calibrated=8, fits=8)


@pytest.fixture(scope="module")
def lab():
    made = Lab(SMALL, device="cpu")
    tokenizer = word_tokenizer(["a", "b"])
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    torch.manual_seed(0)
    made._kept["encoder",] = TextEncoder(BertModel(settings), tokenizer, name="miniature", normalise=True)
    return made


def test_every_measurement_of_the_claims_is_made(lab):
    """Names in the claims file against what the chapter measures, in a run too small to mean anything."""
    pairs = x.pairs(lab)
    assert all(len(a) == len(b) == 2 and np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs.values())
    made = {*pairs, *x.table_audit(), *x.calibration_errors(x.calibration(lab)), "c1_violations"}
    needed = {
        condition.measurement
        for claim in claims.load("chinese_skillspan").claims
        for test in claim.test.values()
        for condition in (*test.requires, *test.conditions)
    }
    assert needed <= made
    assert x.violations(lab) == 0
    assert x.model_scores(lab) == {}


def test_worlds_differ_by_seed_and_training_never_sees_test(lab):
    assert lab.ads(0, "train") != lab.ads(1, "train")
    assert not {ad.posting for ad in lab.ads(0, "train")} & {ad.posting for ad in lab.ads(0, "test")}
    assert {ad.source for ad in lab.ads(0, "train", mix="imbalanced")} <= {"tech", "graduate"}
    assert "asks for 16000" in Lab(replace(x.FULL, sample=False), device="cpu").description()


def test_tables_are_audited_and_a_typing_error_would_be_found(monkeypatch):
    found = x.table_audit()
    assert found["a1_parts"] < 0.0021
    assert found["a2_recount"] == pytest.approx(6864 / 3237 / 2.306 - 1)
    wrong = {**x.quoted(), "agreement": {"rows": {"strict": [0.707, 0.426, 0.632], "relaxed": [0.829, 0.5, 0.624]}}}
    monkeypatch.setattr(x, "quoted", lambda: wrong)
    claim = next(c for c in claims.load("chinese_skillspan").claims if c.id.endswith("A1"))
    measured = {name: statistics.exact(value) for name, value in x.table_audit().items()}
    assert verdicts.judge(claim, "quick", measured).verdict == "does not add up"


def test_a_perfect_coder_errs_nowhere_and_each_rate_does_its_own(lab):
    ads = lab.ads(0, "coded")
    truth = [x.sentence_of(ad) for ad in ads]
    gold = [s.spans for s in truth]
    perfect = simulated.code(ads, Coder(), np.random.default_rng(0))
    assert [tuple(s) for s in perfect] == gold
    for coder, seen in ((Coder(recall=0.5), "scope"), (Coder(edges=0.5), "boundary"), (Coder(types=0.5), "type")):
        counts = agreement.split_of(gold, simulated.code(ads, coder, np.random.default_rng(1)))
        errors = {k: v for k, v in counts.items() if k != "same"}
        assert errors[seen] > 0
        assert sum(errors.values()) == errors[seen], "one rate, one kind of error"
    spurious = simulated.code(ads, Coder(spurious=1.0), np.random.default_rng(0))
    assert metrics.strict(gold, spurious).score().recall == 1.0
    assert metrics.strict(gold, spurious).score().precision < 1.0


def test_assistance_at_its_limits(lab):
    ads = lab.ads(0, "coded")
    blind = simulated.code(ads, EXPERT, np.random.default_rng(0))
    silver = simulated.code(ads, MODEL, np.random.default_rng(1))
    for notices, wanted in ((1.0, blind), (0.0, silver)):
        found = simulated.assisted(ads, silver, blind, np.random.default_rng(2), notices)
        assert found == wanted
    assert simulated.assisted(ads, [None] * len(ads), blind, np.random.default_rng(2)) == blind


def test_a_chain_with_a_perfect_model_and_attentive_experts_ends_at_the_truth(lab, monkeypatch):
    monkeypatch.setattr(x, "EXPERT", Coder())
    done = x.chain(lab, 0, coder=Coder(), breaks=0.0, n=30)
    assert [tuple(s) for s in done.gold] == [x.sentence_of(ad).spans for ad in done.ads]
    assert done.project.effort().edits == 0
    broken = x.chain(lab, 0, coder=Coder(), breaks=1.0, n=30)
    assert all(spans == () for spans in broken.silver), "no answer was legal, none became silver"


def test_pooling_finds_skill_where_there_is_none(lab):
    gold, said = [[Span(0, 2, "S")], []], [[], [Span(0, 2, "S")]]
    assert x.pooled(gold, said) == 1.0
    assert metrics.strict(gold, said).score().f1 == 0.0
    one = [[Span(0, 2, "S")]]
    assert x.pooled(one, one) == metrics.strict(one, one).score().f1 == 1.0
    row = x.scores(lab, 0)["unrelated"]
    assert row["pooled"] > row["typed, all sentences"]


def test_shifted_tags_are_one_longer_and_never_overlap(lab):
    for sentence in lab.test(0):
        moved = x.shifted(sentence)
        assert all(0 <= b.end - a.end <= 1 and a.start == b.start for a, b in zip(sentence.spans, moved.spans))
    touching = Sentence.of_characters("数据清洗", spans=((0, 2, "S"), (2, 4, "K")))
    assert x.shifted(touching) == touching


def test_a_coarser_scheme_holds_every_span(lab):
    for ad in lab.ads(0, "train"):
        wide = x.coarse(ad)
        assert all(any(w.start <= m.start and m.end <= w.end for w in wide.spans) for m in ad.spans)


def test_fast_figures_equal_the_report(lab):
    ads = lab.ads(0, "coded")
    layers = [simulated.code(ads, EXPERT, np.random.default_rng(k)) for k in range(3)]
    texts = [x.sentence_of(ad, gold=False) for ad in ads]
    made = agreement.report(texts, layers, resamples=0)
    reached = x._reached(ads, layers, "b")
    assert reached == pytest.approx({k: getattr(made, k).value for k in ("strict", "boundary", "alpha")})
    two = agreement.report(texts, layers[:2], resamples=0)
    reached = x._reached(ads, layers[:2], "a")
    assert reached["kappa"] == pytest.approx(two.kappa.value)
    assert reached["relaxed"] == pytest.approx(two.relaxed.value)


def test_edges_alone_keep_precision_and_recall_equal(lab):
    _, layers = x.coders(lab, 0, (Coder(edges=0.4), Coder(edges=0.1)))
    score = metrics.strict(*layers).score()
    assert score.precision == score.recall


def test_a_sabotaged_adjudicator_loses_its_verdict(lab, monkeypatch):
    """Where every dispute ends in nothing, the adjudicated set is no better than the silver."""
    from zfu_lib.skills import chinese_skillspan as method

    monkeypatch.setattr(method, "resolve", lambda *_, **__: [method.Decision(None, "scope", "g1")])
    monkeypatch.setattr(method, "disputes", lambda layers: ((), [[[s] for s in layers[0]] or [[]]]))
    other = Lab(SMALL, device="cpu")
    worth = x.chain_scores(other)
    claim = next(c for c in claims.load("chinese_skillspan").claims if c.id.endswith("C4"))
    measured = {
        "c4_gain": statistics.paired(worth["adjudicated"], worth["silver"]),
        "c4_edits_saved": statistics.exact(1.0),
    }
    assert measured["c4_gain"].mean < 0
    assert verdicts.judge(claim, "quick", measured).verdict in ("not reproduced", "inconclusive")


def test_the_sample_is_counted_and_none_of_its_text_comes_out(monkeypatch):
    text = "某公司负责编制年度预算"
    rows = [
        {"sentence": text, "global_id": g, "source_domain": "应届生招聘", "skill_spans": []} for g in ("1", "1", "2")
    ]
    monkeypatch.setattr(x, "table", lambda *_: rows)
    found = x.sample_statistics()
    assert found["all"] == found["graduate"]
    assert found["all"]["sentences"] == 3
    assert found["all"]["repeated"] == pytest.approx(2 / 3)
    assert text not in repr(found)
    assert x.sample_length()[:3] == (11.0, 11.0, 11.0)


@pytest.mark.skipif(
    "missing" in map(str, catalogue.verify("chinese_skillspan").values()), reason="the real sample is not here"
)
def test_the_real_sample_has_no_labels():
    assert x.sample_statistics()["all"]["labels"] == 0


def test_the_published_scale_in_miniature(tmp_path):
    """The code path of the paper profile: a Llama of one layer, prompted, tuned by LoRA, decoded and scored."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8192, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    profile = replace(
        x.PAPER, seeds=2, train=4, test=2, base=f"hf:{tmp_path}", sft_steps=2, sft_batch=1, context=4096, max_tokens=8,
        sample=False,
    )  # fmt: skip
    lab = Lab(profile, device="cpu")
    found = x.model_scores(lab)
    assert list(found) == ["prompted", "LoRA"]
    assert all(len(rows) == 2 for rows in found.values())
    base = TransformersLM(str(tmp_path), device="cpu")
    before = base.model.model.layers[0].self_attn.q_proj.weight.clone()
    x.fine_tune(lab, base, 0)
    layer = base.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.base.weight, before), "the base stays"
    assert layer.b.abs().sum() > 0, "the addition learns"
