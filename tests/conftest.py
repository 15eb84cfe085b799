"""What every test gets: folders of its own for caches and keys, away from the user's."""

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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """A worker that is gone says nothing: its exit status or signal tells where to look."""
    process = getattr(getattr(getattr(node, "gateway", None), "_io", None), "popen", None)
    if error and process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        print(f"\nworker {process.pid} ended with {process.returncode}: {error}", file=sys.stderr)
