"""A run from its parameters to its seal, without a notebook."""

from dataclasses import dataclass

import pytest
from matplotlib.figure import Figure

from zfu_lib.report import figures, record, statistics
from zfu_lib.report import run as runs
from zfu_lib.report.profiles import Cost, ParameterError, Profile

CLAIMS = """
claims:
  - {id: mini.S1, statement: a, source: b, kind: ordering, metric: c,
     test: {quick: {measures: d, conditions: [{measurement: gain, min: 0}]}}}
  - {id: mini.S2, statement: a, source: b, kind: ordering, metric: c,
     test: {quick: {measures: d, conditions: [{measurement: too_big, min: 0}]}}}
"""


@dataclass(frozen=True)
class Mini(Profile):
    steps: int = 10


PROFILES = {"quick": Mini("quick", Cost("any", 1, 1), seeds=3)}


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "book" / "claims").mkdir(parents=True)
    (tmp_path / "book" / "claims" / "mini.yml").write_text(CLAIMS)
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.setenv("ZFU_ROOT", str(tmp_path))
    monkeypatch.delenv("ZFU_RUN_DIR", raising=False)
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(runs, "display", lambda data, **kw: found.append((data, kw.get("metadata"))))
    return found


def begin(**parameters):
    return runs.begin("mini", PROFILES, {"profile": "quick", "seeds": None, "begin": begin, **parameters})


def test_from_parameters_to_seal(root, shown):
    run = begin(steps=20)
    assert run.profile.steps == 20
    assert list(run.seeds) == [0, 1, 2]
    run.measure("gain", [1.0, 1.1, 0.9], unit="nats")
    run.omit("too_big", "this machine is too small")
    run.ledger()
    run.seal()
    sealed = record.read(run.folder / "result.json")
    assert [(j.claim, j.verdict) for j in sealed.claims] == [
        ("mini.S1", "direction holds"),
        ("mini.S2", "cannot run here"),
    ]
    assert sealed.claims[1].reason == "this machine is too small"
    assert sealed.measurements["gain"].values == [1.0, 1.1, 0.9]
    assert sealed.parameters["steps"] == 20
    assert sealed.parameters["resolved"]["steps"] == 20


def test_prose_reads_what_was_recorded(root, shown):
    run = begin()
    run.value("size", 7)
    interval = run.measure("gain", [1.0, 2.0, 3.0])
    glued = {meta["scrapbook"]["name"]: data for data, meta in shown if meta}
    text = {name: data["application/papermill.record/text/plain"] for name, data in glued.items()}
    assert text["size"] == "7"
    assert float(text["gain"]) == 2.0
    assert float(text["gain_low"]) == interval.low
    assert float(text["gain_high"]) == interval.high


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sead": 3}, "unknown parameter 'sead'; did you mean 'seeds'"),
        ({"seeds": "3"}, "seeds = '3' is str, not int"),
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"seeds": 1}, "an interval needs at least 2"),
    ],
)
def test_parameters_nobody_knows(root, shown, parameters, message):
    with pytest.raises(ParameterError, match=message):
        begin(**parameters)


def test_a_name_is_recorded_once(root, shown):
    run = begin()
    run.measure("gain", [1.0, 2.0])
    with pytest.raises(ValueError, match="already recorded"):
        run.value("gain", 3.0)


def test_what_is_not_finite_is_refused(root, shown):
    run = begin()
    with pytest.raises(ValueError, match="not finite"):
        run.measure("gain", [1.0, float("nan")])
    with pytest.raises(ValueError, match="not finite"):
        run.measure("other", statistics.exact(float("inf")))


def test_no_seal_without_ledger_and_no_ledger_without_measurements(root, shown):
    run = begin()
    with pytest.raises(RuntimeError, match="ledger"):
        run.seal()
    with pytest.raises(KeyError, match="needs 'gain'"):
        run.ledger()
    assert not list(root.rglob("result.json"))


def test_figure_is_drawn_for_both_themes(root, shown):
    run = begin()
    plot = figures.lines({"a": {"x": [1, 2], "y": [3, 4]}}, xlabel="x", ylabel="y")
    run.figure("curve", plot, caption="A < B", alt='a "rising" line')
    (page,) = [data["text/html"] for data, _ in shown if "zfu-figure" in data.get("text/html", "")]
    assert page.count("<img") == 2
    assert "zfu-light" in page
    assert "zfu-dark" in page
    assert page.count('alt="a &quot;rising&quot; line"') == 2
    assert "A &lt; B" in page
    light, dark = figures.svg(plot, "light"), figures.svg(plot, "dark")
    for theme, drawing, other in (("light", light, "dark"), ("dark", dark, "light")):
        assert figures.THEMES[theme].ink in drawing
        assert figures.THEMES[theme].colour(0).lower() in drawing
        assert figures.THEMES[other].ink not in drawing
        assert figures.THEMES[other].colour(0).lower() not in drawing


def test_figures_are_the_same_bytes_every_time():
    plot = figures.heat([[1.0, 0.5]], xlabel="x", ylabel="y", colour_label="w")
    assert figures.svg(plot, "light") == figures.svg(plot, "light")


