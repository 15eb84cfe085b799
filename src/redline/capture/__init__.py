"""From whatever holds a model to one ONNX graph, with inputs, outputs and dynamic dims named."""
