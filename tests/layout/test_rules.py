"""The four meanings of legal, each held against torch on random cases."""

import itertools
import math
import random

import pytest
import torch

from redline import layout
from redline.errors import InputError, UnknownNameError
from redline.layout.overlap import shared_address
from redline.layout.strides import is_dense, standard_strides

SIZES, STRIDES = (0, 1, 1, 2, 2, 3, 4, 6), (0, 1, 2, 3, 4, 6, 8, 12, 24)


def factors(draw, count):
    """A random shape with `count` elements, some sizes 1, or with one -1."""
    found = []
    while count > 1:
        size = draw.choice([k for k in range(2, count + 1) if count % k == 0])
        found.append(size)
        count //= size
    found += [1] * draw.choice((0, 0, 1, 2))
    draw.shuffle(found)
    if found and draw.random() < 0.2:
        found[draw.randrange(len(found))] = -1
    return tuple(found)


def cases(seed, number):
    """(shape, strides, new shape): permuted, sliced, expanded and arbitrary strides."""
    draw = random.Random(seed)
    for _ in range(number):
        rank = draw.randrange(6)
        shape = [draw.choice(SIZES if draw.random() < 0.3 else (1, 2, 3, 4)) for _ in range(rank)]
        strides = list(standard_strides(shape))
        if draw.random() < 0.3:
            strides = [draw.choice(STRIDES) for _ in shape]
        else:
            order = draw.sample(range(rank), rank) if draw.random() < 0.6 else list(range(rank))
            shape, strides = [shape[d] for d in order], [strides[d] for d in order]
            if rank and draw.random() < 0.4:
                dim = draw.randrange(rank)
                strides[dim] = draw.choice((0, 2 * strides[dim], 3 * strides[dim]))
        count = math.prod(shape)
        if count and draw.random() < 0.97:
            new = factors(draw, count)
        else:
            new = tuple(draw.choice((-1, 0, 1, 2, 6)) for _ in range(draw.randrange(4)))
        yield tuple(shape), tuple(strides), new


STORAGE = torch.arange(4096.0)


@pytest.mark.timeout(600)  # seconds of work, but a shared machine may hold it for minutes
def test_explain_view_agrees_with_torch_on_fifty_thousand_cases():
    legal = refused = 0
    for shape, strides, new in cases(seed=13, number=52_000):
        tensor = STORAGE.as_strided(shape, strides)
        try:
            expected = tensor.view(new).stride()
        except RuntimeError:
            expected = None
        told = layout.explain_view(tensor, new)
        assert (told.strides if told.legal else None) == expected, (shape, strides, new)
        legal, refused = legal + told.legal, refused + (not told.legal)
    assert legal > 15_000
    assert refused > 15_000


def test_every_alternative_is_legal_and_free_and_keeps_its_word():
    seen = {True: 0, False: 0}
    for shape, strides, new in cases(seed=5, number=4000):
        tensor = STORAGE.as_strided(shape, strides)
        for one in layout.explain_view(tensor, new).alternatives:
            name, _, rest = one.code.partition("(")
            given = eval(f"tensor.{name}({rest}")
            assert tuple(given.shape) == one.shape
            assert given.data_ptr() == tensor.data_ptr()
            same = torch.equal(given.reshape(-1), tensor.reshape(-1))
            assert same or not one.same_order
            seen[one.same_order] += 1
    assert min(seen.values()) > 100


def test_a_refusal_costs_what_reshape_writes():
    x = torch.zeros(4, 6, dtype=torch.float64).t()
    assert layout.explain_view(x, -1).cost_bytes == 4 * 6 * 8
    assert layout.explain_view(x, (6, 4)).cost_bytes == 0
    assert layout.explain_view(x, (5, 5)).cost_bytes is None


@pytest.mark.parametrize(
    ("make", "shape", "legal"),
    [
        (lambda: torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), (4, 6), True),
        (lambda: torch.arange(24).reshape(2, 3, 4).permute(1, 0, 2), (3, 8), False),
        (lambda: torch.zeros(1).expand(12), (3, 4), True),
        (lambda: torch.zeros(1, 3).expand(4, 3), (2, 2, 3), True),
        (lambda: torch.zeros(1, 3).expand(4, 3), (12,), False),
        (lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (2, 60), False),
        (lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (2, 3, -1), True),
    ],
)
def test_the_cases_worth_a_picture(make, shape, legal):
    told = layout.explain_view(make(), shape)
    assert told.legal is legal
    assert bool(layout.may_view(make(), shape)) is legal
    if not legal:
        assert "do not merge" in told.reason


