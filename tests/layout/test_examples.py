"""The examples of the docstrings and of the pages about strides, run as they stand."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch

import redline
from redline import layout
from redline.layout.finder import Copies
from redline.layout.source import read

NAMES = {"torch": torch, "np": np, "redline": redline, "layout": layout, "read": read}
MODULES = [f"redline.layout.{one.name}" for one in pkgutil.iter_modules(layout.__path__)]
PAGES = ("docs/strides.md", "docs/strides/may-exist.md", "docs/strides/may-view.md",
         "docs/strides/is-contiguous.md", "docs/strides/may-write.md")  # fmt: skip
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", [*MODULES, "redline.diagnosis"])
def test_docstrings(name):
    module = importlib.import_module(name)
    done = doctest.testmod(module, extraglobs=NAMES | {"Copies": Copies}, optionflags=FLAGS)
    assert done.failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_pages(page, root):
    text = (Path(root) / page).read_text(encoding="utf-8")
    text = "\n".join("" if line.startswith("```") else line for line in text.splitlines())
    test = doctest.DocTestParser().get_doctest(text + "\n", dict(NAMES), page, page, 0)
    assert test.examples
    done = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    assert done.failed == 0
