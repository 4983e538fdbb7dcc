"""Base classes of diffusers, imported here and nowhere else.

Two threads that import diffusers at once can both fail: its modules import each other, and the package puts another object in its own place.
Python lets one thread at a time import this module, and the others wait for it.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput

__all__ = ["ConfigMixin", "DiffusionPipeline", "ImagePipelineOutput", "ModelMixin", "register_to_config"]
