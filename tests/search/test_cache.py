import subprocess
import sys

from redline.measure.record import Record
from redline.search import cache as cache_module
from redline.search.cache import Cache, make_key


def test_what_is_put_can_be_got_in_another_process(tmp_path):
    Cache(tmp_path).put("k", {"record": Record("a", "b", "ok"), "rounds": (1.0, 2.0)})
    code = (
        "from pathlib import Path\n"
        "from redline.search.cache import Cache\n"
        f"print(Cache(Path({str(tmp_path)!r})).get('k')['rounds'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1.0, 2.0]"


def test_an_unknown_key_is_none_and_a_dropped_one_too(tmp_path):
    cache = Cache(tmp_path)
    assert cache.get("k") is None
    cache.put("k", 1)
    cache.drop("k")
    assert cache.get("k") is None


def test_every_fact_changes_the_key():
    base = {"graph": "g", "machine": "m", "version": "1", "candidate": "c"}
    keys = {make_key(**base)} | {make_key(**{**base, name: "other"}) for name in base}
    assert len(keys) == 5


def test_a_broken_file_is_an_empty_cache_with_a_warning(tmp_path, caplog):
    (tmp_path / "timings.sqlite").write_bytes(b"this is not a database" * 100)
    cache = Cache(tmp_path)
    cache.put("k", 1)
    assert cache.get("k") is None
    assert "cannot be used" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_empty_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("k", 1)
    assert cache.get("k") is None
    assert "cannot be used" in caplog.text


def test_parts_are_kept_and_the_oldest_go_first(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(cache_module, "_PARTS_LIMIT", 2500)
    cache = Cache(tmp_path / "cache")
    for number in range(4):
        folder = tmp_path / f"built{number}"
        folder.mkdir()
        (folder / "part.json").write_text("{}")
        (folder / "model.bin").write_bytes(b"x" * 1000)
        home = cache.keep_part(f"k{number}", folder)
        assert home.parent.name == "parts"
        os.utime(home / "part.json", (number, number))
        assert not folder.exists()
    kept = [number for number in range(4) if cache.part(f"k{number}")]
    assert 3 in kept
    assert 0 not in kept


def test_a_half_written_part_is_not_found(tmp_path):
    (tmp_path / "parts" / "k").mkdir(parents=True)
    assert Cache(tmp_path).part("k") is None
