"""Where each tensor of a model lies in its files: as it is, as a part of a stored one, or made of several.

Names and arrangements that differ between a checkpoint and its modules are those that transformers itself declares
(`conversion_mapping`). Experts, which its modules hold in one tensor and `architectures.experts` takes apart, are read
one by one wherever the files hold them so: the tensor of all of them is never built.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from architectures.experts import Origin
from checkpoints.sources import TensorSource
from qlinear.errors import CheckpointError, ModelError

# What is taken from the tensor that a module of transformers would hold.
Take = Callable[[Tensor], Tensor]


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _first(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Place:
    """names: the stored tensors it takes; make: makes the model's tensor of them, in that order; `_first`: as it is."""

    names: tuple[str, ...]
    make: Callable[[list[Tensor]], Tensor]

    @property
    def same(self) -> str | None:
        """The stored tensor that is the model's, as it is; None where it is a part of one, or made of several."""
        return self.names[0] if self.make is _first else None

    def shape(self, source: TensorSource) -> tuple[int, ...]:
        """Of what is made, by the shapes alone."""
        return tuple(self.make([torch.empty(source.shapes[name], device="meta") for name in self.names]).shape)

    def borrow(self, source: TensorSource, lent: ExitStack) -> Tensor:
        """The tensor, valid until `lent` is closed; not to be written to."""
        return self.make([lent.enter_context(source.borrow(name)) for name in self.names])


