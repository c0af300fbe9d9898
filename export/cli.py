"""`export`: build, check, verify, inspect, bench.

Parses and prints; the work is in functions that a notebook could call.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from firmware_config.command_line import ConfigOption, application, counted, json_text, next_step, run
from trainer.cli import (
    CorpusOption,
    DataOption,
    LenientOption,
    MovedOption,
    PartOption,
    ProtocolOption,
    SplitOption,
    sources_of,
    versions,
)

if TYPE_CHECKING:
    from export.building import Built

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder or .respsam file.", metavar="BUNDLE")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

app = application("Turn a trained run into a verified bundle that a device loads.", versions)


def main() -> None:
    """Entry point of `export` and `respsam-export`."""
    # before torch is imported: spinning OpenMP threads make a step 2-6 times slower when anything else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(app, "respsam-export")


@app.command()
def build(
    subject: Annotated[Path, typer.Argument(help="A finished run folder of 'trainer fit'.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder, or a file ending in .respsam.")],
    int8: Annotated[bool, typer.Option("--int8", help="Also int8, for what --target says.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also fp16, for TensorRT.")] = False,
    target: Annotated[
        Literal["cpu", "tensorrt", "both"], typer.Option("--target", help="What int8 and fp16 are for.")
    ] = "cpu",
    calibration_data: Annotated[
        Path | None,
        typer.Option(
            "--calibration-data", help="Corpus that sets int8's ranges instead of the run's training patients."
        ),
    ] = None,
    calibration_cycles: Annotated[
        int, typer.Option("--calibration-cycles", min=2, help="Cycles that set int8's ranges.")
    ] = 128,
    keep_float: Annotated[
        list[str] | None,
        typer.Option("--keep-float", metavar="LAYER", help="Do not convert this layer or part; may be repeated."),
    ] = None,
    auto_keep: Annotated[
        int, typer.Option("--auto-keep", min=0, help="Layers that may stay float when a file loses too much.")
    ] = 0,
    prefer: Annotated[
        Literal["measured", "fp32", "int8"],
        typer.Option("--prefer", help="What a CPU runs by default; measured: int8 where it is 10 % faster here."),
    ] = "measured",
    data: MovedOption = None,
    name: Annotated[str | None, typer.Option("--name", help="What people call this model.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle in --out.")] = False,
    config: ConfigOption = None,
) -> None:
    """Export, measure, quantize, test and pack; refuses (exit 3) when a file does not do what the run does."""
    import torch
    from rich.console import Console

    from export.building import Reporter, Wanted
    from export.building import build as build_bundle
    from firmware_config.settings import load_settings

    settings = load_settings(config)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        logging.getLogger("export").info(line)
        console.print(line, soft_wrap=True, markup=False)

    with console.status("reading the run") as status:
        built = build_bundle(
            subject,
            out,
            cache_folder=settings.training.folder,
            cache_gigabytes=settings.training.cache_gigabytes,
            wanted=Wanted(
                int8, fp16, target, prefer, calibration_data, calibration_cycles, tuple(keep_float or ()), auto_keep
            ),
            data=data or [],
            name=name,
            force=force,
            reporter=Reporter(say, status.update),
        )
    _show(built)


@app.command()
def check(
    bundle: BundleArgument,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Build TensorRT's engines; needs no GPU.")] = False,
) -> None:
    """See what TensorRT makes of every model meant for it; refuses (exit 3) when int8 layers would not run in int8."""
    from rich.console import Console

    from device.bundle import read_bundle
    from export.tensorrt_check import check as check_bundle
    from export.tensorrt_check import require
    from trainer.tables import table

    if not tensorrt:
        raise typer.BadParameter("say what to check with", param_hint="--tensorrt")
    opened = read_bundle(bundle)
    headings = ("file", "GPU", "INT8", "FP16", "float", "to be INT8", "MB", "s")
    checked, rows = [], []
    with Console(stderr=True).status("building engines") as status:
        for one in check_bundle(opened):
            checked.append(one)
            status.update(f"building engines: {one.file} for {one.gpu} is done")
            counts = [str(one.count(kind)) for kind in ("int8", "fp16", "float")]
            quantized = str(len(one.products.quantized))
            size = (f"{one.megabytes:.1f}", f"{one.seconds:.1f}")
            rows.append((one.file, one.gpu, *(["refused", "", ""] if one.refusal else counts), quantized, *size))
    console = Console(highlight=False)
    console.print(table(*headings, rows=rows, words=2))
    console.print("matrix products and convolutions by how they run; GPU: its compute capability", soft_wrap=True)
    require(checked, opened.manifest)
    next_step("respsam-device engine build, on the device: engines are made where they run")


@app.command()
def verify(
    bundle: BundleArgument,
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    protocol: ProtocolOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Check hashes, schema and self-test, and what every model file reaches on a corpus; exit 3 when one falls back."""
    import torch
    from rich.console import Console

    from export import verify as verification
    from firmware_config.settings import load_settings
    from trainer.corpora.audio_cache import open_corpora
    from trainer.corpora.protocols import protocol_for

    settings = load_settings(config)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    sources = sources_of(corpus, data)
    opened = verification.open_whole(bundle)
    with Console(stderr=True).status("reading the corpus") as status:
        read, cache = open_corpora(
            sources, settings.training.folder, part=part, split=split, lenient=lenient, purpose="evaluate"
        )
        cache.trim(settings.training.folder, settings.training.cache_gigabytes)
        verified = verification.verify(
            opened, read, cache, protocol_for(protocol, read), settings.quality, status.update
        )
    if json_output:
        typer.echo(json_text(verification.as_json(verified, opened)))
    else:
        verification.show(verified, opened, Console(highlight=False))
    verification.require(verified, opened)
    if not json_output:
        next_step(f"respsam-device listen --bundle {bundle}")


