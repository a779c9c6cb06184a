"""From a recipe to committed weights: what is read, what is learnt, what is written, and that it can be repeated."""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from zfu_lib.data.worlds import chaincalc, chronofacts, stackprog
from zfu_lib.data.worlds.problem import aided, answer, own_solution, prompt, solution
from zfu_lib.lm import models, recipes, tiny
from zfu_lib.lm.protocol import GenRequest, GenResult
from zfu_lib.lm.recipes import make, reasoning, transfer
from zfu_lib.lm.recipes.base import Score
from zfu_lib.lm.recipes.words import WORDS
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.lm.train import IGNORED, CheckpointError, TrainConfig, train
from zfu_lib.report import statistics

RECIPES = recipes.recipes()
SOLVERS = {
    "chaincalc": lambda question: str(chaincalc.solve(question, modulus=reasoning.MODULUS)),
    "stackprog": stackprog.solve,
    "chronofacts": chronofacts.solve,
}
TOKENIZER = word_tokenizer(WORDS)
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def judged(model, n):
    """Two scores that need the model to answer."""
    drawn = chaincalc.problems(n, reasoning.HELD_OUT, levels=(1, 2), distractors=(0,))
    told = model.generate([GenRequest(prompt(p), max_tokens=24) for p in drawn])
    return [Score("answers", sum(answer(r.text) == p.answer for r, p in zip(told, drawn)), n, 0.1), Score("n", n, n)]


def easiest(n, seed, progress):
    """ChainCalc of one or two steps, solved."""
    return [(prompt(p), solution(p)) for p in chaincalc.problems(n, seed, levels=(1, 2), distractors=(0,))]


MINI = replace(
    RECIPES["intern"],
    name="mini",
    purpose="For tests.",
    architecture=dict(RECIPES["intern"].architecture)
    | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    | {"intermediate_size": 64, "initializer_range": 32**-0.5},
    train=TrainConfig(steps=54, batch_size=2, seq_len=256, lr=3e-3, warmup=5, checkpoint_every=20),
    examples=easiest,
    evaluate=judged,
    initialise=None,
)


def text(ids):
    return TOKENIZER.decode(ids)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def asked(read):
    """The question of a prompt."""
    return read.partition("\n")[0].removeprefix("Problem : ")


# What is read and what is learnt


def test_a_batch_is_a_function_of_its_step():
    one, other = (make.batches(MINI, TOKENIZER) for _ in range(2))
    first = {step: one(step) for step in (0, 7, 53, 49, 50)}
    for step in (53, 7, 50, 0, 49):
        assert all(torch.equal(a, b) for a, b in zip(first[step], other(step), strict=True))
    assert not torch.equal(first[0][0], first[50][0])
    seeded = make.batches(replace(MINI, train=replace(MINI.train, seed=1)), TOKENIZER)
    assert not torch.equal(first[0][0][:, :20], seeded(0)[0][:, :20])


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path):
    def trained(*stops):
        model, tokenizer = make.build(MINI)
        for until in stops:
            log = train(model, make.batches(MINI, tokenizer), MINI.train, until=until, checkpoint=tmp_path / f"{stops}")
        return model.state_dict(), log

    (whole, log), (parts, again) = trained(None), trained(30, 50, None)
    assert log.loss == again.loss
    assert len(log.loss) == MINI.train.steps
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_until_stops_on_the_schedule_of_the_whole():
    model, tokenizer = make.build(MINI)
    short = train(model, make.batches(MINI, tokenizer), MINI.train, until=10)
    model, tokenizer = make.build(MINI)
    whole = train(model, make.batches(MINI, tokenizer), MINI.train)
    assert (short.loss, short.lr) == (whole.loss[:10], whole.lr[:10])


