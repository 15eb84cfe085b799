import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from redline import errors
from redline.measure.child import Child

HERE = "planted_calls"


@pytest.fixture
def child():
    with Child() as child:
        yield child


def test_values_survive_the_pipe(child):
    sent = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": [True, None, 1.5, "x", b"y"]}
    got = child.call(f"{HERE}:echo", **sent)
    assert got["b"] == sent["b"]
    assert got["a"].dtype == np.int64
    np.testing.assert_array_equal(got["a"], sent["a"])


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array(2.5), np.ones((2, 2), bool)[:, ::-1]])
def test_odd_arrays_survive_the_pipe(child, array):
    got = child.call(f"{HERE}:echo", array=array)["array"]
    assert got.shape == array.shape
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_state_lives_between_calls(child):
    child.call(f"{HERE}:remember", value=7)
    assert child.call(f"{HERE}:recall") == 7


def test_a_crash_is_an_exception_with_the_signal_and_the_last_words(child):
    with pytest.raises(errors.CrashedError, match=r"SIGSEGV.*about to fall"):
        child.call(f"{HERE}:crash")


def test_leaving_is_a_crash_too(child):
    with pytest.raises(errors.CrashedError, match="exit status 3"):
        child.call(f"{HERE}:leave")


def test_a_hang_ends_at_the_timeout(child):
    with pytest.raises(errors.TimedOutError, match="planted_calls:hang"):
        child.call(f"{HERE}:hang", timeout=0.3)


def test_memory_over_the_limit_ends_the_child():
    with Child(memory=300 << 20) as child, pytest.raises(errors.OutOfMemoryError, match="300 MiB"):
        child.call(f"{HERE}:eat_memory", timeout=30)


def test_a_memory_error_is_out_of_memory(child):
    with pytest.raises(errors.OutOfMemoryError):
        child.call(f"{HERE}:raise_memory_error")


def test_our_errors_come_back_as_themselves(child):
    with pytest.raises(errors.RefusedError) as caught:
        child.call(f"{HERE}:refuse")
    assert (caught.value.what, caught.value.where) == ("no such layer", "node 3")
    assert caught.value.hint == "use another"


def test_other_errors_come_back_with_their_text_and_trace(child):
    with pytest.raises(errors.RunError, match="ZeroDivisionError: by zero") as caught:
        child.call(f"{HERE}:fail")
    assert "in fail" in caught.value.__notes__[0]
    assert child.call(f"{HERE}:echo") == {}, "the child goes on after an ordinary error"


def test_what_a_child_prints_stays_out_of_our_output(child, capfd):
    assert child.call(f"{HERE}:print_loudly") == "done"
    assert capfd.readouterr().out == ""


def test_closing_ends_what_the_child_started():
    with Child() as child:
        helper = child.call(f"{HERE}:hang_with_helper")
        assert psutil.pid_exists(helper)
    _wait_until_gone(helper)


def test_a_child_dies_with_its_parent():
    code = (
        "import os, time\n"
        "from redline.measure.child import Child\n"
        "child = Child(); child.call('redline.measure.work:peak_memory')\n"
        "print(child._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    _wait_until_gone(int(done.stdout))


def test_a_kill_from_another_thread_wakes_the_caller(child):
    import threading

    timer = threading.Timer(0.3, child.kill)
    timer.start()
    with pytest.raises(errors.ChildError):
        child.call(f"{HERE}:hang", timeout=60)
    timer.join()


def test_peak_memory_is_the_childs_own():
    ballast = np.ones(64 << 20)  # 512 MiB that a forked child would seem to hold
    with Child() as child:
        assert child.call("redline.measure.work:peak_memory") < ballast.nbytes / 2


def _wait_until_gone(pid):
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
    assert not psutil.pid_exists(pid), os.popen(f"ps {pid}").read()
