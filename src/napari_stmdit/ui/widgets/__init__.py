"""The forms of the workbench. Each is a lens on a value: it shows what it is given and says what the user wants."""
