"""Every recipe of torchao's table, quantized, timed and evaluated: docs/results.md and its two pictures."""
