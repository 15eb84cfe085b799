"""Why a copy was made, and the change that removes it: rules as data, the first that fits wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redline.layout.facts import suggested_format
from redline.layout.source import Strided
from redline.layout.strides import is_contiguous, is_dense, may_view
from redline.layout.trace import Side, Write
from redline.layout.view import memory_order

Rule = Callable[[Write], bool]


@dataclass(frozen=True)
class Cause:
    """One kind of copy.

    Attributes:
        id: a stable name, for tests and docs.
        applies: says whether a copy is of this kind.
        why: what happened; `change`: what to write instead.
        counted: False for what is part of an operator's work and no copy of the user's.
        uncertain_on_meta: the meta device takes another path here than a real one.
    """

    id: str
    applies: Rule
    why: str
    change: str
    counted: bool = True
    uncertain_on_meta: bool = False


def _in(*names: str) -> Rule:
    """Somewhere above the copy one of these operators runs."""
    return lambda write: any(name in names for name in write.path)


def _expanded(side: Side) -> bool:
    return any(n > 1 and s == 0 for n, s in zip(side.shape, side.strides, strict=True))


def _reshaped(rank: int, order: tuple[int, ...]) -> Rule:
    """What is copied lies in memory in this order of its dims."""

    def rule(write: Write) -> bool:
        source = write.source
        return len(source.shape) == rank and memory_order(source.shape, source.strides) == order

    return rule


def _format(side: Side) -> str:
    return suggested_format(Strided("", side.dtype, 1, side.shape, side.strides))


def _mixed(write: Write) -> bool:
    """A convolution whose input and weight are in different formats, both of them dense."""
    both = [side for side in write.sizes[:3] if len(side.shape) in (4, 5)]
    formats = {_format(side) for side in both if is_dense(side.shape, side.strides)}
    return _in(*CONVOLUTIONS)(write) and len(formats - {""}) > 1


def _gradient_of(place: int) -> Rule:
    """Inside convolution_backward: of an operand's shape (gradient, input, weight), but not it."""

    def rule(write: Write) -> bool:
        if write.path[0] != "convolution_backward" or len(write.sizes) <= place:
            return False
        operand, source = write.sizes[place], write.source
        same = [side.strides for side in write.sizes if side.shape == source.shape]
        return operand.shape == source.shape and source.strides not in same

    return rule


def _unchanged(write: Write) -> bool:
    """The order of the elements stays as it was."""
    return write.source.strides == write.target.strides


def _bias(write: Write) -> bool:
    source = write.source
    line = sum(size > 1 for size in source.shape) <= 1
    return _expanded(source) or (write.is_parameter and line)


def _both(*rules: Rule) -> Rule:
    return lambda write: all(rule(write) for rule in rules)


CONVOLUTIONS = ("convolution", "_convolution", "convolution_backward")
NORMS = ("native_layer_norm", "_softmax", "_log_softmax", "native_group_norm", "rms_norm")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer_backward")
ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_attention_math")

