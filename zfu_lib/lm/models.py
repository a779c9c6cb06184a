"""Language models by name. Nothing heavy is imported before one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zfu_lib.lm import tiny
from zfu_lib.lm.protocol import LanguageModel, ModelError


def load(name: str, *, device: str = "auto", cache: bool | Path = True, **options: Any) -> LanguageModel:
    """A language model, its answers kept on disk unless ``cache`` is False.

    Args:
        name: ``hf:PATH-OR-ID`` (transformers), ``http(s)://HOST:PORT[/v1][#MODEL]`` (an OpenAI-compatible
            server; the model may be left out if it has only one) or
            ``tiny:NAME`` (:func:`zfu_lib.lm.tiny.names`).
        device: of ``hf:`` and ``tiny:``; ``auto`` is the GPU if there is one.
        cache: True for the user's folder or ``$ZFU_CACHE``, or a folder (see :class:`zfu_lib.lm.cache.Cached`).
        options: for :class:`zfu_lib.lm.hf.TransformersLM` or :class:`zfu_lib.lm.server.ServerLM`.

    Raises:
        ModelError: a name of another form, or a model that cannot be found or reached.
    """
    scheme, colon, rest = name.partition(":")
    if scheme in ("http", "https"):
        from zfu_lib.lm.server import ServerLM

        model = ServerLM.from_url(name, **options)
    elif scheme == "hf" and rest:
        from zfu_lib.lm.hf import TransformersLM

        is_folder = Path(rest).expanduser().is_dir()
        label = f"hf:{Path(rest).expanduser().resolve().name if is_folder else rest}"
        model = TransformersLM(rest, name=label, device=device, **options)
    elif scheme == "tiny" and colon:
        folder = tiny.path(rest)
        from zfu_lib.lm.hf import TransformersLM

        model = TransformersLM(folder, name=name, device=device, **{"count_embeddings": False} | options)
    else:
        raise ModelError(
            f"no language model {name!r}; there are hf:PATH-OR-ID, http://HOST:PORT#MODEL and "
            f"tiny:NAME ({', '.join(tiny.names()) or 'none yet'})"
        )
    if cache is False:
        return model
    from zfu_lib.lm.cache import Cached

    return Cached(model, None if cache is True else cache)
