"""What a checkpoint is, read from its config.json: architecture, width, depth, vocabulary and number type.

Families spell the same field differently, and a model of several parts keeps its text part one level down. A field
that is missing, of the wrong type or told twice with two values is a ConfigError that names file and field.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from actors.codec.base import CodecError

ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed", "dim", "model_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "vocabulary": ("vocab_size", "n_vocab", "padded_vocab_size"),
}
"""Field -> the names it has in config.json, commonest first."""

TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a model of several parts describes its language model."""

DTYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16",
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8",
}  # fmt: skip
"""torch's name of a number type -> safetensors'."""


class ConfigError(CodecError):
    """config.json can't be used. The target is refused before any tensor is read; says what to write where."""

    def __init__(self, file: str, field: str, problem: str) -> None:
        super().__init__(f"{file}: {field}: {problem}")
        self.file = file
        self.field = field


class Architecture(msgspec.Struct, frozen=True):
    architecture: str  # class name, as LlamaForCausalLM; the model type where config.json has no class
    model_type: str | None
    hidden_size: int
    layers: int  # of the decoder and the encoder each, where there are both
    vocabulary: int
    dtype: str | None  # as safetensors names it; None: config.json doesn't say, the tensors do


def parse_architecture(raw: bytes, file: str) -> Architecture:
    """raw: the bytes of config.json; file: its name for errors."""
    try:
        config = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(file, "(whole file)", f"not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(file, "(whole file)", f"expected an object, got {_kind(config)}")
    parts = [("", config)]
    for name in TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, dict):
            parts.append((f"{name}.", part))
        elif part is not None:
            raise ConfigError(file, name, f"expected an object, got {_kind(part)}")
    model_type = _text(config, "model_type", file)
    return Architecture(
        architecture=_class_name(config, model_type, file),
        model_type=model_type,
        hidden_size=_count(parts, "hidden_size", file),
        layers=_count(parts, "layers", file),
        vocabulary=_count(parts, "vocabulary", file),
        dtype=_dtype(parts, file),
    )


def _class_name(config: Mapping[str, Any], model_type: str | None, file: str) -> str:
    names = config.get("architectures")
    if names is None or names == []:
        if model_type is None:
            raise ConfigError(file, "architectures", "missing, and so is model_type; give one class name in a list")
        return model_type
    if not isinstance(names, list) or not isinstance(names[0], str) or not names[0]:
        raise ConfigError(file, "architectures", f"expected a list of class names, got {names!r}")
    return names[0]


def _count(parts: list[tuple[str, dict[str, Any]]], field: str, file: str) -> int:
    """The one value of a field: of the whole config if it is there, else of its text part."""
    for prefix, config in parts:
        told = {name: config[name] for name in ALIASES[field] if config.get(name) is not None}
        for name, value in told.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(file, prefix + name, f"expected a whole number from 1, got {value!r}")
        if len(set(told.values())) > 1:
            raise ConfigError(file, prefix + next(iter(told)), f"told twice with different values: {told}")
        if told:
            return int(next(iter(told.values())))
    raise ConfigError(file, ALIASES[field][0], f"missing; looked for {', '.join(ALIASES[field])}")


def _dtype(parts: list[tuple[str, dict[str, Any]]], file: str) -> str | None:
    """`dtype` is what transformers 5 writes, `torch_dtype` what older ones did; both may be there if they agree."""
    for prefix, config in parts:
        told = {}
        for name in ("dtype", "torch_dtype"):
            value = _text(config, name, file, prefix)
            if value is None or value == "auto":
                continue
            told[name] = DTYPES.get(value.removeprefix("torch."))
            if told[name] is None:
                raise ConfigError(file, prefix + name, f"{value!r} is none of {', '.join(DTYPES)}")
        if len(set(told.values())) > 1:
            raise ConfigError(file, prefix + "dtype", f"told twice with different values: {told}")
        if told:
            return next(iter(told.values()))
    return None


def _text(config: Mapping[str, Any], field: str, file: str, prefix: str = "") -> str | None:
    value = config.get(field)
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(file, prefix + field, f"expected a name, got {value!r}")
    return value


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", type(None): "null", bool: "a boolean", dict: "an object"}.get(
        type(value), "a number"
    )
