import re
from collections import Counter
from itertools import accumulate, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_lib.data.worlds import chaincalc, chronofacts, stackprog
from zfu_lib.data.worlds.problem import (
    BLOCKS,
    HEADINGS,
    Step,
    aided,
    answer,
    blocks,
    covered,
    frame,
    own_solution,
    prompt,
    solution,
)

WORLDS = {"chaincalc": chaincalc, "stackprog": stackprog, "chronofacts": chronofacts}
LEVELS = {"chaincalc": range(1, 9), "stackprog": range(1, 5), "chronofacts": range(1, 5)}
WORDS = {"chaincalc": chaincalc.WORDS, "stackprog": stackprog.WORDS, "chronofacts": chronofacts.WORDS}
NUMBERS = {"chaincalc": range(11), "stackprog": range(100), "chronofacts": (*range(10), *chronofacts.YEARS)}
SYMBOLS = {
    "chaincalc": "; = ? :",
    "stackprog": "; = ? : ->",
    "chronofacts": "; = ? : + - < > >= ,",
}
FRAME = ["Problem", "Insights", "Hint", "Mode", "think", "brief", "direct", "insights", "solution", "Answer"]
every_world = pytest.mark.parametrize("world", WORLDS)
every_level = pytest.mark.parametrize(("world", "level"), [(w, level) for w in WORLDS for level in LEVELS[w]])


@st.composite
def a_problem(draw, world=None):
    world = world or draw(st.sampled_from(sorted(WORLDS)))
    return WORLDS[world].problems(1, draw(st.integers(0, 10_000)), levels=[draw(st.sampled_from(LEVELS[world]))])[0]


# Questions and answers


@every_level
def test_the_solver_finds_the_answer_from_the_text(world, level):
    for p in WORLDS[world].problems(20, 7, levels=[level]):
        assert WORLDS[world].solve(p.question) == p.answer
        assert (p.world, p.level, len(p.steps)) == (world, level, level)
        assert p.search[0].startswith(p.target)
        assert p.steps[-1].result == p.answer


@every_world
def test_the_seed_alone_decides(world):
    first, again, other = (WORLDS[world].problems(20, seed) for seed in (1, 1, 2))
    assert first == again
    assert not {p.question for p in first} & {p.question for p in other}
    assert WORLDS[world].problems(5, 1) == first[:5]


@every_world
def test_levels_are_drawn_evenly_from_those_asked_for(world):
    assert {p.level for p in WORLDS[world].problems(60, 0)} == set(LEVELS[world])
    share = Counter(p.level for p in WORLDS[world].problems(400, 0, levels=[1, 2]))
    assert abs(share[1] - 200) < 5 * 10  # five standard deviations


@every_world
@pytest.mark.parametrize("levels", [[0, 1], [1, 60]])
def test_levels_that_do_not_exist_are_refused(world, levels):
    with pytest.raises(ValueError, match="levels"):
        WORLDS[world].problems(1, 0, levels=levels)


# The share of the most probable answer: 11 values, of which products favour some; the numbers 2 to 15, which are a
# third of the answers at most, with others larger; 40 names.
LIKELIEST = {"chaincalc": 1.2 / 11, "stackprog": 1 / 3 / 14, "chronofacts": 1 / 40}


@every_level
def test_no_answer_is_frequent(world, level):
    n, share = 300, LIKELIEST[world]
    most = Counter(p.answer for p in WORLDS[world].problems(n, 3, levels=[level])).most_common(1)[0][1]
    # Four standard deviations of a binomial count.
    assert most / n < share + 4 * (share * (1 - share) / n) ** 0.5


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_chronofacts_answers_have_no_favourite_position(level):
    leaders, compared = Counter(), Counter()
    for p in chronofacts.problems(500, 5, levels=[level]):
        place = p.steps[-1].plan
        if p.target == "first":
            compared[p.answer == place] += 1
        else:
            leaders[[name for name, at, *_ in _terms(p.question) if at == place].index(p.answer)] += 1
    # Three leaders; "after" and "before" favour the middle one, long ways the later ones.
    assert max(leaders.values()) / leaders.total() < 0.55
    if level > 1:
        assert abs(compared[True] / compared.total() - 0.5) < 0.2
        assert 0.15 < compared.total() / 500 < 0.35
    else:
        assert not compared


