"""The bridge to ``zfu_kernels``: nothing else in the library imports it."""

from zfu_kernels.checks import runs_on_gpu
from zfu_kernels.documents import document_starts
from zfu_kernels.elastic_softmax import attention_weights as elastic_attention_weights
from zfu_kernels.elastic_softmax import elastic_softmax_attention, elastic_softmax_decode
from zfu_kernels.elastic_softmax.reference import distance_bias, elastic_weights
from zfu_kernels.sigmoid_window import attention_weights, sliding_window_attention, sliding_window_decode

__all__ = [
    "attention_weights",
    "distance_bias",
    "document_starts",
    "elastic_attention_weights",
    "elastic_softmax_attention",
    "elastic_softmax_decode",
    "elastic_weights",
    "runs_on_gpu",
    "sliding_window_attention",
    "sliding_window_decode",
]
