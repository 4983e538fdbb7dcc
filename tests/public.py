"""Two tiny public sections as their publishers lay them out, and the servers that have them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hub import LocalHub
from PIL import Image
from tiny import TINY_GENES, analytic_image

STEP_PX, SIDE_PX = np.array([290.0, 292.0]), 1400
"""Pixels from spot to spot of the array along x and y: 200 um, as on the arrays of her2st."""
PLACES = [(x, y) for y in range(1, 5) for x in range(1, 4)]
WITHOUT_COUNTS, NOT_SELECTED = (3, 4), (1, 4)
SOURCE = "https://data.example.org"


def array_files() -> dict[str, bytes]:
    """A slide, counts and spots of a Spatial Transcriptomics array of 3 x 4 spots, one of them without counts and one not selected."""
    picture = io.BytesIO()
    Image.fromarray(analytic_image(SIDE_PX)).save(picture, "JPEG")
    rng = np.random.default_rng(1)
    counts = ["\t".join(["", *TINY_GENES])]
    counts += [
        "\t".join([f"{x}x{y}", *map(str, rng.poisson(3, len(TINY_GENES)))])
        for x, y in PLACES
        if (x, y) != WITHOUT_COUNTS
    ]
    spots = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for x, y in PLACES:
        across, down = x + 0.02 * y, y - 0.01 * x  # the array lies a little askew
        px, py = np.array([across, down]) * STEP_PX - 100
        spots.append(f"{x}\t{y}\t{across:.3f}\t{down:.3f}\t{px:.2f}\t{py:.2f}\t{int((x, y) != NOT_SELECTED)}")
    return {
        "imgs/A/slide.jpg": picture.getvalue(),
        "cnts/A.tsv.gz": gzip.compress("\n".join(counts).encode()),
        "spots/A.tsv": "\n".join(spots).encode(),
    }


def visium_files(folder: Path) -> dict[str, bytes]:
    """The slide, the counts and the packed folder ``spatial`` of a Space Ranger folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder / "spatial", "spatial")
    return {
        "T_image.png": (folder / "slide.png").read_bytes(),
        "T_filtered_feature_bc_matrix.h5": (folder / "filtered_feature_bc_matrix.h5").read_bytes(),
        "T_spatial.tar.gz": packed.getvalue(),
    }


def publish(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """Serve both sections, and let them be all that are known: her2st-b4 with a stated size, 10x-mouse-brain without."""
    from napari_stmdit.tissue import public

    entries = []
    for name, layout, files in (
        ("her2st-b4", "st-array", array_files()),
        ("10x-mouse-brain", "spaceranger", visium_files(tiny_folder)),
    ):
        for path, content in files.items():
            hub.put_page(f"{SOURCE}/{name}/{path}", content)
        entries.append(
            public.PublicSection(
                name=name,
                title=f"A tissue ({name})",
                about="a made section",
                citation="Nobody et al. 2026",
                layout=layout,
                fetch="web",
                source=f"{SOURCE}/{name}",
                files=tuple(files),
                sha256={path: hashlib.sha256(content).hexdigest() for path, content in files.items()},
                size_bytes=sum(map(len, files.values())) if layout == "st-array" else None,
                licence="CC BY 4.0",
                terms="https://example.org/terms",
            )
        )
    monkeypatch.setattr(public, "_read", lambda path: tuple(entries))
    monkeypatch.setenv("STMDIT_MIRROR", hub.web)
