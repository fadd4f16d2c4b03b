"""Adaptive exploration: an agent that looks for configurations which the cost model rates high (Ahn 2020, sec. 3.2).

The agent learns by PPO, a method of reinforcement learning. It moves many walkers through the space. In a step, a
walker changes some of its knobs. Its reward is the score that the cost model gives to the new configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chameleon.search.annealing import Score
from chameleon.search.moves import Moves, ranked
from chameleon.search.ranges import AboveZero, AtLeastZero, Count, Finite, Share, check_ranges
from chameleon.search.space import Digits, KnobSpace

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AgentConfig:
    """The agent's settings. Where ours differ from the paper's, a comment says so: (paper: ...)."""

    policy: Literal["learned", "uniform"] = "learned"  # uniform: no nets, each move of a knob is as likely as another
    walkers: Count = 64  # walkers that step together (paper: 128 episodes)
    steps: Count = 24  # steps of a rollout (paper: at most 500)
    elite: Share = 0.5  # share of the walkers that start at the best measured configurations (paper: none)
    # random configurations that are scored first; a quarter of the walkers start at the best of them (paper: none)
    pool: Count = 2048
    rollouts: Count = 6  # most rollouts in one exploration; a PPO update follows each of them
    watched: Count = 16  # the mean score of this many best candidates decides whether an exploration goes on
    least_gain: Finite = 0.005  # it stops when that mean grows by less than this share in a rollout
    hidden: Count = 64  # tanh units in each of the two layers of both nets (paper: 20)
    changes: AboveZero = 1.5  # knobs that an untrained walker changes in a step, on average (paper: two thirds of all)
    learning_rate: AtLeastZero = 3e-3  # Adam (paper: 1e-3)
    discount: Share = 0.9
    gae_lambda: Share = 0.95  # (paper: 0.99)
    clip: AboveZero = 0.2  # (paper: 0.3)
    entropy: AtLeastZero = 0.01  # (paper: 0.1)
    value_coefficient: AtLeastZero = 0.5  # (paper: 1.0)
    epochs: Count = 1  # how often an update goes through its rollout (paper: 3)
    minibatches: Count = 4  # pieces that each of these passes is cut into

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Rollout:
    """What the walkers did in one rollout; the first axis of each array is time."""

    observations: Floats  # [steps, walkers, n_features]
    actions: NDArray[np.int64]  # [steps, walkers, n_knobs]
    log_probs: Floats  # [steps, walkers]
    values: Floats  # [steps + 1, walkers]
    visited: Digits  # [steps, walkers, n_knobs], the configuration that each action led to
    active: NDArray[np.bool_]  # [steps, walkers, n_knobs], which knobs the walker could change


class Observer:
    """Turns configurations into what the policy sees: knob features scaled to -1..1, 0 for inactive knobs."""

    def __init__(self, space: KnobSpace) -> None:
        self._space = space
        widest = max(k.features.shape[1] for k in space.knobs)
        self._offsets = np.concatenate([[0], np.cumsum(space.cardinalities)[:-1]])
        self._table = np.zeros((int(space.cardinalities.sum()), widest), dtype=np.float32)
        for knob, start in zip(space.knobs, self._offsets.tolist(), strict=True):
            low, high = knob.features.min(axis=0), knob.features.max(axis=0)
            scaled = (2 * knob.features - low - high) / np.maximum(high - low, 1e-6)
            self._table[start : start + knob.cardinality, : scaled.shape[1]] = scaled
        self.width = space.n_knobs * widest

    def __call__(self, configs: Digits) -> Floats:
        """What the policy sees of the configurations `[n, n_knobs]`, `[n, n_features]`."""
        seen = self._table[self._offsets + configs] * self._space.mask(configs)[..., None]
        return seen.reshape(len(configs), self.width)


def gae(rewards: Floats, values: Floats, discount: float, lam: float) -> Floats:
    """Estimates how much better each action was than expected.

    This is generalised advantage estimation (Schulman 2016, eq. 16). No episode ends within a rollout.

    Args:
        rewards: `[steps, walkers]`.
        values: `[steps + 1, walkers]`; the last row is for the state after the last step.

    Returns:
        Advantages `[steps, walkers]`.
    """
    out = np.zeros_like(rewards)
    running = np.zeros(rewards.shape[1], dtype=np.float32)
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + discount * values[t + 1] - values[t]
        running = delta + discount * lam * running
        out[t] = running
    return out


class Policy:
    """The agent's two neural nets, policy and value, with their optimiser.

    The policy net chooses an action for every knob at once. The value net says what a state is worth. The first
    weights are drawn from the `rng` given, so torch's global generator is neither read nor changed.
    """

    def __init__(
        self, n_features: int, n_actions: NDArray[np.int64], config: AgentConfig, rng: np.random.Generator
    ) -> None:
        import torch

        self._torch = torch
        self._config = config
        self._shape = (len(n_actions), int(n_actions.max()))
        self._impossible = torch.from_numpy(np.arange(self._shape[1])[None] >= n_actions[:, None])
        sizes = (n_features, config.hidden, config.hidden)
        self.parameters = self._layers(sizes, self._shape[0] * self._shape[1], rng) + self._layers(sizes, 1, rng)
        with torch.no_grad():
            self.parameters[5].copy_(
                torch.from_numpy(_lazy_bias(n_actions, self._shape[1], config.changes)).reshape(-1)
            )
        self._moments = [torch.zeros_like(p) for p in self.parameters], [torch.zeros_like(p) for p in self.parameters]
        self._steps = [torch.tensor(0.0) for _ in self.parameters]

    def _layers(self, sizes: tuple[int, ...], out: int, rng: np.random.Generator) -> list[Any]:
        tensors = []
        for i, (a, b) in enumerate(zip(sizes, (*sizes[1:], out), strict=True)):
            gain = 0.01 if i == len(sizes) - 1 else 1.0
            tensors.append((rng.normal(size=(a, b)) * gain / np.sqrt(a)).astype(np.float32))
            tensors.append(np.zeros(b, dtype=np.float32))
        return [self._torch.tensor(t, requires_grad=True) for t in tensors]

    def _log_probs(self, observations: Any) -> Any:
        """The log-probabilities of all actions of all knobs, `[n, n_knobs, n_actions]`."""
        torch, p = self._torch, self.parameters
        h = torch.tanh(torch.tanh(observations @ p[0] + p[1]) @ p[2] + p[3])
        logits = (h @ p[4] + p[5]).reshape(-1, *self._shape).masked_fill(self._impossible, -1e9)
        return torch.log_softmax(logits, dim=-1)

    def _values(self, observations: Any) -> Any:
        torch, p = self._torch, self.parameters
        h = torch.tanh(torch.tanh(observations @ p[6] + p[7]) @ p[8] + p[9])
        return (h @ p[10] + p[11]).squeeze(-1)

    def values(self, observations: Floats) -> Floats:
        """What the states `[n, n_features]` are worth, `[n]`."""
        with self._torch.no_grad():
            return self._values(self._torch.from_numpy(observations)).numpy()

    def act(
        self, observations: Floats, active: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Floats]:
        """Sampled actions `[n, n_knobs]` and their log-probabilities `[n]`."""
        with self._torch.no_grad():
            log_probs = self._log_probs(self._torch.from_numpy(observations)).numpy()
        gumbel = -np.log(-np.log(rng.random(log_probs.shape, dtype=np.float32) + 1e-12) + 1e-12)
        actions = np.where(active, np.argmax(log_probs + gumbel, axis=-1), 0)
        chosen = np.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]
        return actions, (chosen * active).sum(axis=-1).astype(np.float32)

    def update(self, rollout: Rollout, rewards: Floats, rng: np.random.Generator) -> None:
        """One PPO update (Schulman 2017, eq. 7 and 9) on a rollout with `rewards` `[steps, walkers]`."""
        torch, config = self._torch, self._config
        advantages = gae(rewards, rollout.values, config.discount, config.gae_lambda)
        returns = advantages + rollout.values[:-1]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        count = rewards.size
        flat = [rollout.observations, rollout.actions, rollout.log_probs, advantages, returns, rollout.active]
        data = [torch.from_numpy(np.ascontiguousarray(x.reshape(count, *x.shape[2:]))) for x in flat]
        for _ in range(config.epochs):
            for rows in np.array_split(rng.permutation(count), min(config.minibatches, count)):
                loss = self._loss(*(x[torch.from_numpy(rows)] for x in data))
                self._step(list(torch.autograd.grad(loss, self.parameters)))

    def _step(self, gradients: list[Any]) -> None:
        """Makes one Adam step on the clipped gradients.

        It uses torch's functional form of Adam, since torch's class for it imports all of torch.compile.
        """
        from torch.optim.adam import adam

        torch = self._torch
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        gradients = [g * torch.clamp(0.5 / (norm + 1e-6), max=1.0) for g in gradients]
        with torch.no_grad():
            adam(
                self.parameters,
                gradients,
                *self._moments,
                [],
                self._steps,
                foreach=False,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self._config.learning_rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

    def _loss(self, observations: Any, actions: Any, old: Any, advantages: Any, returns: Any, active: Any) -> Any:
        torch, config = self._torch, self._config
        log_probs, values = self._log_probs(observations), self._values(observations)
        chosen = (log_probs.gather(-1, actions[..., None]).squeeze(-1) * active).sum(dim=-1)
        ratio = torch.exp(chosen - old)
        clipped = torch.clamp(ratio, 1 - config.clip, 1 + config.clip)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages).mean()
        entropy = (-(log_probs.exp() * log_probs.clamp(min=-50)).sum(dim=-1) * active).sum(dim=-1).mean()
        return -surrogate - config.entropy * entropy + config.value_coefficient * ((values - returns) ** 2).mean()

    def state(self) -> dict[str, Any]:
        means, squares = ([m.numpy().copy() for m in moments] for moments in self._moments)
        weights = [p.detach().numpy().copy() for p in self.parameters]
        return {"weights": weights, "adam": {"means": means, "squares": squares, "step": float(self._steps[0])}}

    def restore(self, state: dict[str, Any]) -> None:
        torch, adam = self._torch, state["adam"]
        saved = [*state["weights"], *adam["means"], *adam["squares"]]
        with torch.no_grad():
            for tensor, values in zip([*self.parameters, *self._moments[0], *self._moments[1]], saved, strict=True):
                tensor.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
            for step in self._steps:
                step.fill_(adam["step"])


class UniformPolicy:
    """What an untrained policy does, and nothing more: the baseline that says what learning is worth."""

    def __init__(self, n_actions: NDArray[np.int64], config: AgentConfig) -> None:
        self._n_moves = n_actions - 1
        self._rate = _rate(n_actions, config.changes)

    def values(self, observations: Floats) -> Floats:
        return np.zeros(len(observations), dtype=np.float32)

    def act(
        self, observations: Floats, active: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Floats]:
        """Random actions `[n, n_knobs]`; their log-probabilities `[n]` are not needed and 0."""
        moves = active & (self._n_moves > 0) & (rng.random(active.shape) < self._rate)
        actions = np.where(moves, 1 + rng.integers(np.maximum(self._n_moves, 1), size=active.shape), 0)
        return actions, np.zeros(len(active), dtype=np.float32)

    def update(self, rollout: Rollout, rewards: Floats, rng: np.random.Generator) -> None:
        """It does not learn."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is kept."""


