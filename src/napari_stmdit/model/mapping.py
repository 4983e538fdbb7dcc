"""A mapping file: how a user tells us the names in a checkpoint that we do not know.

```yaml
naming: original                 # the naming that the right-hand sides are in: original, diffusers or native
rules:
  "encoder.block_{i}.self.*": "blocks.{i}.attn.*"      # {i}: number of a block; .*: weight and bias
ignore:
  "head.*": "classifier of the training run"
settings:                        # what the settings file would have said
  num_heads: 12
fill:                            # a null embedding that the training never stored
  expression_null: zeros
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ..errors import CheckpointError
from ..types import Intent
from .keys import fill, pattern
from .reading import read_settings

if TYPE_CHECKING:
    from torch import Tensor


class KeyMapping(Intent):
    """Names of a foreign checkpoint.

    Attributes
    ----------
    naming
        The naming that ``rules`` lead into.
    rules
        Foreign template -> name in that naming.
    ignore
        Foreign template -> why its tensors are not needed.
    settings
        Laid over the checkpoint's own settings.
    fill
        Null embeddings that the checkpoint lacks and the user states to be zero. They are never assumed.
    """

    naming: Literal["original", "diffusers", "native"] = "original"
    rules: dict[str, str] = {}
    ignore: dict[str, str] = {}
    settings: dict[str, Any] = {}
    fill: dict[Literal["expression_null", "morphology_null"], Literal["zeros"]] = {}

    def rename(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors under their new names, and name -> reason of those that are ignored.

        Raises
        ------
        CheckpointError
            Two tensors would get one name.
        """
        rules = [(pattern(theirs), ours) for theirs, ours in self.rules.items()]
        ignore = [(pattern(theirs), reason) for theirs, reason in self.ignore.items()]
        renamed: dict[str, Tensor] = {}
        ignored: dict[str, str] = {}
        for name, tensor in tensors.items():
            reason = next((why for expression, why in ignore if expression.fullmatch(name)), None)
            if reason is not None:
                ignored[name] = reason
                continue
            new = next((fill(ours, match) for rule, ours in rules if (match := rule.fullmatch(name))), name)
            if new in renamed:
                raise CheckpointError(f"The mapping file gives two tensors the name {new}; the second is {name}.")
            renamed[new] = tensor
        return renamed, ignored

    def touches(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether any rule fits any of these names."""
        expressions = [pattern(theirs) for theirs in (*self.rules, *self.ignore)]
        return any(expression.fullmatch(name) for expression in expressions for name in tensors)


def read_mapping(path: str | Path) -> KeyMapping:
    """Read a mapping file, YAML or JSON.

    Raises
    ------
    CheckpointError
        It is missing or not valid; every fault is listed with its place.
    """
    try:
        return KeyMapping.model_validate(read_settings(path))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CheckpointError(
            f"{path} is no valid mapping file: {faults}. Expected naming, rules, ignore, settings and fill."
        ) from None
