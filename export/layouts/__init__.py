"""Bundles in the file layouts of other software: one ONNX file for images, one for text, and the settings that are read with them."""
