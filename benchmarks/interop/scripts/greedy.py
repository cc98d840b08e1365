"""What the scripts that write checkpoints share."""

import torch


def written(model, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The tokens that a model of torch writes greedily after each prompt, all prompts at once.

    Shorter texts are filled up behind their end, where nothing that comes before looks.
    """
    texts = [list(ids) for ids in prompts]
    with torch.no_grad():
        for _ in range(count):
            longest = max(map(len, texts))
            logits = model(torch.tensor([text + [0] * (longest - len(text)) for text in texts])).logits
            for text, row in zip(texts, logits, strict=True):
                text.append(int(row[len(text) - 1].argmax()))
    return [text[len(ids) :] for text, ids in zip(texts, prompts, strict=True)]
