"""The one place that says how published Fast-SCNN implementations differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Activation = Literal["none", "relu", "relu6"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FastSCNNConfig:
    """Structure of one Fast-SCNN; the defaults are the paper's (Tables 1 to 3, section 3.1).

    Where the paper is silent the defaults choose padding 1, half-pixel bilinear sampling,
    pyramid bins 1, 2, 3, 6 joined by a 1x1 convolution, and batch norm after every convolution
    but the last.
    """

    #: Padding of the first convolution: 0, 1, or "same" (TensorFlow's rule, extra at the end).
    stem_padding: int | str = 1
    #: ReLU between the depthwise and the pointwise convolution of a DSConv.
    dsconv_relu: bool = False
    #: Activation inside the bottlenecks.
    bottleneck_activation: Activation = "relu"
    #: Inputs of the pyramid's join in order; 0 stands for the unpooled map.
    ppm_order: tuple[int, ...] = (0, 1, 2, 3, 6)
    #: Kernel of the pyramid's join: 1 or 3.
    ppm_join_kernel: int = 1
    #: Corner alignment of the bilinear upsampling in the pyramid, the fusion and the head.
    ppm_align_corners: bool = False
    ffm_align_corners: bool = False
    head_align_corners: bool = False
    #: First convolution of the fusion's low branch: 3x3 depthwise, or dense 1x1.
    ffm_kernel: Literal["depthwise", "dense"] = "depthwise"
    #: Dilation of that depthwise convolution (Table 3: the upsampling factor, 4).
    ffm_dilation: int = 4
    #: Batch norm after the fusion's two 1x1 convolutions.
    ffm_bn: bool = True
    #: Convolutions with a bias although batch norm follows: of "stem", "dsconv", "ppm", "ffm".
    conv_bias: tuple[str, ...] = ()
    dropout: float = 0.1
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    #: Normalisation of RGB values in 0..1.
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"config {name}={getattr(self, name)!r}: expected {expected}")

        for f in fields(self):  # JSON turns tuples into lists; accept them
            if isinstance(getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        require(self.stem_padding in (0, 1, "same"), "stem_padding", '0, 1 or "same"')
        require(
            self.bottleneck_activation in ("relu", "relu6"),
            "bottleneck_activation",
            '"relu" or "relu6"',
        )
        require(
            sorted(self.ppm_order) == [0, 1, 2, 3, 6], "ppm_order", "0, 1, 2, 3, 6 in some order"
        )
        require(self.ppm_join_kernel in (1, 3), "ppm_join_kernel", "1 or 3")
        require(self.ffm_kernel in ("depthwise", "dense"), "ffm_kernel", '"depthwise" or "dense"')
        require(self.ffm_dilation >= 1, "ffm_dilation", "1 or more")
        require(
            set(self.conv_bias) <= {"stem", "dsconv", "ppm", "ffm"},
            "conv_bias",
            'a subset of "stem", "dsconv", "ppm", "ffm"',
        )
        require(0 <= self.dropout < 1, "dropout", "0 <= p < 1")
        require(self.bn_eps > 0, "bn_eps", "a positive number")
        require(len(self.mean) == 3, "mean", "three numbers (R, G, B)")
        require(
            len(self.std) == 3 and all(s > 0 for s in self.std), "std", "three positive numbers"
        )

    @property
    def ppm_bins(self) -> tuple[int, ...]:
        """Pyramid bins in the order of the branches' parameters: 1, 2, 3, 6."""
        return tuple(sorted(b for b in self.ppm_order if b))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FastSCNNConfig:
        """Inverse of `to_dict`; an unknown key is an error that names it."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"config has unknown keys {unknown}; known: {_names(cls)}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> FastSCNNConfig:
        """One of `PRESETS` by name."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def paper(cls) -> FastSCNNConfig:
        """The network of the paper."""
        return cls()


def _names(cls: type) -> str:
    return ", ".join(f.name for f in fields(cls))


def _aligned(**other: Any) -> FastSCNNConfig:
    """A config that samples with aligned corners everywhere."""
    return FastSCNNConfig(
        ppm_align_corners=True, ffm_align_corners=True, head_align_corners=True, **other
    )


PRESETS: dict[str, FastSCNNConfig] = {
    "paper": FastSCNNConfig(),
    "tramac": _aligned(stem_padding=0, dsconv_relu=True, ffm_dilation=1, conv_bias=("ffm",)),
    "mmseg": FastSCNNConfig(ppm_join_kernel=3, ffm_dilation=1, bn_momentum=0.01),
    "paddleseg": FastSCNNConfig(
        stem_padding="same",
        ppm_order=(0, 6, 3, 2, 1),
        ppm_join_kernel=3,
        ppm_align_corners=True,
        ffm_dilation=1,
        conv_bias=("stem", "dsconv", "ppm", "ffm"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "segmentron": _aligned(
        stem_padding=0,
        dsconv_relu=True,
        bottleneck_activation="relu6",
        ffm_kernel="dense",
        ffm_dilation=1,
        conv_bias=("ffm",),
        bn_momentum=0.01,
    ),
    "gluoncv": _aligned(stem_padding=0, dsconv_relu=True, ffm_dilation=1, conv_bias=("ffm",)),
    "leftthomas": _aligned(ppm_order=(1, 2, 3, 6, 0), ffm_bn=False),
}
