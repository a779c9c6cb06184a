"""The model: what reaches a token, what the cache changes (nothing), and what transformers expects."""

import runpy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from zfu_lib.attention.cache import RollingCache
from zfu_lib.attention.swat import balanced_slopes, receptive_field
from zfu_lib.attention.swat_model import SwatConfig, SwatForCausalLM

VOCAB, WINDOW = 31, 5
VARIANTS = {
    "swat": {},
    "balanced-gqa": {"slopes": "balanced", "slopes_ratio": (3, 1), "num_key_value_heads": 2, "sigmoid_bias": -1.0},
    "no-rope": {"slopes": "history", "rope": False},
    "released-code": {"activation": "softmax", "slopes": "recency"},
    "full-softmax": {"activation": "softmax", "slopes": None, "window": None},
    "full-sigmoid": {"slopes": None, "window": None},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(variant="swat", dtype=torch.float64, seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "window": WINDOW}
    model = SwatForCausalLM(SwatConfig(**shape | VARIANTS[variant] | changes)).eval().to(dtype)
    # Large weights, so that what should differ does so visibly.
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def tokens(B, T, seed=0):
    return torch.randint(1, VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def written_out(model, ids):
    """The whole model once more, densely, from its weights alone."""
    c, weights = model.config, dict(model.named_parameters())
    B, T = ids.shape
    H, K, D = c.num_attention_heads, c.num_key_value_heads, c.hidden_size // c.num_attention_heads
    position = torch.arange(T)
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance < (c.window or T))
    bias = torch.zeros(H, T, T, dtype=torch.float64)
    if c.slopes:
        bias = balanced_slopes(H, c.slopes, c.slopes_ratio).double()[:, None, None] * distance
    bias = (bias + c.sigmoid_bias).masked_fill(~seen, -torch.inf)

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * weights[name + ".weight"]

    def turn(x):
        angle = position[:, None] * c.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack(
            [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], -1
        ).flatten(-2)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(c.num_hidden_layers):
        at = f"model.layers.{layer}."
        qkv = (norm(x, at + "attention_norm") @ weights[at + "attention.qkv_proj.weight"].T).view(B, T, -1, D)
        q, k, v = (y.transpose(1, 2) for y in qkv.split([H, K, K], 2))
        if c.rope:
            q, k = turn(q), turn(k)
        k, v = (y.repeat_interleave(H // K, 1) for y in (k, v))
        z = q @ k.mT / D**0.5 + bias
        A = z.sigmoid() if c.activation == "sigmoid" else z.softmax(-1)
        x = x + (A @ v).transpose(1, 2).reshape(B, T, -1) @ weights[at + "attention.o_proj.weight"].T
        y, mlp = norm(x, at + "mlp_norm"), at + "mlp."
        gated = F.silu(y @ weights[mlp + "gate_proj.weight"].T) * (y @ weights[mlp + "up_proj.weight"].T)
        x = x + gated @ weights[mlp + "down_proj.weight"].T
    return norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T


@variants
@torch.no_grad()
def test_logits_equal_the_model_written_out(variant):
    model, ids = build(variant), tokens(2, 40)
    torch.testing.assert_close(model(ids).logits, written_out(model, ids), rtol=1e-9, atol=1e-9)


@variants
@pytest.mark.parametrize("weights", [False, True])
@torch.no_grad()
def test_nothing_leaks_from_the_future(variant, weights):
    model, ids, changed = build(variant, torch.float32), tokens(1, 60), 33
    before = model(ids, output_attentions=weights).logits
    ids[0, changed] = ids[0, changed] % (VOCAB - 1) + 1
    differs = (model(ids, output_attentions=weights).logits != before).any(-1)[0]
    assert not differs[:changed].any()
    assert differs[changed]


@pytest.mark.parametrize(("window", "layers"), [(1, 2), (3, 2), (5, 3), (16, 1)])
@torch.no_grad()
def test_receptive_field_is_exact(window, layers):
    """A token reaches exactly (w - 1) L positions ahead: every one of them changes, none beyond, bit for bit."""
    model = build(window=window, num_hidden_layers=layers)
    T, changed = 64, 20
    ids = tokens(1, T)
    before = model(ids).logits
    ids[0, changed] = ids[0, changed] % (VOCAB - 1) + 1
    differs = (model(ids).logits != before).any(-1)[0].nonzero().flatten().tolist()
    assert differs == list(range(changed, changed + receptive_field(window, layers)))


@variants
@pytest.mark.parametrize("pieces", [[1] * 23, [7] + [1] * 16, [3, 4, 1, 1, 9, 5], [12, 11], [2, 1, 20]])
@torch.no_grad()
def test_cached_equals_full(variant, pieces):
    model, ids = build(variant), tokens(2, 23)
    cache = model.new_cache()
    parts = [model(piece, past_key_values=cache).logits for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-10, atol=1e-10)
    assert cache.get_seq_length() == 23


@pytest.mark.parametrize("variant", ["swat", "balanced-gqa", "full-sigmoid"])
def test_on_a_gpu_a_kernel_reads_the_cache(variant, check_decoding_by_kernel):
    check_decoding_by_kernel(build(variant, torch.float32), tokens(2, 14))


@torch.no_grad()
def test_cached_equals_full_in_fp32_far_into_a_text():
    model, ids = build(dtype=torch.float32), tokens(1, 3000)
    cache = model.new_cache()
    model(ids[:, :2950], past_key_values=cache)
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(2950, 3000)]
    full = model(ids).logits
    torch.testing.assert_close(torch.cat(steps, 1), full[:, 2950:], rtol=1e-4, atol=1e-4 * full.abs().max().item())


@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_cache_bytes_are_constant_and_exactly_window_slots(kv_heads):
    model = build(dtype=torch.float32, num_key_value_heads=kv_heads)
    cache = model.new_cache()
    sizes = set()
    for piece in tokens(2, 40).split([1] * 10 + [17] + [1] * 13, dim=1):
        model(piece, past_key_values=cache)
        sizes.add(cache.nbytes)
    assert sizes == {2 * 3 * 2 * kv_heads * WINDOW * 4 * 4}  # K and V, layers, batch, heads, slots, width, bytes
    assert cache.held == WINDOW
    assert sorted(cache.position_S.tolist()) == list(range(40 - WINDOW, 40))


@torch.no_grad()
def test_without_a_window_the_cache_grows_and_keeps_all():
    model, ids = build("full-softmax"), tokens(1, 300)
    cache, logits, sizes = model.new_cache(), [], []
    for piece in ids.split([60, *[1] * 80, 160], dim=1):
        logits.append(model(piece, past_key_values=cache).logits)
        sizes.append(cache.nbytes)
    assert cache.held == 300
    assert sizes[0] < sizes[-2] < sizes[-1]
    full = model(ids)
    torch.testing.assert_close(torch.cat(logits, 1), full.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full.logits[:, -3:], rtol=1e-10, atol=1e-10)


@variants
@torch.no_grad()
def test_packed_documents_are_read_as_if_alone(variant):
    """In the fast path and where weights are formed: nothing of another document is seen."""
    model, ids = build(variant), tokens(2, 40)
    lengths = ([11, 1, 28], [40])
    document = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in lengths])
    packed = model(ids, document=document).logits
    for row, pieces in enumerate(lengths):
        alone = [model(part).logits for part in ids[row : row + 1].split(pieces, dim=1)]
        torch.testing.assert_close(packed[row : row + 1], torch.cat(alone, 1), rtol=1e-9, atol=1e-9)
    shown = model(ids, document=document, output_attentions=True)
    torch.testing.assert_close(shown.logits, packed, rtol=1e-9, atol=1e-9)
    apart = document[:, None, :, None] != document[:, None, None, :]
    assert all((A.masked_select(apart) == 0).all() for A in shown.attentions)
    ids[0, 4] = ids[0, 4] % (VOCAB - 1) + 1
    changed = (model(ids, document=document).logits != packed).any(-1)
    assert changed[0, 4]
    assert not changed[0, 11:].any(), "to the last bit"


