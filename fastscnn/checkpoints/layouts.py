"""How published Fast-SCNN implementations name their tensors, as tables that read both ways.

The keys and shapes of a file tell its layout, and the layout's config how the network computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from fastscnn.network.config import PRESETS, FastSCNNConfig
from fastscnn.network.model import Backbone, FastSCNN, FastSCNNClassifier

Shape = tuple[int, ...]

#: Our blocks by role, and how many of each: {n} counts from 1, {k} from 0, {b} is 0, 1, 2.
_BLOCKS: dict[str, tuple[str, int]] = {
    "stem": ("learning_to_downsample.conv", 1),
    "down depthwise": ("learning_to_downsample.dsconv{n}.depthwise", 2),
    "down pointwise": ("learning_to_downsample.dsconv{n}.pointwise", 2),
    "expand": ("global_feature_extractor.bottleneck{n}.{b}.expand", 3),
    "depthwise": ("global_feature_extractor.bottleneck{n}.{b}.depthwise", 3),
    "project": ("global_feature_extractor.bottleneck{n}.{b}.project", 3),
    "bin": ("global_feature_extractor.ppm.branches.{k}", 4),
    "join": ("global_feature_extractor.ppm.join", 1),
    "fusion depthwise": ("feature_fusion.depthwise", 1),
    "fusion low": ("feature_fusion.low", 1),
    "fusion high": ("feature_fusion.high", 1),
    "head depthwise": ("classifier.dsconv{n}.depthwise", 2),
    "head pointwise": ("classifier.dsconv{n}.pointwise", 2),
    "scores": ("classifier.conv", 1),
}

# In the tables below "<a|b>" is a for the convolution and b for its batch norm.

_TRAMAC = {
    "stem": "learning_to_downsample.conv.conv.<0|1>",
    "down depthwise": "learning_to_downsample.dsconv{n}.conv.<0|1>",
    "down pointwise": "learning_to_downsample.dsconv{n}.conv.<3|4>",
    "expand": "global_feature_extractor.bottleneck{n}.{b}.block.0.conv.<0|1>",
    "depthwise": "global_feature_extractor.bottleneck{n}.{b}.block.1.conv.<0|1>",
    "project": "global_feature_extractor.bottleneck{n}.{b}.block.<2|3>",
    "bin": "global_feature_extractor.ppm.conv{n}.conv.<0|1>",
    "join": "global_feature_extractor.ppm.out.conv.<0|1>",
    "fusion depthwise": "feature_fusion.dwconv.conv.<0|1>",
    "fusion low": "feature_fusion.conv_lower_res.<0|1>",
    "fusion high": "feature_fusion.conv_higher_res.<0|1>",
    "head depthwise": "classifier.dsconv{n}.conv.<0|1>",
    "head pointwise": "classifier.dsconv{n}.conv.<3|4>",
    "scores": "classifier.conv.1",
}
_ZACARIO = {
    "stem": "learningToDownSample.conv.conv.<0|1>",
    "down depthwise": "learningToDownSample.dsc{n}.conv.<0|1>",
    "down pointwise": "learningToDownSample.dsc{n}.conv.<3|4>",
    "expand": "globalFeatureExtractor.bt{n}.{b}.block.0.conv.<0|1>",
    "depthwise": "globalFeatureExtractor.bt{n}.{b}.block.1.conv.<0|1>",
    "project": "globalFeatureExtractor.bt{n}.{b}.block.<2|3>",
    "bin": "globalFeatureExtractor.ppm.p{n}.conv.<0|1>",
    "join": "globalFeatureExtractor.ppm.cat.conv.<0|1>",
    "fusion depthwise": "featureFusion.dwconv.conv.<0|1>",
    "fusion low": "featureFusion.upBranch.<0|1>",
    "fusion high": "featureFusion.downBranch.<0|1>",
    "head depthwise": "classifier.dsconv{n}.conv.<0|1>",
    "head pointwise": "classifier.dsconv{n}.conv.<3|4>",
    "scores": "classifier.conv",
}
_MMSEG = {
    "stem": "backbone.learning_to_downsample.conv.<conv|bn>",
    "down depthwise": "backbone.learning_to_downsample.dsconv{n}.depthwise_conv.<conv|bn>",
    "down pointwise": "backbone.learning_to_downsample.dsconv{n}.pointwise_conv.<conv|bn>",
    "expand": "backbone.global_feature_extractor.bottleneck{n}.{b}.conv.0.<conv|bn>",
    "depthwise": "backbone.global_feature_extractor.bottleneck{n}.{b}.conv.1.<conv|bn>",
    "project": "backbone.global_feature_extractor.bottleneck{n}.{b}.conv.2.<conv|bn>",
    "bin": "backbone.global_feature_extractor.ppm.{k}.1.<conv|bn>",
    "join": "backbone.global_feature_extractor.out.<conv|bn>",
    "fusion depthwise": "backbone.feature_fusion.dwconv.<conv|bn>",
    "fusion low": "backbone.feature_fusion.conv_lower_res.<conv|bn>",
    "fusion high": "backbone.feature_fusion.conv_higher_res.<conv|bn>",
    "head depthwise": "decode_head.convs.{k}.depthwise_conv.<conv|bn>",
    "head pointwise": "decode_head.convs.{k}.pointwise_conv.<conv|bn>",
    "scores": "decode_head.conv_seg",
}
_PADDLESEG = {
    "stem": "learning_to_downsample.conv_bn_relu.<_conv|_batch_norm>",
    "down depthwise": "learning_to_downsample.dsconv_bn_relu{n}.depthwise_conv.<_conv|_batch_norm>",
    "down pointwise": "learning_to_downsample.dsconv_bn_relu{n}.piontwise_conv.<_conv|_batch_norm>",
    "expand": "global_feature_extractor.bottleneck{n}.{b}.block.0.<_conv|_batch_norm>",
    "depthwise": "global_feature_extractor.bottleneck{n}.{b}.block.1.<_conv|_batch_norm>",
    "project": "global_feature_extractor.bottleneck{n}.{b}.block.2.<_conv|_batch_norm>",
    "bin": "global_feature_extractor.ppm.stages.{k}.1.<_conv|_batch_norm>",
    "join": "global_feature_extractor.ppm.conv_bn_relu2.<_conv|_batch_norm>",
    "fusion depthwise": "feature_fusion.dwconv.<_conv|_batch_norm>",
    "fusion low": "feature_fusion.conv_low_res.<_conv|_batch_norm>",
    "fusion high": "feature_fusion.conv_high_res.<_conv|_batch_norm>",
    "head depthwise": "classifier.dsconv{n}.depthwise_conv.<_conv|_batch_norm>",
    "head pointwise": "classifier.dsconv{n}.piontwise_conv.<_conv|_batch_norm>",
    "scores": "classifier.conv",
}
_SEGMENTRON = {
    "stem": "learning_to_downsample.conv.<conv|bn>",
    "down depthwise": "learning_to_downsample.dsconv{n}.block.<depthwise|bn_depth>",
    "down pointwise": "learning_to_downsample.dsconv{n}.block.<pointwise|bn_point>",
    "expand": "global_feature_extractor.bottleneck{n}.{b}.conv.0.<conv|bn>",
    "depthwise": "global_feature_extractor.bottleneck{n}.{b}.conv.1.<conv|bn>",
    "project": "global_feature_extractor.bottleneck{n}.{b}.conv.<2|3>",
    "bin": "global_feature_extractor.ppm.convs.{k}.<conv|bn>",
    "join": "global_feature_extractor.out.<conv|bn>",
    "fusion depthwise": "feature_fusion.dwconv.<conv|bn>",
    "fusion low": "feature_fusion.conv_lower_res.<0|1>",
    "fusion high": "feature_fusion.conv_higher_res.<0|1>",
    "head depthwise": "classifier.dsconv{n}.block.<depthwise|bn_depth>",
    "head pointwise": "classifier.dsconv{n}.block.<pointwise|bn_point>",
    "scores": "classifier.conv.1",
}
_LEFTTHOMAS = {
    "stem": "learning_to_down_sample.conv.<conv|bn>",
    "down depthwise": "learning_to_down_sample.dsconv{n}.<0|1>",
    "down pointwise": "learning_to_down_sample.dsconv{n}.<2|3>",
    "expand": "global_feature_extractor.{nth}_block.{b}.conv.<0|1>",
    "depthwise": "global_feature_extractor.{nth}_block.{b}.conv.<3|4>",
    "project": "global_feature_extractor.{nth}_block.{b}.conv.<6|7>",
    "bin": "global_feature_extractor.ppm.stages.{k}.1.<conv|bn>",
    "join": "global_feature_extractor.ppm.conv.<conv|bn>",
    "fusion depthwise": "feature_fusion.dwconv.<conv|bn>",
    "fusion low": "feature_fusion.conv_low_res",
    "fusion high": "feature_fusion.conv_high_res",
    "head depthwise": "classifier.dsconv{n}.<0|1>",
    "head pointwise": "classifier.dsconv{n}.<2|3>",
    "scores": "classifier.conv",
}
_GLUONCV = _TRAMAC | {
    "stem": "learning_to_downsample.conv.block.<0|1>",
    "expand": "global_feature_extractor.bottleneck{n}.{b}.block.0.block.<0|1>",
    "bin": "global_feature_extractor.ppm.conv{n}.<0|1>",
    "join": "global_feature_extractor.ppm.out.block.<0|1>",
    "fusion low": "feature_fusion.<conv_lower_res|bn>",
    "fusion high": "feature_fusion.<conv_higher_res|bn_high>",
    "scores": "classifier.conv",
}

#: Names of a batch norm's tensors, ours to theirs.
_TORCH_BN = {
    name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}
_PADDLE_BN = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "_mean",
    "running_var": "_variance",
}
_GLUON_BN = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
}

#: mmseg before its pull request 606 (June 2021): today's names, SegmenTron's structure.
_MMSEG_BEFORE_606 = replace(
    PRESETS["segmentron"],
    conv_bias=(),
    ppm_align_corners=False,
    ffm_align_corners=False,
    head_align_corners=False,
)


@dataclass(frozen=True)
class Layout:
    """Names and structure of one implementation's checkpoints."""

    name: str
    title: str
    config: FastSCNNConfig
    #: By role of `_BLOCKS`; empty for our own names.
    table: Mapping[str, str] = field(default_factory=dict)
    bn: Mapping[str, str] = field(default_factory=lambda: _TORCH_BN)
    #: Prefixes of auxiliary heads (training only), which are left out.
    aux: tuple[str, ...] = ()
    #: File formats that carry it; the first is the usual one.
    suffixes: tuple[str, ...] = (".pth", ".pt")
    #: Key under which the implementation files its state dict.
    wrapper: str | None = None
    net: type[FastSCNN] | type[FastSCNNClassifier] = FastSCNN

    def shapes(self, num_classes: int, config: FastSCNNConfig) -> dict[str, Shape]:
        """Shape of every tensor of ours in such a network's state dict, without auxiliary heads."""
        return _shapes(self.name, num_classes, config)

    @property
    def last(self) -> str:
        """Our name of the tensor whose first axis counts the classes."""
        return "classifier.conv.weight" if self.net is FastSCNN else "linear.weight"

    def names(self, keys: Iterable[str]) -> dict[str, str]:
        """This layout's names of our tensors `keys`; what it does not store is left out."""
        if not self.table:
            return {key: key for key in keys}
        convs, norms = _expand(self.name)
        named = {}
        for key in keys:
            module, _, tensor = key.rpartition(".")
            block, _, part = module.rpartition(".")
            if module in convs:  # the last convolution is a block by itself
                named[key] = f"{convs[module]}.{tensor}"
            elif part == "conv":
                named[key] = f"{convs[block]}.{tensor}"
            elif tensor in self.bn:
                named[key] = f"{norms[block]}.{self.bn[tensor]}"
        return named


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "fastscnn",
            "this package",
            PRESETS["paper"],
            aux=("aux.",),
            suffixes=(".safetensors", ".pth", ".pt"),
        ),
        Layout(
            "fastscnn_classifier",
            "this package, pre-training",
            PRESETS["paper"],
            suffixes=(".safetensors", ".pth", ".pt"),
            net=FastSCNNClassifier,
        ),
        Layout(
            "tramac",
            "Tramac/Fast-SCNN-pytorch, xiaoyufenfei, lxtGH",
            PRESETS["tramac"],
            _TRAMAC,
            aux=("auxlayer.",),
        ),
        Layout("zacario", "zacario", PRESETS["tramac"], _ZACARIO, aux=("auxlayer.",)),
        Layout(
            "mmseg",
            "mmsegmentation",
            PRESETS["mmseg"],
            _MMSEG,
            aux=("auxiliary_head.",),
            wrapper="state_dict",
        ),
        Layout(
            "mmseg_before_606",
            "mmsegmentation before June 2021",
            _MMSEG_BEFORE_606,
            _MMSEG,
            aux=("auxiliary_head.",),
            wrapper="state_dict",
        ),
        Layout(
            "paddleseg",
            "PaddleSeg",
            PRESETS["paddleseg"],
            _PADDLESEG,
            _PADDLE_BN,
            aux=("auxlayer.",),
            suffixes=(".pdparams", ".npz"),
        ),
        Layout(
            "segmentron",
            "SegmenTron",
            PRESETS["segmentron"],
            _SEGMENTRON,
            aux=("auxlayer1.", "auxlayer2."),
        ),
        Layout("leftthomas", "leftthomas/FastSCNN", PRESETS["leftthomas"], _LEFTTHOMAS),
        Layout(
            "gluoncv",
            "gluon-cv",
            PRESETS["gluoncv"],
            _GLUONCV,
            _GLUON_BN,
            aux=("auxlayer.",),
            suffixes=(".npz",),
        ),
    )
}


@lru_cache(maxsize=64)
def _expand(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Foreign prefixes of every block of ours: of its convolution and of its batch norm."""
    convs, norms = {}, {}
    for role, pattern in LAYOUTS[name].table.items():
        ours, count = _BLOCKS[role]
        for k in range(count):
            for b in range(3 if "{b}" in ours else 1):
                at = {"n": k + 1, "k": k, "b": b, "nth": ("first", "second", "third", "")[k]}
                block, theirs = ours.format(**at), pattern.format(**at)
                head, _, choice = theirs.partition("<")
                conv, _, bn = choice.removesuffix(">").partition("|")
                convs[block] = head + conv
                if bn:
                    norms[block] = head + bn
    return convs, norms


@lru_cache(maxsize=64)
def _shapes(name: str, num_classes: int, config: FastSCNNConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        model: Backbone = LAYOUTS[name].net(num_classes, config=config)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
