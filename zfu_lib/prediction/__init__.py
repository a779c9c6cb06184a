"""Temporal knowledge graphs and recommendation: one module per paper."""
