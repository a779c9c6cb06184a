"""Language models: a small trainer, losses by position and length, the lm-eval bridge, a byte tokenizer.

Nothing heavy is imported here: take ``from zfu_lib.lm import train`` and so on.
"""