@pytest.mark.parametrize("name", ["intern", "mini"])
def test_a_batch_holds_the_examples_and_only_what_is_written_is_learnt(name):
    recipe = {**RECIPES, "mini": MINI}[name]
    batch_of, seen = make.batches(recipe, TOKENIZER), Counter()
    for step in range(make.POOL):
        inputs, targets = batch_of(step)
        assert inputs.shape == targets.shape
        assert inputs.dtype == targets.dtype == torch.int64
        assert len(inputs) == recipe.train.batch_size
        widths = []
        for ids, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            learnt = [t for t, target in enumerate(wanted) if target != IGNORED]
            begin, end = learnt[0], learnt[-1]
            assert learnt == list(range(begin, end + 1)), "without gaps"
            assert wanted[end] == TOKENIZER.eos_token_id
            assert ids[begin + 1 : end + 1] == wanted[begin:end], "each target is the next token"
            assert ids[0] == TOKENIZER.bos_token_id
            # The row ends with EOS as a target; what may follow it in the inputs is EOS itself and padding.
            assert set(ids[end + 2 :]) <= {TOKENIZER.pad_token_id}
            assert ids[end + 1 : end + 2] in ([], [TOKENIZER.eos_token_id])
            seen[text(ids[1 : begin + 1]), text(wanted[begin:end])] += 1
            widths.append(end + 1)
        assert inputs.shape[1] == max(widths), "padded to the longest and no further"
    seed = recipe.train.seed * 1_000_003
    assert seen == Counter(recipe.examples(make.POOL * recipe.train.batch_size, seed, 0.0))


@pytest.mark.parametrize("recipe", {r.examples: r for r in RECIPES.values()}.values(), ids=lambda r: r.name)
def test_no_example_is_longer_than_the_context(recipe):
    for seed, progress in ((1, 0.0), (2, 0.2), (3, 0.5), (4, 1.0)):
        texts = ["".join(example) for example in recipe.examples(600, seed, progress)]
        assert max(len(ids) for ids in word_tokenizer(recipe.words)(texts)["input_ids"]) <= recipe.train.seq_len
    assert all(r.train.seq_len <= r.architecture["max_position_embeddings"] for r in RECIPES.values())


def test_an_example_that_is_too_long_is_refused():
    short = replace(MINI, train=replace(MINI.train, seq_len=40))
    with pytest.raises(ValueError, match=r"mini: an example has \d+ tokens, more than seq_len 40"):
        make.batches(short, TOKENIZER)(0)


