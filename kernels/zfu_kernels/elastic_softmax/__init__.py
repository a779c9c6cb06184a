"""Softmax with a learned distance bias and an offset that can switch keys off (Eq. 4 and 5 of Lazy Attention)."""

from zfu_kernels.elastic_softmax.decode import elastic_softmax_decode
from zfu_kernels.elastic_softmax.interface import elastic_softmax_attention
from zfu_kernels.elastic_softmax.reference import attention_weights

__all__ = ["attention_weights", "elastic_softmax_decode", "elastic_softmax_attention"]
