"""Arrays of other programs, by the names of PyTorch, and the variables of our networks.

    layer1.0.conv1.weight [64, 64, 3, 3]  is  params layer1_0/conv1/kernel [3, 3, 64, 64]
    layer1.0.bn1.running_var [64]         is  batch_stats layer1_0/bn1/var [64]

The names and layouts of our ResNets are those of torchvision, and of timm where it has the same
network. One rule serves every network: modules are joined by dots, and a number at the end of a
module's name is a module of its own.
"""

import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rxrx1_jax.config import described

Arrays = dict[str, np.ndarray]  # float32, by the names and in the layout of PyTorch

SUFFIXES = (".safetensors", ".pth")
MODULES = {
    "downsample_conv": "downsample.0", "downsample_bn": "downsample.1",
    "patch_embed": "patch_embed.proj",
}  # fmt: skip
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
LAYOUTS = {4: (3, 2, 0, 1), 2: (1, 0)}  # of a kernel, by its dimensions
# Convolutions that read the image. One of three channels serves any number of them.
STEMS, COLOURS = ("conv1.weight", "conv_stem.weight", "_conv_stem.weight"), 3
# What stands behind the features: ours, torchvision's and timm's.
HEADS = (
    "fc", "_fc", "head", "classifier", "arc", "neck", "neck_in", "neck_first", "neck_middle",
    "neck_second", "film_scale", "film_shift", "domain_hidden", "domain_fc",
)  # fmt: skip
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{}',"
    " weights_only=True), '{}')\""
)


class WeightsError(ValueError):
    """Weights that cannot be read, or are of another network; one line."""


def read(path: Path) -> Arrays:
    """The arrays of a .safetensors or .pth file. Nothing in it is executed.

    Raises WeightsError.
    """
    try:
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except WeightsError:
        raise
    except Exception as error:  # whatever the parsers of PyTorch and safetensors raise
        text = "no such file" if isinstance(error, FileNotFoundError) else described(error)
        raise WeightsError(f"cannot be read: {text}") from error
    found = {
        name: np.asarray(x, np.float32) for name, x in found.items()
        if not name.endswith("num_batches_tracked")  # PyTorch's count of updates, which is not used
    }  # fmt: skip
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise WeightsError(f"{name} has values that are not finite")
    return found


def _read_safetensors(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch(path: Path) -> Arrays:
    try:
        import torch
    except ImportError as error:
        command = CONVERT.format(path.name, path.with_suffix(".safetensors").name)
        raise WeightsError(
            f"needs PyTorch to be read (pip install torch); or convert it where that is: {command}"
        ) from error
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise WeightsError(f"holds a {type(found).__name__}; expected names and arrays")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{name!r} is a {type(value).__name__}; expected names and arrays alone (a state"
                " dict): save that part of it"
            )
    return {name: value.detach().float().numpy() for name, value in found.items()}


def torch_name(path: tuple[str, ...]) -> str:
    """The name of a variable, as ("params", "layer1_0", "conv1", "kernel")."""
    *modules, leaf = path[1:]
    named = [MODULES.get(name) or re.sub(r"_(\d+)$", r".\1", name) for name in modules]
    return ".".join([*named, LEAVES.get(leaf, leaf)])


def names(variables: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """{path: name} of {"params": ..., "batch_stats": ...}."""
    return {path: torch_name(path) for path in flatten_dict(dict(variables))}


def to_torch(variables: Mapping[str, Any]) -> Arrays:
    """{"params": ..., "batch_stats": ...} -> arrays by their names and layouts in PyTorch."""
    return {
        torch_name(path): np.ascontiguousarray(np.asarray(value).transpose(_layout(path, value)))
        for path, value in flatten_dict(dict(variables)).items()
    }


def fill(variables: Mapping[str, Any], arrays: Arrays, body: Set[str]) -> dict[str, Any]:
    """Variables with the values of `arrays`; those without one stay as they are.

    Args:
      variables: arrays; or their shapes, to check alone.
      body: names that must be there. The others are the head, which is taken whole or not at all:
        not where an array of one of both is missing in the other, or has another shape.

    Raises WeightsError: an array of the body is missing or has another shape, but for the channels
    of a stem; or one has no place in the network.
    """
    places = flatten_dict(dict(variables))
    named = names(variables)
    for name in sorted(arrays.keys() - {*named.values()}):
        if name.partition(".")[0] not in HEADS:
            raise WeightsError(
                f"{name} {arrays[name].shape} has no place in the network: check model.name"
            )
    found = dict[tuple[str, ...], np.ndarray]()
    head = dict[tuple[str, ...], np.ndarray | None]()
    for path, place in places.items():
        name, layout = named[path], _layout(path, place)
        shape = tuple(place.shape[axis] for axis in layout)
        value = arrays.get(name)
        if value is not None and name in STEMS and value.shape[1:2] == (COLOURS,):
            value = tiled(value, shape[1])
        fits = value is not None and value.shape == shape
        if value is not None and fits:
            value = value.transpose(np.argsort(layout))
        if name not in body:
            head[path] = value if fits else None
        elif value is None or not fits:
            there = "missing" if value is None else f"{value.shape}"
            raise WeightsError(
                f"{name} is {there}; expected {shape}, as in the network: check model.name and"
                " model.width"
            )
        else:
            found[path] = value
    kept = {path: value for path, value in head.items() if value is not None}
    if len(kept) == len(head) and {named[path] for path in kept} == arrays.keys() - body:
        found |= kept
    return unflatten_dict({**places, **found})


def tiled(kernel: np.ndarray, channels: int) -> np.ndarray:
    """[D, 3, k, k] -> [D, channels, k, k]: the colours in turn, their sum kept, as timm has it."""
    return kernel[:, np.arange(channels) % COLOURS] * np.float32(COLOURS / channels)


def _layout(path: tuple[str, ...], value: Any) -> tuple[int, ...]:
    """The axes of a variable in the order of PyTorch."""
    kept = tuple(range(value.ndim))
    return LAYOUTS.get(value.ndim, kept) if path[-1] == "kernel" else kept
