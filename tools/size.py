"""Lines and functions of every source file, and what is over the budget of its kind.

python tools/size.py            # the table
python tools/size.py --check    # only what is over budget; exits with 1 if anything is
"""

from __future__ import annotations

import ast
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "bench", "tools")
FILE_LINES, FUNCTION_LINES = 400, 50

# "path" or "path:function" -> why it may be longer.
ALLOWED = {
    "src/redline/cli/serve.py:serve": "one parameter an option, with its help",
    "src/redline/cli/optimize.py:optimize": "one parameter an option, with its help",
    "tests/report/report_studies.py:records": "a table of rows, one call each",
}


@dataclass(frozen=True)
class File:
    """One file: its lines, and the lines of each of its functions without its docstring."""

    path: str
    lines: int
    functions: dict[str, int]

    @property
    def over(self) -> list[str]:
        """What is over budget and not allowed, one line each."""
        found = [(self.path, self.lines, FILE_LINES)]
        found += [(f"{self.path}:{name}", n, FUNCTION_LINES) for name, n in self.functions.items()]
        return [
            f"{place}: {lines} lines, the budget is {budget}"
            for place, lines, budget in found
            if lines > budget and place not in ALLOWED
        ]


def measure(path: Path) -> File:
    """Count one file."""
    text = path.read_text(encoding="utf-8")
    functions = {
        node.name: _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) else 0)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return File(str(path.relative_to(ROOT)), text.count("\n"), functions)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def measure_all() -> list[File]:
    """Every Python file of the project."""
    return [measure(path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def table(files: list[File]) -> None:
    """Print one row a file and one line a folder."""
    print(f"{'lines':>6} {'functions':>9} {'longest':>8}  file")
    for file in sorted(files, key=lambda file: -file.lines):
        longest = max(file.functions.values(), default=0)
        print(f"{file.lines:6} {len(file.functions):9} {longest:8}  {file.path}")
    for folder in FOLDERS:
        mine = [file for file in files if file.path.startswith(f"{folder}/")]
        lengths = [n for file in mine for n in file.functions.values()]
        if len(lengths) > 1:
            median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
            print(
                f"{folder}: {sum(file.lines for file in mine)} lines in {len(mine)} files, "
                f"{len(lengths)} functions of median {median:.0f}, p90 {p90:.0f} lines"
            )


def main() -> int:
    """Print the table, then what is over budget."""
    files = measure_all()
    if "--check" not in sys.argv:
        table(files)
    over = [line for file in files for line in file.over]
    print("\n".join(over), end="\n" if over else "")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