@every_world
def test_seeds_share_no_questions(world):
    # Level 1 of ChainCalc without distractors has 48 names x 11 values and nothing else: it must repeat.
    levels = LEVELS[world][1:] if world == "chaincalc" else LEVELS[world]
    one, two = ({p.question for p in WORLDS[world].problems(300, seed, levels=levels)} for seed in (0, 1))
    assert len(one & two) <= 1
    assert len(one) >= 299


@settings(deadline=None, max_examples=100)
@given(a_problem())
def test_texts_consist_of_the_words_of_their_world(p):
    known = {*WORDS[p.world], *map(str, NUMBERS[p.world]), *SYMBOLS[p.world].split(), *HEADINGS, *FRAME}
    insights = solution(p, "insights")
    texts = [prompt(p), solution(p), aided(p.question, insights), own_solution(p, insights)]
    texts.append(prompt(p, "brief insights", hint=solution(p, "brief insights")))
    for text in texts:
        assert {word for line in text.splitlines() for word in line.split(" ")} <= known
    assert len(p.question.split()) <= 100
    assert len(solution(p).split()) <= 152


def test_worlds_share_no_words():
    for words in WORDS.values():
        assert len(set(words)) == len(words)
        assert all(re.fullmatch(r"[a-z]+|[-+*]\d+", word) for word in words)
    for one, two in [("chaincalc", "stackprog"), ("chaincalc", "chronofacts"), ("stackprog", "chronofacts")]:
        assert not set(WORDS[one]) & set(WORDS[two])


# Steps: what each says is true, worked out here anew


@settings(deadline=None, max_examples=60)
@given(a_problem("chaincalc"))
def test_chaincalc_steps_are_true(p):
    values = {}
    for step in p.steps:
        assert step.fact in p.question.split(" ; ")
        name, *how = step.fact.split(" ")
        if len(how) == 1:
            shown, value = "", int(how[0])
        else:
            shown, value = f" {values[how[1]]} {how[0]} =", _modular(values[how[1]], how[0])
        values[name] = value
        assert step == Step(name, step.fact, f"{name} ={shown}", str(value))
    assert p.search == tuple(" ".join(step.fact.split(" ")[:2]) for step in reversed(p.steps))


def _modular(value, operation):
    sign, constant = operation[0], int(operation[1:])
    return {"+": value + constant, "-": value - constant + 11, "*": value * constant}[sign] % 11


@settings(deadline=None, max_examples=60)
@given(a_problem("stackprog"))
def test_stackprog_steps_are_true(p):
    (before, _), *examples = [pair.split(" -> ") for pair in p.question.split(" ; ")]
    for step in p.steps:
        lists, _, totals = step.work.removesuffix(" =").partition(" via ")
        assert lists == f"{before} {step.fact}"
        assert step.plan == step.fact.split()[0]
        if step.plan == "sum":
            partial = list(accumulate(map(int, before.split())))[1:]
            assert f"{totals} {step.result}".split() == [str(total) for total in partial]
        assert step.result == _run_one(step.fact, before)
        before = step.result
    assert before == p.answer
    assert p.search == (p.target, *(step.plan for step in reversed(p.steps)))
    assert (p.target == "number") == all(y.isdigit() for _, y in examples)
    for x, y in examples:
        for step in p.steps:
            x = _run_one(step.fact, x)
        assert x == y


def _run_one(operation, text):
    x = [int(word) for word in text.split()]
    match operation.split():
        case ["take", n]:
            out = [v for i, v in enumerate(x) if i < int(n)]
        case ["keep", kind]:
            out = [v for v in x if str(v)[-1] in ("02468" if kind == "even" else "13579")]
        case ["add", n]:
            out = [v + int(n) for v in x]
        case ["times", n]:
            out = [sum([v] * int(n)) for v in x]
        case ["reverse"]:
            out = list(reversed(x))
        case ["sort"]:
            out = [v for low in range(100) for v in x if v == low]
        case ["sum"]:
            out = [sum(x)]
    return " ".join(map(str, out))


