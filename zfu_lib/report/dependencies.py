"""Which files a notebook's run depends on: what has to change for the run to be out of date.

A run depends on the code cells of its notebook (not its prose), its claims, every module of ours that those cells
import directly or indirectly, the files those packages carry, and the installed versions of what computes.
``constraints.txt`` is no dependency: a pin that changes nothing installed changes no result.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from zfu_lib.report import notebook as notebooks
from zfu_lib.report import papers, paths, record

if TYPE_CHECKING:
    import grimp

OURS = ("zfu_lib", "zfu_kernels")


def of_paper(slug: str) -> list[str]:
    """Files, relative to the book's root, that the run of a paper depends on.

    Raises:
        SyntaxError: a code cell is not Python.
    """
    modules = closure(imported(paths.notebook(slug)))
    packages = sorted({_file(module).parent for module in modules})
    carried = [file for package in packages for file in _carried(package)]
    rules = [] if slug in papers.APPENDICES and not paths.claims(slug).exists() else [paths.claims(slug)]
    return _relative([fingerprint(slug), *rules, *map(_file, modules), *carried])


def of_site() -> list[str]:
    """Files that the site depends on beside the runs: prose, settings, and the library, whose reference it holds."""
    root = paths.root()
    folders = (root / "book", root / "notebooks")
    prose = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    code = [_file(module) for module in sorted(_graph().modules)]
    return _relative([*prose, *code, root / "_config.yml", root / "_toc.yml"])


def fingerprint(slug: str) -> Path:
    """A file that changes when the notebook's code or an installed version does, and only then."""
    cells = notebooks.code(notebooks.read(paths.notebook(slug)))
    code = json.dumps([[cell["source"], sorted(notebooks.tags(cell))] for _, cell in cells])
    text = f"{hashlib.sha256(code.encode()).hexdigest()}\n{versions()}\n"
    file = paths.root() / "runs" / ".inputs" / slug
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        record.write_atomically(file, text)
    return file


def imported(notebook: Path) -> set[str]:
    """Modules of ours that a notebook's code cells import, at whatever depth of nesting."""
    found: set[str] = set()
    known = _graph().modules
    for i, cell in notebooks.code(notebooks.read(notebook)):
        for node in ast.walk(ast.parse(cell["source"], filename=f"{notebook.name}, cell {i}")):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & known


def closure(modules: set[str]) -> list[str]:
    """``modules`` with everything of ours they import, and the packages above each, whose ``__init__`` runs too."""
    graph, todo, done = _graph(), list(modules), set()
    while todo:
        module = todo.pop()
        if module in done:
            continue
        done.add(module)
        todo += graph.find_modules_directly_imported_by(module)
        if "." in module:
            todo.append(module.rpartition(".")[0])
    return sorted(done)


def versions() -> str:
    """Versions of Python and of the packages that results depend on, as one line."""
    python = ".".join(map(str, sys.version_info[:3]))
    return " ".join([f"python={python}", *(f"{name}={_version(name)}" for name in record.PACKAGES)])


@functools.cache
def _graph() -> grimp.ImportGraph:
    import grimp

    # No cache on disk: it would be one more thing that can be stale, to save half a second.
    return grimp.build_graph(*(name for name in OURS if _folder(name)), cache_dir=None)


def _folder(package: str) -> Path | None:
    root = paths.root()
    places = (root / package, root / "kernels" / package)
    return next((place for place in places if (place / "__init__.py").is_file()), None)


def _file(module: str) -> Path:
    top, *rest = module.split(".")
    place = _folder(top).joinpath(*rest)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _relative(files: Sequence[Path]) -> list[str]:
    """Without duplicates, caches and hidden files."""
    root = paths.root()
    hidden = {f for f in files if "__pycache__" in f.parts or f.name.startswith(".") or ".ipynb_checkpoints" in f.parts}
    return [str(file.relative_to(root)) for file in dict.fromkeys(files) if file not in hidden]


def _carried(package: Path) -> list[Path]:
    """Files in a package that are not code (catalogues, weights), down to where the next package begins."""
    found = []
    for place in sorted(package.iterdir()):
        if place.name.startswith((".", "__pycache__")):
            continue
        if place.is_dir() and not (place / "__init__.py").is_file():
            found += _carried(place)
        elif place.is_file() and place.suffix not in (".py", ".pyc"):
            found.append(place)
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
