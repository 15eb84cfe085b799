"""Keys: made once, private, and trusted only when this machine says so."""

from __future__ import annotations

import logging
import stat
import sys
import threading
from pathlib import Path

import pytest
from engine_samples import save_sample

from redline.engine import sign
from redline.engine.file import open_file
from redline.errors import EngineFileError, InputError, TamperedError


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = sign.public_key()
    assert sign.public_key() == first
    key = tmp_path / "config" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["key"]


def test_threads_agree_on_one_key() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(sign.public_key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_signature_fits_one_manifest_only() -> None:
    signature = sign.sign(b"manifest")
    assert sign.is_trusted(sign.verify(b"manifest", signature))
    with pytest.raises(TamperedError, match="changed after it was signed"):
        sign.verify(b"manifest.", signature)


@pytest.mark.parametrize("member", [b"", b"{}", b"\xff", b'{"algorithm":"none"}', b"[" * 5000])
def test_a_broken_signature(member: bytes) -> None:
    with pytest.raises(TamperedError, match="signature cannot be read"):
        sign.verify(b"manifest", member)


def test_a_key_that_others_can_read_proves_nothing(tmp_path: Path) -> None:
    path = save_sample(tmp_path / "a.redline")
    (tmp_path / "config" / "key").chmod(0o644)
    with open_file(path) as file, pytest.raises(InputError, match="other users") as error:
        _ = file.trusted
    assert "chmod 600" in error.value.hint


def test_trust_is_given_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sample(tmp_path / "a.redline")
    line = sign.public_key()
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "other-machine"))
    with open_file(path) as file:
        assert file.signer
        assert not file.trusted
        granted = sign.trust_key(line + " build server", name="build")
        assert granted.name == "build.pub"
        assert file.trusted
        granted.unlink()
        assert not file.trusted


def test_trusted_keys_that_others_can_write_prove_nothing(tmp_path: Path) -> None:
    sign.trust_key(sign.public_key())
    (tmp_path / "config" / "trusted").chmod(0o777)
    with pytest.raises(InputError, match="other users"):
        sign.is_trusted(bytes(32))


@pytest.mark.parametrize("line", ["", "redline-ed25519", "redline-ed25519 AAAA", "ssh-rsa AAAA"])
def test_what_is_no_key_is_not_trusted(line: str) -> None:
    with pytest.raises(InputError, match="not a key"):
        sign.trust_key(line)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden"])
def test_a_key_stays_in_its_folder(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a key"):
        sign.trust_key(sign.public_key(), name=name)


def test_junk_among_trusted_keys_is_passed_over(tmp_path: Path) -> None:
    sign.trust_key(sign.public_key())
    (tmp_path / "config" / "trusted" / "a.pub").write_bytes(b"\xff\xfe junk")
    assert not sign.is_trusted(bytes(32))


def test_a_broken_own_key_says_what_to_do(tmp_path: Path) -> None:
    sign.public_key()
    (tmp_path / "config" / "key").write_bytes(b"junk")
    with pytest.raises(EngineFileError, match="signing key cannot be read") as error:
        sign.public_key()
    assert "delete it" in error.value.hint


def test_without_cryptography_engines_are_saved_unsigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signed = save_sample(tmp_path / "a.redline")
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING, "redline"):
        path = save_sample(tmp_path / "b.redline")
    assert "not signed" in caplog.text
    for each in (signed, path):
        with open_file(each) as file:
            assert file.signer is None
            assert not file.trusted
