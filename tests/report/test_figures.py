"""Arithmetic on records: places, speed-ups, roofline, operators, and the chain."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from report_studies import MACHINE, ok, timing  # type: ignore[import-not-found]

from redline.machine import Machine
from redline.measure.record import Group, Record, Study
from redline.report import card, chain, figures
from redline.report.report import Report


def _roof(study: Study, machine: dict[str, object]) -> figures.Roofline:
    roof = figures.roofline(study, card.read(machine))
    assert roof is not None
    return roof


def test_timed_come_by_latency_and_the_rest_after(study: Study) -> None:
    timed, rest = figures.rows(study)
    medians = [row.record.timing.median for row in timed if row.record.timing]
    assert medians == sorted(medians)
    assert [row.record.outcome for row in rest] == ["wrong result", "crashed", "missing"]
    assert len(timed) + len(rest) == len(study.records)


def test_speedups_come_from_the_interleaved_ratios(study: Study) -> None:
    rows = {row.record.id: row for row in figures.rows(study)[0]}
    winner = rows["openvino hint=latency threads=2"]
    assert winner.over_eager == pytest.approx(35.8 / 21.8)
    assert winner.over_other == pytest.approx(22.3 / 21.8)  # ncnn, not its own other settings
    assert rows["eager"].over_eager == 1.0
    early = rows["onnxruntime threads=1 level=all"]
    assert early.record.ratio is None
    assert early.over_eager == pytest.approx(35.8 / 44.9)  # medians, where there was no final


def test_ratio_is_trusted_over_medians() -> None:
    slow = replace(ok("eager", 10.0), ratio=(3.0, 2.9, 3.1))
    fast = replace(ok("b", 5.0), ratio=(1.0, 1.0, 1.0))
    assert figures.speedup(slow, fast) == 3.0


def test_no_eager_no_speedup() -> None:
    study = Study("n", "onnx", {}, "", "", (ok("onnxruntime", 2.0), ok("openvino", 1.0)))
    assert all(row.over_eager is None for row in figures.rows(study)[0])


def test_in_a_comparison_the_other_may_be_of_the_same_backend() -> None:
    records = (ok("a.onnx", 2.0, 1.0), ok("b.onnx", 1.0, 1.0))
    same = tuple(replace(one, backend="onnxruntime") for one in records)
    study = Study("a | b", "comparison", {}, "", "", same)
    assert [row.over_other for row in figures.rows(study)[0]] == [2.0, 0.5]
    alone = replace(study, origin="module")
    assert [row.over_other for row in figures.rows(alone)[0]] == [None, None]


def test_timed_but_not_ok_is_not_in_the_race() -> None:
    late = Record("x", "x", "crashed", timing=timing(1.0), reason="SIGSEGV in round 3")
    timed, rest = figures.rows(Study("n", "onnx", {}, "", "", (late,)))
    assert not timed
    assert rest[0].record is late


def test_roofline_by_hand(study: Study) -> None:
    roof = _roof(study, MACHINE)
    assert roof.compute == pytest.approx(3.64e9 / 412e9)
    assert roof.memory == pytest.approx(71.3e6 / 31.2e9)
    assert roof.bound == "compute"
    assert roof.limit == roof.compute
    assert roof.share == pytest.approx(3.64e9 / 412e9 / 0.0218)
    assert "41 % of this limit" in figures.bound_line(roof)


def test_roofline_bound_by_memory(study: Study) -> None:
    roof = _roof(replace(study, flops=1e6), MACHINE)
    assert roof.bound == "memory"
    assert roof.limit == roof.memory


@pytest.mark.parametrize("lack", ["flops", "bytes"])
def test_no_roofline_without_the_work(study: Study, lack: str) -> None:
    assert figures.roofline(replace(study, **{lack: 0.0}), card.read(MACHINE)) is None  # type: ignore[arg-type]


def test_no_roofline_without_the_machine(study: Study) -> None:
    assert figures.roofline(study, card.read({})) is None


def test_above_the_limit_is_explained(study: Study) -> None:
    cached = replace(study, flops=1e6, bytes=20e6, records=_faster(study, 0.1))
    assert "last cache" in _roof(cached, MACHINE).remark
    assert "Winograd" in _roof(replace(study, records=_faster(study, 0.1)), MACHINE).remark
    whole = tuple(replace(one, precision="int8") for one in _faster(study, 0.1))
    assert "limit of fp32" in _roof(replace(study, records=whole), MACHINE).remark


def test_a_short_call_is_explained(study: Study) -> None:
    tiny = replace(study, flops=2e3, bytes=1e3, records=_faster(study, 0.0005))
    assert "waking a thread takes 10.3 µs" in _roof(tiny, MACHINE).remark


def test_the_card_speaks_for_a_reader() -> None:
    found = card.read(MACHINE)
    assert found.line == "AMD EPYC 9B45 · 2 cores · AVX-512 · 412 GFLOP/s · 31.2 GB/s"
    rows = dict(found.rows)
    assert rows["usable cores"] == "2 of 8"
    assert rows["L3 cache"] == "32 MiB"
    assert rows["memory"] == "25.3 GB"
    assert rows["memory read, all cores"] == "31.2 GB/s"
    assert rows["instruction sets"] == "avx, avx2, fma, avx512f, avx512_vnni"


def test_the_card_reads_what_the_machine_writes() -> None:
    names = {field.name for field in fields(Machine)}
    assert {"cpu", "isa", "cores", "cores_total", "peak_flops", "bandwidth"} <= names
    assert {key for _, key, _ in card._ROWS} | {key for _, key in card._WORDS} <= names


@pytest.mark.parametrize(
    "machine",
    [{}, {"isa": "avx2", "cores": "two", "peak_flops": True, "l3": -1, "bandwidth": None}],
)
def test_an_odd_card_still_reads(machine: dict[str, object]) -> None:
    found = card.read(machine)
    assert found.line == "unknown machine"
    assert not [row for row in found.rows if row[1]]


def test_changes_put_the_largest_first() -> None:
    found = figures.changes({"Conv": 3, "Relu": 2, "Add": 1}, {"Conv": 3, "Fused": 1})
    assert [(one.operator, one.before, one.after) for one in found] == [
        ("Relu", 2, 0), ("Add", 1, 0), ("Fused", 0, 1), ("Conv", 3, 3),
    ]  # fmt: skip


def test_the_same_operators_of_one_backend_are_told_once(study: Study) -> None:
    names = [record.id for record in figures.optimised(study)]
    assert names[0] == "openvino hint=latency threads=2"
    assert sum(name.startswith("onnxruntime") for name in names) == 1


def test_headline_without_a_winner(study: Study) -> None:
    nobody = replace(study, records=tuple(replace(one, winner=False) for one in study.records))
    assert figures.headline(nobody) == "No winner was chosen."
    assert figures.headline(replace(study, records=())) == "No candidate could run this model."


def test_headline_when_eager_wins() -> None:
    study = Study("n", "module", {}, "", "", (replace(ok("eager", 1.0), winner=True),))
    assert figures.headline(study) == "eager: 1.00 ms a call; nothing else was faster."


def test_provenance_says_what_came_from_the_cache(study: Study) -> None:
    some = tuple(replace(one, from_cache=number < 2) for number, one in enumerate(study.records))
    assert figures.provenance(replace(study, records=some)).endswith("2 from cache")
    every = tuple(replace(one, from_cache=one.outcome != "missing") for one in study.records)
    assert figures.provenance(replace(study, records=every)).endswith(", from cache")


def test_every_compiler_tells_every_stage() -> None:
    for compiler in chain.COMPILERS:
        for stage in chain.STAGES:
            words = getattr(compiler, stage)
            assert words.endswith("."), (compiler.name, stage)
            assert len(words) < 220


def test_chain_puts_the_winner_first_with_real_counts(study: Study) -> None:
    first, *others = chain.links(study)
    assert first.compiler.name == "OpenVINO"
    assert first.winner
    assert dict(first.stages)["optimiser"].endswith("Here: 49 operators became 25.")
    states = {link.compiler.name: link.state for link in others}
    assert states["TensorRT 11"] == "missing"
    assert states["Redline native"] == "not tried"
    assert states["ncnn"] == "took part"


def _faster(study: Study, milliseconds: float) -> tuple[Record, ...]:
    return tuple(
        replace(one, timing=timing(milliseconds)) if one.winner else one for one in study.records
    )


GROUPS = (
    Group("conv1+relu1", "conv_tile<14, 2>", flops=4.12e9, bytes=1e6, seconds=0.02),
    Group("add1+add2+add3", "loop", flops=0.0, bytes=312e6, seconds=0.02),
    Group("mean1", "pool", flops=1e6, bytes=1e6, seconds=0.0),
)


def _with_groups(study: Study) -> Study:
    records = tuple(
        replace(one, groups=GROUPS, missed=("mul1 is not fused into conv1: read 2 times",))
        if one.winner
        else one
        for one in study.records
    )
    return replace(study, records=records)


def test_groups_have_their_share_and_their_part_of_the_limit(study: Study) -> None:
    found = figures.pieces(_with_groups(study), card.read(MACHINE))
    assert [piece.group.name for piece in found] == ["conv1+relu1", "add1+add2+add3"]  # timed ones
    assert [piece.share for piece in found] == [0.5, 0.5]
    assert found[0].roof == pytest.approx(4.12e9 / 412e9 / 0.02)
    assert found[1].roof == pytest.approx(312e6 / 31.2e9 / 0.02)  # more than the last cache holds
    assert figures.pieces(study, card.read(MACHINE)) == []


def test_whole_numbers_are_held_to_twice_the_peak_of_floats(study: Study) -> None:
    whole = replace(GROUPS[0], kernel="int8 conv_tile<6, 2>")
    records = tuple(replace(one, groups=(whole,)) if one.winner else one for one in study.records)
    (found,) = figures.pieces(replace(study, records=records), card.read(MACHINE))
    assert found.roof == pytest.approx(4.12e9 / 824e9 / 0.02)


def test_groups_are_shown_wherever_an_engine_is_explained(study: Study) -> None:
    report = Report(_with_groups(study))
    for width in (60, 100, 160):
        assert all(len(line) <= width for line in report.explain(width).splitlines())
    text = report.explain(100)
    assert "conv_tile<14, 2>" in text
    assert "20.0 ms" in text
    assert "50 %" in text
    assert "mul1 is not fused into conv1: read 2 times" in report.explain(120)
    page = report.html()
    assert "conv_tile&lt;14, 2&gt;" in page
    assert "mul1 is not fused" in page
    assert Report.from_json(report.json()) == report
