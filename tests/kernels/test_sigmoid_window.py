"""The sliding-window operator against loops that know nothing of tensors' tricks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_kernels import band
from zfu_kernels.sigmoid_window import attention_weights, sliding_window_attention

BACKENDS = ("reference", "banded")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def naive(q, k, v, window, slopes, activation, bias):
    """Eq. 5 element by element, in fp64 and plain Python."""
    q, k, v = (x.detach().double().numpy() for x in (q, k, v))
    slopes = [0.0] * q.shape[1] if slopes is None else slopes.tolist()
    B, H, T, D = q.shape
    group = H // k.shape[1]
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for m in range(T):
                keys = [n for n in range(m + 1) if window is None or m - n < window]
                z = [
                    sum(float(q[b, h, m, d]) * float(k[b, h // group, n, d]) for d in range(D)) / math.sqrt(D)
                    + slopes[h] * (m - n)
                    + bias
                    for n in keys
                ]
                if activation == "sigmoid":
                    a = [1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in z]
                else:
                    a = [math.exp(x - max(z)) for x in z]
                    a = [x / sum(a) for x in a]
                for weight, n in zip(a, keys, strict=True):
                    out[b, h, m] += weight * v[b, h // group, n]
    return torch.from_numpy(out)


def draw(B, H, T, D, *, kv_heads=None, dtype=torch.float64, scale=1.0, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, T, D)] + 2 * [(B, kv_heads or H, T, D)]
    tensors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    tensors[0] *= scale
    return [x.to(dtype).requires_grad_(grad) for x in tensors]


cases = st.fixed_dictionaries(
    {
        "B": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "T": st.one_of(st.integers(1, 6), st.sampled_from([15, 16, 17, 31, 33, 40])),
        "D": st.integers(1, 5),
        "window": st.one_of(st.none(), st.integers(1, 5), st.sampled_from([15, 16, 17, 18, 31, 100])),
        "slope": st.sampled_from([None, -0.5, 0.0, 0.5, 8.0]),
        "activation": st.sampled_from(["sigmoid", "softmax"]),
        "bias": st.sampled_from([0.0, -2.0]),
        "scale": st.sampled_from([1.0, 1e4]),
        "seed": st.integers(0, 2**16),
    }
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_both_backends_equal_the_loops(case):
    H = case["kv_heads"] * case["group"]
    q, k, v = draw(
        case["B"], H, case["T"], case["D"], kv_heads=case["kv_heads"], scale=case["scale"], seed=case["seed"]
    )
    slopes = None if case["slope"] is None else torch.linspace(-case["slope"], case["slope"], H, dtype=torch.float64)
    expected = naive(q, k, v, case["window"], slopes, case["activation"], case["bias"])
    for backend in BACKENDS:
        out = sliding_window_attention(
            q, k, v, window=case["window"], slopes=slopes, activation=case["activation"], sigmoid_bias=case["bias"],
            backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 16, 33, 70, 130, 200]),
    st.sampled_from([1, 2, 16, 17, 40, 64, 300]),
    st.sampled_from(["sigmoid", "softmax"]),
    st.sampled_from([1 << 8, 1 << 12, 1 << 18]),
    st.booleans(),
)
def test_banded_gradients_equal_the_references(B, T, window, activation, buffer, train_slopes):
    """Small buffers force every way of cutting a call into steps: few heads, few chunks, a remainder of either."""
    q, k, v = draw(B, 4, T, 3, kv_heads=2, grad=True, seed=T * window)
    slopes = torch.tensor([-0.5, -0.1, 0.05, 0.3], dtype=torch.float64, requires_grad=train_slopes)
    wanted = (q, k, v, slopes) if train_slopes else (q, k, v)
    grads = {}
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(band, "BUFFER_ELEMENTS", buffer)
            out = sliding_window_attention(
                q, k, v, window=window, slopes=slopes, activation=activation, sigmoid_bias=-0.3, backend=backend
            )
            grads[backend] = torch.autograd.grad((out * torch.linspace(-1, 1, T)[:, None]).sum(), wanted)
    for ours, theirs in zip(grads["banded"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "window"), [(5, 2), (19, 3), (4, 9)])
def test_gradcheck(backend, activation, T, window):
    q, k, v = draw(1, 2, T, 2, grad=True)
    slopes = torch.tensor([-0.4, 0.3], dtype=torch.float64, requires_grad=True)

    def call(*x):
        return sliding_window_attention(*x[:3], window=window, slopes=x[3], activation=activation, backend=backend)

    assert torch.autograd.gradcheck(call, (q, k, v, slopes), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exactly_window_keys(backend):
    """With every logit 0 a sigmoid weighs each key 1/2, so with v = 1 the output counts the keys."""
    T, window = 50, 7
    zero, one = torch.zeros(1, 1, T, 4), torch.ones(1, 1, T, 4)
    counted = 2 * sliding_window_attention(zero, zero, one, window=window, backend=backend)[0, 0, :, 0]
    assert counted.tolist() == [min(m + 1, window) for m in range(T)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_key_reaches_its_window_of_queries_and_no_other(backend, activation):
    """Neither the future nor position m - window leaks, to the last bit."""
    T, window, changed = 90, 20, 33
    q, k, v = draw(2, 2, T, 8, dtype=torch.float32)
    slopes = torch.tensor([-0.5, 0.5])
    options = {"window": window, "slopes": slopes, "activation": activation, "backend": backend}
    before = sliding_window_attention(q, k, v, **options)
    k[:, :, changed] += 1
    v[:, :, changed] += 1
    rows = (sliding_window_attention(q, k, v, **options) != before).any(-1).all(1).all(0)
    assert rows.nonzero().flatten().tolist() == list(range(changed, changed + window))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_window_that_covers_everything_is_full_attention(backend, activation):
    q, k, v = draw(1, 2, 70, 4)
    full = sliding_window_attention(q, k, v, window=None, activation=activation, backend=backend)
    for window in (70, 71, 10**9):
        assert torch.equal(
            sliding_window_attention(q, k, v, window=window, activation=activation, backend=backend), full
        )
    narrower = sliding_window_attention(q, k, v, window=69, activation=activation, backend=backend)
    assert (narrower != full).any(-1).nonzero()[:, 2].unique().tolist() == [69]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 24])
def test_softmax_is_torchs(backend, window):
    T = 100
    q, k, v = draw(2, 4, T, 16, kv_heads=2)
    slopes = torch.tensor([-0.5, -0.25, 0.25, 0.5], dtype=torch.float64)
    position = torch.arange(T)
    distance = position[:, None] - position
    outside = (distance < 0) | (distance >= (window or T))
    mask = (slopes[:, None, None] * distance).masked_fill(outside, -math.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    out = sliding_window_attention(q, k, v, window=window, slopes=slopes, activation="softmax", backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    # fp16 scores overflow in eager torch beyond 65504, which leaves nothing to compare with.
    [(torch.float32, 1.0), (torch.float32, 1e4), (torch.bfloat16, 1.0), (torch.bfloat16, 1e4), (torch.float16, 1.0)],
)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_error_at_most_twice_that_of_eager_torch(dtype, activation, scale):
    """The yard-stick is the same formula in the same dtype, not a hand-picked tolerance."""
    q, k, v = draw(2, 2, 200, 16, dtype=dtype, scale=scale)
    slopes = torch.tensor([-0.25, 0.125])
    options = {"window": 48, "slopes": slopes, "activation": activation}
    truth = sliding_window_attention(q.double(), k.double(), v.double(), backend="reference", **options)
    eager = sliding_window_attention(q, k, v, backend="reference", **options)
    ours = sliding_window_attention(q, k, v, backend="banded", **options)
    assert ours.dtype == dtype
    tiny = torch.finfo(dtype).eps * truth.abs().max()
    assert (ours - truth).abs().max() <= 2 * (eager - truth).abs().max() + tiny


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_extreme_logits_have_exact_limits(logit, activation):
    """All logits alike: sigmoid sums the window or nothing, softmax takes its mean; gradients stay finite."""
    T, window, D = 40, 8, 4
    q = torch.full((1, 1, T, D), logit / 2, requires_grad=True)
    k = torch.ones(1, 1, T, D, requires_grad=True)
    v = torch.ones(1, 1, T, D, requires_grad=True)
    out = sliding_window_attention(q, k, v, window=window, activation=activation, backend="banded")
    counted = torch.tensor([float(min(m + 1, window)) for m in range(T)])
    expected = torch.ones(T) if activation == "softmax" else counted * (logit > 0)
    torch.testing.assert_close(out[0, 0, :, 0], expected)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_never_passes_as_finite(backend, which, value):
    T, window, bad = 80, 10, 37
    tensors = draw(1, 1, T, 4, dtype=torch.float32)
    tensors[which][:, :, bad] = value
    out = sliding_window_attention(*tensors, window=window, activation="softmax", backend=backend)
    if which == 1 and value == math.inf:
        # Channels of both signs make q.k = inf - inf; a query of one sign may give an honest limit instead.
        q = tensors[0][0, 0]
        rows = [m for m in range(bad, bad + window) if (q[m] > 0).any() and (q[m] < 0).any()]
        assert len(rows) >= 5
    else:
        rows = [bad] if which == 0 else range(bad, bad + window)
    assert not any(out[0, 0, m].isfinite().any() for m in rows)


def test_weights_are_those_of_the_output_and_zero_outside():
    q, k, v = draw(2, 3, 30, 4)
    slopes = torch.tensor([-0.5, 0.1, 0.5], dtype=torch.float64)
    for activation in ("sigmoid", "softmax"):
        A = attention_weights(q, k, window=6, slopes=slopes, activation=activation, sigmoid_bias=-1.0)
        out = sliding_window_attention(
            q, k, v, window=6, slopes=slopes, activation=activation, sigmoid_bias=-1.0, backend="banded"
        )
        torch.testing.assert_close(A @ v, out)
        distance = torch.arange(30)[:, None] - torch.arange(30)
        assert (A[..., (distance < 0) | (distance >= 6)] == 0).all()
        assert (A[..., (distance >= 0) & (distance < 6)] > 0).all()
    torch.testing.assert_close(A.sum(-1), torch.ones(2, 3, 30, dtype=torch.float64))


def test_the_same_bits_every_time():
    q, k, v = draw(2, 2, 150, 8, dtype=torch.float32, grad=True)

    def run():
        out = sliding_window_attention(q, k, v, window=20, backend="banded")
        return (out, *torch.autograd.grad(out.square().sum(), (q, k, v)))

    first = run()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_documents_are_as_good_as_apart(backend):
    lengths = (1, 30, 9)
    q, k, v = draw(2, 2, sum(lengths), 4, kv_heads=1)
    document = torch.repeat_interleave(torch.tensor([7, 3, 7]), torch.tensor(lengths)).expand(2, -1)
    slopes = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    options = {"window": 6, "slopes": slopes, "backend": backend}
    packed = sliding_window_attention(q, k, v, document=document, **options)
    pieces = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    apart = torch.cat([sliding_window_attention(*piece, **options) for piece in pieces], dim=2)
    torch.testing.assert_close(packed, apart)


@pytest.mark.parametrize("T", [40, 300])
def test_parts_of_larger_tensors(T):
    """Slices and transposed layouts, forward and backward: what a batch element or a fused projection hands over."""
    fused = torch.randn(3, T, 6, 4, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    results = []
    for backend in BACKENDS:
        q, k, v = (x.transpose(1, 2) for x in fused[2:].split(2, dim=2))
        halves = [x[:, 1:] for x in (q, k, v)]
        outs = [sliding_window_attention(*x, window=9, backend=backend) for x in ((q, k, v), halves)]
        row = [x.contiguous()[:, 1:] for x in (q, k, v)]
        outs.append(sliding_window_attention(*row, window=9, backend=backend))
        (grad,) = torch.autograd.grad(sum(o.square().sum() for o in outs), fused)
        results.append((*outs, grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend):
    """Heads between positions and columns, every second column, one number as the whole gradient."""
    tensors = draw(2, 2, 90, 8, grad=True)

    def run(*tensors):
        out = sliding_window_attention(*tensors, window=20, slopes=torch.tensor([-0.5, 0.3]), backend=backend)
        return (out, *torch.autograd.grad(out.sum(), tensors))

    expected = run(*tensors)
    for change in (lambda x: x.mT.contiguous().mT, lambda x: x.detach().repeat_interleave(2, -1)[..., ::2]):
        found = run(*(change(x).detach().requires_grad_() for x in tensors))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_changed_slopes_are_not_served_from_the_cache():
    q, k, v = draw(1, 2, 300, 8)
    slopes = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    for _ in range(2):
        out = sliding_window_attention(q, k, v, window=20, slopes=slopes, backend="banded")
        expected = sliding_window_attention(q, k, v, window=20, slopes=slopes, backend="reference")
        torch.testing.assert_close(out, expected)
        slopes *= -0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    q, k, v = draw(1, 2, 200, 16, dtype=dtype)
    slopes = torch.tensor([-0.3, 0.2])
    out = sliding_window_attention(q, k, v, window=48, slopes=slopes, backend="banded")
    wide = sliding_window_attention(q.float(), k.float(), v.float(), window=48, slopes=slopes, backend="banded")
    assert torch.equal(out, wide.to(dtype))


def test_memory_is_linear_in_length():
    """The score buffer, the only thing that could be T x T, does not grow with T."""

    from zfu_kernels.sigmoid_window import banded

    def buffer(T):
        q = torch.empty(4, T, 8)
        return banded._plan(q, torch.zeros(4), 64, 0.0, backward=False, constant=True).buffer_elements

    assert buffer(32768) == buffer(4096) <= 2 * band.BUFFER_ELEMENTS


def test_auto_takes_the_dense_form_for_small_inputs_only(monkeypatch):
    from zfu_kernels.sigmoid_window import interface

    called = []
    for name in BACKENDS:
        monkeypatch.setitem(interface.BACKENDS, name, lambda q, k, v, name=name, **_: called.append(name))
    sliding_window_attention(*draw(1, 1, 8, 4), window=4)
    sliding_window_attention(*draw(1, 4, 1024, 4), window=4)
    assert called == ["reference", "banded"]


good = {"q": (1, 4, 8, 2), "k": (1, 2, 8, 2), "v": (1, 2, 8, 2)}


@pytest.mark.parametrize(
    ("shapes", "options", "says"),
    [
        ({"q": (4, 8, 2)}, {}, "q must be a tensor"),
        ({"k": (1, 2, 8)}, {}, "k must be a tensor"),
        ({"k": (1, 2, 9, 2), "v": (1, 2, 9, 2)}, {}, "agree in B, T and D"),
        ({"v": (1, 2, 8, 3)}, {}, "k and v must have one shape"),
        ({"k": (1, 3, 8, 2), "v": (1, 3, 8, 2)}, {}, "multiple"),
        ({"q": (1, 4, 0, 2), "k": (1, 2, 0, 2), "v": (1, 2, 0, 2)}, {}, "empty"),
        ({}, {"window": 0}, "window"),
        ({}, {"window": -3}, "window"),
        ({}, {"window": 2.0}, "window"),
        ({}, {"window": True}, "window"),
        ({}, {"slopes": torch.zeros(2)}, "slopes"),
        ({}, {"slopes": torch.zeros(4, 1)}, "slopes"),
        ({}, {"slopes": [0.0] * 4}, "slopes"),
        ({}, {"slopes": torch.zeros(4, dtype=torch.int64)}, "slopes"),
        ({}, {"activation": "relu"}, "relu"),
        ({}, {"document": torch.zeros(1, 9, dtype=torch.int64)}, "document"),
        ({}, {"document": torch.zeros(1, 8)}, "document must hold integers"),
        ({}, {"backend": "cuda"}, "cuda"),
    ],
)
def test_bad_input_is_refused_with_its_reason(shapes, options, says):
    q, k, v = (torch.zeros(shape) for shape in (good | shapes).values())
    with pytest.raises(ValueError, match=says):
        sliding_window_attention(q, k, v, **{"window": 4} | options)


def test_dtypes_must_match_and_be_floating():
    x = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match="float64"):
        sliding_window_attention(x, x.double(), x.double(), window=2)
    with pytest.raises(ValueError, match="floating"):
        sliding_window_attention(x.long(), x.long(), x.long(), window=2)
    with pytest.raises(ValueError, match="list"):
        sliding_window_attention(x.tolist(), x, x, window=2)
