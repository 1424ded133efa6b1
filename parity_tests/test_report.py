"""Three renderings of a comparison: text of 80 columns, strict JSON, a page that asks no host."""

import hashlib
import html as markup
import json
import math
import re
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from nplm.errors import ConfigError, StorageError
from nplm.parity import page, report, summary
from nplm.parity.divergence import Comparison, Divergence, Measured
from nplm.parity.trace import PHASES, Place

pytestmark = pytest.mark.run

EVIL = "</script><b onload=x>&\"'`\u2028\ud800\x1b[2J\n\u202e"


def comparison(measured=(), divergences=(), steps=3, **more):
    told = {
        "title": "a run", "mode": "free", "dtype": "float64",
        "meta": {"actual": {"engine": "nplm"}, "expected": {"engine": "torch", "threads": 1}},
    }  # fmt: skip
    return Comparison(
        measured=list(measured), first=divergences[0] if divergences else None,
        divergences=list(divergences), steps=steps, **{**told, **more},
    )  # fmt: skip


def run_of(steps, names=("blocks.0.attn.qkv", "head"), phases=PHASES, error=0.01):
    return [
        Measured(Place(step, 0, phase, name), error, error * 1e-10, 1)
        for step in range(1, steps + 1)
        for phase in phases
        for name in names
    ]


def off(place, kind="value", index=(0, 3), actual=1.5, expected=1.0, budget=0.125):
    return Divergence(place, kind, index, actual, expected, budget, "because of rounding")


HERE = Place(2, 1, "backward", "blocks.0.attn.qkv")


def diverged(kind="value", **more):
    found = [Measured(HERE, 4.0, 0.5, 1) if kind == "value" else Measured(HERE, math.inf, 0.5, 1)]
    return comparison(run_of(2) + found, [off(HERE, kind, **more)])


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text of each kind of element."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data):
        for tag in self.open[-1:]:
            self.texts[tag][-1] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def of(self, tag):
        return [attrs for found, attrs in self.elements if found == tag]

    def cells(self):
        return [a for a in self.of("td") if "tabindex" in a]

    def data(self):
        return json.loads(self.texts["script"][0])


# ---- text ----------------------------------------------------------------------------------------