@dataclass
class Places:
    """of: by the model's name, every place that holds the tensor; left: stored tensors and where they would belong."""

    of: dict[str, list[Place]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def plain_places(stored: Mapping[str, str], model: nn.Module, origins: Mapping[str, Origin]) -> Places:
    """Of files whose tensors are the modules' up to their names. stored: stored name -> name in the model."""
    finder = _Finder(model, origins)
    for name, place in stored.items():
        finder.add(place, (name,), _first)
    return finder.places


def checkpoint_places(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    origins: Mapping[str, Origin],
    quantized: Collection[str] = (),
) -> Places:
    """Of a checkpoint of transformers, by the renamings and conversions that it declares for this model.

    shapes: of what is stored, by name; quantized: names of weights that are stored as a quantized linear's.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    finder = _Finder(model, origins)
    merged: dict[str, dict[str, list[str]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        if name in origins and (name in quantized or origins[name].tensor != name):
            finder.places.of.setdefault(name, []).append(Place((name,), _first))  # named as it is here
            continue
        place, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, finder.here)
        if place not in finder.here and name in finder.here:
            place, pattern = name, None
        if pattern is None:
            finder.add(place, (name,), _first)
        else:
            merged.setdefault(place, {}).setdefault(pattern, []).append(name)
    for place, stored in merged.items():
        collected = stored
        if place in finder.apart:
            collected = _of_experts_that_work(model.get_submodule(place.rpartition(".")[0]), stored)
        if not collected:
            continue
        names = [name for together in collected.values() for name in together]
        direct = _one_by_one(finder.apart.get(place, []), collected, by_pattern[next(iter(collected))])
        if direct is not None:
            for name, one in direct.items():
                finder.places.of.setdefault(name, []).append(Place((one,), _first))
            finder.places.left |= {name: name for name in names if name not in direct.values()}
            continue
        conversion = _Conversion(by_pattern[next(iter(collected))], model, place, collected)
        for target in conversion([torch.empty(shapes[name], device="meta") for name in names]):
            finder.add(target, tuple(names), lambda tensors, target=target, of=conversion: of(tensors)[target])
    return finder.places


class _Finder:
    """here: the names of the model as transformers builds it."""

    def __init__(self, model: nn.Module, origins: Mapping[str, Origin]):
        self.places = Places()
        self.apart: dict[str, list[tuple[str, Origin]]] = {}
        for name, origin in origins.items():
            self.apart.setdefault(origin.tensor, []).append((name, origin))
        whole = {name: tensor for name, tensor in model.state_dict().items() if name not in origins}
        self.here: dict = whole | dict.fromkeys(self.apart, True)

    def add(self, place: str, names: tuple[str, ...], make: Callable[[list[Tensor]], Tensor]) -> None:
        """Say where a tensor of the model as transformers builds it lies, or those that it was taken apart into."""
        if place not in self.here:
            self.places.left |= dict.fromkeys(names, place)
            return
        if place not in self.apart:
            self.places.of.setdefault(place, []).append(Place(names, make))
        for name, origin in self.apart.get(place, []):
            made = Place(names, lambda tensors, take=origin.take: take(make(tensors)))
            self.places.of.setdefault(name, []).append(made)


class _Conversion:
    """What several stored tensors become together, by a converter of transformers."""

    def __init__(self, converter, model: nn.Module, place: str, collected: dict[str, list[str]]):
        self.converter, self.model, self.place = converter, model, place
        self.counts = {pattern: len(names) for pattern, names in collected.items()}

    def __call__(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        left = iter(tensors)
        for pattern, count in self.counts.items():
            self.converter.collected_tensors[pattern] = [partial(_whole, next(left)) for _ in range(count)]
        made = self.converter.convert(self.place, model=_AsBuilt(self.model), config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class _AsBuilt:
    """A model as conversions want to see it: with the shapes of what was taken apart."""

    def __init__(self, model: nn.Module):
        self.config, self._model = model.config, model

    def get_parameter(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        shapes = getattr(self._model.get_submodule(owner), "whole_shapes", {})
        return torch.empty(shapes[leaf], device="meta") if leaf in shapes else self._model.get_parameter(name)


class ModelSource:
    """A checkpoint's tensors by the names that a model has for them: `TensorSource`."""

    def __init__(self, source: TensorSource, model: nn.Module, origins: Mapping[str, Origin], parts: Sequence[str]):
        """parts: what stands in the place of "weight" in the names of a quantized linear's tensors, the first first."""
        self.files, self._source = source.files, source
        bases = [name.removesuffix(parts[0]) for name in source.shapes if name.endswith(f".{parts[0]}")]
        quantized = {f"{base}weight": base for base in bases}
        of_parts = {f"{base}{part}" for base in bases for part in parts}
        shapes = {name: shape for name, shape in source.shapes.items() if name not in of_parts}
        shapes |= {name: source.shapes[f"{base}{parts[0]}"] for name, base in quantized.items()}
        places = checkpoint_places(model, shapes, origins, quantized)
        self._places = {name: Place((name,), _first) for name in places.left}
        self._places |= {name: found[0] for name, found in places.of.items()}
        for name in [name for name, place in self._places.items() if set(place.names) & quantized.keys()]:
            stored = self._places.pop(name).same
            if stored is None:
                raise CheckpointError(f"{name} is made of quantized weights in an arrangement that does not run here")
            if stored in source.shapes:  # beside what stands in its place
                self._places[name] = Place((stored,), _first)
            for part in parts:
                if f"{quantized[stored]}{part}" in source.shapes:
                    place = Place((f"{quantized[stored]}{part}",), _first)
                    self._places[f"{name.removesuffix('weight')}{part}"] = place
        self.shapes = {name: place.shape(source) for name, place in self._places.items()}

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        with ExitStack() as lent:
            yield self._places[name].borrow(self._source, lent)

    def names_in(self, model: nn.Module) -> None:
        return None

    def name_in_files(self, name: str) -> str:
        """What a tensor that is stored as it is is called there."""
        return self._places[name].names[0]


def _of_experts_that_work(owner: nn.Module, collected: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without the tensors of experts that do nothing, the last ones, where their module says that it has such."""
    if not getattr(owner, "idle_count", 0):
        return collected

    def works(name: str) -> bool:
        return int(re.findall(r"\.(\d+)\.", name)[-1]) < owner.expert_count

    working = {pattern: list(filter(works, names)) for pattern, names in collected.items()}
    return {pattern: names for pattern, names in working.items() if names}


def _one_by_one(apart: list[tuple[str, Origin]], collected: dict[str, list[str]], converter) -> dict[str, str] | None:
    """The stored name of each expert's tensor, where the conversion only stacks and joins them.

    Raises `ModelError` where one of them is missing.
    """
    kinds = [type(operation).__name__ for operation in converter.operations]
    if kinds not in (["MergeModulelist"], ["MergeModulelist", "Concatenate"]) or not apart:
        return None
    if any(origin.expert is None for _, origin in apart):
        return None
    parts = [collected.get(pattern, []) for pattern in converter.source_patterns]
    count = 1 + max(origin.expert for _, origin in apart)
    for part in parts:
        if len(part) < count:
            there = {int(number) for name in part for number in re.findall(r"\.(\d+)\.", name)[-1:]}
            lost = next((index for index in range(count) if index not in there), len(part))
            raise ModelError(f"the weights lack expert {lost} of {apart[0][1].tensor}, or it is stored in another way")
    return {name: parts[origin.part][origin.expert] for name, origin in apart}
