import copy
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from zfu_lib.attention.swat_model import SwatConfig, SwatForCausalLM
from zfu_lib.lm import hf
from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.protocol import (
    ContextOverflow,
    GenRequest,
    LanguageModel,
    Ledger,
    Message,
    ModelError,
    ScoreRequest,
    Unsupported,
)
from zfu_lib.lm.tokenizer import VOCABULARY, byte_tokenizer, word_tokenizer

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=12)),
}
PROMPTS = ["a", "two words", "a prompt that is longer than the others", "hé 世 🙂", "two worms", "x" * 60]


def build(kind="llama", tokenizer=None, seed=0, **options):
    torch.manual_seed(seed)
    model = KINDS[kind]()
    with torch.no_grad():
        # Printable characters and the end are likely, so texts are readable and of different lengths.
        model.get_output_embeddings().weight[:32] *= 0.1
        model.get_output_embeddings().weight[127:] *= 0.3
        model.get_output_embeddings().weight[257] *= 5
    return TransformersLM(model, tokenizer or byte_tokenizer(), **options)


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build()


def logits(lm, ids):
    with torch.no_grad():
        return lm.model.eval()(torch.tensor([ids])).logits[0].double()


def cycle(text):
    """A model that repeats ``text``, whose bytes all differ: one-hot embeddings, the head says which byte is next."""
    codes = text.encode()
    assert len(set(codes)) == len(codes)
    shape = SHAPE | {"hidden_size": VOCABULARY + 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape | {"num_hidden_layers": 0, "intermediate_size": 1}))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, VOCABULARY + 1))
        model.lm_head.weight.zero_()
        for i, code in enumerate(codes):
            model.lm_head.weight[codes[(i + 1) % len(codes)], code] = 1.0
    return TransformersLM(model, byte_tokenizer())


# Generation


def test_it_is_a_language_model(llama):
    assert isinstance(llama, LanguageModel)
    assert llama.generate([]) == llama.score([]) == []


def test_greedy_batches_equal_transformers_generate_one_by_one(lm):
    lengths = [40, 3, 25, 60, 33, 12]
    requests = [GenRequest(prompt, max_tokens=n) for prompt, n in zip(PROMPTS, lengths)]
    results = lm.generate(requests)
    for request, result in zip(requests, results):
        ids = torch.tensor([list(request.prompt.encode())])
        out = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False
        )
        new = out[0, ids.shape[1] :].tolist()
        assert result.n_out == len(new)
        assert result.n_prompt == ids.shape[1]
        assert result.finish == ("stop" if new[-1] == 257 else "length")
        assert result.text == lm.tokenizer.decode(new, skip_special_tokens=True)
        assert lm.generate([request])[0].text == result.text
    assert {r.finish for r in results} == {"stop", "length"}
    assert len({r.n_out for r in results}) > 3


def test_batches_are_bounded_and_do_not_change_results(monkeypatch):
    lm, sizes = build(), []
    requests = [GenRequest(prompt, max_tokens=5 + 2 * i, logprobs=True) for i, prompt in enumerate(PROMPTS * 3)]
    expected = lm.generate(requests)
    forward = lm._forward
    monkeypatch.setattr(lm, "_forward", lambda ids, *rest, **o: (sizes.append(ids.shape), forward(ids, *rest, **o))[1])
    lm.batch_tokens = 120
    for one, other in zip(lm.generate(requests), expected):
        assert one.text == other.text
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert 1 < max(rows for rows, _ in sizes) < len(requests)
    assert all(rows * width <= 120 for rows, width in sizes)


def test_finished_rows_leave_the_batch(llama, monkeypatch):
    sizes, forward = [], llama._forward
    monkeypatch.setattr(
        llama, "_forward", lambda ids, *rest, **o: (sizes.append(len(ids)), forward(ids, *rest, **o))[1]
    )
    llama.generate([GenRequest("some", max_tokens=n) for n in (1, 2, 30)])
    assert sizes[:3] == [3, 2, 1]
    assert set(sizes[2:]) == {1}


