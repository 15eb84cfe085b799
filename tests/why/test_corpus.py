"""Every entry of the corpus, provoked for real."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

import redline
from redline.corpus import ENTRIES
from redline.diagnosis import why

X = torch.zeros(3, 4)


def assert_strides():
    torch._C._dynamo.guards.assert_size_stride(X.t(), (4, 3), (3, 1))


def in_place():
    a = torch.zeros(3, 4, requires_grad=True)
    b = a.sigmoid()
    b.add_(1)
    b.sum().backward()


def backward_twice():
    a = torch.ones(2, requires_grad=True)
    b = (a * a).sum()
    b.backward()
    b.backward()


def leaf_in_place():
    torch.ones(2, requires_grad=True).add_(1)


def inference_tensor():
    with torch.inference_mode():
        a = torch.zeros(2)
    (a * torch.ones(2, requires_grad=True)).sum().backward()


def whole_module():
    file = io.BytesIO()
    torch.save(nn.Linear(2, 2), file)
    file.seek(0)
    torch.load(file)


MISMATCH = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
torch.library.register_fake("torchvision::nms", lib=library)(lambda *args: args[0])
"""


def without_torchvision():
    """As torchvision's own code does it, where its compiled operators were not loaded."""
    done = subprocess.run(
        [sys.executable, "-c", MISMATCH], capture_output=True, text=True, check=False
    )
    raise RuntimeError(done.stderr)


def recompiles():
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True, dynamic=False)
    def plus(a):
        return a + 1

    for size in range(2, 14):
        plus(torch.zeros(size))


def no_compiler():
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search(("no-such-compiler",))


PROVOKED = {
    "view-strides": (lambda: X.t().view(-1), "reshape(-1) copies 48 bytes"),
    "view-dtype": (lambda: X.t().view(torch.uint8), "from Float to Byte"),
    "assert-size-stride": (assert_strides, "stride 1; it was compiled for size 4 and stride 3"),
    "inplace-version": (in_place, "`b` has this shape and version (1)"),
    "expanded-write": (lambda: torch.zeros(3).expand(2, 3).add_(1), "clone() after expand()"),
    "out-of-storage": (lambda: torch.zeros(3).as_strided((3, 3), (3, 1)), "reaches 36 bytes"),
    "channels-last-rank": (
        lambda: torch.zeros(2, 3, 4).to(memory_format=torch.channels_last),
        "channels_last is for tensors of 4 dims only",
    ),
    "numpy-negative-strides": (lambda: torch.from_numpy(np.arange(3)[::-1]), "runs backwards"),
    "numpy-of-a-gradient": (lambda: torch.zeros(2, requires_grad=True).numpy(), "detach()"),
    "numpy-lazy-bit": (lambda: torch.zeros(2, dtype=torch.cfloat).conj().numpy(), "resolve_conj"),
    "numpy-bfloat16": (lambda: torch.zeros(2).bfloat16().numpy(), "NumPy has no BFloat16"),
    "linear-shapes": (lambda: nn.Sequential(nn.Linear(5, 2))(X), "the layer is 0: Linear("),
    "conv-channels": (
        lambda: nn.Conv2d(8, 4, 3)(torch.zeros(2, 6, 6, 8)),
        "dim 3 of the input has 8: the channels come last",
    ),
    "conv-rank": (lambda: nn.Conv2d(8, 4, 3)(torch.zeros(6, 6)), "conv2d takes 3D (unbatched)"),
    "conv-kernel": (
        lambda: nn.Conv2d(3, 4, 7)(torch.zeros(2, 3, 6, 6)),
        "a kernel of 7 x 7 does not fit in an input of 6 x 6",
    ),
    "cat-sizes": (
        lambda: torch.cat([torch.zeros(2, 3), torch.zeros(3, 3)], 1),
        "tensor 1 has 3 where the first has 2",
    ),
    "cat-ranks": (lambda: torch.cat([torch.zeros(2, 3), torch.zeros(3)]), "of 2 and 1 dims"),
    "stack-sizes": (lambda: torch.stack([X, torch.zeros(3)]), "stack of (3, 4) and, at place 1"),
    "broadcast": (lambda: torch.zeros(2, 3) + torch.zeros(4), "3 against 4 in dim 1"),
    "expand-sizes": (lambda: torch.zeros(3).expand(2, 4), "cannot be expanded to 4"),
    "reshape-count": (lambda: X.reshape(2, 3), "a dim of 2 is missing"),
    "device-mismatch": (lambda: nn.Linear(4, 2).to("meta")(X), "in Linear: meta: weight, bias"),
    "dtype-mismatch": (lambda: nn.Linear(4, 2)(X.double()), "different dtypes"),
    "index-dtype": (lambda: nn.Embedding(3, 2)(X), "got torch.FloatTensor"),
    "index-range": (lambda: nn.Embedding(3, 2)(torch.tensor([5])), "num_embeddings"),
    "target-range": (
        lambda: F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 5])),
        "a class label of 5",
    ),
    "target-rank": (
        lambda: F.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.long)),
        "squeeze(1)",
    ),
    "norm-one-value": (lambda: nn.BatchNorm1d(3)(torch.zeros(1, 3)), "drop_last=True"),
    "norm-shape": (lambda: nn.LayerNorm(3)(torch.zeros(1, 4)), "layer_norm over (3) got (1, 4)"),
    "backward-twice": (backward_twice, "detach()"),
    "no-graph": (lambda: torch.zeros(2).sum().backward(), "without a graph"),
    "backward-scalar": (lambda: (torch.zeros(2, requires_grad=True) * 2).backward(), "mean()"),
    "leaf-in-place": (leaf_in_place, "torch.no_grad()"),
    "inference-tensor": (inference_tensor, "torch.no_grad()"),
    "state-dict": (
        lambda: nn.Linear(2, 2).load_state_dict({"module.weight": torch.zeros(2, 2)}),
        "the names differ by the prefix 'module.'",
    ),
    "weights-only": (whole_module, "would run code"),
    "torchvision-build": (without_torchvision, "built for another torch"),
    "recompile-limit": (recompiles, "mark_dynamic"),
    "no-compiler": (no_compiler, "g++"),
}


