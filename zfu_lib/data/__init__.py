"""Real data sets by name, text every machine has, seeded generators.

Nothing heavy is imported here: take ``from zfu_lib.data import catalogue`` and so on.
"""
