"""Names that clients and folders give: what is let through, and texts without this host's paths."""

from __future__ import annotations

import re

from redline.serve.messages import ServeError, Status

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_PATH = re.compile(r"(?:/[^\s/:'\"]+)+/(?=[^\s/])")


def check_name(name: str) -> str:
    """A model's name: letters, digits, "_", "-" and ".", not beginning with "." or "-".

    Raises:
        ServeError: INVALID for anything else, so that no name can leave its folder.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ServeError(
            Status.INVALID,
            f"{name[:60]!r} is no name of a model: letters, digits, '_', '-' and '.' are",
        )
    return name


def check_version(version: str) -> str:
    """A version: a whole number of 1 or more without leading zeros, or "" for any.

    Raises:
        ServeError: INVALID for anything else.
    """
    if version and not _VERSION.fullmatch(version):
        raise ServeError(
            Status.INVALID, f"failed to get model version from {version[:60]!r}: not a number"
        )
    return version


def is_name(name: str) -> bool:
    """Whether check_name() would let it through."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def is_version(name: str) -> bool:
    """Whether a folder of that name holds a version."""
    return bool(_VERSION.fullmatch(name))


def scrub(text: str) -> str:
    """A message with the folders of absolute paths taken out, and on one line.

    Example:
        >>> scrub("cannot read /srv/models/mlp/1/model.onnx")
        'cannot read model.onnx'
    """
    return " ".join(_PATH.sub("", text).split())[:1000]
