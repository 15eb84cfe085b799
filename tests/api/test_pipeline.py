"""A Hugging Face pipeline whose model was replaced by its engine."""

import pytest

import redline
import torchvision_ops  # noqa: F401 - transformers imports torchvision where there is one

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "strides", "are", "legal", "a", "view", "copies"]


@pytest.fixture
def pipe(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(vocabulary))
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)


def test_a_pipeline_stays_one(pipe):
    texts = ["strides are legal", "a view copies", "legal"]
    before = pipe(texts)
    tokens = pipe.tokenizer(texts[:2], padding=True, return_tensors="pt")
    dims = {0: ("batch", 1, 2, 4), 1: ("length", 2, 5, 16)}
    engine = redline.optimize(
        pipe,
        tokens,
        backends=["onnxruntime"],
        budget="40s",
        dynamic=dict.fromkeys(tokens, dims),
    )
    assert engine.config is pipe.model.config
    output = engine(**tokens)
    assert type(output).__name__ == "SequenceClassifierOutput"
    pipe.model = engine
    for old, new in zip(before, pipe(texts), strict=True):
        assert old["label"] == new["label"]
        assert old["score"] == pytest.approx(new["score"], abs=1e-4)
