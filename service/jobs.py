"""What the HTTP side and the scheduler say to each other: plain types, no model code.

A `ChainJob` goes in; `Frame`s, or one of the exceptions below, come out. Each exception is one answer to a client:

    Busy            429   not now: the queue cannot meet the budget or the deadline; `retry_after` says when
    TooMuch         422   never: the job does not fit the budget even on an idle server
    NotReady        503   no model is loaded yet, or the server is draining
    UnknownModel    404   no such model; UnknownVersion: no such version that verifies
    DeadlinePassed  504   accepted, but its deadline passed before it was finished
    Cancelled        -    the client left
    EngineFailed    500   the engine raised while computing it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from service.served_model import ServedModel

MODES = ("gibbs", "mean_field", "equilibrium")
FRAME_STEPS = 4  # what a frame costs more, in steps a chain: the engine starts anew, and Python puts the frame together


class Kind(NamedTuple):
    """Jobs whose steps take equally long."""

    num_visible: int
    num_hidden: int
    mode: str


class Rank(NamedTuple):
    """Where a job stands in line: those with a smaller `size` go first."""

    kind: Kind
    size: int  # about log2 of its work in weights passed


def kind_of(model: ServedModel, mode: str) -> Kind:
    """A round of equilibrium sampling visits every rung: as if the model had so many more hidden units."""
    sampler = model.sampler if mode == "equilibrium" else None
    factor = 1 if sampler is None else sampler.steps_a_round
    return Kind(model.num_visible, factor * model.num_hidden, mode)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainJob:
    """Independent chains of one request, all with the same number of steps. Arrays of other types are converted.

    Raises:
      ValueError: if arrays do not fit each other or the model. A job that exists can be run beside any other.
    """

    model: ServedModel  # the version that this job began with and finishes on
    visible: np.ndarray  # uint8 or bool [chains, visible], 0 or 1; float32 in 0..1 for mean_field
    seeds: np.ndarray  # uint64 [chains]
    num_steps: int  # rounds in mode equilibrium
    temperature: float = 1.0
    clamp: np.ndarray | None = None  # bool [chains, visible], True: this pixel never changes
    mode: str = "gibbs"
    every: int = 0  # a frame every so many steps; 0 = only the last
    deadline: float | None = None  # time.monotonic() seconds
    # What follows from these.
    num_chains: int = field(init=False)
    num_frames: int = field(init=False)  # that a reader of all gets: the start, one every `every` steps, the last
    cost: int = field(init=False)  # chain-steps (one step of one chain is 1), with what its frames cost on top
    kind: Kind = field(init=False)
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        self._check()
        dtype = np.float32 if self.mode == "mean_field" else np.uint8
        visible = self.visible.view(np.uint8) if self.visible.dtype == bool else self.visible
        num_chains = len(visible)
        num_frames = 1 + math.ceil(self.num_steps / self.every) if self.every else 1
        cost, kind = num_chains * (self.num_steps + FRAME_STEPS * num_frames), kind_of(self.model, self.mode)
        # Powers of two: jobs of about the same size share a rank, and keep the order in which they came.
        rank = Rank(kind, (cost * kind.num_visible * kind.num_hidden).bit_length())
        vars(self).update(
            visible=np.ascontiguousarray(visible, dtype),
            seeds=np.ascontiguousarray(self.seeds, np.uint64),
            num_chains=num_chains,
            num_frames=num_frames,
            cost=cost,
            kind=kind,
            rank=rank,
        )

    def _check(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: {self.mode!r}")
        shape = self.visible.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self.model.num_visible:
            raise ValueError(f"`visible` must be [chains, {self.model.num_visible}]. Received shape {shape}.")
        if self.visible.dtype != bool:
            self._check_values()
        if self.mode == "equilibrium" and self.model.sampler is None:
            raise ValueError(f"Model {self.model.name!r} was published without a ladder.")
        if self.seeds.shape != shape[:1]:
            raise ValueError(f"`seeds` must hold one integer a chain. Received shape {self.seeds.shape}.")
        if self.clamp is not None and (self.clamp.shape != shape or self.clamp.dtype != bool):
            raise ValueError(f"`clamp` must be bool {shape}. Received {self.clamp.dtype} {self.clamp.shape}.")
        if self.num_steps < 0 or self.every < 0:
            raise ValueError(f"`num_steps` and `every` must not be negative. Received: {self.num_steps}, {self.every}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be above 0. Received: {self.temperature}")

    def _check_values(self) -> None:
        if self.mode != "mean_field" and not ((self.visible == 0) | (self.visible == 1)).all():
            raise ValueError(f"`visible` must hold only 0 and 1 in mode {self.mode}; binarise grey images first.")
        if not (self.visible.min() >= 0 and self.visible.max() <= 1):
            raise ValueError("`visible` must hold numbers between 0 and 1.")

    @property
    def frame_bytes(self) -> int:
        """Memory of one frame: its states and their float32 probabilities."""
        return self.visible.size * (self.visible.itemsize + 4)


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the chains are after `step` steps; step 0 is the start. The last frame is always step `num_steps`."""

    step: int
    visible: np.ndarray  # uint8 [chains, visible]; float32 in 0..1 for mean_field
    visible_probs: np.ndarray  # float32 [chains, visible], given the last hidden states; the states at step 0


class Busy(Exception):
    """Not now. In `retry_after` seconds the job would be accepted if nothing else came. `cause` is for metrics."""

    def __init__(self, reason: str, retry_after: float, cause: str = "queue_full") -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.cause = reason, retry_after, cause


class TooMuch(Exception):
    """Never: the job cannot fit the budget. With at most `largest` for its `parameter`, `steps` or `n`, it would."""

    cause = "too_much"

    def __init__(self, reason: str, largest: int, parameter: str = "steps") -> None:
        super().__init__(reason)
        self.reason, self.largest, self.parameter = reason, largest, parameter


class NotReady(Exception):
    """Not yet, or not any more: no model is loaded, or the server is draining."""

    def __init__(self, reason: str, retry_after: float, cause: str = "not_ready") -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.cause = reason, retry_after, cause


class UnknownModel(LookupError):
    """No model of this name; `names` are those that exist."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        super().__init__(f"There is no model {name!r}. Models served here: {', '.join(names) or 'none'}.")
        self.name, self.names = name, list(names)


class UnknownVersion(LookupError):
    """This model has no such version that verifies; `versions` are those on disk, `problem` says why if it is bad."""

    def __init__(self, name: str, version: int, versions: Sequence[int], problem: str | None = None) -> None:
        why = f"cannot be used: {problem.rstrip('.')}" if problem else "does not exist"
        listed = ", ".join(str(number) for number in versions) or "none"
        super().__init__(f"Version {version} of model {name!r} {why}. Versions on disk: {listed}.")
        self.name, self.version, self.versions, self.problem = name, version, list(versions), problem


class DeadlinePassed(Exception):
    """The job's deadline passed before it was finished."""

    cause = "deadline"


class Cancelled(Exception):
    """The job was cancelled, by its client's leaving or by the server's stop."""


class EngineFailed(Exception):
    """The engine raised while it computed this job; the cause is chained."""
