"""Decoding through the Triton kernels, as a model does it on a GPU, in Triton's interpreter."""

import pytest
import torch

from zfu_lib.attention import decoder


@pytest.fixture
def check_decoding_by_kernel(monkeypatch):
    """``check(model, ids)``: the kernel that reads the cache gives the logits of PyTorch, with a padded row, past the
    end of a window, for as many slots as there are; ``ids`` are [2, 14]."""
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

    def check(model, ids):
        ids[0, :3], mask = 0, torch.ones_like(ids)
        mask[0, :3] = 0
        with torch.no_grad():
            expected = model(ids, attention_mask=mask, use_cache=False).logits[:, 8:]
            logits, calls = decode(model, ids, mask, 8)
        assert calls == 6 * model.config.num_hidden_layers
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        _, calls = decode(model, ids[:, :9], mask, 8)
        assert not calls, "the kernel has no gradient, so where one may be asked for PyTorch computes"

    return check
