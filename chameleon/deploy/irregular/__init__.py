"""Irregularly wired networks that the papers describe and nobody ships: built from the descriptions, seeded. Knows no TVM.

`chameleon.deploy.irregular.cells` says what is known of each and what is inferred.
"""

from chameleon.deploy.irregular.catalogue import CELLS, cell
from chameleon.deploy.irregular.modules import cell_module
from chameleon.deploy.irregular.operators import Cell, Operator, cell_graph

__all__ = ["CELLS", "Cell", "Operator", "cell", "cell_graph", "cell_module"]
