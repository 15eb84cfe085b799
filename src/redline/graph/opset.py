"""The opset that every captured graph is brought to, and the oldest that is taken."""

from __future__ import annotations

OPSET = 20
OLDEST_OPSET = 11
