"""The page about the format names tests that exist, and numbers that are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from redline import engine
from redline.engine import archive, validate

PAGE = (Path(engine.__file__).parent / "FORMAT.md").read_text()


def test_every_attack_of_the_page_has_its_test_and_the_other_way_round() -> None:
    here = Path(__file__).parent
    written = "".join(path.read_text() for path in here.glob("test_*_attacks.py"))
    there = set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named <= there
    soundness = {
        "test_the_sample_is_sound",
        "test_a_sound_graph_passes",
        "test_a_zip_without_a_manifest",
        "test_every_flipped_byte_of_the_directory_is_seen_or_harmless",
    }
    assert there - named == soundness


def test_the_limits_of_the_page_are_the_codes() -> None:
    assert f"{archive.MAX_MEMBERS} members, {archive.MAX_DIRECTORY >> 20} MiB of directory" in PAGE
    assert f"{validate.MAX_MANIFEST >> 20} MiB of manifest, {validate.MAX_PARTS} parts" in PAGE
    assert f"{validate.MAX_TENSORS} tensors, rank {validate.MAX_RANK}" in PAGE
    assert f"trees {validate.MAX_DEPTH} deep" in PAGE
    assert f"at most {archive.MAX_NAME} characters" in PAGE
