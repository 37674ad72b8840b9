"""The report for a browser: everything is in it, nothing gets out of it, and two clicks lead to the snippet."""

import json
import os
import re
import subprocess
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import islice, product
from urllib.parse import unquote
from zlib import crc32

import pytest

from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check
from crossnorm_conformance.html import html
from crossnorm_conformance.report import Report, rounded
from crossnorm_conformance.trend import Trend

CHROMIUM = "/usr/bin/chromium"
HOSTILE = "</script><img src=x onerror=alert(1)> \"'&amp;<!--\u2028\udc80"
WRITTEN = HOSTILE.replace("\udc80", "\\udc80")
NAMES = ("crossnorm-torch", "torch.nn", "crossnorm-tensorflow")


def check_of(case, implementation, question="outputs", quantity="y", step=1, execution="eager", **more):
    labels = {"question": question, "method": case.spec.method, "case": case.id, "implementation": implementation}
    measured = {"units": 0.7, "bound": 32.0, "element": (0, 1), "got": 0.1234567890123, "want": 0.12345, "allowed": 1e-6}
    return Check(
        **labels, execution=execution, device="cpu", quantity=quantity, step=step, **({"verdict": PASS} | measured | more)
    )


def checks_of(case):
    """One of every kind."""
    unknown = dict.fromkeys(("units", "bound", "got", "want", "allowed")) | {"element": ()}
    yield check_of(case, "crossnorm-torch", quantity="y", step=2)
    yield check_of(case, "crossnorm-torch", question="gradients", quantity="dscale", units=40.0, bound=107.3)
    yield check_of(case, "torch.nn", units=float("inf"), verdict=FAIL, reason="inf units at [0, 1]", got=float("nan"))
    yield check_of(case, "torch.nn", question="gradients", quantity="dx", **unknown, verdict=FAIL, reason="dtype=float64")
    known = "the kernel cancels (https://example.org/issues/1)"
    yield check_of(case, "torch.nn", question="gradients", quantity="dscale", units=3e5, verdict=KNOWN, reason=known)
    yield check_of(case, "crossnorm-torch = crossnorm-tensorflow", question="agreement", execution="eager/function")
    for step in (1, 2):
        yield check_of(
            case, "crossnorm-tensorflow", step=step, **unknown, verdict=UNSUPPORTED, reason="no device: no GPU is seen"
        )


def report_of(checks, cases=(), **more):
    checks = tuple(checks)
    fields = {"methods": tuple(dict.fromkeys(check.method for check in checks)), "implementations": NAMES, "devices": ("cpu",)}
    fields |= {"seed": 3, "full": False, "shards": ((1, 1),), "versions": {"torch": "2.13.0"}, "absent": {}, "places": {}}
    fields |= {"expected": (), "cases": {case.id: case.to_dict() for case in cases}, "checks": checks}
    return Report(**fields | more)


@pytest.fixture(scope="module")
def cases():
    return [*cases_of("rms_norm")[:6], *cases_of("weight_norm")[:2]]


@pytest.fixture(scope="module")
def report(cases):
    labels = {"question": "errors", "method": "rms_norm", "case": faults_of("rms_norm")[0].id, "implementation": "torch.nn"}
    more = {"execution": "eager", "device": "cpu", "quantity": "exception", "step": 1, "verdict": FAIL}
    errors = [Check(**labels, **more, reason="accepted, and went on")]
    return report_of([*(check for case in cases for check in checks_of(case)), *errors], cases)


