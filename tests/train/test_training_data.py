"""Data by name: bundled sets, folders, zips, IDX files, texts; and what cannot be read."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from redline.errors import InputError, RedlineError
from redline.train import load_data
from redline.train.data import Arrays, Batches


@pytest.mark.parametrize(
    ("name", "kind", "classes", "shape"),
    [
        ("digits", "classes", 10, (1, 8, 8)),
        ("iris", "classes", 3, (4,)),
        ("wine", "classes", 3, (13,)),
        ("diabetes", "values", 1, (10,)),
    ],
)
def test_bundled_sets(name, kind, classes, shape):
    data = load_data(name, split=0.2, seed=0)
    assert (data.kind, data.classes, tuple(data.shape)) == (kind, classes, shape)
    total = len(data.train) + len(data.test)
    assert abs(len(data.test) / total - 0.2) < 0.02
    again = load_data(name, split=0.2, seed=0)
    assert torch.equal(again.test.x, data.test.x)
    assert not torch.equal(load_data(name, split=0.2, seed=1).test.x, data.test.x)


def images(folder, per_class=5):
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for place in range(per_class):
            array = np.full((12, 10, 3), 40 * place + number, np.uint8)
            Image.fromarray(array).save(folder / name / f"{place}.png")


def test_folders_and_zips_of_images(tmp_path):
    images(tmp_path / "set")
    folder = load_data(str(tmp_path / "set"), split=0.2, seed=0)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    zipped = load_data(str(tmp_path / "set.zip"), split=0.2, seed=0)
    for data in (folder, zipped):
        assert data.names == ("cat", "dog")
        assert tuple(data.shape) == (3, 12, 10)
        assert len(data.train) + len(data.test) == 10
    assert torch.equal(folder.train.x, zipped.train.x)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(">BBBB", 0, 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def test_idx_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (30, 6, 6), np.uint8)
    y = np.arange(30, dtype=np.uint8) % 3
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx(x))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(y))
    data = load_data(str(tmp_path), split=0.2, seed=0)
    assert data.classes == 3
    assert tuple(data.shape) == (1, 6, 6)
    assert len(data.train) + len(data.test) == 30


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 4, 4), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(RedlineError, match="5 inputs but 4 targets"):
        load_data(str(tmp_path))


def test_a_text_becomes_windows(tmp_path):
    (tmp_path / "a.txt").write_text("hello world " * 200)
    data = load_data(str(tmp_path / "a.txt"), block=16)
    x, y = data.train[3]
    assert data.kind == "tokens"
    assert torch.equal(x[1:], y[:-1])
    assert "".join(data.names[i] for i in x.tolist()) in "hello world " * 3


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    images(tmp_path / "broken")
    (tmp_path / "broken" / "cat" / "9.png").write_bytes(b"no image")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    for name in ("empty", "broken", "bad.zip", "missing"):
        with pytest.raises(RedlineError):
            load_data(str(tmp_path / name))
    with pytest.raises(RedlineError, match="digits"):
        load_data("digit")


def test_batches_start_anywhere_and_are_shared_out():
    data = Arrays(torch.arange(23), torch.arange(23))
    whole = [x.tolist() for x, _ in Batches(data, 4, seed=1, shuffle=True).epoch(2)]
    late = [x.tolist() for x, _ in Batches(data, 4, seed=1, shuffle=True).epoch(2, start=3)]
    assert sorted(i for part in whole for i in part) == list(range(23))
    assert late == whole[3:]
    parts = [
        Batches(data, 4, seed=1, shuffle=True, rank=rank, world=2, pad=True) for rank in (0, 1)
    ]
    assert len(parts[0]) == len(parts[1])
    seen = [i for part in parts for x, _ in part.epoch(2) for i in x.tolist()]
    assert set(seen) == set(range(23))


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


def _png(value: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(held, "PNG")
    return held.getvalue()


def test_a_zip_that_reaches_outside_is_refused(tmp_path):
    path = _zip(tmp_path / "evil.zip", {"a/../../b/1.png": _png(1)})
    with pytest.raises(InputError, match="outside of the zip"):
        load_data(path)


def test_a_member_that_unpacks_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("redline.train.sources._MOST_FILE", 1000)
    path = _zip(tmp_path / "bomb.zip", {"a/1.png": bytes(100_000)})
    with pytest.raises(InputError, match="unpacks to more than"):
        load_data(path)


def test_val_is_held_out_and_test_is_left_alone(tmp_path):
    members = {f"{part}/{name}/{i}.png": _png(i) for part in ("train", "val", "test")
               for name in "ab" for i in range(2 if part == "val" else 3)}  # fmt: skip
    data = load_data(_zip(tmp_path / "three.zip", members))
    assert (len(data.train), len(data.test)) == (6, 4)


def test_a_class_without_training_images_is_told(tmp_path):
    members = {"train/a/1.png": _png(1), "test/a/1.png": _png(1), "test/b/1.png": _png(2)}
    with pytest.raises(InputError, match="no training image of class 'b'"):
        load_data(_zip(tmp_path / "odd.zip", members))


def test_an_idx_file_is_unpacked_no_further_than_its_sizes(tmp_path):
    few = idx(np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    images = tmp_path / "train-images-idx3-ubyte.gz"
    for raw, words in (
        (few + bytes(1_000_000), "more bytes"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[1 << 16] * 3), "more than 8 GiB"),
        (idx(np.zeros(32, np.uint8)), "1 dims, expected 3"),
        (few[:-1], "31 bytes"),
    ):
        images.write_bytes(gzip.compress(raw))
        with pytest.raises(InputError, match=words):
            load_data(tmp_path)
    damaged = bytearray(gzip.compress(few))
    damaged[12] ^= 0xFF
    images.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match="not an IDX file"):
        load_data(tmp_path)


def test_classes_that_are_odd_are_told(tmp_path):
    lonely = {f"{name}/{i}.png": _png(i) for name, many in (("a", 10), ("b", 1))
              for i in range(many)}  # fmt: skip
    data = load_data(_zip(tmp_path / "lonely.zip", lonely), split=0.8)
    assert data.remarks == ("not tested: class b",)
    assert {int(y) for y in data.train.y} == {0, 1}
    one = {f"a/{i}.png": _png(i) for i in range(10)}
    assert load_data(_zip(tmp_path / "one.zip", one)).remarks == (
        "all training samples are of one class",
    )
    for part, labels in (("train", [0, 0, 1]), ("t10k", [0, 2])):
        x = np.zeros((len(labels), 4, 4), np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(x))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array(labels, np.uint8)))
    assert load_data(tmp_path).remarks == (
        "not tested: class 1", "tested but not trained on: class 2",
    )  # fmt: skip
    assert load_data("digits").remarks == ()


def test_a_text_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("redline.train.sources._MOST_TEXT", 100)
    (tmp_path / "a.txt").write_text("hello world " * 20)
    with pytest.raises(InputError, match="of text"):
        load_data(tmp_path / "a.txt")


@pytest.mark.filterwarnings("ignore")  # its own
def test_hugging_face_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    # It names a table by the hash of a pickle, which dill 0.4.1 cannot make of pyarrow 26's types.
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda _: "0" * 16)
    label = datasets.ClassLabel(names=["a", "b"])
    pictures = [Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(10)]
    classes = [i % 2 for i in range(10)]
    made = {
        "pictures": ({"image": datasets.Image(), "label": label}, {"image": pictures}),
        "table": ({"u": datasets.Value("float32"), "label": label}, {"u": list(range(10))}),
        "text": ({"text": datasets.Value("string"), "label": label}, {"text": ["x"] * 10}),
    }
    for name, (features, columns) in made.items():
        columns = {**columns, "label": classes}
        one = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / name)
    data = load_data(f"hf:{tmp_path}/pictures")
    assert (data.kind, data.classes, data.shape) == ("classes", 2, (3, 8, 8))
    assert (data.names, len(data.train), len(data.test)) == (("a", "b"), 10, 10)
    assert int(data.train.x[3].max()) == 60
    table = load_data(f"hf:{tmp_path}/table")
    assert table.train.x.flatten().tolist() == list(range(10))
    assert load_data(f"hf:{tmp_path}/text").kind == "other"
    with pytest.raises(InputError, match="no dataset with a train part"):
        load_data(f"hf:{tmp_path}/missing")


def test_a_missing_datasets_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RedlineError, match="pip install datasets"):
        load_data("hf:somewhere")
