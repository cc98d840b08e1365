"""The model's own modules as a decoder: one forward a call."""

import inspect
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from engine.decoder import check_finite, check_text, read_all
from engine.rotation import LENGTH_DEPENDENT
from qlinear.errors import AwqError, ModelError, one_line

# Logits widened to float32 at a time; the whole text's would be length x vocabulary.
ROWS_PER_PART = 256

# Of the largest logit: what bfloat16 makes of the same sum in another order, and much less than a token's doing.
ROUNDING = 0.02


# Of a model, the decoder that ran it last.
_LAST: WeakKeyDictionary[nn.Module, "ref[ModuleDecoder]"] = WeakKeyDictionary()


class ModuleDecoder:
    """`engine.decoder.Decoder` over any causal LM of `transformers`.

    Cache, positions and what else a model takes are handed over by the methods that its own `generate` calls
    (transformers/generation/utils.py), which models override where they want them otherwise: by another name, in
    another shape, or not at all.

    static_cache: keep keys and values in buffers of `max_tokens` positions, allocated once and used again for every
    text, instead of a cache that grows; it cannot be cut back, so texts that begin alike are read whole. Models that
    do not keep plain keys and values in it rightly have one that grows all the same.
    """

    same_in_any_cut, nbytes = False, 0

    def __init__(self, model: nn.Module, max_tokens: int, static_cache: bool):
        """Raises `ModelError` for a model that nobody taught to generate."""
        from transformers import GenerationConfig
        from transformers.generation import GenerationMode

        if not model.can_generate():
            raise ModelError(f"{type(model).__name__} has no way of generating, which transformers' own models have")
        self.model, self.max_tokens = model, max_tokens
        self.vocabulary = model.get_input_embeddings().num_embeddings
        self.static = static_cache and _keeps_static(model)
        self.same_in_any_room = not self.static  # over which all of it is added up
        self._settings = GenerationConfig(
            use_cache=True, cache_implementation="static" if self.static else None, num_beams=1, num_return_sequences=1
        )
        self._mode = GenerationMode.GREEDY_SEARCH
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._rotations = _rotations(model)
        self._shared = bool(self._rotations) or any(hasattr(module, "_setup_cache") for module in model.modules())
        self._counts = first_position(model) > 0  # positions, itself
        self._carried: dict[str, Any] = {}  # from one call to the next: the cache, by the name the model knows it by
        self._held = 0  # positions in it

    def read(self, tokens: np.ndarray, known: int = 0, rows: int | None = None) -> Iterator[np.ndarray]:
        """Raises `ValueError` as `check_text` does, `ModelError` for logits that are missing or not finite."""
        check_text(self, tokens, known, rows, self._held)
        wanted = len(tokens) - known if rows is None else rows
        with torch.inference_mode():  # in which the cache was filled, and without which it cannot be cleared
            start = self._cut_back(known, len(tokens))
            _LAST[self.model] = ref(self)
            self._held = 0  # of whatever fails half-way, nothing is known
            inputs = self._inputs(torch.from_numpy(np.asarray(tokens, np.int64)), start, wanted)
            out = self.model(**inputs)
            self._carried = self.model._update_model_kwargs_for_generation(
                out, self._carried, is_encoder_decoder=False
            )  # which some have no default for
            self._held = len(tokens)
        read = inputs.get("input_ids", inputs.get("decoder_input_ids"))
        of_its_own = read is not None and read.shape[1] > len(tokens)  # behind the text, and the last row's
        if out.logits.shape[1] < wanted or (wanted > 1 and of_its_own):
            raise ModelError(f"{type(self.model).__name__} predicts one token a call only, and is not run here")
        for part in out.logits[0, -wanted:].split(ROWS_PER_PART):
            yield check_finite(part.float().cpu().numpy())

    def _inputs(self, tokens: Tensor, start: int, wanted: int) -> dict[str, Any]:
        """What `forward` takes for the tokens from `start` on, as `generate` makes it."""
        model, takes = self.model, self._takes
        ids = tokens.unsqueeze(0).to(model.device)
        given = dict(self._carried, use_cache=True)
        if "attention_mask" in takes:
            given["attention_mask"] = None  # as `generate` has it where nothing is padding
        if "position_ids" in takes and not self._counts:
            given["position_ids"] = model._prepare_position_ids_for_generation(ids, {})
        if "logits_to_keep" in takes:
            given["logits_to_keep"] = wanted
        following = len(tokens) - start if start else None
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=following, is_first_iteration=not start, **given
        )
        if "logits_to_keep" in takes:
            inputs["logits_to_keep"] = wanted  # some have but the last row in mind
        return {**inputs, "return_dict": True}

    def _cut_back(self, known: int, length: int) -> int:
        """Have a cache of the first `known` positions, or, where it cannot be cut back to that, of none; how many.

        What cannot be cut back goes on by one token at a time, as in the model's own `generate`: not all recurrent
        states take in more at once. Nor is anything known where the modules themselves keep it (RecurrentGemma's, the
        angles of the longest text) and another decoder has run them.
        """
        last = _LAST.get(self.model)
        if self._shared and (last is None or last() is not self):
            known = 0
        surplus, rewinds = self._held - known, self._rewinds()
        if known and surplus == 0 and (rewinds or length == known + 1):
            return known
        if known and surplus > 0 and rewinds and self._crop(surplus):
            return known
        self._start()
        return 0

    def _rewinds(self) -> bool:
        """Keys that were turned for a longer text are not those of a shorter one."""
        from transformers import Cache

        caches = list(self._carried.values())
        croppable = all(isinstance(cache, Cache) and cache.is_croppable for cache in caches)
        return bool(caches) and croppable and not self.static and not self._rotations

    def _crop(self, surplus: int) -> bool:
        """Whether the cache could be cut: a window that has moved on cannot go back."""
        try:
            for cache in self._carried.values():
                cache.crop(-surplus)
        except (RuntimeError, ValueError, NotImplementedError):
            return False
        return True

    def _start(self) -> None:
        from transformers import StaticCache

        if "dynamic" in self._rotations:  # its angles stay those of the longest text until a short one is read
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.model.device))
        held = list(self._carried.values())
        if held and all(isinstance(cache, StaticCache) for cache in held):
            for cache in held:
                cache.reset()
            return
        self._carried = {}
        self.model._prepare_cache_for_generation(self._settings, self._carried, self._mode, 1, self.max_tokens)