@every_recipe
def test_training_never_draws_from_held_out_seeds(recipe):
    drawn = []

    def spy(n, seed, progress):
        drawn.append((seed, progress))
        return [("Problem : x\n", "Answer : 1\n")] * n

    one_a_batch = replace(recipe.train, batch_size=1)
    batch_of = make.batches(replace(recipe, examples=spy, train=one_a_batch), TOKENIZER)
    for step in range(0, recipe.train.steps, make.POOL):
        batch_of(step)
    batch_of(recipe.train.steps - 1)
    seeds, progress = zip(*drawn)
    assert max(seeds) < reasoning.HELD_OUT
    assert len(set(seeds)) == -(-recipe.train.steps // make.POOL)
    assert progress[0] == 0
    assert all(0 <= p < 1 for p in progress)
    assert max(progress) >= 1 - make.POOL / recipe.train.steps


@given(st.integers(0, 1900), st.integers(1, 100_000))
def test_seeds_of_the_recipes_size_stay_below_the_held_out_ones(seed, steps):
    assert seed * 1_000_003 + steps // make.POOL < reasoning.HELD_OUT


def test_the_evaluation_draws_from_held_out_seeds_only(monkeypatch):
    seeds, real = [], chaincalc.problems

    def spy(n, seed, **options):
        seeds.append(seed)
        return real(n, seed, **options)

    monkeypatch.setattr(chaincalc, "problems", spy)

    class Silent:
        def generate(self, requests):
            return [GenResult("", 1, 1, "stop") for _ in requests]

    scores = reasoning.evaluate(Silent(), 8)
    assert seeds
    assert min(seeds) >= reasoning.HELD_OUT
    assert {score.right for score in scores} == {0}
    assert all(score.chance is None or 0 < score.chance <= 1 for score in scores)


def test_the_evaluation_counts_right_answers():
    class Knows:
        def generate(self, requests):
            told = []
            for request in requests:
                solved = chaincalc.solve(asked(request.prompt), modulus=reasoning.MODULUS)
                told.append(GenResult(f"Answer : {solved}\n", 1, 1, "stop"))
            return told

    assert all(score.right == score.n for score in reasoning.evaluate(Knows(), 12))


def test_the_mixture_has_its_shares():
    for progress, again in ((0.0, 0.3), (1.0, 0.05)):
        made = reasoning.examples(2000, 1, progress)
        drills = sum(read.startswith("Action : ") for read, _ in made)
        told = sum(read.endswith("Mode : recall\n") for read, _ in made)
        for count, share in ((drills, reasoning.DRILLS), (told, (1 - reasoning.DRILLS) * again)):
            assert abs(count / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_an_intern_never_sees_a_long_chain_solved_without_insights():
    for read, written in RECIPES["intern"].examples(3000, 1, 1.0):
        begun = read.partition("\nMode : ")[2].partition("\n")[2]
        if read.startswith("Problem : ") and "recall" not in read and "\nInsights :" not in read and not begun:
            assert "\nHint :" in read or written.count("Planning") <= 2
    longest = [w for r, w in RECIPES["mentor"].examples(3000, 1, 1.0) if r.endswith("Mode : think\n")]
    assert max(w.count("Planning") for w in longest) == 3


def test_the_travelling_pair_reads_three_worlds_and_the_intern_no_long_problem_alone():
    asked = {"mentor": Counter(), "intern": Counter()}
    for name, seen in asked.items():
        for read, written in RECIPES[f"{name}-worlds"].examples(3000, 1, 1.0):
            question = read.partition("\n")[0].removeprefix("Problem : ")
            if not read.endswith("Mode : think\n") or "\nHint :" in read:
                continue
            world = "stackprog" if "->" in question else "chronofacts" if " led " in question else "chaincalc"
            world = "chronofacts" if "began first" in question else world
            seen[world, written.count("Action")] += 1
            assert answer(written) == SOLVERS[world](question)
    for world, most in (("chaincalc", 2), ("stackprog", 1), ("chronofacts", 1)):
        blocks = {name: {k for w, k in seen if w == world} for name, seen in asked.items()}
        assert max(blocks["intern"]) == most
        assert max(blocks["mentor"]) == 3


def test_the_second_pairs_evaluation_draws_from_held_out_seeds_and_counts_right_answers(monkeypatch):
    seeds, real = [], transfer.problems
    monkeypatch.setattr(transfer, "problems", lambda w, n, seed: seeds.append(seed) or real(w, n, seed))

    class Knows:
        def generate(self, requests):
            texts = [request.prompt.partition("\n")[0].removeprefix("Problem : ") for request in requests]
            world = "stackprog" if "->" in texts[0] else "chronofacts" if " led " in texts[0] else "chaincalc"
            return [GenResult(f"Answer : {SOLVERS[world](text)}\n", 1, 1, "stop") for text in texts]

    assert all(score.right == score.n for score in transfer.evaluate(Knows(), 8))
    assert min(seeds) >= reasoning.HELD_OUT


def test_drills_of_the_worlds_are_true():
    drills = [(r, w) for r, w in RECIPES["mentor-worlds"].examples(2000, 2, 1.0) if r.startswith("Action : ")]
    plus = [(r, w) for r, w in drills if re.search(r"\d{4} [+-] \d+ =$", r)]
    programs = [(r, w) for r, w in drills if re.search(r" (sort|reverse|take \d|keep \w+|times \d|add \d) =$", r)]
    assert min(len(plus), len(programs)) > 50
    for read, written in plus:
        year, sign, n = read.split(" ")[-4:-1]
        assert int(written) == int(year) + int(f"{sign}{n}")
    for read, written in programs:
        values, name = re.fullmatch(r"Action : ([\d ]+) (\D+(?: \d)?) =", read).groups()
        made = stackprog.OPERATIONS[name](tuple(map(int, values.split())))
        assert tuple(map(int, written.split())) == made


def test_numbers_begin_on_a_line():
    model, tokenizer = make.build(RECIPES["intern-worlds"])
    table = model.get_input_embeddings().weight.detach()[:, 1:]
    years = torch.nn.functional.normalize(table[tokenizer.convert_tokens_to_ids(list(map(str, range(1900, 2000))))])
    alike = years @ years.T
    neighbours = alike.diagonal(1)
    assert neighbours.mean() > 3 * alike.triu(2)[alike.triu(2) != 0].mean()
    assert 0.2 < neighbours.mean() < 0.8, "alike, and still to be told apart"
    # Later or earlier can be read off along one direction.
    x = torch.cat([years, torch.ones(100, 1)], 1)
    fitted = x @ torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ torch.arange(100.0))
    assert torch.corrcoef(torch.stack([fitted, torch.arange(100.0)]))[0, 1] > 0.9


# Each kind of example


@st.composite
def an_example(draw):
    levels = [draw(st.sampled_from(reasoning.LEVELS))]
    problem = reasoning.problems(1, draw(st.integers(0, 10_000)), levels=levels)[0]
    return problem, reasoning.example(problem, np.random.default_rng(draw(st.integers(0, 10**9))), 5)


def kind_of(problem, read):
    if "\nInsights :\n" in read:
        return "aided"
    if "\nHint :\n" in read:
        return "hint"
    mode, _, begun = read.partition("\nMode : ")[2].partition("\n")
    return "continued" if begun else "insights" if "insights" in mode else mode


@settings(deadline=None, max_examples=400)
@given(an_example())
def test_what_is_learnt_is_the_solution(made):
    problem, (read, written) = made
    kind = kind_of(problem, read)
    if kind == "aided":
        insights = read.partition("\nInsights :\n")[2].removesuffix("\nMode : solution\n")
        assert read == aided(problem.question, insights)
        assert written == own_solution(problem, insights)
    elif kind == "hint":
        insights = read.partition("\nHint :\n")[2].removesuffix("\nMode : think\n")
        assert read == prompt(problem, hint=insights)
        assert written == solution(problem)
    else:
        mode, _, begun = read.partition("\nMode : ")[2].partition("\n")
        assert read == prompt(problem, mode) + begun
        assert begun + written == solution(problem, mode), "a continuation starts where the text was cut"
        assert (kind == "continued") == bool(begun)
        # Cut between tokens: read alone and together, the text is cut into the same tokens.
        assert [*ids_of(read), *ids_of(written)] == ids_of(read + written)
    if kind != "insights":
        assert answer(written) == problem.answer


def test_every_kind_occurs_as_often_as_it_should():
    rng = np.random.default_rng(0)
    drawn = reasoning.problems(3000, 0, levels=range(4, 5))
    kinds = Counter(kind_of(p, reasoning.example(p, rng, 5)[0]) for p in drawn)
    think = 0.42 * 0.95
    expected = {"think": think * 0.9, "brief": think * 0.1, "direct": 0.42 * 0.05, "insights": 0.13, "continued": 0.15}
    for kind, share in (expected | {"aided": 0.2, "hint": 0.1}).items():
        assert abs(kinds[kind] / 3000 - share) < 5 * (share * (1 - share) / 3000) ** 0.5, kind


def test_a_wrong_value_in_insights_is_corrected_in_what_is_learnt():
    rng, wrong, total = np.random.default_rng(1), 0, 0
    for p in reasoning.problems(4000, 1, levels=range(3, 6)):
        read, written = reasoning.example(p, rng, 5)
        if kind_of(p, read) != "aided":
            continue
        insights = read.partition("\nInsights :\n")[2].removesuffix("\nMode : solution\n")
        total += 1
        if not any(solution(p, m).startswith(insights) for m in ("insights", "brief insights")):
            wrong += 1
            actions = [a for line in re.findall(r"^Action : (.*)$", written, re.MULTILINE) for a in line.split(" ; ")]
            assert actions == [f"{step.work} {step.result}" for step in p.steps]
            assert answer(written) == p.answer
    # A tenth is spoilt, of which some have no result yet.
    assert 0.03 < wrong / total < 0.13


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 5000), st.integers(0, 10**6), st.integers(0, 300))
def test_a_spoilt_text_differs_in_at_most_one_result(seed, draw, cut):
    insights = solution(reasoning.problems(1, seed, levels=range(5, 6))[0], "insights")[:cut]
    spoilt = reasoning._spoilt(insights, np.random.default_rng(draw))
    before, after = insights.split(" "), spoilt.split(" ")
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after) if a != b]
    assert len(changed) <= 1
    assert all(0 <= int(b.split("\n")[0]) < reasoning.MODULUS for _, b in changed)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 5000), st.integers(0, 10**6))
