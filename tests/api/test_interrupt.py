import os
import signal
import subprocess
import sys
import time

import pytest

CODE = """
import sys, torch, redline
from redline import backends
sys.path.insert(0, {here!r})
backends.BACKENDS["null"] = "planted:Hang"
print("begin", flush=True)
engine = redline.optimize(
    torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4), backends=["eager", "null"], budget="100s"
)
print(engine.backend, sorted({{record.outcome for record in engine.report.records}}), flush=True)
print(tuple(engine(torch.zeros(1, 4)).shape), flush=True)
"""


@pytest.mark.parametrize("after", [1.0, 12.0])
def test_ctrl_c_returns_the_best_so_far(after):
    code = CODE.format(here=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begin\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == -signal.SIGINT or "KeyboardInterrupt" in err:
        assert after < 5, "before there is anything to return, Ctrl-C is Ctrl-C"
        return
    assert out.splitlines()[0].startswith("eager"), err
    assert out.splitlines()[1] == "(1, 2)"
