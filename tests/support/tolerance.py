"""The one tolerance rule: at most twice torch's own error at that dtype, plus a floor."""

from __future__ import annotations

import torch
from torch import Tensor

#: Floor per dtype, relative to the largest |reference|.
FLOOR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_close(ours: Tensor, exact64: Tensor, torch_same_dtype: Tensor) -> None:
    """`ours` against the float64 reference, judged by what torch achieves in the same dtype.

    A failure names the worst element's index and both values; NaN and inf must be where the
    reference, in that dtype, has them.
    """
    assert ours.shape == exact64.shape, f"shape {tuple(ours.shape)}, not {tuple(exact64.shape)}"
    assert ours.dtype == torch_same_dtype.dtype, f"{ours.dtype}, not {torch_same_dtype.dtype}"
    got, exact, peer = (t.detach().cpu().double() for t in (ours, exact64, torch_same_dtype))
    for name, mask in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = mask(got) != mask(peer)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name} masks differ at {int(wrong.sum())} of {wrong.numel()} elements, "
                f"first at {at}: got {got[at].item()}, torch has {peer[at].item()}"
            )
    finite = torch.isfinite(peer) & torch.isfinite(exact)
    if not finite.any():
        return
    scale = exact[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = torch.where(finite, (got - exact).abs(), 0.0)
    torch_error = torch.where(finite, (peer - exact).abs(), 0.0).max()
    allowed = 2 * torch_error + FLOOR[ours.dtype] * scale
    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    assert error[worst] <= allowed, (
        f"error {error[worst]:.3e} at {worst}: got {got[worst].item():.8g}, expected "
        f"{exact[worst].item():.8g}; allowed {allowed:.3e} = 2 x torch's {torch_error:.3e} "
        f"+ {FLOOR[ours.dtype]:g} x {scale:.3e}"
    )


def assert_labels(labels: Tensor, logits: Tensor, margin: float = 1e-5) -> None:
    """Equal to the float64 arg-max but where the two best are within `margin` of the range."""
    assert labels.dtype == torch.uint8
    best = logits.amax(1)
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    short = (best - chosen) / (logits.max() - logits.min()).clamp_min(1e-30)
    assert short.max() <= margin, f"a label's score is {short.max():.2e} of the range too low"
