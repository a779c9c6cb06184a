"""The bridge to ``zfu_kernels``: nothing else in the library imports it."""

from zfu_kernels.sigmoid_window import attention_weights, sliding_window_attention

__all__ = ["attention_weights", "sliding_window_attention"]
