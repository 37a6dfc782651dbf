"""Other runtimes on the CPU, each given the cheapest exact way in and out that is known.

Frames are turned to planes as bytes, cast, and normalised (`export/onnx_graph.py`): normalising
before transposing costs ONNX Runtime 40 to 50 ms more at 1024x2048 on one thread, and folding the
scale into the stem's weights saves it nothing. Ways out differ and stand with each.
In the mixtures (`head=True`) the peer stops at the class scores and this project's head samples
them: as good as a peer's user can make it with code of ours. Milliseconds in this file are of one
thread of a Zen 4 core with 11 classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscnn.benchmark.provider import Case, Labeller, Unavailable, need, use_threads
from fastscnn.inference.fold import fold
from fastscnn.network.model import FastSCNN
from fastscnn_kernels import reference
from fastscnn_kernels.cpu import operations as cpu
from fastscnn_kernels.cpu import pack

Run = Callable[[], np.ndarray]


def graph(model: FastSCNN, frame: Tensor, output: Any) -> Any:
    """The network for frames of that shape as an ONNX model; `output` as in `onnx_graph.build`."""
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


def onnxruntime(
    model: FastSCNN, case: Case, *, head: bool = False, precision: str = "float32"
) -> Labeller:
    """ONNX Runtime with all graph optimisations; it samples scores in channels_last.

    At 1024x2048 that takes 201 ms. With planes (what `fastscnn export` writes, because OpenVINO
    takes twice as long in channels_last) it takes 208; with TopK, comparisons class by class or
    strips of rows that stay in the caches 215 to 234; without spinning threads as long.
    int8 is its own static quantisation (QDQ), calibrated on other frames: unsigned maps, signed
    weights per channel, every kind of node that it knows. At 512x1024 on one thread that takes 41
    ms; with planes 45; convolutions and additions alone, or its older format QOperator, 5 more;
    signed maps 20 more.
    """
    ort = need("onnxruntime")
    made = graph(model, case.frame, "scores")
    if not head:
        _label_in_channels_last(made, case.frame, model)
    data = _quantized(made, case.calibration()) if precision == "int8" else made.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    inputs = {"frame": case.frame.numpy()}
    return finished(lambda: session.run(None, inputs)[0], model, case, head)


def _label_in_channels_last(made: Any, frame: Tensor, model: FastSCNN) -> None:
    """Puts labels in the place of an ONNX model's scores."""
    from onnx import TensorProto, helper

    n, h, w, _ = frame.shape
    size = [n, h, w, model.num_classes]
    made.graph.initializer.append(helper.make_tensor("logits_size", TensorProto.INT64, [4], size))
    rule = "align_corners" if model.config.head_align_corners else "half_pixel"
    for op, inputs, output, attributes in (
        ("Transpose", ["scores"], "turned", {"perm": [0, 2, 3, 1]}),
        (
            *("Resize", ["turned", "", "", "logits_size"], "logits"),
            {"mode": "linear", "coordinate_transformation_mode": rule},
        ),
        ("ArgMax", ["logits"], "best", {"axis": 3, "keepdims": 0}),
        ("Cast", ["best"], "labels", {"to": TensorProto.UINT8}),
    ):
        made.graph.node.append(helper.make_node(op, inputs, [output], **attributes))
    made.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("labels", TensorProto.UINT8, [n, h, w])
    )


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


def openvino(
    model: FastSCNN, case: Case, *, head: bool = False, precision: str = "float32"
) -> Labeller:
    """OpenVINO, for latency, with its own TopK as arg-max; float32, bfloat16, or int8 from NNCF's
    post-training quantisation, calibrated on other frames, whose other layers are in bfloat16 where
    the CPU multiplies that.

    At 1024x2048 float32 takes 254 ms; with ONNX's ArgMax 317, with comparisons class by class 291,
    in channels_last 529; its own preprocessing of bytes, in either order, and its hint for
    throughput take as long. int8 at 512x1024 takes 29 ms; with float32 in the other layers 39, with
    ArgMax as well 53; NNCF's preset of performance takes as long as the mixed one and agrees less.
    """
    ov, rounds = need("openvino"), bool(pack.bf16_instruction_set())
    if precision == "bfloat16" and not rounds:
        raise Unavailable("this CPU has no AVX512-BF16: bfloat16 runs in float32")
    core = ov.Core()
    made = core.read_model(
        graph(model, case.frame, "scores" if head else "logits").SerializeToString()
    )
    if not head:
        made = _label_by_topk(ov, made)
    if precision == "int8":
        nncf = need("nncf")
        frames = case.calibration()
        made = nncf.quantize(
            made,
            nncf.Dataset([{"frame": f.numpy()} for f in frames.split(1)]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(frames),
            fast_bias_correction=True,
        )
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if rounds and precision != "float32" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(made, "CPU", settings).create_infer_request()
    inputs = {"frame": case.frame.numpy()}
    return finished(lambda: request.infer(inputs)[0].copy(), model, case, head)


def _label_by_topk(ov: Any, made: Any) -> Any:
    """A model of OpenVINO's with labels in the place of its logits."""
    from openvino import opset13 as ops

    logits = made.output(0).get_node().input_value(0)
    best = ops.topk(logits, ops.constant(1), 1, "max", "none", "i32").output(1)
    labels = ops.convert(ops.squeeze(best, ops.constant([1])), "u8")
    return ov.Model([ops.result(labels)], made.get_parameters())


class _Scores(nn.Module):
    def __init__(self, model: FastSCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.scores(x)


def ncnn(model: FastSCNN, case: Case) -> Labeller:
    """ncnn, float32, of the trace that its own converter pnnx turns into a network, on pixels that
    ncnn itself normalises. It has no arg-max: torch samples the scores in channels_last.

    At 512x1024 that takes 60 ms; sampled by ncnn, or by torch with planes, then torch's `max` 64 to
    65; without Winograd's convolutions 3 more, without its packed layout 20 more.
    """
    runtime, converter = need("ncnn"), need("pnnx")
    config, (_, h, w, _) = model.config, case.frame.shape
    x = reference.normalize(case.frame, config.mean, config.std).contiguous()
    net = runtime.Net()
    net.opt.num_threads = case.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.pt"
        converter.export(_Scores(model), path, inputs=x, check_trace=False, fp16=False)
        if net.load_param(f"{folder}/net.ncnn.param") or net.load_model(f"{folder}/net.ncnn.bin"):
            raise Unavailable("ncnn does not load what pnnx wrote")
    mean, scale = [255 * m for m in config.mean], [1 / (255 * s) for s in config.std]
    align: Any = config.head_align_corners or None

    def run() -> Tensor:
        use_threads(case.threads)
        pixels = runtime.Mat.from_pixels(
            case.frame[0].numpy(), runtime.Mat.PixelType.PIXEL_RGB, w, h
        )
        pixels.substract_mean_normalize(mean, scale)
        extractor = net.create_extractor()
        extractor.input("in0", pixels)
        scores = torch.from_numpy(extractor.extract("out0")[1].numpy())[None]
        scores = scores.contiguous(memory_format=torch.channels_last)
        logits = F.interpolate(scores, (h, w), mode="bilinear", align_corners=align)
        return logits.max(1)[1].to(torch.uint8)

    return run
