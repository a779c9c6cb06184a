"""The Triton kernels of both attention papers: first right, then how fast, against floors and peers.

    python benchmarks/attention_gpu.py [--quick] [--check] [--json FILE] [--tune]

On a GPU it checks, then measures, in under eight minutes. Both sides of a ratio alternate on one GPU; times are CUDA
events, ratios are medians over pairs. Rates count pairs inside the window only (``zfu_kernels.costs``) and are held
against a bf16 matrix product and a copy of the same run. Peers: FlexAttention (softmax with the same window and slopes)
and SDPA; triton-sigmoid and adasplash where they are installed.

Without a GPU only the checks run, in Triton's interpreter, and the targets are listed as unmeasured. ``--tune`` times
other tile shapes for each pass, prints them, and measures nothing else.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

# Triton decides when it is imported.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

from _timing import Report, options

from zfu_kernels import costs, tiles
from zfu_kernels.elastic_softmax import elastic_softmax_attention, elastic_softmax_decode
from zfu_kernels.sigmoid_window import sliding_window_attention, sliding_window_decode

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BUDGET = 450.0  # seconds; what is not reached by then is left out and said
BIAS_LENGTH = 512
START = time.monotonic()

# What a ratio, by its name and its two sides, is to reach, and whether that is a ceiling. With --quick the sizes, and
# so the names, are others, and nothing is judged.
TARGETS: dict[tuple[str, str, str], tuple[float, bool]] = {
    ("sigmoid w=512 n=16384 forward, share of matmul", "ours", "matmul"): (0.55, False),
    ("sigmoid w=512 n=16384 backward, share of matmul", "ours", "matmul"): (0.40, False),
    ("sigmoid w=128 n=16384 forward, share of copy", "ours", "copy"): (0.60, False),
    **{
        (f"sigmoid w={window} n=16384 fwd+bwd", "FlexAttention softmax", "ours"): (1.25, False)
        for window in (128, 512, 2048)
    },
    ("sigmoid w=512 n=16384 fwd+bwd", "triton-sigmoid causal", "ours"): (12.0, False),
    ("elastic n=16384 fwd+bwd", "ours", "own softmax"): (1.45, True),
    ("elastic n=16384 fwd+bwd", "ours", "FlexAttention causal"): (1.6, True),
}


def inputs(T: int, D: int = 128, *, B: int = 1, H: int = 16, Hkv: int | None = None, dtype=torch.bfloat16, grad=True):
    """q, k, v that ask for gradients, and an upstream gradient."""
    generator = torch.Generator(DEVICE).manual_seed(T + D)
    shapes = [(B, heads, T, D) for heads in (H, Hkv or H, Hkv or H, H)]
    q, k, v, do = (torch.randn(s, device=DEVICE, generator=generator).to(dtype) for s in shapes)
    return [x.requires_grad_(grad) for x in (q, k, v)], do


def learned(H: int, *names: str) -> dict[str, torch.Tensor]:
    """Parameters of the heads, in fp32, each asking for its gradient but the slopes, which the paper fixes."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    k = torch.arange(1, H // 2 + 1, device=DEVICE)
    made = {
        "slopes": torch.cat([-(2.0**-k), 2.0**-k]),
        "bias": torch.randn(H, BIAS_LENGTH, device=DEVICE, generator=generator),
        "tau": torch.linspace(-1.0, 0.01, H, device=DEVICE),
    }
    return {name: made[name].requires_grad_(name != "slopes") for name in names}


def outputs(operator: Callable, tensors, do, heads, dtype=None, **given) -> list[torch.Tensor]:
    """The output and the gradients of everything that asks for one, computed in ``dtype`` if given."""
    tensors, do = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors], do.to(dtype or do.dtype)
    heads = {n: x.detach().to(dtype or x.dtype).requires_grad_(x.requires_grad) for n, x in heads.items()}
    out = operator(*tensors, **heads, **given)
    return [out, *torch.autograd.grad(out, [*tensors, *(x for x in heads.values() if x.requires_grad)], do)]


def compare(report: Report, name: str, truth, eager, ours) -> bool:
    """Whether no error of ours is above twice that of eager."""
    worst = 0.0
    for exact, theirs, mine in zip(truth, eager, ours, strict=True):
        error, yardstick = ((x - exact).abs().max().item() for x in (mine, theirs))
        # Eager is sometimes exact by luck: grant a rounding of the largest number.
        worst = max(worst, error / (yardstick + torch.finfo(ours[0].dtype).eps * exact.abs().max().item() + 1e-30))
    report.note(f"{'ok ' if worst <= 2 else 'BAD'} {name}: {worst:.2f} of eager's error")
    return worst <= 2


