"""The Triton kernels against the reference in fp64: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes about a second for a case, so shapes are small there and few are drawn; ZFU_KERNEL_EXAMPLES=200
draws more and repeats more often. It cannot compute bfloat16, which is left to GPUs.
"""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zfu_kernels.elastic_softmax import elastic_softmax_attention, elastic_softmax_decode
from zfu_kernels.sigmoid_window import sliding_window_attention, sliding_window_decode

tiles = pytest.importorskip("zfu_kernels.tiles", reason="Triton exists on Linux only")

GPU = torch.cuda.is_available() and not tiles.INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * GPU
EXAMPLES = int(os.environ.get("ZFU_KERNEL_EXAMPLES", 200 if GPU else 3))
REPEATS = min(EXAMPLES // 2, 100)

# numpy, which computes in the interpreter, warns of what a GPU does silently: exp2 of much is inf, rows past the end.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def poisoned():
    """Whatever a kernel leaves unwritten is NaN, and one thread computes."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


def draw(T, D, *, B=1, H=2, kv_heads=1, dtype=torch.float32, scale=1.0, documents=False, seed=0):
    """q, k, v, an upstream gradient and, if asked for, documents of about six tokens."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, do = (torch.randn(B, h, T, D, generator=generator) for h in (H, kv_heads, kv_heads, H))
    document = (torch.rand(B, T, generator=generator) < 0.15).cumsum(1).to(DEVICE) if documents else None
    return [x.to(DEVICE, dtype) for x in (q * scale, k, v, do)], document


def learned(H, *, slope=None, bias=None, tau=None):
    """What the heads learn, in fp32: slopes of both signs, or a bias table and offsets around tau."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    if slope is not None:
        made["slopes"] = torch.linspace(-slope, slope, H)
    if bias is not None:
        made["bias"] = torch.randn(H, bias, generator=generator)
    if tau is not None:
        made["tau"] = tau + 0.01 * torch.randn(H, generator=generator) * (tau != 0)
    return {name: x.to(DEVICE) for name, x in made.items()}


def run(operator, tensors, options, backend, dtype=None):
    """The output and all gradients; everything is computed in ``dtype`` if given."""
    tensors = [x.to(dtype or x.dtype).detach().requires_grad_() for x in tensors]
    *qkv, do = tensors
    options = {
        name: x.to(dtype or x.dtype).detach().requires_grad_()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for name, x in options.items()
    }
    wanted = [*qkv, *(x for x in options.values() if isinstance(x, torch.Tensor) and x.requires_grad)]
    out = operator(*qkv, **options, backend=backend)
    return [out, *torch.autograd.grad(out, wanted, do)]


def assert_as_good_as_eager(operator, tensors, options):
    """At most twice the error of the reference in the same dtype, both against the reference in fp64.

    One rounding of the largest term of a sum is granted, since eager is sometimes exact by luck: one visible key.
    """
    truth = run(operator, tensors, options, "reference", torch.float64)
    eager = run(operator, tensors, options, "reference")
    ours = run(operator, tensors, options, "triton")
    q, k, v, do = (x.double().abs().max() for x in tensors)
    group = tensors[0].shape[1] // tensors[1].shape[1]
    dp = (tensors[3] @ tensors[2].repeat_interleave(group, 1).mT).double().abs().max()
    T, root = tensors[0].shape[2], math.sqrt(tensors[0].shape[3])
    terms = {"output": v, "dq": dp * k / root, "dk": dp * q / root, "dv": do}
    terms |= {name: dp * {"slopes": T, "bias": 1, "tau": 1}[name] for name in options if name in HEADS}
    for (name, term), exact, theirs, mine in zip(terms.items(), truth, eager, ours, strict=True):
        assert mine.shape == exact.shape, name
        assert mine.dtype == theirs.dtype, name
        errors = [(x - exact).abs().max() for x in (mine, theirs)]
        rounding = torch.finfo(tensors[0].dtype).eps * term
        assert errors[0] <= 2 * errors[1] + rounding, f"{name}: error, eager {errors}, one rounding {rounding:.2e}"


HEADS = ("slopes", "bias", "tau")
SIGMOID_CASES = [
    # T, D, window, the rest
    (1, 32, 3, {}),
    (5, 16, 9, {"slope": 0.5}),
    (37, 48, 1, {"slope": 0.5}),
    (20, 80, 8, {"slope": 0.5, "B": 2, "H": 4, "kv_heads": 2, "bias": -1.0}),
    (50, 24, None, {"slope": 0.25, "documents": True}),
    (40, 64, 11, {"slope": 2.0, "scale": 1e4}),
    (17, 256, 40, {"slope": 0.1, "kv_heads": 2}),
]
ELASTIC_CASES = [
    # T, D, window, the rest
    (1, 32, 3, {"tau": -1.0, "bias": 4}),
    (5, 16, 9, {"tau": -1.2}),
    (37, 48, 1, {"tau": -0.3, "bias": 5}),
    (20, 80, 8, {"tau": 0.2, "bias": 64, "B": 2, "H": 4, "kv_heads": 2}),
    (50, 24, None, {"tau": -1.0, "bias": 20, "documents": True}),
    (40, 64, None, {"tau": -0.3, "bias": 11, "scale": 1e4}),
    (40, 16, 17, {"bias": 64, "documents": True}),
    (17, 256, 40, {"tau": 0.0, "kv_heads": 2}),
]


def every_dtype(cases):
    """Each case in each dtype; in the interpreter every other one in fp32 alone, to save time."""
    drawn = [(*case, x) for i, case in enumerate(cases) for x in (DTYPES if GPU or i % 2 else DTYPES[:1])]
    return pytest.mark.parametrize(("T", "D", "window", "rest", "dtype"), drawn)


@every_dtype(SIGMOID_CASES)
def test_sigmoid_is_as_good_as_eager(T, D, window, rest, dtype):
    rest = dict(rest)
    slope, bias = rest.pop("slope", None), rest.pop("bias", 0.0)
    if dtype == torch.float16 and rest.get("scale", 1) > 1:
        pytest.skip("eager overflows, which leaves nothing to compare with")
    tensors, document = draw(T, D, dtype=dtype, **rest)
    options = {"window": window, "sigmoid_bias": bias, "document": document}
    assert_as_good_as_eager(sliding_window_attention, tensors, options | learned(rest.get("H", 2), slope=slope))


@every_dtype(ELASTIC_CASES)
def test_elastic_is_as_good_as_eager(T, D, window, rest, dtype):
    rest = dict(rest)
    heads = learned(rest.get("H", 2), bias=rest.pop("bias", None), tau=rest.pop("tau", None))
    tensors, document = draw(T, D, dtype=dtype, **rest)
    assert_as_good_as_eager(elastic_softmax_attention, tensors, {"window": window, "document": document} | heads)


shapes = st.fixed_dictionaries(
    {
        "T": st.one_of(st.integers(1, 5), st.sampled_from([15, 16, 17, 33])),
        "D": st.sampled_from([16, 20, 32]),
        "window": st.one_of(st.none(), st.integers(1, 5), st.sampled_from([15, 16, 17, 40])),
        "kv_heads": st.sampled_from([1, 2]),
        "documents": st.booleans(),
        "scale": st.sampled_from([1.0, 1e4]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 2**16),
    }
)


def drawn(case):
    """Tensors and options of a drawn case. In fp16 eager overflows at large scores and is nothing to compare with."""
    window, scale = case.pop("window"), 1.0 if case["dtype"] == torch.float16 else case["scale"]
    tensors, document = draw(**case | {"scale": scale})
    return tensors, {"window": window, "document": document}


@settings(max_examples=EXAMPLES, deadline=None)
@given(shapes, st.sampled_from([None, -0.5, 0.0, 0.5, 8.0]), st.sampled_from([0.0, -2.0]))
def test_sigmoid_on_drawn_shapes(case, slope, bias):
    tensors, options = drawn(case)
    assert_as_good_as_eager(
        sliding_window_attention, tensors, options | {"sigmoid_bias": bias} | learned(2, slope=slope)
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(shapes, st.sampled_from([None, -1.2, -1.0, -0.3, 0.0, 0.2]), st.sampled_from([None, 1, 9, 64]))
def test_elastic_on_drawn_shapes(case, tau, bias):
    tensors, options = drawn(case)
    assert_as_good_as_eager(elastic_softmax_attention, tensors, options | learned(2, tau=tau, bias=bias))


OPERATORS = {
    "sigmoid": (sliding_window_attention, {"slope": 0.4}),
    "softmax": (elastic_softmax_attention, {"bias": 9}),
    "elastic": (elastic_softmax_attention, {"bias": 9, "tau": 0.2}),
}
every_operator = pytest.mark.parametrize(("operator", "heads"), OPERATORS.values(), ids=OPERATORS)


@every_operator
def test_a_key_reaches_its_window_of_queries_and_no_other(operator, heads):
    """To the last bit, also with tau > 0, which lifts every weight above zero."""
    (q, k, v, _), _ = draw(50, 16)
    options = {"window": 20, "backend": "triton"} | learned(2, **heads)
    before = operator(q, k, v, **options)
    k[:, :, 13] += 1
    v[:, :, 13] += 1
    rows = (operator(q, k, v, **options) != before).any(-1).all(1).all(0)
    assert rows.nonzero().flatten().tolist() == list(range(13, 33))


@every_operator
def test_the_same_bits_every_time(operator, heads):
    tensors, document = draw(20, 16, H=4, kv_heads=2, documents=True)
    options = {"window": 9, "document": document} | learned(4, **heads)
    first = run(operator, tensors, options, "triton")
    for _ in range(REPEATS):
        assert all(torch.equal(a, b) for a, b in zip(run(operator, tensors, options, "triton"), first, strict=True))


@every_operator
def test_any_strides(operator, heads):
    """What a fused projection hands over: heads between positions and columns, or every second column."""
    (q, k, v, do), _ = draw(20, 32)
    options = {"window": 7} | learned(2, **heads)
    expected = run(operator, [q, k, v, do], options, "triton")
    moved = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, do)]
    spread = [x.repeat_interleave(2, -1)[..., ::2] for x in (q, k, v, do)]
    for tensors in (moved, spread):
        for ours, theirs in zip(run(operator, tensors, options, "triton"), expected, strict=True):
            assert torch.equal(ours, theirs)
    # The same memory for every head, and for every element of a gradient, as out.sum() hands it back.
    shared = [x[:, :1].expand_as(x) for x in (q, k, v)] + [do[:1, :1, :1, :1].expand_as(do)]
    expected = run(operator, [x.contiguous() for x in shared], options, "triton")
    assert all(map(torch.equal, run(operator, shared, options, "triton"), expected))


@every_operator
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_never_passes_as_finite(operator, heads, which):
    tensors, _ = draw(40, 16)
    tensors[which][:, :, 17] = math.nan
    out = operator(*tensors[:3], window=10, backend="triton", **learned(2, **heads))
    rows = [17] if which == 0 else range(17, 27)
    assert not any(out[0, h, m].isfinite().any() for h in (0, 1) for m in rows)
    # A weight of 0 times NaN is NaN: a bad value taints the rows of its tile, a bad query or key only what sees it.
    assert which == 2 or out[:, :, :17].isfinite().all()


def test_known_values_of_the_offset():
    """tau = -1: the first token and uniform rows give 0. tau = 0 is softmax. The mass never falls below 1 + tau."""
    (q, k, v, _), _ = draw(40, 16)
    minus, half, none = (torch.full((2,), x, device=DEVICE) for x in (-1.0, -0.5, 0.0))
    assert elastic_softmax_attention(q, k, v, tau=minus, backend="triton")[:, :, 0].abs().max() < 1e-6
    assert elastic_softmax_attention(0 * q, k, v, tau=minus, backend="triton").abs().max() < 1e-6
    softmax = elastic_softmax_attention(q, k, v, backend="triton")
    torch.testing.assert_close(elastic_softmax_attention(q, k, v, tau=none, backend="triton"), softmax)
    mass = elastic_softmax_attention(q, k, torch.ones_like(v), tau=half, backend="triton")
    assert (mass > 0.5 - 1e-5).all()
    assert (mass < 1 + 1e-5).all()


def test_softmax_of_the_windowed_operator():
    tensors, _ = draw(33, 16)
    options = {"window": 9, "activation": "softmax"} | learned(2, slope=0.5)
    assert_as_good_as_eager(sliding_window_attention, tensors, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("S", "window", "tau"), [(1, 1, -1.0), (70, 30, 0.2), (600, None, -0.3), (600, 500, None)])
def test_decoding_is_as_good_as_eager(S, window, tau, dtype):
    """Slots in any order, some empty; 600 of them are cut into two parts."""
    B, H, D = 2, 4, 20
    (q, k, v, _), _ = draw(S, D, B=B, H=H, kv_heads=2, dtype=dtype)
    q = q[:, :, 0]
    distance = torch.stack([torch.randperm(S, generator=torch.Generator().manual_seed(b)) for b in range(B)])
    distance[1][distance[1] > 0.9 * S] = -1
    for operator, options in (
        (sliding_window_decode, {"sigmoid_bias": -0.5} | learned(H, slope=0.3)),
        (elastic_softmax_decode, learned(H, bias=40, tau=tau)),
    ):
        options |= {"window": window, "distance": distance.to(DEVICE)}
        truth = operator(q.double(), k.double(), v.double(), **options, backend="reference")
        eager, ours = (operator(q, k, v, **options, backend=backend) for backend in ("reference", "triton"))
        rounding = torch.finfo(dtype).eps * v.abs().max()
        assert ours.dtype == dtype
        assert (ours - truth).abs().max() <= 2 * (eager - truth).abs().max() + rounding


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("tau", [None, -0.5, 0.2])
def test_decoding_a_row_that_sees_nothing_gives_zeros(backend, tau):
    """And leaves the other rows as they are."""
    (q, k, v, _), _ = draw(30, 16, B=2)
    distance = torch.arange(29, -1, -1, device=DEVICE).repeat(2, 1)
    hidden = distance.clone()
    hidden[1] = -1
    for step, heads in (
        (sliding_window_decode, learned(2, slope=0.5)),
        (elastic_softmax_decode, learned(2, bias=9, tau=tau)),
    ):
        before, out = (step(q[:, :, 0], k, v, d, backend=backend, **heads) for d in (distance, hidden))
        assert torch.equal(out[0], before[0])
        assert (out[1] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_decoding_is_the_last_row_of_attention(backend):
    (q, k, v, _), _ = draw(30, 16)
    distance, ring = torch.arange(29, -1, -1, device=DEVICE), torch.randperm(30)
    slots = (q[:, :, -1], k[:, :, ring], v[:, :, ring], distance[ring.to(DEVICE)])
    for whole, step, heads in (
        (sliding_window_attention, sliding_window_decode, learned(2, slope=0.5)),
        (elastic_softmax_attention, elastic_softmax_decode, learned(2, bias=9, tau=-0.5)),
    ):
        expected = whole(q, k, v, window=11, backend="reference", **heads)[:, :, -1]
        torch.testing.assert_close(step(*slots, window=11, backend=backend, **heads), expected, rtol=1e-5, atol=1e-6)


@every_operator
def test_the_operators_compile(operator, heads):
    """No break in the graph, and the gradients of eager mode."""
    tensors, document = draw(17, 16, documents=True)
    options = {"window": 5, "document": document} | learned(2, **heads)
    expected = run(operator, tensors, options, "triton")
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(run(compiled, tensors, options, "triton"), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_operators_keep_pytorchs_rules():
    from zfu_kernels.elastic_softmax.triton import elastic_softmax
    from zfu_kernels.sigmoid_window.triton import sigmoid_window

    (q, k, v, _), _ = draw(5, 16)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    heads = {name: x.requires_grad_() for name, x in learned(2, slope=0.5, bias=3, tau=-0.5).items()}
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(sigmoid_window, (q, k, v, heads["slopes"], None, None, 3, 0.0), test_utils=tests)
    arguments = (q, k, v, heads["bias"], heads["tau"], None, None, 3, True)
    torch.library.opcheck(elastic_softmax, arguments, test_utils=tests)


def test_a_smaller_tile_is_tried_where_a_gpu_has_no_room(monkeypatch):
    from triton.runtime.errors import OutOfResources

    tried = []

    def start(BM, BN, options):
        tried.append((BM, BN))
        if len(tried) < 2:
            raise OutOfResources(300_000, 100_000, "shared memory")

    monkeypatch.setattr(tiles, "INTERPRETED", False)
    monkeypatch.setattr(tiles, "_fits", {})
    q = torch.empty(1, 1, 4, 128, dtype=torch.float16)
    for _ in range(2):
        tiles.launch("forward", q, 1024, start)
    wanted = [shape[:2] for shape in tiles.SHAPES["forward"][128]]
    assert tried == [wanted[0], wanted[1], wanted[1]], "the second call remembers"


REFUSED = [(torch.float64, 16, "float64"), (torch.float32, 300, "256 columns")]


@pytest.mark.parametrize(("dtype", "D", "says"), REFUSED + [(torch.bfloat16, 16, "bfloat16")] * (not GPU))
def test_what_the_kernels_cannot_take_is_refused_with_its_reason(dtype, D, says):
    (q, k, v, _), _ = draw(4, D, dtype=dtype)
    distance = torch.arange(4, device=DEVICE)
    for operator in (sliding_window_attention, elastic_softmax_attention):
        with pytest.raises(ValueError, match=says):
            operator(q, k, v, window=3, backend="triton")
    for operator in (sliding_window_decode, elastic_softmax_decode):
        with pytest.raises(ValueError, match=says):
            operator(q[:, :, 0], k, v, distance, backend="triton")


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    x = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        sliding_window_attention(x, x, x, window=2, backend="triton")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": (2, 4, 1, 16)}, "one query per row"),
        ({"k": (2, 3, 6, 16), "v": (2, 3, 6, 16)}, "multiple"),
        ({"v": (2, 2, 6, 8)}, "one shape"),
        ({"k": (2, 2, 0, 16), "v": (2, 2, 0, 16), "distance": (0,)}, "k is empty"),
        ({"distance": (7,)}, "distance"),
    ],
)
def test_bad_caches_are_refused_with_their_reason(change, says):
    shapes = {"q": (2, 4, 16), "k": (2, 2, 6, 16), "v": (2, 2, 6, 16), "distance": (6,)} | change
    q, k, v = (torch.zeros(shapes[name]) for name in "qkv")
    distance = torch.zeros(shapes["distance"], dtype=torch.int64)
    for operator in (sliding_window_decode, elastic_softmax_decode):
        with pytest.raises(ValueError, match=says):
            operator(q, k, v, distance)
        with pytest.raises(ValueError, match="integers"):
            operator(torch.zeros(2, 4, 16), torch.zeros(2, 2, 6, 16), torch.zeros(2, 2, 6, 16), torch.zeros(6))
