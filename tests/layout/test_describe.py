"""`describe` for torch, NumPy and DLPack: the facts, and the pictures as text and SVG."""

import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from redline import layout
from redline.errors import InputError
from redline.layout.facts import suggested_format
from redline.layout.source import read


class Foreign:
    """Something that speaks DLPack and nothing else."""

    def __init__(self, array, versioned=True):
        self.array, self.versioned = array, versioned

    def __dlpack__(self, **options):
        if options and not self.versioned:
            raise TypeError("unexpected keyword 'max_version'")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_the_facts_of_a_permuted_slice():
    x = torch.arange(48, dtype=torch.int16).reshape(2, 4, 6)
    told = layout.describe(x[1:, ::2].permute(2, 0, 1))
    facts = told.facts
    assert (facts.shape, facts.strides, facts.offset) == ((6, 1, 2), (1, 24, 12), 24)
    assert facts.storage_bytes == 96
    assert facts.address == x.data_ptr()
    assert told.exists
    assert not told.contiguous
    assert not told.dense
    assert told.chunks == ((0,), (2,))
    assert told.write
    assert any(view.startswith("x (2, 4, 6)") for view in told.views)


def test_a_storage_that_shrank_is_noticed():
    x = torch.zeros(4)
    x.untyped_storage().resize_(0)
    told = layout.describe(x)
    assert not told.exists
    assert "holds 0" in told.exists.reason


def test_broadcast_dims_may_not_be_written():
    told = layout.describe(torch.zeros(1, 3).expand(4, 3))
    assert told.broadcast == (0,)
    assert not told.write
    assert told.write.witness == ((0, 0), (1, 0))


