"""The parameters of every route, with their ranges: what `/openapi.json` says and what is checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Header
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

MAX_SEED = 2**63 - 1
MAX_CHAINS = 64
MODEL_NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
T = TypeVar("T")
_LONGEST_NUMBER = 40  # characters
_PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]+)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
# An absent parameter is None, but "null" is not a value that a client can send: keep it out of the OpenAPI.
Absent = SkipJsonSchema[None]


def _plain_number(value: object) -> object:
    """Digits as people write them: without this `1_000`, ` 5 ` and digits of other alphabets would pass."""
    if isinstance(value, str) and not (len(value) <= _LONGEST_NUMBER and _PLAIN_NUMBER.fullmatch(value)):
        raise ValueError("must be a plain number, such as 20")
    return value


Integer = Annotated[int, BeforeValidator(_plain_number)]
Number = Annotated[float, BeforeValidator(_plain_number), Field(allow_inf_nan=False)]
FormatName = Literal["png", "gif", "webp", "apng", "json", "npy", "csv", "sse"]


def _one_of(names: Sequence[str]) -> WithJsonSchema:
    """The formats that one route makes; another known one is answered by 406, an unknown one by 422."""
    description = "Overrides the Accept header, which an `<img>` cannot set."
    return WithJsonSchema({"type": "string", "enum": list(names), "description": description})


PICTURE_FORMATS = ("png", "gif", "webp", "apng", "json", "npy", "csv", "sse")
TABLE_FORMATS = ("json", "npy", "csv")
FILTER_FORMATS = ("png", "webp", "json", "npy")
PictureFormat = Annotated[FormatName, _one_of(PICTURE_FORMATS)]
TableFormat = Annotated[FormatName, _one_of(TABLE_FORMATS)]
FilterFormat = Annotated[FormatName, _one_of(FILTER_FORMATS)]
Invert = Literal["auto", "true", "false"]
# Ranges of optional parameters stand inside the union and before the validator: else the OpenAPI would not tell them.
Version = Annotated[int, Field(ge=1, le=999_999), BeforeValidator(_plain_number)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_plain_number)]
Every = Annotated[int, Field(ge=0, le=10_000), BeforeValidator(_plain_number)]
Seconds = Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False), BeforeValidator(_plain_number)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
INVERT: Any = Field("auto", description="Ink and paper swapped? `auto` lets the border of the image decide.")
SEED: Any = Field(None, description="Same seed, same bytes. Absent: one is drawn. Always returned.")
TimeoutHeader = Annotated[Seconds | Absent, Header(description="As `timeout`; the shorter one counts.")]


class ModelParams(BaseModel):
    """Which model answers, and by when."""

    # Frozen: a route remembers what a query string said, for whoever sends it again.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: ModelName | Absent = Field(None, description="Default: the default model.")
    version: Version | Absent = Field(None, description="Default: the newest that verifies.")
    timeout: Seconds | Absent = Field(None, description="Seconds that the answer may take.")


class ChainParams(ModelParams):
    """What dreams, samples and inpaintings have in common."""

    n: Integer = Field(1, ge=1, le=MAX_CHAINS, description="Independent chains (of each image).")
    seed: Seed | Absent = SEED
    temperature: Number = Field(1.0, ge=0.05, le=20, description="T samples from p(v, h)^(1/T).")
    output: Literal["probabilities", "samples"] = Field(
        "probabilities", description="Show p(v=1) of the last step, or the pixels drawn from it."
    )
    every: Every | Absent = Field(
        None,
        description="A frame every so many steps, 0: only the last. Default: about 30 frames for gif, apng and sse, "
        "10 for `view=strip`, else 0. Whoever reads a stream more slowly than it is made misses frames in the middle.",
    )
    view: Literal["final", "pair", "strip"] = Field(
        "final", description="`final`; `pair`: start above, end below; `strip`: one column a frame, a still picture."
    )
    scale: Integer = Field(8, ge=1, le=32, description="Screen pixels a model pixel.")
    pixels: bool = Field(False, description="JSON: also the pixels as numbers.")
    format: PictureFormat | Absent = None


class SampleParams(ChainParams):
    steps: Integer = Field(500, ge=0, le=10_000, description="Full sweeps: hidden units, then visible ones.")
    method: Literal["gibbs", "equilibrium"] = Field(
        "gibbs",
        description="`equilibrium`: draws of the model itself, every digit as often as the model has it. For models "
        "published with a ladder. It takes the rounds it needs (RBM-Steps): leave `steps` and `temperature` out.",
    )


class DreamParams(ChainParams):
    steps: Integer = Field(20, ge=0, le=10_000, description="Full sweeps: hidden units, then visible ones.")
    mode: Literal["gibbs", "mean_field"] = Field(
        "gibbs", description="`mean_field` passes probabilities on: deterministic, not the model's distribution."
    )
    invert: Invert = INVERT


class InpaintParams(ChainParams):
    steps: Integer = Field(200, ge=0, le=10_000, description="Full sweeps: hidden units, then visible ones.")
    keep: Literal["white", "black"] = Field("white", description="Which part of the mask is kept: 1 (white) or 0.")
    invert: Invert = INVERT


class FeaturesParams(ModelParams):
    kind: Literal["probabilities", "logits", "samples"] = Field("probabilities", description="What a feature is.")
    seed: Seed | Absent = SEED
    invert: Invert = INVERT
    format: TableFormat | Absent = None


class EnergyParams(ModelParams):
    seed: Seed = Field(0, description="Grey pixels are drawn as 0 or 1 with this seed.")
    invert: Invert = INVERT
    format: TableFormat | Absent = None


class FiltersParams(ModelParams):
    n: Integer = Field(100, ge=1, le=4096, description="Hidden units shown, those with the largest weights first.")
    scale: Integer = Field(2, ge=1, le=8, description="Screen pixels a model pixel.")
    format: FilterFormat | Absent = None


class NoParams(BaseModel):
    """A route without parameters: one that comes anyway is a typo."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProblemBody(BaseModel):
    """RFC 9457 problem document."""

    type: str = Field(description="A path of this service that explains the problem.")
    title: str
    status: int
    detail: str = Field(description="What to do.")
    instance: str
    request_id: str
    error: str = Field(description="`detail` in one line.")
    errors: list[dict[str, Any]] = Field([], description="Single fields, each with `detail`.")
