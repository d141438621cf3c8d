"""A model that is served, as a specification names it in the place of one that is opened. Imports without torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, ValidationError, model_serializer

from hydrometer.core.errors import ModelError, one_line
from hydrometer.core.io.yaml_io import MAX_YAML_BYTES, explain, parse_yaml, read_plain, user_path
from hydrometer.core.spec import Strict
from hydrometer.models.causal_lm.engines.openai import ServerSettings

__all__ = ["Served", "ServedModel", "source_of"]


class ServedModel(ServerSettings):
    """A model that is served.

    Parameters
    ----------
    model : its name there, and here what it is told apart by: other weights are served by another name.
    tokenizer : an alias, a folder (weights in it are not opened), a GGUF file, or a hub id.
    api : whose requests the server understands.
    patience : seconds for which a server that is away is asked again.
    """

    places: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "timeout", "concurrency", "patience"})

    tokenizer: str = Field(min_length=1)
    api: Literal["vllm", "sglang"] = "vllm"
    patience: float = Field(default=600.0, ge=0, le=86_400)

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Omit, in a key, where it is served and how it is asked: these may change within a run."""
        body: dict[str, Any] = handler(self)
        return {k: v for k, v in body.items() if k not in self.places} if info.context == "key" else body


class Served(Strict):
    """A source of a specification: ``{served: {base_url: ..., model: ..., tokenizer: ...}}``."""

    served: ServedModel

    def __str__(self) -> str:
        return self.served.model


def source_of(name: str) -> str | Served:
    """Return what a word on a command line names: a YAML file ``served: {...}`` a served model, else a source.

    Raises
    ------
    InputError : a YAML file that names no served model.
    """
    path = user_path(name)
    if path.suffix not in (".yaml", ".yml") or path.is_dir():
        return name
    try:
        body = parse_yaml(read_plain(path, MAX_YAML_BYTES), name)
    except OSError as e:
        what = f"the file that names a served model cannot be read: {one_line(e.strerror or str(e), 200)}"
        raise ModelError(what, got=name, fix="give a folder, a hub id, or a YAML file: served: {...}") from None
    try:
        return Served.model_validate(body)
    except ValidationError as e:
        raise explain(e, name, body) from None
