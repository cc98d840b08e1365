"""A model without its weights: built on the meta device, and the places that tensors are put into and taken from."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor, nn

from architectures.experts import Origin, take_apart
from architectures.fields import of_all_layers
from checkpoints.sources import one_line_errors
from qlinear.errors import ModelError

# Whoever builds a model changes what torch and its modules do meanwhile, for the whole process.
_BUILDING = RLock()


def check_depth(label: str, config, n_tensors: int) -> None:
    """Raise `ModelError` for more layers than there are stored tensors: building them first could take forever."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if layers > n_tensors:
        raise ModelError(f"{label}: the configuration names {layers} layers but the weights hold {n_tensors} tensors")


def check_described(label: str, described: dict, trust_remote_code: bool) -> None:
    """Raise `ModelError` for a configuration that names its classes in no way that there is.

    And for one that only the model's own code understands, unless that may run.
    """
    from transformers import CONFIG_MAPPING

    classes = described.get("auto_map") or {}
    if not isinstance(classes, dict):
        raise ModelError(f"{label}: the auto_map of its configuration is no table of classes")
    if not isinstance(described.get("architectures") or [], list):
        raise ModelError(f"{label}: the architectures of its configuration are no list of classes")
    own = "AutoConfig" in classes
    if own and not trust_remote_code and described.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(f"{label} is a model of its own code; read its *.py, and give `trust_remote_code` to run them")


def set_generation_config(model: nn.Module, directory: Path) -> None:
    """Give a model what its directory says of how text is written with it, if it says anything.

    Raises `ModelError` for what cannot be understood, wherever it comes from.
    """
    from transformers import GenerationConfig

    file = directory / "generation_config.json"
    with one_line_errors(f"{file if file.is_file() else directory} cannot be understood"):
        if file.is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        ends = getattr(model.generation_config, "eos_token_id", None)  # own code may do without
        if not all(end is None or type(end) is int for end in (ends if isinstance(ends, list) else [ends])):
            raise ModelError(
                f"{directory}: the eos_token_id is {str(ends)[:100]}; it has to be a token's number, or some"
            )


def settle(config) -> None:
    """Whoever runs a model asks for what it gives beside its logits, and in which shape: its files have no say."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.return_dict = True
        part.output_attentions = part.output_hidden_states = False


def _settle_window(config) -> None:
    """A window of 0 or -1, which some files write for none, is none: to transformers no token would see any other.

    Where each layer says whether it has one, none has that. Raises `ModelError` where one is said to.
    """
    window, types = of_all_layers(config, "sliding_window"), getattr(config, "layer_types", None)
    if type(window) is not int or window > 0 or (types and "sliding_attention" not in types):
        return
    if types:
        raise ModelError(f"its configuration has layers with a sliding window, and says {window} for how long it is")
    config.sliding_window = None


def build_empty(config, dtype: torch.dtype, trust_remote_code: bool) -> tuple[nn.Module, dict[str, Origin]]:
    """The model with its stored tensors on meta; buffers that no file holds (rotary frequencies) are computed.

    Its experts are linears; where those come from in the model as transformers builds it, by full name.
    """
    from accelerate import init_empty_weights

    settle(config)
    _settle_window(config.get_text_config())
    with _BUILDING, init_empty_weights(include_buffers=False):
        default = torch.get_default_dtype()
        try:
            model = _build(config, dtype, trust_remote_code)
        finally:
            torch.set_default_dtype(default)
    model.get_input_embeddings()  # raises where there are none
    model.tie_weights()  # moving a parameter to meta makes a new one, which unties it
    move_to_meta(model, "")  # persistent buffers are not there yet
    _widen(model, dtype)
    model.config.architectures = [type(model).__name__]  # a GGUF file names none
    return model.eval().requires_grad_(False), take_apart(model)


def _widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Give what transformers itself keeps in float32, biases of routers say, that type."""
    patterns = list(model._get_dtype_plan(dtype)) if hasattr(model, "_get_dtype_plan") else []
    if not patterns:
        return
    known = re.compile("|".join(pattern.replace("*", ".*") for pattern in patterns))
    places = places_of_tensors(model)
    for tensor in {tensor for name, tensor in stored_tensors(model) if known.search(name)}:
        if tensor.is_floating_point():
            put(places[tensor], tensor, torch.empty_like(tensor, dtype=torch.float32))


def class_for(config) -> type | None:
    """The class of transformers that its configuration names, where that is one that writes text; None else."""
    import transformers
    from transformers.models.auto import modeling_auto

    writing = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    known = {name for names in writing for name in names.values()}
    own = {names.get(config.model_type) for names in writing}  # a class may be another type's, too
    kinds = (
        getattr(transformers, name, None)
        for name in config.architectures or []
        if isinstance(name, str) and name in known
    )
    fitting = (kind for kind in kinds if kind is not None)
    return next((kind for kind in fitting if kind.config_class is type(config) or kind.__name__ in own), None)


def opens_as_causal(config) -> bool:
    """Whether its type alone says how to open it: where it names no class, or none that there is."""
    import transformers
    from transformers.models.auto import modeling_auto

    named = [name for name in config.architectures or [] if isinstance(name, str) and hasattr(transformers, name)]
    return not named and config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def wanted_beside_text(kind: type, config) -> str | None:
    """What a class that writes text about pictures does not write any without; None where text is enough."""
    given = inspect.signature(kind.forward).parameters.values()
    needed = [each.name for each in given if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    others = [name for name in needed if name not in ("self", "input_ids")]
    if others:
        return ", ".join(others)
    from transformers.models.auto import modeling_auto

    about_pictures = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type) == kind.__name__
    return "what its encoder reads" if about_pictures and getattr(config, "is_encoder_decoder", False) else None


def _build(config, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    kind = class_for(config)
    own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if kind is None or own_code:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return kind._from_config(config, dtype=dtype)


def stored_tensors(module: nn.Module, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every parameter (each name of a tied one) and persistent buffer with its full name: what a file must hold."""
    for path, child in module.named_modules(prefix=prefix) if recurse else [(prefix, module)]:
        for leaf, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None and leaf not in child._non_persistent_buffers_set:
                yield f"{path}.{leaf}".lstrip("."), tensor


def places_of_tensors(model: nn.Module) -> dict[Tensor, list[tuple[dict, str]]]:
    """Every place in the modules that holds a tensor: a tied parameter has several."""
    places = {}
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for leaf, tensor in slots.items():
                if tensor is not None:
                    places.setdefault(tensor, []).append((slots, leaf))
    return places


def put(places: list[tuple[dict, str]], old: Tensor, new: Tensor) -> None:
    """Put `new` wherever the model holds `old`, as a parameter where `old` was one."""
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=False)
    for slots, leaf in places:
        slots[leaf] = new


def move_to_meta(model: nn.Module, module: str, recurse: bool = True) -> None:
    """Take the tensors of the module of that name out of the model, wherever they are, and leave their shapes."""
    places = places_of_tensors(model)
    for tensor in {tensor for _, tensor in stored_tensors(model.get_submodule(module), module, recurse)}:
        put(places[tensor], tensor, torch.empty_like(tensor, device="meta"))
