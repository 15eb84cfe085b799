"""Who reads what a layer made: seen through modules, functions and changes in place."""

import torch
from torch import nn
from torch.nn import functional
from training_kit import LOSS, Skip, in_onnxruntime

from redline.compress import Scheme, qat
from redline.compress.dataflow import flow_of
from redline.compress.lsq import Rounded


class Bottle(nn.Module):
    """As torchvision writes them: one ReLU for all, in place, and a sum in place."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.one(x))
        out = self.two(out)
        out += x
        return self.relu(out)


class Pooled(nn.Module):
    """Modules alone, and a tensor that is pooled and then read twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.inside = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = self.out(x + self.inside(x))
        return self.head(x.amax((2, 3)))


def test_sources_are_found_through_functions_and_pooling():
    flow = flow_of(Skip().eval(), (torch.rand(2, 1, 8, 8),))
    assert flow.order == ("stem", "inside", "depthwise", "out", "head")
    assert flow.source == {"out": "depthwise"}  # norms stand behind the stem, a mean before head
    assert flow.clipped == {"inside", "depthwise"}
    assert flow.last == {"head"}


def test_what_is_changed_in_place_is_another_value():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Bottle(), nn.Conv2d(8, 4, 1))
    flow = flow_of(net.eval(), (torch.rand(1, 3, 6, 6),))
    assert flow.source == {"1.one": "0", "1.two": "1.one"}  # the last reads a sum
    assert flow.clipped == {"1.one"}  # what the second makes is added first, below zero as well
    assert flow.relus == {}  # the only one reads the sum, too
    assert flow.last == {"2"}


def test_a_value_that_is_read_below_zero_as_well_is_not_cut_off():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.relu(y) - functional.elu(y)

    flow = flow_of(Both(), (torch.rand(1, 3, 4, 4),))
    assert flow.clipped == frozenset()
    assert flow.relus == {}


def test_a_negative_lower_end_is_no_relu():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardtanh(-1, 1), nn.Conv2d(8, 8, 1), nn.ReLU6())
    flow = flow_of(net, (torch.randn(1, 3, 8, 8),))
    assert flow.clipped == {"2"}
    assert flow.source == {"2": "0"}


def test_relus_go_and_pooling_stays_in_bytes(tmp_path):
    torch.manual_seed(0)
    net, x = Pooled().eval(), torch.randn(16, 3, 12, 12)
    made = qat(net, [(x, torch.zeros(16, dtype=torch.long))], LOSS, 0, scheme=Scheme("qat"))
    assert not any(isinstance(part, nn.ReLU) for part in made.modules())
    assert isinstance(made.pool, Rounded)
    with torch.no_grad():
        wanted = net(x)
        assert (made(x) - wanted).norm() < 0.05 * wanted.norm()
        torch.testing.assert_close(made.double()(x.double()).float(), made.float()(x))
    graph, found, kinds = in_onnxruntime(made, x, tmp_path)
    assert "Relu" not in [node.op_type for node in graph.graph]
    assert kinds.count("QLinearConv") == 3
    assert not {"Conv", "MaxPool", "Add", "Relu"} & set(kinds)  # all of it in bytes
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0.1, atol=0.1)


def test_a_relu_behind_a_layer_that_is_kept_stays():
    net, x = Pooled().eval(), torch.randn(4, 3, 12, 12)
    scheme = Scheme("qat", keep=frozenset({"stem.0"}))
    made = qat(net, [(x, torch.zeros(4, dtype=torch.long))], LOSS, 0, scheme=scheme)
    assert isinstance(made.stem[1], nn.ReLU)
    assert isinstance(made.pool, nn.MaxPool2d)
    assert isinstance(made.inside[1], nn.Identity)
