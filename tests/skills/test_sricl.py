"""The loop of SRICL with models whose answers are known: what is asked, what is accepted, what is asked again."""

import numpy as np
import pytest

from zfu_lib.experiments.span_models import Answerer
from zfu_lib.lm.protocol import Ledger
from zfu_lib.skills import prompts, sricl
from zfu_lib.skills.markers import MARKERS, Markers, encode
from zfu_lib.skills.prompts import TASKS, Context
from zfu_lib.skills.spans import Sentence, Span

TASK = TASKS["skillspan"]
X = Sentence(("use", "SQL", "and", "write", "tests", "."), ((1, 2), (3, 5)), id="x", meta={"posting": "p1"})
Y = Sentence(("we", "are", "in", "Leeds", "."), (), id="y", meta={"posting": "p2"})
RIGHT = {s.text: encode(s) for s in (X, Y)}
NOTHING = sricl.Config(k_demos=0, k_definitions=0)


def asked(request) -> str:
    return next(t.content for t in request.prompt if t.content.startswith("Sentence: ")).removeprefix("Sentence: ")


def scripted(*answers):
    """Gives these answers to X in turn; Y is always right. Keeps what it was asked."""
    seen = []

    def answer(request):
        seen.append(request)
        if asked(request) == Y.text:
            return RIGHT[Y.text]
        return answers[sum(t.role == "assistant" for t in request.prompt)]

    model = Answerer("scripted", answer)
    model.seen = seen
    return model


def test_a_right_answer_is_taken_at_once_and_gold_is_never_looked_at():
    ledger = Ledger()
    blind = [X.with_spans(()), Y]
    found = sricl.extract(scripted(RIGHT[X.text]), blind, TASK, NOTHING, ledger=ledger)
    assert [o.status for o in found] == ["ok", "ok"]
    assert [o.spans for o in found] == [X.spans, ()]
    assert len(ledger.calls) == 2


def test_a_wrong_answer_is_asked_again_with_the_reason_and_only_that_one():
    wrong = RIGHT[X.text].replace("@@SQL##", "@@SQL")
    model = scripted(wrong, RIGHT[X.text])
    found = sricl.extract(model, [X, Y], TASK, NOTHING)
    assert found[0].spans == X.spans
    assert [len(o.attempts) for o in found] == [2, 1]
    *_, said, told = model.seen[-1].prompt
    assert said.content == wrong
    assert told.content.startswith("Every @@ needs one ## after it")
    assert told.content.endswith("keep them: write tests.")


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_retries_are_counted_and_a_failure_is_none(retries):
    model = scripted(*["nonsense @@"] * 3)
    (found,) = sricl.extract(model, [X], TASK, sricl.Config(k_demos=0, k_definitions=0, retries=retries))
    assert (found.status, found.spans, len(found.attempts)) == ("failed", None, retries + 1)


def test_modules_off():
    wrong = RIGHT[X.text].replace("@@SQL##", "@@Java##")
    one = {"k_demos": 0, "k_definitions": 0, "retries": 0}
    (off,) = sricl.extract(scripted(wrong), [X], TASK, sricl.Config(**one, verify=False))
    assert (off.status, off.spans) == ("salvaged", (Span(3, 5),))
    (kept,) = sricl.extract(scripted(wrong), [X], TASK, sricl.Config(**one, salvage=True))
    assert (kept.status, kept.spans) == ("salvaged", (Span(3, 5),))
    (mended,) = sricl.extract(scripted(wrong), [X], TASK, sricl.Config(**one, repair=True))
    assert (mended.status, mended.spans) == ("repaired", (Span(3, 5),))
    assert mended.attempts[0].checked.repairs == ("r6",)
    assert not mended.first.ok, "the first answer stays counted as invalid"
    silent = scripted(wrong, "never reached", "never reached")
    (again,) = sricl.extract(silent, [X], TASK, sricl.Config(k_demos=0, k_definitions=0, explain=False))
    assert again.status == "failed"
    assert len({r.prompt for r in silent.seen}) == 1


