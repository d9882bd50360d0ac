"""Layout `triton`: a model repository of NVIDIA Triton with one model for images and one for text, for its ONNX Runtime backend."""

from prtool.export.layouts.plan import Contents, Plan
from prtool.graphs.signature import BATCH, GraphSpec, TensorSpec

IMAGE, TEXT = "image_encoder", "text_encoder"
MAX_BATCH = 32
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}


def plan(contents: Contents) -> Plan:
    """The folder of layout `triton`; inputs and outputs have the bundle's names."""
    manifest = contents.manifest
    image = contents.image(f"{IMAGE}/1/model.onnx", "pixels", "embedding")
    files = {f"{IMAGE}/config.pbtxt": config(image)}
    text: GraphSpec | None = None
    if manifest.text is not None:
        tokens = TensorSpec("tokens", "int64", (BATCH, manifest.text.context_length))
        text = contents.text(f"{TEXT}/1/model.onnx", tokens, "embedding")
        files[f"{TEXT}/config.pbtxt"] = config(text)
    return Plan(image, text, files)


def config(spec: GraphSpec) -> str:
    """A model's config.pbtxt, in protobuf's text format; without `name`, so that its folder may be renamed. The batch axis is Triton's."""
    lines = ['backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH}"]
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            dims = ", ".join(map(str, tensor.shape[1:]))
            lines += [f"{kind} {{", f'  name: "{tensor.name}"', f"  data_type: {_TYPES[tensor.dtype]}", f"  dims: [ {dims} ]", "}"]
    return "\n".join([*lines, "dynamic_batching { }"]) + "\n"
