"""Makes the picture at the head of the README: what ``stmdit demo`` draws. Run with ``python docs/edited_tissue.py``; it needs no display."""

import tempfile
from pathlib import Path

from PIL import Image

from napari_stmdit.evaluation.demo import run_demo
from napari_stmdit.tissue.export import EDITED_SYNTHETIC, labelled

PLACE = Path(__file__).parent / "images" / "comparison.png"


def main():
    with tempfile.TemporaryDirectory() as folder:
        run_demo(folder)
        with Image.open(Path(folder) / "comparison.png") as picture:
            # 256 colours are enough for a page and a third of the size
            picture.quantize(256).save(PLACE, optimize=True, **labelled(EDITED_SYNTHETIC))
    print(PLACE)


if __name__ == "__main__":
    main()