def _terms(question):
    """Leader, place, first year, year after the last, of each term."""
    found = []
    for place, years in re.findall(r"(\w+) ((?:\d{4} \w+ )+\d{4}) ;", question):
        found += [(name, place, a, b) for a, name, b in re.findall(r"(\d{4}) ([a-z]+) (?=(\d{4}))", years)]
    return found


@settings(deadline=None, max_examples=80)
@given(a_problem("chronofacts"))
def test_chronofacts_steps_are_true(p):
    facts = _terms(p.question)
    results = []
    for i, step in enumerate(p.steps):
        final = i == len(p.steps) - 1
        place, *years = step.fact.split(" ")
        mine = sorted((f for f in facts if f[1] == step.plan), key=lambda f: f[2])
        assert place == step.plan
        if years[0].isdigit():
            assert years == [*(f[2] for f in mine), mine[-1][3]]
            found, *work = step.work.split(" : ")
            high, gt, year, ge, low = found.split(" ")
            assert (gt, ge) == (">", ">=")
            assert int(high) > int(year) >= int(low)
            assert years.index(high) - years.index(low) == 1
            assert year in p.question or year in results
            leader = next(f[0] for f in mine if f[2:] == (low, high))
        else:
            leader, low, high = years
            assert (leader, step.plan, low, high) in mine
            work = [step.work]
        if final and p.target == "first":
            left, sign, right = work[0].split(" ")
            assert sign == ("<" if int(left) < int(right) else ">")
            assert right == low
            assert left in results
            assert step.result in (step.plan, *(s.plan for s in p.steps[:-1]))
            assert (step.result == step.plan) == (sign == ">")
        elif final:
            assert (work, step.result) == ([], leader)
        else:
            edge, sign, later, equals = work[0].split(" ")
            assert edge in (low, high)
            assert equals == "="
            assert int(step.result) == int(edge) + int(sign + later)
        results.append(step.result)
    assert p.search[0] == ("first" if p.target == "first" else f"who {p.steps[-1].plan}")


@settings(deadline=None, max_examples=60)
@given(a_problem("chronofacts"))
def test_chronofacts_leaders_follow_each_other_and_years_of_change_differ(p):
    facts = _terms(p.question)
    assert len({name for name, *_ in facts}) == len(facts) in (6, 9)
    changes = []
    for place in {f[1] for f in facts}:
        mine = sorted((int(f[2]), int(f[3])) for f in facts if f[1] == place)
        assert all(a[1] == b[0] for a, b in zip(mine, mine[1:]))
        assert all(2 <= b - a <= 9 for a, b in mine)
        changes += [a for a, _ in mine] + [mine[-1][1]]
    assert len(set(changes)) == len(changes)
    if p.target != "first":  # the answer is named nowhere but in its fact
        assert p.answer not in solution(p, "insights").split()
        assert p.question.split().count(p.answer) == 1


# Insights


@settings(deadline=None, max_examples=100)
@given(a_problem(), st.booleans())
def test_insights_stop_before_the_last_result(p, brief):
    mode = "brief" if brief else "think"
    full, insights = solution(p, mode), solution(p, "brief insights" if brief else "insights")
    assert full == f"{insights} {p.steps[-1].result}\nAnswer : {p.answer}\n"
    assert insights.endswith(p.steps[-1].work)
    assert answer(insights) is None
    assert answer(full) == p.answer
    assert full.startswith(f"Goal : {p.target}")
    assert solution(p, "direct") == f"Answer : {p.answer}\n"


@settings(deadline=None, max_examples=100)
@given(a_problem())
def test_insights_grow_by_blocks_of_four_lines(p):
    insights = solution(p, "insights")
    lines = insights.splitlines()
    parts = blocks(p.steps)
    assert [line.split(" : ")[0] for line in lines] == list(HEADINGS) * len(parts)
    assert len(parts) == min(BLOCKS, p.level)
    assert tuple(step for part in parts for step in part) == p.steps
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    levels = ["\n".join(lines[: 4 * (i + 1)]) for i in range(len(parts))]
    for shorter, longer in zip(levels, levels[1:]):
        assert longer.startswith(shorter + "\nGoal : ")
    assert levels[-1] == insights
    assert [covered(text) for text in levels] == list(accumulate(sizes))