def check(report: Report) -> bool:
    """Errors against fp64, of the kernels over those of the reference in the same dtype; then bits, twice."""
    sound = True
    T, D, H = (1000, 128, 4) if GPU else (40, 32, 2)
    windows = (1, 64, 512, None) if GPU else (12, None)
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if GPU else (torch.float32, torch.float16)
    for operator, names in ((sliding_window_attention, ["slopes"]), (elastic_softmax_attention, ["bias", "tau"])):
        for window in windows:
            for dtype in dtypes:
                tensors, do = inputs(T, D, H=H, Hkv=H // 2, dtype=dtype)
                heads = learned(H, *names)
                ways = ("reference", torch.float64), ("reference", None), ("triton", None)
                truth, eager, ours = (
                    outputs(operator, tensors, do, heads, as_dtype, window=window, backend=backend)
                    for backend, as_dtype in ways
                )
                sound &= compare(report, f"{operator.__name__} window={window} {dtype}", truth, eager, ours)
        tensors, do = inputs(T, D, H=H, dtype=torch.float16)
        call = partial(outputs, operator, tensors, do, learned(H, *names), window=windows[0], backend="triton")
        first = call()
        same = all(torch.equal(a, b) for _ in range(100 if GPU else 1) for a, b in zip(call(), first, strict=True))
        report.note(f"{'ok ' if same else 'BAD'} {operator.__name__}: the same bits every time")
        sound &= same
    for step, names in ((sliding_window_decode, ["slopes"]), (elastic_softmax_decode, ["bias", "tau"])):
        for dtype in dtypes:
            (q, k, v), _ = inputs(T, D, B=2, H=H, Hkv=H // 2, dtype=dtype, grad=False)
            distance, heads = torch.randperm(T, device=DEVICE), {n: x.detach() for n, x in learned(H, *names).items()}
            q = q[:, :, 0]
            truth = step(q.double(), k.double(), v.double(), distance, backend="reference", **heads)
            eager, ours = (step(q, k, v, distance, backend=way, **heads) for way in ("reference", "triton"))
            sound &= compare(report, f"{step.__name__} {dtype}", [truth], [eager], [ours])
    return sound


def milliseconds(call: Callable, repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def paired(a: Callable, b: Callable, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both calls in alternation, each repeated for at least 20 ms, after warming up."""
    repeats = []
    for call in (a, b):
        call(), call()
        torch.cuda.synchronize()
        repeats.append(max(1, math.ceil(20 / max(milliseconds(call, 1), 1e-3))))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            times[which].append(milliseconds((a, b)[which], min(repeats[which], 200)))
    return times


def passes(function: Callable, tensors, do, extra=()) -> dict[str, Callable]:
    """The three things to time: forward, backward alone, and both."""
    wanted = [*tensors, *extra]
    out = function(*tensors)

    def forward():
        with torch.no_grad():
            function(*tensors)

    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(out, wanted, do, retain_graph=True),
        "fwd+bwd": lambda: torch.autograd.grad(function(*tensors), wanted, do),
    }


def matmul() -> tuple[Callable, int]:
    """A bf16 product to hold rates against, and its FLOPs."""
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return partial(torch.matmul, a, b), 2 * n**3


def copying() -> tuple[Callable, int]:
    """A copy to hold bandwidths against, and the bytes it moves."""
    source = torch.empty(1 << 30, device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    return partial(target.copy_, source), 2 * source.nbytes


def add(report: Report, name: str, a: str, b: str, measured, unit: str = "ms") -> None:
    """A ratio, judged where it has a target."""
    goal, at_most = TARGETS.get((name, a, b), (None, False))
    report.add(name, a, b, *measured, goal, at_most=at_most, unit=unit)


def against_rate(report: Report, name: str, call: Callable, work: int, yardstick, unit: str, pairs: int) -> None:
    """``call``'s rate over the yardstick's: the share of what the machine can do."""
    ours, theirs = paired(call, yardstick[0], pairs)
    scale = {"TFLOP/s": 1e9, "GB/s": 1e6}[unit]
    rates = [work / ms / scale for ms in ours], [yardstick[1] / ms / scale for ms in theirs]
    peer = {"TFLOP/s": "matmul", "GB/s": "copy"}[unit]
    add(report, f"{name}, share of {peer}", "ours", peer, rates, unit)


def flex(T: int, window: int | None, slopes: torch.Tensor | None):
    """Compiled FlexAttention: causal softmax with a window and slopes, or None if this PyTorch cannot."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(b, h, m, n):
        return (m >= n) & (m - n < (T if window is None else window))

    def bias(score, b, h, m, n):
        return score + slopes[h] * (m - n)

    mask = create_block_mask(sees, None, None, T, T, device=DEVICE, _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=None if slopes is None else bias, block_mask=mask)


def peer(report: Report, name: str, make: Callable[[], Callable], tensors) -> Callable | None:
    """A peer that works on these tensors, or a note on why not."""
    try:
        function = make()
        function(*tensors)
        torch.cuda.synchronize()
    except Exception as error:  # whatever a package that is not ours may raise
        report.note(f"{name} not compared: {type(error).__name__}: {str(error)[:160]}")
        return None
    return function


def late(report: Report, what: str) -> bool:
    if time.monotonic() - START < BUDGET:
        return False
    report.note(f"{what}: left out, the budget of {BUDGET:.0f} s is spent")
    return True


def swat(report: Report, T: int, pairs: int, product, copy) -> None:
    """P1 and P2: rates inside the window, and FlexAttention."""
    H, D = 16, 128
    for window in (128, 512, 2048):
        if late(report, f"sliding window {window}"):
            return
        tensors, do = inputs(T, D, H=H)
        heads, shape = learned(H, "slopes"), costs.Shape(1, H, H, T, D, window)
        ours = passes(partial(sliding_window_attention, window=window, backend="triton", **heads), tensors, do)
        name = f"sigmoid w={window} n={T}"
        for which in ("forward", "backward"):
            work = shape.flops("sigmoid", which)
            against_rate(report, f"{name} {which}", ours[which], work, product, "TFLOP/s", pairs)
        work = shape.bytes("sigmoid", "forward")
        against_rate(report, f"{name} forward", ours["forward"], work, copy, "GB/s", pairs)

        theirs = peer(report, "FlexAttention", partial(flex, T, window, heads["slopes"].clone()), tensors)
        if theirs is not None:
            others = passes(theirs, tensors, do)
            for which in ("forward", "fwd+bwd"):
                times = paired(others[which], ours[which], pairs)
                add(report, f"{name} {which}", "FlexAttention softmax", "ours", times)
        if window == 512:
            theirs = peer(report, "triton-sigmoid", causal_sigmoid, tensors)
            if theirs is not None:
                times = paired(passes(theirs, tensors, do)["fwd+bwd"], ours["fwd+bwd"], min(pairs, 3))
                add(report, f"{name} fwd+bwd", "triton-sigmoid causal", "ours", times)
        softmax = partial(F.scaled_dot_product_attention, is_causal=True)
        times = paired(passes(softmax, tensors, do)["fwd+bwd"], ours["fwd+bwd"], min(pairs, 3))
        add(report, f"{name} fwd+bwd", "SDPA causal, no window", "ours", times)


def causal_sigmoid() -> Callable:
    function = importlib.import_module("triton_sigmoid").sigmoid_attention
    return partial(function, is_causal=True, sigmoid_bias=0.0)


def causal_entmax() -> Callable:
    return partial(importlib.import_module("adasplash").adasplash, alpha=1.5, is_causal=True)


def elastic(report: Report, T: int, pairs: int, product) -> None:
    """P3: against softmax of the same code base, and causal FlexAttention."""
    H, D = 16, 128
    if late(report, "elastic softmax"):
        return
    tensors, do = inputs(T, D, H=H)
    heads, shape = learned(H, "bias", "tau"), costs.Shape(1, H, H, T, D)
    name = f"elastic n={T}"
    ours = passes(partial(elastic_softmax_attention, backend="triton", **heads), tensors, do, heads.values())
    for which in ("forward", "backward"):
        work = shape.flops("elastic", which)
        against_rate(report, f"{name} {which}", ours[which], work, product, "TFLOP/s", pairs)
    softmax = partial(elastic_softmax_attention, bias=heads["bias"], backend="triton")
    own = passes(softmax, tensors, do, [heads["bias"]])
    for which in ("forward", "backward", "fwd+bwd"):
        add(report, f"{name} {which}", "ours", "own softmax", paired(ours[which], own[which], pairs))
    peers = {
        "FlexAttention causal": partial(flex, T, None, None),
        "SDPA causal": lambda: partial(F.scaled_dot_product_attention, is_causal=True),
        "adasplash entmax-1.5": causal_entmax,
    }
    for other, make in peers.items():
        if late(report, other):
            return
        theirs = peer(report, other, make, tensors)
        if theirs is not None:
            times = paired(ours["fwd+bwd"], passes(theirs, tensors, do)["fwd+bwd"], min(pairs, 3))
            add(report, f"{name} fwd+bwd", "ours", other, times)


def decoding(report: Report, pairs: int, copy) -> None:
    """One token for 16 rows against a cache: share of the copy bandwidth, and the same formula in PyTorch."""
    B, H, Hkv, D = 16, 32, 8, 128
    for name, step, S, heads in (
        ("sigmoid", sliding_window_decode, 512, learned(H, "slopes")),
        ("elastic", elastic_softmax_decode, 16384, learned(H, "bias", "tau")),
    ):
        if late(report, f"decoding, {name}"):
            return
        (q, k, v), _ = inputs(S, D, B=B, H=H, Hkv=Hkv, grad=False)
        heads = {key: x.detach() for key, x in heads.items()}
        distance = torch.arange(S - 1, -1, -1, device=DEVICE)
        ours, eager = (
            partial(step, q[:, :, 0], k, v, distance, backend=backend, **heads) for backend in ("triton", "reference")
        )
        against_rate(report, f"decode {name} S={S}", ours, k.nbytes + v.nbytes, copy, "GB/s", pairs)
        times = paired(eager, ours, min(pairs, 3))
        add(report, f"decode {name} S={S}", "PyTorch", "ours", times)


def tune(T: int) -> None:
    """Times of other tile shapes, best first; the tables in ``zfu_kernels.tiles`` are changed by hand."""
    operators = {"": (sliding_window_attention, "slopes"), "elastic ": (elastic_softmax_attention, "bias", "tau")}
    rows, stages = (32, 64, 128), (1, 2, 3)
    for D, window, (prefix, (operator, *names)), part in itertools.product(
        (64, 128, 256), (128, 2048), operators.items(), ("forward", "queries", "keys")
    ):
        tensors, do = inputs(T, D)
        heads, found = learned(16, *names), []
        function = partial(operator, window=window, backend="triton", **heads)
        for shape in itertools.product(rows, rows, (4, 8), stages):
            try:
                with tiles.override(prefix + part, shape):
                    timed = passes(function, tensors, do, [x for x in heads.values() if x.requires_grad])
                    found.append((milliseconds(timed["forward" if part == "forward" else "backward"], 5), shape))
            except Exception as error:  # too much shared memory, or a shape that cannot be compiled
                print(f"{prefix + part} {shape}: {type(error).__name__}", file=sys.stderr)
        best = ", ".join(f"{shape} {ms:.2f} ms" for ms, shape in sorted(found)[:4])
        print(f"{prefix + part:16} D={D} w={window}: {best}", flush=True)


def main() -> int:
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="time other tile shapes instead")
    arguments = parser.parse_args()
    if arguments.tune:
        if not GPU:
            parser.error("--tune needs a GPU")
        tune(8192)
        return 0
    report = Report("Triton kernels of sliding-window sigmoid and elastic softmax")
    report.versions["triton"] = importlib.import_module("triton").__version__
    if not GPU:
        report.note("no GPU: the checks alone, in Triton's interpreter; speed is not measured")
        # numpy, which computes there, warns of what a GPU does silently: rows past the end.
        warnings.filterwarnings("ignore", ".* encountered in", RuntimeWarning)
        torch.set_num_threads(1)
        sound = check(report)
        for (name, a, b), (goal, at_most) in TARGETS.items():
            report.note(f"unmeasured, no GPU: {name}, {a} / {b}: target {'<=' if at_most else '>='} {goal:g}")
        return report.finish(arguments) or int(not sound)
    report.versions["gpu"] = torch.cuda.get_device_name()
    report.note(f"GPU {report.versions['gpu']}, triton {report.versions['triton']}")
    sound = check(report)
    if not sound:
        report.note("wrong results are not timed")
        return report.finish(arguments) or 1
    T, pairs = (4096, 3) if arguments.quick else (16384, arguments.pairs)
    product, copy = matmul(), copying()
    swat(report, T, pairs, product, copy)
    elastic(report, T, pairs, product)
    decoding(report, pairs, copy)
    report.note(f"{time.monotonic() - START:.0f} s in all")
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
