"""A genetic algorithm on measured throughput: AutoTVM's baseline without a cost model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chameleon.search.history import History
from chameleon.search.moves import Moves, unique_rows
from chameleon.search.ranges import Count, Share, Whole, check_ranges
from chameleon.search.space import Digits


@dataclass(frozen=True)
class GeneticConfig:
    """Settings of the genetic algorithm: those of AutoTVM's GATuner, except for the population."""

    population: Count = 32  # children in a generation; parents come from the last one (AutoTVM: 100)
    elite: Whole = 3  # this many of the best are always among the possible parents
    mutation: Share = 0.1  # probability that a gene (a knob's digit) becomes random

    def __post_init__(self) -> None:
        check_ranges(self)


class Genetic:
    """Makes generations of children from the fittest configurations.

    Fitter parents are drawn more often. A child has the first knobs of one parent and the rest of another (one
    crossover point); then some of its knobs become random (mutation). The history is all the state there is: the
    possible parents are the newest generation and the best of all.
    """

    def __init__(self, config: GeneticConfig) -> None:
        self.config = config

    def generation(self, history: History, moves: Moves, rng: np.random.Generator) -> Digits:
        """New children `[m, n_knobs]`; all are valid, some may be known already."""
        config = self.config
        fitness = history.throughput()
        elite = np.argsort(-fitness, kind="stable")[: config.elite]
        newest = np.arange(max(len(history) - config.population, 0), len(history))
        parents = np.unique(np.concatenate([elite, newest]))
        genes, weights = history.configs[parents], fitness[parents] + 1e-9
        pairs = rng.choice(len(parents), size=(4 * config.population, 2), p=weights / weights.sum())
        first, second = genes[pairs[:, 0]], genes[pairs[:, 1]]
        cut = rng.integers(genes.shape[1], size=len(pairs))
        children = np.where(np.arange(genes.shape[1])[None] <= cut[:, None], first, second)
        mutate = rng.random(children.shape) < config.mutation
        children = np.where(mutate, rng.integers(moves.space.cardinalities, size=children.shape), children)
        children = moves.space.canonical(children)
        return unique_rows(children[moves.space.is_valid(children)])