@variants
@torch.no_grad()
def test_left_padding_changes_no_logit(variant):
    """One batch: the first row padded by 6, the second bare. Each gives the logits it gives alone, cached or not."""
    model, ids = build(variant), tokens(2, 30)
    short = ids[:1, 6:]
    padded = torch.cat([torch.zeros_like(ids[:1, :6]), short], 1)
    batch, mask = torch.cat([padded, ids[1:]]), torch.ones_like(ids)
    mask[0, :6] = 0
    alone = model(short).logits[0], model(ids[1:]).logits[0]
    close = {"rtol": 1e-9, "atol": 1e-9}
    logits = model(batch, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, 6:], alone[0], **close)
    torch.testing.assert_close(logits[1], alone[1], **close)
    assert logits.isfinite().all()

    for pieces in ([8] + [1] * 22, [3, 5, 22]):
        cache, parts, end = model.new_cache(), [], 0
        for piece in batch.split(pieces, dim=1):
            end += piece.shape[1]
            parts.append(model(piece, attention_mask=mask[:, :end], past_key_values=cache).logits)
        logits = torch.cat(parts, 1)
        torch.testing.assert_close(logits[0, 6:], alone[0], **close)
        torch.testing.assert_close(logits[1], alone[1], **close)


@variants
@torch.no_grad()
def test_generate_is_argmax_of_the_full_model(variant):
    """Greedy decoding through generate and its cache, one row left-padded, equals the full model run anew."""
    model, ids = build(variant), tokens(2, 9)
    batch, mask = ids.clone(), torch.ones_like(ids)
    batch[0, :4], mask[0, :4] = 0, 0
    out = model.generate(batch, attention_mask=mask, max_new_tokens=15, do_sample=False, pad_token_id=0)
    for row, start in ((0, 4), (1, 0)):
        text = ids[row : row + 1, start:]
        for _ in range(15):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert out[row, start:].tolist() == text[0].tolist()


