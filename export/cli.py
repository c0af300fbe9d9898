"""`export`: build. Parses and prints; the work is in functions that a notebook could call."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from firmware_config.command_line import ConfigOption, application, run

if TYPE_CHECKING:
    from export.build import Built

app = application("Turn a trained run into a verified bundle that a device loads.")


def main() -> None:
    """Entry point of `export` and `respsam-export`."""
    # before torch is imported: spinning OpenMP threads make a step 2-6 times slower when anything else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(app, "respsam-export")


@app.command()
def build(
    subject: Annotated[Path, typer.Argument(help="A finished run folder of 'trainer fit'.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="Bundle folder, or a file ending in .respsam.")],
    int8: Annotated[bool, typer.Option("--int8", help="Also an int8 file for CPUs.")] = False,
    prefer: Annotated[Literal["fp32", "int8"], typer.Option("--prefer", help="What a CPU runs by default.")] = "fp32",
    data: Annotated[
        Path | None, typer.Option("--data", help="The run's corpus, where it is not where it was at the fit.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What people call this model.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle in --out.")] = False,
    config: ConfigOption = None,
) -> None:
    """Export, measure, quantize, test and pack; refuses (exit 3) when a file does not do what the run does."""
    import torch
    from rich.console import Console

    from export.build import Reporter
    from export.build import build as build_bundle
    from firmware_config.settings import load_settings

    settings = load_settings(config)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    console = Console(stderr=True, highlight=False)
    with console.status("reading the run") as status:
        built = build_bundle(
            subject,
            out,
            cache_folder=settings.training.folder,
            int8=int8,
            prefer=prefer,
            data=data,
            name=name,
            force=force,
            reporter=Reporter(lambda line: console.print(line, soft_wrap=True, markup=False), status.update),
        )
    _show(built)


def _show(built: "Built") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("file", "MB", "logits off", "Se", "Sp", "Score", "ms", "ratio"):
        table.add_column(title, justify="left" if title == "file" else "right", no_wrap=True)
    fp32 = next(one for one in built.served if one.precision == "fp32")
    for file, one in zip(built.bundle.manifest.files, built.served, strict=True):
        rates = one.rates
        table.add_row(
            file.path,
            f"{len(one.data) / 1e6:.2f}",
            f"{one.difference:.1e}",
            f"{rates.sensitivity:.4f}",
            f"{rates.specificity:.4f}",
            f"{rates.score:.4f}",
            f"{one.milliseconds:.1f}",
            f"{one.milliseconds / fp32.milliseconds:.2f}",
        )
    console.print(table)
    console.print(
        "off: fp32 from torch, int8 from fp32; ms: one window, one thread, here; a CPU runs the first file",
        soft_wrap=True,
    )
    path = built.bundle.path
    console.print(
        f"bundle {built.bundle.fingerprint[:12]} in {path}; next: respsam-device listen --bundle {path}",
        soft_wrap=True,
        markup=False,
    )
