"""docs/networks.md shows what is really printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PYTHON = re.compile(r"^```python\n(.*?)^```\n+```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def test_what_the_page_prints_is_what_is_printed(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, save for the digits of norms, which depend on the kernels of the machine."""
    monkeypatch.setenv("COLUMNS", "100")
    page = (root / "docs" / "networks.md").read_text(encoding="utf-8")
    blocks = PYTHON.findall(page)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "step"}
    before = 0
    for index, (code, printed) in enumerate(blocks):
        exec(compile("\n" * before + code, "step.py", "exec"), names)
        before += code.count("\n")
        got, expected = capsys.readouterr().out, printed
        if index == 2:
            got, expected = (re.sub(r" +", " ", NUMBER.sub("#", one)) for one in (got, expected))
        assert got == expected
