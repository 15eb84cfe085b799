"""What every test gets: folders of its own for caches and keys, away from the user's."""

import faulthandler
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Set before anything is imported; a test that needs an empty cache sets its own."""
    home = tempfile.TemporaryDirectory(prefix="redline-tests-")
    config.add_cleanup(home.cleanup)
    os.environ["REDLINE_CACHE_DIR"] = f"{home.name}/cache"
    os.environ["REDLINE_CONFIG_DIR"] = f"{home.name}/config"
    os.environ["REDLINE_PROGRESS"] = "0"
    os.environ["REDLINE_QUIET"] = "0"  # the tests themselves keep the cores busy
    # Several test processes share the cores: threads that spin while they wait would starve them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


def _stacks(pid: int) -> Path:
    """Where a worker of the suite leaves the stacks of its threads when a signal ends it."""
    return Path(tempfile.gettempdir()) / f"redline-tests-{pid}.stacks"


def pytest_sessionstart(session: pytest.Session) -> None:
    """What a worker writes to stderr is lost: the one that started it captures that."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        path = _stacks(os.getpid())
        file = path.open("w")
        faulthandler.enable(file)
        session.config.add_cleanup(lambda: path.unlink(missing_ok=True))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """A worker that is gone says nothing: its exit status and its stacks tell where to look."""
    process = getattr(getattr(getattr(node, "gateway", None), "_io", None), "popen", None)
    if error and process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        print(f"\nworker {process.pid} ended with {process.returncode}: {error}", file=sys.stderr)
        path = _stacks(process.pid)
        if path.exists():
            print(path.read_text(), file=sys.stderr)
            path.unlink()