def _rate(n_actions: NDArray[np.int64], changes: float) -> float:
    """The share of the knobs that an untrained walker changes in a step."""
    return min(changes / max(int((n_actions > 1).sum()), 1), 2 / 3)


def _lazy_bias(n_actions: NDArray[np.int64], width: int, changes: float) -> Floats:
    """First biases of the logits `[n_knobs, width]`: with them an untrained walker changes `changes` knobs a step."""
    stay = 1 - _rate(n_actions, changes)
    bias = np.zeros((len(n_actions), width), dtype=np.float32)
    bias[:, 0] = np.log(stay / (1 - stay) * np.maximum(n_actions - 1, 1))
    return bias


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on one thread inside the block: these nets are too small to gain from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Agent:
    """One policy for the whole search, and many walkers that it moves.

    We differ from the paper in three points. Moves are those of `Knob.moves` (for a split: one prime factor goes from
    one level to another), not +-1 in a list. A step into an invalid configuration leaves the walker where it is. An
    episode lasts as long as a rollout.
    """

    def __init__(self, space: KnobSpace, config: AgentConfig, rng: np.random.Generator) -> None:
        self.elite = round(config.elite * config.walkers)
        self.starts = config.pool
        self._config = config
        self._moves = Moves(space)
        self._observe = Observer(space)
        actions = self._moves.n_actions
        self._policy = (
            Policy(self._observe.width, actions, config, rng)
            if config.policy == "learned"
            else UniformPolicy(actions, config)
        )

    def explore(
        self, score: Score, starts: Digits, known: set[bytes], rng: np.random.Generator
    ) -> tuple[Digits, NDArray[np.float64]]:
        """Walks from some of `starts` `[m, n_knobs]`, and learns on the way.

        Args:
            score: gives the predicted throughput `[n]` of configurations `[n, n_knobs]`. It is called once for the
                starts and once for each whole rollout.
            starts: the best measured configurations in the first `elite` places, then random ones.
            known: keys of configurations that are taken already; none of them is returned.

        Returns:
            The configurations that were met and are not `known`, each once, best first, `[m, n_knobs]`, and their
            scores `[m]`.
        """
        start_scores = score(starts)
        found, scores = ranked(starts, start_scores, known)
        starts, level = self._chosen(starts, start_scores), -np.inf
        points = starts
        with one_thread():
            for _ in range(self._config.rollouts):
                rollout = self.rollout(points, rng)
                visited = rollout.visited.reshape(-1, starts.shape[1])
                rewards = score(visited)
                self._policy.update(rollout, rewards.reshape(rollout.log_probs.shape).astype(np.float32), rng)
                found, scores = ranked(np.vstack([found, visited]), np.concatenate([scores, rewards]), known)
                before, level = level, float(scores[: self._config.watched].mean()) if len(scores) else 0.0
                if level < before + self._config.least_gain * abs(before):
                    break
                points = np.vstack([found[: self.elite], starts])[: len(starts)]
        return found, scores

    def _chosen(self, starts: Digits, scores: NDArray[np.float64]) -> Digits:
        """Where the walkers start, `[walkers, n_knobs]`: the elite, the best-scored of the rest, and random ones."""
        n, fresh = self._config.walkers - self.elite, np.arange(self.elite, len(starts))
        best = fresh[np.argsort(-scores[self.elite :], kind="stable")][: n // 2]
        rows = np.concatenate([np.arange(min(self.elite, len(starts))), best, fresh])
        return starts[rows[np.arange(self._config.walkers) % len(rows)]]

    def rollout(self, starts: Digits, rng: np.random.Generator) -> Rollout:
        """Lets all walkers step together, `steps` times, and records what they did."""
        points, steps = starts, []
        for _ in range(self._config.steps):
            seen, active = self._observe(points), self._moves.space.mask(points)
            actions, log_probs = self._policy.act(seen, active, rng)
            points = self._moves.step(points, actions, rng)
            steps.append((seen, actions, log_probs, points, active))
        seen, actions, log_probs, visited, active = (np.stack(x) for x in zip(*steps, strict=True))
        states = np.vstack([seen.reshape(-1, self._observe.width), self._observe(points)])
        values = self._policy.values(states).reshape(len(steps) + 1, len(starts))
        return Rollout(seen, actions, log_probs, values, visited, active)

    def state(self) -> dict[str, Any]:
        return {"policy": self._policy.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._policy.restore(state["policy"])