class Page(HTMLParser):
    """The elements of a document, each with its attributes and its whole text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in ("meta", "input", "img", "link"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        return [(a, text) for name, a, text in self.elements if name == tag and wanted.items() <= a.items()]

    @property
    def data(self):
        return json.loads(self.all("script", id="data")[0][1])

    def cells(self):
        """Text and class of each cell of the matrix, by (device, method, question, implementation)."""
        links = [(attributes, text) for attributes, text in self.all("a") if attributes.get("class", "").startswith("cell ")]
        address = {a["href"]: tuple(map(unquote, re.sub("#(.*&)?cell=|&.*", "", a["href"]).split("/"))) for a, _ in links}
        return {address[a["href"]]: (text, a["class"], a.get("style")) for a, text in links}


def opened(data):
    """The checks in the data, by their keys, with their snippets."""
    texts = data["texts"]
    for device, _, question, implementation, case, execution, snippet, rows in data["runs"]:
        text = "\n".join(data["lines"][line] for line in data["snippets"][snippet])
        for row in rows:
            key = (*(texts[i] for i in (case, implementation, execution, device, question, row[0])), str(row[1]))
            yield key, row, text


def test_every_cell_and_every_check_is_in_the_page(report):
    page = Page(html(report, None))
    cells = {
        (check.device, check.method, check.question, name)
        for check in report.checks
        for name in check.implementation.split(" = ")
    }
    assert set(page.cells()) == cells
    rows = {key: row for key, row, _ in opened(page.data)}
    compared = {check.key: check for check in report.checks if check.verdict != UNSUPPORTED}
    assert rows.keys() == compared.keys()
    assert all(page.data["verdicts"][row[2]] == compared[key].verdict for key, row in rows.items())
    refused = [number for *_, counts in page.data["refused"] for number in counts[1::2]]
    assert sum(refused) == report.counts()[UNSUPPORTED]


def test_a_cell_says_what_the_terminal_says(report):
    cells = Page(html(report, None)).cells()
    assert cells["cpu", "rms_norm", "outputs", "torch.nn"][:2] == ("inf !6", "cell fail")
    assert cells["cpu", "rms_norm", "gradients", "torch.nn"][:2] == ("3e5 *6 !6", "cell fail")
    assert cells["cpu", "rms_norm", "gradients", "crossnorm-torch"][:2] == ("40.0", "cell pass")
    assert cells["cpu", "rms_norm", "outputs", "crossnorm-tensorflow"] == ("no device", "cell unsupported", None)
    assert cells["cpu", "rms_norm", "errors", "torch.nn"][:2] == ("!1", "cell fail")


def test_the_colour_is_drawn_to_the_scale_of_the_bound(cases):
    heats = []
    for units, bound in ((0.0, 32.0), (1.0, 32.0), (31.0, 32.0), (40.0, 107.3), (33.0, 32.0), (1e5, 32.0), (0.0, 0.0)):
        check = check_of(cases[0], "torch.nn", units=units, bound=bound)
        ((_, _, style),) = Page(html(report_of([check], cases), None)).cells().values()
        heats.append(float(style.removeprefix("--t:")))
    none, one, nearly, wide, over, most, equal = heats
    assert none == one == equal == 0
    assert 0.4 < nearly < 0.5
    assert 0.3 < wide < nearly
    assert 0.7 <= over < 0.71
    assert most == 1


def test_snippets_are_those_of_the_report(report):
    found = {key: text for key, _, text in opened(Page(html(report, None)).data)}
    assert report.failures()
    for check in report.checks:
        if check.verdict != UNSUPPORTED:
            assert found[check.key] == report.snippet(check)


def test_text_from_outside_stays_text(cases):
    checks = [check_of(cases[0], HOSTILE, verdict=FAIL, units=99.0, reason=HOSTILE)]
    checks += [replace(divergence(1, FAIL), reason=HOSTILE)]
    more = {
        "implementations": (HOSTILE,),
        "absent": {HOSTILE: HOSTILE},
        "complaints": (HOSTILE,),
        "versions": {HOSTILE: HOSTILE},
    }
    report = report_of(checks, cases, **more)
    earlier = report_of([replace(checks[0], verdict=PASS, units=1.0)], cases, **more | {"versions": {}})
    text = html(report, Trend.between(earlier, report))
    text.encode("utf-8")
    page = Page(text)
    assert not page.all("img")
    assert len(page.all("script")) == 2
    assert WRITTEN in page.data["texts"]
    assert len(page.cells()) == 1
    assert all("onerror" not in attributes for _, attributes, _ in page.elements)


def test_the_page_loads_nothing_and_runs_its_own_script_only(report):
    text = html(report, None)
    page = Page(text)
    without_data = text.replace(page.all("script", id="data")[0][1], "")
    for loads in (r"\ssrc\s*=", "@import", r"url\(", "<link", "<iframe", "fetch", "XMLHttp", "import\\("):
        assert not re.search(loads, without_data), loads
    script = page.all("script")[-1][1]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({}, "Passed"),
        ({"complaints": ("registers/torch.nn.toml: 'x' matches no case",)}, "Failed"),
        ({"complete": False}, "Incomplete"),
        ({"expected": (("torch.nn", "cuda"),)}, "Incomplete"),
        ({"complete": False, "complaints": ("stale",)}, "Failed, and incomplete"),
    ],
)
def test_the_verdict_is_in_words(more, word, cases):
    checks = [check_of(cases[0], "torch.nn")]
    report = report_of(checks, cases, **more)
    page = Page(html(report, None))
    assert page.all("h1")[0][1] == word
    for sentence in (*report.complaints, *report.lacks(), *report.idle()):
        assert sentence in [text for _, text in page.all("li")]


def test_the_header_says_what_was_run_and_what_was_not(cases):
    more = {"absent": {"flax.nnx": "flax is not installed"}, "shards": ((1, 3),), "devices": ("cpu", "cuda"), "full": True}
    page = Page(html(report_of([check_of(cases[0], "torch.nn")], cases, **more), None))
    facts = [text for a, text in page.all("span", **{"class": "fact"})]
    assert facts == ["torch 2.13.0", "full", "devices cpu, cuda", "seed 3", "shard 1/3"]
    assert "flax.nnx (flax is not installed)" in [text for _, text in page.all("dd")]


def test_the_trend_names_and_links_what_changed(cases):
    first, second, third = (check_of(case, "torch.nn", units=1.0) for case in cases[:3])
    earlier = report_of([first, second], cases, versions={"torch": "2.12.0"})
    now = report_of([replace(first, units=20.0), replace(second, units=50.0, verdict=FAIL), third], cases)
    page = Page(html(now, Trend.between(earlier, now)))
    ((_, text),) = page.all("main", id="overview")
    for words in (
        "1 broken",
        "0 mended",
        "1 worse",
        "1 new",
        "torch 2.12.0 → 2.13.0",
        "pass at 1.0 units → fail at 50.0 units",
    ):
        assert words in text, words
    assert sum(f"row={first.case}/" in a["href"] for a, _ in page.all("a")) == 1
    assert [row[-2:] for key, row, _ in opened(page.data) if key == first.key] == [
        [page.data["texts"].index("worse"), page.data["texts"].index("pass at 1.0 units")]
    ]


def divergence(number, verdict):
    case = f"divergence-{number}-unbiased-variance-of-one-value"
    labels = {"question": "divergences", "method": "batch_norm", "case": case, "implementation": "torch, keras"}
    more = {"execution": "eager", "device": "cpu", "quantity": "divergence", "step": 1, "verdict": verdict}
    return Check(**labels, **more, reason=f"point {number}")


def test_divergences_have_a_list_of_their_own(cases):
    report = report_of([check_of(cases[0], "torch.nn"), divergence(10, KNOWN), divergence(2, FAIL)], cases)
    text = html(report, None)
    page = Page(text)
    assert [a["id"] for a, _ in page.all("details") if a.get("id")] == ["divergence-2", "divergence-10"]
    assert [text for a, text in page.all("span") if a.get("class", "").startswith("verdict")] == [FAIL, KNOWN]
    assert [text for _, text in page.all("p") if text.startswith("point")] == ["point 2", "point 10"]
    assert [snippet for _, snippet in page.all("pre")] == [report.snippet(divergence(n, KNOWN)) for n in (2, 10)]
    assert set(page.cells()) == {("cpu", "rms_norm", "outputs", "torch.nn")}


def test_sixty_thousand_checks_stay_below_eight_megabytes():
    cases = [case for method in ("rms_norm", "group_norm", "batch_norm", "weight_norm") for case in cases_of(method)]
    labels = [(name, step, execution) for name in NAMES for execution in ("eager", "compile", "xla") for step in range(1, 10)]
    made = (
        check_of(
            case, name, "gradients", quantity, step, execution, units=crc32(f"{case.id} {step}".encode()) / 1e9, want=1 / 7
        )
        for case, (name, step, execution), quantity in product(cases, labels, ("dx", "dscale", "doffset"))
    )
    checks = list(islice(made, 60_000))
    assert len(checks) == 60_000
    text = html(report_of(checks, cases), None)
    assert len(text.encode()) < 8_000_000


# A real browser

CLICKS = """
<script>
const later = (act) => setTimeout(act, 50);
document.querySelector('a.cell[href="#cell=cpu/rms_norm/outputs/torch.nn"]').click();
later(() => {
  document.querySelector("tr.row").click();
  later(() => document.body.append(Object.assign(document.createElement("output"), { textContent: location.hash })));
});
</script>
"""


def browsed(path, address, tmp_path):
    """The document as Chromium has it once the page's script has run."""
    if not os.path.exists(CHROMIUM):
        pytest.skip("no Chromium on this machine")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    options = [*(f"--disable-{name}" for name in quiet), "--no-sandbox", "--no-first-run", "--virtual-time-budget=2000"]
    command = [
        CHROMIUM,
        "--headless",
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"{path.as_uri()}{address}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return Page(done.stdout)


def test_two_clicks_lead_to_the_snippet(report, tmp_path):
    path = tmp_path / "report.html"
    # The page's own policy forbids a script that clicks.
    path.write_text(re.sub("<meta http-equiv[^>]*>", "", html(report, None)) + CLICKS, encoding="utf-8")
    page = browsed(path, "", tmp_path)
    worst = next(check for check in report.checks if check.verdict == FAIL)
    assert [text for _, text in page.all("pre")] == [report.snippet(worst)]
    details = dict(zip((text for _, text in page.all("dt")), (text for _, text in page.all("dd")), strict=True))
    assert details["worst element"] == "[0, 1]"
    assert details["wanted"] == "0.12345"
    assert details["error"] == "Infinity units of 32 (Infinity of the bound)"
    ((_, address),) = page.all("output")
    assert unquote(address) == f"#cell=cpu/rms_norm/outputs/torch.nn&row={worst.case}/torch.nn/eager/y/1"


def test_an_address_opens_a_row_and_text_from_outside_stays_text(cases, tmp_path):
    check = check_of(cases[0], "torch.nn", verdict=FAIL, units=99.0, reason=HOSTILE)
    path = tmp_path / "report.html"
    path.write_text(html(report_of([check], cases), None), encoding="utf-8")
    page = browsed(path, f"#cell=cpu/rms_norm/outputs/torch.nn&row={check.case}/torch.nn/eager/y/1", tmp_path)
    assert [text for _, text in page.all("p", **{"class": "reason"})] == [WRITTEN]
    assert not page.all("img")
    assert [text for _, text in page.all("h2") if "rms_norm" in text] == ["rms_norm outputs torch.nn on cpu"]


def test_the_page_of_a_cell_has_the_worst_first_and_says_where(cases, tmp_path):
    kinds = [(2.0, PASS), (9.0, PASS), (70.0, FAIL), (3e4, KNOWN), (400.0, FAIL)]
    units = dict(zip(cases, kinds, strict=False))
    checks = [check_of(case, "torch.nn", units=size, verdict=verdict) for case, (size, verdict) in units.items()]
    path = tmp_path / "report.html"
    path.write_text(html(report_of(checks, cases), None), encoding="utf-8")
    page = browsed(path, "#cell=cpu/rms_norm/outputs/torch.nn", tmp_path)
    assert [text for _, text in page.all("td", **{"class": "units"})] == ["4e2", "70.0", "3e4", "9.0", "2.0"]
    verdicts = [text for a, text in page.all("button") if a.get("class", "").startswith("verdict")]
    assert verdicts == [FAIL, FAIL, KNOWN, PASS, PASS]
    worst = {}
    for case, (size, _) in sorted(units.items(), key=lambda one: one[1]):
        worst[case.regime, case.dtype] = rounded(size)
    heat = [text for a, text in page.all("button") if re.fullmatch("cell (pass|known|fail)", a.get("class", ""))]
    assert sorted(heat) == sorted(worst.values())
    assert {text for a, text in page.all("th", scope="row")} >= {regime for regime, _ in worst}


def test_a_filter_that_lets_all_through_changes_no_cell(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html(report, None), encoding="utf-8")
    plain = Page(html(report, None)).cells()
    assert (
        browsed(path, "#find=rms_norm", tmp_path).cells()
        | {cell: shown for cell, shown in plain.items() if cell[1] != "rms_norm"}
        == plain
    )