def test_logprobs_are_those_of_the_models_own_distribution(lm):
    for temperature in (0.0, 1.3):
        requests = [
            GenRequest(prompt, max_tokens=20, logprobs=True, temperature=temperature, top_k=5, seed=i)
            for i, prompt in enumerate(PROMPTS)
        ]
        for request, result in zip(requests, lm.generate(requests)):
            prompt, new = list(request.prompt.encode()), list(result.text.encode())
            if "\ufffd" in result.text:
                continue
            expected = logits(lm, prompt + new).log_softmax(-1)[len(prompt) - 1 : -1]
            assert len(result.logprobs) == len(new)
            np.testing.assert_allclose(result.logprobs, expected[range(len(new)), new], atol=1e-4)


def test_an_end_at_once_gives_an_empty_text():
    lm = build()
    with torch.no_grad():
        lm.model.model.embed_tokens.weight.zero_()
        lm._ends = {0}
    result = lm.generate([GenRequest("abc", max_tokens=9, logprobs=True)])[0]
    assert (result.text, result.n_out, result.finish, result.logprobs) == ("", 1, "stop", ())
    assert list(lm.stream(GenRequest("abc", max_tokens=9))) == []


def test_generation_ends_before_the_first_stop_string(lm):
    whole = lm.generate([GenRequest("two words", max_tokens=60)])[0].text
    for stop in {whole[i : i + 3] for i in range(0, len(whole) - 3, 4) if "\ufffd" not in whole[i : i + 3]}:
        request = GenRequest("two words", max_tokens=60, stop=("not in it", stop), logprobs=True)
        result = lm.generate([request, GenRequest("another", max_tokens=60)])[0]
        assert result.text == whole[: whole.find(stop)]
        assert result.finish == "stop"
        assert result.n_out == len((result.text + stop).encode()) or "\ufffd" in result.text
        assert len(result.logprobs) == len(result.text.encode()) or "\ufffd" in result.text
        assert "".join(lm.stream(request)) == result.text


def test_a_stop_string_inside_a_token_and_over_its_border():
    words = ["foo", "bar", "baz"]
    tokenizer = word_tokenizer(words)
    shape = SHAPE | {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 0}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    foo, bar, baz = (tokenizer.convert_tokens_to_ids("Ġ" + word) for word in words)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for i, (now, then) in enumerate([(foo, bar), (bar, baz), (baz, foo)]):
            model.model.embed_tokens.weight[now, i] = 1
            model.lm_head.weight[then, i] = 1
    lm = TransformersLM(model, tokenizer)

    def text(*stop):
        request = GenRequest(" foo", max_tokens=6, stop=stop, logprobs=True)
        result = lm.generate([request])[0]
        assert "".join(lm.stream(request)) == result.text
        return result.text, result.n_out, len(result.logprobs)

    assert text() == (" bar baz foo bar baz foo", 6, 6)
    assert text("az") == (" bar b", 2, 2)
    assert text("r b") == (" ba", 2, 1)
    assert text("z foo b") == (" bar ba", 4, 2)
    assert text(" ") == ("", 1, 0)
    assert text("baz ", "o") == (" bar ", 3, 2)


def test_streaming_gives_whole_characters_that_add_up():
    text = "aé世🙂"
    lm = cycle(text)
    pieces = list(lm.stream(GenRequest("a", max_tokens=29)))
    assert pieces == [*"é世🙂aé世🙂aé世🙂"[:11]][: len(pieces)]
    assert "".join(pieces) == lm.generate([GenRequest("a", max_tokens=29)])[0].text
    # Cut inside a character: what there is of it is shown by the sign for it, in both.
    pieces = list(lm.stream(GenRequest("a", max_tokens=3)))
    assert pieces == ["é", "\ufffd"]
    assert lm.generate([GenRequest("a", max_tokens=3)])[0].text == "é\ufffd"
    result = lm.generate([GenRequest("a", max_tokens=29, stop=("世🙂",), logprobs=True)])[0]
    assert (result.text, result.n_out, len(result.logprobs)) == ("é", 9, 2)
    assert list(lm.stream(GenRequest("a", max_tokens=29, stop=("世🙂",)))) == ["é"]
    assert list(lm.stream(GenRequest("a", max_tokens=6, stop=("世世",)))) == ["é", "世\ufffd"]


