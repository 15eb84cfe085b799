"""A view as one HTML document: no script, nothing from outside."""

from __future__ import annotations

from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from redline.report.document import content_hash, template
from redline.views.page import Page

_OPEN = 2  # levels of the tree that are open at first


def render(page: Page) -> str:
    """The document as text. What came from a model is escaped; the content policy allows the one
    style inside, by its hash, and no script and no request at all.

    Example:
        >>> render(Page("graph view", "Net", (), ()))[:15]
        '<!doctype html>'
    """
    style = _asset("view.css")
    return _template().render(
        page=page,
        figure=Markup(page.figure),  # made by picture.py, which escapes
        in_full=Markup(page.figure_in_full),
        style=Markup(style),
        style_hash=content_hash(style),
        open_levels=_OPEN,
    )


@cache
def _template() -> jinja2.Template:
    return template(_asset("view.html"))


@cache
def _asset(name: str) -> str:
    return resources.files("redline.views").joinpath("page", name).read_text(encoding="utf-8")
