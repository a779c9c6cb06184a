"""Extractors on sentences whose spans are obvious; LoRA against its formula; the corrupting generator."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from zfu_lib.experiments import corruption
from zfu_lib.experiments.span_models import Crf, Lexicon, Tagger, adapter, add_lora, gazetteer_marks, use_adapter
from zfu_lib.experiments.sricl import generated
from zfu_lib.lm.encoder import TextEncoder
from zfu_lib.lm.protocol import GenRequest
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.skills import metrics, prompts
from zfu_lib.skills.markers import MARKERS, encode
from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import verify

TRAIN, TEST = generated(120, 1), generated(60, 2)


def f1(predicted):
    return metrics.strict([s.spans for s in TEST], predicted).score().f1


def test_lexicon_matches_longest_first():
    train = [Sentence(("team", "work"), ((0, 1),)), Sentence(("team", "work"), ((0, 2, "S"),))]
    found = Lexicon(train).predict([Sentence(("Team", "work", "and", "team", "spirit"))])
    assert found == [[Span(0, 2, "S"), Span(3, 4)]]
    assert Lexicon([Sentence(("a",))]).predict(TEST[:1]) == [[]]


def test_crf_beats_the_lexicon_and_is_repeatable():
    crf = Crf(TRAIN, iterations=40)
    predicted = crf.predict(TEST)
    assert f1(predicted) > f1(Lexicon(TRAIN).predict(TEST)) + 0.05
    assert predicted == Crf(TRAIN, iterations=40).predict(TEST)


def test_labels_mark_their_words():
    labels = {"team work", "sql", "work"}
    assert gazetteer_marks(("good", "Team", "work", "SQL", "sql"), labels) == [False, True, True, True, False]


@pytest.fixture(scope="module")
def encoder():
    """The architecture of the real encoder in miniature."""
    tokenizer = word_tokenizer(sorted({t for s in (*TRAIN, *TEST) for t in s.tokens}))
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    return TextEncoder(BertModel(settings), tokenizer, name="miniature")


def test_tagger_learns_and_leaves_the_encoder_alone(encoder):
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    few = TRAIN[:16]
    tagger = Tagger(encoder, few, steps=120, seed=0, rate=3e-3, frozen=1)
    assert all(torch.equal(p, before[name]) for name, p in encoder.model.named_parameters())
    learnt = metrics.strict([s.spans for s in few], tagger.predict(few)).score().f1
    assert learnt > 0.8, "sixteen sentences can be learnt by heart"
    assert torch.equal(tagger.body.embeddings.word_embeddings.weight, encoder.model.embeddings.word_embeddings.weight)
    states, chances = tagger.read(few)
    assert [len(x) for x in states] == [len(s.tokens) for s in few]
    assert all(x.sum(axis=1) == pytest.approx(np.ones(len(x)), abs=1e-5) for x in chances)


def test_a_frozen_encoder_is_read_once(encoder, monkeypatch):
    kept = {}
    tagger = Tagger(encoder, TRAIN, steps=300, seed=0, frozen=2, states=kept)
    assert set(kept) == {s.tokens for s in TRAIN}
    assert tagger.body is encoder.model
    states, _ = tagger.read(TEST)
    alone, rows, _ = tagger._states(TEST[:1])
    assert states[0] == pytest.approx(alone.detach().numpy(), abs=1e-4)
    monkeypatch.setattr(tagger, "_states", lambda batch: pytest.fail("computed again"))
    assert f1(tagger.predict(TEST)) > 0.05, "random states, linear head: little, but something"
    assert Tagger(encoder, TRAIN, steps=300, seed=0, frozen=2, states=kept).predict(TEST) == tagger.predict(TEST)


def test_lora_is_its_formula_and_can_be_exchanged():
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(6, 4), "other": nn.Linear(6, 4)})
    x, old = torch.randn(3, 6), model["q_proj"](torch.eye(6))
    layers = add_lora(model, rank=2, alpha=8, dropout=0.0)
    assert len(layers) == 1
    assert torch.allclose(model["q_proj"](torch.eye(6)), old), "zero at the start"
    nn.init.normal_(layers[0].b)
    expected = x @ layers[0].base.weight.T + layers[0].base.bias + 4 * x @ (layers[0].b @ layers[0].a).T
    assert torch.allclose(model["q_proj"](x), expected, atol=1e-5)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["q_proj.a", "q_proj.b"]
    learnt = adapter(layers)
    use_adapter(layers, None)
    assert torch.allclose(model["q_proj"](torch.eye(6)), old)
    layers[0].reset()
    use_adapter(layers, learnt)
    assert torch.allclose(model["q_proj"](x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no linear layer"):
        add_lora(nn.ModuleDict({"x": nn.Linear(2, 2)}))


# The corrupting generator.


@pytest.mark.parametrize("kind", corruption.FORMAT_ERRORS)
def test_every_format_error_is_seen(kind):
    rng = np.random.default_rng(0)
    for sentence in itertools.islice((s for s in TEST if s.spans), 20):
        assert not verify(sentence, corruption.spoil(sentence, kind, rng)).ok


@pytest.mark.parametrize("kind", corruption.CONTENT_ERRORS)
def test_no_content_error_is_seen(kind):
    rng = np.random.default_rng(0)
    for sentence in itertools.islice((s for s in TEST if s.spans), 20):
        checked = verify(sentence, corruption.spoil(sentence, kind, rng))
        assert checked.ok
        assert checked.spans != sentence.spans or sentence.spans[0] == Span(0, 1)


def question(sentence, *more):
    turns = prompts.ask(sentence.with_spans(()), prompts.TASKS["skillspan"], prompts.Context(), MARKERS)
    return GenRequest((*turns, *more))


def test_the_error_rate_is_the_one_asked_for():
    rate, n = 0.3, 0
    for seed in range(20):
        model = corruption.corruptor(TEST, rate, seed)
        answers = model.generate([question(s) for s in TEST])
        n += sum(not verify(s, a.text).ok for s, a in zip(TEST, answers))
    total = 20 * len(TEST)
    # Four standard deviations of a binomial; repeated sentences are asked the same question and count once more.
    assert abs(n / total - rate) < 6 * np.sqrt(rate * (1 - rate) / total)


def test_the_same_question_has_the_same_answer_and_feedback_draws_anew():
    model = corruption.corruptor(TEST, 0.5, 0)
    asked = [question(s) for s in TEST]
    first, second = model.generate(asked), model.generate(asked)
    assert [a.text for a in first] == [a.text for a in second]
    told = [question(s, ("assistant", a.text), ("user", "again")) for s, a in zip(TEST, first)]
    assert [a.text for a in model.generate(told)] != [a.text for a in first]
    heeding = corruption.corruptor(TEST, 0.5, 0, heeds=1.0)
    assert [a.text for a in heeding.generate(told)] == [encode(s) for s in TEST]
    with pytest.raises(ValueError, match="0..1"):
        corruption.corruptor(TEST, 1.5, 0)
    with pytest.raises(ValueError, match="no error 'x'"):
        corruption.spoil(TEST[0], "x", np.random.default_rng(0))
