"""What the native decoder takes: the limits of csrc/common/decoder.h, and parts that fit each other."""

from qlinear.backends.cpu import native_decoder as native
from qlinear.backends.cpu.weight import CpuWeight
from qlinear.backends.stack import (
    Array,
    Dense,
    GatedMlp,
    Matrix,
    Mixture,
    PlainMlp,
    Projection,
    Stack,
    StackBlock,
    Unsupported,
)


def check(stack: Stack) -> None:
    """Raise `Unsupported` for a stack beyond the limits of csrc, or whose parts do not fit each other."""
    for name in ("vocabulary", "hidden", "heads", "kv_heads", "head_dim"):
        if type(getattr(stack, name)) is not int or getattr(stack, name) < 1:
            raise Unsupported(f"the fused decoder takes a {name} that is a number above 0, not {getattr(stack, name)}")
    if stack.heads % stack.kv_heads:
        raise Unsupported(f"the fused decoder takes as many query heads for each of {stack.kv_heads} key heads")
    if not stack.blocks:
        raise Unsupported("the fused decoder takes a model of blocks, of which this one has none")
    sharing = stack.heads // stack.kv_heads
    plain = all(isinstance(block.mlp, PlainMlp) for block in stack.blocks)
    if stack.activation not in (native.PLAIN_ACTIVATIONS if plain else native.ACTIVATIONS):
        raise Unsupported(f"the fused decoder does not know the activation {stack.activation}")
    if stack.embedding.shape[0] != stack.vocabulary:
        raise Unsupported(
            f"the fused decoder takes as many embeddings as outputs; this model has {len(stack.embedding)} and "
            f"{stack.vocabulary}"
        )
    if stack.head_dim % 2 or stack.head_dim > native.MAX_HEAD_DIM or sharing > native.MAX_SHARING:
        raise Unsupported(
            f"the fused decoder takes heads of up to {native.MAX_HEAD_DIM} features (an even number), "
            f"{native.MAX_SHARING} query heads to a key head; this model has {stack.head_dim} and {sharing}"
        )
    if stack.turned_first and stack.interleaved:
        raise Unsupported("the fused decoder does not norm heads whose neighbouring features it has turned")
    for index, block in enumerate(stack.blocks):
        _check_block(stack, block, f"block {index}")
    _check_matrices(stack.head, stack.hidden, (stack.vocabulary,), "the head")
    for vector in (stack.final_norm, stack.final_bias):
        _check_length(vector, (stack.hidden,), "the last norm")


def _check_block(stack: Stack, block: StackBlock, where: str) -> None:
    """Native code looks at nothing: what it reads and writes has to be there."""
    hidden, heads, kv_heads = stack.hidden, stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    _check_rotation(stack, block, where)
    _check_matrices(block.qkv, hidden, (heads, kv_heads, kv_heads), f"{where}, q, k and v")
    _check_matrices(block.o, heads, (hidden,), f"{where}, o")
    norms, of_heads = block.norms, ((stack.head_dim, heads), (stack.head_dim, kv_heads))
    for norm in (norms.input, norms.attention, norms.mlp, norms.output, norms.input_bias, norms.mlp_bias):
        _check_length(norm, (hidden,), f"{where}, a norm")
    _check_kinds(stack, block, where)
    for norm, sizes in zip((norms.q, norms.k), of_heads, strict=True):
        _check_length(norm, sizes, f"{where}, a norm of heads")
    if not isinstance(block.mlp, Mixture):
        _check_mlp(block.mlp, hidden, where)
        return
    _check_mixture(block.mlp)
    _check_matrices([block.mlp.router.logits], hidden, (len(block.mlp.experts),), f"{where}, the router")
    for mlp in [*block.mlp.experts, *([block.mlp.shared] if block.mlp.shared else [])]:
        _check_mlp(mlp, hidden, where)


def _check_rotation(stack: Stack, block: StackBlock, where: str) -> None:
    """As wide in all blocks as in the first, and no wider than a head."""
    width = stack.blocks[0].cosines.shape[-1]
    if block.cosines.shape != block.sines.shape or block.cosines.shape[-1] != width or 2 * width > stack.head_dim:
        raise Unsupported(
            f"{where}: the fused decoder turns as many features in all blocks, at most a head's {stack.head_dim}; here "
            f"{2 * block.cosines.shape[-1]}"
        )