CAUSES = (
    Cause(
        "number",
        lambda write: write.inside and write.source.shape == (),
        "a Python number becomes a tensor inside {outer}",
        "nothing",
        counted=False,
    ),
    Cause(
        "gradient-of-a-slice",
        lambda write: write.backward.startswith(
            ("SelectBackward", "SliceBackward", "DiagonalBackward", "AsStridedBackward")
        ),
        "the gradient of a slice is written into zeros",
        "nothing",
        counted=False,
    ),
    Cause(
        "device",
        lambda write: write.source.device != write.target.device,
        "a tensor is moved from {source.device} to {target.device}",
        "keep it on {target.device}: register_buffer for constants, device=x.device for new ones",
    ),
    Cause(
        "weight-cast",
        lambda write: write.source.dtype != write.target.dtype and write.is_parameter,
        "a weight is converted from {source.dtype} to {target.dtype}, in each call",
        "for inference convert once: model.to(torch.{target.dtype}), without autocast",
    ),
    Cause(
        "cast",
        lambda write: write.source.dtype != write.target.dtype,
        "a value is converted from {source.dtype} to {target.dtype}",
        "make it {target.dtype} where it is made, or let autocast end where this begins",
    ),
    Cause(
        "accumulated",
        lambda write: write.backward.endswith("AccumulateGrad"),
        "a parameter's gradient is copied into .grad: its layout is not the parameter's, or "
        "something else still holds it",
        "where the layouts differ, give the parameter the memory format of the forward pass; "
        "else nothing: later steps add to .grad in place",
    ),
    Cause(
        "gradient-expanded",
        lambda write: bool(write.backward) and _expanded(write.source),
        "the gradient arrives expanded (stride 0), and the kernel wants it whole",
        "it comes from sum() or mean() right behind: a loss that is not a bare sum has none",
    ),
    Cause(
        "bias",
        _both(_in("addmm", "baddbmm", "addmv", *CONVOLUTIONS), _bias, lambda w: not w.backward),
        "{outer} spreads its bias over the output and adds the product",
        "nothing",
        counted=False,
    ),
    Cause(
        "convolution-weight-gradient",
        _gradient_of(2),
        "the kernel makes the gradient of the weight contiguous, and the weight is {format}",
        "only a model in the plain format has no such copy; channels_last pays where the kernels "
        "gain more than this, so time both",
    ),
    Cause(
        "convolution-input-gradient",
        _gradient_of(1),
        "the kernel makes the gradient of the input with strides {source.strides}, and the input "
        "has others (convolutions of stride 2, most often)",
        "model and input both channels_last: the kernel's order is theirs",
    ),
    Cause(
        "mixed-memory-format",
        _mixed,
        "the convolution's {formats}: one of them is converted in every call",
        "both or none: model.to(memory_format=torch.channels_last) and "
        "x.to(memory_format=torch.channels_last)",
    ),
    Cause(
        "convolution-of-a-slice",
        _in(*CONVOLUTIONS),
        "the convolution takes contiguous or channels_last tensors only: {source_text}",
        "slice or permute after it, or slice the weight in the place of the activation",
    ),
    Cause(
        "norm-of-a-permuted",
        _in(*NORMS),
        "{outer} wants its input contiguous, and it has {source_text}",
        "permute afterwards; for NCHW images run the model in channels_last, where "
        "permute(0, 2, 3, 1) is contiguous already",
    ),
    Cause(
        "attention-math",
        _in(*ATTENTION),
        "the plain path of scaled_dot_product_attention copies an operand: {source_text}",
        "the fused kernels read strides: no dropout, no mask with a gradient, head sizes alike",
        uncertain_on_meta=True,
    ),
    Cause(
        "expanded",
        lambda write: _expanded(write.source) and not write.backward,
        "an expanded tensor (stride 0) is written out in full by {outer}: {source_text}",
        "keep it broadcast: enable_gqa=True in scaled_dot_product_attention in the place of "
        "repeat_interleave, or fold the broadcast dim into the rows of the product",
    ),
    Cause(
        "gradient-shared",
        lambda write: bool(write.backward) and _unchanged(write),
        "{backward} gives one gradient to two tensors, each a copy of its own (two biases)",
        "nothing",
        counted=False,
    ),
    Cause(
        "recurrent-batch-first",
        _in(*RECURRENT),
        "{outer} computes time-major and turns its input: {source_text}",
        "build it with batch_first=False and feed (time, batch, features) from the start",
    ),
    Cause(
        "product-of-strided",
        _in(*PRODUCTS),
        "no BLAS routine takes these strides: {source_text}",
        "one of the last two strides must be 1: make the operand contiguous once, outside the call",
    ),
    Cause(
        "matmul-folds",
        _in("matmul", "linear", "einsum", "tensordot"),
        "{outer} folds its batch dims into one, and they do not merge: {reason}",
        "for attention, F.scaled_dot_product_attention(q, k, v) reads these strides as they are; "
        "else bring the operand into memory order before",
    ),
    Cause(
        "embedding-indices",
        _in("embedding", "embedding_bag", "index_select"),
        "{outer} wants its indices contiguous: {source_text}",
        "transpose the result in the place of the indices, or hand them over contiguous",
    ),
    Cause(
        "head-merge",
        _both(_in("reshape", "flatten", "contiguous"), _reshaped(4, (0, 2, 1, 3))),
        "the heads are merged from a tensor in which they lie outside the sequence: {reason}",
        "F.scaled_dot_product_attention with q from view(B, S, H, D).transpose(1, 2): its output "
        "keeps that order, and transpose(1, 2).reshape(B, S, H*D) is free",
        uncertain_on_meta=True,
    ),
    Cause(
        "window",
        _both(
            _in("reshape", "contiguous", "flatten"),
            lambda write: len(write.source.shape) >= 5 and not write.backward,
        ),
        "blocks of an image (windows, shuffles, pixel shuffles) are brought together: {reason}",
        "one such copy is needed each way at most: let the reshape that follows make it and drop "
        "the .contiguous() before it, or gather roll and partition by one index_select",
    ),
    Cause(
        "gradient-of-a-split",
        lambda write: (
            bool(write.backward)
            and write.backward.startswith("ViewBackward")
            and len(write.source.shape) == 5
            and _in("reshape")(write)
        ),
        "q, k and v were permuted before they were split, so their gradients are stacked in that "
        "order: {reason}",
        "split first and permute each part: q, k, v = (t.transpose(1, 2) for t in "
        "qkv.view(B, S, 3, H, D).unbind(2))",
    ),
    Cause(
        "gradient-layout",
        lambda write: bool(write.backward),
        "{backward} wants another layout than the gradient has: {reason}",
        "the mirror of a view of the forward line: fewer permutes there, fewer copies here",
    ),
    Cause(
        "reshape",
        _in("reshape", "flatten"),
        "reshape cannot be a view here: {reason}",
        "see redline.layout.explain_view(x, {to_shape}) for free ways",
    ),
    Cause(
        "contiguous",
        _in("contiguous"),
        ".contiguous() of {source_text}",
        "drop it where the next operator reads strides (linear, matmul, attention, elementwise)",
    ),
    Cause(
        "written",
        lambda write: write.path[0] in ("copy_", "index_put_", "slice_scatter", "select_scatter"),
        "the line writes one tensor into another",
        "nothing, if it is meant (a cache); else build the result in one piece",
    ),
    Cause(
        "pad-of-nothing",
        _both(_in("pad", "constant_pad_nd"), _in("clone")),
        "pad copies its input even where it adds nothing",
        "call it only if something is to be padded",
    ),
    Cause(
        "clone",
        _in("clone"),
        "the line asks for a clone",
        "drop it where nothing writes to either tensor afterwards",
    ),
    Cause(
        "other",
        lambda write: True,
        "{outer} copies its operand: {source_text}",
        "hand it over contiguous, or make it contiguous once where several lines read it",
    ),
)


