"""Documents packed into one row ``document [B, T]``: a new one begins wherever the number changes."""

from __future__ import annotations

from collections.abc import Callable

import torch


def document_starts(document_BT: torch.Tensor) -> torch.Tensor:
    """Where the document of each position begins, int64 ``[B, T]``: one begins at 0 and wherever the number changes."""
    T = document_BT.shape[1]
    position_T = torch.arange(T, device=document_BT.device)
    begins_BT = torch.ones_like(document_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return (position_T * begins_BT).cummax(1).values


def document_bounds(document_BT: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """First position, and one past the last, of the document of each position, int32 ``[B, T]`` each; None for None."""
    if document_BT is None:
        return None, None
    # Read backwards, a document begins where it ends.
    ends_BT = document_BT.shape[1] - document_starts(document_BT.flip(1)).flip(1)
    return document_starts(document_BT).int().contiguous(), ends_BT.int().contiguous()


def each_document(
    attention: Callable[..., torch.Tensor], q_BHTD, k_BHTD, v_BHTD, document_BT: torch.Tensor, **options
) -> torch.Tensor:
    """``attention(q, k, v, **options)`` of every document by itself, put together again."""
    T = document_BT.shape[1]
    rows = []
    for b, start_T in enumerate(document_starts(document_BT)):
        begins = [*start_T.unique().tolist(), T]
        pieces = [
            attention(*(x[b : b + 1, :, first:stop] for x in (q_BHTD, k_BHTD, v_BHTD)), **options)
            for first, stop in zip(begins, begins[1:], strict=False)
        ]
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows)
