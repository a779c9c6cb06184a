"""Triton and CPU kernels of the zfu book, one folder per operator."""
