"""What the report tells of lower precisions: the knee, the bars, and what stayed in float."""

from __future__ import annotations

from report_studies import lower_precisions, realistic  # type: ignore[import-not-found]

from redline.report.knee import knee
from redline.report.precision import levels
from redline.report.report import Report


def test_what_loses_more_stands_lower_and_what_is_faster_more_to_the_left() -> None:
    drawn = knee(lower_precisions())
    assert drawn is not None
    points = {point["name"]: point for point in drawn["points"]}
    assert set(points) == {"fp32", "int8", "int8-keep1", "fp16"}
    assert (
        float(points["int8"]["x"]) < float(points["int8-keep1"]["x"]) < float(points["fp32"]["x"])
    )
    assert float(points["fp32"]["y"]) < float(points["int8-keep1"]["y"]) < float(drawn["bound"])
    assert float(drawn["bound"]) < float(points["int8"]["y"])
    assert [name for name, point in points.items() if point["winner"]] == ["int8-keep1"]
    assert [name for name, point in points.items() if not point["holds"]] == ["int8", "fp16"]
    for point in points.values():
        assert drawn["left"] <= float(point["x"]) <= drawn["right"]
        assert drawn["top"] <= float(point["y"]) <= drawn["bottom"]


def test_there_is_no_knee_without_times() -> None:
    assert knee(realistic()) is None


def test_layers_are_told_the_worst_first_with_why_they_stayed() -> None:
    _, mixed, _ = levels(lower_precisions())
    assert [(node, width) for node, _, width, _ in mixed.bars] == [
        ("head", "100.0"),
        ("stem", "2.5"),
    ]
    assert mixed.kept == (("head", "Gemm", "kept for accuracy"),)
    assert mixed.pace == "0.50×"


def test_the_page_and_the_terminal_have_the_section_and_others_do_not() -> None:
    report = Report(lower_precisions())
    page = report.html()
    for words in ("Lower precisions", "int8-keep1: sensitivity", "kept for accuracy", 'id="knee"'):
        assert words in page
    assert "0.50×" in report.text(120)
    assert Report.from_json(report.json()) == report
    assert "Lower precisions" not in Report(realistic()).html()