@app.command()
def inspect(bundle: BundleArgument, json_output: JsonOption = False) -> None:
    """Count what is inside a bundle (size, operators, parameters, multiplications), and say where it comes from."""
    from rich.console import Console

    from device.bundle import read_bundle
    from export import inspection

    opened = read_bundle(bundle)
    found = inspection.inspect(opened)
    if json_output:
        typer.echo(json_text(inspection.as_json(found, opened)))
    else:
        inspection.show(found, opened, Console(highlight=False))
        next_step(f"respsam-export bench {bundle}")


@app.command()
def bench(
    bundle: BundleArgument,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of every contender.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="How long to measure, all together.")] = 20.0,
    against: Annotated[
        Literal["transformers"] | None, typer.Option("--against", help="Also the usual pipeline, for the ratio.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; a picture (.svg) goes beside it.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure what one window costs here: latency, cold start, memory, energy; the contenders take turns."""
    from rich.console import Console

    from device.bundle import read_bundle
    from export import bench as benchmark

    opened = read_bundle(bundle)
    with Console(stderr=True).status("starting") as status:
        timings = benchmark.bench(opened, threads, seconds, against, status.update)
    measured = benchmark.as_json(timings, opened, threads)
    if json_output:
        typer.echo(json_text(measured))
    else:
        Console(highlight=False).print(benchmark.table(timings))
    if out is not None:
        typer.echo(f"{out} and {benchmark.write(measured, timings, out)}", err=True)
    if not json_output:
        next_step(f"respsam-export verify {bundle} with --corpus and --data: what it reaches on recordings")


@app.command()
def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option("--key", help="Private Ed25519 key (PEM).")],
) -> None:
    """Sign a bundle for boxes that trust the key: 'respsam-device trust add'."""
    from device.bundle import read_bundle
    from export.signing import sign_bundle

    opened = read_bundle(bundle)
    typer.echo(f"{opened.manifest.name} ({opened.fingerprint[:12]}) is signed by key {sign_bundle(opened, key)}")


@app.command()
def offer(
    bundle: BundleArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder that the boxes poll, or that a web server shows them.")],
    ring: Annotated[
        list[str] | None,
        typer.Option("--ring", metavar="BOX,BOX", help="Boxes that install together; give the first ring first."),
    ] = None,
) -> None:
    """Offer a bundle to many boxes, ring by ring; they take it with 'respsam-device bundle poll'."""
    from device.bundle import read_bundle
    from export.signing import offer as offer_bundle

    rings = [[name.strip() for name in names.split(",")] for names in ring or ()]
    typer.echo(f"{offer_bundle(read_bundle(bundle), to, rings)} is offered, in {counted(len(rings) or 1, 'ring')}")


def _show(built: "Built") -> None:
    from rich.console import Console

    from trainer.tables import table

    console = Console(highlight=False)
    headings = ("file", "MB", "worst logit", "Se", "Sp", "Score", "ms", "ratio")
    rows = []
    for one in built.served:
        rates = (one.rates.sensitivity, one.rates.specificity, one.rates.score)
        times = (f"{one.milliseconds:.1f}", f"{one.times_fp32:.2f}")
        size, off = f"{len(one.data) / 1e6:.2f}", f"{one.difference:.1e}"
        shown = times if one.for_cpu else ("-", "-")
        rows.append((one.form.path, size, off, *(f"{rate:.4f}" for rate in rates), *shown))
    console.print(table(*headings, rows=rows))
    console.print(
        "worst logit: the largest difference, fp32's from torch, the others' from fp32; ms: one window, one thread, "
        "here; a CPU runs the first file",
        soft_wrap=True,
    )
    path = built.bundle.path
    console.print(f"bundle {built.bundle.fingerprint[:12]} in {path}", soft_wrap=True, markup=False)
    next_step(f"respsam-device listen --bundle {path}")