def test_streams_equal_generate_and_come_piece_by_piece(lm):
    for i, prompt in enumerate(PROMPTS):
        request = GenRequest(prompt, max_tokens=50, temperature=0.7 * (i % 2), seed=i)
        pieces = list(lm.stream(request))
        result = lm.generate([request])[0]
        assert "".join(pieces) == result.text
        assert len(pieces) >= (result.n_out - 1) / 3
    request = GenRequest("x", max_tokens=10_000)
    with pytest.raises(ContextOverflow):
        lm.stream(request)


def test_a_sampled_text_depends_on_its_own_request_only(lm):
    options = [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.8}, {"temperature": 1.5, "top_k": 4}]
    requests = [
        GenRequest(prompt, max_tokens=30, seed=i, **options[i % 3]) for i, prompt in enumerate(PROMPTS + PROMPTS)
    ]
    together = [result.text for result in lm.generate(requests)]
    assert [lm.generate([request])[0].text for request in requests] == together
    assert [result.text for result in lm.generate([GenRequest("a", max_tokens=9), *requests[::-1]])[:0:-1]] == together
    seeds = {lm.generate([GenRequest("a", max_tokens=20, temperature=1.0, seed=seed)])[0].text for seed in range(6)}
    assert len(seeds) == 6
    shorter = lm.generate([GenRequest("a", max_tokens=7, temperature=1.0, seed=3)])[0].text
    assert lm.generate([GenRequest("a", max_tokens=30, temperature=1.0, seed=3)])[0].text.startswith(shorter)


def test_tokens_are_drawn_with_their_probabilities(llama):
    rows = [llama._row(GenRequest("a", max_tokens=9, temperature=0.8, seed=seed)) for seed in range(4000)]
    z = torch.tensor([2.0, -1.0, 1.5, -math.inf, 0.0, 1.0]).expand(len(rows), 6)
    counts = np.bincount(hf._draw(z, rows), minlength=6)
    p = (z[0].double() / 0.8).softmax(0).numpy()
    assert counts[3] == 0
    assert scipy.stats.chisquare(counts[p > 0], p[p > 0] * len(rows)).pvalue > 0.001

    def seen(**options):
        rows = [llama._row(GenRequest("a", max_tokens=9, temperature=0.8, seed=seed, **options)) for seed in range(300)]
        return set(hf._draw(z[:300], rows).tolist())

    assert seen(top_k=1) == {0} == seen(top_p=1e-9)
    assert seen(top_k=3) == {0, 2, 5}
    # The two most probable have 0.52 + 0.28 = 0.797 of everything, and 0.84 of what the first three have.
    assert seen(top_p=0.8) == {0, 2, 5}
    assert seen(top_p=0.8, top_k=3) == {0, 2} == seen(top_p=0.79)
    assert len(seen(top_p=0.99999)) == 5


def test_a_temperature_near_zero_is_greedy(llama):
    cold, greedy = llama.generate(
        [GenRequest("a", max_tokens=40, temperature=1e-9), GenRequest("a", max_tokens=40)],
    )
    assert cold.text == greedy.text


def test_prefill_is_read_and_not_returned(llama):
    with_prefill = llama.generate([GenRequest("one ", prefill="two", max_tokens=9)])[0]
    assert with_prefill.n_prompt == 7
    assert with_prefill.text == llama.generate([GenRequest("one two", max_tokens=9)])[0].text


def test_messages_go_through_the_chat_template():
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"
        "{% endif %}{% if enable_thinking is defined and not enable_thinking %}(no){% endif %}"
    )
    tokenizer = byte_tokenizer()
    lm = build(tokenizer=tokenizer)
    turns = (Message("system", "be"), Message("user", "say"))
    with pytest.raises(Unsupported, match="no chat template"):
        lm.generate([GenRequest(turns)])
    tokenizer.chat_template = template
    lm = build(tokenizer=tokenizer)
    assert lm.caps.chat
    for options, plain in (
        ({}, "<system>be<user>say<assistant>"),
        ({"prefill": "I"}, "<system>be<user>say<assistant>I"),
        ({"thinking": True}, "<system>be<user>say<assistant>"),
        ({"thinking": False, "prefill": "I"}, "<system>be<user>say<assistant>(no)I"),
    ):
        chat, text = lm.generate([GenRequest(turns, max_tokens=9, **options), GenRequest(plain, max_tokens=9)])
        assert (chat.text, chat.n_prompt) == (text.text, text.n_prompt)
    with pytest.raises(Unsupported, match="as messages"):
        lm.generate([GenRequest("plain", thinking=True)])
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(Unsupported, match="no thinking mode"):
        build(tokenizer=tokenizer).generate([GenRequest(turns, thinking=False)])


