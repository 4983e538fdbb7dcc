from dataset_study import study  # noqa: F401
from tiny_fixtures import tiny_checkpoint, tiny_model  # noqa: F401
