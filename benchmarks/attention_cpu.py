"""Banded attention on one CPU thread against what PyTorch offers for the same function, and elastic against softmax.

    python benchmarks/attention_cpu.py [--quick] [--check] [--json FILE]

Peers: dense-mask ``F.scaled_dot_product_attention`` (the mask holds window and slopes), compiled FlexAttention, and
eager n^2 attention for memory. fp32, B=1, H=4, D=64. The timed peers are softmax attention with this window and these
slopes, and are first checked to equal the banded softmax. FlexAttention has no backward on CPU, and without its
log-sum-exp there no sigmoid either. Elastic softmax (learned bias and offset) is timed against softmax with the same
bias in the same band, gradients to bias and offset included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from _timing import Report, options, paired_seconds

from zfu_kernels.elastic_softmax import elastic_softmax_attention
from zfu_kernels.sigmoid_window import sliding_window_attention

B, H, D = 1, 4, 64
SLOPES = -(2.0 ** -torch.arange(1.0, H + 1))


def inputs(n: int, grad: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(n)
    return [torch.randn(B, H, n, D, requires_grad=grad) for _ in range(3)]


def dense_bias(n: int, window: int) -> torch.Tensor:
    position = torch.arange(n)
    distance = position[:, None] - position
    outside = (distance < 0) | (distance >= window)
    return (SLOPES[:, None, None] * distance).masked_fill_(outside, -torch.inf)[None]


def banded(q, k, v, window, activation="sigmoid"):
    return sliding_window_attention(q, k, v, window=window, slopes=SLOPES, activation=activation, backend="banded")


def forward_backward(function, tensors):
    torch.autograd.grad(function(*tensors).sum(), tensors)


def against_dense(report: Report, n: int, window: int, pairs: int, forward_goal, both_goal) -> None:
    q, k, v = inputs(n)
    bias = dense_bias(n, window)

    def dense(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    torch.testing.assert_close(banded(q, k, v, window, "softmax"), dense(q, k, v), rtol=1e-4, atol=1e-5)
    for activation in ("sigmoid", "softmax"):
        ours = partial(banded, window=window, activation=activation)
        seconds = paired_seconds(lambda: dense(q, k, v), partial(ours, q, k, v), pairs)
        report.add(f"forward {activation} n={n} w={window}", "dense SDPA", "banded", *seconds, forward_goal)
    if both_goal is not None:
        tensors = inputs(n, grad=True)
        for activation in ("sigmoid", "softmax"):
            ours = partial(banded, window=window, activation=activation)
            seconds = paired_seconds(
                partial(forward_backward, dense, tensors), partial(forward_backward, ours, tensors), pairs
            )
            report.add(f"fwd+bwd {activation} n={n} w={window}", "dense SDPA", "banded", *seconds, both_goal)


def against_flex(report: Report, n: int, window: int, pairs: int, goal) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = inputs(n)

    def in_window(b, h, m, n_):
        return (m >= n_) & (m - n_ < window)

    def with_slope(score, b, h, m, n_):
        return score + SLOPES[h] * (m - n_)

    start = time.perf_counter()
    mask = create_block_mask(in_window, None, None, n, n, device="cpu")
    mask_seconds = time.perf_counter() - start
    flex = torch.compile(flex_attention)

    def peer():
        return flex(q, k, v, score_mod=with_slope, block_mask=mask)

    start = time.perf_counter()
    try:
        theirs = peer()
    except Exception as error:  # no C++ compiler, or a release that cannot lower this: say so and go on
        report.note(f"FlexAttention not compared: {type(error).__name__}: {str(error)[:200]}")
        return
    compile_seconds = time.perf_counter() - start
    torch.testing.assert_close(theirs, banded(q, k, v, window, "softmax"), rtol=1e-3, atol=1e-4)
    for activation in ("softmax", "sigmoid"):
        seconds = paired_seconds(partial(banded, q, k, v, window, activation), peer, pairs)
        name = f"forward {activation} n={n} w={window}"
        report.add(name, "banded", "FlexAttention softmax", *seconds, goal, at_most=True)
    report.note(f"{'':34} FlexAttention's first call: {mask_seconds:.1f} s mask, {compile_seconds:.1f} s compiling")


def growth(report: Report, n: int, window: int, pairs: int, goal) -> None:
    short, long = inputs(n), inputs(2 * n)
    seconds = paired_seconds(lambda: banded(*long, window), lambda: banded(*short, window), pairs)
    report.add(f"t(2n)/t(n) forward n={n} w={window}", f"n={2 * n}", f"n={n}", *seconds, goal, at_most=True)
    short, long = inputs(n, True), inputs(2 * n, True)
    seconds = paired_seconds(
        lambda: forward_backward(lambda *x: banded(*x, window), long),
        lambda: forward_backward(lambda *x: banded(*x, window), short),
        pairs,
    )
    report.add(f"t(2n)/t(n) fwd+bwd n={n} w={window}", f"n={2 * n}", f"n={n}", *seconds, goal, at_most=True)


def elastic_against_softmax(report: Report, n: int, window: int | None, pairs: int, goal) -> None:
    bias, tau = torch.zeros(H, min(n, 512), requires_grad=True), torch.full((H,), -1.0, requires_grad=True)
    options = {"bias": bias, "window": window, "backend": "banded"}
    q, k, v = inputs(n)
    with torch.no_grad():
        seconds = paired_seconds(
            lambda: elastic_softmax_attention(q, k, v, tau=tau, **options),
            lambda: elastic_softmax_attention(q, k, v, **options),
            pairs,
        )
    name = f"n={n} w={window or n}"
    report.add(f"forward {name}", "elastic", "softmax", *seconds, goal, at_most=True)
    q, k, v = inputs(n, grad=True)

    def both(*own, **offset):
        out = elastic_softmax_attention(q, k, v, **offset, **options)
        torch.autograd.grad(out.sum(), (q, k, v, bias, *own))

    seconds = paired_seconds(lambda: both(tau, tau=tau), both, pairs)
    report.add(f"fwd+bwd {name}", "elastic", "softmax", *seconds, goal, at_most=True)


def eager(q, k, v, window):
    bias = dense_bias(q.shape[2], window)
    return torch.sigmoid(q @ k.transpose(-2, -1) * D**-0.5 + bias) @ v


def peak_mib(which: str, n: int, window: int) -> float:
    """Peak memory of one forward and backward above what the process held before, measured in a fresh process."""
    command = [sys.executable, __file__, "--probe-memory", which, str(n), str(window)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def probe_memory(which: str, n: int, window: int) -> None:
    def status_kib(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    function = {"eager": eager, "banded": banded}[which]
    forward_backward(lambda *x: function(*x, 8), inputs(64, True))
    tensors = inputs(n, True)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel starts a new peak
    before = status_kib("VmRSS")
    forward_backward(lambda *x: function(*x, window), tensors)
    print((status_kib("VmHWM") - before) / 1024)


def main() -> int:
    if "--probe-memory" in sys.argv:
        probe_memory(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    arguments = options(__doc__.split("\n")[0]).parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    report = Report("sliding-window attention, fp32, B=1 H=4 D=64, one CPU thread")
    pairs, quick = arguments.pairs, arguments.quick

    # n, window, goal forward, goal forward + backward
    sizes = [(1024, 128, None, None)] if quick else [(8192, 512, 12, 8), (8192, 128, 35, 25)]
    for n, window, forward_goal, both_goal in sizes:
        against_dense(report, n, window, pairs, forward_goal, both_goal)
    if not quick:
        against_dense(report, 16384, 128, pairs, 60, None)
    for n, window in [(1024, 128)] if quick else [(8192, 512), (8192, 128)]:
        growth(report, n, window, pairs, None if quick else 2.15)
        against_flex(report, n, window, pairs, None if quick else 1.15)
    for n, window in [(1024, None)] if quick else [(2048, None), (8192, 512), (8192, 128)]:
        elastic_against_softmax(report, n, window, pairs, None if quick else 1.25)
    n, window = (2048, 128) if quick else (8192, 512)
    memory = [[peak_mib(which, n, window)] for which in ("eager", "banded")]
    report.add(f"peak extra memory n={n} w={window}", "eager n^2", "banded", *memory, None if quick else 9, unit="MiB")
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
