"""The HTML as text: escaped, complete, small, and asking nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_studies import ok  # type: ignore[import-not-found]

from redline.measure.record import Record, Study
from redline.report.report import Report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Collector(HTMLParser):
    """Tags with their attributes, and the text of script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inside.append((self.tags[-1][0], data))


def parse(text: str) -> Collector:
    collector = Collector()
    collector.feed(text)
    return collector


def test_nothing_is_requested(any_study: Study) -> None:
    page = parse(Report(any_study).html())
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value == "data:,", (tag, name, value)
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert "style" not in attributes  # the policy would drop it
        assert not [name for name in attributes if name.startswith("on")]
    styles = "".join(text for tag, text in page.inside if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_policy_allows_the_two_inside_by_hash_and_nothing_else(study: Study) -> None:
    text = Report(study).html()
    policy = next(
        attributes["content"] or ""
        for tag, attributes in parse(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert style
    assert script
    for kind, found in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_size(any_study: Study) -> None:
    assert len(Report(any_study).html().encode()) < 200_000


def test_hundreds_of_candidates_stay_below_two_megabytes(study: Study) -> None:
    many = tuple(ok(f"onnxruntime threads={n}", 20.0 + n) for n in range(500))
    assert len(Report(replace(study, records=many)).html().encode()) < 2_000_000


def test_hostile_text_stays_text(study: Study) -> None:
    evil = dict.fromkeys(("id", "backend", "reason", "hint", "tolerance_class"), EVIL)
    records = (
        replace(ok("eager", 3.0), winner=True, operators={EVIL: 3}, **evil),  # type: ignore[arg-type]
        Record(outcome="failed", **evil),  # type: ignore[arg-type]
    )
    hostile = replace(
        study, model=EVIL, origin=EVIL, goal=EVIL, verdict=EVIL, records=records, inputs=(EVIL,),
        notes=((EVIL, EVIL, EVIL),), versions={EVIL: EVIL}, machine={"cpu": EVIL, EVIL: EVIL},
        reference=EVIL, created=EVIL, operators={EVIL: 5},
    )  # fmt: skip
    text = Report(hostile).html()
    tags = [tag for tag, _ in parse(text).tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_every_candidate_and_reason_is_on_the_page(study: Study) -> None:
    import html

    text = html.unescape(Report(study).html())
    for record in study.records:
        assert record.id in text
        assert record.reason in text
        assert record.hint in text


@pytest.mark.parametrize(
    "words",
    ["1.64×", "41 %", "46.8 MB", "compute-bound", "49 → 25 operators", "strongly typed network",
     "winograd-f63", "not packaged", "of 1.3e-5", "resnet.py:268", "2026.4.1", "AVX-512"],
)  # fmt: skip
def test_page_says(study: Study, words: str) -> None:
    assert words in Report(study).html()


def test_a_page_without_timed_rows_has_no_script_and_says_so() -> None:
    from report_studies import all_failed

    text = Report(all_failed()).html()
    assert "No candidate could run this model." in text
    assert "<script" not in text


def test_notebook_gets_a_sandboxed_frame(study: Study) -> None:
    frame = Report(replace(study, model='"><script>x</script>'))._repr_html_()
    (tag, attributes), *rest = parse(frame).tags
    assert tag == "iframe"
    assert not rest
    assert attributes["sandbox"] == "allow-scripts"
    assert (attributes["srcdoc"] or "").startswith("<!doctype html>")
