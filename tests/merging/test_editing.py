"""The editors that MM4KE is held against, each by the property that defines it, and the metrics by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.data import gazetteer
from zfu_lib.data.edits import Case, Question
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.merging import mm4ke
from zfu_lib.merging.editing import facts, locate, memory, metrics, tuning
from zfu_lib.merging.editing.facts import EditError

TOKENIZER = word_tokenizer(gazetteer.WORDS)
CASES = gazetteer.cases(4, 0)
torch.manual_seed(0)
MODEL = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.2,
        eos_token_id=TOKENIZER.eos_token_id,
    )
).eval()
IDS = torch.tensor([row[:20] for text in gazetteer.texts(24, 4, 1) if len(row := TOKENIZER(text)["input_ids"]) >= 20])
LOCATE = locate.Locate((0, 1), steps=8, essence="records say that {}", covariance_weight=1e-6)
C = locate.covariances(MODEL, IDS, (0, 1))


def copied():
    return copy.deepcopy(MODEL)


def down(model, layer):
    return model.model.layers[layer].mlp.down_proj.weight


def moved(model):
    return {n for (n, a), b in zip(model.named_parameters(), MODEL.parameters()) if not torch.equal(a, b)}


# Keys and second moments.


def test_a_key_enters_down_proj_at_the_last_token_of_the_subject():
    for case, key in zip(CASES, locate.keys(MODEL, TOKENIZER, CASES, 1)):
        ids = TOKENIZER(case.prompt)["input_ids"]
        end = facts.subject_end(TOKENIZER, case)
        assert TOKENIZER.decode(ids[end]).strip() == case.subject.split(" ")[-1]
        with locate.entering(MODEL.model.layers[1].mlp.down_proj) as seen:
            MODEL(torch.tensor([ids]))
        torch.testing.assert_close(key, seen[0][0, end], atol=1e-5, rtol=1e-4)


def test_the_second_moment_is_the_mean_of_outer_products():
    with locate.entering(MODEL.model.layers[0].mlp.down_proj) as seen:
        MODEL(IDS)
    k = seen[0].flatten(0, 1).double()
    torch.testing.assert_close(C[0], sum(torch.outer(x, x) for x in k) / len(k))


def test_a_subject_that_is_not_in_the_prompt_is_refused():
    with pytest.raises(EditError, match="subject 'nobody' is not in the prompt"):
        locate.rome(copied(), TOKENIZER, replace(CASES[0], subject="nobody"), LOCATE, C)


# ROME, MEMIT, AlphaEdit.


def test_rome_maps_the_key_to_the_value_and_spares_keys_that_are_orthogonal_to_it():
    model = copied()
    value, _ = locate.values(MODEL, TOKENIZER, CASES[:1], MODEL.model.layers[0].mlp, LOCATE)
    (key,) = locate.keys(MODEL, TOKENIZER, CASES[:1], 0)
    locate.rome(model, TOKENIZER, CASES[0], LOCATE, C)
    torch.testing.assert_close(down(model, 0) @ key, value[0], atol=1e-4, rtol=1e-3)
    other = torch.randn(24, dtype=torch.double)
    whitened = torch.linalg.solve(locate._ridged(C[0]), key.double())
    other -= (other @ whitened) / (whitened @ whitened) * whitened
    change = (down(model, 0) - down(MODEL, 0)).double()
    assert (change @ other).norm() < 1e-4 * change.norm() * other.norm()
    assert moved(model) == {"model.layers.0.mlp.down_proj.weight"}


def test_rome_is_the_least_change_in_the_metric_of_the_keys():
    """Among all matrices with W k = v it has the smallest E |(W - W0) k'|^2 over ordinary keys k'."""
    model, (key,) = copied(), locate.keys(MODEL, TOKENIZER, CASES[:1], 0).double()
    locate.rome(model, TOKENIZER, CASES[0], LOCATE, C)
    change = (down(model, 0) - down(MODEL, 0)).double()

    def cost(d):
        return torch.trace(d @ C[0] @ d.T)

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(change.shape, generator=generator, dtype=torch.double) * change.abs().mean()
        other -= torch.outer(other @ key, key) / (key @ key)  # leaves W k as it is
        assert cost(change + other) > cost(change)


def test_a_value_makes_the_target_likelier_and_stays_near():
    value, now = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0].mlp, LOCATE)
    tight = replace(LOCATE, clamp=0.1)
    held, _ = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0].mlp, tight)
    assert ((held - now).norm(dim=1) <= 0.1 * now.norm(dim=1) * 1.001).all()
    model = copied()
    locate.rome(model, TOKENIZER, CASES[0], LOCATE, C)
    batch = facts.batch_of(MODEL, TOKENIZER, CASES[:1])
    assert facts.losses(model, batch) < facts.losses(MODEL, batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.modules())


def test_a_value_is_the_one_that_the_papers_objective_finds():
    """Written out for one fact: the target after the prompt with and without a prefix, KL(after || before), decay."""
    how = replace(LOCATE, kl=5.0, decay=0.5, clamp=0.5, prefixes=("one plus two makes three .",))
    case, mlp = CASES[0], MODEL.model.layers[0].mlp
    found, _ = locate.values(MODEL, TOKENIZER, [case], mlp, how)
    ids = lambda text: TOKENIZER(text)["input_ids"]  # noqa: E731
    target = TOKENIZER(f" {case.target}", add_special_tokens=False)["input_ids"]
    delta, start, clean = torch.zeros(16, requires_grad=True), [], None

    def said(text, end, scored):
        """Log-probabilities at the last ``scored`` positions, with the change at position ``end``."""

        def change(_module, _args, out):
            start.append(out[0, end].detach())
            return out.index_put((torch.tensor(0), torch.tensor(end)), out[0, end] + delta)

        handle = mlp.register_forward_hook(change)
        logits = MODEL(torch.tensor([text])).logits[0, -scored:].log_softmax(-1)
        handle.remove()
        return logits

    essence = ids(f"records say that {case.subject}")
    was = said(essence, len(essence) - 1, 1).detach()
    optimizer = torch.optim.Adam([delta], how.learning_rate)
    for _ in range(how.steps):
        loss = 0.0
        for prompt in (case.prompt, f"{how.prefixes[0]} {case.prompt}"):
            end = facts.subject_end(TOKENIZER, replace(case, prompt=prompt))
            told = said([*ids(prompt), *target[:-1]], end, len(target))
            loss = loss - told[torch.arange(len(target)), target].mean() / 2
            clean = start[-1] if prompt == case.prompt else clean
        now = said(essence, len(essence) - 1, 1)
        loss = loss + how.kl * (now.exp() * (now - was)).sum()
        loss = loss + how.decay * delta.norm() / clean.norm() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta *= (how.clamp * clean.norm() / delta.norm()).clamp_max(1.0)
    torch.testing.assert_close(found[0], (clean + delta).detach(), atol=1e-3, rtol=1e-3)


def test_values_of_many_facts_are_those_of_each_alone():
    how = replace(LOCATE, prefixes=("one plus two makes three .",))
    together, now = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0], how)
    in_parts, _ = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0], replace(how, together=3))
    torch.testing.assert_close(in_parts, together, atol=1e-3, rtol=1e-3)
    for case, value, was in zip(CASES, together, now):
        (alone,), (before,) = locate.values(MODEL, TOKENIZER, [case], MODEL.model.layers[0], how)
        torch.testing.assert_close(value, alone, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(was, before, atol=1e-5, rtol=1e-4)


def test_memit_reaches_its_values_where_ordinary_keys_weigh_nothing():
    """Of one layer, with few facts: what leaves the block at the subjects is what was asked for."""
    model, how = copied(), replace(LOCATE, layers=(0,))
    wanted, _ = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0], how)
    locate.memit(model, TOKENIZER, CASES, how, C)
    got = locate._leaving(model, TOKENIZER, CASES, model.model.layers[0])
    torch.testing.assert_close(got, wanted, atol=2e-2, rtol=2e-2)
    heavy = copied()
    locate.memit(heavy, TOKENIZER, CASES, replace(how, covariance_weight=1e12), C)
    assert (down(heavy, 0) - down(MODEL, 0)).abs().max() < 1e-6


def test_memit_is_the_ridge_solution():
    model, how = copied(), replace(LOCATE, layers=(0,), covariance_weight=3.0)
    K = locate.keys(MODEL, TOKENIZER, CASES, 0).double().T
    wanted, now = locate.values(MODEL, TOKENIZER, CASES, MODEL.model.layers[0], how)
    locate.memit(model, TOKENIZER, CASES, how, C)
    D, R = (down(model, 0) - down(MODEL, 0)).double(), (wanted - now).double().T
    # gradient of |D K - R|^2 + 3 tr(D C D^T)
    gradient = (D @ K - R) @ K.T + 3.0 * D @ C[0]
    assert gradient.norm() < 1e-3 * (R @ K.T).norm()


def test_alphaedit_leaves_preserved_keys_alone():
    """Keys outside the null space, and keys of nobody that is edited, come out as before."""
    threshold = torch.linalg.eigvalsh(C[0])[12].item()
    how = replace(LOCATE, layers=(0,), null_threshold=threshold, null_l2=1e-3)
    model, write = copied(), locate.AlphaEdit(how, C)
    P = write.projections[0]
    torch.testing.assert_close(P @ P, P)
    write(model, TOKENIZER, CASES[:2])
    change = (down(model, 0) - down(MODEL, 0)).double()
    assert change.norm() > 0
    size, vectors = torch.linalg.eigh(C[0])
    preserved = vectors[:, size > threshold]
    assert (change @ preserved).norm() < 1e-4 * change.norm()
    K = locate.keys(MODEL, TOKENIZER, CASES[:2], 0).double().T
    torch.testing.assert_close(write.edited[0], K @ K.T)


def test_alphaedit_without_a_null_space_says_so():
    with pytest.raises(EditError, match=r"no null space below 0.0 in layers \[0, 1\]"):
        locate.AlphaEdit(replace(LOCATE, null_threshold=0.0), {k: v + torch.eye(24) for k, v in C.items()})


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(EditError, match="no layer 5; the model has layers 0 to 1"):
        locate.rome(copied(), TOKENIZER, CASES[0], replace(LOCATE, layers=(5,)), {5: C[0]})
    for edit in (
        lambda how: locate.rome(copied(), TOKENIZER, CASES[0], how, {0: C[0]}),
        lambda how: locate.memit(copied(), TOKENIZER, CASES, how, {0: C[0]}),
        lambda how: locate.AlphaEdit(how, {0: C[0]}),
    ):
        with pytest.raises(EditError, match="no second moment of the keys of layer 1"):
            edit(replace(LOCATE, layers=(1,)))


# GRACE and ICE.


def test_grace_answers_its_edits_and_nothing_else():
    model = copied()
    book = memory.Grace(model, memory.GraceSettings(1, epsilon=1e-2, steps=60))
    for case in CASES:
        book.edit(TOKENIZER, case)
    assert moved(model) == set()
    batch = facts.batch_of(model, TOKENIZER, CASES)
    said = model(batch.inputs).logits.argmax(-1)
    scored = batch.labels != facts.IGNORED
    assert (said[scored] == batch.labels[scored]).all()
    with torch.no_grad():
        elsewhere = model(IDS).logits
        torch.testing.assert_close(elsewhere, MODEL(IDS).logits)
        book.remove()
        assert torch.equal(model(batch.inputs).logits, MODEL(batch.inputs).logits)


def test_grace_balls_grow_shrink_and_never_disagree():
    model = copied()
    book = memory.Grace(model, memory.GraceSettings(1, epsilon=1.0))
    at = lambda x: torch.full((24,), float(x)) / 24**0.5  # noqa: E731 (a point at distance x from the origin)
    value = torch.zeros(16)
    book._add(at(0), torch.tensor(5), value)
    book._add(at(1.5), torch.tensor(5), value)  # the same token in reach: the ball grows over it
    assert (len(book.keys), book.radii.tolist()) == (1, pytest.approx([1.5]))
    book._add(at(2), torch.tensor(7), value)  # another token: both balls end half-way
    assert len(book.keys) == 2
    assert book.radii[0] + book.radii[1] <= 2 + 1e-6
    book._add(at(9), torch.tensor(7), value)  # out of reach
    assert (len(book.keys), book.radii[2].item()) == (3, 1.0)
    book._add(at(9), torch.tensor(8), value + 1)  # the same place again: the later answer holds
    assert (len(book.keys), book.labels[2].item(), book.values[2, 0].item()) == (3, 8, 1.0)


def test_in_context_editing_puts_the_fact_before_the_question():
    told = memory.in_context(gazetteer.note)
    assert told(CASES[0], "who ?") == f"note : {CASES[0].prompt} {CASES[0].target} . who ?"


# Fine-tuning.


def test_low_rank_changes_have_low_rank_and_touch_only_what_is_named():
    model = copied()
    tuning.lora(model, TOKENIZER, CASES, rank=2, epochs=3, matrices=("q_proj", "v_proj"))
    assert {name.split(".")[-2] for name in moved(model)} == {"q_proj", "v_proj"}
    for (_, a), b in zip(model.named_parameters(), MODEL.parameters()):
        if a.ndim == 2:
            assert torch.linalg.matrix_rank((a - b).detach(), atol=1e-5) <= 2
    with pytest.raises(EditError, match="no weights named w1; a block has "):
        tuning.lora(copied(), TOKENIZER, CASES, matrices=("w1",))


def test_a_folded_model_is_an_ordinary_one_that_has_learnt():
    model = copied()
    every = {"matrices": (*facts.FFN, *facts.ATTENTION), "batch_size": 3}
    updates = tuning.lora(model, TOKENIZER, CASES, rank=4, epochs=50, learning_rate=1e-2, **every)
    assert updates == 100
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in MODEL.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    batch = facts.batch_of(model, TOKENIZER, CASES)
    # The output layer, 16 wide and not adapted, holds the loss above 3.
    assert facts.losses(model, batch).max() < 0.75 * facts.losses(MODEL, batch).min()


def test_the_norm_constraint_holds_every_weight():
    model = copied()
    tuning.ft_l(model, TOKENIZER, CASES, tuning.ft(1, 1e-2, 5), norm=0.003)
    change = (down(model, 1) - down(MODEL, 1)).abs()
    assert 0 < change.max() <= 0.003 + 1e-7
    assert moved(model) == {"model.layers.1.mlp.down_proj.weight"}


def test_penalties_are_zero_at_the_start_and_what_they_say_afterwards():
    model, how = copied(), tuning.sft(2, 1e-2)
    l2, kl = tuning.l2_to_start(model, how, 2.0), tuning.kl_to(MODEL, model, IDS, 3.0, rows=400)
    assert l2().item() == 0
    assert abs(kl().item()) < 1e-5
    mm4ke.r_sft(model, facts.batch_of(model, TOKENIZER, CASES), how)
    distance = sum((a - b).square().sum() for a, b in zip(model.parameters(), MODEL.parameters()))
    torch.testing.assert_close(l2(), 2.0 * distance)
    p, q = (m(IDS).logits.log_softmax(-1) for m in (MODEL, model))
    mean = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(kl(), 3.0 * mean, rtol=0.2, atol=0)  # 400 rows are drawn with replacement


@pytest.mark.parametrize("kind", ["l2", "kl"])
def test_a_heavy_penalty_holds_the_model_where_it_was(kind):
    def distance(weight):
        model, how = copied(), tuning.sft(5, 3e-3)
        made = {
            "l2": lambda: tuning.l2_to_start(model, how, weight),
            "kl": lambda: tuning.kl_to(MODEL, model, IDS, weight),
        }
        mm4ke.r_sft(model, facts.batch_of(model, TOKENIZER, CASES), how, penalty=made[kind]())
        with torch.no_grad():
            p, q = (m(IDS).logits.log_softmax(-1) for m in (MODEL, model))
        return (p.exp() * (p - q)).sum(-1).mean().item()

    assert distance(100.0) < 0.5 * distance(0.0)


# Metrics.


class Says:
    """Stands in for nothing: a real model whose output layer is set so that one word follows another."""

    def __new__(cls, follows):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=len(TOKENIZER),
                intermediate_size=2,
                num_hidden_layers=1,
                num_attention_heads=1,
                head_dim=2,
                max_position_embeddings=64,
                eos_token_id=TOKENIZER.eos_token_id,
            )
        ).eval()
        ids = lambda word: TOKENIZER(f" {word}", add_special_tokens=False)["input_ids"][0]  # noqa: E731
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(len(TOKENIZER)))
            model.model.norm.weight.fill_(1.0)
            for word, after in follows.items():
                model.lm_head.weight[ids(after), ids(word)] = 1.0
        return model


CASE = Case(
    subject="dugo",
    prompt="the home of dugo is in",
    target="sik opok",
    old="tom avim",
    rephrases=("letters to dugo go to", "at night dugo sleeps in"),
    locality=(Question("the home of leba is in", "tom avim"),),
    portability=(Question("the land where dugo lives is", "one"),),
)


def test_the_metrics_of_a_model_that_is_known_word_by_word():
    first = Says({"in": "tom", "tom": "avim", "avim": ".", "to": "tom", "is": "two", "two": "."})
    edited = Says({"in": "sik", "sik": "opok", "opok": ".", "to": "tom", "tom": "avim", "avim": ".", "is": "one"})
    was = metrics.before(first, TOKENIZER, [CASE])
    same = metrics.evaluate(first, TOKENIZER, [CASE], was)
    assert same.mean("locality", "forced") == same.mean("locality") == 100
    assert same.mean("reliability") == 0
    found = metrics.evaluate(edited, TOKENIZER, [CASE], was)
    assert found.mean("reliability", "forced") == found.mean("reliability") == 100
    # "in" is followed by the target in one of two rephrasings; "to" by the old first word, then "sik" by "opok".
    assert found.mean("generalisation", "forced") == 75
    assert found.mean("generalisation") == 50
    # Both prompts end in "in", so the neighbour now gets the edit: its second word, given the old first, is as before.
    assert found.mean("locality", "forced") == 50
    assert found.mean("locality") == 0
    # "is" is followed by "one" but then by nothing known: "one" and what the zero logits name is not "one".
    assert found.mean("portability", "forced") == 100
    assert found.mean("portability") == 0


def test_without_questions_a_metric_is_not_a_number():
    bare = replace(CASE, rephrases=(), portability=())
    was = metrics.before(MODEL, TOKENIZER, [bare, CASE])
    found = metrics.evaluate(MODEL, TOKENIZER, [bare, CASE], was)
    assert np.isnan(found.free["portability"][0])
    assert not np.isnan(found.free["portability"][1])


def test_free_decoding_is_what_generate_writes():
    prompts = [case.prompt for case in CASES]
    ours = metrics.decode(MODEL, TOKENIZER, prompts, new_tokens=5, stops=())
    for prompt, text in zip(prompts, ours):
        ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
        written = MODEL.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=TOKENIZER.pad_token_id)
        assert text == TOKENIZER.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_continuations_end_before_a_stop():
    said = Says({"in": "sik", "sik": ".", ".": "tom"})
    assert metrics.decode(said, TOKENIZER, [CASE.prompt], new_tokens=4) == ["sik"]


@given(st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_normalising_twice_is_normalising_once(text):
    assert metrics.normalised(metrics.normalised(text)) == metrics.normalised(text)


def test_normalised_answers():
    assert metrics.normalised(" The  New-York, City. ") == "new york city"


def test_the_entropy_of_n_grams():
    thrice = ["a", "b"] * 3
    assert metrics.entropy(thrice, 2) == pytest.approx(-(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4)))
    assert metrics.entropy(["a", "a", "a", "a"], 3) == 0
    assert metrics.entropy(["a"], 2) == 0
    assert metrics.entropy(list(range(33)), 2) == 5


def test_fluency_sees_repetition():
    round_and_round = Says({"in": "sik", "sik": "sik"})
    (flat,) = metrics.fluency(round_and_round, TOKENIZER, [CASE.prompt], new_tokens=20)
    (lively,) = metrics.fluency(MODEL, TOKENIZER, [CASE.prompt], new_tokens=20)
    assert flat == 0 < lively


def test_the_held_out_loss_is_that_of_the_texts():
    logits = MODEL(IDS[:3]).logits[:, :-1].log_softmax(-1)
    wanted = -logits.gather(-1, IDS[:3, 1:, None])[..., 0].mean(1)
    np.testing.assert_allclose(metrics.held_out_loss(MODEL, IDS[:3]), wanted.detach().numpy(), rtol=1e-5)
    padded = torch.cat([IDS[:3], torch.full((3, 4), facts.IGNORED)], 1)
    np.testing.assert_allclose(metrics.held_out_loss(MODEL, padded), wanted.detach().numpy(), rtol=1e-5)
