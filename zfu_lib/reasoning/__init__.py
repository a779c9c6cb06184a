"""Reasoning methods: one module per paper. They talk to language models through ``zfu_lib.lm.protocol`` alone."""