def test_gate_and_second_pass():
    def gate(sentences):
        return np.array([0.9 if s.text == X.text else 0.1 for s in sentences])

    def answer(request):
        system, user = request.prompt[0].content, request.prompt[-1].content
        if "You review" not in system:
            return RIGHT[X.text]
        text = user.partition("Sentence: ")[2].partition("\n")[0]
        return {X.text: "use @@SQL## and write tests .", Y.text: "we are in @@Leeds## ."}[text]

    options = {"k_demos": 0, "k_definitions": 0, "check": "balanced"}
    soft = sricl.extract(Answerer("a", answer), [X, Y], TASK, sricl.Config(gate="soft", **options), gate=gate)
    assert [o.spans for o in soft] == [(Span(1, 2),), (Span(3, 4),)]
    hard = sricl.extract(Answerer("a", answer), [X, Y], TASK, sricl.Config(gate="hard", **options), gate=gate)
    assert [(o.spans, o.status) for o in hard] == [((Span(1, 2),), "ok"), ((), "gated")]
    high = sricl.Config(gate="soft", **options | {"check": "high"})
    found = sricl.extract(Answerer("a", answer), [X, Y], TASK, high, gate=gate)
    assert [o.spans for o in found] == [(Span(1, 2),), ()], "high precision adds nothing"
    with pytest.raises(ValueError, match="needs a function"):
        sricl.extract(Answerer("a", answer), [X], TASK, sricl.Config(gate="hard"))


def test_connector_normalisation_of_the_result():
    joined = "@@use SQL and## write tests ."
    config = sricl.Config(k_demos=0, k_definitions=0, normalise=True)
    (found,) = sricl.extract(scripted(joined), [X], TASK, config)
    assert found.spans == (Span(0, 2),)
    (split,) = sricl.extract(
        scripted("@@use SQL and write tests## ."), [X], TASK, config, known={"use sql", "write tests"}
    )
    assert split.spans == (Span(0, 2), Span(3, 5))


def test_an_illegal_correction_changes_nothing():
    def answer(request):
        return "@@" if "You review" in request.prompt[0].content else RIGHT[X.text]

    config = sricl.Config(k_demos=0, k_definitions=0, check="balanced")
    (found,) = sricl.extract(Answerer("a", answer), [X], TASK, config)
    assert (found.spans, found.reviewed) == (X.spans, False)


def test_markers_avoid_the_text():
    c = Sentence(("use", "C#", "@", "home"), ((1, 2),))

    def answer(request):
        assert "⟦" in request.prompt[0].content
        return "use ⟦C#⟧ @ home"

    (found,) = sricl.extract(Answerer("a", answer), [c], TASK, NOTHING)
    assert found.spans == c.spans


# Retrieval.

POOL = [
    X,
    Sentence(("use", "SQL", "daily", "."), ((1, 2),), id="a", meta={"posting": "p1"}),
    Sentence(("Use", "SQL", "and", "write", "tests", "2", "!"), ((1, 2),), id="b", meta={"posting": "p3"}),
    Sentence(("write", "tests", "and", "use", "SQL", "well"), ((0, 2), (3, 5)), id="c", meta={"posting": "p4"}),
    Sentence(("our", "office", "is", "in", "Leeds", "."), (), id="d", meta={"posting": "p5"}),
]


@pytest.mark.parametrize("by", ["bm25", "dense", "fused", "random"])
def test_a_sentence_its_text_and_its_posting_are_never_shown(by):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = sricl.Store(POOL, vectors, vectors[::-1].copy())
    assert store.excluded(X) == {0, 1, 2}, "itself, its posting, its text but for case, digits and punctuation"
    (near,) = store.near([X], 3, by=by, vectors_QD=vectors[:1])
    assert {s.id for s, _ in near} <= {"c", "d"}
    (free,) = store.near([Sentence(("unrelated", "SQL"), id="q")], 2, by=by, vectors_QD=vectors[3:4])
    assert len(free) == 2


def test_similarity_is_the_mixture():
    rng = np.random.default_rng(1)
    anchors, phrases, query = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), rng.normal(size=(1, 4))
    q = Sentence(("something", "else"), id="q")
    near = sricl.Store(POOL, anchors, phrases, alpha=0.7).near([q], 5, vectors_QD=query)[0]
    expected = 0.7 * query @ anchors.T + 0.3 * query @ phrases.T
    assert [s for _, s in near] == pytest.approx(np.sort(expected[0])[::-1], rel=1e-5)
    assert sricl.anchored(X) == "use [SKILL] SQL [/SKILL] and [SKILL] write tests [/SKILL] ."
    assert sricl.skill_phrases(X) == "SQL ; write tests"
    assert sricl.skill_phrases(Y) == Y.text


