"""What `rbm sample`, `dream` and `features` do behind their flags, with the service's own parts and no server."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_core.cli_support import CliError, find_model, say, write_output

if TYPE_CHECKING:
    import numpy as np

    from service.answers import Drawing
    from service.inputs import Pixels
    from service.jobs import ChainJob, Frame
    from service.registry import ServedModel
    from service.schemas import DreamParams, Invert, SampleParams


def serve_model(checkpoints: Path | None, name: str | None, version: int | None) -> ServedModel:
    """A model in the form that the service answers with, prepared for the default engine."""
    from model_core.chains import get_engine
    from service.registry import ServedModel

    model = find_model(checkpoints, name, version)
    return ServedModel(model, get_engine().prepare(model.params))


def read_images(paths: list[Path], image_shape: tuple[int, int], invert: Invert) -> Pixels:
    """Files -> rows of pixels, prepared as the service prepares uploads.

    Raises:
      CliError: if a file cannot be read or used, naming it.
    """
    import numpy as np

    from service.errors import Problem
    from service.images import ImageError
    from service.inputs import Pixels

    read = []
    for path in paths:
        try:
            read.append(_read_one(path, image_shape, invert))
        except (ImageError, Problem) as error:
            raise CliError(f"{path}: {error.detail}") from error
    inverted = [flag for pixels in read for flag in pixels.inverted]
    return Pixels(np.concatenate([pixels.rows for pixels in read]), inverted)


def _read_one(path: Path, image_shape: tuple[int, int], invert: Invert) -> Pixels:
    from service.arrays import array_from_npy
    from service.inputs import pixels_of
    from service.uploads import Body

    content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    body = Body(array=array_from_npy(content)) if content.startswith(b"\x93NUMPY") else Body(files=[content])
    return pixels_of(body, image_shape, invert)


def make_job(
    served: ServedModel,
    params: SampleParams | DreamParams,
    format_name: str,
    start: np.ndarray,
    seeds: np.ndarray,
    **options: Any,
) -> ChainJob:
    """The route's own job, so that both give the same frames; without a deadline."""
    from service.routes_chains import chain_job

    return chain_job(served, params, params.steps, format_name, start, seeds, math.inf, **options)


def make_sample_job(served: ServedModel, params: SampleParams, format_name: str, seeds: np.ndarray) -> ChainJob:
    """The same for `/sample`.

    Raises:
      CliError: if there can be no equilibrium samples.
    """
    from service.errors import Problem
    from service.routes_chains import sample_job

    try:
        return sample_job(served, params, format_name, seeds, math.inf)
    except Problem as error:
        raise CliError(error.detail) from error


def run_job(job: ChainJob) -> list[Frame]:
    """Advances the chains of a job and keeps its frames: the start and one every `every` steps, or only the last."""
    from model_core.chains import get_engine, make_chains
    from service.jobs import Frame
    from service.running import first_frame

    engine = get_engine()
    advance = engine.advance_mean_field if job.mode == "mean_field" else engine.advance
    frame = first_frame(job)
    frames = [frame]
    stride = job.every or max(job.num_steps, 1)
    sampler = job.model.sampler if job.mode == "equilibrium" else None
    replicas = None if sampler is None else sampler.start(job.seeds)
    for first in range(0, job.num_steps, stride):
        last = min(first + stride, job.num_steps)
        if sampler is not None and replicas is not None:
            replicas = sampler.advance(replicas, job.seeds, last - first)
            frame = Frame(last, replicas.states[-1], replicas.visible_probs)
            frames.append(frame)
            continue
        chains = make_chains(
            job.model.params,
            frame.visible,
            num_steps=last - first,
            seeds=job.seeds,
            first_step=first,
            temperature=job.temperature,
            mode="mean_field" if job.mode == "mean_field" else "gibbs",
        )
        frame = Frame(last, *advance(job.model.prepared, chains))
        frames.append(frame)
    return frames if job.every else frames[-1:]


def finish(job: ChainJob, drawing: Drawing, format_name: str, out: Path | None, command: str) -> None:
    """Runs a job, writes what was asked for, and says on stderr what it was."""
    from service.answers import encode_answer

    drawing, seed = dataclasses.replace(drawing, steps=job.num_steps, every=job.every), drawing.seed
    content = encode_answer(drawing, run_job(job), format_name)
    where = write_output(content, format_name, out, f"{command}-{seed}")
    model = job.model
    chains = "1 chain" if job.num_chains == 1 else f"{job.num_chains} chains"
    say(f"{model.name} version {model.version}: {chains}, {job.num_steps} steps, --seed {seed}, to {where}")
