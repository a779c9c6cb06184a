import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.lm import models, tiny
from zfu_lib.lm.cache import Cached
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.protocol import GenRequest, LanguageModel, ModelError
from zfu_lib.lm.server import ServerLM
from zfu_lib.lm.tokenizer import VOCABULARY, byte_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of tiny models with one in it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **shape))
    place = tmp_path / "tiny/random-a"
    model.bfloat16().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "card.json").write_text(json.dumps({"tokens": 0}))
    monkeypatch.setattr(tiny, "FOLDER", tmp_path / "tiny")
    monkeypatch.setenv("ZFU_CACHE", str(tmp_path / "cache"))
    return place


def test_a_folder_by_its_path(folder):
    lm = models.load(f"hf:{folder}", device="cpu", cache=False)
    assert isinstance(lm, TransformersLM)
    assert isinstance(lm, LanguageModel)
    assert lm.name == "hf:random-a"
    assert lm.n_params == sum(p.numel() for p in lm.model.parameters())
    assert models.load(f"hf:{folder}", cache=False, n_params=5).n_params == 5


def test_a_tiny_model_is_read_in_float32_and_counted_without_embeddings(folder):
    lm = models.load("tiny:random-a", device="cpu", cache=False)
    assert lm.name == "tiny:random-a"
    assert lm.model.dtype is torch.float32
    assert lm.n_params == sum(p.numel() for p in lm.model.model.layers.parameters()) + 32


def test_answers_are_kept_where_asked(folder, tmp_path):
    request = GenRequest("abc", max_tokens=4)
    first, again = (models.load("tiny:random-a", device="cpu").generate([request])[0] for _ in range(2))
    assert (first.replayed, again.replayed) == (False, True)
    assert first.text == again.text
    assert (tmp_path / "cache/answers.sqlite3").is_file()
    lm = models.load("tiny:random-a", device="cpu", cache=tmp_path / "mine")
    assert isinstance(lm, Cached)
    assert not lm.generate([request])[0].replayed
    assert (tmp_path / "mine/answers.sqlite3").is_file()


def test_the_same_weights_under_two_names_share_answers(folder):
    by_name, by_path = (models.load(name, device="cpu") for name in ("tiny:random-a", f"hf:{folder}"))
    assert by_name.identity == by_path.identity


def test_a_server_by_its_address() -> None:
    """Nothing is sent before the first request, so no server is needed to name one."""
    server = models.load("http://127.0.0.1:9/v1#org/model", cache=False, timeout=3)
    assert isinstance(server, ServerLM)
    assert (server.base_url, server.name) == ("http://127.0.0.1:9/v1", "org/model")
    with pytest.raises(ModelError, match="127.0.0.1:9"):
        models.load("http://127.0.0.1:9", retries=0)


@pytest.mark.parametrize("name", ["", "gpt", "hf:", "ftp://host#model", "vllm:model"])
def test_an_unknown_name_says_what_there_is(folder, name):
    with pytest.raises(ModelError, match=r"hf:PATH-OR-ID, http://HOST:PORT#MODEL and tiny:NAME \(random-a\)"):
        models.load(name)


def test_tiny_models_and_their_cards(folder, tmp_path):
    (tmp_path / "tiny/no_model").mkdir()
    assert tiny.names() == ["random-a"]
    assert tiny.path("random-a") == folder
    assert tiny.card("random-a") == {"tokens": 0}
    for name in ("", "no_model", "../tiny/random-a"):
        with pytest.raises(ModelError, match="there are: random-a"):
            models.load(f"tiny:{name}")
    (folder / "card.json").write_text("{")
    with pytest.raises(ModelError, match="no readable card.json"):
        tiny.card("random-a")
