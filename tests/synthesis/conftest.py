from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401
