"""Does decoding with the rolling cache cost the same after 64k tokens as after 1k, in time and in bytes?

    python benchmarks/decode.py [--quick] [--check] [--json FILE]

One token at a time through a random SWAT model on one CPU thread. Both caches live side by side and are advanced in
alternation; a block is 32 tokens.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from _timing import Report, options, paired_seconds

from zfu_lib.attention.swat_model import SwatConfig, SwatForCausalLM

PREFILL = 1024
BLOCK = 32


@torch.no_grad()
def filled_cache(model: SwatForCausalLM, length: int):
    """A cache that has read ``length`` tokens."""
    cache = model.new_cache()
    tokens = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    for piece in tokens.split(PREFILL, dim=1):
        model(piece, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def decode_block(model: SwatForCausalLM, cache) -> None:
    token = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(BLOCK):
        token = model(token, past_key_values=cache).logits.argmax(-1)


def main() -> int:
    arguments = options(__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = arguments.quick
    short, long = (256, 4096) if quick else (1024, 65536)
    window = 64 if quick else 128
    shape = {"hidden_size": 64, "num_hidden_layers": 2} if quick else {"hidden_size": 256, "num_hidden_layers": 4}
    model = SwatForCausalLM(SwatConfig(vocab_size=256, window=window, **shape)).eval()
    report = Report(f"rolling-cache decoding, window {window}, fp32, one CPU thread")

    caches = [filled_cache(model, length) for length in (short, long)]
    seconds = paired_seconds(
        lambda: decode_block(model, caches[1]), lambda: decode_block(model, caches[0]), 4 * arguments.pairs
    )
    names = f"after {long}", f"after {short}"
    unit = f"CPU s / {BLOCK} tokens"
    report.add("time per token", *names, *seconds, None if quick else 1.05, at_most=True, unit=unit)
    sizes = [cache.nbytes for cache in caches]
    report.add("cache bytes", *names, [sizes[1]], [sizes[0]], 1.0, at_most=True, unit="bytes")
    config = model.config
    expected = 2 * config.num_hidden_layers * config.num_key_value_heads * window * config.head_dim * 4
    report.note(f"2 L H window D x 4 bytes = {expected}")
    return report.finish(arguments) or int(sizes[1] != expected and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
