"""The Triton kernels against the reference in fp64: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes about a second for a case, so shapes are small there and few are drawn; ZFU_KERNEL_EXAMPLES=200
draws more. It cannot compute bfloat16, which is left to GPUs.
"""

import math
import os

import pytest
import torch

from zfu_kernels.elastic_softmax import elastic_softmax_attention
from zfu_kernels.sigmoid_window import sliding_window_attention

tiles = pytest.importorskip("zfu_kernels.tiles", reason="Triton exists on Linux only")

GPU = torch.cuda.is_available() and not tiles.INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * GPU
EXAMPLES = int(os.environ.get("ZFU_KERNEL_EXAMPLES", 200 if GPU else 6))
REPEATS = 100 if GPU else 3

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


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
    (33, 80, 8, {"slope": 0.5, "H": 4, "kv_heads": 2, "bias": -1.0}),
    (50, 24, None, {"slope": 0.25, "B": 2, "documents": True}),
    (40, 64, 11, {"slope": 2.0, "scale": 1e4}),
    (17, 256, 40, {"slope": 0.1, "kv_heads": 2}),
]
ELASTIC_CASES = [
    # T, D, window, the rest
    (1, 32, 3, {"tau": -1.0, "bias": 4}),
    (5, 16, 9, {"tau": -1.2}),
    (37, 48, 1, {"tau": -0.3, "bias": 5}),
    (33, 80, 8, {"tau": 0.2, "bias": 64, "H": 4, "kv_heads": 2}),
    (50, 24, None, {"tau": -1.0, "bias": 20, "documents": True}),
    (40, 64, None, {"tau": -0.3, "bias": 11, "scale": 1e4}),
    (40, 16, 17, {"bias": 64, "documents": True}),
    (17, 256, 40, {"tau": 0.0, "kv_heads": 2}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D", "window", "rest"), SIGMOID_CASES)
def test_sigmoid_is_as_good_as_eager(T, D, window, rest, dtype):
    rest = dict(rest)
    slope, bias = rest.pop("slope", None), rest.pop("bias", 0.0)
    if dtype == torch.float16 and rest.get("scale", 1) > 1:
        pytest.skip("eager overflows, which leaves nothing to compare with")
    tensors, document = draw(T, D, dtype=dtype, **rest)
    options = {"window": window, "sigmoid_bias": bias, "document": document}
    assert_as_good_as_eager(sliding_window_attention, tensors, options | learned(rest.get("H", 2), slope=slope))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D", "window", "rest"), ELASTIC_CASES)
def test_elastic_is_as_good_as_eager(T, D, window, rest, dtype):
    rest = dict(rest)
    heads = learned(rest.get("H", 2), bias=rest.pop("bias", None), tau=rest.pop("tau", None))
    tensors, document = draw(T, D, dtype=dtype, **rest)
    assert_as_good_as_eager(elastic_softmax_attention, tensors, {"window": window, "document": document} | heads)
