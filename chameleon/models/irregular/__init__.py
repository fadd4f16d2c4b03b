"""Irregularly wired networks that papers describe, but that nobody distributes. Does not need TVM.

They are built here from the descriptions, with random parts that a seed fixes. `chameleon.models.irregular.cells` says
what is known of each network and what is inferred.
"""

from chameleon.models.irregular.catalogue import CELLS, cell
from chameleon.models.irregular.modules import cell_module
from chameleon.models.irregular.operators import Cell, Operator, cell_graph

__all__ = ["CELLS", "Cell", "Operator", "cell", "cell_graph", "cell_module"]
