"""Claim: ResNet-18 is optimized within 90 s by default, and again from the cache within 9 s.

    python bench/cold_and_warm.py [network ...]

Each optimize() runs in a fresh process with the default budget, first on an empty cache folder,
then on what that left behind; a third one repeats it within the same process. Imports are not
counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ONE = """
import json, sys, time
sys.path.insert(0, {bench!r})
from models import ZOO
import redline, redline.api
module, example = ZOO[{key!r}][1]()
times = []
for _ in range({repeats}):
    start = time.perf_counter()
    engine = redline.optimize(module, example, progress=False)
    times.append(time.perf_counter() - start)
record = next(record for record in engine.report.records if record.winner)
print(json.dumps({{"seconds": times, "pick": record.id, "cached": record.from_cache}}))
"""


def run(key: str, cache: str, repeats: int = 1) -> dict[str, object]:
    """optimize() in a fresh process."""
    bench = str(Path(__file__).parent)
    # Weights are random: the same seed, or it is another model for the cache.
    code = "import torch; torch.manual_seed(0)\n" + ONE.format(
        bench=bench, key=key, repeats=repeats
    )
    environment = {**os.environ, "REDLINE_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    print("| network | cold | cache, new process | cache, same process | cold / cache | pick |")
    print("|---|---|---|---|---|---|")
    for key in sys.argv[1:] or ["resnet18"]:
        with tempfile.TemporaryDirectory() as cache:
            cold = run(key, cache)
            warm = run(key, cache, repeats=2)
        assert warm["cached"], "the second run did not come from the cache"
        first, (new, same) = cold["seconds"][0], warm["seconds"]
        cells = (f"{first:.1f} s", f"{new:.2f} s", f"{same:.2f} s", f"{first / new:.0f}×")
        print("|", " | ".join([key, *cells, str(cold["pick"])]), "|")


if __name__ == "__main__":
    main()
