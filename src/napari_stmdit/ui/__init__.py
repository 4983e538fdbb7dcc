"""The workbench in napari: state, presenter, layers, worker and widgets. Only this package knows napari and Qt."""

from ..devices import let_threads_sleep

let_threads_sleep()  # napari comes here before anything of the plugin imports torch