def test_a_model_with_a_cache_of_its_own_works_too():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "window": 8}
    model = SwatForCausalLM(SwatConfig(vocab_size=VOCABULARY, initializer_range=0.3, **shape))
    lm = TransformersLM(model, byte_tokenizer(), remember=100)
    requests = [GenRequest(prompt, max_tokens=5 + 3 * i) for i, prompt in enumerate(PROMPTS)]
    together = lm.generate(requests)
    for request, result in zip(requests, together):
        ids = torch.tensor([list(request.prompt.encode())])
        new = model.generate(ids, max_new_tokens=request.max_tokens, do_sample=False)[0, ids.shape[1] :]
        assert result.text == lm.tokenizer.decode(new)
    first, second = (lm.score([ScoreRequest("abc", text)])[0] for text in ("defg", "defghi"))
    np.testing.assert_allclose(second.logprob[:4], first.logprob, atol=1e-4)
    assert second.n_cached == 0


# Scoring

TEXTS = [
    ScoreRequest("two words", " and more"),
    ScoreRequest("", "a beginning"),
    ScoreRequest("hé 世", " 🙂 é"),
    ScoreRequest("only context", ""),
    ScoreRequest("", ""),
    ScoreRequest("a context that is rather long, longer than the window of any of them", "x"),
]


def check_scores(lm, requests, results):
    for request, result in zip(requests, results, strict=True):
        context = list(request.context.encode()) or [256]
        new = list(request.continuation.encode())
        logp = logits(lm, context + new).log_softmax(-1)[len(context) - 1 : -1]
        assert result.n_context == len(context)
        assert len(result.logprob) == len(result.entropy_low) == len(new)
        np.testing.assert_allclose(result.logprob, logp[range(len(new)), new], atol=1e-4)
        expected = scipy.stats.entropy(logp.exp().numpy(), base=2, axis=-1) if new else []
        np.testing.assert_allclose(result.entropy_low, expected, atol=1e-4)
        np.testing.assert_array_equal(result.entropy_low, result.entropy_high)


def test_scores_are_the_log_softmax_and_its_entropy(lm):
    check_scores(lm, TEXTS, lm.score(TEXTS))
    for request in TEXTS:
        check_scores(lm, [request], lm.score([request]))


@pytest.mark.parametrize("tokens_at_once", [1, 3, 7])
def test_scoring_in_pieces_changes_nothing(lm, monkeypatch, tokens_at_once):
    monkeypatch.setattr(hf, "LOGITS", len(TEXTS) * VOCABULARY * tokens_at_once)
    check_scores(lm, TEXTS, lm.score(TEXTS))


def test_an_equal_distribution_has_the_entropy_of_its_size():
    lm = build("qwen2")
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()
    result = lm.score([ScoreRequest("a", "bc")])[0]
    np.testing.assert_allclose(result.entropy, math.log2(VOCABULARY), rtol=1e-6)
    np.testing.assert_allclose(result.logprob, -math.log(VOCABULARY), rtol=1e-6)
    one_way = cycle("abc").score([ScoreRequest("a", "bca")])[0]
    assert one_way.entropy.max() < 0.01
    assert one_way.logprob.min() > -1e-3