def check_causal(model: nn.Module) -> None:
    """Raise `ModelError` where a model does not run, or where what comes after a token changes what is found after it:
    BERT, for one, looks both ways.

    Reads two texts of two tokens that differ in the second. Rounding, of experts in other company say, is no change.
    """
    decoder = ModuleDecoder(model, 2, static_cache=False)
    first, second = decoder.vocabulary // 3, decoder.vocabulary // 2
    try:
        found = [read_all(decoder, np.array([first, last]))[0] for last in (first, second)]
    except AwqError:
        raise
    except Exception as error:  # of the model's own code
        kind, dtype = type(model).__name__, str(model.dtype).removeprefix("torch.")
        raise ModelError(f"{kind} does not run in {dtype} ({one_line(error)})") from error
    if np.abs(found[0] - found[1]).max() > ROUNDING * np.abs(found[0]).max():
        raise ModelError(
            f"{model.config.model_type} models look at later tokens too, so that they write no text from left to "
            f"right, and are not run here"
        )


def first_position(model: nn.Module) -> int:
    """Of the first token: 0, but where the model has a count of its own. RoBERTa and its kind begin behind the
    padding's id, as they were trained, while `generate` would have them begin at 0."""
    own = (module for module in model.modules() if hasattr(module, "create_position_ids_from_input_ids"))
    return next((module.padding_idx + 1 for module in own), 0)


def _rotations(model: nn.Module) -> set[str]:
    """The kinds of `LENGTH_DEPENDENT` rotations in the model."""
    named = [getattr(module, "rope_type", None) for module in model.modules()]
    kinds = {kind for one in named for kind in (one.values() if isinstance(one, dict) else [one])}
    return kinds.intersection(LENGTH_DEPENDENT)


def _keeps_static(model: nn.Module) -> bool:
    """Whether `transformers` says that the model runs right on buffers, and each of its layers has plain ones.

    The biases of Falcons with ALiBi are made as long as what has been read and not as long as the buffers.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticIndexedLayer

    if not model._can_compile_fullgraph or getattr(model.config, "alibi", False):
        return False
    layers = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=1).layers
    return not any(isinstance(layer, StaticIndexedLayer) for layer in layers)