def test_panels_are_lettered_and_drawn_one_by_one():
    wide = figures.lines({"a": {"x": [1, 2], "y": [3, 4]}}, xlabel="x", ylabel="y")
    small = figures.heat([[1.0]], xlabel="x", ylabel="y", colour_label="w", title="weights")
    page = figures.markup(figures.row(wide, small), "two", caption="(a) A line. (b) A square.", alt="Two panels")
    assert page.count('class="zfu-frame"') == 2
    assert page.count('alt="Two panels (a)"') == page.count('alt="Two panels (b)"') == 2
    assert f"--zfu-width:{96 * wide.size[0]:.0f}px" in page
    assert f"--zfu-width:{96 * small.size[0]:.0f}px" in page
    assert figures.row(wide, small).data == [wide.data, small.data]
    assert "(a)" not in figures.markup(wide, "one", caption="A line.", alt="One")


def test_whole_numbers_get_whole_ticks():
    def ticks(x):
        canvas = Figure()
        axes = canvas.subplots()
        figures.lines({"a": {"x": x, "y": x}}, xlabel="x", ylabel="y").draw(axes, figures.THEMES["light"])
        return axes.get_xticks()

    assert all(float(t).is_integer() for t in ticks([1, 2, 3, 4]))
    assert not all(float(t).is_integer() for t in ticks([0.1, 0.2, 0.5]))


def test_a_heat_map_says_where_colours_are_clipped():
    def labels(**options):
        plot = figures.heat([[1.0, 0.5]], xlabel="x", ylabel="y", colour_label="w", **options)
        canvas = Figure()
        plot.draw(canvas.subplots(), figures.THEMES["light"])
        return canvas.axes[-1].get_ylabel()

    assert labels() == labels(top=1.0) == "w"
    assert labels(top=0.75) == "w (arrow: above 0.75)"


def test_a_palette_starts_again():
    for theme in figures.THEMES.values():
        assert len(set(theme.colours)) == len(theme.colours)
        assert theme.colour(len(theme.colours)) == theme.colour(0)


def documented(x):
    """Twice ``x``."""

    def inner(y):
        """Once more."""
        return y

    return inner(2 * x)


def test_source_is_shown_without_its_docstrings(shown, monkeypatch):
    monkeypatch.setattr(runs, "display", lambda data: shown.append(data.data))
    runs.show(documented)
    runs.show(documented, docstring=True)
    short, long = shown
    assert "def documented(x):\n    def inner(y):\n        return y\n" in short
    assert "Twice" not in short
    assert "Once more" not in short
    assert '"""Twice ``x``."""' in long


def test_an_interval_in_a_table_stands_on_its_own_line(shown):
    interval = statistics.over_seeds([1.0, 1.2])
    runs.table({"a < b": (interval, "plain", statistics.exact(2.0))}, columns=("name", "x", "y", "z"))
    ((data, _),) = shown
    ends = f"[{interval.low:.3f}, {interval.high:.3f}]"
    assert f'<td>1.100 <span class="zfu-interval">{ends}</span></td><td>plain</td><td>2.000</td>' in data["text/html"]
    assert "a &lt; b" in data["text/html"]
    assert f"1.100 {ends}  plain  2.000" in data["text/plain"]


def test_the_ledger_shows_the_verdict_first_and_three_digits(root, shown):
    run = begin()
    run.measure("gain", statistics.Interval(-0.123456, -1234.567, 0.000123456, 3, "t over seeds", 0.5))
    run.omit("too_big", "too small")
    run.ledger()
    page = next(data["text/html"] for data, _ in shown if "zfu-ledger" in data.get("text/html", ""))
    heads = ("claim", "verdict", "the paper says", "measured here")
    assert "".join(f'<th scope="col">{head}</th>' for head in heads) in page
    assert "= −0.123 [−1,235, 0.000123]" in page
    assert '<td data-head="measured here">' in page


def test_source_is_shown_by_name_without_importing_its_module(shown):
    runs.show("zfu_kernels.sigmoid_window.triton:_forward")
    (data, _), *_ = shown
    assert "@triton.jit\ndef _forward(" in data.data
    assert "_backward_queries" not in data.data
    for name in ("zfu_kernels.sigmoid_window.triton:nothing", "zfu_kernels.nowhere:x"):
        with pytest.raises(ValueError, match="to show"):
            runs.show(name)


def test_a_curve_holds_the_intervals_over_seeds_cut_to_what_can_be() -> None:
    by_seed = [[0.2, 0.9], [0.4, 1.0], [0.3, 0.8]]
    plain, cut = figures.curve([1, 2], by_seed), figures.curve([1, 2], by_seed, within=(0, 1))
    expected = [statistics.over_seeds(column) for column in zip(*by_seed, strict=True)]
    assert [*zip(plain["y"], plain["low"], plain["high"], strict=True)] == [interval[:3] for interval in expected]
    assert plain["high"][1] > 1
    assert cut == plain | {"high": [plain["high"][0], 1]}
