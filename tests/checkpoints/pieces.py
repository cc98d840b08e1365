"""Tokenizers small enough for the tiny models, of the kinds that GGUF holds."""

from transformers import PreTrainedTokenizerFast

from tests.tiny import VOCAB

SPECIAL = ["<pad>", "<s>", "</s>"]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


def byte_level(split: str | None = None, ignore_merges: bool = False, **more) -> PreTrainedTokenizerFast:
    """Byte-level BPE over some letters. split: the expression by which text is cut; None: GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'", "Ġ", "Ċ"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("Ġ", "a"), ("2", "0")]
    vocabulary = [*SPECIAL, *letters, *(left + right for left, right in merges)]
    model = models.BPE({text: number for number, text in enumerate(vocabulary)}, merges, ignore_merges=ignore_merges)
    tokenizer = Tokenizer(model)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = plain
    if split is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), behavior="isolated"), plain]
        )
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, **more)


def sentence_pieces(prepend: bool = True, **more) -> PreTrainedTokenizerFast:
    """BPE over text with spaces spelled out, as SentencePiece models come as tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    merges = [
        ("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("in", "g"), ("▁", "a"), ("▁th", "e"), ("▁t", "h"),
        ("a", "n"), ("an", "d"), ("n", "d"), ("▁a", "nd"), ("▁", "and"), ("o", "u"), ("r", "e"), ("▁t", "o"),
    ]  # fmt: skip
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?"]
    pieces = dict.fromkeys([*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in (0x0A, 0xC3, 0xA9)), *letters])
    pieces |= dict.fromkeys(left + right for left, right in merges)
    vocabulary = {text: number for number, text in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spell = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spell]) if prepend else spell
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _fast(tokenizer, unk_token="<unk>", **more)


def _fast(tokenizer, **more) -> PreTrainedTokenizerFast:
    assert tokenizer.get_vocab_size() <= VOCAB
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special | more)