@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (4, 3, 1, 1), (2, 3, 5, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("move", ["to", "contiguous"])
def test_the_format_that_operators_take_it_for(shape, move):
    """An elementwise operator keeps what c10 suggests: its strides of sizes of 1 show which."""
    x = getattr(torch.zeros(shape), move)(memory_format=torch.channels_last)
    y = torch.nn.functional.avg_pool2d(x, 1)  # asks suggest_memory_format for its output
    expected = torch.empty(shape, memory_format=torch.channels_last).stride()
    suggested = suggested_format(read(x))
    if suggested == "channels_last":
        assert y.stride() == expected
    else:
        assert y.stride() == torch.empty(shape).stride()


def test_the_two_answers_about_a_single_channel():
    """.to() restrides a tensor that .contiguous() returns as it is: users.md 1.3."""
    x = torch.zeros(4, 1, 5, 5)
    kept = x.contiguous(memory_format=torch.channels_last)
    moved = x.to(memory_format=torch.channels_last)
    assert kept.stride() == (25, 25, 5, 1)
    assert moved.stride() == (25, 1, 5, 1)
    for y, suggested in ((kept, "contiguous"), (moved, "channels_last")):
        told = layout.describe(y)
        assert told.formats == ("contiguous", "channels_last")
        assert told.suggested == suggested
        assert "ambiguous" in str(told)


def test_cache_lines_of_a_walk():
    x = torch.zeros(64, 64)
    along, across = layout.describe(x).walk, layout.describe(x.t()).walk
    assert along.touched == pytest.approx(4 / 64, abs=1 / 4096)
    assert across.touched == pytest.approx(1.0, abs=1 / 64)
    assert along.least == across.least


def test_lazy_bits_are_told():
    told = layout.describe(torch.zeros(2, dtype=torch.complex64).conj())
    assert "resolve_conj" in str(told)
    assert "resolve_neg" in str(layout.describe(torch.zeros(2, dtype=torch.cfloat).conj().imag))


def test_meta_has_no_memory():
    told = layout.describe(torch.zeros(3, 4, device="meta").t())
    assert told.facts.address is None
    assert "no memory" in str(told)


def test_sparse_has_no_strides():
    with pytest.raises(InputError, match="no strides"):
        layout.describe(torch.zeros(3, 4).to_sparse())


def test_numpy_counts_bytes_and_may_go_backwards():
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    told = layout.describe(x[::-1, ::2])
    assert told.facts.strides == (-4, 2)
    assert told.facts.offset == 8
    assert told.facts.storage_bytes == 48
    assert "NumPy has negative strides" in told.exists.reason
    x.flags.writeable = False
    assert "read-only" in str(layout.describe(x))
    assert not layout.may_write(x)


def test_a_field_of_a_packed_record_is_refused():
    record = np.zeros(4, dtype=[("a", "<i4"), ("b", "<i8")])
    assert layout.describe(record["a"]).facts.strides == (3,)
    with pytest.raises(InputError, match="not multiples of the 8 bytes"):
        layout.describe(record["b"])


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack_is_read_in_place(versioned):
    x = torch.arange(24, dtype=torch.float64).reshape(4, 6)[1:].t()
    told = layout.describe(Foreign(x, versioned))
    assert told.facts.kind == "dlpack"
    assert told.facts.dtype == "float64"
    assert (told.facts.shape, told.facts.strides) == ((6, 3), (1, 6))
    assert told.facts.address == x.data_ptr()


def test_dlpack_with_negative_strides_is_described():
    x = np.arange(6, dtype=np.int16)
    told = layout.describe(Foreign(x[::-2]))
    assert (told.facts.strides, told.facts.offset) == ((-2,), 4)
    assert told.facts.address == x.ctypes.data + 2
    assert "index 2" in told.text()


def test_from_dlpack_raises_where_torch_aborts():
    x = np.arange(6)
    with pytest.raises(InputError, match=r"stride\[0\] = -1"):
        layout.from_dlpack(x[::-1])
    with pytest.raises(InputError, match="no __dlpack__"):
        layout.from_dlpack([1])
    assert layout.from_dlpack(x).data_ptr() == x.ctypes.data


def test_torch_itself_still_aborts():
    """The reason for all this: when it no longer does, this test says so."""
    code = "import numpy, torch; torch.from_dlpack(numpy.arange(3)[::-1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -6


def test_what_gives_no_capsule_says_why():
    with pytest.raises(InputError, match="require gradient"):
        layout.describe(Foreign(torch.zeros(2, requires_grad=True)))


def test_the_text_picture():
    assert (
        layout.describe(torch.arange(6).reshape(2, 3).t()[1:])
        .text(80)
        .endswith(
            textwrap.dedent(
                """\
            storage strip: the address in bytes from its start, and the index that lives there
              byte  +0  +8  +16 +24 +32 +40
              index ·   0,0 1,0 ·   0,1 1,1
              · no index of this tensor lives there

            index grid: the place in the storage of each index
              1  4
              2  5

            walk in index order: 1 4 2 5"""
            )
        )
    )


SHAPES = [(), (0,), (1,), (5,), (2, 3), (2, 1, 3), (2, 2, 2, 2), (200,), (3, 70), (100, 100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_picture_can_be_drawn(shape):
    for x in (torch.zeros(shape), torch.zeros(shape).permute(tuple(reversed(range(len(shape)))))):
        told = layout.describe(x)
        for width in (40, 100):
            cells = [line for line in told.text(width).splitlines() if line.startswith("  ")]
            assert all(len(line) <= width for line in cells if "." not in line)
        root = ElementTree.fromstring(told.svg())
        drawn = [e for e in root.iter() if e.tag.endswith("rect")]
        expected = min(x.numel(), 96) + min(x.untyped_storage().nbytes() // 4, 96) * bool(x.numel())
        assert len(drawn) == expected
        assert told.svg() in told._repr_html_()


def test_the_page_allows_no_request():
    page = layout.describe(torch.zeros(2)).html()
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_an_expanded_cell_says_that_it_holds_more_than_one_index():
    told = layout.describe(torch.zeros(2).unsqueeze(0).expand(3, 2))
    assert "more than one index" in told.text()
    assert 'class="m"' in told.svg()
