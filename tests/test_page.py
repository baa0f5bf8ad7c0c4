"""The page as a parser sees it; tests/test_browser.py has what only a browser can tell."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import HOSTILE, TESTDATA, alone, analysis, comparison, made, outcomes, real

from onnxcompress.analysis import analyze
from onnxcompress.page import SECTIONS, page
from onnxcompress.page.analyses import analyses_page
from onnxcompress.page.charts import Axis, best, grouped
from onnxcompress.page.sensitivities import sensitivities_page
from onnxcompress.pipeline import compress
from onnxcompress.report import Report
from onnxcompress.zoo.page import zoo_page

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Tags with attributes, text by the tag it is in, and whether each that opens closes in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def single(report: Report) -> str:
    return page([("run", report)])


RUNS = {
    "a run": lambda: single(real()),
    "a run that tells little": lambda: single(Report("1", "prune", "off", "", made().before)),
    "hostile names": lambda: page([(HOSTILE, made(HOSTILE)), (HOSTILE, made(HOSTILE, size=100))]),
    "several runs": lambda: page([("a", real()), ("b", made()), ("c", made(size=700, ratio=0.2))]),
}
PAGES = RUNS | {
    "an analysis": lambda: analyses_page([analyze(TESTDATA / "lenet5_digits.onnx", target="avx2")]),
    "sensitivity": lambda: sensitivities_page([(HOSTILE, alone(HOSTILE)), ("b", alone(layers=1))]),
    "a zoo": lambda: zoo_page(outcomes("a & b/# <c>".replace("<c>", "'c' %"), 20)),
    "a zoo in which nothing is done": lambda: zoo_page(outcomes(jobs=1)),
    "analyses": lambda: analyses_page([analysis(HOSTILE), analysis(nodes=1)], [HOSTILE]),
}


@pytest.fixture(params=PAGES, scope="module")
def outline(request: pytest.FixtureRequest) -> Outline:
    return Outline(PAGES[request.param]())


@pytest.mark.parametrize("name", RUNS)
def test_every_section_is_there_under_its_heading(name: str) -> None:
    outline = Outline(RUNS[name]())
    headings = Counter(text for tag, text in outline.texts if tag == "h3")
    runs = sum(tag == "h2" and text != "Comparison" for tag, text in outline.texts)
    assert headings == dict.fromkeys(SECTIONS.values(), runs)


def test_headings_go_down_a_level_at_a_time_from_a_single_first_one(outline: Outline) -> None:
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_ids_are_unique_and_references_lead_somewhere(outline: Outline) -> None:
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
    links = [attributes["href"] or "" for attributes in outline.all("a")]
    assert links
    inside = [link for link in links if link.startswith("#")]
    assert inside[0] == "#main"
    assert all(link[1:] in ids for link in inside)
    assert all(":" not in link and not link.startswith("/") for link in links)  # a file beside this one


def test_nothing_comes_from_elsewhere_and_no_script_runs(outline: Outline) -> None:
    assert {tag for tag, _ in outline.tags}.isdisjoint(
        {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    )
    for tag, attributes in outline.tags:
        assert tag == "a" or not {"src", "href", "srcset", "data", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = (each for each in outline.all("meta") if each.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    (style,) = (text for tag, text in outline.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_a_screen_reader_finds_its_way(outline: Outline) -> None:
    assert outline.all("html") == [{"lang": "en"}]
    for tag in ("main", "nav", "header", "footer", "title"):
        assert len(outline.all(tag)) == 1, tag
    tables = len(outline.all("table"))
    assert tables
    assert tables == len(outline.all("caption"))
    assert all(each["scope"] in ("col", "row") for each in outline.all("th"))
    assert all(each["role"] == "img" and each["aria-label"] for each in outline.all("svg"))
    regions = [each for each in outline.all("div") if each.get("class") == "scroll"]
    assert len(regions) == tables
    assert all(each["tabindex"] == "0" and each["aria-labelledby"] for each in regions)


def test_names_are_shown_as_they_are() -> None:
    shown = HOSTILE.replace("\ud800", "?").replace("\x00", "\ufffd")
    texts = [text for _, text in Outline(single(made(HOSTILE)).replace("\x00", "\ufffd")).texts]
    for each in (shown, f"{shown}0", f"too small {shown}"):
        assert each in texts


def test_the_sizes_of_a_run_go_down_from_file_to_file() -> None:
    report = real()
    texts = [text for tag, text in Outline(single(report)).texts if tag in ("td", "th")]
    assert report.after is not None
    sizes = [report.before.bytes, *(step.bytes for step in report.steps), report.after.bytes]
    places = [texts.index(f"{size:,}") for size in sizes]
    assert places == sorted(places)


def test_noise_and_sensitivity_are_drawn_and_listed() -> None:
    outline = Outline(single(made("net", 4)))
    plots = [each["aria-label"] or "" for each in outline.all("svg") if each["class"] == "plot"]
    assert [each[:24] for each in plots[1:]] == ["Signal to noise around t", "Signal to noise of the o"]
    cells = Counter(text for tag, text in outline.texts if tag == "td")
    assert (cells["chosen"], cells["30.0 dB"], cells["not known"]) == (4, 3, 1)  # a width is chosen, too
    assert cells["20.0 dB"] >= 8  # leaving each of four layers, and for each tried alone


def test_widths_that_were_timed_are_drawn_and_listed() -> None:
    outline = Outline(single(made("net", 4)))
    (plot,) = (each for each in outline.all("svg") if "keep so many channels" in (each["aria-label"] or ""))
    assert plot["role"] == "img"
    assert len([each for each in outline.all("line") if each["class"] == "interval"]) == 2
    texts = [text for _, text in outline.texts]
    rows = texts[texts.index("Models timed, the most channels first") :]
    assert rows[5:8] == ["32", "100.0%", "1.000x"]
    assert rows[rows.index("16") :][:5] == ["16", "50.0%", "0.500x", "0.200 to 0.700", "chosen"]
    told = [text for _, text in Outline(single(real())).texts]
    assert "No pass timed the model with fewer channels;" in told


def test_energy_is_split_before_and_after_on_one_scale() -> None:
    outline = Outline(single(made("net", 4)))
    texts = [text for _, text in outline.texts]
    assert {"Before, 10.0 uJ in all", "After, 2.00 uJ in all", "not counted"} <= set(texts)
    spans = [each for each in outline.all("span") if each.get("style")]
    parts = [(each["class"], each["style"]) for each in spans if each["class"] in ("compute", "sram", "dram")]
    assert parts == [
        ("compute", "width:60.00%"),
        ("sram", "width:30.00%"),
        ("dram", "width:10.00%"),
        ("compute", "width:10.00%"),
        ("sram", "width:10.00%"),
    ]


def test_what_was_left_is_told_with_its_reason_and_its_layers() -> None:
    texts = [text for _, text in Outline(single(real())).texts]
    assert "too small" in texts
    assert "/conv1/Conv" in texts


def test_many_layers_and_many_runs_stay_under_the_limit() -> None:
    assert len(single(made("a/long/name/of/a/layer/", 3000)).encode()) < 1_500_000
    runs = [(str(number), made(f"model{number}/", 100)) for number in range(60)]
    text = page(runs)
    assert len(text.encode()) < 1_500_000
    assert "3 of 100" in text


def test_a_plot_names_the_runs_that_nothing_else_beats() -> None:
    bad = replace(made(size=900), evaluation=comparison(top1=(0.75, 0.1)))
    runs = [made(), made(size=700, ratio=0.9), made(size=400, ratio=0.2), bad]
    texts = Outline(page([("run", each) for each in runs])).texts
    captions = [text for tag, text in texts if tag == "figcaption" and text.startswith("Size")]
    assert [each.partition(".")[0] for each in captions] == ["Size and top-1 accuracy", "Size and latency"]
    assert [each.partition("smallest on ")[2] for each in captions] == ["3, 1, 2, before.", "3."]


def test_runs_without_a_common_measure_have_no_plot_and_the_page_says_so() -> None:
    first, second = made(), made()
    second.comparison = second.evaluation = second.latency = None
    outline = Outline(page([("a", first), ("b", second)]))
    assert not [each for each in outline.all("svg") if (each["aria-label"] or "").startswith("Size")]
    assert sum("there is no plot" in text for _, text in outline.texts) == 2


def test_points_that_another_beats_in_both_are_not_best() -> None:
    assert best([(1, 5), (2, 5), (2, 1), (3, 0), (3, 2), (1, 5)]) == [True, False, True, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_points_are_best_where_no_other_is_as_good_in_both(points: list[tuple[int, int]]) -> None:
    wanted = [
        not any(other != each and other[0] <= each[0] and other[1] <= each[1] for other in points)
        for each in points
    ]
    assert best(points) == wanted


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-7, 2e-7], [12.06, 99.16], [1e9, 3e9]])
def test_an_axis_holds_its_values_with_a_few_round_ticks(values: list[float]) -> None:
    for axis in (Axis.around("", values), Axis.around("", values, zero=True)):
        assert all(0 < axis.share(value) < 1 or value == axis.low == 0 for value in values)
        ticks = list(axis.ticks())
        assert 2 <= len(ticks) <= 6
        assert len({text for _, text in ticks}) == len(ticks)


def test_an_analysis_shows_figures_charts_energy_and_memory() -> None:
    found = analyze(TESTDATA / "lenet5_digits.onnx", target="avx2")
    outline = Outline(analyses_page([found]))
    charts = [(each["aria-label"] or "").partition(" by ")[0] for each in outline.all("svg")]
    assert charts[:3] == ["Parameters", "MACs", "Activations written"]
    assert [each[:12] for each in charts[3:]] == ["Energy", "Roofline tim", "Bytes in use"]
    texts = [text for _, text in outline.texts]
    captions = [text for tag, text in outline.texts if tag == "figcaption"]
    assert "most, 74.5%, at /conv2/Conv" in captions[1]
    assert "537,000" in texts
    assert len(outline.all("polyline")) == 1  # the file's order is the best one
    two = Outline(analyses_page([analysis()]))
    assert len(two.all("polyline")) == 2
    assert f"{max(found.memory.live):,}" in texts
    energies = texts[texts.index("Energy of one inference, 3.16 uJ in all") :]
    assert {"Conv gemm", "Gemm gemv", "MaxPool"} <= set(energies)


def test_a_node_that_is_not_counted_has_no_energy_and_says_so() -> None:
    texts = [text for _, text in Outline(analyses_page([analysis("net", 3)])).texts]
    assert "not counted" in texts
    assert texts.count("?") == 8  # in the table of nodes, and in that of energy


def test_models_stand_side_by_side_with_what_is_told_of_them() -> None:
    texts = [text for _, text in Outline(analyses_page([analysis("a"), analysis("b")], ["a line"])).texts]
    assert texts.count("All models") == 2
    assert "a line" in texts


def test_an_analysis_of_many_nodes_stays_under_the_limit_and_holds_all_in_its_charts() -> None:
    found = analysis("a/long/name/of/a/node/", 3000)
    text = analyses_page([found])
    assert len(text.encode()) < 1_500_000
    texts = [text for _, text in Outline(text).texts]
    assert "(2800 others)" in texts
    assert any("A column stands for 22 nodes." in text for text in texts)
    assert sum(grouped([1.0] * 3000, 140, sum)) == 3000


def test_sensitivity_is_drawn_by_layer_and_scheme_and_listed() -> None:
    outline = Outline(sensitivities_page([("net.onnx", alone("fc", 30))]))
    plots = [(each["aria-label"] or "").partition(" with ")[0] for each in outline.all("svg")]
    ranked = "Signal to noise of the outputs"
    assert plots == [ranked, "Same predictions", "Top-1 accuracy, the change", ranked]
    curves = [each["points"] or "" for each in outline.all("polyline")]
    assert [len(each.split()) for each in curves] == [30, 29] * 4  # the second scheme left a layer alone
    texts = [text for _, text in outline.texts]
    assert texts[texts.index("loses most") + 1] == "fc19 by prune: 11.0 dB"
    assert texts[texts.index("left alone") + 1] == "1 of 60"
    row = texts[texts.index("fc3") - 1 :][:7]
    assert row == ["4", "fc3", "prune", "100 B", "27.0 dB", "50.00%", "-24.70"]
    assert "-50 B" in texts


def test_a_zoo_has_a_line_for_each_job_and_tells_why_some_failed() -> None:
    outline = Outline(zoo_page(outcomes("a & b#", 4)))
    links = [each["href"] for each in outline.all("a") if not (each["href"] or "").startswith("#")]
    assert links == [f"a%20%26%20b%23/r{number}.html" for number in range(3)]
    texts = [text for _, text in outline.texts]
    assert texts[texts.index("r1") :][:6] == [
        "r1",
        "done, before",
        "101 B",
        "0.101x",
        "90.00% -> 81.00%",
        "21.0 dB",
    ]
    missed = texts[texts.index("Jobs that made nothing, and why") :]
    assert missed[5:9] == ["4", "a & b#/r3", "failed", "a & b#"]
    assert missed[missed.index("r2") + 1] == "prune(sparsity=0.3)"


def test_a_zoo_is_plotted_over_what_is_left_of_the_size_where_two_jobs_tell_it() -> None:
    plots = [each["aria-label"] or "" for each in Outline(zoo_page(outcomes(jobs=4))).all("svg")]
    assert [each.partition(" of the 3 jobs")[0] for each in plots] == [
        "Size and change of top-1 accuracy",
        "Size and signal to noise",
        "Size and latency",
    ]
    assert [each.partition("smallest on no. ")[2] for each in plots] == ["1, 2, 3.", "1, 2, 3.", "1."]
    alone = Outline(zoo_page(outcomes(jobs=2)))
    assert not alone.all("svg")
    assert any("so there is no plot" in text for _, text in alone.texts)


def test_a_zoo_of_many_jobs_stays_under_the_limit_and_says_what_is_left_out() -> None:
    found = outcomes("a/long/name/of/a/model/in/a/folder", 3000)
    failed = [replace(each, status="failed", figures={}, message="word " * 200) for each in found]
    text = zoo_page([*found, *failed])
    assert len(text.encode()) < 1_500_000
    assert "1000 of 6000, the rest is in summary.csv" in text
    assert "1000 of 3001, the rest is in summary.csv" in text


def test_a_run_writes_its_page(tmp_path: Path) -> None:
    compress(
        Path(__file__).parent.parent / "testdata" / "lenet300_digits.onnx",
        "simplify",
        html_file=tmp_path / "a.html",
    )
    outline = Outline((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert ("code", "simplify") in outline.texts
