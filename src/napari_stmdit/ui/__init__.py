"""The workbench in napari: state, presenter, layers, worker and widgets. Only this package knows napari and Qt."""