def provoke(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the text is what is asked about
        function()
    return caught.value


@pytest.mark.parametrize("id", PROVOKED)
def test_the_real_error_is_explained(id):
    function, words = PROVOKED[id]
    error = provoke(function)
    told = why(error)
    assert told.id == id, str(error)
    assert words in str(told).replace("\n    ", " ")
    assert "{" not in told.what + told.why + told.change
    assert why(f"{type(error).__name__}: {error}").id == id  # from the words alone


def test_more_dtypes_and_devices():
    for error in (
        provoke(lambda: nn.Conv2d(3, 2, 1)(torch.zeros(1, 3, 4, 4).half())),
        provoke(lambda: X @ torch.zeros(4, 2, dtype=torch.long)),
    ):
        assert why(error).id == "dtype-mismatch"
    assert why(provoke(lambda: X + X.to("meta"))).id == "device-mismatch"


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_the_warning_of_ddp(one_process):
    """The strides of users' reports: a 1x1 convolution whose input is channels_last."""
    model = torch.nn.parallel.DistributedDataParallel(nn.Conv2d(6, 180, 1))
    x = torch.randn(2, 6, 6, 6).to(memory_format=torch.channels_last)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(x).sum().backward()
    (warning,) = [one.message for one in caught if "bucket view" in str(one.message)]
    told = why(warning)
    assert told.id == "ddp-strides"
    assert "strides (6, 1, 6, 6), DDP's bucket has (6, 1, 1, 1)" in told.what
    assert "of size 1, whose stride addresses nothing" in str(told)


def test_every_entry_is_provoked():
    assert {entry.id for entry in ENTRIES} == {*PROVOKED, "ddp-strides"}


def test_every_entry_is_on_the_page(root):
    page = (root / "docs/why.md").read_text(encoding="utf-8")
    assert [entry.id for entry in ENTRIES if f"`{entry.id}`" not in page] == []


def test_it_is_a_public_name():
    assert redline.why is why
