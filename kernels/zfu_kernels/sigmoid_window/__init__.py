"""Sliding-window attention without a normaliser (Eq. 5 of SWAT), and its softmax control."""

from zfu_kernels.sigmoid_window.decode import sliding_window_decode
from zfu_kernels.sigmoid_window.interface import sliding_window_attention
from zfu_kernels.sigmoid_window.reference import attention_weights

__all__ = ["attention_weights", "sliding_window_decode", "sliding_window_attention"]
