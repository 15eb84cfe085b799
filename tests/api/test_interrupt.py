import os
import signal
import subprocess
import sys

import pytest

CODE = """
import signal, sys, torch, redline
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
from redline import backends
from redline.progress import Progress
sys.path.insert(0, {here!r})
backends.BACKENDS["null"] = "planted:Hang"
Progress.__call__ = lambda self, what: print("doing:", what, flush=True)
engine = redline.optimize(
    torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4), backends=["eager", "null"], budget="100s"
)
print(engine.backend, sorted({{record.outcome for record in engine.report.records}}), flush=True)
print(tuple(engine(torch.zeros(1, 4)).shape), flush=True)
"""


@pytest.mark.parametrize("stage", ["capturing", "building and verifying null"])
def test_ctrl_c_returns_the_best_so_far(stage):
    """While the model is captured, and when eager is ready and only what hangs is waited for."""
    code = CODE.format(here=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any(line.startswith(f"doing: {stage}") for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == -signal.SIGINT or "KeyboardInterrupt" in err:
        assert stage == "capturing", "before there is anything to return, Ctrl-C is Ctrl-C"
        return
    lines = [line for line in out.splitlines() if not line.startswith("doing:")]
    assert lines[0].startswith("eager"), err
    assert lines[1] == "(1, 2)"
