"""The formats that a checkpoint is exported to, by name: known before torch is loaded."""

FORMATS = ("compressed-tensors", "awq", "gptq")
