"""The algorithms, experiments and record keeping of the zfu book."""

__version__ = "0.1.0"
