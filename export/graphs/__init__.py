"""ONNX graphs of a pruned encoder."""
