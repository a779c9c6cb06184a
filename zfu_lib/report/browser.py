"""The built site, opened in headless Chromium: what a reader would run into, found before one does."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

OVERFLOW = """() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide <= 1) return "";
  const inside = (e) => {
    for (let p = e.parentElement; p; p = p.parentElement)
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  const width = document.documentElement.clientWidth;
  const culprit = [...document.body.querySelectorAll("*")].find(
    (e) => e.getBoundingClientRect().right > width + 1 && !inside(e) && e.checkVisibility());
  const name = culprit ? culprit.tagName.toLowerCase() + (culprit.className ? "." + culprit.className : "") : "?";
  return `${wide}px wider than the screen (${name})`;
}"""

UNRENDERED = """() => {
  const left = [...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container"));
  const wrong = [...document.querySelectorAll("mjx-merror, [data-mjx-error]")];
  return [...left, ...wrong].map((e) => e.dataset.mjxError || e.textContent.trim().slice(0, 60));
}"""

WRONG_THEME = """(theme) => {
  const visible = (e) => getComputedStyle(e).display !== "none";
  return [...document.querySelectorAll(".zfu-figure")].filter((figure) => {
    const shown = figure.querySelector(`img.zfu-${theme}`);
    const hidden = figure.querySelector(`img.zfu-${theme === "dark" ? "light" : "dark"}`);
    let place = figure;
    while (place && /, 0\\)$|^transparent$/.test(getComputedStyle(place).backgroundColor)) place = place.parentElement;
    const paint = place ? getComputedStyle(place).backgroundColor : "rgb(255, 255, 255)";
    const [r, g, b] = paint.match(/[0-9.]+/g).map(Number);
    if ((r + g + b < 3 * 90) !== (theme === "dark")) return true;
    return !shown || !visible(shown) || !shown.naturalWidth || (hidden && visible(hidden));
  }).map((figure) => figure.id);
}"""

DARK_BACKGROUND = """() => {
  const [r, g, b, opacity = 1] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
  return opacity > 0.9 && r + g + b < 3 * 90;
}"""


def chromium() -> str | None:
    """The browser to use: ``$ZFU_CHROMIUM``, an installed Chromium or Chrome, or the one Playwright downloaded.
    None where there is none, or where Playwright itself is missing."""
    if util.find_spec("playwright") is None:
        return None
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    candidates = [os.environ.get("ZFU_CHROMIUM"), *(shutil.which(name) for name in names)]
    if found := next((path for path in candidates if path), None):
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


@contextmanager
def opened(executable: str) -> Iterator[Browser]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """``folder`` on a free local port; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def documents(site: Path) -> list[str]:
    """Pages of a built site, relative to it, without generated listings of source code, index and redirects."""
    skip = ("_modules", "_static", "_sphinx_design_static", "genindex.html", "search.html")
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    kept = [page for page in pages if page.split("/")[0] not in skip]
    return [page for page in kept if 'http-equiv="refresh"' not in (site / page).read_text(encoding="utf-8").lower()]


def check(site: Path, executable: str, *, word: str, pages: list[str] | None = None) -> list[str]:
    """Problems a reader would meet, one sentence each; an empty list is a good site.

    Every page: no error on the console, no failed request and none to another host, formulas rendered, no sideways
    scroll on a desktop or a phone, the figures of the theme and only those, in light and dark. The site: the search
    finds ``word``, and the front page opens from disk.
    """
    found: list[str] = []
    with opened(executable) as browser, served(site) as address:
        page = _watched(browser, address, found)
        for name in pages or documents(site):
            found += [f"{name}: {problem}" for problem in _problems(page, f"{address}/{name}")]
        page.set_viewport_size(DESKTOP)
        if not _search_finds(page, address, word):
            found.append(f"search.html: the search does not find {word!r}")
        page.close()
        disk = _watched(browser, "file://", found)
        disk.goto((site / "index.html").as_uri(), wait_until="load")
        disk.wait_for_selector("article h1", timeout=10_000)
        disk.close()
    return list(dict.fromkeys(found))


def _watched(browser: Browser, address: str, found: list[str]) -> Page:
    """A page that reports errors and lets nothing leave this machine."""
    page = browser.new_page(viewport=DESKTOP, color_scheme="light")

    def report(kind: str) -> Callable[[object], None]:
        return lambda event: found.append(f"{_name(page.url)}: {kind}: {getattr(event, 'text', event)}")

    def route(way: object) -> None:
        url = way.request.url
        if url.startswith((address, "data:", "blob:")):
            way.continue_()
        else:
            found.append(f"{_name(page.url)}: asks another host: {url}")
            way.abort()

    page.route("**/*", route)
    page.on("pageerror", report("script error"))
    page.on("console", lambda message: report("console")(message) if message.type == "error" else None)
    page.on("response", lambda r: found.append(f"{_name(page.url)}: {r.status} {r.url}") if r.status >= 400 else None)
    return page


def _name(url: str) -> str:
    return urlsplit(url).path.lstrip("/")


def _problems(page: Page, url: str) -> Iterator[str]:
    page.set_viewport_size(DESKTOP)
    page.goto(url, wait_until="load")
    page.wait_for_load_state("networkidle")
    if page.query_selector(".math"):
        page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
    yield from (f"formula not rendered: {text}" for text in page.evaluate(UNRENDERED))
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
        wrong = page.evaluate(WRONG_THEME, theme)
        yield from (f"figure {figure} shows the wrong drawing or background in {theme} mode" for figure in wrong)
    if not page.evaluate(DARK_BACKGROUND):
        yield "dark mode leaves the page bright"
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(size)
        if wide := page.evaluate(OVERFLOW):
            yield f"scrolls sideways on a {name}: {wide}"


def _search_finds(page: Page, address: str, word: str) -> bool:
    from playwright.sync_api import TimeoutError as Late

    page.goto(f"{address}/search.html?q={word}", wait_until="load")
    if page.query_selector("#search-results") is None:
        return False
    try:
        page.wait_for_selector("#search-results li a", timeout=8_000)
    except Late:
        return False
    return True
