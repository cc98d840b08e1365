"""Mixtral."""

from architectures.family import Family

MIXTRAL = Family(
    model_type="mixtral",
    refused="its experts, most of its weight, are fused parameters and not linears; `awq=none` quantizes its attention "
    "only",
)

FAMILIES = (MIXTRAL,)
