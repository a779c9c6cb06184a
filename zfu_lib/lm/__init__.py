"""Language models: one protocol with three back ends, the tiny family and its recipes, training, evaluation.

Nothing heavy is imported here: take ``from zfu_lib.lm import train`` and so on.
"""
