"""The ways in which experts are kept in one tensor: how each is known, taken apart, and tried out in small."""

import copy
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from architectures.expert_runs import run_parallel, run_routed, run_sorted

# Sizes of the copy that is tried out.
HIDDEN, INTERMEDIATE, TOKENS = 12, 8, 5


@dataclass(frozen=True)
class Origin:
    """Where a parameter comes from: `take` finds it in the tensor of that name in the model as transformers builds it.

    expert, part: where it lies if that tensor is stacked of one stored tensor an expert (and joined of several, the
    first of them 0); None where it is not.
    """

    tensor: str
    take: Callable[[Tensor], Tensor]
    expert: int | None = None
    part: int | None = None


class Expert(nn.Module):
    """One expert's linears; `forward` is for the module that owns it, as the activation is."""


class Form:
    """One way in which experts are kept: how it is known, and how it is taken apart."""

    def fits(self, module: nn.Module) -> bool:
        raise NotImplementedError

    def rebuild(self, module: nn.Module) -> dict[str, Origin]:
        """Take the module apart; local name of each new parameter -> where it comes from, names local too."""
        raise NotImplementedError

    def small(self, module: nn.Module, generator: torch.Generator) -> tuple[nn.Module, tuple]:
        """A small copy with random weights, and something to give it."""
        raise NotImplementedError

    def held(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(module.named_parameters())


def copied(module: nn.Module, parameters: dict, children: dict) -> nn.Module:
    """The same object in small: a copy that shares nothing that is going to be changed."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_parameters": dict(parameters), "_modules": dict(children)}
    return twin


def empty_linear(n: int, k: int, bias: bool, like: Tensor) -> nn.Linear:
    return nn.Linear(k, n, bias=bias, device="meta", dtype=like.dtype).requires_grad_(False)


def _three_dimensional(module: nn.Module, *names: str) -> bool:
    return all(getattr(module._parameters.get(name), "ndim", 0) == 3 for name in names)


def _arguments(module: nn.Module) -> int:
    forward = inspect.unwrap(type(module).forward)
    return len(inspect.signature(forward).parameters) - 1


def _random(generator: torch.Generator, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=generator), requires_grad=False)


@dataclass(frozen=True)
class _Layout:
    """How gate and up lie in one tensor: `(inputs, outputs)` instead of `(outputs, inputs)`; in turns or one by one."""

    transposed: bool
    interleaved: bool

    @classmethod
    def of(cls, module: nn.Module) -> "_Layout":
        transposed = getattr(module, "is_transposed", _arguments(module) == 1)  # llama4's class says nothing of itself
        return cls(transposed, not getattr(module, "is_concatenated", True))

    def expert(self, index: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: tensor[index].t() if self.transposed and tensor.ndim == 3 else tensor[index]

    def part(self, index: int, which: int) -> Callable[[Tensor], Tensor]:
        """Gate (0) or up (1) of an expert, of weights or biases."""
        whole = self.expert(index)
        if self.interleaved:
            return lambda tensor: whole(tensor)[which::2]
        return lambda tensor: whole(tensor).chunk(2)[which]

    def sizes(self, down: Tensor) -> tuple[int, int]:
        """(hidden, intermediate) by the shape of `down_proj`."""
        hidden, intermediate = down.shape[1:]
        return (intermediate, hidden) if self.transposed else (hidden, intermediate)

    def shape(self, experts: int, n: int, k: int) -> tuple[int, int, int]:
        return (experts, k, n) if self.transposed else (experts, n, k)


class _Stacked(Form):
    """`gate_up_proj`, or `up_proj` alone, and `down_proj`, with biases or without.

    A forward of three arguments is given tokens, which experts each goes to, and with which weights; one of a single
    argument (llama4) is given every expert's tokens, one expert after the other, those not meant for it as zeros.
    LongCat's has rows of `gate_up_proj` for experts that do nothing (`idle_count`): nobody reads them.
    """

    def fits(self, module: nn.Module) -> bool:
        first = "gate_up_proj" if "gate_up_proj" in module._parameters else "up_proj"
        return _three_dimensional(module, first, "down_proj") and _arguments(module) in (1, 3)

    def rebuild(self, module: nn.Module) -> dict[str, Origin]:
        layout, gated = _Layout.of(module), "gate_up_proj" in module._parameters
        down = module.down_proj
        idle = len(module.gate_up_proj) - len(down) if gated else 0
        hidden, intermediate = layout.sizes(down)
        biased = module._parameters.get("down_proj_bias") is not None
        plain = not (layout.transposed or layout.interleaved or biased)
        parts = {}
        for index in range(len(down)):
            expert = Expert()
            for which, name in enumerate(("gate_proj", "up_proj") if gated else ("up_proj",)):
                setattr(expert, name, empty_linear(intermediate, hidden, biased, down))
                stored = "gate_up_proj" if gated else "up_proj"
                take = layout.part(index, which) if gated else layout.expert(index)
                place = (index, which) if plain else (None, None)
                parts[f"{index}.{name}.weight"] = Origin(stored, take, *place)
                if biased:
                    parts[f"{index}.{name}.bias"] = Origin(f"{stored}_bias", take)
            expert.down_proj = empty_linear(hidden, intermediate, biased, down)
            place = (index, 0) if plain else (None, None)
            parts[f"{index}.down_proj.weight"] = Origin("down_proj", layout.expert(index), *place)
            if biased:
                parts[f"{index}.down_proj.bias"] = Origin("down_proj_bias", layout.expert(index))
            module.add_module(str(index), expert)
        for name in ("gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias"):
            module._parameters.pop(name, None)
        module.expert_count, module.interleaved = len(down), layout.interleaved
        module.idle_count = idle
        module.forward = types.MethodType(run_routed if _arguments(module) == 3 else run_sorted, module)
        return parts

    def small(self, module: nn.Module, generator: torch.Generator) -> tuple[nn.Module, tuple]:
        layout, down = _Layout.of(module), module.down_proj
        of_width = {"gate_up_proj": 2 * INTERMEDIATE, "up_proj": INTERMEDIATE, "down_proj": HIDDEN}
        parameters = {}
        for name, given in module._parameters.items():
            n = of_width[name.removesuffix("_bias")]
            k = INTERMEDIATE if name.startswith("down_proj") else HIDDEN
            shape = (len(given), n) if name.endswith("_bias") else layout.shape(len(given), n, k)
            parameters[name] = _random(generator, *shape)
        twin = copied(module, parameters, _small_children(module, down))
        for sizes in ("hidden_size", "hidden_dim"):
            if sizes in twin.__dict__:
                twin.__dict__[sizes] = HIDDEN
        experts = max(map(len, parameters.values()))
        if _arguments(module) == 1:
            return twin, (torch.randn(experts * 2, HIDDEN, generator=generator),)
        return twin, (torch.randn(TOKENS, HIDDEN, generator=generator), *_routing(experts, generator))


def _routing(experts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.stack([torch.randperm(experts, generator=generator)[: min(2, experts)] for _ in range(TOKENS)])
    return chosen, torch.rand(chosen.shape, generator=generator)


def _small_children(module: nn.Module, down: Tensor) -> dict[str, nn.Module | None]:
    """Its children, a norm of the experts' outputs in the small size."""
    children = dict(module._modules)
    for name, child in children.items():
        own = dict(child._parameters) if child is not None else {}
        if own:
            children[name] = copied(child, {leaf: nn.Parameter(torch.ones(HIDDEN)) for leaf in own}, child._modules)
    return children


class _Parallel(Form):
    """Granite's and JetMoE's: one `weight` `(experts, outputs, inputs)` for tokens that are sorted by expert."""

    def fits(self, module: nn.Module) -> bool:
        return list(module._parameters) == ["weight"] and _three_dimensional(module, "weight") and _takes_sizes(module)

    def rebuild(self, module: nn.Module) -> dict[str, Origin]:
        weight = module._parameters.pop("weight")
        experts, n, k = weight.shape
        for index in range(experts):
            module.add_module(str(index), empty_linear(n, k, False, weight))
        module.expert_count = experts
        module.forward = types.MethodType(run_parallel, module)
        take = _Layout(False, False).expert
        return {f"{index}.weight": Origin("weight", take(index)) for index in range(experts)}

    def small(self, module: nn.Module, generator: torch.Generator) -> tuple[nn.Module, tuple]:
        experts = len(module.weight)
        weight = _random(generator, experts, INTERMEDIATE, HIDDEN)
        sizes = [index % 3 for index in range(experts)]
        inputs = torch.randn(sum(sizes), HIDDEN, generator=generator), sizes
        return copied(module, {"weight": weight}, module._modules), inputs


def _takes_sizes(module: nn.Module) -> bool:
    return list(inspect.signature(type(module).forward).parameters)[1:] == ["inputs", "expert_size"]


class _Dbrx(Form):
    """DBRX: `mlp.w1`, `v1` and `w2`, each `(experts * intermediate, hidden)`."""

    def fits(self, module: nn.Module) -> bool:
        inner = module._modules.get("mlp")
        return (
            type(module).__name__ == "DbrxExperts"
            and inner is not None
            and set(inner._parameters) == {"w1", "v1", "w2"}
        )

    def rebuild(self, module: nn.Module) -> dict[str, Origin]:
        inner = module._modules.pop("mlp")
        experts, rows, hidden = module.num_experts, *inner.w1.shape
        intermediate, parts = rows // experts, {}
        for index in range(experts):
            expert = Expert()
            part = slice(index * intermediate, (index + 1) * intermediate)
            expert.gate_proj = empty_linear(intermediate, hidden, False, inner.w1)
            expert.up_proj = empty_linear(intermediate, hidden, False, inner.w1)
            expert.down_proj = empty_linear(hidden, intermediate, False, inner.w1)
            parts[f"{index}.gate_proj.weight"] = Origin("mlp.w1", lambda t, part=part: t[part])
            parts[f"{index}.up_proj.weight"] = Origin("mlp.v1", lambda t, part=part: t[part])
            parts[f"{index}.down_proj.weight"] = Origin("mlp.w2", lambda t, part=part: t[part].t())
            module.add_module(str(index), expert)
        module.act_fn, module.expert_count, module.interleaved = inner.activation_fn, experts, False
        module.forward = types.MethodType(run_routed, module)
        return parts

    def small(self, module: nn.Module, generator: torch.Generator) -> tuple[nn.Module, tuple]:
        experts, inner = module.num_experts, module.mlp
        weights = {name: _random(generator, experts * INTERMEDIATE, HIDDEN) for name in ("w1", "v1", "w2")}
        twin = copied(module, {}, {"mlp": copied(inner, weights, inner._modules)})
        twin.hidden_size, twin.ffn_hidden_size = HIDDEN, INTERMEDIATE
        hidden = torch.randn(1, TOKENS, HIDDEN, generator=generator)
        return twin, (hidden, *_routing(experts, generator))


FORMS: tuple[Form, ...] = (_Stacked(), _Parallel(), _Dbrx())