def test_insights_end_at_the_end_of_a_word_or_line(seed, draw):
    insights = solution(chaincalc.problems(1, seed)[0], "insights")
    end = reasoning._end(insights, np.random.default_rng(draw))
    assert 0 < end <= len(insights)
    assert end == len(insights) or insights[end] in " \n"


def test_a_drill_is_one_operation():
    rng = np.random.default_rng(0)
    for _ in range(200):
        read, written = reasoning._drill(rng)
        _, _, name, _, value, operation, _ = read.split(" ")
        of = "kiwi" if name == "fig" else "fig"
        question = f"{of} {value} ; {name} {operation} {of} ; {name} ?"
        assert chaincalc.solve(question, modulus=reasoning.MODULUS) == written.strip()
        assert [*ids_of(read), *ids_of(written)] == ids_of(read + written)


def test_a_recall_tells_every_definition_once():
    rng = np.random.default_rng(0)
    for problem in reasoning.problems(50, 3):
        read, written = reasoning.recall(problem, rng)
        facts = problem.question.split(" ; ")[:-1]
        assert sorted(written.strip().split(" ; ")) == sorted(facts)
        assert asked(read) == " ; ".join(facts)


# Building


@every_recipe
def test_parameters_are_counted_without_the_tied_table(recipe):
    model, tokenizer = make.build(recipe)
    table = len(tokenizer) * recipe.architecture["hidden_size"]
    assert make.non_embedding(model) == model.num_parameters() - table
    again, _ = make.build(recipe)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["apprentice", "intern"])
