"""Every tensor of a model found in its files: none missing, none of another shape, none left over."""

import re
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from architectures.experts import Origin
from checkpoints.meta import stored_tensors
from checkpoints.places import Place, checkpoint_places, plain_places
from checkpoints.sources import TensorSource, is_finite, one_line_errors
from qlinear.errors import ModelError


@dataclass(frozen=True)
class Matched:
    """stored: where each tensor of the model is, tied parameters under all of their names; own: what experts are called
    there, whose names here no other reader knows; left: stored weights that this kind of model is known to carry along
    and transformers has no place for, such as layers that predict several tokens.
    """

    stored: dict[str, Place]
    own: dict[str, str]
    left: tuple[str, ...]


def match(label: str, model: nn.Module, source: TensorSource, origins: dict[str, Origin]) -> Matched:
    """Find the tensors of a model.

    Raises `ModelError` for a tensor that is missing, has another shape, is stored twice, or has no place in the model
    and is not one that this kind of model is known to carry along.
    """
    here = dict(stored_tensors(model))
    names = source.names_in(model)
    try:
        with one_line_errors("the weights are not arranged as this kind of model has them"):
            places = plain_places(names, model, origins) if names else checkpoint_places(model, source.shapes, origins)
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error
    for name, place in places.left.items():
        if not may_be_left(model, place):
            raise ModelError(f"{label}: the weights hold {name}, for which the configured model has no place")
    stored = {}
    for name, found in places.of.items():
        if name not in here:  # a buffer that is computed now
            continue
        if len(found) > 1:
            first, second = found[0].names[0], found[1].names[0]
            raise ModelError(f"{label}: {second} and {first} are both stored for {name}")
        stored[name] = found[0]
        _check_shape(label, name, found[0], source, tuple(here[name].shape))
    # What stands beside experts goes by the name that it has beside them in the files: a router, say.
    mixtures = {name.partition(".experts.")[0] for name in origins if ".experts." in name}
    here_alone = {name for name in stored if name in origins or name.rsplit(".", 2)[0] in mixtures}
    own = {name: stored[name].same for name in here_alone if stored[name].same and not names}
    names_of = {}
    for name, tensor in here.items():
        names_of.setdefault(tensor, []).append(name)
    for tied in names_of.values():
        holders = [stored[name] for name in tied if name in stored]
        if not holders:
            raise ModelError(f"{label}: the weights lack {_as_transformers_has_it(tied[0], origins)}")
        _check_tied(label, source, holders)
        stored |= {name: holders[0] for name in tied}
    left = tuple(sorted(name for name in places.left if name.endswith(".weight")))
    return Matched(stored, own, left)


def _as_transformers_has_it(name: str, origins: dict[str, Origin]) -> str:
    return origins[name].tensor if name in origins else name


def _check_shape(label: str, name: str, place: Place, source: TensorSource, expected: tuple[int, ...]) -> None:
    with one_line_errors(f"{label}: {place.names[0]} does not have the shape of {name}, {list(expected)}"):
        found = place.shape(source)
    if found != expected:
        raise ModelError(
            f"{label}: {place.names[0]} is {list(found)} in the weights but {list(expected)} by the configuration"
        )


def _check_tied(label: str, source: TensorSource, holders: list[Place]) -> None:
    for other in holders[1:]:
        with ExitStack() as lent:
            here, there = holders[0].borrow(source, lent), other.borrow(source, lent)
            first, second = holders[0].names[0], other.names[0]
            for name, tensor in ((first, here), (second, there)):
                if tensor.is_floating_point() and not is_finite(tensor):  # a NaN does not equal itself
                    raise ModelError(f"{label}: {name} holds NaN or infinite weights")
            if not torch.equal(here, there):
                raise ModelError(
                    f"{label}: {first} and {second} differ but the configuration ties them; where both are meant, set "
                    "tie_word_embeddings to false in its config.json"
                )


def may_be_left(model: nn.Module, name: str) -> bool:
    """Whether a stored tensor is a leftover that transformers too passes over: a buffer that is computed now."""
    known = model._keys_to_ignore_on_load_unexpected or ()
    computed = {buffer for buffer, _ in model.named_buffers()}
    return name in computed or any(re.search(pattern, name) for pattern in (*known, r"rotary_emb\.inv_freq$"))
