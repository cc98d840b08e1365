"""Experts that were taken apart, run one by one: the forwards that their module is given."""

import torch
from torch import Tensor, nn


def run_expert(self: nn.Module, expert: nn.Module, x: Tensor) -> Tensor:
    up = expert.up_proj(x)
    if hasattr(expert, "gate_proj"):
        gate = expert.gate_proj(x)
        own = getattr(self, "_apply_gate", None)
        if own is None:
            inner = self.act_fn(gate) * up
        else:  # the class joins the two in a way of its own, which it does to one tensor of both
            inner = own(torch.stack((gate, up), -1).flatten(-2) if self.interleaved else torch.cat((gate, up), -1))
    else:
        inner = self.act_fn(up)
    out = expert.down_proj(inner)
    return self.post_expert_norm(out) if hasattr(self, "post_expert_norm") else out


def run_routed(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """hidden_states: `(..., hidden)`; top_k_index, top_k_weights: `(tokens, k)`, an index past the experts is none."""
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    out = torch.zeros_like(tokens)
    for index in top_k_index.unique().tolist():
        position, slot = torch.where(top_k_index == index)
        x = tokens[position]
        if index < self.expert_count:
            y = run_expert(self, self._modules[str(index)], x)
        elif hasattr(self, "identity_expert"):
            y = self.identity_expert(x)
        else:
            continue
        out.index_add_(0, position, (y * top_k_weights[position, slot, None]).to(out.dtype))
    return out.view(hidden_states.shape)


def run_sorted(self: nn.Module, hidden_states: Tensor) -> Tensor:
    """hidden_states: `(experts * tokens, hidden)`, one expert's after the other's; zeros are no token of its."""
    tokens = hidden_states.view(self.expert_count, -1, hidden_states.shape[-1])
    out = torch.zeros_like(tokens)
    for index in range(self.expert_count):
        (meant,) = torch.where(tokens[index].any(-1))
        if len(meant):
            out[index, meant] = run_expert(self, self._modules[str(index)], tokens[index, meant])
    return out.view(hidden_states.shape)


def run_parallel(self: nn.Module, inputs: Tensor, expert_size: list[int]) -> Tensor:
    """inputs: `(tokens, inputs)`, `expert_size[e]` of them for expert e."""
    parts = inputs.split(expert_size, dim=0)
    return torch.cat([self._modules[str(index)](part) for index, part in enumerate(parts)])
