"""What every HTML page of ours shares: template settings, hashes, frames, and the safe write."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import html
import os
import secrets
import shutil
from pathlib import Path

import jinja2

from redline.errors import SaveError


def template(text: str) -> jinja2.Template:
    """A template that escapes all it is given and refuses a name that it does not know.

    Example:
        >>> template("{{ name }}").render(name="<b>")
        '&lt;b&gt;'
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def content_hash(text: str) -> str:
    """The hash by which a content policy allows one style or script, and no other."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def frame(document: str, title: str) -> str:
    """A frame for a notebook: neither its style nor the page's leaks into the other."""
    return (
        f'<iframe srcdoc="{html.escape(document)}" sandbox="allow-scripts" '
        f'title="{html.escape(title)}" '
        'style="width:100%;height:80vh;border:1px solid #8888;border-radius:6px"></iframe>'
    )


def columns() -> int:
    """The width to print at: this terminal's, within reason."""
    return max(60, min(200, shutil.get_terminal_size((100, 24)).columns))


def write(path: str | Path, text: str) -> Path:
    """Write a file, all of it or nothing; returns its path.

    Raises:
        SaveError: the file cannot be written; what was there is untouched.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SaveError(
            f"the report cannot be written: {error.strerror or error}",
            where=str(path),
            hint="give a file in a folder that exists, that you may write to, with free space",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
