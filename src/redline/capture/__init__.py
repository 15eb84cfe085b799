"""From whatever holds a model to one ONNX graph, with its inputs, outputs and dynamic dims named."""
