"""Merges of checkpoints that do not fit into memory: recipes, safetensors, exact selection by counting, safe output."""
