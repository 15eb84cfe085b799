"""The OpenAPI description: it is given, complete, and schemathesis finds nothing against it."""

import time
import urllib.request
from importlib import resources

import pytest
from fuzzing import fuzz_seconds
from test_protocols_agree import both  # noqa: F401

yaml = pytest.importorskip("yaml")


def description():
    text = resources.files("redline.serve").joinpath("openapi.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def test_the_server_gives_it(both):  # noqa: F811
    with urllib.request.urlopen(f"{both.http}/v2/openapi.yaml", timeout=60) as answer:
        assert yaml.safe_load(answer.read()) == description()


def test_every_path_is_there(both):  # noqa: F811
    both.post("/v2/repository/models/simple/load", b"{}")
    for path, methods in description()["paths"].items():
        real = path.replace("{name}", "simple").replace("{version}", "1")
        for method in methods:
            if method == "get":
                with urllib.request.urlopen(both.http + real, timeout=60) as answer:
                    assert answer.status == 200
            elif method == "post":
                status, _, body = both.post(real, b"{}")
                assert status in (200, 400), (path, body)
                both.post("/v2/repository/models/simple/load", b"{}")


def run(http, seconds, seed):
    """Fuzz for so many seconds; the number of requests."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis import checks

    wanted = [
        checks.not_a_server_error, checks.response_schema_conformance,
        checks.content_type_conformance,
    ]  # fmt: skip
    schema = schemathesis.openapi.from_dict(description())
    operations = [found.ok() for found in schema.get_all_operations()]
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for operation in operations:

            @seeded(seed + count)
            @settings(
                max_examples=20, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def one(case):
                nonlocal count
                count += 1
                if time.monotonic() < end:
                    case.call_and_validate(base_url=http, checks=wanted, timeout=60)

            one()
    return count


def test_a_few_seconds_of_requests(both):  # noqa: F811
    assert run(both.http, 4, seed=0) > 15


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fuzz_requests_for_ten_minutes(both):  # noqa: F811
    seed = time.time_ns() % (1 << 30)
    print(f"seed {seed}")  # shown when it fails
    assert run(both.http, fuzz_seconds(), seed) > fuzz_seconds()
    assert both.post("/v2/repository/index", b"{}")[0] == 200
