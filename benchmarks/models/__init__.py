"""Every causal language model that transformers knows, tiny and random: quantized, run and compared."""
