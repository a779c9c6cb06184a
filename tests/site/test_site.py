"""The way from sealed runs to a site: what is refused, what is reported, and what a reader sees."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from zfu_lib.report import browser, papers, record, site

from .conftest import REPOSITORY, RUN, VERDICTS


def result(book: Path) -> Path:
    return book / "runs" / "quick" / "swat" / RUN / "result.json"


def notebook(book: Path) -> Path:
    return result(book).with_name("notebook.ipynb")


def test_a_sealed_run_is_taken(book: Path):
    run = site.current("quick", "swat")
    assert run.record.run_id == RUN
    assert {judged.claim: str(judged.verdict) for judged in run.record.claims} == VERDICTS


def test_a_missing_run_names_the_command(book: Path):
    with pytest.raises(site.SiteError, match=r"no full run of swat; run `zfu run swat --profile full`"):
        site.current("full", "swat")


def test_an_unsealed_run_is_refused(book: Path):
    result(book).unlink()
    with pytest.raises(site.SiteError, match="not sealed"):
        site.current("quick", "swat")


def test_a_tampered_record_is_refused(book: Path):
    result(book).write_text(result(book).read_text().replace('"not reproduced"', '"reproduced"'))
    with pytest.raises(site.SiteError, match="changed after it was sealed"):
        site.current("quick", "swat")


def test_a_resealed_record_is_refused(book: Path):
    """A forged record with a valid seal of its own is not the run that the pointer names."""
    forged = record.read(result(book)).model_copy(update={"wall_seconds": 1e6})
    record.write(forged, result(book))
    with pytest.raises(site.SiteError, match="not the run that was sealed"):
        site.current("quick", "swat")


def test_a_broken_pointer_is_refused(book: Path):
    (book / "runs" / "quick" / "swat" / "current.json").write_text('{"run_id": 1')
    with pytest.raises(site.SiteError, match="not a pointer"):
        site.current("quick", "swat")


def test_a_notebook_without_its_seal_is_refused(book: Path):
    half = nbformat.read(notebook(book), as_version=4)
    half.cells[-1].outputs = []
    nbformat.write(half, notebook(book))
    with pytest.raises(site.SiteError, match="does not end with its seal"):
        site.current("quick", "swat")


def test_prose_may_be_edited_after_a_run_and_code_may_not(book: Path):
    file = book / "notebooks" / "swat.ipynb"
    clean = nbformat.read(file, as_version=4)
    executed = nbformat.read(notebook(book), as_version=4)
    clean.cells[0].source = "# Renamed"
    page = site.laid_over(clean, executed, "swat")
    assert page.cells[0].source == "# Renamed"
    (injected,) = [cell for cell in page.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "remove-cell" in injected.metadata["tags"]
    assert not any("papermill" in cell.metadata for cell in page.cells)
    assert "sealed swat" in page.cells[-1].outputs[0].text
    clean.cells[-1].source += "\n1"
    with pytest.raises(site.SiteError, match="changed since its run"):
        site.laid_over(clean, executed, "swat")


@pytest.mark.parametrize("leak", ["/home/someone/x.py", "/root/.cache/y", r"C:\Users\someone", "BOOK/runs"])
def test_a_path_of_the_machine_is_refused(book: Path, leak: str):
    cell = new_code_cell("1", outputs=[new_output("stream", text=leak.replace("BOOK", str(book)))])
    with pytest.raises(site.SiteError, match="path of this machine in cell 0"):
        site._refuse_machine_paths(new_notebook(cells=[cell]), "swat")


def test_an_address_is_no_path_of_the_machine(book: Path):
    cell = new_markdown_cell("See https://example.org/home/page and a/home/b and /homework.")
    site._refuse_machine_paths(new_notebook(cells=[cell]), "swat")


def test_students_get_no_solutions():
    cells = [
        new_markdown_cell("Before"),
        new_markdown_cell("```{exercise} A\n:label: a\nWhy?\n```\n\n```{solution} a\nSecret one.\n```"),
        new_markdown_cell("```{solution-start} b\n```"),
        new_code_cell("secret = 2"),
        new_markdown_cell("```{solution-end}\n```"),
        new_markdown_cell("After"),
    ]
    text = nbformat.writes(site.without_solutions(new_notebook(cells=cells)))
    assert "ecret" not in text
    assert "solution" not in text
    assert all(word in text for word in ("Before", "Why?", "After"))


def test_a_number_outside_its_band_is_reported(book: Path):
    records = {("swat", "quick"): record.read(result(book))}
    assert site.check_records(records) == []
    file = book / "book" / "claims" / "swat.yml"
    file.write_text(file.read_text().replace("gap: [0.5, 2.0]", "gap: [1.5, 2.0], other: [0, 1]"))
    outside, unmeasured = site.check_records(records)
    assert "gap = 1 is outside its expected band [1.5, 2]" in outside
    assert "other has an expected band but was not measured" in unmeasured


def test_a_rule_changed_after_the_run_is_reported(book: Path):
    file = book / "book" / "claims" / "swat.yml"
    file.write_text(file.read_text().replace("measurement: slope, max: 0", "measurement: slope, max: 9"))
    (problem,) = site.check_records({("swat", "quick"): record.read(result(book))})
    assert "swat.S4 was judged not reproduced, today's rule says direction holds" in problem


def test_a_failed_build_leaves_the_old_site(book: Path):
    old = book / "_build" / "html"
    old.mkdir(parents=True)
    (old / "index.html").write_text("old")
    (book / "book" / "index.md").write_text("# Broken\n\n{glue:text}`../notebooks/swat.ipynb::nothing:.2f`\n")
    with pytest.raises(site.SiteError, match="nothing"):
        site.build("quick")
    assert (old / "index.html").read_text() == "old"
    assert not list((book / "_build").glob(".site-*"))


def test_the_pages_of_the_fixture(built):
    place, records = built
    front = (place / "book" / "index.html").read_text()
    for verdict in set(VERDICTS.values()):
        assert f"zfu-{verdict.replace(' ', '-')}" in front
    assert front.count('class="zfu-status">in progress') == len(papers.PAPERS) - 1
    assert re.search(r"The gap is\s*<[^>]*>1\.00<", front)
    assert 'href="../notebooks/swat.html#claim-swat.S3"' in front
    chapter = (place / "notebooks" / "swat.html").read_text()
    assert 'id="claim-swat.S3"' in chapter
    assert chapter.count("# Parameters") == 0
    assert list(records) == [("swat", "quick")]


def test_the_downloads_of_the_fixture(built):
    place, _ = built
    downloads = place / "downloads"
    clean = nbformat.read(downloads / "swat.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in clean.cells)
    assert "sealed swat quick" in (downloads / "swat.executed.ipynb").read_text()
    assert record.read(downloads / "swat.quick.json").run_id == RUN
    assert len(json.loads((downloads / "claims.json").read_text())) == 3 * len(VERDICTS)
    assert (downloads / "claims.csv").read_text().startswith("claim,paper,profile,verdict")
    front = (place / "book" / "index.html").read_text()
    for name in re.findall(r'<a download href="([^"]+)"', front):
        assert (place / "book" / name).is_file(), name


def test_no_page_needs_the_network_or_shows_a_path(built):
    place, _ = built
    for page in place.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+', text), page
        assert not re.search(r"unpkg\.com|cdn", text, re.IGNORECASE), page
        assert str(place.parents[1]) not in text, page


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser; without one these checks are skipped, unless ``ZFU_REQUIRE_BROWSER=1`` forbids that."""
    found = browser.chromium()
    if found is None:
        if os.environ.get("ZFU_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium found and ZFU_REQUIRE_BROWSER=1")
        pytest.skip("browser checks: not run (no Chromium)")
    return found