@settings(deadline=None, max_examples=60)
@given(a_problem())
def test_covered_counts_the_complete_facts_at_every_cut(p):
    text = solution(p, "insights")
    ends = []
    for line in re.finditer(r"^Retrieval : ([^\n]*)\n", text, flags=re.MULTILINE):
        # A fact is complete when what ends it is there: the separator, or the end of the line.
        facts = line[1].split(" ; ")
        lengths = accumulate(len(fact) + 3 for fact in facts)
        starts = line.start(1)
        ends += [min(starts + length, line.end()) for length in lengths]
    assert len(ends) == len(p.steps)
    for cut in range(len(text) + 1):
        assert covered(text[:cut]) == sum(end <= cut for end in ends)


@settings(deadline=None, max_examples=100)
@given(a_problem(), st.data())
def test_a_reader_redoes_what_it_was_given_and_finishes(p, data):
    insights = solution(p, "insights")
    cut = insights[: data.draw(st.integers(0, len(insights)))]
    wrong = re.sub(r"= (\d+)(?= ;|\n|$)", lambda found: f"= {int(found[1]) + 1}", cut)
    text = own_solution(p, wrong)
    assert text == own_solution(p, cut)
    assert answer(text) == p.answer
    known = covered(cut)
    done = [f"{step.work} {step.result}" for step in p.steps]
    actions = [a for line in re.findall(r"^Action : (.*)$", text, flags=re.MULTILINE) for a in line.split(" ; ")]
    assert actions == done
    if known:
        assert text.startswith(f"Action : {' ; '.join(done[:known])}\n")
        assert covered(text) == len(p.steps) - known
    else:
        assert text == solution(p)


def test_wrong_values_in_insights_are_corrected():
    p = chaincalc.problems(1, 0, levels=[3])[0]
    insights = solution(p, "insights")
    action = f"Action : {p.steps[0].work} {p.steps[0].result}\n"
    assert action in insights
    wrong = insights.replace(action, f"Action : {p.steps[0].work} {(int(p.steps[0].result) + 1) % 11}\n")
    assert own_solution(p, wrong).startswith(action.rstrip() + " ; ")
    assert wrong != insights


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer : 10\n", "10"),
        ("Action : fig = 3\nAnswer : 4 1", "4 1"),
        ("Answer : 1\nGoal : fig\nAnswer : mara \n", "mara"),
        ("Answer :\n", None),
        ("Answer : \nGoal : fig\n", None),
        ("Goal : fig", None),
        ("the Answer : 3", None),
        ("", None),
    ],
)
def test_the_answer_of_a_text(text, found):
    assert answer(text) == found


def test_a_hint_stands_before_the_mode():
    assert frame("fig ?", "brief", hint="Goal : fig\n") == "Problem : fig ?\nHint :\nGoal : fig\nMode : brief\n"
    assert aided("fig ?", "Goal : fig\n") == "Problem : fig ?\nInsights :\nGoal : fig\nMode : solution\n"


# What solvers refuse


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("fig +1 plum ; plum +1 fig ; fig ?", "defined by itself"),
        ("fig *2 fig ; fig ?", "defined by itself"),
        ("fig +1 plum ; fig ?", "not defined"),
        ("kiwi ?", "not defined"),
        ("fig 1 ; fig 2 ; fig ?", "not a ChainCalc question"),
        ("fig 1 ; fig", "not a ChainCalc question"),
        ("fig /2 plum ; plum 1 ; fig ?", "not a definition"),
        ("fig +1 ; fig ?", "not a definition"),
    ],
)
def test_chaincalc_refuses(question, why):
    with pytest.raises(ValueError, match=why):
        chaincalc.solve(question)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("5 6 7 ; 1 2 -> 2 1 ; 3 4 -> 4 3", "not a StackProg question"),
        ("5 6 7 -> ? ; 1 2 -> 2 1 ; 3 x -> 4 3", "not a StackProg question"),
        ("5 6 7 -> ? ; 1 2 -> 9 9 9 ; 3 4 -> 4 3", "no program"),
        ("1 3 2 -> ? ; 3 2 1 -> 1 2 3 ; 6 5 4 -> 4 5 6", "leave 2 answers"),  # sort or reverse
    ],
)
def test_stackprog_refuses(question, why):
    with pytest.raises(ValueError, match=why):
        stackprog.solve(question)


