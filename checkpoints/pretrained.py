"""Find and open a float causal language model, and read its weights module by module.

`open_pretrained` builds the model on the meta device, so opening costs no weight memory; `materialize` and `release`
then bring single modules in and out, so that a model far larger than memory can be worked on block by block.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.beside import FETCHED
from checkpoints.formats.gguf import GgufSource
from checkpoints.local import EMBEDDED, embedded_file, hub_name, slug
from checkpoints.matching import match
from checkpoints.meta import (
    build_empty,
    check_depth,
    check_described,
    class_for,
    move_to_meta,
    opens_as_causal,
    places_of_tensors,
    put,
    set_generation_config,
    stored_tensors,
    wanted_beside_text,
)
from checkpoints.places import Place
from checkpoints.sources import (
    FLOATS,
    NoWeights,
    TensorSource,
    fingerprint,
    holds_weights,
    is_finite,
    one_line_errors,
    open_directory,
    read_json,
)
from checkpoints.tokenizers import open_tokenizer
from qlinear.errors import AwqError, ModelError
from qlinear.process import trim_heap

# Of a model without weights, whose files would say how many there can be.
MOST_LAYERS = 1000


@dataclass
class PretrainedModel:
    """An opened float model.

    name: fit for a path; model: in eval mode, its parameters and persistent buffers on meta until materialized;
    dtype: what it is to run in; fingerprint: hex, differs for other weights or another configuration;
    float_bytes: all weights in bfloat16, tied ones once.
    """

    name: str
    config: object
    generation_config: object
    model: nn.Module
    dtype: torch.dtype
    fingerprint: str
    float_bytes: int
    _source: TensorSource = field(repr=False)
    _stored: dict[str, Place] = field(repr=False)  # by name in the model
    _own: dict[str, str] = field(repr=False)  # of experts that are stored one by one: name in the model -> in the files
    _wide: frozenset[str] = field(repr=False)  # tensors that transformers keeps in float32
    _turned: frozenset[str] = field(repr=False)  # weights that the files, and transformers, hold the other way round
    _open_tokenizer: Callable = field(repr=False)
    directory: Path | None = None  # whose other files go along with the weights
    left: tuple[str, ...] = ()  # stored weights that transformers has no place for

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the weights lie."""
        return self._source.files

    @cached_property
    def tokenizer(self):
        """The model's `PreTrainedTokenizerFast`. Raises `ModelError` when it has none that can be read."""
        with one_line_errors(f"the tokenizer of {self.name} cannot be opened"):
            return self._open_tokenizer()

    def materialize(self, module: str = "", dtype: torch.dtype | None = None, recurse: bool = True) -> None:
        """Read what is still on meta in the module of that name (`""`: in the whole model) into CPU memory.

        recurse: what its children hold too.

        Floats become `dtype` (default: the model's), but for those that transformers keeps in float32. A tied parameter
        is read once and appears in every module that shares it. Raises `ModelError` naming the tensor when a value is
        not finite, and `KeyError` for a tensor on meta that is not the float model's (of a module put in its place,
        say).
        """
        places = places_of_tensors(self.model)
        held = stored_tensors(self.model.get_submodule(module), module, recurse)
        for tensor, name in {tensor: name for name, tensor in held if tensor.is_meta}.items():
            keeps = name in self._wide or not tensor.is_floating_point()
            wanted = tensor.dtype if keeps else dtype or self.dtype
            put(places[tensor], tensor, self._read(self._stored[name], wanted))

    def release(self, module: str = "", recurse: bool = True) -> None:
        """Give back the memory of every parameter and persistent buffer in the module of that name, tied ones too.

        What was changed in them is lost: `materialize` reads the file again.
        """
        move_to_meta(self.model, module, recurse)
        trim_heap()

    def name_in_files(self, name: str) -> str:
        """What readers of such models call a tensor of this name."""
        return self._own.get(name, name)

    def stored_as(self, name: str) -> str | None:
        """Under which name the files hold a tensor of the model as it is; None where they hold it in another way."""
        return self._stored[name].same if name in self._stored else None

    def linear_in_files(self, name: str) -> str:
        """What readers of such models call a linear of this name: as it is called where it came from."""
        weight = self._own.get(f"{name}.weight", "")
        return weight.removesuffix(".weight") if weight.endswith(".weight") else name

    def as_in_files(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """A tensor of the model as readers of such models expect it: named and turned as where it came from, a float
        in bfloat16, or in float32 where transformers keeps it so."""
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if name in self._wide else torch.bfloat16)
        return self.name_in_files(name), tensor.t().contiguous() if name in self._turned else tensor

    def from_files(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that `as_in_files` gave for the model's `name`, as the model holds it."""
        return tensor.t() if name in self._turned else tensor

    def load(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Materialize everything and return the model."""
        self.materialize("", dtype)
        return self.model

    def _read(self, place: Place, dtype: torch.dtype) -> Tensor:
        """A copy of one tensor in `dtype`, its values checked."""
        with ExitStack() as lent:
            stored = place.borrow(self._source, lent)
            if dtype.is_floating_point and stored.dtype not in FLOATS:
                raise ModelError(f"{self.name}: {place.names[0]} is stored as {stored.dtype}, not as floats")
            tensor = stored.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if dtype.is_floating_point and not is_finite(tensor):
            raise ModelError(f"{self.name}: {place.names[0]} holds NaN or infinite weights (as {dtype})")
        return tensor


def open_pretrained(model_name: str, trust_remote_code: bool = False, fetch: bool = True) -> PretrainedModel:
    """Open an embedded model, a local directory, a `.gguf` file or a hub id, looked for in that order.

    fetch: whether the hub may be asked for what is not on this machine.
    Raises `ModelError` with one line that says what was tried or what is wrong.
    """
    if model_name in EMBEDDED:
        return _open_gguf(embedded_file(model_name), model_name)
    with one_line_errors(f"no model {model_name!r}"):  # a name may be too long for a path, or have no such home
        path = Path(model_name).expanduser()
        is_directory, is_file, is_gguf = path.is_dir(), path.is_file(), path.suffix.lower() == ".gguf"
    if is_directory:
        return _open_directory(path, path.resolve().name, trust_remote_code)
    if is_file and is_gguf:
        return _open_gguf(path, path.stem)
    if is_file:
        raise ModelError(f"{model_name} is neither a model directory nor a .gguf file")
    if is_gguf or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model_name):
        embedded, there = ", ".join(EMBEDDED), hub_name(model_name)
        advice = f"; for one on the hub give its name alone, {there}" if there else ""
        none = f"no model {model_name!r}: it is not one of {embedded}, nor a directory or .gguf file here"
        raise ModelError(none + advice)
    return _open_directory(_download(model_name, fetch), model_name.split("/")[-1], trust_remote_code)


def open_described(model_name: str, trust_remote_code: bool) -> PretrainedModel:
    """As `open_pretrained` does; of a directory with a configuration and no weights, the model without them.

    Of that, nothing can be materialized, and it has no `files`.
    """
    with one_line_errors(f"no model {model_name!r}"):
        directory = Path(model_name).expanduser()
        bare = (directory / "config.json").is_file() and not holds_weights(directory)
    if model_name in EMBEDDED or not bare:
        return open_pretrained(model_name, trust_remote_code)
    config = _read_config(directory, trust_remote_code)
    name, source, dtype = directory.resolve().name, NoWeights(), torch.bfloat16
    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if layers > MOST_LAYERS:
        raise ModelError(
            f"{name}: the configuration names {layers} layers, and {MOST_LAYERS} are taken without weights"
        )
    with one_line_errors(f"{name}: no model can be built from its configuration"):
        model, _ = build_empty(config, dtype, trust_remote_code)
    return PretrainedModel(
        slug(name), config, model.generation_config, model, dtype, fingerprint(config, ()), float_bytes(model),
        source, {}, {}, frozenset(), frozenset(), lambda: open_tokenizer(directory, trust_remote_code), directory,
    )  # fmt: skip


def float_bytes(model: nn.Module) -> int:
    """Of all weights in bfloat16, tied ones once."""
    return sum(tensor.numel() for tensor in {tensor for _, tensor in stored_tensors(model)}) * torch.bfloat16.itemsize


def fingerprint_at_hand(model_name: str, trust_remote_code: bool) -> str | None:
    """The fingerprint of a model that lies on this machine, whole; None of any other."""
    try:
        return open_pretrained(model_name, trust_remote_code, fetch=False).fingerprint
    except (AwqError, OSError):
        return None


def _download(repository: str, fetch: bool) -> Path:
    """The local copy of a hub model, fetched if it may and can be: weights as safetensors where there are any."""
    from huggingface_hub import snapshot_download

    # The model's own code too: it goes along into the checkpoint, and nobody runs it here unless it is trusted.
    small = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md", *FETCHED]
    tried = f"it is not one of {', '.join(EMBEDDED)}, nor a directory or .gguf file here"
    with one_line_errors(f"no model {repository!r}: {tried}, and neither the hub nor its local cache gave it"):
        asked = {"repo_id": repository, "etag_timeout": 5, "local_files_only": not fetch}
        folder = Path(snapshot_download(**asked, allow_patterns=[*small, "model*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(**asked, allow_patterns=["pytorch_model*.bin"])
    return folder


def _read_config(directory: Path, trust_remote_code: bool):
    """That of a causal language model. Raises `ModelError` for any other."""
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} is not a model directory: it holds no config.json")
    described = read_json(directory / "config.json")
    if described.get("quantization_config") is not None:
        raise ModelError(f"{directory} is already quantized; give the float model it was made from")
    with one_line_errors(f"{directory / 'config.json'} describes no model that can be opened"):
        check_described(str(directory), described, trust_remote_code)
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    _require_causal(directory, config, trust_remote_code)
    return config


def _open_directory(directory: Path, name: str, trust_remote_code: bool) -> PretrainedModel:
    config = _read_config(directory, trust_remote_code)

    def tokenizer():
        return open_tokenizer(directory, trust_remote_code)

    opened = _open(open_directory(directory), name, config, tokenizer, trust_remote_code)
    opened.directory = directory
    set_generation_config(opened.model, directory)
    opened.generation_config = opened.model.generation_config
    return opened


def _open_gguf(path: Path, name: str) -> PretrainedModel:
    return open_gguf_source(GgufSource(path), name)


def open_gguf_source(source: GgufSource, name: str) -> PretrainedModel:
    """Of a `.gguf` file that is open."""
    return _open(source, name, source.config, source.tokenizer, trust_remote_code=False)


def _require_causal(directory: Path, config, trust_remote_code: bool) -> None:
    own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if own_code:
        return
    if (kind := class_for(config)) is not None:
        if needed := wanted_beside_text(kind, config):
            raise ModelError(f"{directory}: {kind.__name__} writes no text without {needed}, and is not run here")
    elif not opens_as_causal(config):
        named = ", ".join(map(str, config.architectures or [])) or "no architecture"
        raise ModelError(f"{directory} is not a causal language model (config.json names {named})")


def _open(source: TensorSource, name: str, config, tokenizer: Callable, trust_remote_code: bool) -> PretrainedModel:
    """Build the model on meta and find each of its tensors in the source."""
    check_depth(name, config, len(source.shapes))
    dtype = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    with one_line_errors(f"{name}: no model can be built from its configuration"):
        model, origins = build_empty(config, dtype, trust_remote_code)
    found = match(name, model, source, origins)
    turned = frozenset(name for name, origin in origins.items() if origin.tensor == name and name.endswith(".weight"))
    wide = frozenset(name for name, tensor in stored_tensors(model) if tensor.dtype == torch.float32 != dtype)
    return PretrainedModel(
        slug(name), model.config, model.generation_config, model, dtype, fingerprint(config, source.files),
        float_bytes(model), source, found.stored, found.own, wide, turned, tokenizer, left=found.left,
    )  # fmt: skip
