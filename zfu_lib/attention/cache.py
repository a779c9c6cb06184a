"""What a windowed model must remember while it decodes: the last ``window`` keys and values of each layer, no more.

Position p lives in slot p mod window. Order inside the ring does not matter, since a query weighs its keys by distance;
keys are stored already rotated at their absolute position. Without a window the slots grow with the text.
"""

from __future__ import annotations

import torch


class RollingCache:
    """Keys and values of all layers, with the position and the padding flag of each slot.

    The model calls :meth:`advance` once per forward pass and :meth:`update` once per layer; ``generate`` uses
    :meth:`get_seq_length` and :meth:`reorder_cache`.

    Letters: B batch, H key heads, T new positions, S slots, D head width.
    """

    is_compileable = False

    def __init__(self, num_layers: int, window: int | None):
        self.window = window
        self.start = 0  # first position of the newest forward pass
        self.length = 0  # positions seen
        self.position_S: torch.Tensor | None = None
        self.real_BS: torch.Tensor | None = None
        self._keys_BHSD: list[torch.Tensor | None] = [None] * num_layers
        self._values_BHSD: list[torch.Tensor | None] = [None] * num_layers

    def __len__(self) -> int:
        return len(self._keys_BHSD)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions seen so far, not positions kept."""
        return self.length

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values: with a window 2 L B H window D times the bytes of a number, at any length."""
        return sum(x.nbytes for x in (*self._keys_BHSD, *self._values_BHSD) if x is not None)

    @property
    def held(self) -> int:
        """Slots in use."""
        return self.length if self.window is None else min(self.length, self.window)

    def advance(self, real_BT: torch.Tensor | None, count: int, device: torch.device) -> torch.Tensor:
        """Gives ``count`` new positions their slots and returns them ``[T]``; ``real_BT`` is False for padding."""
        self.start, self.length = self.length, self.length + count
        position_T = torch.arange(self.start, self.length, device=device)
        self.position_S = self._write(self.position_S, position_T, 0)
        if real_BT is not None or self.real_BS is not None:
            if real_BT is None:
                real_BT = self.real_BS.new_ones(self.real_BS.shape[0], count)
            if self.real_BS is None and self.start:
                self.real_BS = real_BT.new_ones(real_BT.shape[0], len(self.position_S))
            self.real_BS = self._write(self.real_BS, real_BT, 1)
        return position_T

    def update(self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> None:
        """Stores the keys and values of the positions just advanced to."""
        self._keys_BHSD[layer] = self._write(self._keys_BHSD[layer], k_BHTD, 2)
        self._values_BHSD[layer] = self._write(self._values_BHSD[layer], v_BHTD, 2)

    def kept(self, layer: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first ``slots`` slots of a layer, ``[B, H, slots, D]`` each."""
        return self._keys_BHSD[layer][:, :, :slots], self._values_BHSD[layer][:, :, :slots]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps the rows that beam search kept."""
        for kept in (self._keys_BHSD, self._values_BHSD):
            kept[:] = [None if x is None else x.index_select(0, beam_idx.to(x.device)) for x in kept]
        if self.real_BS is not None:
            self.real_BS = self.real_BS.index_select(0, beam_idx.to(self.real_BS.device))

    def _write(self, kept: torch.Tensor | None, new: torch.Tensor, dim: int) -> torch.Tensor:
        """Puts the newest entries of ``new`` along ``dim`` into their slots; makes the slots when there are too few."""
        # Without a window the slots double, so copying stays proportional to the length.
        slots = self.window or max(64, 1 << (self.length - 1).bit_length())
        if kept is None or kept.shape[dim] < slots:
            shape = list(new.shape)
            shape[dim] = slots
            grown = new.new_zeros(shape)
            if kept is not None:
                grown.narrow(dim, 0, kept.shape[dim]).copy_(kept)
            kept = grown
        count = min(new.shape[dim], slots)
        new = new.narrow(dim, new.shape[dim] - count, count)
        first = (self.length - count) % slots
        before_wrap = min(count, slots - first)
        kept.narrow(dim, first, before_wrap).copy_(new.narrow(dim, 0, before_wrap))
        if before_wrap < count:
            kept.narrow(dim, 0, count - before_wrap).copy_(new.narrow(dim, before_wrap, count - before_wrap))
        return kept
