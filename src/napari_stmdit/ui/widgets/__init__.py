"""Forms of the workbench. Each shows a value and emits the user's changes of it."""