def test_a_token_over_the_border_belongs_to_the_continuation():
    tokenizer = word_tokenizer(["cat", "sat"])
    torch.manual_seed(0)
    lm = TransformersLM(LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": len(tokenizer)})), tokenizer)
    whole = tokenizer("the cat sat")["input_ids"]
    assert len(whole) == 6  # the first one begins the text
    logp = logits(lm, whole).log_softmax(-1)
    for context, continuation, n_context in (("the ca", "t sat", 4), ("the cat", " sat", 5), ("the", " cat sat", 4)):
        result = lm.score([ScoreRequest(context, continuation)])[0]
        assert result.n_context == n_context
        expected = [logp[i - 1, whole[i]] for i in range(n_context, 6)]
        np.testing.assert_allclose(result.logprob, expected, atol=1e-4)


def test_a_text_that_goes_on_costs_its_new_tokens_only():
    lm, plain = build(remember=300), build()
    question, stages = "What is it? ", ["first, ", "first, then more. ", "first, then more. And at last the end."]
    other = ScoreRequest("Quite another text", " that comes between")
    before = 0
    for stage in stages:
        request = ScoreRequest(question, stage)
        ledger = Ledger()
        result = ledger.score(lm, [request, other])[0]
        full = plain.score([request])[0]
        np.testing.assert_allclose(result.logprob, full.logprob, atol=1e-4)
        np.testing.assert_allclose(result.entropy, full.entropy, atol=1e-4)
        assert (result.n_context, full.n_cached) == (full.n_context, 0)
        assert result.n_cached == max(0, before - 1)
        before = len(question + stage)
        assert ledger.calls[0].n_read == before - result.n_cached
    # Another end after the same beginning, the same text, a beginning of it; and one too different from what is there.
    for stage, n_cached in (
        ("first, then more. Or not", 29),
        ("first, then more. Or not", 35),
        ("first, then more.", 28),
        ("second", 0),
    ):
        request = ScoreRequest(question, stage)
        result, full = lm.score([request])[0], plain.score([request])[0]
        np.testing.assert_allclose(result.logprob, full.logprob, atol=1e-4)
        assert result.n_cached == n_cached


def test_what_is_remembered_is_bounded():
    lm = build(remember=30)
    lm.score([ScoreRequest("context " * 3, "a"), ScoreRequest("other " * 4, "b")])
    assert lm.score([ScoreRequest("context " * 3, "ab")])[0].n_cached == 0
    lm.score([ScoreRequest("long " * 20, "a")])
    assert lm.score([ScoreRequest("long " * 20, "a")])[0].n_cached == 0


def test_a_cache_that_cannot_forget_is_not_used():
    lm, plain = build("window", remember=1000), build("window")
    for stage in ("short", "short, then longer than the window", "short, then longer than the window and on"):
        request = ScoreRequest("Q", stage)
        result, full = lm.score([request])[0], plain.score([request])[0]
        np.testing.assert_allclose(result.logprob, full.logprob, atol=1e-4)


# Bounds, counts and identity


def test_too_long_is_refused_before_anything_is_computed(monkeypatch):
    lm = build()
    monkeypatch.setattr(lm, "_forward", lambda *a, **o: pytest.fail("computed"))
    with pytest.raises(ContextOverflow, match="200 tokens to read and 57 to write, .* holds 256"):
        lm.generate([GenRequest("fits", max_tokens=5), GenRequest("x" * 200, max_tokens=57)])
    with pytest.raises(ContextOverflow, match="257 tokens"):
        lm.score([ScoreRequest("fits", "too"), ScoreRequest("x" * 200, "y" * 57)])
    assert build(tokenizer=byte_tokenizer(model_max_length=99)).context == 99


WORDS = word_tokenizer(["cat", "cats", "the", "sat", "é"])


@settings(deadline=None, max_examples=60)
@given(st.text("catsheé 世🙂", max_size=14), st.integers(-1, 12))
def test_truncate_gives_the_longest_beginning(text, n):
    for lm in (COUNTERS["words"], COUNTERS["bytes"]):
        fits = [end for end in range(len(text) + 1) if lm.count(text[:end]) <= max(n, 0)]
        assert lm.truncate(text, n) == text[: max(fits)]
        assert lm.count(text) == len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def counter(tokenizer):
    shape = SHAPE | {"vocab_size": len(tokenizer), "num_hidden_layers": 0}
    return TransformersLM(LlamaForCausalLM(LlamaConfig(**shape)), tokenizer)


COUNTERS = {"words": counter(WORDS), "bytes": counter(byte_tokenizer())}


def test_parameters_are_counted_with_and_without_embeddings():
    table = VOCABULARY * 48
    for kind, heads in (("llama", 0), ("qwen2", 1)):
        model = build(kind).model
        everything = sum(p.numel() for p in model.parameters())
        assert TransformersLM(model, byte_tokenizer()).n_params == everything
        assert TransformersLM(model, byte_tokenizer(), count_embeddings=False).n_params == everything - table
        model.config.zfu = {"family": "tiny"}
        assert TransformersLM(model, byte_tokenizer()).n_params == everything - table
        assert everything > (1 + heads) * table
    assert TransformersLM(model, byte_tokenizer(), n_params=7).n_params == 7


def test_wall_time_is_shared_out(llama):
    import time

    began = time.perf_counter()
    results = llama.generate([GenRequest("a", max_tokens=n) for n in (2, 40, 40)])
    spent = time.perf_counter() - began
    assert 0.5 * spent < sum(r.seconds for r in results) <= spent
    assert results[0].seconds < results[1].seconds


def test_a_model_in_training_stays_in_training():
    lm = build()
    lm.model.train()
    lm.generate([GenRequest("a", max_tokens=2)])
    lm.score([ScoreRequest("a", "b")])
    assert lm.model.training
    assert lm.model.config.use_cache


# Loading


@pytest.fixture
def folder(tmp_path):
    lm = build()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_quietly_and_equals_the_model_saved(folder, capfd):
    capfd.readouterr()
    lm, saved = TransformersLM(folder), build()
    request = GenRequest("two words", max_tokens=20)
    assert lm.generate([request])[0].text == saved.generate([request])[0].text
    assert (lm.name, lm.model.dtype, lm.n_params) == ("model", torch.float32, saved.n_params)
    assert capfd.readouterr() == ("", "")
    assert TransformersLM(folder, dtype="bfloat16").model.dtype is torch.bfloat16


def test_identity_tells_weights_tokenizer_and_number_format_apart(folder):
    first = TransformersLM(folder).identity
    assert first.startswith("sha256:")
    assert first == TransformersLM(str(folder)).identity
    identities = {first, TransformersLM(folder, dtype="bfloat16").identity}
    (folder / "card.json").write_text("{}")
    assert TransformersLM(folder).identity == first
    word_tokenizer(["a"]).save_pretrained(folder)
    identities.add(hf.folder_identity(folder))
    build(seed=1).model.save_pretrained(folder)
    identities.add(hf.folder_identity(folder))
    assert len(identities) == 4
    assert build().identity == build().identity != build(seed=1).identity


def test_what_cannot_be_loaded_is_explained(folder, tmp_path, monkeypatch):
    def refused(source=folder, **options):
        with pytest.raises(ModelError) as caught:
            TransformersLM(source, **options)
        assert str(source) in str(caught.value)
        return str(caught.value)

    assert "is not a folder" in refused(str(tmp_path / "nowhere"))
    assert "no config.json" in refused(tmp_path)
    tokenizer = (folder / "tokenizer.json").read_text()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer cannot be loaded" in refused()
    (folder / "tokenizer.json").write_text(tokenizer)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    assert "its model cannot be loaded" in refused()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled ones (pytorch_model.bin)" in refused()
    (folder / "pytorch_model.bin").unlink()
    assert "no weights in safetensors; add them" in refused()
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "the weights lack 9 tensors of the model" in refused()
    (folder / "config.json").write_text(json.dumps(config))
    word_tokenizer(["one"]).save_pretrained(folder)
    assert "more than the model" in refused()


def test_code_of_a_checkpoint_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unknown", "auto_map": own}))
    (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="its model cannot be loaded"):
        TransformersLM(folder)


def test_an_id_without_a_hub_is_explained(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="some/model is no folder here, and the hub did not give its model"):
        TransformersLM("some/model")


@pytest.mark.parametrize("bias", [False, True])
def test_the_faster_product_is_the_same_product(bias, monkeypatch):
    torch.manual_seed(0)
    plain = torch.nn.Linear(48, 80, bias=bias)
    fast = copy.deepcopy(plain)
    fast.__class__ = hf._Linear
    monkeypatch.setattr(hf, "SMALL", 1)
    for x in (torch.randn(1, 48), torch.randn(3, 5, 48), torch.randn(4, 6, 48)[:, -1:], torch.randn(2, 48, 7).mT):
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
        fast(x).sum().backward()
    assert fast.weight.grad is not None
    assert fast(torch.randn(2, 48)).requires_grad
    with torch.inference_mode():
        double = copy.deepcopy(fast).double()
        torch.testing.assert_close(double(x.double()), plain.double()(x.double()))


def test_wrong_use_is_explained():
    model = build().model
    with pytest.raises(ModelError, match="needs its tokenizer"):
        TransformersLM(model)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no GPU"):
            TransformersLM(model, byte_tokenizer(), device="cuda")
