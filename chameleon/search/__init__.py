"""The search engine: ask it for configurations, measure them anywhere, tell it the outcome. It never imports tvm."""

from chameleon.search.kin import Kin, warm_start
from chameleon.search.recipes import SEARCHERS, ChameleonSearcher, UnknownSearcherError, make_searcher
from chameleon.search.searcher import EarlyStopping, Searcher, StateError
from chameleon.search.space import Digits, Knob, KnobSpace, location, option, split, split_of
from chameleon.search.trial import Status, Trial

__all__ = [
    "SEARCHERS",
    "ChameleonSearcher",
    "Digits",
    "EarlyStopping",
    "Kin",
    "Knob",
    "KnobSpace",
    "Searcher",
    "StateError",
    "Status",
    "Trial",
    "UnknownSearcherError",
    "location",
    "make_searcher",
    "option",
    "split",
    "split_of",
    "warm_start",
]
