"""The report in a browser: what a reader sees, clicks and drags, in headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PROGRAM, Browser, Tab
from results_for_tests import (
    COMPARED,
    ODD,
    SIZE,
    make_labels,
    make_manifest,
    make_run,
    make_source,
    truth_of,
)

from beco.datasets.palette import read_index_png, voc_palette
from beco.evaluation.report import report
from beco.evaluation.report.gallery import results_gallery
from beco.evaluation.report.layers import ERRORS, SAFE, error_index
from beco.evaluation.tables.tables import Results
from beco.schema.published import figures

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium; apt-get install chromium")

IRN = figures()["irn/voc12/val"]
HELP = """
const $ = (query, from = document) => from.querySelector(query);
const $$ = (query, from = document) => [...from.querySelectorAll(query)];
const frame = () => new Promise(requestAnimationFrame);
const set = (field, value, event = "change") => {
  field.value = value;
  field.dispatchEvent(new Event(event, { bubbles: true }));
};
const reach = async query => {
  $(query).scrollIntoView({ behavior: "instant" });
  for (let turn = 0; turn < 60 && !$(query + " .stage"); turn++) await frame();
  return $(query + " .gallery");
};
const pixels = async image => {
  await image.decode();
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  pen.drawImage(image, 0, 0);
  return [...pen.getImageData(0, 0, canvas.width, canvas.height).data];
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def look(browser: Browser, page: Path, script: str, width: int = 1400) -> Any:
    """What a script saw in a page in which nothing goes wrong."""
    tab = Tab(browser, page, width)
    seen = tab.see(HELP + script)
    assert tab.wrong() == []
    return seen


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    manifest = make_manifest(root)
    runs = [make_run(root, manifest, name, seed, labels, shift) for name, seed, labels, shift in (
        ("single", 0, "crf", 3), ("single", 1, "crf", 2), ("beco", 0, "crf", 1), ("beco", 1, "crf", 2),
        ("a_rather_long_name_of_an_experiment", 0, "crf", 4), ("full", 0, "truth", 0))]  # fmt: skip
    report.write_report(
        manifest,
        Results(runs, [make_labels(root, manifest)], [make_source(root, manifest)], compared=COMPARED),
        8,
        root / "report.html",
        title="Tiny <set>",
    )
    return root / "report.html"


def test_what_goes_wrong_is_heard(tmp_path: Path, page: Path, browser: Browser) -> None:
    bad = '<img src="http://127.0.0.1:9/a.png"><script>console.error("oh"); missing()</script></main>'
    (tmp_path / "bad.html").write_text(page.read_text(encoding="utf-8").replace("</main>", bad), encoding="utf-8")
    wrong = " ".join(Tab(browser, tmp_path / "bad.html").wrong())
    assert "http://127.0.0.1:9/a.png" in wrong and "missing is not defined" in wrong and "oh" in wrong


SORT = """
const column = (head, table) => $$("tbody tr", table).map(row => row.cells[head.cellIndex].textContent.trim());
const seen = {};
for (const name of ["mIoU", "difference", "experiment"]) {
  const table = $("#recipes table"), head = $$("th", table).find(head => head.textContent.trim() === name);
  seen[name] = [];
  for (let turn = 0; turn < 2; turn++) {
    $("button", head).click();
    const others = $$('th[aria-sort="none"]', table).length;
    seen[name].push({ cells: column(head, table), aria: head.ariaSort, others });
  }
  seen.keyboard = $$("th button").every(button => button.tabIndex === 0);
  seen.heads = $$("th", table).length;
}
return seen;
"""


def test_tables_sort_numbers_as_numbers(page: Path, browser: Browser) -> None:
    seen = look(browser, page, SORT)

    def numbers(cells: list[str]) -> list[float]:
        found = [cell.split(" ±")[0].replace("−", "-") for cell in cells]
        assert found.count("–") == sum(text == "–" for text in found[-1:]), "what has no number comes last"
        return [float(text) for text in found if text != "–"]

    for name, known in (("mIoU", 4), ("difference", 3)):
        down, up = seen[name]
        assert numbers(down["cells"]) == sorted(numbers(down["cells"]), reverse=True)
        assert numbers(up["cells"]) == sorted(numbers(up["cells"])) and len(numbers(up["cells"])) == known
        assert (down["aria"], up["aria"]) == ("descending", "ascending")
        assert down["others"] == seen["heads"] - 1
    assert sum("±" in cell for cell in seen["mIoU"][0]["cells"]) == 2
    names = ["a_rather_long_name_of_an_experiment", "beco", "full", "single"]
    assert [turn["cells"] for turn in seen["experiment"]] == [names, names[::-1]]
    assert seen["keyboard"]


LAYERS = """
const gallery = await reach("#results-gallery"), field = $(".tools", gallery).elements, seen = {};
const article = $$(".picture", gallery).find(article => article.dataset.name === "v0");
const right = () => $("img.right", article);
seen.prediction = await pixels(right());
seen.truth = await pixels($("img.left", article));
set(field.right, "errors of prediction single");
seen.errors = await pixels(right());
seen.caption = right().alt;
set($("select.left", article), "picture");
seen.bare = $("img.left", article).hidden;
set($("select.left", article), "truth");
set(field.colours, "safe");
seen.safe = await pixels($("img.left", article));
seen.unmoved = await pixels(right());
seen.chips = $$(".chip i", article).map(chip => getComputedStyle(chip).backgroundColor);
set(field.colours, "voc");
seen.again = await pixels($("img.left", article));
const clip = side => getComputedStyle($("img." + side, article)).clipPath;
set($(".wipe", article), 20, "input");
seen.own = [clip("left"), clip("right")];
set(field.wipe, 100, "input");
seen.all = [clip("left"), clip("right"), $(".wipe", article).value];
set(field.opacity, 30, "input");
seen.opacity = getComputedStyle(right()).opacity;
const named = range => range.ariaLabel || range.closest("label");
seen.focusable = $$("input[type=range]").every(range => range.tabIndex === 0 && named(range));
return seen;
"""


def painted(seen: list[int]) -> np.ndarray:
    return np.array(seen).reshape(SIZE, SIZE, 4)


def coloured(index: np.ndarray, colours: Any, clear: int = 0) -> np.ndarray:
    """What the browser shows where a layer is opaque; where not, black."""
    found: np.ndarray = np.array(colours)[index]
    return np.where((index == clear)[..., None], 0, found[..., :3])


def test_layers_show_what_they_are_called(page: Path, browser: Browser) -> None:
    root = page.parent
    seen = look(browser, page, LAYERS)
    truth = truth_of(2)
    first, single = (read_index_png(root / name / "seed0" / "predictions" / "v0.png") for name in ("beco", "single"))
    opaque = truth != 255  # half clear pixels lose a bit of their colour on a canvas
    errors = error_index(single, truth)

    assert (painted(seen["prediction"])[..., :3] == coloured(first, voc_palette())).all()
    assert (painted(seen["truth"])[opaque][:, :3] == coloured(truth, voc_palette())[opaque]).all()
    assert set(painted(seen["truth"])[~opaque][:, 3]) == {140}
    kinds = list(ERRORS.values())
    assert (painted(seen["errors"])[opaque][:, :3] == coloured(errors, kinds)[opaque]).all()
    assert (painted(seen["errors"])[opaque][:, 3] == np.where(errors == 0, 0, 255)[opaque]).all()
    assert len(np.unique(errors)) >= 4 and seen["caption"].startswith("right: errors of single · ")
    assert seen["bare"]

    safe = [(0, 0, 0), *(tuple(bytes.fromhex(colour[1:])) for colour in SAFE)]
    assert (painted(seen["safe"])[opaque][:, :3] == coloured(np.where(opaque, truth, 0), safe)[opaque]).all()
    assert seen["unmoved"] == seen["errors"] and seen["again"] == seen["truth"]
    assert seen["chips"][0] == "rgb({}, {}, {})".format(*safe[1])  # v0 holds class 1

    assert seen["own"] == ["inset(0px 80% 0px 0px)", "inset(0px 0px 0px 20%)"]
    assert seen["all"] == ["inset(0px 0% 0px 0px)", "inset(0px 0px 0px 100%)", "100"]
    assert seen["opacity"] == "0.3" and seen["focusable"]


CHOOSE = """
const gallery = await reach("#results-gallery"), field = $(".tools", gallery).elements, seen = {};
const names = () => $$(".picture", gallery).filter(article => !article.hidden).map(article => article.dataset.name);
for (const option of field.order.options) { set(field.order, option.value); seen[option.textContent] = names(); }
set(field.class, "1");
seen.filtered = [names(), field.count.value];
set(field.class, "");
$(".picks button", gallery).click();
await frame();
const dialog = $("#enlarged");
const loaded = $$("img", dialog).every(image => image.complete && image.naturalWidth);
seen.layers = [dialog.open, $$("figure", dialog).length, loaded];
return seen;
"""


def test_pictures_are_ordered_filtered_and_enlarged(page: Path, browser: Browser) -> None:
    seen = look(browser, page, CHOOSE)
    found = seen["worst first"]
    assert sorted(found) == sorted([ODD, "v0"]) == seen["by name"]
    assert seen["best first"] == found[::-1]
    assert len(seen["worst for single"]) == 2
    assert seen["filtered"] == [["v0"], "1 picture"]
    assert seen["layers"] == [True, 2 + 2 * 4, True]  # picture, truth, four predictions and their errors


ROOM = """
await reach("#results-gallery");
await reach("#labels-gallery");
const boxed = ".table, .wide, nav ul, pre, .strip, dialog";
return {
  width: innerWidth, page: document.documentElement.scrollWidth, live: $$(".stage").length,
  out: $$("body *").filter(element => !element.closest(boxed) && element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.outerHTML.slice(0, 80)),
  scrolls: $$(".table").some(box => box.scrollWidth > box.clientWidth),
  sticky: getComputedStyle($("th")).position,
};
"""


def test_a_phone_scrolls_no_page_sideways(page: Path, browser: Browser) -> None:
    seen = look(browser, page, ROOM, width=390)
    assert seen["width"] == 390 and seen["page"] <= 390 and seen["out"] == []
    assert seen["live"] == 4 and seen["scrolls"] and seen["sticky"] == "sticky"


FOLLOW = """
const seen = [];
for (const link of $$('td.n a[href^="#"], .cards a')) {
  const target = document.getElementById(decodeURIComponent(link.hash.slice(1)));
  target.open = false;
  link.click();
  await frame();
  const open = target.open && $$("details", target).every(inner => inner.open);
  seen.push([link.hash, open, $$("pre, .files a", target).length]);
}
return seen;
"""


def test_every_number_leads_to_settings_and_files(page: Path, browser: Browser) -> None:
    seen = look(browser, page, FOLLOW)
    assert len(seen) > 40 and all(opened and held >= 2 for _, opened, held in seen)
    assert len({target for target, *_ in seen}) == 6  # four experiments, a label source, the classifier
    bare = [
        cell for cell in re.findall(r'<td class="n.*?</td>', page.read_text(encoding="utf-8")) if "href" not in cell
    ]
    known = [cell for cell in bare if "title=" in cell]  # of others, with its source
    assert known == [f'<td class="n" data-value="0.635" title="{IRN.source}">63.5</td>']
    assert all(re.search(r">–</td>$", cell) for cell in bare if cell not in known)


def test_without_scripts_there_are_pictures(page: Path, browser: Browser) -> None:
    tab = Tab(browser, page, scripts=False)
    seen = tab.see("""
      const images = [...document.querySelectorAll(".strip img")].filter(image => image.naturalWidth);
      const shown = [...document.querySelectorAll(".tools, dialog")].filter(tool => tool.offsetHeight);
      return [images.length, shown.length];""")
    assert seen == [2 * (2 + 4) + 2 * (2 + 1 + 2), 0] and tab.wrong() == []


def test_keys_sort_and_wipe(page: Path, browser: Browser) -> None:
    tab = Tab(browser, page)
    tab.see('document.querySelector("#recipes th button").focus()')
    tab.press("Enter", 13, "\r")
    assert tab.see('return document.querySelector("#recipes th").ariaSort') == "ascending"
    tab.see(HELP + 'await reach("#results-gallery"); $("#results-gallery .wipe").focus()')
    for _ in range(3):
        tab.press("ArrowRight", 39)
    seen = tab.see(HELP + 'return [$(".wipe").value, getComputedStyle($("img.right")).clipPath]')
    assert seen == ["53", "inset(0px 0px 0px 53%)"] and tab.wrong() == []


def test_a_finger_wipes(page: Path, browser: Browser) -> None:
    tab = Tab(browser, page, width=390, height=844)
    box = tab.see(
        HELP
        + """
      await reach("#results-gallery");
      $(".stage").scrollIntoView({ behavior: "instant", block: "center" });
      await frame();
      const { left, top, width, height } = $(".stage").getBoundingClientRect();
      return [left, top + height / 2, width];"""
    )
    left, middle, width = box
    tab.drag((left + 0.5 * width, middle), (left + 0.9 * width, middle))
    seen = tab.see(HELP + 'await frame(); return Number($(".wipe").value)')
    assert 80 <= seen <= 95 and tab.wrong() == []


def test_1449_pictures_are_built_as_they_come_into_view(
    tmp_path: Path, page: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def many(*arguments: Any) -> Any:
        found = results_gallery(*arguments)
        assert found is not None
        stages = [replace(found.stages[number % 2], image_id=f"picture {number}") for number in range(1449)]
        return replace(found, stages=stages)

    monkeypatch.setattr(report, "results_gallery", many)
    manifest = make_manifest(page.parent)
    runs = [make_run(tmp_path, manifest, "beco", 0, "crf", 1)]
    report.write_report(manifest, Results(runs, []), 8, tmp_path / "many.html")
    count = 'await reach("#results-gallery"); return ["article", ".stage"].map(query => $$(query).length);'
    pictures, built = look(browser, tmp_path / "many.html", count)
    assert pictures == 1449 + 2 and 0 < built < 100
