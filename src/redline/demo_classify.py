"""Classify the held-out digits with digits.redline, as on a machine without PyTorch.

    python demo-out/classify.py

`redline demo` puts this file beside the engine and runs it in a fresh process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Print the accuracy and every guess as one line of JSON."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing torch is an error now

    import numpy as np

    import redline

    here = Path(__file__).resolve().parent
    with np.load(here / "held_out.npz", allow_pickle=False) as held_out:
        images, labels = held_out["images"], held_out["labels"]

    with redline.load(here / "digits.redline") as engine:
        start = time.perf_counter()
        guesses = np.array([engine(image[None]).argmax() for image in images])
        seconds = time.perf_counter() - start

    found = {
        "backend": engine.backend,
        "accuracy": float((guesses == labels).mean()),
        "seconds_per_image": seconds / len(images),
        "guesses": guesses.tolist(),
    }
    print(json.dumps(found))  # noqa: T201  # what the process that started this one reads


if __name__ == "__main__":
    main()
