"""Base of requests, settings and records of files: frozen pydantic models without unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import CheckpointError

Weight = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
T = TypeVar("T", bound=BaseModel)


def validated(model: type[T], values: Mapping[str, Any], complaint: str, hint: str = "") -> T:
    """Build a model from a checkpoint's file; raises CheckpointError with every fault after the complaint."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CheckpointError(f"{complaint}: {faults}.{hint}") from None


class Frozen(BaseModel):
    """Base of all requests: immutable, serialisable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a validated copy with some fields changed; pydantic's own copy does not validate.

        Raises
        ------
        pydantic.ValidationError
            A value is not allowed, or there is no such field.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}  # what was left open stays so
        return type(self).model_validate({**given, **update})

    def leaving_open(self, *names: str) -> Self:
        """Return a copy with some fields unset, at their defaults."""
        return type(self).model_validate({name: getattr(self, name) for name in self.model_fields_set - {*names}})
