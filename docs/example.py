"""Makes the pictures of the worked example, from the very lines that the page shows. Run with ``python docs/example.py``; it needs no display."""

import os
import re
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from napari_stmdit.evaluation.measures import crops_at, stain_density
from napari_stmdit.evaluation.pictures import diverging
from napari_stmdit.tissue.export import EDITED_SYNTHETIC, labelled

DOCS = Path(__file__).parent
TUMOUR, STROMA, ASKED, OTHER = "#b2580a", "#2166ac", "#ffe946", "#9a9aa5"
ROWS = 3
LIMIT = 0.5
"""Optical density at the ends of the colour scale."""


def run_page():
    """Run the page's Python blocks, and return their names."""
    text = (DOCS / "example.md").read_text(encoding="utf-8")
    names = {"__name__": "__example__"}
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        try:
            for block in re.findall(r"<!-- runs -->\n```python\n(.*?)```", text, re.S):
                exec(compile(block, "docs/example.md", "exec"), names)  # our own page
        finally:
            os.chdir(here)
    return names


def badge(axes, number, x, y):
    """Draw a number in a circle at (x, y), in shares of the axes."""
    circle = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": "#1e1e22"}
    axes.text(
        x, y, str(number), transform=axes.transAxes, ha="center", va="center", weight="bold", bbox=circle, zorder=9
    )


def scale_bar(axes, px, um_per_px, um):
    """Draw a bar in the lower right corner of a picture that is px wide."""
    length = um / um_per_px
    axes.plot([px * 0.95 - length, px * 0.95], [px * 0.95] * 2, color="#1e1e22", lw=3, solid_capstyle="butt")
    axes.text(
        px * 0.95 - length / 2,
        px * 0.935,
        f"{um} µm",
        ha="center",
        va="bottom",
        fontsize=8,
        bbox={"fc": "white", "ec": "none", "pad": 1},
    )


def spots_picture(page):
    """Draw the slide with the groups of spots."""
    section = page["section"]
    spots, mpp = section.spots, section.calibration.mpp
    slide = np.asarray(section.image.levels[0])[::2, ::2]
    figure, axes = plt.subplots(figsize=(6.2, 6.2))
    axes.imshow(slide, extent=(0, 2 * slide.shape[1], 2 * slide.shape[0], 0), alpha=0.75)
    group = {**dict.fromkeys(page["stroma"], STROMA), **dict.fromkeys(page["tumour"], TUMOUR)}
    for spot, (y, x) in zip(spots.ids.tolist(), spots.yx, strict=True):
        asked = spot in page["asked"]
        ring = {"ec": ASKED, "lw": 3} if asked else {"ec": "white", "lw": 0.8}
        axes.add_patch(plt.Circle((x, y), spots.diameter / 2, fc=group.get(spot, OTHER), alpha=0.9, **ring))
    labels = ((1, TUMOUR, "tumour"), (2, STROMA, "stroma"), (3, ASKED, "edited"), (4, OTHER, "neither"))
    for number, colour, label in labels:
        left = 0.02 + (number - 1) * 0.215
        axes.add_patch(
            plt.Circle((left, -0.05), 0.018, fc=colour, ec="#1e1e22", lw=0.5, transform=axes.transAxes, clip_on=False)
        )
        badge(axes, number, left + 0.048, -0.05)
        axes.text(left + 0.078, -0.05, label, transform=axes.transAxes, va="center")
    share = 200 / (section.image.shape[1] * mpp)
    axes.plot([1 - share, 1], [-0.065] * 2, color="#1e1e22", lw=3, transform=axes.transAxes, clip_on=False)
    axes.text(1 - share / 2, -0.055, "200 µm", transform=axes.transAxes, ha="center", va="bottom", fontsize=8)
    axes.set_axis_off()
    return figure


def patches_picture(page):
    """Draw slide, edit, control and their difference at some spots."""
    section, card = page["section"], page["checkpoint"].card
    shown = np.argsort(-page["effect"])[[0, len(page["asked"]) // 2, -1]]  # the most, a middling and the least change
    slide = crops_at(section, section.spots.yx[section.spots.rows(page["asked"])], card)
    figure, grid = plt.subplots(ROWS, 4, figsize=(8.6, 6.8), gridspec_kw={"wspace": 0.04, "hspace": 0.06})
    for row, (axes_row, k) in enumerate(zip(grid, shown, strict=True)):
        edited, control = (page["results"][name].patches[k] for name in ("tumour", "control"))
        change = stain_density(edited)[..., 0] - stain_density(control)[..., 0]
        smooth = gaussian_filter(change, 6.0 / card.patch_mpp)
        for column, (axes, picture) in enumerate(
            zip(axes_row, (slide[k], edited, control, diverging(smooth / LIMIT)), strict=True)
        ):
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(("slide", "edit", "control", "edit − control")[column], fontsize=10)
                badge(axes, column + 1, 0.09, 0.91)
            if column == 0:
                axes.set_ylabel(f"{page['effect'][k]:+.2f}", fontsize=10, rotation=0, labelpad=18, va="center")
            if column == 3:
                scale_bar(axes, card.patch_px, card.patch_mpp, 50)
    return figure


def density_picture(page):
    """Draw the measure of every spot, and the effect with its interval."""
    columns = (page["slide"](page["asked"]), page["control"], page["edited"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.2, 3.8), gridspec_kw={"width_ratios": (3, 1.2), "wspace": 0.35}
    )
    left.plot(np.arange(3), np.array(columns), color=OTHER, lw=1, marker="o", ms=5)
    left.plot(np.arange(3), np.mean(columns, axis=1), color="#1e1e22", lw=2.5)
    left.axhline(page["slide"](page["tumour"]).mean(), color=TUMOUR, ls="--")
    left.set_xticks(np.arange(3), ("slide", "control", "edit"))
    left.set_xlim(-0.3, 2.3)
    left.set_ylabel("haematoxylin (optical density)")
    for number, x in ((1, 0.115), (2, 0.5), (3, 0.885)):
        badge(left, number, x, 1.06)
    low, high = left.get_ylim()
    badge(left, 4, 0.97, (page["slide"](page["tumour"]).mean() - low) / (high - low))
    effect = page["effect"]
    right.plot(np.linspace(-0.2, 0.2, len(effect)), np.sort(effect), "o", color=OTHER, ms=5)
    error = [[effect.mean() - page["low"]], [page["high"] - effect.mean()]]
    right.errorbar(0.4, effect.mean(), yerr=error, fmt="o", color="#1e1e22", capsize=4)
    right.axhline(0, color="#1e1e22", lw=0.8)
    right.set_xlim(-0.4, 0.6)
    right.set_ylim(min(0, effect.min()) - 0.01, effect.max() * 1.2)
    right.set_xticks([])
    right.set_ylabel("edit − control")
    badge(right, 5, 0.5, 1.06)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main():
    page = run_page()
    for name, draw in (("spots", spots_picture), ("patches", patches_picture), ("density", density_picture)):
        path = DOCS / "images" / f"example_{name}.png"
        figure = draw(page)
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        with Image.open(path) as picture:
            # 256 colours are enough for a page and a third of the size
            picture.convert("RGB").quantize(256).save(path, optimize=True, **labelled(EDITED_SYNTHETIC))
        print(path)


if __name__ == "__main__":
    main()
