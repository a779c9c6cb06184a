"""The model: what it computes, what the cache and packing change (nothing), and what training is told of it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from zfu_lib.attention.lazy_attention import NORMALISERS
from zfu_lib.attention.lazy_model import LazyConfig, LazyForCausalLM
from zfu_lib.lm.train import TrainConfig, train

VOCAB = 31
VARIANTS = {
    "lazy": {},
    "gqa": {"num_key_value_heads": 2},
    "softmax": {"normaliser": "softmax", "bias_length": 0},
    "elastic": {"bias_length": 0},
    "bias": {"normaliser": "softmax"},
    "window": {"window": 5},
    "renormalise": {"renormalise": True},
    "unscaled": {"tau_scaled": False, "tau_init": -0.05},
    "magnitude": {"tau_form": "magnitude", "tau_init": -0.5},
    "no-rope": {"rope": False},
    **{name: {"normaliser": name} for name in NORMALISERS if name != "softmax"},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(variant="lazy", dtype=torch.float64, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "bias_length": 7}
    model = LazyForCausalLM(LazyConfig(**shape | VARIANTS[variant] | changes)).eval().to(dtype)
    # Large weights and learned numbers of both signs, so that what should differ does so visibly.
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
        for layer in model.model.layers:
            if layer.attention.distance_bias is not None:
                layer.attention.distance_bias.normal_()
            if layer.attention.theta is not None:
                layer.attention.theta.add_(torch.linspace(-0.2, 0.2, 4))
    return model


def tokens(B, T, seed=0):
    return torch.randint(1, VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def written_out(model, ids):
    """The paper's model once more from its weights alone; only the paper's own form and its parts."""
    c, weights = model.config, dict(model.named_parameters())
    B, T = ids.shape
    H, K, D = c.num_attention_heads, c.num_key_value_heads, c.hidden_size // c.num_attention_heads
    position = torch.arange(T)
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance < (c.window or T))

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
        q, k, v = turn(q), turn(k).repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)
        z = q @ k.mT / D**0.5
        if (bias := weights.get(at + "attention.distance_bias")) is not None:
            longer = F.pad(bias, (0, max(0, T - bias.shape[1])))
            z = z + longer[:, distance.clamp_min(0)]
        w = z.masked_fill(~seen, -torch.inf).softmax(-1)
        if (tau := weights.get(at + "attention.theta")) is not None:
            i = (position + 1).clamp_max(c.window or T)[:, None]
            w = (w + tau[:, None, None] / i).clamp_min(0) * seen
        x = x + (w @ v).transpose(1, 2).reshape(B, T, -1) @ weights[at + "attention.o_proj.weight"].T
        y, mlp = norm(x, at + "mlp_norm"), at + "mlp."
        gated = F.silu(y @ weights[mlp + "gate_proj.weight"].T) * (y @ weights[mlp + "up_proj.weight"].T)
        x = x + gated @ weights[mlp + "down_proj.weight"].T
    return norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T


@pytest.mark.parametrize("variant", ["lazy", "gqa", "softmax", "elastic", "bias", "window"])
@torch.no_grad()
def test_logits_equal_the_model_written_out(variant):
    model, ids = build(variant), tokens(2, 40)
    torch.testing.assert_close(model(ids).logits, written_out(model, ids), rtol=1e-9, atol=1e-9)


@variants
@torch.no_grad()
def test_nothing_leaks_from_the_future(variant):
    model, ids, changed = build(variant, torch.float32), tokens(1, 60), 33
    before = model(ids).logits
    ids[0, changed] = ids[0, changed] % (VOCAB - 1) + 1
    differs = (model(ids).logits != before).any(-1)[0]
    assert not differs[:changed].any()
    assert differs[changed]


@variants
@pytest.mark.parametrize("pieces", [[1] * 23, [7] + [1] * 16, [3, 4, 1, 1, 9, 5]])
@torch.no_grad()
def test_cached_equals_full(variant, pieces):
    model, ids = build(variant), tokens(2, 23)
    cache = model.new_cache()
    parts = [model(piece, past_key_values=cache).logits for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["lazy", "gqa", "window", "softmax"])
def test_on_a_gpu_a_kernel_reads_the_cache(variant, check_decoding_by_kernel):
    check_decoding_by_kernel(build(variant, torch.float32), tokens(2, 14))


@pytest.mark.parametrize("variant", ["lazy", "window", "renormalise", "softpick"])
@torch.no_grad()
def test_packed_documents_are_read_as_if_alone(variant):
    """i, distances and visibility start anew with every document, in the fast path and where weights are formed."""
    model, ids = build(variant), tokens(2, 40)
    lengths = ([11, 1, 28], [40])
    document = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in lengths])
    packed = model(ids, document=document).logits
    for row, pieces in enumerate(lengths):
        alone = [model(part).logits for part in ids[row : row + 1].split(pieces, dim=1)]
        torch.testing.assert_close(packed[row : row + 1], torch.cat(alone, 1), rtol=1e-9, atol=1e-9)
    shown = model(ids, document=document, output_attentions=True).logits
    torch.testing.assert_close(shown, packed, rtol=1e-9, atol=1e-9)


@variants
@torch.no_grad()
def test_left_padding_changes_no_logit(variant):
    model, ids = build(variant), tokens(2, 30)
    batch, mask = ids.clone(), torch.ones_like(ids)
    batch[0, :6], mask[0, :6] = 0, 0
    logits = model(batch, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, 6:], model(ids[:1, 6:]).logits[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits[1], model(ids[1:]).logits[0], rtol=1e-9, atol=1e-9)
    out = model.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    text = ids[:1, 6:]
    for _ in range(5):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert out[0, 6:].tolist() == text[0].tolist()


@torch.no_grad()
def test_the_first_token_of_a_text_gets_no_attention_output_at_minus_one():
    model = build()
    for layer in model.model.layers:
        layer.attention.theta.fill_(-1.0)
    weights = model(tokens(2, 9), output_attentions=True).attentions
    assert all((A[:, :, 0] == 0).all() for A in weights)


@variants
def test_every_variant_trains_and_is_saved_whole(variant, tmp_path):
    model, ids = build(variant, torch.float32).train(), tokens(2, 24)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(loaded) is LazyForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert type(AutoConfig.from_pretrained(tmp_path, local_files_only=True)) is LazyConfig


def test_a_magnitude_cannot_add_mass():
    model = build("magnitude")
    with torch.no_grad():
        model.model.layers[0].attention.theta.copy_(torch.tensor([-1.0, -0.1, 0.1, 1.0]))
    assert torch.allclose(model.model.layers[0].attention.tau, torch.tensor([-1.0, -0.1, -0.1, -1.0]).double())


def test_offsets_and_biases_have_their_own_rate_no_decay_and_can_freeze():
    model = build(dtype=torch.float32)
    groups = model.parameter_groups(0.5, lr_scale=7.0, freeze_after=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    own = {id(p) for layer in model.model.layers for p in (layer.attention.theta, layer.attention.distance_bias)}
    assert {id(p) for p in groups[-1]["params"]} == own
    assert (groups[-1]["weight_decay"], groups[-1]["lr_scale"]) == (0.0, 7.0)
    seen = []
    theta = model.model.layers[0].attention.theta
    train(
        model,
        lambda step: tokens(2, 16, step),
        TrainConfig(8, 2, 16, 1e-3, warmup=0),
        groups=groups,
        on_step=lambda step, log: seen.append(theta.detach().clone()),
    )
    assert not torch.equal(seen[0], seen[3])
    assert all(torch.equal(seen[3], later) for later in seen[4:])
    softmax = build("softmax")
    assert all(group["params"] for group in softmax.parameter_groups(0.1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normaliser": "hardmax"}, "hardmax"),
        ({"bias_length": -1}, "bias_length"),
        ({"tau_form": "square"}, "square"),
        ({"tau_form": "magnitude", "tau_init": 0.5}, "0.5"),
        ({"window": 0}, "window"),
        ({"hidden_size": 18}, "hidden_size"),
    ],
)
def test_impossible_configurations_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        LazyConfig(**{"hidden_size": 16, "num_attention_heads": 4} | changes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"document": torch.zeros(1, 3, dtype=torch.int64)}, "one integer per token"),
        ({"document": torch.zeros(1, 4, dtype=torch.int64), "use_cache": True}, "not both"),
    ],
)
def test_bad_calls_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        build(dtype=torch.float32)(tokens(1, 4), **arguments)
