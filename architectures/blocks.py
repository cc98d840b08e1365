"""Where in a model its decoder blocks are: found by looking, whatever the list is called."""

from torch import nn


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """The decoder blocks of a causal language model, or of the language model of a wrapper, by full name, in order.

    Of the lists of modules that hold linears it is the one as long as the config says, nearest to the embedding of the
    words, and with the most weights. Empty where there is none.
    """
    decoder = text_decoder(model)
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    lists = {
        f"{prefix}.{name}".lstrip("."): module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear) for part in module.modules())
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not outermost:
        return ()
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    embedding = model.get_input_embeddings()
    near = next((name for name, module in model.named_modules() if module is embedding), "").split(".")

    def likely(name: str) -> tuple[bool, int, int, int]:
        parts = name.split(".")
        shared = next((i for i, (one, other) in enumerate(zip(parts, near, strict=False)) if one != other), len(parts))
        weights = sum(tensor.numel() for tensor in lists[name].parameters())
        return len(lists[name]) == layers, shared, -len(parts), weights

    found = max(outermost, key=likely)
    return tuple(f"{found}.{index}" for index in range(len(lists[found])))


def shared_blocks(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, str] | None:
    """A block that holds a weight of another's, and that one; None where each has its own."""
    owners: dict[nn.Parameter, str] = {}
    for block in blocks:
        for parameter in model.get_submodule(block).parameters():
            if owners.setdefault(parameter, block) != block:
                return block, owners[parameter]
    return None


def text_decoder(model: nn.Module) -> nn.Module:
    """The part of a model that reads and writes text, without its output head; all of it where it does not say."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return model
    if not isinstance(decoder, nn.Module) or not any(isinstance(module, nn.ModuleList) for module in decoder.modules()):
        return model  # some call their head so
    return decoder


def beside_blocks(model: nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """The modules of the decoder that hold tensors of their own and are in no block: embeddings, the last norm."""
    decoder, head = text_decoder(model), model.get_output_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    within = blocks[0].rpartition(".")[0] + "."
    return [
        name
        for name, module in decoder.named_modules(prefix=prefix)
        if (module._parameters or module._buffers) and module is not head and not f"{name}.".startswith(within)
    ]
