"""Hidden states taken during generation, against a forward pass over the finished text."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.lm.hidden import HiddenStates
from zfu_lib.lm.protocol import ModelError
from zfu_lib.lm.tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def states(model, tokenizer, prompt, new):
    """Greedy by hand, one forward pass per token: the states that chose each token."""
    ids, found = tokenizer(prompt)["input_ids"], []
    for _ in range(new):
        out = model(torch.tensor([ids]), output_hidden_states=True)
        found.append(out.hidden_states[-1][0, -1])
        ids = [*ids, int(out.logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return torch.stack(found).detach().numpy()


@pytest.mark.parametrize("pooling", ["last_generated", "mean_generated", "last_prompt"])
def test_states_are_those_of_a_plain_forward_pass(model, pooling):
    prompts = ["a longer prompt than the other", "b", "three"]
    found = HiddenStates(*model, new_tokens=5, pooling=pooling, batch=2).encode(prompts)
    assert found.dtype == np.float32
    for prompt, vector in zip(prompts, found):
        by_hand = states(*model, prompt, 5)
        expected = {"last_generated": by_hand[-1], "mean_generated": by_hand.mean(0), "last_prompt": by_hand[0]}
        assert np.allclose(vector, expected[pooling], atol=1e-4)


def test_an_answer_ends_at_its_end_token(model):
    """Were padding after the end counted, an early end would give another vector."""
    network, tokenizer = model
    said, _ = HiddenStates(network, tokenizer, new_tokens=4).answer(["x"])
    first = tokenizer(said[0])["input_ids"][0]
    generation = network.generation_config.eos_token_id
    network.generation_config.eos_token_id = first
    try:
        found = HiddenStates(network, tokenizer, new_tokens=4, pooling="mean_generated").encode(
            ["x", "a much longer one"]
        )
    finally:
        network.generation_config.eos_token_id = generation
    assert np.allclose(found[0], states(network, tokenizer, "x", 1)[0], atol=1e-4)


def test_saved_models_load_by_folder_and_have_an_identity(model, tmp_path):
    for part in model:
        part.save_pretrained(tmp_path)
    loaded = HiddenStates.load(str(tmp_path), new_tokens=2)
    assert np.allclose(loaded.encode(["x"]), HiddenStates(*model, new_tokens=2).encode(["x"]), atol=1e-5)
    assert loaded.identity == HiddenStates(*model, new_tokens=2).identity
    assert loaded.identity != HiddenStates(*model, new_tokens=3).identity


def test_bad_input_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="no such way"):
        HiddenStates(*model, pooling="middle")
    with pytest.raises(ModelError, match="prompt 1 is empty"):
        HiddenStates(*model).encode(["x", " "])
    with pytest.raises(ModelError, match="cannot be loaded"):
        HiddenStates.load(str(tmp_path))
