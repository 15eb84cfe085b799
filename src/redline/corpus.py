"""The texts that people meet when they run PyTorch, each with what it means and what to change.

The table is data: `redline.why` matches a pattern against the chain of exceptions, the first that
fits wins, and {names} are filled in from the pattern's groups. tests/why/ provokes the real error
of every row. Failures of export and of compilers are in capture/failures.py and are asked next.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One text: how it reads, what it means, whose it is, and what to change.

    Attributes:
        id: a stable name, for tests and docs.
        pattern: a regular expression, matched with DOTALL.
        what: what happened, in words.
        why: the rule behind it.
        change: what to write instead.
        fault: "your code", "the input", "the framework" or "the machine".
        look: the name of the function in diagnosis.py that adds numbers from this very case.
    """

    id: str
    pattern: str
    what: str
    why: str
    change: str
    fault: str = "your code"
    look: str = ""


_N = r"\[([\d, ]*)\]"

ENTRIES = (
    Entry(
        "view-strides",
        r"view size is not compatible with input tensor's size and stride",
        "view() would have to copy, and it never does",
        "a dim of the new shape would span two dims of the tensor that are not one run in memory; "
        "this happens after transpose, permute, slices and channels_last",
        "reshape() copies when it must; a view that splits along the borders of memory is free",
        look="view",
    ),
    Entry(
        "view-dtype",
        r"self\.(?:stride|size|storage_offset)\(.*?\) must be .*to view (?P<old>\w+) as "
        r"(?P<new>\w+)",
        "view(dtype) from {old} to {new} needs other strides, sizes or offset",
        "elements of another size are cut or joined along the last dim, whose stride must be 1",
        "t.contiguous().view(dtype), or to(dtype) if the values and not the bytes are meant",
    ),
    Entry(
        "ddp-strides",
        r"Grad strides do not match bucket view strides.*?"
        r"grad\.sizes\(\) = \[(?P<sizes>[\d, ]*)\], strides\(\) = \[(?P<grad>[\d, ]*)\].*?"
        r"bucket_view\.sizes\(\) = \[[\d, ]*\], strides\(\) = \[(?P<bucket>[\d, ]*)\]",
        "a gradient of shape ({sizes}) has strides ({grad}), DDP's bucket has ({bucket})",
        "DDP laid out its bucket by the parameter's strides when it was built, and the kernel made "
        "the gradient in another memory format; each step then copies this gradient",
        "put model and input in one memory format before DDP is built: "
        "model.to(memory_format=torch.channels_last), or neither",
        look="ddp",
    ),
    Entry(
        "assert-size-stride",
        r"expected size (?P<size>\d+)==(?P<wanted>\d+), stride (?P<stride>\d+)==(?P<expected>\d+) "
        r"at dim=(?P<dim>\d+)",
        "compiled code got a tensor whose dim {dim} has size {size} and stride {stride}; it was "
        "compiled for size {wanted} and stride {expected}",
        "the compiler trusts the shapes and strides that it was told when tracing; a custom "
        "operator's fake kernel that tells others, or a weight whose memory format changed after "
        "compiling, breaks that",
        "make the fake kernel return empty_strided with the real strides "
        "(torch.library.opcheck tells), or .contiguous() at the border; compile after the last "
        ".to(memory_format=...)",
        look="stride",
    ),
    Entry(
        "inplace-version",
        r"modified by an inplace operation: \[(?P<type>[\w.]+) \[(?P<sizes>[\d, ]*)\]\]"
        r"(?:, which is output (?P<output>\d+) of (?P<node>\w+),)? is at version "
        r"(?P<now>\d+); expected version (?P<then>\d+)",
        "a tensor of shape ({sizes}) that the backward pass needs was written to: it was saved at "
        "version {then} and is at version {now}",
        "every write in place adds 1 to a tensor's version; {node} saved it to compute its "
        "gradient, which would now come out wrong",
        "write out of place (y = y + 1 in the place of y += 1), or write to a clone, or write "
        "before it is used",
        look="versions",
    ),
    Entry(
        "expanded-write",
        r"more than one element of the written-to tensor refers to a single memory location",
        "a write to a tensor in which several indices are one element",
        "expand() repeats by stride 0: one element stands for a whole dim, so a write would change "
        "all of them",
        "clone() after expand(), or write before expanding; other overlaps (unfold, as_strided) "
        "torch does not notice: redline.layout.may_write(t) does",
    ),
    Entry(
        "out-of-storage",
        r"setStorage: sizes \[(?P<sizes>[\d, ]*)\], strides \[(?P<strides>[\d, ]*)\], storage "
        r"offset (?P<offset>\d+), and itemsize (?P<item>\d+) requiring a storage size of "
        r"(?P<need>\d+) are out of bounds for storage of size (?P<have>\d+)",
        "shape ({sizes}) with strides ({strides}) from offset {offset} reaches {need} bytes, the "
        "storage has {have}",
        "the last address is offset + sum((size - 1) * stride), in elements of {item} bytes",
        "smaller sizes or strides; redline.layout.may_exist(shape, strides, offset, "
        "storage) checks",
    ),
    Entry(
        "channels-last-rank",
        r"required rank (?P<rank>\d) tensor to use (?P<format>\w+) format",
        "{format} is for tensors of {rank} dims only",
        "torch names no such format for other ranks, so Conv1d has none",
        "leave the format out for this tensor, or unsqueeze a dim and use Conv2d",
    ),
    Entry(
        "numpy-negative-strides",
        r"At least one stride in the given numpy array is negative",
        "a NumPy array that runs backwards was given to torch",
        "x[::-1] and np.flip make views with negative strides, which torch cannot hold; and "
        "torch.from_dlpack ends the process on them",
        "np.ascontiguousarray(x), or torch.flip of the tensor (both copy); "
        "redline.layout.from_dlpack raises in the place of aborting",
    ),
    Entry(
        "numpy-of-a-gradient",
        r"Can't call numpy\(\) on Tensor that requires grad",
        "numpy() of a tensor that is part of a graph",
        "NumPy could write to it without autograd's knowledge",
        "t.detach().numpy()",
    ),
    Entry(
        "numpy-lazy-bit",
        r"Can't call numpy\(\) on Tensor that has (?P<bit>\w+) bit set",
        "numpy() of a tensor whose {bit} bit is set",
        "conj() and .imag only note what to do; nothing was computed yet, and NumPy knows "
        "no such bit",
        "t.resolve_conj().resolve_neg().numpy(), which copies",
    ),
    Entry(
        "numpy-bfloat16",
        r"Got unsupported ScalarType (?P<dtype>BFloat16|Float8\w*)",
        "NumPy has no {dtype}",
        "NumPy knows the types of C",
        "t.float().numpy()",
    ),
    Entry(
        "linear-shapes",
        r"mat1 and mat2 shapes cannot be multiplied \((?P<m>\d+)x(?P<k>\d+) and "
        r"(?P<k2>\d+)x(?P<n>\d+)\)",
        "the layer takes {k2} features, and its input has {k} in the last dim",
        "Linear({k2}, {n}) multiplies the last dim; the {m} rows are all other dims together",
        "nn.Linear({k}, {n}), or flatten or transpose the input so that its last dim is "
        "{k2}; behind "
        "convolutions that number changes with the size of the image: nn.LazyLinear({n}) finds it",
        look="module",
    ),
    Entry(
        "conv-channels",
        r"Given groups=(?P<groups>\d+), weight of size \[(?P<weight>[\d, ]*)\], expected "
        r"input\[(?P<shape>[\d, ]*)\] to have (?P<want>\d+) channels, but got (?P<got>\d+)",
        "the convolution takes {want} channels, and its input ({shape}) has {got} in dim 1",
        "torch's images are (batch, channels, height, width)",
        "nn.Conv2d({got}, ...), or permute(0, 3, 1, 2) if the channels come last",
        look="channels",
    ),
    Entry(
        "conv-rank",
        r"Expected (?P<want>\dD \(unbatched\) or \dD \(batched\)) input to (?P<op>\w+), but "
        r"got input "
        r"of size: \[(?P<shape>[\d, ]*)\]",
        "{op} takes {want} input, and got ({shape})",
        "a dim is missing or too many: most often the batch, or the channel of grey images",
        "x.unsqueeze(0) for the batch, x.unsqueeze(1) for one channel",
    ),
    Entry(
        "conv-kernel",
        r"Calculated padded input size per channel: \((?P<size>[\dx ]+)\)\. Kernel size: "
        r"\((?P<kernel>[\dx ]+)\)\. Kernel size can't be greater",
        "a kernel of {kernel} does not fit in an input of {size}",
        "every stride and pooling before it made the image smaller",
        "larger images, padding, or fewer strides",
        fault="the input",
    ),
    Entry(
        "cat-sizes",
        r"Sizes of tensors must match except in dimension (?P<dim>\d+)\. Expected size "
        r"(?P<want>\d+) "
        r"but got size (?P<got>\d+) for tensor number (?P<index>\d+)",
        "cat along dim {dim}: tensor {index} has {got} where the first has {want}",
        "all dims but {dim} must be alike",
        "another dim in cat, or make the sizes alike (pad, crop, interpolate)",
    ),
    Entry(
        "cat-ranks",
        r"Tensors must have same number of dimensions: got (?P<a>\d+) and (?P<b>\d+)",
        "cat of tensors of {a} and {b} dims",
        "cat joins along a dim that all have; stack makes a new one",
        "unsqueeze the smaller one, or torch.stack if all are alike",
    ),
    Entry(
        "stack-sizes",
        r"stack expects each tensor to be equal size, but got \[(?P<a>[\d, ]*)\] at entry 0 and "
        r"\[(?P<b>[\d, ]*)\] at entry (?P<index>\d+)",
        "stack of ({a}) and, at place {index}, ({b})",
        "stack needs equal shapes; a DataLoader stacks the items of a batch",
        "pad or crop the items in the dataset, or give the DataLoader a collate_fn",
        fault="the input",
    ),
    Entry(
        "broadcast",
        r"The size of tensor a \((?P<a>\d+)\) must match the size of tensor b \((?P<b>\d+)\) at "
        r"non-singleton dimension (?P<dim>\d+)",
        "{a} against {b} in dim {dim}",
        "sizes are compared from the last dim; each pair must be equal, or one of them 1",
        "unsqueeze one of them so that the dims stand below each other, or mend the size",
    ),
    Entry(
        "expand-sizes",
        r"The expanded size of the tensor \((?P<a>\d+)\) must match the existing size "
        r"\((?P<b>\d+)\) "
        r"at non-singleton dimension (?P<dim>\d+)",
        "dim {dim} has size {b} and cannot be expanded to {a}",
        "only dims of size 1 can be expanded, by stride 0",
        "unsqueeze where the new dim belongs, or repeat() to copy",
    ),
    Entry(
        "reshape-count",
        r"shape '\[(?P<shape>[-\d, ]*)\]' is invalid for input of size (?P<count>\d+)",
        "({shape}) does not hold {count} elements",
        "a reshape keeps the number of elements; a batch or image size written as a number in the "
        "code breaks with the next one",
        "take sizes from the input (x.shape[0], or -1 for one of them)",
        look="count",
    ),
    Entry(
        "device-mismatch",
        r"Tensor on device (?P<a>\S+) is not on the expected device (?P<b>[\w:]+)|"
        r"Expected all tensors to be on the same device",
        "tensors on two devices meet in one operation",
        "torch moves nothing by itself: parameters and buffers follow model.to(device), plain "
        "attributes and new tensors do not",
        "register_buffer for constants, device=x.device for new tensors, and move the input",
        look="devices",
    ),
    Entry(
        "dtype-mismatch",
        r"mat1 and mat2 must have the same dtype, but got (?P<a>\w+) and (?P<b>\w+)|"
        r"Input type \((?P<a2>[\w:]+)\) and (?:weight|bias) type \((?P<b2>[\w:]+)\) should "
        r"be the same|"
        r"expected m1 and m2 to have the same dtype, but got: (?P<a3>.+?) != (?P<b3>[\w ]+)",
        "the input and the weights have different dtypes",
        "torch converts nothing in a product; NumPy's floats are float64, a model's are float32",
        "x.to(next(model.parameters()).dtype), or model.to(x.dtype); for mixed precision autocast",
    ),
    Entry(
        "index-dtype",
        r"Expected tensor for argument #\d 'indices' to have one of the following scalar "
        r"types: Long, "
        r"Int; but got (?P<type>[\w.]+)",
        "an embedding got {type} in the place of whole numbers",
        "it looks rows up by index",
        "x.long()",
    ),
    Entry(
        "index-range",
        r"index out of range in self",
        "an index is as large as the table or larger, or negative",
        "an embedding of n rows takes 0 to n - 1; a tokenizer with more words than the "
        "model is the "
        "usual reason",
        "compare x.max() with num_embeddings; model.resize_token_embeddings in transformers",
        fault="the input",
    ),
    Entry(
        "target-range",
        r"Target (?P<target>-?\d+) is out of bounds",
        "a class label of {target} is outside of what the network gives",
        "n outputs stand for the labels 0 to n - 1",
        "as many outputs as classes, labels from 0, ignore_index for those that do not count",
        fault="the input",
    ),
    Entry(
        "target-rank",
        r"0D or 1D target tensor expected, multi-target not supported",
        "cross_entropy got class labels in a column",
        "labels have the shape of the input without its class dim",
        "target.squeeze(1)",
    ),
    Entry(
        "norm-one-value",
        r"Expected more than 1 value per channel when training, got input size "
        r"torch\.Size\(\[(?P<shape>[\d, ]*)\]\)",
        "batch normalisation got one value a channel: ({shape})",
        "in training it divides by the spread of the batch, which one value does not have",
        "drop_last=True in the DataLoader, or model.eval() if this is not training",
        fault="the input",
    ),
    Entry(
        "norm-shape",
        r"Given normalized_shape=\[(?P<want>[\d, ]*)\], expected input with shape .*?but "
        r"got input of "
        r"size\s*\[(?P<got>[\d, ]*)\]",
        "layer_norm over ({want}) got ({got})",
        "it normalises the last dims",
        "the size of the last dim in nn.LayerNorm, or permute so that the channels come last",
    ),
    Entry(
        "backward-twice",
        r"Trying to backward through the graph a second time",
        "backward() of a graph that was freed by the first one",
        "saved tensors are freed on the way; a state kept from the last step (a hidden state, a "
        "running loss) ties the steps together",
        "detach() what is carried from step to step; retain_graph=True only if both are meant",
    ),
    Entry(
        "no-graph",
        r"element 0 of tensors does not require grad and does not have a grad_fn",
        "backward() of a tensor without a graph",
        "nothing that led to it needs a gradient: no_grad, detach, .item(), argmax or NumPy on the "
        "way, or frozen parameters",
        "look for the first tensor of the chain with requires_grad=False",
    ),
    Entry(
        "backward-scalar",
        r"grad can be implicitly created only for scalar outputs",
        "backward() of a tensor with more than one element",
        "a gradient is of one number",
        "loss.mean().backward(), or hand over the gradient of each element",
    ),
    Entry(
        "leaf-in-place",
        r"leaf Variable that requires grad is being used in an in-place operation",
        "a parameter was written to where autograd watches",
        "a leaf has no history to which the write could be added",
        "with torch.no_grad(): around initialisation and updates, or write out of place",
    ),
    Entry(
        "inference-tensor",
        r"Inference tensors cannot be saved for backward",
        "a tensor made under inference_mode is used in training",
        "such tensors carry no versions, so autograd cannot trust them",
        "make it under torch.no_grad(), or clone() it outside",
    ),
    Entry(
        "state-dict",
        r"Error\(s\) in loading state_dict for (?P<module>\w+)",
        "the weights are not those of this {module}",
        "names and shapes must be the same; a prefix such as 'module.' (DDP) or '_orig_mod.' "
        "(compile) is the usual difference in names, the number of classes the one in shapes",
        "strip the prefix with torch.nn.modules.utils.consume_prefix_in_state_dict_if_present, or "
        "build the model as it was when saved",
        look="keys",
    ),
    Entry(
        "weights-only",
        r"Weights only load failed",
        "the file holds more than weights, and reading the rest would run code",
        "torch.load unpickles; since 2.6 it refuses what is not a tensor or a plain container",
        "save state_dict() or safetensors and load that; weights_only=False only for files "
        "that you "
        "made yourself",
        fault="the input",
    ),
    Entry(
        "torchvision-build",
        r"operator torchvision::nms does not exist",
        "torchvision was built for another torch",
        "the two come from different wheel indexes (a CPU torch beside a CUDA torchvision, most "
        "often), so its compiled operators were not loaded",
        "install both from one index: pip install --force-reinstall torch torchvision --index-url "
        "https://download.pytorch.org/whl/cpu",
        fault="the machine",
    ),
    Entry(
        "recompile-limit",
        r"FailOnRecompileLimitHit|hit config\.(?:cache_size|recompile)_limit",
        "torch.compile gave up after too many versions of one function",
        "each guard that fails (a shape, a Python number, a flag) compiles another version; beyond "
        "the limit it runs in eager, or fails with fullgraph=True",
        "torch._dynamo.mark_dynamic(x, dim), pad to a few sizes, or make numbers tensors; "
        "TORCH_LOGS=recompiles says which guard",
    ),
    Entry(
        "no-compiler",
        r"InvalidCxxCompiler|No working C\+\+ compiler found",
        "torch.compile found no C++ compiler",
        "Inductor writes C++ for the CPU and has it compiled on this machine",
        "apt install g++ (or set CXX); redline doctor says what is missing",
        fault="the machine",
    ),
)
