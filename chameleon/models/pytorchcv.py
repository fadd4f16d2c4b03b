"""Make networks by name, as PyTorch modules with random weights. Does not need TVM.

The names are those of pytorchcv's zoo and of our irregular cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from chameleon.errors import UsageError, unknown
from chameleon.models.errors import ModelError, explained
from chameleon.models.irregular import CELLS, cell, cell_module
from chameleon.models.shapes import GivenShapes, shapes_by_name


@dataclass(frozen=True)
class Network:
    """A PyTorch module in inference mode, and the inputs that it takes.

    Attributes:
        name: the name in the zoo.
        module: the module; its `forward` takes the inputs in the order of `shapes`.
        shapes: the shapes of the inputs, by name. The inputs are 32-bit floats.
    """

    name: str
    module: torch.nn.Module = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]


def model_names() -> list[str]:
    """The sorted names of the zoo: pytorchcv's networks and our cells."""
    return sorted((*_pytorchcv(), *CELLS))


def zoo_network(name: str, seed: int, given: GivenShapes | None = None) -> Network:
    """Make a network of the zoo; nothing is downloaded.

    Args:
        name: a name of `model_names()`, in small or capital letters.
        seed: seed for the weights.
        given: replaces the usual shapes; no dimension of these networks has a name.

    Raises:
        UsageError: if the name is unknown.
        ModelError: if the network cannot be built, the shape does not fit or the zoo is not installed.
    """
    known = name.lower()
    given = given or GivenShapes()
    if given.dims:
        raise UsageError(f"{name} has no open dimensions with names; give a shape, such as --input-shape 1,3,224,224")
    if known in CELLS:
        return _irregular(known, seed, given)
    zoo = _pytorchcv()
    if known not in zoo:
        raise unknown("model", name, [*zoo, *CELLS, "an .onnx file", "a .pt2 file"])
    with explained(name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = zoo[known](pretrained=False).eval()
    if given.shapes is not None:
        shape = shapes_by_name(name, given.shapes, {"x": ()})["x"]
    elif hasattr(module, "in_size"):
        shape = (1, 3, *(int(d) for d in module.in_size))
    else:
        raise ModelError(
            f"{name}: the zoo does not say the shape of its input; give one, for instance --input-shape 1,3,224,224"
        )
    return Network(known, module, {"x": tuple(shape)})


def _irregular(name: str, seed: int, given: GivenShapes) -> Network:
    """Make one of our cells; its channels are fixed, its height and width are not."""
    made = cell(name)
    shapes = {key: (1, *shape) for key, shape in made.inputs.items()}
    shapes = {**shapes, **shapes_by_name(name, given.shapes, shapes)}
    return Network(name, cell_module(made, np.random.default_rng(seed)), shapes)


def _pytorchcv() -> Mapping[str, Any]:
    try:
        from pytorchcv import model_provider
    except ImportError as error:
        raise ModelError(
            f"the zoo needs pytorchcv (pip install 'chameleon-tvm[zoo]'), whose import failed: {error}"
        ) from error
    return model_provider._models
