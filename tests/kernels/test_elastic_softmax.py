"""The elastic-softmax operator against loops that know nothing of tensors' tricks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_kernels import band
from zfu_kernels.elastic_softmax import attention_weights, elastic_softmax_attention

TAUS = (-1.2, -1.0, -0.3, 0.0, 0.2)
BACKENDS = ("reference", "banded")  # the Triton kernels have tests of their own


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def naive_weights(q, k, bias, tau, window, document):
    """The dossier's pseudocode element by element, in fp64 and plain Python."""
    q, k = (x.detach().double().numpy() for x in (q, k))
    B, H, T, D = q.shape
    group = H // k.shape[1]
    weights = np.zeros((B, H, T, T))
    for b in range(B):
        for h in range(H):
            start = 0
            for m in range(T):
                if document is not None and m and document[b, m] != document[b, m - 1]:
                    start = m
                first = start if window is None else max(start, m - window + 1)
                keys = range(first, m + 1)
                z = [
                    sum(float(q[b, h, m, d]) * float(k[b, h // group, n, d]) for d in range(D)) / math.sqrt(D)
                    + (float(bias[h, m - n]) if bias is not None and m - n < bias.shape[1] else 0.0)
                    for n in keys
                ]
                e = [math.exp(x - max(z)) for x in z]
                for x, n in zip(e, keys, strict=True):
                    offset = 0.0 if tau is None else float(tau[h]) / len(keys)
                    weights[b, h, m, n] = max(x / sum(e) + offset, 0.0)
    return torch.from_numpy(weights)


def draw(B, H, T, D, *, kv_heads=None, dtype=torch.float64, scale=1.0, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, T, D)] + 2 * [(B, kv_heads or H, T, D)]
    tensors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    tensors[0] *= scale
    return [x.to(dtype).requires_grad_(grad) for x in tensors]


def draw_bias(H, W, dtype=torch.float64, seed=1, grad=False):
    x = torch.randn(H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).requires_grad_(grad)


cases = st.fixed_dictionaries(
    {
        "B": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "T": st.one_of(st.integers(1, 6), st.sampled_from([15, 16, 17, 31, 33, 40])),
        "D": st.integers(1, 5),
        "window": st.one_of(st.none(), st.integers(1, 5), st.sampled_from([15, 16, 17, 18, 31, 100])),
        "table": st.one_of(st.none(), st.integers(1, 5), st.sampled_from([16, 40, 100])),
        "tau": st.one_of(st.none(), st.sampled_from(TAUS)),
        "packed": st.booleans(),
        "scale": st.sampled_from([1.0, 1e4]),
        "seed": st.integers(0, 2**16),
    }
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_every_backend_equals_the_loops(case):
    H = case["kv_heads"] * case["group"]
    q, k, v = draw(
        case["B"], H, case["T"], case["D"], kv_heads=case["kv_heads"], scale=case["scale"], seed=case["seed"]
    )
    bias = None if case["table"] is None else draw_bias(H, case["table"])
    tau = None if case["tau"] is None else case["tau"] + torch.linspace(-0.1, 0.1, H, dtype=torch.float64)
    document = None
    if case["packed"]:
        generator = torch.Generator().manual_seed(case["seed"])
        document = torch.randint(0, 2, (case["B"], case["T"]), generator=generator)
    expected = naive_weights(q, k, bias, tau, case["window"], document) @ v.repeat_interleave(case["group"], 1)
    for backend in BACKENDS:
        out = elastic_softmax_attention(
            q, k, v, bias=bias, tau=tau, window=case["window"], document=document, backend=backend
        )
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def formula_gradients(q, k, v, bias, tau, do):
    """The closed forms of the backward pass, in terms of p, w and G = dO v."""
    T, D = q.shape[-2:]
    w = attention_weights(q, k, bias=bias, tau=tau)
    p = attention_weights(q, k, bias=bias)
    count = torch.arange(1, T + 1, dtype=q.dtype)[:, None]
    active = (w > 0).to(q.dtype)
    G = do @ v.mT
    dS = p * (active * G - (active * p * G).sum(-1, keepdim=True))
    distance = torch.arange(T)[:, None] - torch.arange(T)
    d_bias = torch.stack([dS[..., distance == d].sum((0, 2)) for d in range(bias.shape[1])], 1)
    return dS @ k / D**0.5, dS.mT @ q / D**0.5, w.mT @ do, d_bias, (active * G / count).sum((0, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tau", TAUS)
def test_gradients_are_the_closed_forms(backend, tau):
    q, k, v = draw(2, 3, 37, 4, grad=True)
    bias, taus = draw_bias(3, 9, grad=True), torch.full((3,), tau, dtype=torch.float64, requires_grad=True)
    do = torch.randn(2, 3, 37, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    out = elastic_softmax_attention(q, k, v, bias=bias, tau=taus, backend=backend)
    ours = torch.autograd.grad(out, (q, k, v, bias, taus), do)
    with torch.no_grad():
        expected = formula_gradients(q, k, v, bias, taus, do)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_offset_it_is_torchs_softmax(backend):
    q, k, v = draw(2, 4, 100, 16, kv_heads=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    for tau in (None, torch.zeros(4, dtype=torch.float64)):
        out = elastic_softmax_attention(q, k, v, tau=tau, backend=backend)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


good = {"q": (1, 4, 8, 2), "k": (1, 2, 8, 2), "v": (1, 2, 8, 2)}


@pytest.mark.parametrize(
    ("shapes", "options", "says"),
    [
        ({"q": (4, 8, 2)}, {}, "q must be a tensor"),
        ({"v": (1, 2, 8, 3)}, {}, "k and v must have one shape"),
        ({"q": (1, 4, 0, 2), "k": (1, 2, 0, 2), "v": (1, 2, 0, 2)}, {}, "empty"),
        ({"k": (1, 3, 8, 2), "v": (1, 3, 8, 2)}, {}, "multiple"),
        ({"k": (1, 2, 9, 2), "v": (1, 2, 9, 2)}, {}, "agree in B, T and D"),
        ({}, {"window": 0}, "window"),
        ({}, {"window": -3}, "window"),
        ({}, {"window": 2.0}, "window"),
        ({}, {"window": True}, "window"),
        ({}, {"tau": torch.zeros(2)}, "tau"),
        ({}, {"tau": -1.0}, "tau"),
        ({}, {"tau": torch.zeros(4, dtype=torch.int64)}, "tau"),
        ({}, {"bias": torch.zeros(4)}, "bias"),
        ({}, {"bias": torch.zeros(2, 8)}, "bias"),
        ({}, {"bias": torch.zeros(4, 0)}, "bias"),
        ({}, {"bias": torch.zeros(4, 8, dtype=torch.int64)}, "bias"),
        ({}, {"document": torch.zeros(1, 7, dtype=torch.int64)}, "document"),
        ({}, {"document": torch.zeros(1, 8)}, "document"),
        ({}, {"backend": "cuda"}, "cuda"),
    ],
)
def test_bad_input_is_refused_with_its_reason(shapes, options, says):
    q, k, v = (torch.zeros(shape) for shape in (good | shapes).values())
    with pytest.raises(ValueError, match=says):
        elastic_softmax_attention(q, k, v, **options)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 16, 33, 70, 130, 200]),
    st.sampled_from([None, 1, 2, 16, 17, 40, 64, 300]),
    st.sampled_from([1, 5, 64, 300]),
    st.sampled_from(TAUS),
    st.sampled_from([1 << 8, 1 << 12, 1 << 18]),
)
def test_banded_gradients_equal_the_references(B, T, window, table, tau, buffer):
    """Small buffers force every way of cutting a call into steps: few heads, few chunks, a remainder of either."""
    q, k, v = draw(B, 4, T, 3, kv_heads=2, grad=True, seed=T)
    bias = draw_bias(4, table, grad=True)
    taus = (tau + torch.linspace(-0.1, 0.1, 4, dtype=torch.float64)).requires_grad_()
    wanted, grads = (q, k, v, bias, taus), {}
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(band, "BUFFER_ELEMENTS", buffer)
            out = elastic_softmax_attention(q, k, v, bias=bias, tau=taus, window=window, backend=backend)
            grads[backend] = torch.autograd.grad((out * torch.linspace(-1, 1, T)[:, None]).sum(), wanted)
    for ours, theirs in zip(grads["banded"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "window"), [(5, 2), (19, None), (4, 9)])
def test_gradcheck(backend, T, window):
    q, k, v = draw(1, 2, T, 2, grad=True)
    bias, tau = draw_bias(2, 3, grad=True), torch.tensor([-0.8, 0.1], dtype=torch.float64, requires_grad=True)

    def call(q, k, v, bias, tau):
        return elastic_softmax_attention(q, k, v, bias=bias, tau=tau, window=window, backend=backend)

    assert torch.autograd.gradcheck(call, (q, k, v, bias, tau), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tau", [-1.0, 0.3])
def test_the_future_the_window_and_other_documents_do_not_leak(backend, tau):
    """To the last bit, also with an offset that would lift hidden keys above zero."""
    T, window, changed, next_document = 90, 20, 33, 45
    q, k, v = draw(2, 2, T, 8, dtype=torch.float32)
    document = (torch.arange(T) >= next_document).long().expand(2, -1)
    options = {"tau": torch.full((2,), tau), "window": window, "document": document, "backend": backend}
    before = elastic_softmax_attention(q, k, v, **options)
    k[:, :, changed] += 1
    v[:, :, changed] += 1
    rows = (elastic_softmax_attention(q, k, v, **options) != before).any(-1).all(1).all(0)
    assert rows.nonzero().flatten().tolist() == list(range(changed, next_document))


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_rows_abstain_and_the_first_token_outputs_nothing(backend):
    """At tau = -1 the offset takes exactly what uniform attention gives; i starts anew in every document."""
    q, k, v = draw(1, 1, 64, 4)
    document = torch.arange(64)[None] // 16
    minus_one = torch.tensor([-1.0], dtype=torch.float64)
    options = {"tau": minus_one, "document": document, "backend": backend}
    assert (elastic_softmax_attention(0 * q, k, v, **options).abs() < 1e-15).all()
    assert (elastic_softmax_attention(q, k, v, **options)[0, 0, ::16] == 0).all()
    later = elastic_softmax_attention(q, k, v, **options)[0, 0, 1::16]
    assert (later != 0).any(-1).all()


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1.0), (torch.float32, 1e4), (torch.bfloat16, 1.0), (torch.bfloat16, 1e4), (torch.float16, 1.0)],
)
def test_error_at_most_twice_that_of_eager_torch(dtype, scale):
    q, k, v = draw(2, 2, 200, 16, dtype=dtype, scale=scale)
    options = {"bias": draw_bias(2, 50, torch.float32), "tau": torch.tensor([-1.0, -0.3])}
    wide = {name: x.double() for name, x in options.items()}
    truth = elastic_softmax_attention(q.double(), k.double(), v.double(), backend="reference", **wide)
    eager = elastic_softmax_attention(q, k, v, backend="reference", **options)
    ours = elastic_softmax_attention(q, k, v, backend="banded", **options)
    assert ours.dtype == dtype
    tiny = torch.finfo(dtype).eps * truth.abs().max()
    assert (ours - truth).abs().max() <= 2 * (eager - truth).abs().max() + tiny


def test_the_same_bits_every_time():
    q, k, v = draw(2, 2, 150, 8, dtype=torch.float32, grad=True)
    bias, tau = draw_bias(2, 40, torch.float32, grad=True), torch.full((2,), -0.9, requires_grad=True)

    def run():
        out = elastic_softmax_attention(q, k, v, bias=bias, tau=tau, backend="banded")
        return (out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias, tau)))

    first = run()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend):
    """Heads between positions and columns, every second column, one number as the whole gradient."""
    tensors = draw(2, 2, 90, 8, grad=True)

    def run(*tensors):
        out = elastic_softmax_attention(*tensors, tau=torch.tensor([-1.0, -0.3]), window=20, backend=backend)
        return (out, *torch.autograd.grad(out.sum(), tensors))

    expected = run(*tensors)
    for change in (lambda x: x.mT.contiguous().mT, lambda x: x.detach().repeat_interleave(2, -1)[..., ::2]):
        found = run(*(change(x).detach().requires_grad_() for x in tensors))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_never_passes_as_finite(backend, which):
    T, window, bad = 80, 10, 37
    tensors = draw(1, 1, T, 4, dtype=torch.float32)
    tensors[which][:, :, bad] = math.nan
    out = elastic_softmax_attention(*tensors, tau=torch.tensor([-1.0]), window=window, backend=backend)
    assert not any(out[0, 0, m].isfinite().any() for m in ([bad] if which == 0 else range(bad, bad + window)))


def test_auto_takes_the_dense_form_for_small_inputs_only(monkeypatch):
    from zfu_kernels.elastic_softmax import interface

    called = []
    for name in BACKENDS:
        monkeypatch.setitem(interface.BACKENDS, name, lambda q, k, v, name=name, **_: called.append(name))
    elastic_softmax_attention(*draw(1, 1, 8, 4))
    elastic_softmax_attention(*draw(1, 4, 1024, 4))
    assert called == ["reference", "banded"]