def test_the_reason_names_the_dims_and_their_numbers():
    x = torch.arange(24).reshape(2, 3, 4).permute(1, 0, 2)
    told = layout.explain_view(x, (3, 8))
    assert "dims 1 and 2 do not merge: stride[1] = 12, but size[2]*stride[2] = 4*1 = 4" in str(told)
    assert "new dim 1 (size 8)" in told.reason
    assert [one.code for one in told.alternatives] == [
        "view(3, 2, 4)",
        "transpose(0, 1).view(3, 8)",
    ]


DTYPES = (torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex128)


def test_view_of_another_dtype_agrees_with_torch():
    draw, seen = random.Random(3), set()
    storages = {dtype: torch.zeros(4096, dtype=dtype) for dtype in DTYPES}
    for shape, strides, _ in cases(seed=3, number=3000):
        old, new = draw.choice(DTYPES), draw.choice(DTYPES)
        strides = (*strides[:-1], 1) if strides and draw.random() < 0.7 else strides
        tensor = storages[old].as_strided(shape, strides, draw.choice((0, 0, 1, 2, 4)))
        try:
            expected = tensor.view(new).stride()
        except RuntimeError:
            expected = None
        told = layout.explain_view(tensor, new)
        assert told.strides == expected, (shape, strides, old, new, told.reason)
        seen.add(told.legal)
    assert seen == {True, False}


def test_may_exist_agrees_with_as_strided():
    storage, seen, draw = torch.zeros(12), set(), random.Random(7)
    for _ in range(4000):
        rank = draw.randrange(4)
        shape = tuple(draw.choice((0, 1, 2, 3, 5)) for _ in range(rank))
        strides = tuple(draw.choice((-1, 0, 1, 2, 3, 6)) for _ in range(rank))
        offset = draw.choice((-1, 0, 0, 0, 1, 5, 13))
        try:
            storage.as_strided(shape, strides, offset)
            made = True
        except RuntimeError:
            made = False
        told = layout.may_exist(shape, strides, offset, storage=12)
        assert bool(told) is made, (shape, strides, offset, told.reason)
        seen.add(made)
    assert seen == {True, False}
    assert not layout.may_exist((2, 3), (1,))


def test_contiguous_and_dense_agree_with_torch():
    for shape, strides, _ in cases(seed=1, number=6000):
        tensor = STORAGE.as_strided(shape, strides)
        assert bool(layout.is_contiguous(tensor)) is tensor.is_contiguous(), (shape, strides)
        dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
        assert is_dense(shape, strides) is dense, (shape, strides)
        names = {4: "channels_last", 5: "channels_last_3d"}
        if tensor.ndim in names:
            format = getattr(torch, names[tensor.ndim])
            told = layout.is_contiguous(tensor, format)
            assert bool(told) is tensor.is_contiguous(memory_format=format), (shape, strides)


def test_channels_last_is_for_four_dims_and_names_are_checked():
    assert not layout.is_contiguous(torch.zeros(2, 3, 4), "channels_last")
    with pytest.raises(UnknownNameError, match="did you mean 'channels_last'"):
        layout.is_contiguous(torch.zeros(2), "channel_last")


def test_may_write_finds_every_overlap_and_torch_only_stride_zero():
    refused = silent = 0
    for shape, strides, _ in cases(seed=9, number=4000):
        tensor = STORAGE.as_strided(shape, strides)
        told = layout.may_write(tensor)
        indices = list(itertools.product(*map(range, shape)))
        places = [sum(map(math.prod, zip(index, strides, strict=True))) for index in indices]
        assert bool(told) is (len(set(places)) == len(places)), (shape, strides)
        try:
            tensor.mul_(1)
            raised = False
        except RuntimeError:
            raised = True
        assert raised is ("torch refuses" in told.reason)
        if told.witness:
            first, second = (indices.index(index) for index in told.witness)
            assert first != second
            assert places[first] == places[second]
        refused, silent = refused + raised, silent + (not told and not raised)
    assert refused > 100
    assert silent > 100


def test_a_large_overlap_is_found_without_listing_addresses():
    assert shared_address((1000, 1000, 1000), (1_100_003, 1009, 1)) is None
    first, second = shared_address((1000, 1000, 1000), (1_000_000, 999, 1))
    strides = (1_000_000, 999, 1)
    assert first != second
    assert sum(a * b for a, b in zip(first, strides, strict=True)) == sum(
        a * b for a, b in zip(second, strides, strict=True)
    )


def test_a_list_is_no_tensor():
    with pytest.raises(InputError, match="a list is no tensor"):
        layout.may_write([1, 2])
