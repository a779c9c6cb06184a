"""Chinese-SkillSpan (arXiv 2604.23009): its labels, its guideline as rules that run, and how a dispute is settled.

The paper's scheme has four labels, flat and verbatim: L language, S skill (an action), K knowledge, T transversal. Its
public guideline has thirty rules in prose; :data:`GUIDELINE` holds those a program can check, each with its number. A
rule that knows the right edges proposes them, others only object.

Where the guideline and the prompts contradict each other a choice is needed (:class:`Choices`); the defaults are this
book's reading. How the macro and the micro stage work beyond "a model pre-annotates, experts adjudicate sentence by
sentence" is not confirmed; :func:`macro` and :func:`resolve` are one way to do it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from zfu_lib.lm.protocol import GenRequest, LanguageModel, Message
from zfu_lib.skills.markers import Markers, encode
from zfu_lib.skills.spans import Sentence, Span
from zfu_lib.skills.verifier import Checked, feedback, is_punctuation, verify

LABELS = ("L", "S", "K", "T")
"""In the order the guideline falls back to where context does not decide (rule 10)."""

MEANING = {
    "L": "a natural language: ability, level or exam",
    "S": "an action that can be carried out: verb and object, or a tool used to do something",
    "K": "something known or held: field, law, standard, theory, tool as knowledge, qualification",
    "T": "a trait or capability of every occupation",
}
MARKERS = Markers(typed=True)
"""Markers with the label behind, ``@@...##[S]``, as the public prompts ask for."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words that rules look for. Longer ones first: they are tried in order.
DOING = _words("能够独立 主要负责 负责 参与 独立 协助 承担")
KNOWING = _words("系统学习过 具有扎实的 熟悉 掌握 了解 精通 熟知 持有 取得")
USING = re.compile(r"使用|运用|通过|用(?=[A-Za-z ])")
MODAL = _words("能够熟练 能够独立 能够 熟练 较好地完成 较好地 高效地 积极 良好的 较强的 优秀的 一定的 出色的 能 可")
SCENES = _words("在项目组内 跨部门 线上 线下 日常")
TAILS = _words("等相关知识 等相关专业 等工作 者优先 优先 以上 等 的")
NOT_ASKED = re.compile(r"公司(?!法)|集团|我们|提供|价值观|入职|月薪|底薪|薪资|福利|报名|公告|逾期|笔试|体检")
OFFERED = re.compile(r"培训|服务(?!意识)")
LANGUAGES = _words("英语 日语 韩语 法语 德语 俄语 西班牙语 粤语 普通话 雅思")
PARTICLES = "的了着过等地得"


class Finding(NamedTuple):
    """A span against a rule: which, where, why, and the span it should be (None: there is no mechanical answer)."""

    rule: str
    span: Span
    why: str
    better: Span | None = None


class Rule(NamedTuple):
    """A rule of the guideline: its number, what it says, and the test of one span of a sentence."""

    id: str
    says: str
    test: Callable[[Sentence, Span, Choices], Finding | None]


@dataclass(frozen=True)
class Choices:
    """Where guideline, prompts and later handbook disagree.

    Args:
        tool: label of a bare tool without a predicate (guideline K, prompts S).
        certificate: label of a language certificate (prompts and rule 18 L, first handbook K).
        longest: a span with more characters is taken for a whole clause.
    """

    tool: Literal["S", "K"] = "S"
    certificate: Literal["L", "K"] = "L"
    longest: int = 24


DEFAULT = Choices()


# Reading the surroundings.


def clause(sentence: Sentence, span: Span) -> tuple[int, int]:
    """Characters from the punctuation before a span to the one after it (enumeration commas do not end a clause)."""
    start, end = sentence.characters(span)
    text = sentence.text
    ends = [m.start() for m in re.finditer(r"[，；。！？]", text)]
    return max([e + 1 for e in ends if e < start], default=0), min([e for e in ends if e >= end], default=len(text))


def predicate(sentence: Sentence, span: Span) -> Literal["know", "do", "use", ""]:
    """Which kind of predicate governs a span: the last one before it in its clause, or one that begins the span."""
    start = sentence.characters(span)[0]
    before = sentence.text[clause(sentence, span)[0] : start]
    if USING.match(sentence.words(span)):
        return "use"
    places = [
        (before.rfind(word) + len(word), kind)
        for kind, several in (("know", KNOWING), ("do", DOING))
        for word in several
        if word in before
    ]
    places += [(found.end(), "use") for found in USING.finditer(before)]
    return max(places)[1] if places else ""


