"""`rbm sample`, `rbm dream` and `rbm features`: what the routes of the same names do, without a server.

Parameters, defaults and ranges are those of the routes (`service.schemas`), and so are the bytes that come out: the
same (model version, input, parameters, seed) gives the same file here and there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_core.cli_jobs import finish, make_job, make_sample_job, read_images, serve_model
from model_core.cli_support import AsJson, Checkpoints, ModelName, Out, Version, checked, format_for, say, write_output

PICTURES = ("png", "gif", "webp", "apng", "json", "npy", "csv")
TABLES = ("json", "npy", "csv")

Images = Annotated[list[Path], typer.Argument(help="Image files, .npy arrays, or - for stdin.", show_default=False)]
Count = Annotated[
    int | None, typer.Option("--n", "-n", help="Independent chains (of each image), 1 to 64. [default: 1]")
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same bytes. Drawn and told when absent.")]
Temperature = Annotated[float | None, typer.Option(help="Samples p(v, h)^(1/T), 0.05 to 20. [default: 1]")]
Output = Annotated[
    str | None, typer.Option(help="probabilities of the last step, or samples. [default: probabilities]")
]
Every = Annotated[int | None, typer.Option(help="A frame every so many steps; 0: only the last.")]
View = Annotated[str | None, typer.Option(help="final, pair (start above, end below) or strip. [default: final]")]
Scale = Annotated[int | None, typer.Option(help="Screen pixels a model pixel, 1 to 32. [default: 8]")]
Pixels = Annotated[bool | None, typer.Option("--pixels", help="JSON: also the pixels as numbers.")]
PictureFormat = Annotated[str | None, typer.Option("--format", help=f"{', '.join(PICTURES)}. [default: png]")]
TableFormat = Annotated[str | None, typer.Option("--format", help=f"{', '.join(TABLES)}. [default: json]")]
Invert = Annotated[str | None, typer.Option(help="Ink and paper swapped? auto, true or false. [default: auto]")]


def sample(
    method: Annotated[
        str | None, typer.Option(help="gibbs, or equilibrium: draws of the model, without --steps. [default: gibbs]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Full sweeps, 0 to 10,000. [default: 500]")] = None,
    n: Count = None,
    seed: Seed = None,
    temperature: Temperature = None,
    output: Output = None,
    every: Every = None,
    view: View = None,
    scale: Scale = None,
    pixels: Pixels = None,
    format_name: PictureFormat = None,
    as_json: AsJson = False,
    out: Out = None,
    model: ModelName = None,
    version: Version = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Samples pictures: chains that start at noise, or draws of the model itself (`--method equilibrium`).

    Examples: `rbm sample -n 16 -o digits.png`, `rbm sample --view strip -o strip.png`, `rbm sample -o film.gif`
    """
    from service.answers import Drawing
    from service.schemas import SampleParams
    from service.starts import chain_seeds, draw_seed

    given = {"steps": steps, "n": n, "temperature": temperature, "output": output, "every": every, "view": view}
    params = checked(SampleParams, method=method, **given, scale=scale, pixels=pixels, seed=seed)
    chosen = format_for(format_name, as_json, out, PICTURES)
    served = serve_model(checkpoints, model, version)
    seed = draw_seed() if params.seed is None else params.seed
    job = make_sample_job(served, params, chosen, chain_seeds(seed, params.n))
    finish(job, Drawing(params, served, seed, job.visible.astype("float32")), chosen, out, "sample")


def dream(
    images: Images,
    steps: Annotated[int | None, typer.Option(help="Full sweeps, 0 to 10,000. [default: 20]")] = None,
    n: Count = None,
    seed: Seed = None,
    temperature: Temperature = None,
    mode: Annotated[str | None, typer.Option(help="gibbs, or mean_field (deterministic). [default: gibbs]")] = None,
    output: Output = None,
    every: Every = None,
    view: View = None,
    scale: Scale = None,
    pixels: Pixels = None,
    invert: Invert = None,
    format_name: PictureFormat = None,
    as_json: AsJson = False,
    out: Out = None,
    model: ModelName = None,
    version: Version = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Dreams on from images: chains that start at their pixels.

    Examples: `rbm dream digit.png -o dream.png`, `rbm dream digit.png --view pair --steps 100 -o pair.png`
    """
    import numpy as np

    from service.answers import Drawing
    from service.schemas import MAX_CHAINS, DreamParams
    from service.starts import binarize, chain_seeds, draw_seed

    given = {"steps": steps, "n": n, "temperature": temperature, "mode": mode, "output": output, "every": every}
    params = checked(DreamParams, **given, view=view, scale=scale, pixels=pixels, invert=invert, seed=seed)
    chosen = format_for(format_name, as_json, out, PICTURES)
    served = serve_model(checkpoints, model, version)
    read = read_images(images, served.image_shape, params.invert)
    if len(read.rows) * params.n > MAX_CHAINS:
        raise typer.BadParameter(f"{len(read.rows)} images x {params.n} chains are more than {MAX_CHAINS} chains.")
    rows = np.repeat(read.rows, params.n, axis=0)
    seed = draw_seed() if params.seed is None else params.seed
    seeds = chain_seeds(seed, len(rows))
    start = rows if params.mode == "mean_field" else binarize(rows, seeds)
    job = make_job(served, params, chosen, start, seeds, mode=params.mode)
    finish(job, Drawing(params, served, seed, rows, inverted=read.inverted), chosen, out, "dream")


def features(
    images: Images,
    kind: Annotated[
        str | None, typer.Option(help="probabilities, logits, or samples. [default: probabilities]")
    ] = None,
    seed: Seed = None,
    invert: Invert = None,
    format_name: TableFormat = None,
    as_json: AsJson = False,
    out: Out = None,
    model: ModelName = None,
    version: Version = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Hidden activations of images: p(h=1 given v), their logits, or samples drawn from them.

    Examples: `rbm features digit.png`, `rbm features digits.npy -o features.npy`
    """
    from service.routes_arrays import encode_features
    from service.schemas import FeaturesParams
    from service.starts import binarize, chain_seeds, draw_seed

    params = checked(FeaturesParams, kind=kind, seed=seed, invert=invert)
    chosen = format_for(format_name, as_json, out, TABLES)
    served = serve_model(checkpoints, model, version)
    rows, inverted = read_images(images, served.image_shape, params.invert)
    hidden = served.hidden_logits(rows) if params.kind == "logits" else served.hidden_probs(rows)
    drawn = None
    if params.kind == "samples":
        drawn = draw_seed() if params.seed is None else params.seed
        hidden = binarize(hidden, chain_seeds(drawn, len(hidden)))
    content = encode_features(served, params.kind, drawn, hidden, chosen, inverted)
    where = write_output(content if isinstance(content, bytes) else b"".join(content), chosen, out, "features")
    say(f"{served.name} version {served.version}: {len(rows)} x {served.num_hidden} {params.kind} to {where}")