def _check_kinds(stack: Stack, block: StackBlock, where: str) -> None:
    """Layer norms stand before projections only, and only they have biases; a mixture of experts stands behind its
    attention; xIELU has its numbers.
    """
    norms = block.norms
    if not stack.layer_norm and (norms.input_bias is not None or norms.mlp_bias is not None):
        raise Unsupported(f"{where}: the fused decoder takes biases of layer norms only")
    if stack.layer_norm and any(norm is not None for norm in (norms.attention, norms.output, norms.q, norms.k)):
        raise Unsupported(f"{where}: the fused decoder takes layer norms before projections only")
    if stack.parallel and isinstance(block.mlp, Mixture):
        raise Unsupported(f"{where}: the fused decoder does not run a mixture of experts beside the attention")
    if stack.turned_first and any(norm is not None and len(norm) > stack.head_dim for norm in (norms.q, norms.k)):
        raise Unsupported(f"{where}: the fused decoder does not norm all heads together after the rotation")
    numbers = [vector.shape for vector in block.mlp.curve] if isinstance(block.mlp, PlainMlp) else []
    if stack.activation == "xielu" and numbers != [(1,)] * 4:
        raise Unsupported(f"{where}: the fused decoder takes an xielu of four numbers, not of {len(numbers)}")


def _check_mlp(mlp: GatedMlp | PlainMlp, hidden: int, where: str) -> None:
    width = inner_size(mlp)
    if isinstance(mlp, PlainMlp):
        _check_matrices(mlp.up, hidden, (width,), f"{where}, up")
    else:
        _check_matrices(mlp.gate_up, hidden, (width, width), f"{where}, gate and up")
    _check_matrices(mlp.down, width, (hidden,), f"{where}, down")


def _check_matrices(projection: Projection, k: int, sizes: tuple[int, ...], where: str) -> None:
    """In one piece, or one piece a size."""
    found = tuple(rows(matrix) for matrix in projection)
    columns = {matrix.weight.shape[1] if isinstance(matrix, Dense) else matrix.prepared.k for matrix in projection}
    if found not in (sizes, (sum(sizes),)) or columns != {k}:
        raise Unsupported(
            f"{where}: weights of {found} rows and {sorted(columns)} columns; the config says {sizes} and {k}"
        )


def _check_length(vector: Array | None, sizes: tuple[int, ...], where: str) -> None:
    if vector is not None and (len(vector.shape) != 1 or vector.shape[0] not in sizes):
        raise Unsupported(f"{where} has shape {tuple(vector.shape)}; the config says {sizes[0]}")


def inner_size(mlp: GatedMlp | PlainMlp) -> int:
    """Features between gate and up, or up alone, and down."""
    return sum(map(rows, mlp.up)) if isinstance(mlp, PlainMlp) else sum(map(rows, mlp.gate_up)) // 2


def rows(matrix: Matrix) -> int:
    if isinstance(matrix, Dense):
        return matrix.weight.shape[0]
    if not isinstance(matrix.prepared, CpuWeight):
        raise Unsupported("the fused decoder needs the native cpu kernels, which this model does not run on")
    return matrix.prepared.n


def _check_mixture(mixture: Mixture) -> None:
    routing, experts = mixture.router.routing, len(mixture.experts)
    comparable = routing.top_groups * (experts // routing.groups)
    if experts % routing.groups or routing.groups > native.MAX_EXPERT_GROUPS:
        raise Unsupported(
            f"the fused decoder takes experts in up to {native.MAX_EXPERT_GROUPS} groups of one size; this model has "
            f"{experts} in {routing.groups}"
        )
    if not 0 < routing.top_k <= comparable or len(mixture.router.logits.weight) != experts:
        raise Unsupported(
            f"the fused decoder takes 1 expert a token up to all; this model chooses {routing.top_k} of {comparable}, "
            f"and scores {len(mixture.router.logits.weight)} of {experts}"
        )