def asked(sentence: Sentence, span: Span) -> bool | None:
    """Scope test (rules 1 and 2): whether a clause asks something of the employee; None where no word tells."""
    start, end = clause(sentence, span)
    first, last = sentence.characters(span)
    before, after = sentence.text[start:first], sentence.text[last:end]
    if NOT_ASKED.search(before) or OFFERED.match(after):
        return False
    words = (*DOING, *KNOWING, *MODAL, "具备", "具有", "需要", "学历", "优先")
    return True if any(word in before or word in after for word in words) else None


# Rules.


def _moved(sentence: Sentence, span: Span, start: int, end: int) -> Span | None:
    """The span with other edges in characters; None where nothing would be left or a token would be cut."""
    starts = {a: i for i, (a, _) in enumerate(sentence.offsets)}
    ends = {b: i + 1 for i, (_, b) in enumerate(sentence.offsets)}
    if start in starts and end in ends and starts[start] < ends[end]:
        return span._replace(start=starts[start], end=ends[end])
    return None


def _label(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    if span.type not in LABELS:
        return Finding("g3", span, f"{span.type!r} is none of {', '.join(LABELS)}")
    return None


def _short(sentence: Sentence, span: Span, choices: Choices) -> Finding | None:
    words = sentence.words(span)
    if len(words) > choices.longest or re.search(r"[；。！？]", words[:-1]):
        return Finding("g5", span, f"{len(words)} characters: a whole duty, not the shortest piece that names it")
    return None


def _edges(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    """Modal and degree words before, tails and punctuation behind."""
    start, end = sentence.characters(span)
    text, moved = sentence.text, True
    while moved and start < end:
        moved = False
        # A trait may begin with such a word ("thinks independently"); an action does not.
        for word in (*DOING, *MODAL) if span.type == "S" else MODAL:
            if text.startswith(word, start) and start + len(word) < end:
                start, moved = start + len(word), True
                break
        for word in TAILS:
            if text.endswith(word, start, end) and end - len(word) > start:
                end, moved = end - len(word), True
                break
        while end > start + 1 and (is_punctuation(text[end - 1]) or text[end - 1].isspace()):
            end, moved = end - 1, True
        while start < end - 1 and (is_punctuation(text[start]) or text[start].isspace()):
            start, moved = start + 1, True
    better = _moved(sentence, span, start, end)
    if better and better != span:
        return Finding("g6", span, f"{sentence.words(span)!r} carries words that name nothing", better)
    return None


def _list(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    words = sentence.words(span)
    if "、" in words[1:-1] and span.type in "KTL":
        return Finding("g7", span, f"{words!r} lists items that stand alone: mark each")
    return None


def _scene(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    start, end = sentence.characters(span)
    for word in SCENES:
        if sentence.text.startswith(word, start) and (better := _moved(sentence, span, start + len(word), end)):
            return Finding("g8", span, f"{word!r} says where, not what", better)
    return None


def _numbers(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    start, end = sentence.characters(span)
    words = sentence.text[start:end]
    standard = re.match(r"(ISO|IEC|GB|GMP|GSP|IATF|HACCP)", words)
    if standard and (more := re.match(r"[/T\dA-Z]+", sentence.text[end:])):
        return Finding(
            "g9", span, "the number of a standard belongs to it", _moved(sentence, span, start, end + more.end())
        )
    version = re.search(r"(?<=[A-Za-z+#])\s*\d+(\.\d+)*$", words)
    if version and not standard and span.type in "KS":
        return Finding(
            "g9", span, "a version is no part of the name", _moved(sentence, span, start, start + version.start())
        )
    return None


def _type(sentence: Sentence, span: Span, choices: Choices) -> Finding | None:
    """The pairwise table: language itself is L; knowing is K, doing and using are S."""
    words, kind = sentence.words(span), predicate(sentence, span)
    if words.startswith(LANGUAGES):
        tested = re.search(r"[级等N\d]", words) is not None
        wanted = choices.certificate if tested else "L"
    elif kind == "use":
        wanted = "S"
    elif kind == "know" and span.type in "SK":
        wanted = "K"
    elif kind == "do" and span.type in "SK":
        wanted = "S"
    else:
        return None
    if span.type != wanted:
        return Finding("g10", span, f"{words!r} is {wanted} here", span._replace(type=wanted))
    return None


def _scope(sentence: Sentence, span: Span, _: Choices) -> Finding | None:
    if asked(sentence, span) is False:
        return Finding("g1", span, "the clause tells of the employer, pay or procedure and asks nothing")
    return None


GUIDELINE: tuple[Rule, ...] = (
    Rule("g1", "mark only what a duty or requirement asks for", _scope),
    Rule("g3", "the labels are L, S, K, T", _label),
    Rule("g5", "the shortest contiguous piece that can be typed on its own", _short),
    Rule("g6", "no politeness, degree or modal words, no tails", _edges),
    Rule("g7", "split a list if and only if each item stands alone", _list),
    Rule("g8", "scene modifiers stay outside", _scene),
    Rule("g9", "numbers of standards inside, versions of software outside", _numbers),
    Rule("g10", "type by predicate: knowing K, doing S; languages L", _type),
)
"""What a program can check. Flatness and verbatim text (rules 4 and 11) are properties of a Sentence."""


def review(sentence: Sentence, spans: Iterable[Span] | None = None, *, choices: Choices = DEFAULT) -> list[Finding]:
    """What the guideline has to say about the spans of a sentence, in order of spans and rules."""
    spans = sentence.spans if spans is None else tuple(spans)
    return [found for span in spans for rule in GUIDELINE if (found := rule.test(sentence, span, choices))]


def mend(sentence: Sentence, span: Span, *, choices: Choices = DEFAULT, types: bool = True) -> tuple[Span, list[str]]:
    """A span after every mechanical correction, and the rules that made one."""
    used: list[str] = []
    for _ in range(6):  # each step shortens the span or settles its type; six are more than enough
        better = next(
            (f for f in review(sentence, [span], choices=choices) if f.better and (types or f.rule != "g10")), None
        )
        if better is None or better.better == span:
            break
        span, used = better.better, [*used, better.rule]
    return span, used


# Macro: a model reads the sentence in its context.


def prompt(sentence: Sentence, *, title: str = "", before: str = "", after: str = "") -> list[Message]:
    """Turns that ask for a marked copy of a sentence: role, labels, rules, two examples, context, sentence.

    The wording is ours; its parts and their order follow the public prompt.
    """
    labels = "\n".join(f"[{label}] {MEANING[label]}" for label in LABELS)
    rules = "\n".join(f"- {rule.says}" for rule in GUIDELINE)
    one = "负责数据清洗，熟悉统计学。"
    shown = Sentence.of_characters(one, spans=((2, 6, "S"), (9, 12, "K")))
    two = Sentence.of_characters("具备良好的沟通能力，提供五险一金。", spans=((5, 9, "T"),))
    examples = "\n".join(f"{s.text}\n{encode(s, MARKERS)}" for s in (shown, two))
    context = "\n".join(
        f"{name}: {words}" for name, words in (("title", title), ("before", before), ("after", after)) if words
    )
    system = (
        "You annotate Chinese job ads. Copy the sentence unchanged and put @@ before and ##[label] after every "
        f"competence it asks for.\n{labels}\nRules:\n{rules}\nExamples:\n{examples}"
    )
    asked_for = f"{context}\nsentence:\n{sentence.text}" if context else sentence.text
    return [Message("system", system), Message("user", asked_for)]


class Silver(NamedTuple):
    """What the macro stage leaves: spans (None: hand work), the answers it took, and the codes of the last failure."""

    spans: tuple[Span, ...] | None
    answers: tuple[str, ...]
    codes: tuple[str, ...]


def macro(
    model: LanguageModel,
    sentences: Sequence[Sentence],
    *,
    titles: Sequence[str] | None = None,
    retries: int = 2,
    max_tokens: int = 512,
) -> list[Silver]:
    """P1 and P2: pre-annotate sentences in order, check answers, ask again with feedback, else leave it to a person.

    The window of context is the sentence before and the one after. An answer that is not a legal marking of its
    sentence is never used: no invented, reworded or nested text can become silver.
    """
    found: list[Silver] = []
    for i, sentence in enumerate(sentences):
        near = [sentences[j].text if 0 <= j < len(sentences) else "" for j in (i - 1, i + 1)]
        turns = prompt(sentence, title=titles[i] if titles else "", before=near[0], after=near[1])
        answers: list[str] = []
        checked = Checked(())
        for _ in range(1 + retries):
            answer = model.generate([GenRequest(turns, max_tokens=max_tokens)])[0].text
            answers.append(answer)
            checked = verify(sentence, answer, MARKERS, types=LABELS)
            if checked.ok:
                break
            turns = [*turns, Message("assistant", answer), Message("user", feedback(sentence, checked, MARKERS))]
        found.append(Silver(checked.spans if checked.ok else None, tuple(answers), checked.codes))
    return found


# Micro: coders disagree; the guideline decides what it can.


class Decision(NamedTuple):
    """How a dispute ended: the span (None: nothing is marked), its kind (scope, boundary or type), and the rule.

    ``open`` is True where nothing decided: the span is provisional and its sentence is quarantined.
    """

    span: Span | None
    kind: Literal["scope", "boundary", "type"]
    rule: str
    open: bool = False


def disputes(layers: Sequence[Sequence[Span]]) -> tuple[tuple[Span, ...], list[list[list[Span]]]]:
    """Spans that every coder has, and the disputes: groups of overlapping spans, with those of each coder."""
    common = set(layers[0]).intersection(*layers[1:])
    rest = sorted({span for layer in layers for span in layer} - common)
    groups: list[list[Span]] = []
    reach = -1
    for span in rest:
        if groups and span.start < reach:
            groups[-1].append(span)
        else:
            groups.append([span])
        reach = max(reach, span.end) if len(groups[-1]) > 1 else span.end
    by_coder = [[[s for s in group if s in set(layer)] for layer in layers] for group in groups]
    return tuple(sorted(common)), by_coder


def resolve(sentence: Sentence, group: Sequence[Sequence[Span]], *, choices: Choices = DEFAULT) -> list[Decision]:
    """P5: settle one dispute by scope, then boundary, then type.

    Scope: the clause decides, else the majority of coders. Boundary: candidates are mended; if they then agree the
    rule that mended them decides, else the candidates that no rule objects to, by majority, the finest segmentation
    first (a list is split if its items stand alone, and otherwise none of them objects to the whole). Type: the
    pairwise table, else the majority. What is still open stays a provisional S.

    Args:
        group: the disputed spans of each coder; an empty list means that coder marked nothing there.
    """
    marked = [layer for layer in group if layer]
    every = [span for layer in marked for span in layer]
    views = [asked(sentence, span) for span in every]
    everyone = len(marked) == len(group)
    if not everyone:
        scope = False if False in views else True if True in views else None
        if scope is None and 2 * len(marked) != len(group):
            scope = 2 * len(marked) > len(group)
        if scope is False:
            return [Decision(None, "scope", "g1" if False in views else "majority")]
        if scope is None:
            return [Decision(max(every, key=_length)._replace(type="S"), "scope", "none", True)]
    mended = [tuple(sorted({mend(sentence, s, choices=choices)[0] for s in layer})) for layer in marked]
    kind: Literal["scope", "boundary", "type"] = "scope" if not everyone else "boundary"
    if len({tuple((s.start, s.end) for s in layer) for layer in marked}) == 1 and everyone:
        kind = "type"
    ways = Counter(tuple((s.start, s.end) for s in layer) for layer in mended)
    clean = {
        way
        for way, layer in ((tuple((s.start, s.end) for s in m), m) for m in mended)
        if not any(f.rule in ("g5", "g6", "g7", "g8", "g9") for f in review(sentence, layer, choices=choices))
    }
    best = max(ways, key=lambda way: (way in clean, ways[way], len(way), -sum(b - a for a, b in way)))
    rule = "g5" if len(ways) > 1 else "g6"
    decided = []
    for start, end in best:
        votes = Counter(s.type for layer in mended for s in layer if (s.start, s.end) == (start, end))
        label, count = max(votes.items(), key=lambda item: (item[1], -LABELS.index(item[0])))
        tie = sum(v == count for v in votes.values()) > 1
        span = Span(start, end, label)
        if tie:
            settled = [f for f in [_type(sentence, span, choices)] if f]
            known = predicate(sentence, span) != "" or sentence.words(span).startswith(LANGUAGES)
            span = settled[0].better if settled else span
            if not known:
                decided.append(Decision(span._replace(type="S"), "type", "none", True))
                continue
        decided.append(Decision(span, kind, "g10" if kind == "type" else rule))
    return decided


def _length(span: Span) -> int:
    return span.end - span.start
