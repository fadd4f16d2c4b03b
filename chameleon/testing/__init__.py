"""What every searcher, space and host promises, as checks that anyone can run. They need no pytest and no TVM."""

from chameleon.testing.hosts import check_host, check_space
from chameleon.testing.landscapes import SPACES, Cost, bowl, everything, measure
from chameleon.testing.report import ContractError
from chameleon.testing.searchers import PARTS, Check, Make, check_searcher, searcher_checks

__all__ = [
    "PARTS",
    "SPACES",
    "Check",
    "ContractError",
    "Cost",
    "Make",
    "bowl",
    "check_host",
    "check_searcher",
    "check_space",
    "everything",
    "measure",
    "searcher_checks",
]
