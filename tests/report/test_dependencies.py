from pathlib import Path

import nbformat
import pytest

from zfu_lib.report import dependencies

FILES = {
    "_toc.yml": "",
    "book/claims/p.yml": "",
    "book/claims/q.yml": "",
    "demo_lib/__init__.py": "",
    "demo_lib/cli.py": "from demo_lib.experiments import p",
    "demo_lib/experiments/__init__.py": "",
    "demo_lib/experiments/p.py": "from demo_lib.fam.p import f",
    "demo_lib/experiments/q.py": "def late():\n    from demo_lib.fam import q",
    "demo_lib/fam/__init__.py": "from demo_lib import base",
    "demo_lib/fam/p.py": "import demo_kernels.op\ndef f(): pass",
    "demo_lib/fam/q.py": "",
    "demo_lib/base.py": "",
    "demo_lib/data/__init__.py": "",
    "demo_lib/data/text.py": "",
    "demo_lib/data/catalogue.yml": "",
    "demo_lib/data/weights/a/model.safetensors": "",
    "kernels/demo_kernels/__init__.py": "",
    "kernels/demo_kernels/op.py": "",
}
CELLS = {
    "p": ["from demo_lib.experiments import p"],
    "q": ["if True:\n    from demo_lib.experiments.q import late", "import demo_lib.data.text as t"],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "notebooks").mkdir()
    for slug, cells in CELLS.items():
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(made, tmp_path / "notebooks" / f"{slug}.ipynb")
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "kernels"))
    monkeypatch.setattr(dependencies, "OURS", ("demo_lib", "demo_kernels"))
    dependencies._graph.cache_clear()
    yield tmp_path
    dependencies._graph.cache_clear()


def test_imports_are_followed_to_kernels_and_packages_above(root: Path) -> None:
    expected = {
        "runs/.inputs/p",
        "book/claims/p.yml",
        "demo_lib/__init__.py",
        "demo_lib/experiments/__init__.py",
        "demo_lib/experiments/p.py",
        "demo_lib/fam/__init__.py",
        "demo_lib/fam/p.py",
        "demo_lib/base.py",
        "kernels/demo_kernels/__init__.py",
        "kernels/demo_kernels/op.py",
    }
    assert set(dependencies.of_paper("p")) == expected


def test_lazy_imports_and_carried_files_count_and_other_papers_do_not(root: Path) -> None:
    found = set(dependencies.of_paper("q"))
    carried = {"demo_lib/data/catalogue.yml", "demo_lib/data/weights/a/model.safetensors"}
    assert carried | {"demo_lib/fam/q.py", "demo_lib/data/text.py", "demo_lib/base.py"} <= found
    assert not found & {
        "demo_lib/fam/p.py",
        "demo_lib/experiments/p.py",
        "kernels/demo_kernels/op.py",
        "demo_lib/cli.py",
    }


def test_prose_is_no_dependency_and_code_is(root: Path) -> None:
    notebook = root / "notebooks" / "p.ipynb"
    before = dependencies.fingerprint("p").read_text()
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(nbformat.v4.new_markdown_cell("more words"))
    nbformat.write(content, notebook)
    stamp = dependencies.fingerprint("p").stat().st_mtime_ns
    assert dependencies.fingerprint("p").read_text() == before
    assert dependencies.fingerprint("p").stat().st_mtime_ns == stamp
    content.cells[0].source += "\nx = 1"
    nbformat.write(content, notebook)
    assert dependencies.fingerprint("p").read_text() != before


def test_another_torch_makes_a_run_out_of_date(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dependencies.fingerprint("p").read_text()
    monkeypatch.setattr(dependencies, "_version", lambda package: "99" if package == "torch" else "1")
    assert dependencies.fingerprint("p").read_text() != before
    assert "torch=99" in dependencies.versions()
