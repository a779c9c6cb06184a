"""Decoding through the Triton kernels, as a model does it on a GPU, in Triton's interpreter."""

import pytest
import torch

from zfu_lib.attention import decoder


@pytest.fixture
def decode_by_kernel(monkeypatch):
    """``decode(model, ids, mask, first)``: logits from position ``first`` on, a token at a time over the cache, and how
    often a layer read the cache by its kernel."""
    tiles = pytest.importorskip("zfu_kernels.tiles", reason="Triton exists on Linux only")
    if not tiles.INTERPRETED:
        pytest.skip("the models of these tests are on the CPU, where there is no kernel but in the interpreter")
    monkeypatch.setattr(decoder, "runs_on_gpu", lambda q: tiles.refuse(q) is None)

    def decode(model, ids, mask, first):
        calls, read = [], model.model.attention_class.read
        with monkeypatch.context() as patch:
            patch.setattr(model.model.attention_class, "read", lambda *a: calls.append(1) or read(*a))
            cache = model(ids[:, :first], attention_mask=mask[:, :first], use_cache=True).past_key_values
            parts = [
                model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache).logits
                for t in range(first, ids.shape[1])
            ]
        return torch.cat(parts, 1), len(calls)

    return decode