@torch.no_grad()
def test_generate_uses_the_rolling_cache_one_token_at_a_time(monkeypatch):
    model, seen = build(), []
    original = SwatForCausalLM.forward

    def spy(self, input_ids=None, **kwargs):
        output = original(self, input_ids=input_ids, **kwargs)
        seen.append((input_ids.shape[1], type(output.past_key_values), output.past_key_values.nbytes))
        return output

    monkeypatch.setattr(SwatForCausalLM, "forward", spy)
    model.generate(tokens(1, 12), max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert [length for length, *_ in seen] == [12] + [1] * 8
    assert {kind for _, kind, _ in seen} == {RollingCache}
    assert len({size for *_, size in seen}) == 1


@torch.no_grad()
def test_generate_samples_searches_and_stops():
    model, ids = build(), tokens(2, 6)
    torch.manual_seed(3)
    sampled = [model.generate(ids, max_new_tokens=12, do_sample=True, temperature=2.0, pad_token_id=0) for _ in "ab"]
    assert sampled[0].shape == (2, 18)
    assert not torch.equal(*sampled)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
    greedy = model.generate(ids[:1], max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 6:]
    stopped = model.generate(
        ids[:1], max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=greedy[4].item()
    )[0, 6:]
    assert stopped.tolist() == greedy[: greedy.tolist().index(greedy[4].item()) + 1].tolist()


@variants
@torch.no_grad()
def test_asked_for_weights_and_states_change_no_logit(variant):
    model, ids = build(variant), tokens(2, 30)
    plain = model(ids).logits
    out = model(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(out.logits, plain, rtol=1e-10, atol=1e-10)
    assert len(out.attentions) == 3
    assert len(out.hidden_states) == 4
    distance = torch.arange(30)[:, None] - torch.arange(30)
    outside = (distance < 0) | (distance >= (model.config.window or 30))
    for A in out.attentions:
        assert A.shape == (2, 4, 30, 30)
        assert (A[..., outside] == 0).all()
        assert (A[..., ~outside] > 0).all()
        if model.config.activation == "softmax":
            torch.testing.assert_close(A.sum(-1), torch.ones(2, 4, 30, dtype=A.dtype))
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), plain, rtol=1e-10, atol=1e-10)
    assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))


def test_loss_is_shifted_cross_entropy_and_trains():
    model, ids = build(dtype=torch.float32).train(), tokens(4, 24)
    labels = ids.clone()
    labels[:, :5] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, 4:-1].flatten(0, 1), ids[:, 5:].flatten())
    torch.testing.assert_close(out.loss, expected)
    assert out.past_key_values is None
    first, optimizer = out.loss.item(), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert model(ids, labels=labels).loss.item() < 0.5 * first


