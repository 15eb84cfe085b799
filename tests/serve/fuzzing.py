"""How long the fuzzers run."""

from __future__ import annotations

import os


def fuzz_seconds() -> float:
    """Ten minutes, or what FUZZ_SECONDS says: FUZZ_SECONDS=10 pytest -k fuzz tests/serve."""
    return float(os.environ.get("FUZZ_SECONDS") or 600)
