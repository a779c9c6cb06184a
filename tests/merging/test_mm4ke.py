"""R-SFT and the merge back: the dossier of the method as properties, on a random model of two layers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from zfu_lib.data import gazetteer
from zfu_lib.lm.tokenizer import word_tokenizer
from zfu_lib.merging import mm4ke
from zfu_lib.merging.editing import facts, tuning
from zfu_lib.merging.editing.facts import EditError
from zfu_lib.merging.mm4ke import RSFT

TOKENIZER = word_tokenizer(gazetteer.WORDS)
CASES = gazetteer.cases(6, 0)
SHAPE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
HOW = RSFT(epochs=3, steps=4, threshold=0.1, learning_rate=5e-3)


def model_of(kind="llama", **shape):
    torch.manual_seed(0)
    config, of = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    return of(config(**SHAPE | shape)).eval()


MODEL = model_of()


def copied():
    return copy.deepcopy(MODEL)


def batch(model=MODEL, cases=CASES):
    return facts.batch_of(model, TOKENIZER, cases)


def weights(model):
    return mm4ke.weights_of(model)


# Encoding and losses.


def test_a_loss_is_that_of_the_target_alone():
    """Against logits of each fact on its own, without padding."""
    for case, loss in zip(CASES, facts.losses(MODEL, batch())):
        read = TOKENIZER(case.prompt)["input_ids"]
        written = TOKENIZER(f" {case.target}", add_special_tokens=False)["input_ids"]
        logits = MODEL(torch.tensor([read + written])).logits[0].log_softmax(-1)
        said = [-logits[len(read) - 1 + k, token] for k, token in enumerate(written)]
        torch.testing.assert_close(loss, torch.stack(said).mean(), atol=1e-5, rtol=1e-5)


def test_the_last_token_loss_never_reads_the_target():
    """FT-L asks the last token of the prompt for every token of the target."""
    case = next(c for c in CASES if len(c.target.split()) == 2)
    read = TOKENIZER(case.prompt)["input_ids"]
    written = TOKENIZER(f" {case.target}", add_special_tokens=False)["input_ids"]
    last = MODEL(torch.tensor([read])).logits[0, -1].log_softmax(-1)
    (loss,) = facts.last_token_losses(MODEL, batch(cases=[case]))
    torch.testing.assert_close(loss, -last[written].mean(), atol=1e-5, rtol=1e-5)


def test_rows_cut_columns_that_only_others_need():
    whole = batch()
    for i in range(len(CASES)):
        part = whole.rows([i])
        assert (part.labels[0, -1] != facts.IGNORED).item()
        torch.testing.assert_close(facts.losses(MODEL, part)[0], facts.losses(MODEL, whole)[i], atol=1e-5, rtol=1e-5)


# R-SFT.


def test_an_infinite_threshold_changes_nothing():
    model = copied()
    log = mm4ke.r_sft(model, batch(), replace(HOW, threshold=float("inf")))
    assert log.updates == [0]
    assert all((a == b).all() for a, b in zip(weights(model).values(), weights(MODEL).values()))


def test_a_sample_below_the_threshold_is_left_before_the_update():
    """With the threshold between the losses of two samples, one update a step is made for the larger only."""
    losses = facts.losses(MODEL, batch())
    high, low = losses.argmax().item(), losses.argmin().item()
    between = RSFT(1, 1, losses.mean().item(), 1e-9)
    assert mm4ke.r_sft(copied(), batch(cases=[CASES[high]]), between).updates == [1]
    assert mm4ke.r_sft(copied(), batch(cases=[CASES[low]]), between).updates == [0]


def test_only_feed_forward_weights_move():
    model, was = copied(), [p.requires_grad for p in MODEL.parameters()]
    mm4ke.r_sft(model, batch(), HOW)
    for name, values in weights(model).items():
        moved = (values != weights(MODEL)[name]).any()
        assert moved == (".mlp." in name), name
    assert [p.requires_grad for p in model.parameters()] == was


@pytest.mark.parametrize("layers", [(0,), (1,), (-1,)])
def test_layers_and_matrices_are_a_subset(layers):
    model = copied()
    mm4ke.r_sft(model, batch(), replace(HOW, layers=layers, matrices=("down_proj",)))
    moved = {n for n, v in weights(model).items() if (v != weights(MODEL)[n]).any()}
    assert moved == {f"model.layers.{layers[0] % 2}.mlp.down_proj.weight"}


def test_it_learns_and_then_has_nothing_to_do():
    # The random output layer bounds the logits: no loss of this model can fall below about 3.
    model, how = copied(), RSFT(20, 10, 4.5, 1e-2)
    log = mm4ke.r_sft(model, batch(cases=CASES[:2]), how)
    assert log.updates[-1] == 0
    assert facts.losses(model, batch(cases=CASES[:2])).max() < 4.5
    assert mm4ke.r_sft(model, batch(cases=CASES[:2]), how).updates == [0]


def test_ft_m_is_one_epoch_on_one_matrix_as_easyedit_loops():
    """Against the loop of EasyEdit's ``ft_main.py``: Adam made anew for each fact, no update below the threshold."""
    how = tuning.ft(1, learning_rate=5e-3, steps=6, threshold=1.0)
    ours, theirs = copied(), copied()
    for case in CASES:
        mm4ke.r_sft(ours, batch(cases=[case]), how)
        weight = theirs.model.layers[1].mlp.down_proj.weight
        theirs.requires_grad_(False)
        weight.requires_grad_(True)
        optimizer = torch.optim.Adam([weight], 5e-3)
        for _ in range(6):
            optimizer.zero_grad()
            loss = facts.losses(theirs, batch(cases=[case])).mean()
            if loss.item() < 1.0:
                break
            loss.backward()
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.equal(a, b), name