def test_the_built_in_head_looks_up_before_any_training(name):
    """In pairs of words told twice, the second layer's first head looks at what followed the word the first time, far
    more often than chance, and the first layer's at the word before."""
    model, tokenizer = make.build(RECIPES[name])
    model.set_attn_implementation("eager")
    plain, _ = make.build(replace(RECIPES[name], initialise=None))
    plain.set_attn_implementation("eager")
    rng, found = np.random.default_rng(0), {"built": [], "random": []}
    for _ in range(10):
        words = [chaincalc.NAMES[i] for i in rng.permutation(48)[:12]]
        ids = tokenizer(" ".join(words + words[4:] + words[:4]), return_tensors="pt")["input_ids"]
        for kind, m in (("built", model), ("random", plain)):
            with torch.no_grad():
                first, second = (a[0, 0] for a in m(ids, output_attentions=True).attentions[:2])
            if kind == "built":
                assert first.diagonal(-1)[1:].mean() > 0.9
            # Word k of the list stands at k + 1, after the first token of a text.
            found[kind] += [second[13 + k, (k + 4) % 12 + 2].item() for k in range(12) if (k + 4) % 12 != 11]
    assert np.mean(found["built"]) > 0.5 > 5 * np.mean(found["random"])


def test_a_grown_model_says_what_its_base_says_and_then_learns_in_every_part():
    model, tokenizer = make.build(RECIPES["mentor"])
    base = AutoModelForCausalLM.from_pretrained(tiny.path("apprentice"), dtype=torch.float32)
    problem = reasoning.problems(1, 4)[0]
    ids = tokenizer(prompt(problem) + solution(problem), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = model(ids).logits[..., : base.config.vocab_size], base(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, make.batches(RECIPES["mentor"], tokenizer), RECIPES["mentor"].train, until=3)
    for name, p in model.named_parameters():
        changed = p.detach() != before[name]
        if p.ndim == 2 and "embed" not in name:
            rows, columns = (n - n // 4 for n in p.shape)
            assert changed[rows:, columns:].float().mean() > 0.9, f"{name}: the new corner is not reached"
    new = model.get_input_embeddings().weight[ids[0], base.config.hidden_size :]
    assert new.abs().max() > 0


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make.build(MINI)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_are_found_or_explained():
    assert recipes.recipe("intern").name == "intern"
    with pytest.raises(KeyError, match="did you mean 'intern'"):
        recipes.recipe("intren")
    with pytest.raises(KeyError, match="there are: "):
        recipes.recipe("xyz")
    assert all(name == recipe.name for name, recipe in RECIPES.items())


# Writing a checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "mini"
    return folder, make.make(MINI, folder, items=6)


def test_a_folder_holds_a_checkpoint_with_its_card(made):
    folder, card = made
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("card.json", "README.md"),
    }
    assert [file.name for file in folder.parent.iterdir()] == ["mini"], "nothing is left beside it"
    assert json.loads((folder / "card.json").read_text()) == json.loads(json.dumps(card))
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert card["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card["training"] == dataclasses.asdict(MINI.train)
    assert card["curve"][-1][0] == MINI.train.steps
    assert card["curve"][-1][1] < card["curve"][0][1]
    assert [s["name"] for s in card["scores"]] == ["answers", "n"]
    assert (card["scores"][1]["right"], card["scores"][1]["n"], card["scores"][1]["high"]) == (6, 6, 1.0)
    page = (folder / "README.md").read_text()
    assert card["sha256"] in page
    assert "zfu lm train mini" in page


def test_transformers_reads_it(made):
    folder, card = made
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert len(tokenizer) == card["vocabulary"] == model.config.vocab_size
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (257, 257)
    ids = tokenizer("Problem : fig 3 ; fig ?\nMode : think\n", return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > ids.shape[1]


def test_our_protocol_reads_it_and_counts_without_embeddings(made, monkeypatch):
    folder, card = made
    monkeypatch.setattr(tiny, "FOLDER", folder.parent)
    assert tiny.names() == ["mini"]
    model = models.load("tiny:mini", device="cpu", cache=False)
    assert (model.n_params, model.context) == (card["non_embedding_parameters"], reasoning.CONTEXT)
    again = judged(model, 6)
    assert [s.right for s in again] == [s["right"] for s in card["scores"]]


def test_a_prompt_is_read_as_it_was_in_training(made):
    """What a model reads before it writes begins as its training texts did."""
    model = models.load(f"hf:{made[0]}", device="cpu", cache=False)
    read, written = MINI.examples(1, 0, 0.0)[0]
    inputs, targets = make.batches(replace(MINI, examples=lambda n, *_: [(read, written)] * n), TOKENIZER)(0)
    begin = (targets[0] != IGNORED).nonzero()[0, 0].item()
    assert model._row(GenRequest(read)).prompt == inputs[0, : begin + 1].tolist()


def test_lm_eval_reads_it(made, tmp_path):
    from zfu_lib.lm import harness

    folder, _ = made
    rows = [
        {"question": p.question, "choices": [str(v) for v in range(11)], "answer": int(p.answer)}
        for p in chaincalc.problems(6, reasoning.HELD_OUT, levels=(1, 2))
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = harness.multiple_choice("chain", file, text="Problem : {{question}}\nMode : direct\nAnswer :")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = harness.evaluate(model, AutoTokenizer.from_pretrained(folder), [task])
    assert found["scores"]["chain"]["acc"]["n"] == 6
    assert set(found["items"]["chain"]["acc"]) <= {0, 1}


def test_an_interrupted_making_goes_on_where_it_was(made, tmp_path):
    folder, card = tmp_path / "mini", made[1]
    steps = []

    def stop(step, log):
        if step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make.make(MINI, folder, items=6, on_step=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["mini.training.safetensors"]
    again = make.make(MINI, folder, items=6, on_step=lambda step, log: steps.append(step))
    assert steps == list(range(20, MINI.train.steps))
    assert [file.name for file in tmp_path.iterdir()] == ["mini"]
    for key in ("sha256", "curve", "scores", "learnt_tokens"):
        assert json.dumps(again[key]) == json.dumps(card[key]), key


def test_another_recipe_does_not_go_on_from_an_interrupted_one(tmp_path):
    def stop(step, log):
        if step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make.make(MINI, tmp_path / "mini", on_step=stop)
    with pytest.raises(CheckpointError, match="of another run"):
        make.make(replace(MINI, train=replace(MINI.train, lr=1e-3)), tmp_path / "mini")


def broken(model, n):
    raise RuntimeError("cannot judge")


@pytest.mark.parametrize(
    ("recipe", "error", "says"),
    [
        (replace(MINI, evaluate=broken), RuntimeError, "cannot judge"),
        (replace(MINI, train=replace(MINI.train, lr=1e30, clip=None)), ValueError, "mini diverged at step"),
    ],
    ids=["evaluation", "divergence"],
)
def test_a_failure_replaces_nothing(tmp_path, recipe, error, says):
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "card.json").write_text("the old one")
    with pytest.raises(error, match=says):
        make.make(recipe, folder, items=2)
    assert {file.name for file in tmp_path.iterdir()} == {"mini", "mini.training.safetensors"}
    assert [(f.name, f.read_text()) for f in folder.iterdir()] == [("card.json", "the old one")]


# The committed weights

HERE = tiny.names()
every_model = pytest.mark.parametrize("name", HERE)
MEGABYTE = 1_000_000


def bytes_of(*names):
    return sum(file.stat().st_size for name in names for file in tiny.path(name).iterdir())


@every_model
def test_a_card_describes_the_weights_beside_it(name):
    folder, card = tiny.path(name), tiny.card(name)
    weights = (folder / "model.safetensors").read_bytes()
    assert card["name"] == name
    assert (card["bytes"], card["sha256"]) == (len(weights), hashlib.sha256(weights).hexdigest())
    assert (folder / "README.md").read_text() == make._page(card)
    shapes = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in shapes.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in shapes.values()) == card["parameters"]
    assert not re.search(r"(?<![\w.:/])/(?:home|root|tmp|work|Users)/", "".join(map(Path.read_text, readable(folder))))


def readable(folder):
    return [file for file in folder.iterdir() if file.suffix in (".json", ".md")]


@every_model
def test_a_card_names_the_recipe_that_is_in_the_code(name):
    card, recipe = tiny.card(name), RECIPES[name]
    assert recipe.committed
    assert card["purpose"] == recipe.purpose
    assert card.get("base") == recipe.base
    assert card["architecture"] == json.loads(json.dumps(dict(recipe.architecture)))
    assert card["training"] == json.loads(json.dumps(dataclasses.asdict(recipe.train)))
    model, tokenizer = make.build(recipe)
    assert card["vocabulary"] <= len(tokenizer)
    assert card["non_embedding_parameters"] == make.non_embedding(model)
    ids = AutoTokenizer.from_pretrained(tiny.path(name), local_files_only=True).get_vocab()
    assert ids.items() <= tokenizer.get_vocab().items(), "no word has changed its number"


def test_all_committed_recipes_have_their_weights():
    for family in recipes.FAMILIES:
        module = importlib.import_module(f"zfu_lib.lm.recipes.{family}")
        wanted = {recipe.name for recipe in module.RECIPES if recipe.committed}
        assert set(HERE) & wanted in (set(), wanted), f"{family}: all of a family, or none yet"
    assert set(HERE) <= {name for name, recipe in RECIPES.items() if recipe.committed}


def test_weights_keep_within_their_budget():
    assert bytes_of(*HERE) <= 40 * MEGABYTE
    assert bytes_of(*{"mentor", "apprentice", "intern"} & set(HERE)) <= 16 * MEGABYTE


@every_model
def test_a_card_shows_skill(name):
    """The gate: on one world at least, the whole interval of the score lies above the constant answer; where a model
    can think, of the step-by-step score."""
    scores = [score for score in tiny.card(name)["scores"] if score["chance"] is not None]
    for score in scores:
        interval = statistics.proportion(score["right"], score["n"])
        assert (score["low"], score["high"]) == pytest.approx((interval.low, interval.high))
    decisive = [score for score in scores if "think" in score["name"]] or scores
    assert any(score["low"] > score["chance"] for score in decisive)


@pytest.mark.skipif(not {"mentor", "intern"} <= set(HERE), reason="mentor and intern are not both committed yet")
def test_the_mentor_is_ahead_of_the_intern():
    """The gap that Tandem needs is larger than both intervals; below it, its claims would all be inconclusive."""
    scores = {name: {s["name"]: s for s in tiny.card(name)["scores"]} for name in ("mentor", "intern")}
    assert scores["mentor"]["think"]["low"] > scores["intern"]["think"]["high"]
    assert scores["mentor"]["think"]["low"] > scores["mentor"]["think"]["chance"]
    assert tiny.card("mentor")["non_embedding_parameters"] > 4 * tiny.card("intern")["non_embedding_parameters"]


# Runs in mergekit's environment: the mean of two checkpoints of one layout, and copies of all of them.
MERGEKIT = """
import pathlib, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
out, *folders = map(pathlib.Path, sys.argv[1:])
wanted = {folder.name: [folder] for folder in folders}
wanted["mean"] = [folder for folder in folders if folder.name in ("resident", "student")]
for name, merged in wanted.items():
    models = [{"model": str(folder), "parameters": {"weight": 1 / len(merged)}} for folder in merged]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    run_merge(MergeConfiguration.model_validate(recipe), str(out / name), MergeOptions(copy_tokenizer=True))
"""


def weights(folder):
    return {name: tensor for part in folder.glob("*.safetensors") for name, tensor in load_file(part).items()}


def test_mergekit_reads_every_checkpoint(tmp_path):
    """A copy is the model, the mean of two is their mean, and what mergekit wrote is read and answers as before."""
    if not (python := os.environ.get("ZFU_MERGEKIT")):
        pytest.skip("ZFU_MERGEKIT does not name a Python that has mergekit 0.1.5")
    folders = [str(tiny.path(name)) for name in HERE]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-c", MERGEKIT, str(tmp_path), *folders], check=True, env=quiet, capture_output=True)
    for name in HERE:
        torch.testing.assert_close(weights(tmp_path / name), weights(tiny.path(name)), rtol=0, atol=0)
    mean, two = weights(tmp_path / "mean"), [weights(tiny.path(name)) for name in ("resident", "student")]
    for name, tensor in mean.items():
        torch.testing.assert_close(
            tensor.float(), (two[0][name].float() + two[1][name].float()) / 2, rtol=2**-7, atol=0
        )
    request = GenRequest(prompt(reasoning.problems(1, reasoning.HELD_OUT)[0]), max_tokens=40)
    names = ("tiny:intern", f"hf:{tmp_path / 'intern'}")
    told = [models.load(name, device="cpu", cache=False).generate([request])[0].text for name in names]
    assert told[0] == told[1]
