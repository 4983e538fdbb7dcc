"""``python -m napari_stmdit.cli``, which launchers of several processes need."""

from . import main

if __name__ == "__main__":
    main()
