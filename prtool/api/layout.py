"""The verb that writes an encoder in the file layout of other software."""

from pathlib import Path
from typing import TYPE_CHECKING

from prtool.api.common import AnyKeep, AnyPath
from prtool.spec import Keep

if TYPE_CHECKING:
    from prtool.export.layouts.report import LayoutReport
    from prtool.progress import Progress


def write_layout(
    source: AnyPath,
    output: AnyPath,
    *,
    layout: str,
    keep: AnyKeep | None = None,
    precision: str = "fp32",
    pixels: str = "float32",
    data: AnyPath | None = None,
    progress: "Progress | None" = None,
) -> "LayoutReport":
    """Writes the pruned encoder, and the text side, as files that other software loads in place of its own (docs/layouts.md).

    One ONNX file for images, with its weights and its keep inside, one for texts, and the settings that are read with them. They are
    compared with the bundle before they appear. From a bundle this needs no PyTorch.

    Args:
        source: folder of a bundle; or of a trained run, which is exported first as `export_bundle` does, with its comparison.
        output: folder; only an earlier layout is replaced.
        layout: whose files, of "hf", "immich" and "triton".
        keep: patches that stay: a ratio (0.6) or a count (118); default: the bundle's, or what `export_bundle` takes for a run.
        precision: of the images, of fp32, fp16 and int8; texts are fp32.
        pixels: what the image graph reads: "float32", (batch, 3, height, width) normalised RGB; or, with layout triton, "uint8",
            (batch, height, width, 3) RGB from 0 to 255, which it normalises.
        data: as for `export_bundle`; for a run alone.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: there is no bundle and no finished run, or it is damaged.
        ConfigError: a value cannot be used, the layout has no words for the bundle's preprocessing or tokenizer, or something else
            stands at the output (KeepError: the keep is out of the bundle's range).
        DataError, ModelError: as `export_bundle`.
        ParityError: a graph disagrees with PyTorch or with the bundle; nothing was written.
        StorageError: the folder cannot be written.
    """
    from prtool.bundle import MANIFEST_NAME, Bundle
    from prtool.errors import ConfigError
    from prtool.export.layouts.plan import LayoutOptions

    options = LayoutOptions(layout, None if keep is None else Keep.of(keep), precision, pixels)
    from prtool.export.layouts.write import LAYOUT
    from prtool.export.layouts.write import write_layout as write

    folder, out = Path(source), Path(output)
    if (folder / MANIFEST_NAME).is_file():
        if data is not None:
            raise ConfigError(
                f"data = {str(data)!r}, but {folder} is a bundle, which was compared when it was exported; leave it out, or give the run"
            )
        return write(Bundle.open(folder), out, options)
    from prtool.api.run import export_bundle
    from prtool.exchange import claimed
    from prtool.files import check_output, storage_errors

    check_output(out, LAYOUT, (folder,))
    with storage_errors(out), claimed(out, folder=True) as work:
        export_bundle(folder, work / "bundle", keep=keep, precision=precision, data=data, progress=progress)
        return write(Bundle.open(work / "bundle", verify=False), out, options)