def test_the_fixture_in_a_browser(built, chromium: str):
    place, _ = built
    assert browser.check(place, chromium, word="perspicuous") == []


def test_filters_and_dark_mode_in_a_browser(built, chromium: str):
    place, _ = built
    with browser.opened(chromium) as opened, browser.served(place) as address:
        page = opened.new_page(color_scheme="dark")
        page.goto(f"{address}/notebooks/swat.html")
        assert page.is_visible("img.zfu-dark")
        assert not page.is_visible("img.zfu-light")
        assert not page.is_visible("text=forty-two")
        page.goto(f"{address}/book/index.html?verdict=inconclusive&profile=quick")
        assert page.inner_text(".zfu-shown") == "1 of 21 rows"
        page.click("button[type=reset]")
        page.fill("input[name=text]", "many GPUs")
        assert page.inner_text(".zfu-shown") == "3 of 21 rows"
        page.click("th:has-text('Verdict') button")
        assert page.get_attribute("th:has-text('Verdict')", "aria-sort") == "ascending"


def test_a_phone_reads_figures_at_size_and_claims_as_cards(built, chromium: str):
    place, _ = built
    with browser.opened(chromium) as opened, browser.served(place) as address:
        page = opened.new_page(color_scheme="dark", viewport=browser.PHONE)
        page.goto(f"{address}/notebooks/swat.html")
        image = page.locator("img.zfu-dark")
        assert image.bounding_box()["width"] > 500
        assert image.evaluate("image => getComputedStyle(image).filter") == "none"
        assert page.locator(".zfu-frame.zfu-more").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") == browser.PHONE["width"]
        for verdict in page.locator(".zfu-ledger .zfu-verdict").all():
            box = verdict.bounding_box()
            assert box["x"] + box["width"] < browser.PHONE["width"]
        page.goto(f"{address}/book/index.html?verdict=inconclusive&profile=quick")
        assert page.locator(".zfu-results-table tbody tr:visible").count() == 1