def test_what_inference_leaves_behind_can_be_trained_on():
    """Slopes and rotations are made once and kept; a first use under inference_mode must not spoil them."""
    model, ids = build(dtype=torch.float32, rope_theta=77.0), tokens(2, 37)
    with torch.inference_mode():
        model(ids)
    model.train()(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


@variants
def test_save_and_load_through_auto_classes(variant, tmp_path):
    model, ids = build(variant, torch.float32), tokens(1, 20)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(loaded) is SwatForCausalLM
    same = ("window", "activation", "slopes", "slopes_ratio", "sigmoid_bias", "rope", "num_key_value_heads")
    assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in same)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert type(AutoConfig.from_pretrained(tmp_path, local_files_only=True)) is SwatConfig


def test_untied_embeddings_are_saved_apart(tmp_path):
    model = build(dtype=torch.float32, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_initial_weights_have_the_configured_spread():
    torch.manual_seed(0)
    model = SwatForCausalLM(SwatConfig(hidden_size=128, num_hidden_layers=2))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all(), name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_running_the_module_again_registers_again(tmp_path):
    """As a notebook does that reloads its imports."""
    try:
        again = runpy.run_module("zfu_lib.attention.swat_model")
        build(dtype=torch.float32).save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
        assert type(loaded) is again["SwatForCausalLM"] is not SwatForCausalLM
    finally:
        AutoConfig.register("zfu-swat", SwatConfig, exist_ok=True)
        AutoModelForCausalLM.register(SwatConfig, SwatForCausalLM, exist_ok=True)


def test_lm_eval_scores_and_generates():
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {c: i for i, c in enumerate("?.abcdefghijklmnopqrstuvwxyz ")}
    backend = Tokenizer(models.WordLevel(letters, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="?", eos_token=".")
    model = build(dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2)
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in (("the cat", " sat"), ("a dog ran after", " it"))]
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    for (score, _), request in zip(scores, requests, strict=True):
        context, rest = (torch.tensor(tokenizer.encode(text)) for text in request.args)
        ids = torch.cat([context, rest])
        log_p = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
        expected = sum(log_p[t - 1, ids[t]].item() for t in range(len(context), len(ids)))
        assert score == pytest.approx(expected, abs=1e-4)
    options = {"until": ["zz"], "max_gen_toks": 5, "do_sample": False}
    texts = lm.generate_until(
        [Instance("generate_until", {}, (t, options), i) for i, t in enumerate(("ab", "a long one"))], disable_tqdm=True
    )
    alone = model.generate(torch.tensor([tokenizer.encode("ab")]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert texts[0] == tokenizer.decode(alone[0, 2:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 18}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 12}, "even"),
        ({"window": 0}, "window"),
        ({"activation": "relu"}, "relu"),
        ({"slopes": "steep"}, "steep"),
        ({"slopes": "balanced", "slopes_ratio": (1, 2)}, "1:2"),
        ({"slopes": None, "slopes_ratio": (2, 2)}, "slopes_ratio"),
    ],
)
def test_impossible_configurations_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        SwatConfig(**{"hidden_size": 16, "num_attention_heads": 4} | changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "exactly one"),
        ({"input_ids": tokens(1, 4), "inputs_embeds": torch.zeros(1, 4, 16)}, "exactly one"),
        ({"input_ids": tokens(1, 4)[:, :0]}, "no tokens"),
        ({"input_ids": tokens(1, 4), "attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"input_ids": tokens(1, 4), "attention_mask": torch.ones(1, 1, 4, 4)}, "attention_mask"),
        ({"input_ids": tokens(1, 4), "past_key_values": DynamicCache()}, "DynamicCache"),
        ({"input_ids": tokens(1, 4), "position_ids": torch.arange(4)[None]}, "position_ids"),
        ({"input_ids": tokens(1, 4), "document": torch.zeros(1, 3, dtype=torch.int64)}, "one integer per token"),
        ({"input_ids": tokens(1, 4), "document": torch.zeros(1, 4, dtype=torch.int64), "use_cache": True}, "not both"),
    ],
)
def test_bad_calls_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        build(dtype=torch.float32)(**arguments)