def cause_of(write: Write) -> Cause:
    """The first cause that applies."""
    return next(cause for cause in CAUSES if cause.applies(write))


def tell(write: Write, cause: Cause) -> tuple[str, str]:
    """(why, change) with this copy's own numbers."""
    words = {
        "source": write.source,
        "target": write.target,
        "outer": write.path[0],
        "backward": write.backward,
        "to_shape": write.to_shape,
        "source_text": f"{write.source.shape} with strides {write.source.strides}",
        "formats": _formats(write),
        "format": _format(write.target) or "in another format",
        "reason": reason(write),
    }
    return cause.why.format(**words), cause.change.format(**words)


def _formats(write: Write) -> str:
    names = ("gradient", "input", "weight") if write.backward else ("input", "weight")
    pairs = zip(names, write.sizes, strict=False)
    return ", ".join(f"{name} is {_format(side) or 'strided'}" for name, side in pairs)


def reason(write: Write) -> str:
    """Which dims did not merge, where a view was wanted; else which stride is out of order."""
    source = write.source
    if write.to_shape is not None:
        verdict = may_view(source.shape, source.strides, write.to_shape)
        if not verdict:
            return verdict.reason
    verdict = is_contiguous(source.shape, source.strides)
    return f"{source.shape} with strides {source.strides}: {verdict.reason}"