FACTS = "oslo 1933 otto 1941 lena 1950 ; bern 1931 mara 1938 ivo 1944 ; "


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("who led bern in 1935 ?", "mara"),
        ("who led bern in 1938 ?", "ivo"),  # half-open: she has left
        ("who led bern in 1937 ?", "mara"),
        ("who led bern after mara ?", "ivo"),
        ("who led bern before ivo ?", "mara"),
        ("who led oslo 3 years after start of bern in 1935 ?", "otto"),
        ("who led bern at end of oslo under otto ?", "ivo"),
        ("who led oslo at end of bern before ivo ?", "otto"),
        ("which began first , bern under mara or oslo in 1937 ?", "bern"),
        ("which began first , bern after mara or oslo in 1937 ?", "oslo"),
    ],
)
def test_chronofacts_reads_questions(asked, found):
    assert chronofacts.solve(FACTS + asked) == found


@pytest.mark.parametrize(
    "asked",
    ["who led bern in 1944 ?", "who led rome in 1935 ?", "who led bern under otto ?", "who led bern after ivo ?"]
    + ["who led bern ?", "when did mara begin ?", "who led bern in 1935", "which began first , bern in 1935 ?"],
)
def test_chronofacts_refuses(asked):
    with pytest.raises(ValueError, match="in '|not a "):
        chronofacts.solve(FACTS + asked)


def test_chronofacts_refuses_two_leaders_in_one_year():
    with pytest.raises(ValueError, match="2 terms of bern"):
        chronofacts.solve(FACTS + "bern 1936 emil 1940 ; who led bern in 1937 ?")


# Programs


@settings(deadline=None, max_examples=25)
@given(a_problem("stackprog"))
def test_a_solution_names_a_program_that_runs(p):
    named = stackprog.program(solution(p))
    assert named == " ; ".join(step.fact for step in p.steps)
    assert stackprog.runs(p.question, named)
    assert not stackprog.runs(p.question, f"{named} ; add 1")
    assert stackprog.check(p.question, p.answer)
    assert not stackprog.check(p.question, f"{p.answer} 1")


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("add 3", True),
        ("add 1 ; add 2", True),
        ("reverse ; add 3 ; reverse", True),
        ("add 2", False),
        ("add 3 ; take 3", False),  # right on the examples
        ("add 4", False),
        ("", False),
    ],
)
def test_any_program_that_does_the_same_counts(program, right):
    assert stackprog.runs("3 1 2 4 -> ? ; 1 2 0 -> 4 5 3 ; 5 6 1 -> 8 9 4 ; 7 0 2 -> 10 3 5", program) == right


@pytest.mark.parametrize("level", [1, 2])
def test_no_other_program_of_that_length_gives_another_answer(level):
    done = [names for n in (1, 2)[:level] for names in product(stackprog.OPERATIONS, repeat=n)]
    for p in stackprog.problems(12, 4, levels=[level]):
        (asked, _), *examples = [pair.split(" -> ") for pair in p.question.split(" ; ")]
        fitting = [names for names in done if all(_run_all(names, x) == y for x, y in examples)]
        assert {_run_all(names, asked) for names in fitting} == {p.answer}
        assert min(len(names) for names in fitting) == level


def _run_all(names, text):
    for name in names:
        text = _run_one(name, text)
    return text


def test_a_text_without_retrieval_names_no_program():
    assert stackprog.program("Goal : list\nAnswer : 1 2") is None
