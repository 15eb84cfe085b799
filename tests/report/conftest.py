"""Each kind of study as a fixture."""

from __future__ import annotations

import pytest
from report_studies import STUDIES, realistic  # type: ignore[import-not-found]

from redline.measure.record import Study


@pytest.fixture(params=STUDIES)
def any_study(request: pytest.FixtureRequest) -> Study:
    """Each of the studies in turn."""
    return STUDIES[request.param]()


@pytest.fixture
def study() -> Study:
    """A ResNet-18 as it went on two cores: a winner, a near tie, losers and failures."""
    return realistic()
