"""torchvision and timm, imported under any build of PyTorch: `from torch_models import timm`.

PyPI's torchvision is built for PyTorch's CUDA build. Under the CPU build its compiled operators do
not load, and the import fails, since it describes operators that nobody defined. None of our
networks needs one, so their names are enough.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

OPERATORS = (
    "deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "qnms", "qroi_align", "roi_align",
    "roi_pool",
)  # fmt: skip
BACKWARD = ("deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")


def _define_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    with contextlib.suppress(OSError):
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in (*OPERATORS, *(f"_{name}_backward" for name in BACKWARD)):
        library.define(f"{name}(Tensor x) -> Tensor")
    _KEPT.append(library)  # it takes its definitions back when it is collected


_KEPT: list[torch.library.Library] = []
_define_operators()

import timm as timm  # noqa: E402
import torchvision as torchvision  # noqa: E402
