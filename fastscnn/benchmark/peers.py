"""Other runtimes on the CPU, each given the cheapest exact graph that is known.

The graph transposes bytes, casts, and normalises planes (`export/onnx_graph.py`). Timed against it
for ONNX Runtime at 1024x2048 on one thread: normalising before transposing costs 40 to 50 ms more.
In the mixtures (`head=True`) the peer stops at the class scores and this project's head samples
them: as good as a peer's user can make it with code of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscnn.benchmark.provider import Case, Labeller, Unavailable, need, use_threads
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu

Run = Callable[[], np.ndarray]


def graph(model: FastSCNN, frame: Tensor, output: Any) -> Any:
    """The network for frames of that shape as an ONNX model; `output` is "labels" or "scores"."""
    need("onnx")
    from fastscnn.export import onnx_graph

    n, h, w, _ = frame.shape
    size, folded = (h, w), fold(model)
    return onnx_graph.build(
        folded, model.config, model.num_classes, size=size, batch=n, output=output
    )


def finished(run: Run, model: FastSCNN, case: Case, head: bool) -> Labeller:
    """What `run` gives as labels: it gives those, or, before our head, scores."""
    size, align = (case.frame.shape[1], case.frame.shape[2]), model.config.head_align_corners

    def labels() -> Tensor:
        out = torch.from_numpy(run())
        if not head:
            return out
        how: Any = {"align_corners": align, "confidence": False, "threads": case.threads}
        return cpu.argmax_head(out, size, **how)[0]

    return labels


def onnxruntime(model: FastSCNN, case: Case, *, head: bool = False, int8: bool = False) -> Labeller:
    """ONNX Runtime with all graph optimisations.

    int8 is its own static quantisation (QDQ), calibrated on other frames: unsigned maps, signed
    weights per channel, every kind of node that it knows. At 512x1024 on one thread that took 45
    ms; convolutions and additions alone, or its older format QOperator, 50 to 51; signed maps 66.
    """
    ort = need("onnxruntime")
    made = graph(model, case.frame, "scores" if head else "labels")
    data = _quantized(made, case.calibration()) if int8 else made.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    inputs = {"frame": case.frame.numpy()}
    return finished(lambda: session.run(None, inputs)[0], model, case, head)


def _quantized(made: Any, frames: Tensor) -> bytes:
    from onnxruntime import quantization as q

    class Frames(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._frames: Iterator[Any] = iter([{"frame": f.numpy()} for f in frames.split(1)])

        def get_next(self) -> Any:
            return next(self._frames, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(made.SerializeToString())
        q.quant_pre_process(str(source), str(source))
        q.quantize_static(
            str(source),
            str(target),
            Frames(),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Relu", "Resize", "Concat", "MatMul"],
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
        )
        return target.read_bytes()


def openvino(model: FastSCNN, case: Case, *, head: bool = False, int8: bool = False) -> Labeller:
    """OpenVINO, for latency; float32, or int8 from NNCF's post-training quantisation with its
    mixed preset, calibrated on other frames."""
    ov = need("openvino")
    core, output = ov.Core(), "scores" if head else "labels"
    made = core.read_model(graph(model, case.frame, output).SerializeToString())
    if int8:
        nncf = need("nncf")
        frames = case.calibration()
        data = nncf.Dataset([{"frame": f.numpy()} for f in frames.split(1)])
        made = nncf.quantize(
            made,
            data,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(frames),
            fast_bias_correction=True,
        )
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(made, "CPU", settings).create_infer_request()
    inputs = {"frame": case.frame.numpy()}
    return finished(lambda: request.infer(inputs)[output].copy(), model, case, head)


def ncnn(model: FastSCNN, case: Case) -> Labeller:
    """ncnn, float32, of the trace that its own converter pnnx turns into a network, on pixels that
    ncnn itself normalises. It samples up to full-size logits; the arg-max is torch's `max`, which
    is faster than its `argmax`."""
    runtime, converter = need("ncnn"), need("pnnx")
    config = model.config
    x = reference.normalize(case.frame, config.mean, config.std).contiguous()
    net = runtime.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        converter.export(model, f"{folder}/net.pt", inputs=x, check_trace=False, fp16=False)
        if net.load_param(f"{folder}/net.ncnn.param") or net.load_model(f"{folder}/net.ncnn.bin"):
            raise Unavailable("ncnn does not load what pnnx wrote")
    mean, scale = [255 * m for m in config.mean], [1 / (255 * s) for s in config.std]
    kind, (_, h, w, _) = runtime.Mat.PixelType.PIXEL_RGB, case.frame.shape

    def run() -> Tensor:
        use_threads(case.threads)
        pixels = runtime.Mat.from_pixels(case.frame[0].numpy(), kind, w, h)
        pixels.substract_mean_normalize(mean, scale)
        extractor = net.create_extractor()
        extractor.input("in0", pixels)
        logits = torch.from_numpy(extractor.extract("out0")[1].numpy())
        return logits.max(0)[1].to(torch.uint8)[None]

    return run
