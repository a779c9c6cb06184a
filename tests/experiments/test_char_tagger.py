"""The heads of the character models: against enumeration, and each learns a rule."""

from itertools import product

import pytest
import torch

from zfu_lib.experiments.char_tagger import Biaffine, ChainCrf, CharTagger, without_overlap
from zfu_lib.skills.spans import Sentence, Span, from_tags, stray_tags, to_tags

SENTENCES = [
    Sentence.of_characters(f"{a}熟悉{b}{c}。{d}", spans=((3, 5, "K"), *(((6, 7, "S"),) if d == "学" else ())))
    for a, b, c, d in product("甲乙", "天地", "风雨", "学休")
]


@pytest.fixture
def crf():
    torch.manual_seed(0)
    made = ChainCrf(3, ["K", "S"], 4)
    torch.nn.init.normal_(made.change_LL)
    return made


def every(crf, e_TL, change_LL):
    """All sequences of tags with their scores."""
    for path in product(range(len(crf.tags)), repeat=len(e_TL)):
        steps = sum(float(change_LL[a, b]) for a, b in zip(path, path[1:], strict=False))
        yield path, steps + sum(float(e_TL[t, y]) for t, y in enumerate(path))


def test_the_chain_sums_and_maximises_over_all_sequences(crf):
    batch = [
        Sentence.of_characters("甲乙丙", spans=((0, 2, "K"),)),
        Sentence.of_characters("丁", spans=((0, 1, "S"),)),
    ]
    x_BTD = torch.randn(2, 3, 3)
    e_BTL, change_LL = (x.detach() for x in crf.scores(x_BTD))
    losses, best = [], []
    for b, sentence in enumerate(batch):
        scored = list(every(crf, e_BTL[b, : len(sentence.tokens)], change_LL))
        total = torch.tensor([score for _, score in scored], dtype=torch.double).logsumexp(0)
        gold = tuple(crf.tags.index(tag) for tag in to_tags(sentence))
        losses.append(float(total) - dict(scored)[gold])
        best.append([crf.tags[t] for t in max(scored, key=lambda item: item[1])[0]])
    assert crf.loss(x_BTD, batch).item() == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert crf.decode(x_BTD, [3, 1]) == [from_tags(tags) for tags in best]
    assert not any(stray_tags(tags) for tags in best)


def test_the_chain_never_writes_what_bio_forbids(crf):
    with torch.no_grad():
        crf.score.bias += torch.tensor([0.0, -5, 5, -5, 5])  # I is what each character by itself would be
    for x_BTD in torch.randn(20, 1, 6, 3):
        said = [to_tags(Sentence.of_characters("甲" * 6, spans=spans)) for spans in crf.decode(x_BTD, [6])]
        assert not stray_tags(said[0])


def test_a_span_classifier_scores_its_formula_and_its_candidates_only():
    torch.manual_seed(0)
    head = Biaffine(3, ["K"], longest=2)
    torch.nn.init.normal_(head.u_CDD)
    x_BTD = torch.randn(1, 3, 3)
    one = torch.ones(1)
    i = torch.cat([head.first(x_BTD[0, 0]).relu(), one])
    j = torch.cat([head.last(x_BTD[0, 1]).relu(), one])
    assert head.scores(x_BTD)[0, 0, 1, 1].item() == pytest.approx((i @ head.u_CDD[1] @ j).item(), rel=1e-4)
    assert head.candidates([3, 2], x_BTD.device).nonzero().tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 2], [0, 2, 2], [1, 0, 0], [1, 0, 1], [1, 1, 1],
    ]  # fmt: skip
    ranked = [(-0.6, Span(0, 3, "K")), (-0.9, Span(2, 4, "K")), (-0.7, Span(4, 5, "S"))]
    assert without_overlap(ranked) == [Span(2, 4, "K"), Span(4, 5, "S")]


@pytest.mark.parametrize("head", ["softmax", "crf", "biaffine"])
def test_every_head_learns_a_rule_and_repeats_itself(head):
    one, two = (CharTagger(SENTENCES, steps=70, seed=0, head=head, rate=2e-2) for _ in range(2))
    said = one.predict(SENTENCES)
    assert said == [list(s.spans) for s in SENTENCES]
    assert said == two.predict(SENTENCES)
