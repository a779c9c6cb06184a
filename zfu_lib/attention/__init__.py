"""Attention methods: one module per paper. ``ops`` is the only place that imports the kernels."""
