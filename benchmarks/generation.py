"""What do batches buy when tiny models write on a CPU, and how far is a large model's decoding from the memory's speed?

    python benchmarks/generation.py [--quick] [--check] [--json FILE]

Greedy decoding in fp32 on one CPU thread through ``TransformersLM``, random weights in the Llama layout, with
transformers' own ``generate`` beside it. The floor of decoding at batch 1 is the time to read every weight once per
token, measured as the sum of a tensor of that size.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from _timing import Report, options, paired_seconds
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from zfu_lib.lm.hf import TransformersLM
from zfu_lib.lm.protocol import GenRequest
from zfu_lib.lm.tokenizer import VOCABULARY, byte_tokenizer

PROMPT = 32
# Hidden size, layers, heads.
SIZES = {"1M": (128, 5, 4), "5M": (256, 6, 4)}
LARGE = (2048, 8, 16)


def language_model(hidden: int, layers: int, heads: int, vocabulary: int = VOCABULARY) -> TransformersLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=None,
    )
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformersLM(folder, device="cpu", batch_tokens=1 << 20)


def write(lm: TransformersLM, rows: int, tokens: int, prompt: int = PROMPT) -> None:
    requests = [GenRequest(chr(97 + i % 26) * prompt, max_tokens=tokens) for i in range(rows)]
    assert sum(result.n_out for result in lm.generate(requests)) == rows * tokens


@torch.inference_mode()
def write_by_transformers(lm: TransformersLM, rows: int, tokens: int) -> None:
    ids = torch.tensor([[97 + i % 26] * PROMPT for i in range(rows)])
    out = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=258
    )
    assert out.shape == (rows, PROMPT + tokens)


def write_by_blas(lm: TransformersLM, rows: int, tokens: int) -> None:
    """As :func:`write`, with the layers that the model was built with."""
    layers = [module for module in lm.model.modules() if isinstance(module, nn.Linear)]
    kinds = [type(layer) for layer in layers]
    try:
        for layer in layers:
            layer.__class__ = nn.Linear
        write(lm, rows, tokens)
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def main() -> int:
    arguments = options(__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    quick, pairs = arguments.quick, arguments.pairs
    tokens, alone = (8, 1) if quick else (64, 4)
    report = Report("generation by TransformersLM, fp32, one CPU thread")
    for size, shape in SIZES.items():
        lm = language_model(*shape)
        report.note(f"{size}: {lm.n_params:,} parameters, {PROMPT} tokens read and {tokens} written by each row")
        for rows in (8, 16) if quick else (32, 128):
            single, batch = paired_seconds(
                lambda lm=lm: [write(lm, 1, tokens) for _ in range(alone)],
                lambda lm=lm, rows=rows: write(lm, rows, tokens),
                pairs,
            )
            single = [s / alone / tokens * 1e6 for s in single]
            batch = [s / rows / tokens * 1e6 for s in batch]
            names = "one by one", f"batch {rows}"
            report.add(
                f"{size}: tokens of a batch of {rows}", *names, single, batch, None if quick else 6, unit="CPU us/token"
            )
            report.note(
                f"{'':34} {1e6 / statistics.median(single):.0f} and {1e6 / statistics.median(batch):.0f} tokens/s"
            )
        for rows in (1, 8 if quick else 32):
            seconds = paired_seconds(
                lambda lm=lm, rows=rows: write_by_transformers(lm, rows, tokens),
                lambda lm=lm, rows=rows: write(lm, rows, tokens),
                pairs,
            )
            report.add(f"{size}: generate over ours, batch {rows}", "generate", "ours", *seconds)

    rows = 8 if quick else 128
    seconds = paired_seconds(lambda: write_by_blas(lm, rows, tokens), lambda: write(lm, rows, tokens), pairs)
    report.add(f"5M: nn.Linear over ours, batch {rows}", "nn.Linear", "ours", *seconds)

    lm = language_model(*((128, 2, 4) if quick else LARGE), vocabulary=32000)
    # Each forward pass reads every weight once: the embeddings are the head's.
    weights = torch.ones(lm.n_params)
    passes = 4 if quick else 8
    decode, read = paired_seconds(
        lambda: write(lm, 1, passes, prompt=1), lambda: [weights.sum() for _ in range(passes)], pairs
    )
    decode, read = [s / passes * 1e3 for s in decode], [s / passes * 1e3 for s in read]
    report.add(
        f"{lm.n_params / 1e6:.0f}M at batch 1 over the floor",
        *("a token", "reading the weights"),
        *(decode, read, None if quick else 1.5),
        at_most=True,
        unit="CPU ms",
    )
    report.note(f"{'':34} reads at {4e-6 * lm.n_params / statistics.median(read):.1f} GB/s")
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
