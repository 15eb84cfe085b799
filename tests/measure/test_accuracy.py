import numpy as np
import pytest

from redline.measure.accuracy import TOLERANCE_CLASSES, error, not_a_number, tolerance

REF = [np.array([3.0, 4.0, 0.0, 5.0])]  # rms = sqrt(12.5)


def test_error_is_relative_to_the_rms_of_the_reference():
    off = [REF[0] + np.array([0, 0, 0.5, 0])]
    assert error(off, REF) == pytest.approx(0.5 / np.sqrt(12.5))


def test_the_worst_output_counts():
    assert error([REF[0], REF[0] * 2], [REF[0], REF[0]]) > error([REF[0], REF[0]], [REF[0], REF[0]])


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        ([], "an output is missing"),
        ([np.zeros(3)], "another shape"),
        ([np.array([3.0, 4.0, np.nan, 5.0])], "NaN"),
        ([np.array([3.0, 4.0, np.inf, 5.0])], "Inf"),
    ],
)
def test_what_cannot_be_compared_is_infinitely_wrong(got, reason):
    assert error(got, REF) == float("inf"), reason


def test_infinities_of_the_reference_must_be_met():
    ref = [np.array([-np.inf, 1.0])]
    assert error([np.array([-np.inf, 1.0])], ref) == 0
    assert error([np.array([-1e30, 1.0])], ref) == float("inf")
    assert not not_a_number([np.array([-np.inf, 1.0])], ref)
    assert not_a_number([np.array([np.nan, np.nan])], ref)


def test_integers_and_booleans_count_differing_elements():
    assert error([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 5])]) == 0.25
    assert error([np.array([True, False])], [np.array([True, True])]) == 0.5


def test_nothing_to_compare_is_no_error():
    assert error([np.zeros((0, 3))], [np.zeros((0, 3))]) == 0
    assert error([np.zeros(3)], [np.zeros(3)]) == 0


def test_looser_classes_allow_more():
    allowed = [tolerance(1e-6, name) for name in TOLERANCE_CLASSES]
    assert allowed == sorted(allowed)
    assert tolerance(0.0, "fp32") > 0, "an exact yardstick still leaves room for rounding"
