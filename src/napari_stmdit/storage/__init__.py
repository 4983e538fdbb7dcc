"""Files and folders that the project writes: atomic, locked, owned, and known by their content."""
