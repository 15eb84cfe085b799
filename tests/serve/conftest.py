"""What tests of several files share."""

from __future__ import annotations

from pathlib import Path

import ops_certificates  # type: ignore[import-not-found]
import pytest


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of ca, cert, key, client_cert and client_key."""
    return ops_certificates.make(tmp_path_factory.mktemp("tls"))  # type: ignore[no-any-return]
