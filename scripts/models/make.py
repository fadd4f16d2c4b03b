#!/usr/bin/env python3
"""Write small models of every kind that people bring, with random weights, as ONNX files and exported programs.

    python -m scripts.models.make [--out tests/data/models]

What each file stands for is said in `cases.yaml` beside them. The same PyTorch and ONNX write the same files.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from chameleon.cli import guarded
from scripts.models.graphs import GRAPHS, proto
from scripts.models.modules import MODULES, Module

ROOT = Path(__file__).parents[2]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("tests/data/models"),
    only: Annotated[str, typer.Option(help="Names that contain this.")] = "",
) -> None:
    """Write the files."""
    out.mkdir(parents=True, exist_ok=True)
    for path in write_all(out, only):
        print(f"{path.stat().st_size:>9} {path}")


def write_all(out: Path, only: str = "") -> Iterator[Path]:
    """Write each model and give its path."""
    for name, graph in GRAPHS.items():
        if only in name:
            path = out / f"{name}.onnx"
            path.write_bytes(proto(name, graph).SerializeToString())
            yield path
    for name, module in MODULES.items():
        if only in name:
            yield save_program(module, out / f"{name}.pt2")
            if module.onnx is not None:
                yield save_onnx(module, out / f"{name}.onnx")


def save_program(case: Module, path: Path) -> Path:
    """Write a network with `torch.export.save`."""
    network, arguments = _built(case, path.stem)
    dims = case.open_dims() if case.open_dims else None
    with _quiet():
        program = torch.export.export(network, arguments, dynamic_shapes=dims)
        for node in program.graph.nodes:
            node.meta["stack_trace"] = _own_line(node.meta.get("stack_trace", ""))
        torch.export.save(program, path)
    return path


def save_onnx(case: Module, path: Path) -> Path:
    """Write a network as ONNX."""
    assert case.onnx is not None
    network, arguments = _built(case, path.stem)
    inputs, outputs = case.onnx
    with _quiet():  # the newer exporter needs onnxscript
        torch.onnx.export(
            network,
            arguments,
            path,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=case.onnx_open,
        )
    return path


def _built(case: Module, name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network and its arguments; norms have weights and statistics that are far from the initial ones."""
    torch.manual_seed(zlib.crc32(name.encode()))
    network = case.build()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.weight, layer.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 2.0)
            for tensor in (layer.bias, layer.running_mean):
                if tensor is not None:
                    nn.init.uniform_(tensor, -1.0, 1.0)
    return network.train(case.train), case.example()


def _own_line(trace: str) -> str:
    """Where in this checkout a node was made, as PyTorch writes it: paths of a machine are nobody's business."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', trace)
    own = [(Path(file), line, name) for file, line, name in lines if Path(file).is_relative_to(ROOT)]
    own = [(file, line, name) for file, line, name in own if file.parent == Path(__file__).parent]
    return f'File "{own[-1][0].relative_to(ROOT)}", line {own[-1][1]}, in {own[-1][2]}' if own else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, and with attention written out instead of the one kernel for it."""
    fast, level = torch.backends.mha.get_fastpath_enabled(), logging.root.level
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        logging.root.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.root.setLevel(level)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