def test_definitions_below_the_threshold_are_dropped():
    entries = [("SQL", "a language"), ("baking", "bread")]
    dense = sricl.Definitions(entries, np.eye(2))
    (near,) = dense.near([X], 2, least=0.6, vectors_QD=np.array([[0.9, 0.1]]))
    assert [entry for entry, _ in near] == [entries[0]]
    (found,) = sricl.Definitions(entries).near([X], 2, least=0.0)
    assert [entry for entry, _ in found] == [entries[0]]


def test_contexts_put_the_nearest_last():
    store = sricl.Store(POOL)
    config = sricl.Config(k_demos=2, k_definitions=0)
    (context,) = sricl.retrieve([Sentence(("write", "SQL", "well"), id="q")], config, store=store, by="bm25")
    assert context.demonstrations[-1].id == "c"


# Prompts.


def test_prompt_holds_its_parts_in_order():
    context = Context((POOL[3],), (("SQL", "a language of data bases"),))
    system, user, assistant, last = prompts.ask(X, TASK, context, MARKERS)
    assert "ESCO" in system.content
    assert "@@ before and ## after" in system.content
    assert (user.content, assistant.content) == (f"Sentence: {POOL[3].text}", encode(POOL[3]))
    assert last.content.index("a language of data bases") < last.content.index(f"Sentence: {X.text}")
    typed = prompts.rules(prompts.Task("t", "x", types=("K", "S")), Markers(typed=True))
    assert "one of K, S" in typed


def test_all_six_corpora_have_a_task():
    assert set(TASKS) >= {"skillspan", "kompetencer", "sayfullina", "fijo", "green", "gnehm"}
    for task in TASKS.values():
        for demo in task.demonstrations:
            encode(demo)


def test_plain_style():
    config = sricl.Config(k_demos=0, k_definitions=0, style="plain", markers=Markers(spaced=True))
    context = Context((POOL[1],), (("SQL", "…"),))
    (turn,), answer = sricl.training_pair(X, TASKS["jobads"], context, config)
    assert turn.content == f"Skills : SQL\nExample : use @@ SQL ## daily .\nSentence : {X.text}\nMarked :"
    assert answer == " use @@ SQL ## and @@ write tests ## .\n"
    (retry,) = prompts.again((turn,), "use SQL", "V4", "plain", keep=X.text)
    assert retry.content.endswith(f"\nAnswer : use SQL\nError : V4\nSentence : {X.text}\nMarked :")
    (twice,) = prompts.again((retry,), "use", "V1", "plain", keep=X.text)
    assert twice.content.count("Answer :") == 1, "the newest failure only"


def test_alpaca_and_varied():
    record = sricl.alpaca(X, TASK, Context())
    assert (record["input"], record["output"]) == (X.text, RIGHT[X.text])
    assert "Copy the sentence unchanged" in record["instruction"]
    context = Context(tuple(POOL[:3]), (("a", ""), ("b", "")))
    rng = np.random.default_rng(0)
    sizes = {(len(c.demonstrations), len(c.definitions)) for c in (sricl.varied(context, rng) for _ in range(200))}
    assert sizes == {(i, j) for i in range(4) for j in range(3)}
    kept = sricl.varied(context, np.random.default_rng(3)).demonstrations
    assert kept == context.demonstrations[len(context.demonstrations) - len(kept) :], "the nearest stay"


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="retries = -1, threshold = 2"):
        sricl.Config(retries=-1, threshold=2)
    with pytest.raises(ValueError, match="1 sentences and 0 contexts"):
        sricl.extract(scripted(""), [X], TASK, NOTHING, contexts=[])
    with pytest.raises(ValueError, match="needs vectors"):
        sricl.Store(POOL).near([X], 1)
    with pytest.raises(ValueError, match="5 sentences and 2 vectors"):
        sricl.Store(POOL, np.eye(2))
