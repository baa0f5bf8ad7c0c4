"""The page in headless Chromium; skipped where there is none (docs/report.md)."""

import os
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from made_reports import HOSTILE, TESTDATA, alone, analysis, made, outcomes, real

from onnxcompress.analysis import analyze
from onnxcompress.page import SECTIONS, page
from onnxcompress.page.analyses import analyses_page
from onnxcompress.page.sensitivities import sensitivities_page
from onnxcompress.zoo.page import zoo_page

pytestmark = pytest.mark.skipif(
    chromium.executable() is None, reason="no Chromium: put chromium in the path or its path in $CHROMIUM"
)

# The contrast of each text with what is painted behind it, as WCAG 2.2 defines it; SVG text takes `fill`.
CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const style = getComputedStyle(parent);
    const color = parse(parent.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(color), light(behind(parent))].sort((x, y) => y - x);
    found.push((a + 0.05) / (b + 0.05));
  }
  return Math.min(...found);
})()"""
# Elements outside of regions that scroll by themselves must end inside the window.
BEYOND = """[...document.body.querySelectorAll("*")]
  .filter((each) => !each.closest(".scroll, .skip") && each.getBoundingClientRect().right > innerWidth + 0.5)
  .map((each) => each.tagName + " " + each.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    long = "a" * 300
    texts = {
        "run": page([("lenet5_digits.onnx", real())]),
        "runs": page([("first", real()), ("second", made(size=700)), (long, made(long))]),
        "hostile": page([(HOSTILE, made(HOSTILE))]),
        "analysis": analyses_page([analyze(TESTDATA / "residual_digits.onnx", target="avx2", measure=True)]),
        "sensitivity": sensitivities_page([("net", alone("layer", 40)), (long, alone(HOSTILE))]),
        "zoo": zoo_page(outcomes("a/long/name/of/a/model/in/a/folder" * 4, 30)),
        "analyses": analyses_page([analysis(HOSTILE), analysis(long, 400)], [long]),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["run", "runs", "hostile", "analysis", "analyses", "sensitivity", "zoo"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_its_window_in_silence(
    tab: chromium.Page, pages: dict[str, Path], name: str, width: int
) -> None:
    for dark in (False, True):
        tab.show(pages[name], width, dark=dark)
        assert tab.value("document.documentElement.scrollWidth") == width
        assert tab.value(BEYOND) == []
        assert tab.value(CONTRAST) >= 4.5
        said = [
            each
            for each in tab.events
            if each["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]
        assert said == []
        asked = [each for each in tab.events if each["method"] == "Network.requestWillBeSent"]
        assert [each["params"]["request"]["url"] for each in asked] == [pages[name].as_uri()]
        if folder := os.environ.get("SCREENSHOTS"):
            tab.picture(Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def test_every_section_is_seen(tab: chromium.Page, pages: dict[str, Path]) -> None:
    tab.show(pages["run"], 390)
    seen = tab.value(
        "[...document.querySelectorAll('h3')]"
        ".filter((each) => each.checkVisibility()).map((each) => each.textContent)"
    )
    assert seen == list(SECTIONS.values())


def test_light_and_dark_differ(tab: chromium.Page, pages: dict[str, Path]) -> None:
    colors = []
    for dark in (False, True):
        tab.show(pages["run"], 390, dark=dark)
        colors.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_a_keyboard_gets_to_the_figures_and_through_wide_tables(
    tab: chromium.Page, pages: dict[str, Path]
) -> None:
    tab.show(pages["run"], 390)
    tab.press("Tab")
    assert tab.value("document.activeElement.textContent") == "Skip to the figures"
    assert tab.value("document.activeElement.getBoundingClientRect().left") >= 0
    wide = tab.value(
        "[...document.querySelectorAll('.scroll')]"
        ".filter((each) => each.scrollWidth > each.clientWidth).length"
    )
    assert wide
    focused = set()
    for _ in range(40):
        tab.press("Tab")
        focused.add(tab.value("document.activeElement.getAttribute('aria-labelledby')"))
        outline = tab.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or tab.value("document.activeElement === document.body")
    assert {"run-1-figures", "run-1-falls", "run-1-spreads"} <= focused


def test_a_screen_reader_is_told_of_landmarks_tables_and_drawings(
    tab: chromium.Page, pages: dict[str, Path]
) -> None:
    tab.show(pages["runs"], 1280)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    told = [
        (each["role"]["value"], each.get("name", {}).get("value", ""))
        for each in nodes
        if not each["ignored"]
    ]
    roles = {role for role, _ in told}
    assert {"main", "navigation", "banner", "contentinfo", "table", "rowheader", "columnheader"} <= roles
    assert all(name for role, name in told if role in ("table", "image", "region", "heading", "link"))
    assert any(role == "image" and name.startswith("Size and top-1") for role, name in told)


def test_names_run_no_script(tab: chromium.Page, pages: dict[str, Path]) -> None:
    tab.show(pages["hostile"], 1280)
    assert tab.value("document.scripts.length + document.images.length") == 0
    assert tab.value("document.querySelector('h2').textContent").startswith("</style></svg><script>alert(1)")
