"""Knowledge editing: facts as tensors, metrics, and the editors that MM4KE (:mod:`zfu_lib.merging.mm4ke`) is held
against. Each works on any causal model of the Llama or Qwen2 layout, in place."""
