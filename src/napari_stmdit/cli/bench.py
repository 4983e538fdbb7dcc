"""``stmdit bench``: how fast a checkpoint is on this machine, and what limits it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from ._common import Device, Json, print_json

if TYPE_CHECKING:
    from rich.table import Table


def bench(
    checkpoint: Annotated[str, typer.Option(help="Name or folder of a checkpoint; none leaves it out.")] = "demo",
    base: Annotated[
        bool,
        typer.Option("--base", help="Also a DiT-B/2 with an SD3-style autoencoder of random weights; takes minutes."),
    ] = False,
    device: Device = "auto",
    batches: Annotated[str, typer.Option(help="Patches at once, between commas.")] = "1,4,16,64",
    seconds: Annotated[float, typer.Option(min=0.05, max=600, help="Time that one figure may take.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Repetitions of every comparison.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Denoising steps of the comparisons; by default the checkpoint's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure every stage of a synthesis, and compare it with straightforward loops, turn by turn in one run.

    Seconds are this machine's, now: close other programs. The ratios hold where the machine is busy, too.
    """
    from ..bench.comparisons import Settings, run_bench

    settings = Settings(
        None if checkpoint == "none" else checkpoint, base, device, _batches(batches), seconds, rounds, steps
    )
    report = run_bench(settings, _say)
    if as_json:
        print_json(report)
    else:
        print_report(report)


def _say(what: str) -> None:
    sys.stderr.write(f"{what} ...\n")
    sys.stderr.flush()


def _batches(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdecimal() or not 1 <= int(part) <= 4096]
    if wrong or not parts:
        raise RequestError(
            [("batches", f"got {text!r}; expected numbers from 1 to 4096 between commas, such as 1,4,16")]
        )
    return tuple(sorted({int(part) for part in parts}))


def print_report(report: dict[str, Any]) -> None:
    """Print a report of `napari_stmdit.bench.comparisons.run_bench` as tables."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    peaks = ", ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in report["peak_gflops"].items())
    console.print(f"{machine}\nmatrix products reach {peaks}; precision chosen: {report['precision']}\n")
    for model in report["models"]:
        console.print(_stages(model))
        console.print(_comparison(model))
        if "runs" in model:
            console.print(_runs(model))
        if "editing" in model:
            console.print(_editing(model))
        if "alone" in model.get("waiting", {}):
            console.print(_waiting(model))
    for model in report["models"]:
        if "left_out" in model.get("waiting", {}):
            console.print(f"{model['name']}: waiting threads were left out: {model['waiting']['left_out']}")
        for one in model["left_out"]:
            console.print(
                f"{model['name']}: a batch of {one['batch']} in {one['dtype']} was left out, it would take about "
                f"{one['expected_seconds']:g} s a step"
            )


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _stages(model: dict[str, Any]) -> Table:
    table = _table(
        f"{model['name']}: stages; sample is one denoising step",
        *("stage", "precision", "batch", "ms", "per patch", "GFLOP", "of peak", "MB"),
    )
    table.caption = "GFLOP: operations done; of peak: of matrix products in that precision; MB: most memory; *: once"
    for row in [*model["stages"], *model.get("around", [])]:
        counted = row["gflop"] is not None
        table.add_row(
            row["stage"],
            row["dtype"],
            str(row["batch"]),
            f"{row['milliseconds']:.1f}" + ("" if row["rounds"] else "*"),
            f"{row['milliseconds'] / row['batch']:.1f}",
            f"{row['gflop']:.1f}" if counted else "",
            f"{row['utilisation']:.0%}" if counted else "",
            f"{row['peak_mb']:.0f}" if row["peak_mb"] is not None else "",
        )
    return table


def _comparison(model: dict[str, Any]) -> Table:
    found = model["comparison"]
    key, faster = next((key, value) for key, value in found.items() if key.startswith("times faster"))
    table = _table(
        f"{model['name']}: one patch, {found['steps']} steps, {found['branches']} branches; blocks {found['blocks']}; largest "
        f"difference of latents in float32 {found['largest_difference_in_float32']:.1e}",
        *("way", "denoise, s", "decode, s", "denoise", "whole"),
    )
    table.caption = f"on the right, {key}"
    for name, seconds in found["seconds"].items():
        ratios = faster.get(name)
        cells = ("", "") if ratios is None else (f"{ratios['denoising']:.2f} x", f"{ratios['with decoding']:.2f} x")
        table.add_row(name, f"{seconds['denoising']:.2f}", f"{seconds['decoding']:.2f}", *cells)
    return table


def _runs(model: dict[str, Any]) -> Table:
    runs, precision = model["runs"], model["precision"]
    off = ""
    if "grey_levels_mean" in precision:
        off = (
            f"; against float32 {precision['times_faster']:.2f} x as fast, grey levels off by {precision['grey_levels_mean']:.2f} in the "
            f"mean, {precision['grey_levels_largest']:.0f} at most"
        )
    table = _table(
        f"{model['name']}: from request to canvas, {runs['steps']} steps, {runs['dtype']}{off}",
        *("run", "median, s", "least, s", "times exact"),
    )
    for count, time in runs["seconds"].items():
        table.add_row(
            f"{count} patches" if count != "1" else "1 patch", f"{time['median']:.2f}", f"{time['least']:.2f}", ""
        )
    for name, time in runs["presets"].items():
        cells = (f"{time['median']:.2f}", f"{time['least']:.2f}", f"{time['times_faster']:.2f} x")
        table.add_row(f"1 patch, preset {name}", *cells)
    return table


def _editing(model: dict[str, Any]) -> Table:
    found = model["editing"]
    table = _table(
        f"{model['name']}: edits of real tissue, from request to canvas, {found['steps']} steps, {found['dtype']}",
        *("edited", "first picture, s", "another strength, s"),
    )
    table.caption = "the first picture takes the slide to its noise; another strength starts from there"
    for name, label in (("region", f"{found['side_um']:g} x {found['side_um']:g} um"), ("spot", "one spot")):
        table.add_row(label, f"{found[name]['first']:.2f}", f"{found[name]['next']:.2f}")
    return table


def _waiting(model: dict[str, Any]) -> Table:
    found = model["waiting"]
    setting = " ".join(f"{name}={value}" for name, value in found["setting"].items())
    table = _table(
        f"{model['name']}: {found['patches']} patches, preset draft, on the CPU, while OpenMP's threads wait",
        *("beside it", "spinning, s", f"sleeping ({setting}), s", "times faster", "load"),
    )
    table.caption = "load: of the machine, before and after; on one that is not quiet, alone is not alone"
    for name, row in found.items():
        if isinstance(row, dict) and "times_faster" in row:
            load = " to ".join("?" if one is None else f"{one:.1f}" for one in row["load"])
            ratio = f"{row['times_faster']:.2f} x"
            table.add_row(name, f"{row['spinning']:.2f}", f"{row['sleeping']:.2f}", ratio, load)
    return table