def table_of(text):
    """The lines from the table's head to the first empty line."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("phase "))
    return lines[start : lines.index("", start)]


def test_the_table_has_a_line_a_phase_in_causal_order():
    lines = table_of(report.text(comparison(run_of(3)), encoding="utf-8"))[2:]
    assert [line.split()[0] for line in lines] == list(PHASES)
    assert lines[2].split() == ["forward", "6", "1.0e-12", "0.01", "1", "blocks.0.attn.qkv", "✓"]


def test_a_line_names_the_worst_tensor_and_its_step():
    worse = Measured(Place(2, 0, "state", "head.exp_avg"), 0.5, 7e-3, 1)
    lines = table_of(report.text(comparison([worse, *run_of(3)]), encoding="utf-8"))
    row = next(line for line in lines if line.startswith("state"))
    assert row.split() == ["state", "7", "0.007", "0.5", "2", "head.exp_avg", "✓"]


def test_what_was_not_compared_is_named():
    out = report.text(comparison(run_of(1, phases=("forward", "loss"))), encoding="utf-8")
    assert "not compared: start, batch, backward" in out


def test_the_verdict_of_an_equal_run_counts_what_was_compared():
    out = report.text(comparison(run_of(3)), encoding="utf-8")
    assert out.splitlines()[-1] == "equal: 3 steps, 102 tensors, every one within its budget"


def test_elements_are_counted_where_the_comparison_counted_them():
    @dataclass(frozen=True)
    class Sized(Measured):
        size: int = 1_000

    c = comparison([Sized(m.place, m.error, m.worst, 1) for m in run_of(3)])
    out = report.text(c, encoding="utf-8")
    assert out.splitlines()[-1] == "equal: 3 steps, 102,000 values, every one within its budget"
    assert table_of(out)[0].split()[:2] == ["phase", "values"]
    assert table_of(out)[2].split()[1] == "6,000"
    assert report.to_json(c)["values"] == 102_000
    assert "6,000" in report.html(c)


def test_the_verdict_of_a_diverged_run_says_where_and_what_to_look_at():
    out = report.text(diverged(), encoding="utf-8")
    tail = " ".join(out.split("\n\n")[-1].split())
    for words in (
        "diverged: 1 of 69 tensors in 3 steps; the first is step 2, micro-batch 1, backward of "
        "blocks.0.attn.qkv index (0, 3) nplm 1.5 torch 1.0 difference 0.5, 4 times the budget",
        "budget 0.125: because of rounding look at the backward of what reads",
    ):
        assert words in tail
    row = next(line for line in table_of(out) if line.startswith("backward"))
    assert row.endswith("✗ first")


def test_every_phase_says_where_to_look():
    assert list(summary.LOOK_AT) == list(PHASES)


@pytest.mark.parametrize("kind", ["value", "nan", "shape", "dtype", "missing", "extra"])
def test_every_kind_of_divergence_is_told(kind):
    sides = {"shape": ("(2, 3)", "(3, 2)"), "dtype": ("float32", "float64"),
             "missing": (None, "(3,)"), "extra": ("(3,)", None)}  # fmt: skip
    actual, expected = sides.get(kind, (math.nan if kind == "nan" else 1.5, 1.0))
    index = (0,) if kind in summary.NUMERIC else None
    c = diverged(kind, actual=actual, expected=expected, index=index)
    out, source = report.text(c, encoding="utf-8"), markup.unescape(report.html(c))
    for value in (actual, expected):
        said = "nothing" if value is None else str(value)
        assert said in out
        assert said in source
    assert ("difference" in out) == (kind in summary.NUMERIC)
    assert ("what was recorded" in out) == (kind in ("missing", "extra"))


def test_a_divergence_that_was_not_measured_is_counted():
    c = comparison(run_of(2), [off(Place(2, 0, "norm", "total"), "missing", None)])
    assert "1 of 69 tensors" in report.text(c)
    assert report.to_json(c)["over_budget"] == 1


def test_nothing_compared_proves_nothing():
    empty = comparison(steps=0)
    assert "nothing is proved" in report.text(empty)
    assert "nothing is proved" in report.html(empty)
    assert report.to_json(empty)["verdict"] == "nothing compared"
    assert "equal:" not in report.text(empty) + report.html(empty)


def test_a_poor_terminal_gets_ascii_and_no_terminal_colour():
    c = diverged()
    for encoding in ("ascii", "latin-1", "no such encoding"):
        assert report.text(c, encoding=encoding).isascii()
    assert "\x1b" not in report.text(c, encoding="utf-8")
    assert "\x1b[31mdiverged" in report.text(c, encoding="utf-8", colour=True)


# ---- any names, any values -----------------------------------------------------------------------

NAMES = st.one_of(st.text(max_size=90), st.just(EVIL), st.just("漢字" * 40), st.just("é" * 99))
ERRORS = st.one_of(
    st.sampled_from([0.0, 1.0, math.inf, math.nan, 5e-324, 1e308]), st.floats(min_value=0)
)
VALUES = st.one_of(st.floats(), st.integers(), st.complex_numbers(), st.none(), NAMES)
PLACES = st.builds(Place, st.integers(0, 10**7), st.integers(0, 9), st.sampled_from(PHASES), NAMES)
MEASURED = st.builds(Measured, PLACES, ERRORS, ERRORS, st.integers(1, 10**9))
DIVERGENCES = st.builds(
    Divergence, PLACES, st.just("value"), st.just((1, 2)),
    st.floats(), st.floats(), st.floats(min_value=0), NAMES,
)  # fmt: skip


@st.composite
def comparisons(draw):
    bad = draw(st.lists(DIVERGENCES, max_size=3))
    return comparison(
        draw(st.lists(MEASURED, max_size=20)), bad, draw(st.integers(0, 10**6)),
        title=draw(NAMES), notes=draw(st.lists(NAMES, max_size=2)),
        meta={"actual": {"engine": draw(NAMES)}, draw(NAMES): draw(VALUES)},
    )  # fmt: skip


@examples(150)
@given(comparisons(), st.sampled_from(["utf-8", "ascii"]))
def test_the_table_fits_80_columns_whatever_the_names(c, encoding):
    out = report.text(c, encoding=encoding)
    out.encode(encoding)
    if c.measured or c.divergences:
        assert max(map(report._columns, table_of(out))) <= 80
    assert all(line.isprintable() for line in out.splitlines())


def test_wide_letters_and_combining_marks_take_their_columns():
    for name, shown in (("漢字" * 40, "漢字漢…漢字"), ("e\u0301" * 4, "e\u0301" * 4)):
        c = comparison(run_of(1, [name], ["forward"]))
        row = table_of(report.text(c, encoding="utf-8"))[2]
        wide, marks = sum(letter in "漢字" for letter in row), row.count("\u0301")
        assert len(row) + wide - marks in (79, 80)  # the mark ends the line; half a letter is space
        assert shown[:2] in row


@examples(150)
@given(comparisons())
def test_json_is_strict_and_survives_a_round_trip(c):
    told = report.to_json(c)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert (told["format"], told["version"]) == ("nplm-parity-report", 1)
    assert told["equal"] == c.equal
    assert told["tensors"] == len(told["measured"])
    for row, m in zip(told["measured"], c.measured):
        assert row[:4] == [m.place.step, m.place.micro, m.place.phase, m.place.name]
        assert float(row[4]) == m.error or (math.isnan(m.error) and float(row[4]) == math.inf)
    assert len(told["divergences"]) == len(c.divergences)
    assert all(len(row) == len(told["measured_columns"]) for row in told["measured"])
    assert all(len(row) == len(told["divergence_columns"]) for row in told["divergences"])


def assert_safe(source):
    """Nothing is loaded, nothing runs but the page's own script, the keyboard finds its way in."""
    source.encode("utf-8")
    found = Page(source)
    assert [tag for tag, _ in found.elements if tag in ("b", "img", "link", "iframe", "a")] == []
    for tag, attrs in found.elements:
        assert not {"src", "href", "action", "style", "data"} & set(attrs), tag
        assert not [name for name in attrs if name.startswith("on")], tag
    assert not re.search(r"(?i)https?:|@import|url\(|//[a-z]", source)
    assert len(found.of("script")) == 2
    assert "<" not in found.texts["script"][0]
    policy = next(a["content"] for a in found.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, text in (("style", found.texts["style"][0]), ("script", found.texts["script"][1])):
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    tabs = [a["tabindex"] for a in found.cells()]
    assert tabs.count("0") == bool(tabs)
    assert set(tabs) <= {"0", "-1"}
    return found


@examples(100)
@given(comparisons())
def test_the_page_is_safe_and_whole_whatever_the_names(c):
    found = assert_safe(report.html(c))
    data = found.data()
    assert len(data["tensors"]) == len({(o.place.phase, o.place.name) for o in
                                        summary.outcomes(c)})  # fmt: skip
    assert len(found.cells()) == len(data["phases"]) * len(data["columns"])
    assert found.texts["h2"][0] == summary.plainly(summary.headline(c))


def test_a_name_that_closes_the_script_stays_text():
    place = Place(1, 1, "forward", EVIL)
    c = comparison([Measured(place, 2.0, 1.0, 1)], [off(place)], title=EVIL, notes=[EVIL],
                   meta={EVIL: EVIL}, mode=EVIL, dtype=EVIL)  # fmt: skip
    found = assert_safe(report.html(c))
    assert found.data()["names"] == [summary.plainly(EVIL)]
    assert found.texts["h1"] == [summary.plainly(EVIL)]
    assert summary.plainly(EVIL) in found.texts["code"]


# ---- the page ------------------------------------------------------------------------------------


def test_the_heat_strip_is_a_grid_and_the_first_divergence_has_the_tab_stop():
    found = Page(report.html(diverged()))
    strip = next(a for a in found.of("table") if a.get("role") == "grid")
    assert strip["aria-label"]
    assert strip["aria-describedby"] == "keys"
    (cell,) = [a for a in found.cells() if a["tabindex"] == "0"]
    assert cell["class"] == "i first"  # to 10 budgets: over
    assert cell["title"] == "step 2: 4 of the budget"
    assert [a["scope"] for a in found.of("th")].count("row") >= 2 * len(PHASES)


@pytest.mark.parametrize(("error", "letter"), [
    (0.0, "b"), (5e-324, "c"), (1e-5, "c"), (1.1e-5, "d"), (1e-3, "e"), (0.01, "f"), (0.1, "g"),
    (1.0, "h"), (math.nextafter(1, 2), "i"), (10.0, "i"), (1e3, "j"), (1e4, "k"), (1e308, "k"),
    (math.inf, "l"),
])  # fmt: skip
def test_a_cell_is_coloured_by_decades_of_the_budget(error, letter):
    assert page.level(error) == letter
    assert letter in page.LEVELS


def test_the_page_says_everything_without_a_script():
    source = re.sub(r"(?s)<script.*?</script>", "", report.html(diverged()))
    found = Page(source)
    assert {"step 2, micro-batch 1, backward of blocks.0.attn.qkv", "1.5", "1.0", "(0, 3)",
            "0.5, 4 times the budget"} <= set(found.texts["dd"])  # fmt: skip
    assert "diverged: 1 of 69" in found.texts["h2"][0]
    assert found.texts["code"].count("head") == 17  # in the table of the worst, once a phase
    hidden = {a["id"] for _, a in found.elements if "hidden" in a}
    assert hidden == {"filter", "keys", "details"}  # what works with the script alone


@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (60, 60), (240, 240), (3000, 231)])
def test_a_long_run_shares_columns_and_stays_small(steps, columns):
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(3 if steps > 240 else 10)]
    source = report.html(comparison(run_of(steps, names), steps=steps))
    data = Page(source).data()
    assert len(data["columns"]) == columns
    assert len(source) < 2_000_000
    assert sum(row[5] for row in data["cells"][0]) == steps * len(names)  # no step is lost
    if steps == 3000:
        assert data["columns"][1] == "steps 14 to 26"


