"""Makes the picture at the head of the README: what ``stmdit demo`` draws. Run with ``python docs/edited_tissue.py``; it needs no display."""

import tempfile
from pathlib import Path

from PIL import Image

from napari_stmdit.evaluation.demo import run_demo
from napari_stmdit.tissue.export import EDITED_SYNTHETIC, labelled

PLACE = Path(__file__).parent / "images" / "comparison.png"
WIDTH = 1600


def main():
    with tempfile.TemporaryDirectory() as folder:
        run_demo(folder)
        with Image.open(Path(folder) / "comparison.png") as picture:
            small = picture.convert("RGB").resize(
                (WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS
            )
            # 256 colours are enough for a page and a third of the size; spread over all that there are, or the legend loses its orange
            few = small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
            few.save(PLACE, optimize=True, **labelled(EDITED_SYNTHETIC))
    print(PLACE)


if __name__ == "__main__":
    main()
