"""Mixtures of experts token by token in float64, and experts taken apart, for tests."""

import torch
from torch import nn


class Apart(nn.Module):
    """Experts as linears: what a loaded checkpoint holds in the place of one tensor."""

    def __init__(self, experts):
        super().__init__()
        for index, (gate_up, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
            gate, up = gate_up.detach().chunk(2)
            expert = nn.Module()
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down.detach())):
                linear = nn.Linear(*weight.shape[::-1], bias=False)
                linear.weight = nn.Parameter(weight.clone())
                expert.add_module(name, linear)
            self.add_module(str(index), expert)


class Float64Mixture(nn.Module):
    """A mixture of experts token by token, in float64.

    margins: by how much each token's last expert won over the next; chosen: those that any token went to.
    """

    def __init__(self, config, mlp):
        super().__init__()
        self.config, self.margins, self.chosen = config, None, set()
        self.gate = mlp.router if config.model_type == "granitemoe" else mlp.gate
        self.experts, self.act = mlp.experts, nn.functional.silu
        self.shared = getattr(mlp, "shared_expert", getattr(mlp, "shared_experts", None))
        self.shared_gate = getattr(mlp, "shared_expert_gate", None)

    def forward(self, x):
        rows, margins = zip(*(self.token(row) for row in x[0]), strict=True)
        self.margins = torch.stack(margins)
        return torch.stack(rows).unsqueeze(0)

    def token(self, x):
        chosen, weights, margin = self.route(self.gate.weight @ x)
        self.chosen.update(chosen.tolist())
        out = sum(weight * self.expert(self.experts.get_submodule(str(int(index))), x)
                  for index, weight in zip(chosen, weights, strict=True))  # fmt: skip
        if self.shared is not None:
            gate = 1.0 if self.shared_gate is None else torch.sigmoid(self.shared_gate.weight[0] @ x)
            out = out + gate * self.expert(self.shared, x)
        return out, margin

    def expert(self, mlp, x):
        return mlp.down_proj.weight @ (self.act(mlp.gate_proj.weight @ x) * (mlp.up_proj.weight @ x))

    def route(self, logits):
        config, k = self.config, self.config.num_experts_per_tok
        limited = hasattr(config, "n_group")
        scores = 1 / (1 + torch.exp(-logits)) if limited else torch.exp(logits) / torch.exp(logits).sum()
        compared = scores
        if config.model_type == "ernie4_5_moe":
            compared = scores + self.gate.moe_statics.e_score_correction_bias[0]
        if limited:
            compared = scores + self.gate.e_score_correction_bias
            groups = compared.view(config.n_group, -1)
            worth = groups.sort(descending=True).values[:, :2].sum(1)
            best = worth.sort(descending=True)
            allowed = torch.zeros(config.n_group, dtype=torch.bool)
            allowed[best.indices[: config.topk_group]] = True
            compared = torch.where(allowed.unsqueeze(1), groups, -torch.inf).flatten()
        order = compared.sort(descending=True)
        chosen = order.indices[:k]
        margin = order.values[k - 1] - order.values[k]
        if limited and config.topk_group < config.n_group:
            margin = min(margin, best.values[config.topk_group - 1] - best.values[config.topk_group])
        weights = scores[chosen]
        if config.model_type == "ernie4_5_moe":
            weights = weights / max(weights.sum(), config.moe_norm_min)
        elif config.model_type in ("mixtral", "granitemoe") or config.norm_topk_prob:
            weights = weights / weights.sum()
        return chosen, weights * (config.routed_scaling_factor if limited else 1), margin


def with_mixtures(exact):
    """The model with mixtures of this file."""
    for layer in exact.model.layers:
        for name, child in list(layer.named_children()):
            if hasattr(child, "experts"):
                setattr(layer, name, Float64Mixture(exact.config, child))
    return exact