def test_plain_sft_never_stops_early():
    log = mm4ke.r_sft(copied(), batch(), tuning.sft(3, 1e-4))
    assert log.updates == [len(CASES)] * 3


def test_a_mini_batch_leaves_out_samples_that_are_done():
    """The gradient of a mini-batch is the mean over the samples above the threshold."""
    losses = facts.losses(MODEL, batch())
    bar, how = losses.median().item(), {"epochs": 1, "steps": 1, "learning_rate": 1e-2}
    together, alone = copied(), copied()
    mm4ke.r_sft(together, batch(), RSFT(threshold=bar, batch_size=len(CASES), **how))
    above = [case for case, loss in zip(CASES, losses) if loss >= bar]
    mm4ke.r_sft(alone, batch(cases=above), RSFT(threshold=0, batch_size=len(CASES), **how))
    for a, b in zip(weights(together).values(), weights(alone).values()):
        np.testing.assert_allclose(a, b, atol=1e-4)


# Merging back.


def test_the_ends_of_the_merge_are_the_two_models():
    model = copied()
    mm4ke.r_sft(model, batch(), HOW)
    first, tuned = weights(MODEL), weights(model)
    none, whole = mm4ke.merge_back(first, tuned, 0.4, 0.0), mm4ke.merge_back(first, tuned, 1.0, 1.0)
    for name in first:
        assert (none[name] == first[name]).all()
        assert (whole[name] == tuned[name]).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 1000))
def test_the_merge_keeps_the_largest_changes(p, s, seed):
    rng = np.random.default_rng(seed)
    first = {"model.layers.0.mlp.up_proj.weight": rng.normal(size=(6, 5)).astype(np.float32)}
    tuned = {n: w + rng.normal(size=w.shape).astype(np.float32) for n, w in first.items()}
    merged = mm4ke.merge_back(first, tuned, p, s)
    for name, w in first.items():
        delta = tuned[name] - w
        bar = np.sort(np.abs(delta).ravel())[::-1][max(1, int(p * delta.size)) - 1]
        wanted = w + s * np.where(np.abs(delta) >= bar, delta, 0)
        np.testing.assert_allclose(merged[name], wanted, atol=1e-6)
        if p == 1:
            np.testing.assert_allclose(merged[name], (1 - s) * w + s * tuned[name], atol=1e-6)