def test_a_column_of_several_steps_shows_the_worst_of_them():
    worse = Measured(Place(20, 0, "norm", "x"), 50.0, 1.0, 1)
    usual = [m for m in run_of(3000, ["x"], ["norm"]) if m.place != worse.place]
    data = Page(report.html(comparison([worse, *usual], [off(worse.place)]))).data()
    assert data["cells"][0][1] == ["50", "1", data["names"].index("x"), 20, 0, 13, 1]
    assert data["cells"][0][2] == ["0.01", "1.0e-12", 0, 27, 0, 13, 0]
    (tensor,) = data["tensors"]
    assert tensor[3] == "fj" + "f" * 229


def test_tensors_that_do_not_fit_are_counted_and_the_least_wrong():
    names = [f"{i:04d}" for i in range(2600)]
    measured = [m for step in (1, 240) for m in run_of(1, names, ["forward"], error=step / 1000)]
    steps = [Measured(Place(s, 0, "forward", "0000"), 0.5, 1.0, 1) for s in range(2, 240)]
    data = Page(report.html(comparison(measured + steps))).data()
    assert data["left_out"] == 2600 - len(data["tensors"]) > 0
    assert data["names"][data["tensors"][0][1]] == "0000"


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.html", "a.JSON", "a.txt"])
def test_a_report_is_written_as_its_suffix_says(tmp_path, name):
    c = diverged()
    report.write_report(c, tmp_path / name)
    written = (tmp_path / name).read_text("utf-8")
    if name.endswith("html"):
        assert written == report.html(c)
    elif name.endswith("JSON"):
        assert json.loads(written) == report.to_json(c)
    else:
        assert written == report.text(c, encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_suffix_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"\.html, \.json or \.txt, got .*a\.pdf"):
        report.write_report(comparison(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        report.write_report(comparison(), tmp_path / "no such folder" / "a.html")


def test_reports_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from nplm.parity.divergence import Comparison\n"
        "from nplm.parity import report\n"
        "report.html(Comparison('t', 'free', 'float64'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
