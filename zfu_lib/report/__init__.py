"""Run records, claims and verdicts, statistics, figures: what makes a number in this book trustworthy.

The entry point for a notebook is :func:`begin`; everything else hangs on the
:class:`~zfu_lib.report.run.Run` it returns.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfu_lib.report.run import Run, begin, show, table

# Without ipywidgets (the book uses none) tqdm warns on import, and the warning shows a path of this machine.
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = ["Run", "begin", "show", "table"]


def __getattr__(name: str) -> Any:
    # On first use, so that a command that only lists papers loads neither numpy nor matplotlib.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zfu_lib.report import run

    return getattr(run, name)
