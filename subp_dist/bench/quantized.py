"""The peers' int8 networks, each made by the tool that its engine recommends, on the same images."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UsageError


def quantize_for_openvino(onnx: Path, images: np.ndarray, path: Path, weights: Path) -> None:
    """Quantize a float32 ONNX file with NNCF's defaults: weights symmetric per output channel, fast bias correction.

    Args:
        onnx: the file.
        images: for calibration, ``[n, C, H, W]`` float32.
        path: of the new model, in OpenVINO's format.
        weights: of the file with its weights, which OpenVINO looks for beside the model as ``.bin``.

    Raises:
        UsageError: NNCF cannot do it.
    """
    import nncf
    import openvino
    from openvino import passes

    model = openvino.Core().read_model(onnx)
    # As it is read, a reshape stands between depthwise layers and their weights: NNCF then takes scales along another
    # axis than that of the channels, and OpenVINO runs these layers in float.
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())
    folding.run_passes(model)
    with _quiet(), _named("NNCF", onnx):
        dataset = nncf.Dataset([image[None] for image in images])
        model = nncf.quantize(model, dataset, subset_size=len(images))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / "model.xml"
        openvino.save_model(model, written, compress_to_fp16=False)
        written.with_suffix(".bin").replace(weights)
        written.replace(path)


def quantize_for_onnxruntime(onnx: Path, images: np.ndarray, path: Path) -> None:
    """Quantize a float32 ONNX file as QDQ: weights int8 per output channel, activations uint8, after ONNX Runtime's
    own fusions.

    Seven bits of weights (``reduce_range``) are for CPUs without VNNI, whose products saturate.

    Args:
        onnx: the file.
        images: for calibration, ``[n, C, H, W]`` float32.
        path: of the new file.

    Raises:
        UsageError: ONNX Runtime cannot do it.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = iter([{"input": image[None]} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    with tempfile.TemporaryDirectory() as folder, _quiet(), _named("onnxruntime.quantization", onnx):
        fused = Path(folder) / "fused.onnx"
        quant_pre_process(onnx, fused)
        quantization.quantize_static(
            fused,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=not has_vnni(),
        )


def has_vnni() -> bool:
    """Whether this CPU sums products of bytes without saturation: x86 with VNNI, or no x86."""
    import subp_ext

    info = subp_ext.cpu_info()
    features = info["features"]
    return info["machine"] not in ("x86_64", "AMD64") or features["avx512vnni"] or features["avxvnni"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars, notes and warnings of the quantizers."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _named(quantizer: str, path: Path) -> Iterator[None]:
    """Says which quantizer failed, and on what."""
    try:
        yield
    except Exception as error:  # their own types are many, and say it in their first line
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{quantizer} cannot quantize {path.name}: {first}") from error
