"""An AOTInductor package in an engine file: code, trusted only when signed."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import save_sample

from redline.engine.manifest import Check, Part
from redline.engine.store import FolderStore
from redline.errors import RunError, UntrustedError
from redline.runtime.load import open_engine
from redline.runtime.runner import open_part
from redline.signature import Signature, TensorSpec, Tree

pytestmark = pytest.mark.slow

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", (2, 4)), TensorSpec("scale", "float32", (1,))),
    outputs=(TensorSpec("y", "float32", (2, 3)), TensorSpec("s", "float32", (2,))),
    input_tree=Tree("dict", ("x", "scale"), (Tree(), Tree())),
    output_tree=Tree(
        "dict",
        ("y", "n", "s"),
        (Tree(), Tree("constant", value=7), Tree("tuple", children=(Tree(),))),
    ),
)
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
SCALE = np.array([3], np.float32)
PART = Part("inductor", {"threads": 1}, files=("model.pt2",), code=True)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, Any]:
        return {"y": self.linear(x) * scale, "n": 7, "s": (x.sum(1),)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("inductor")
    torch.manual_seed(0)
    model = Model().eval()
    inputs = torch.from_numpy(X), torch.from_numpy(SCALE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, while compiling
        program = torch.export.export(model, inputs[:1], {"scale": inputs[1]})
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
        return folder, model(inputs[0], scale=inputs[1])["y"].numpy()


def test_right_from_many_threads(built: tuple[Path, np.ndarray]) -> None:
    folder, y = built
    runner = open_part(PART, FolderStore(folder), SIGNATURE)

    def work(seed: int) -> bool:
        scale = np.array([seed], np.float32)
        results = (runner.run([X, scale]) for _ in range(20))
        return all(
            np.allclose(out, y / 3 * seed, atol=1e-5) and np.allclose(total, X.sum(1), atol=1e-6)
            for out, total in results
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(1, 9)))
    runner.close()
    with pytest.raises(RunError, match="closed"):
        runner.run([X, SCALE])


def test_read_only_inputs_and_the_thread_count(built: tuple[Path, np.ndarray]) -> None:
    runner = open_part(PART, FolderStore(built[0]), SIGNATURE)
    x = X.copy()
    x.flags.writeable = False
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        np.testing.assert_allclose(runner.run([x, SCALE])[0], built[1], rtol=1e-5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_from_a_file(
    built: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, y = built
    changes: dict[str, Any] = {
        "signature": SIGNATURE,
        "graph": None,
        "check": Check(1e-5, 1.0),
        "inputs": [X, SCALE],
        "outputs": [y, X.sum(1)],
    }
    path = save_sample(tmp_path / "a.redline", (PART, folder), **changes)
    with open_engine(path) as session:
        result = session(torch.from_numpy(X), scale=torch.from_numpy(SCALE))
        np.testing.assert_allclose(result["y"].numpy(), y, rtol=1e-5)
        assert result["n"] == 7
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "other-machine"))
    with pytest.raises(UntrustedError, match="does not trust"):
        open_engine(path)
    with open_engine(path, trust=True) as session:
        np.testing.assert_allclose(session(X, SCALE)["y"], y, rtol=1e-5)


def test_a_package_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"junk")
    with pytest.raises(RunError, match="cannot load the package"):
        open_part(PART, FolderStore(tmp_path), SIGNATURE)
