"""fit(): from a network and data to a trained network, one function read top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.train.log import Tracker
from redline.train.recipe import Recipe
from redline.train.result import Result


def fit(
    model: Any,
    data: Any,
    recipe: Recipe | None = None,
    *,
    test: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    trackers: Sequence[Tracker | str] = (),
    progress: str | bool = "auto",
    **choices: Any,
) -> Result:
    """Train a network. See Recipe for every choice; given here, they change `recipe`."""
    raise NotImplementedError  # the interface first; the body is the next commit
