"""Imports point down: what each package may know of the others (docs/layout.md says why)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "redline"

# Known to all, and knowing nothing of ours but each other, in this order.
BASE = ["errors", "signature", "knobs", "machine", "tree"]
# The whole way in, in files beside the packages: they join what is below.
TOP = {
    path.stem for path in SOURCE.glob("*.py") if path.stem not in {*BASE, "__init__", "__main__"}
}

# Package -> the packages it may import besides the base files, lowest first.
ALLOWED = {
    "layout": set(),
    "engine": set(),
    "runtime": {"engine"},
    "graph": set(),
    "capture": {"graph"},
    "compress": {"graph"},
    "native": {"graph"},
    "backends": {"graph", "native", "engine"},
    "measure": {"runtime", "engine"},
    "search": {"measure"},
    "report": {"measure"},
    "views": {"capture", "report"},  # capture reads inputs, report has the units and the page
    "train": {"capture", "measure", "search", "layout", "report", "views"},
    "serve": {"runtime", "engine"},
}
EVERYTHING = {*ALLOWED, *TOP, "cli"}
RULES = (
    {name: set(BASE[:place]) for place, name in enumerate(BASE)}
    | {name: {*BASE, *below} for name, below in ALLOWED.items()}
    | {name: {*BASE, *EVERYTHING} - {"serve", "train", "views", "cli"} for name in TOP}
    | {"cli": {*BASE, *EVERYTHING}, "__main__": {"cli"}, "__init__": set()}
)

# The run side works where torch is not installed. An inductor part is torch code.
RUN_SIDE = {*BASE, "engine", "runtime", "serve"}
NEEDS_TORCH = {"runtime/run_inductor.py"}

FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, module) for every import at any depth; `from redline import x` counts as redline.x."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "redline":
                found += [(node.lineno, f"redline.{name.name}") for name in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return found


def parse(path: Path) -> ast.AST:
    return ast.parse((SOURCE / path).read_text(encoding="utf-8"))


def broken(path: Path, tree: ast.AST) -> list[str]:
    package = package_of(path)
    said = []
    for line, module in imports(tree):
        ours, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if ours != "redline" or other in {"", "__version__", package}:
            continue
        if other not in RULES[package]:
            said.append(f"src/redline/{path}:{line}: {package} must not import {other}")
    return said


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert not broken(path, parse(path))


@pytest.mark.parametrize("path", [path for path in FILES if package_of(path) in RUN_SIDE], ids=str)
def test_the_run_side_imports_no_torch(path):
    if str(path) in NEEDS_TORCH:
        pytest.skip("it runs torch code")
    torch = [line for line, module in imports(parse(path)) if module.split(".")[0] == "torch"]
    assert not torch, f"src/redline/{path}:{torch[0]}: imports torch"


def test_the_table_has_no_circle():
    for package, below in ALLOWED.items():
        assert below <= set(list(ALLOWED)[: list(ALLOWED).index(package)])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/file.py", "import redline.runtime.session"),
        ("runtime/load.py", "def f():\n    from redline.graph import model"),
        ("search/race.py", "from redline import backends"),
        ("errors.py", "from redline.knobs import text"),
        ("api.py", "from redline.cli import main"),
    ],
)
def test_an_arrow_that_points_up_is_found(path, source):
    assert broken(Path(path), ast.parse(source))
