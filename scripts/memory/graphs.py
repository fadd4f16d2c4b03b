#!/usr/bin/env python3
"""Write the irregular cells as graphs for the memory-aware scheduler, one JSON file each.

    python -m scripts.memory.graphs

`chameleon memory FILE.json` reads these files without TVM or PyTorch. `chameleon.models.irregular` says what the cells
are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chameleon.cli import guarded
from chameleon.models.irregular import CELLS, cell, cell_graph
from chameleon.serenity.graph import write_graph

app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@app.command()
def main(out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("configs/serenity")) -> None:
    """Write the graphs of all irregular cells."""
    out.mkdir(parents=True, exist_ok=True)
    for name in CELLS:
        write_graph(cell_graph(cell(name)), out / f"{name}.json")
        print(out / f"{name}.json")


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