def test_88_columns_of_code_fit_a_small_laptop(built, chromium: str):
    place, _ = built
    with browser.opened(chromium) as opened, browser.served(place) as address:
        page = opened.new_page(viewport=browser.DESKTOP)
        page.goto(f"{address}/notebooks/swat.html")
        page.evaluate("document.querySelector('.cell_input pre').textContent = 'x'.repeat(88)")
        assert page.evaluate(
            "(() => { const e = document.querySelector('.cell_input pre'); return e.scrollWidth <= e.clientWidth })()"
        )


def test_faults_are_found_in_a_browser(tmp_path: Path, chromium: str):
    fault = (
        '<html><body><article><h1>x</h1></article><div style="width:3000px">wide</div>'
        '<img src="https://example.invalid/x.png"><span class="math">x</span><script>nothing()</script></body></html>'
    )
    for name in ("index.html", "search.html"):
        (tmp_path / name).write_text(fault)
    problems = "\n".join(browser.check(tmp_path, chromium, word="x", pages=["index.html"]))
    for word in ("sideways", "another host", "formula not rendered", "script error", "bright", "does not find"):
        assert word in problems, word


def test_without_a_browser_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(browser, "chromium", lambda: None)
    monkeypatch.delenv("ZFU_REQUIRE_BROWSER", raising=False)
    assert site.check_browser(tmp_path) == ("browser checks: not run", [])
    monkeypatch.setenv("ZFU_REQUIRE_BROWSER", "1")
    assert site.check_browser(tmp_path)[1] == ["no Chromium found and ZFU_REQUIRE_BROWSER=1"]


def test_the_command_line_ends_with_the_place(book: Path, monkeypatch, capsys):
    place = book / "_build" / "html"
    monkeypatch.delenv("ZFU_REQUIRE_BROWSER", raising=False)
    monkeypatch.setattr(site, "_jupyter_book", lambda source, work: (work / "_build" / "html").mkdir(parents=True))
    monkeypatch.setattr(browser, "chromium", lambda: None)
    assert site.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(place / "index.html")
    result(book).unlink()
    assert site.main([]) == 1
    assert "zfu run swat" in capsys.readouterr().err


def test_the_contents_name_every_chapter():
    contents = yaml.safe_load((REPOSITORY / "_toc.yml").read_text())
    files, captions = [], []

    def walk(entry: dict) -> None:
        files.append(entry["file"])
        for child in entry.get("sections", []):
            walk(child)

    for part in contents["parts"]:
        captions.append(part["caption"])
        for chapter in part["chapters"]:
            walk(chapter)
    for slug in papers.chapters():
        assert {f"book/papers/{slug}", f"notebooks/{slug}"} <= set(files), slug
        assert papers.FAMILIES[papers.PAPERS[slug].family] in captions, slug
    assert len(files) == len(set(files))


def test_mathjax_is_shipped_with_its_licence():
    folder = REPOSITORY / "book" / "_static" / "mathjax"
    assert "Apache License" in (folder / "LICENSE").read_text()
    path = yaml.safe_load((REPOSITORY / "_config.yml").read_text())["sphinx"]["config"]["mathjax_path"]
    assert (folder.parent / path).stat().st_size > 2_000_000
