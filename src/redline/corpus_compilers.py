"""The texts of torch.export, torch.compile and their back ends: what each means, what to change.

Rows of the same kind as corpus.py's, asked after them. The classes of capture/failures.py, whose
patterns are wide, come last, and only for exceptions that a compiler took part in.
tests/why/test_compilers.py provokes the real error of every row.
"""

from __future__ import annotations

from redline.corpus import Entry

COMPILER_ENTRIES = (
    Entry(
        "export-size-of-one",
        r"You marked (?P<dim>\w+) as dynamic but your code specialized it to be a constant "
        r"\((?P<size>[01])\)",
        "the dim {dim} is to change, and the example has size {size} there",
        "tracing takes sizes of 0 and 1 for constants, because broadcasting treats them apart",
        "give an example of size 2 or more in every dim that is to change",
        fault="the input",
    ),
    Entry(
        "export-dim-fixed",
        r"You marked (?P<dim>\w+) as dynamic but your code specialized it to be a constant "
        r"\((?P<size>\d+)\)",
        "the dim {dim} is to change, and the model's code fixes it to {size}",
        "a number in view, reshape, expand or range, a tensor of a fixed size that it is added to, "
        "or an LSTM's sequence length: {size} in the source is the place to look",
        "take the size from the input (x.shape[0], or -1); fix the dim and keep one program for "
        "each length where a layer cannot do otherwise",
        look="recurrent",
    ),
    Entry(
        "export-dynamic-shapes",
        r"Detected mismatch between the structure of `inputs` and `dynamic_shapes`: "
        r"(?P<how>[^\n]+)",
        "dynamic_shapes is not built as the inputs are: {how}",
        "it has one entry for each argument, nested as the argument is; forward(*args) takes one "
        "tuple",
        "write dynamic_shapes as a dict from argument names to {{dim: Dim(...)}}",
    ),
    Entry(
        "export-guard",
        r"Guard failed: (?P<guard>(?P<input>\w+)\.size\(\)\[(?P<dim>\d+)\] (?P<how>==|<=|>=|<|>) "
        r"(?P<size>\d+))",
        "an exported program got another size than it was made for: it checks {guard}",
        "dim {dim} of {input} was not dynamic when it was exported; with Dim.AUTO a dim that the "
        "code fixes becomes static without a word",
        "export with {{{dim}: Dim('d', min=2, max=...)}} for {input}, which fails where "
        "it cannot be",
        fault="the input",
    ),
    Entry(
        "export-output-type",
        r"Found <class '(?P<type>[\w.<>]+)'> in output, which is not a known type",
        "forward returns a {type}, which torch.export cannot take apart",
        "it knows tensors, numbers, tuples, lists and dicts, and classes that were registered",
        "torch.export.register_dataclass({type}) before exporting, or return a tuple or a dict",
    ),
    Entry(
        "export-buffer-replaced",
        r"Node copy_\w* of type call_function is missing nn_module_stack metadata",
        "forward puts another tensor in the place of a registered buffer (self.name = x)",
        "torch.export writes a copy_ behind the program for it, and its own check refuses that",
        "change the buffer in place, self.name.copy_(x), or return the new state",
    ),
    Entry(
        "traced-product",
        r"a and b must have same reduction dim, but got \[(?P<m>\d+), (?P<k>\d+)\] X "
        r"\[(?P<k2>\d+), (?P<n>\d+)\]",
        "the layer takes {k2} features, and its input has {k} in the last dim",
        "while tracing, Linear({k2}, {n}) reads so; the {m} rows are all other dims together",
        "nn.Linear({k}, {n}), or an example input whose last dim is {k2}",
        look="module",
    ),
    Entry(
        "runtime-assertion",
        r"Runtime assertion failed for expression (?P<check>.+?) on node",
        "a size that depends on values does not fulfil what the traced code needs: {check}",
        "u0, u1, ... are sizes that are known only when it runs, such as the length of x[x > 0]; a "
        "view or a product asked for a multiple or an equality of them",
        "check it before (torch._check), or pad to a size that always fits",
        fault="the input",
    ),
    Entry(
        "compile-branch",
        r"Data-dependent branching\s+Explanation: Detected data-dependent branching",
        "an `if` or a `while` asks for the values in a tensor, under torch.compile(fullgraph=True)",
        "the graph is made before values are known; without fullgraph it is cut in two here",
        "torch.where(condition, a, b), or torch.cond for two whole branches",
    ),
    Entry(
        "compile-recurrent",
        r"Attempted to wrap RNN, GRU, or LSTM",
        "an RNN, GRU or LSTM under torch.compile(fullgraph=True)",
        "Dynamo does not trace recurrent layers; without fullgraph they run in eager between two "
        "graphs, as fast as before",
        "fullgraph=False, or torch._dynamo.config.allow_rnn = True to try; torch.export takes them "
        "with a fixed sequence length",
        fault="the framework",
    ),
    Entry(
        "cudagraph-overwritten",
        r"accessing (?:gradient )?tensor output of CUDAGraphs that has been overwritten",
        "a tensor of an earlier call is read after a later call has written over it",
        "with mode='reduce-overhead' outputs live in the memory of one CUDA graph, which "
        "every call "
        "uses anew",
        "clone() what is kept beyond the next call, or call "
        "torch.compiler.cudagraph_mark_step_begin() before each; else mode='default'",
    ),
    Entry(
        "no-triton",
        r"Cannot find a working triton installation",
        "torch.compile found no Triton, with which it writes kernels for GPUs",
        "the CPU build of torch comes without it, and it must be of the version that torch names",
        "reinstall torch from the index for your CUDA version; redline doctor says what is missing",
        fault="the machine",
    ),
    Entry(
        "no-python-headers",
        r"fatal error: '?Python\.h'?(?: file not found|: No such file)",
        "the C++ compiler found no Python.h",
        "compiled kernels are Python extensions, and Python's headers are a package of their own",
        "apt install python3-dev (python3.11-dev for that version), dnf install python3-devel",
        fault="the machine",
    ),
    Entry(
        "no-user-name",
        r"getpwuid\(\): uid not found: (?P<uid>\d+)",
        "the user with number {uid} has no name here",
        "a container runs as a number that /etc/passwd does not have, and torch names its cache "
        "after the user; the exporter's own message hides it",
        "set USER, or TORCHINDUCTOR_CACHE_DIR, or give the container a user",
        fault="the machine",
    ),
    Entry(
        "numbers-differ",
        r"Tensor-likes are not close!.*?Mismatched elements: (?P<wrong>\d+) / (?P<all>\d+)"
        r".*?Greatest absolute difference: (?P<absolute>\S+)"
        r".*?Greatest relative difference: (?P<relative>\S+)",
        "{wrong} of {all} numbers differ by more than the tolerance: {absolute} at most, relative "
        "{relative}",
        "a compiler fuses and reorders sums, so equal bits are no goal; what counts is whether it "
        "is further from float64 than eager is",
        "compare both with the model in float64, as redline.optimize does; if only one stage is "
        "wrong, backend='eager', 'aot_eager' and 'inductor' in turn tell which",
        fault="the framework",
    ),
    # Last: whatever Dynamo refuses brings its own words, under an id of its registry.
    Entry(
        "graph-break",
        r"(?:^|\n)(?:\w+: )?(?P<what>[^\n]+)\n *Explanation: (?P<explanation>[^\n]+)\n"
        r" *(?:Hint: (?P<hint>[^\n]+))?.*?/gb/(?P<gb>gb\d+)\.html",
        "torch.compile(fullgraph=True) cannot trace this: {what} ({gb})",
        "{explanation}",
        "{hint} Or without fullgraph=True the graph is cut in two here and the line runs in eager",
    ),
)
