"""Where in a model its decoder blocks are: found by looking, whatever the list is called."""

from torch import nn


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """The decoder blocks of a causal language model, or of the language model of a wrapper, by full name, in order.

    They are the list of modules that holds the most weights. Empty where no list holds any linear.
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
    found = max(outermost, key=lambda name: sum(tensor.numel() for tensor in lists[name].parameters()))
    return tuple(f"{found}.{index}" for index in range(len(lists[found])))


def text_decoder(model: nn.Module) -> nn.Module:
    """The part of a model that reads and writes text, without its output head; all of it where it does not say."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return model
    return decoder if isinstance(decoder, nn.Module) else model


def beside_blocks(model: nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """The modules of the decoder that hold tensors of their own and are in no block: embeddings, the last norm."""
    parent_name = blocks[0].rpartition(".")[0].rpartition(".")[0]
    parent, within = model.get_submodule(parent_name), blocks[0].rpartition(".")[0] + "."
    head = model.get_output_embeddings()
    names = []
    for name, module in parent.named_modules(prefix=parent_name):
        if f"{name}.".startswith(within) or module is head:
            continue
        if module._parameters or module._buffers:
            names.append(name)
    return names
