"""The Report: on a terminal, as JSON, and to a file."""

from __future__ import annotations

import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from redline.errors import InputError, SaveError, SchemaError
from redline.measure.record import Study
from redline.report.report import Report


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(any_study: Study, width: int) -> None:
    for text in (Report(any_study).text(width), Report(any_study).explain(width)):
        assert max(map(cell_len, text.splitlines())) <= width


def test_at_80_columns_numbers_are_whole_and_the_winner_is_marked(study: Study) -> None:
    text = Report(study).text(80)
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("★"))
    assert re.search(r"openvino hint=latency +21\.8 ms +21\.5–22\.1 +1\.64× +1\.1e-6$", row)
    assert "throughput" not in text.splitlines()[7]


def test_at_200_columns_everything_is_there(study: Study) -> None:
    header = next(line for line in Report(study).text(200).splitlines() if "candidate" in line)
    titles = ["latency", "95 % interval", "× eager", "× best other", "items", "build", "memory",
              "size", "error", "allowed"]  # fmt: skip
    assert [title for title in titles if title in header] == titles
    assert "accuracy" not in header  # nobody gave a metric


def test_every_candidate_is_told_with_its_reason(study: Study) -> None:
    text = " ".join(Report(study).text(200).split())
    for record in study.records:
        assert record.id in text
        assert record.reason in text
        assert record.hint in text


def test_text_says_machine_goal_limit_operators_and_notes(study: Study) -> None:
    text = " ".join(Report(study).text(80).split())
    for words in (
        "AMD EPYC 9B45 · 2 cores · AVX-512", "minimize latency, max_size 60 MB: met",
        "1.64× as fast as eager (1.62 to 1.67)", "bound by compute", "41 % of this limit",
        "49 → 25 operators: Relu 17 → 0", 'dynamic={"batch": (1, 8, 32)}', "the module in float64",
        "1.3e-5", "winograd-f63",
    ):  # fmt: skip
        assert words in text or words in " ".join(Report(study).text(200).split()), words


def test_all_failed_has_no_table_and_says_so() -> None:
    from report_studies import all_failed  # type: ignore[import-not-found]

    report = Report(all_failed())
    text = report.text(100)
    assert "No candidate could run this model." in text
    assert "latency   " not in text
    assert "SIGSEGV" in text
    assert report.winner is None


def test_rich_prints_colour_and_str_does_not(study: Study) -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", width=100).print(Report(study))
    assert "\x1b[1;32m" in out.getvalue()  # the winner
    assert "\x1b" not in str(Report(study))


def test_markup_in_names_is_not_obeyed(study: Study) -> None:
    loud = replace(study, model="[bold red]Net[/] [link=x]y", verdict="[/]")
    assert "[bold red]Net[/] [link=x]y" in Report(loud).text(100)


def test_str_follows_the_terminal(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert max(map(cell_len, str(Report(study)).splitlines())) <= 72


def test_explain_shows_the_whole_chain(study: Study) -> None:
    text = " ".join(Report(study).explain(100).split())
    assert "OpenVINO the winner" in text
    assert "strongly typed network" in text
    assert "Redline native not tried" in text


def test_json_round_trip(any_study: Study) -> None:
    report = Report(any_study)
    assert Report.from_json(report.json()) == report
    assert json.loads(report.json())["schema"] == 1


def test_json_keeps_infinite_errors(study: Study) -> None:
    worst = replace(study.records[0], error=math.inf, id="inf", reason="nan", hint="inf")
    odd = replace(study, model="nan", records=(worst,))
    assert "Infinity" not in Report(odd).json()
    back = Report.from_json(Report(odd).json().encode())
    assert back.study == odd
    assert "∞" in back.text(200)
    nan = Report.from_json(Report(replace(odd, yardstick=math.nan)).json())
    assert nan.study.yardstick is not None
    assert math.isnan(nan.study.yardstick)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"model": 3}', b"\xff\xfe", '"x"'])
def test_what_is_not_a_report_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="not a report"):
        Report.from_json(text)


def test_a_newer_report_is_refused(study: Study) -> None:
    data = json.loads(Report(study).json()) | {"schema": 2}
    with pytest.raises(SchemaError, match="schema 2"):
        Report.from_json(json.dumps(data))


def test_write_replaces_the_whole_file(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert Report(study).write_html(path) == path
    assert path.read_text(encoding="utf-8") == Report(study).html()
    assert (
        Report.from_json(Report(study).write_json(tmp_path / "r.json").read_bytes()).study == study
    )
    assert sorted(os.listdir(tmp_path)) == ["r.json", "report.html"]


def test_write_through_a_link_keeps_the_link(study: Study, tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    Report(study).write_html(tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_unwritable_place_is_one_clear_error(study: Study, tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "report.html", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(SaveError, match="the report cannot be written") as caught:
            Report(study).write_html(path)
        assert str(path) in caught.value.where
        assert caught.value.hint
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="No space left"):
        Report(study).write_html(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_winner_and_records(study: Study) -> None:
    report = Report(study)
    assert report.records == study.records
    assert report.winner is not None
    assert report.winner.id == "openvino hint=latency threads=2"
    assert repr(report).startswith("Report('ResNet-18': openvino hint=latency")