def test_edit_is_both_stages():
    ours, parts = copied(), copied()
    mm4ke.edit(ours, TOKENIZER, CASES, HOW, 0.3, 0.7, seed=3)
    mm4ke.r_sft(parts, batch(), HOW, 3)
    merged = mm4ke.merge_back(weights(MODEL), weights(parts), 0.3, 0.7)
    assert all((weights(ours)[name] == merged[name]).all() for name in merged)


def test_the_anchor_of_a_stream():
    """With learning switched off after the first batch, its change is scaled again for each later one, or not."""
    batches = [CASES[:2], CASES[2:4], CASES[4:]]
    first = copied()
    mm4ke.edit(first, TOKENIZER, batches[0], HOW, 1.0, 0.5)
    moved = weights(first)["model.layers.0.mlp.up_proj.weight"] - weights(MODEL)["model.layers.0.mlp.up_proj.weight"]
    lazy = replace(HOW, threshold=float("inf"))
    original = weights(MODEL)
    mm4ke.edit(first, TOKENIZER, batches[1], lazy, 1.0, 0.5, anchor=original)
    again = weights(first)["model.layers.0.mlp.up_proj.weight"] - original["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_allclose(again, moved / 2, atol=1e-6)
    models = {anchor: copied() for anchor in ("original", "previous")}
    for anchor, model in models.items():
        assert len(mm4ke.stream(model, TOKENIZER, batches, HOW, 1.0, 0.5, anchor=anchor)) == 3
    a, b = (weights(model)["model.layers.0.mlp.up_proj.weight"] for model in models.values())
    assert (a != b).any()
    with pytest.raises(ValueError, match="neither 'original' nor 'previous'"):
        mm4ke.stream(copied(), TOKENIZER, batches, HOW, anchor="first")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_other_layouts_are_edited_and_written(kind, tied, tmp_path):
    model = model_of(kind, tie_word_embeddings=tied)
    was = {name: p.clone() for name, p in model.named_parameters()}
    mm4ke.edit(model, TOKENIZER, CASES[:2], HOW, 0.5, 0.8)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for name, p in again.named_parameters():
        assert torch.equal(p, dict(model.named_parameters())[name])
        assert (p != was[name]).any() == (".mlp." in name), name


# Bad input.


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda c: [replace(c, target=" ".join(["sik"] * 30))], "the model's context holds 24"),
        (lambda c: [replace(c, target="")], "must both have a token"),
        (lambda c: [c, replace(c, target="sik opok")], "edits 0 and 1 contradict each other"),
        (lambda c: [], "no edits"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(bad, says):
    with pytest.raises(EditError, match=says):
        mm4ke.edit(copied(), TOKENIZER, bad(CASES[0]), HOW)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"layers": (7,)}, "no layer 7; the model has layers 0 to 1"),
        ({"matrices": ("w1",)}, "no weights named w1; a block has .*down_proj"),
    ],
)
def test_unknown_parts_are_refused(how, says):
    with pytest.raises(EditError, match=says):
        mm4ke.edit(copied(), TOKENIZER, CASES, replace(HOW, **how))


def test_other_layouts_are_refused():
    with pytest.raises(EditError, match="has not the layout"):
        facts.blocks(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "field", [{"epochs": 0}, {"steps": 0}, {"threshold": -1}, {"learning_rate": 0}, {"reset": "x"}]
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match="R-SFT out of range"):
        RSFT(**field)
    with pytest.raises(ValueError, match="must lie in"):
        mm4ke.merge_back({}, {}, 1.2, 0.5)


def test_a_loss_that_is_not_finite_is_reported():
    with pytest.raises(EditError, match="a lower learning rate may help"):
        mm4ke.r_sft(copied(), batch(), RSFT(learning_rate=1e30))


def test_of_contradictory_edits_the_last_can_be_kept():
    a, b, c = CASES[0], replace(CASES[0], target="sik opok"), CASES[1]
    assert facts.last_wins([a, c, b]) == [c, b]
    assert facts.last_wins([a, a]) == [a]
