"""Irregularly wired networks that the papers describe and nobody ships: built from the descriptions, seeded. Knows no TVM.

`chameleon.models.irregular.cells` says what is known of each and what is inferred.
"""

from chameleon.models.irregular.catalogue import CELLS, cell
from chameleon.models.irregular.modules import cell_module
from chameleon.models.irregular.operators import Cell, Operator, cell_graph

__all__ = ["CELLS", "Cell", "Operator", "cell", "cell_graph", "cell_module"]
