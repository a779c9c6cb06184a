"""Model merging: the methods of the papers on named tensors (``methods``) and their out-of-core engine (``engine``)."""
