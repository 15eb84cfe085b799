"""The docs name what there is: every knob, command, folder, file and backend, and no dead link."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from redline import backends
from redline.knobs import KNOBS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SKIPPED = {".git", ".env", "demo-out", "build", "dist"}
PAGES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def headings(path):
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    return re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)


def tracked():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_every_knob_has_its_heading_and_no_other():
    assert headings(DOCS / "knobs.md")[1:] == list(KNOBS)


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.name)
def test_a_knobs_default_is_named(knob):
    text = (DOCS / "knobs.md").read_text(encoding="utf-8")
    section = text.split(f"## {knob.name}\n")[1].split("\n## ")[0]
    assert "Default: " in section
    if knob.default:
        assert f"`{knob.default}`" in section.partition("Default: ")[2]


def test_the_page_of_commands_is_what_the_commands_say():
    done = subprocess.run(
        [sys.executable, "-c", "import cli_reference; print(cli_reference.page(), end='')"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == done.stdout, "run: make docs"


@pytest.mark.parametrize("name", backends.names())
def test_every_backend_has_its_heading(name):
    page = DOCS / "backends.md"
    assert any(name in heading.lower().split() for heading in headings(page))


def test_every_folder_and_top_file_is_in_the_layout():
    text = (DOCS / "layout.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    paths = [Path(name) for name in tracked()]
    folders = {f"{parent}/" for path in paths for parent in path.parents} - {"./"}
    folders -= {"src/", "src/redline/", ".ci/"}
    files = {path.name for path in paths if path.parent == Path("src/redline")}
    files -= {"__init__.py", "py.typed"}
    assert not (folders | files) - named, "not in docs/layout.md"
    assert not {n for n in named if n.endswith("/")} - folders, "no longer there"


def test_the_layouts_files_exist():
    text = (DOCS / "layout.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE):
        assert (ROOT / name).exists() or (ROOT / "src/redline" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_decision_is_short_and_numbered_once():
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        lines = page.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60, page.name
        assert lines[0].startswith(f"# {page.name[:4]}: ")
