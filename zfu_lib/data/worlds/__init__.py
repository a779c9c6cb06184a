"""Generated worlds whose every intermediate step can be checked: what the small language models learn and are asked.

A world is a module with ``problems(n, seed, levels)`` and ``solve(question)``; what it writes is a :class:`Problem` of
:mod:`zfu_lib.data.worlds.problem`, whose rendering the worlds share.
"""
