import pytest

from qlinear.backends.aie.devices import PHX, STX
from qlinear.backends.aie.tiling import tile_matmul
from qlinear.errors import TargetError

# (K, N, group) -> kernel (K, N), group it runs: RyzenAI-SW 1.2, `set_kernel_shapes_kn` and its list of shapes.
PHX_CHOICES = [
    (4096, 4096, 128, (4096, 4096), 128),
    (4096, 11008, 128, (4096, 12288), 128),
    (11008, 4096, 128, (11008, 4096), 128),
    (4096, 12288, 128, (4096, 12288), 128),
    (4096, 14336, 128, (4096, 32768), 128),
    (4096, 32000, 32, (4096, 32768), 32),
    (4096, 128256, 32, (4096, 32768), 32),
    (14336, 4096, 128, (11008, 4096), 128),
    (11008, 32000, 128, (11008, 4096), 128),
    (576, 192, 64, (4096, 4096), 32),
    (4096, 4096, 256, (4096, 4096), 128),
    (4096, 4096, 32, (4096, 4096), 32),
    (4128, 16, 96, (11008, 4096), 32),
]
STX_CHOICES = [
    (4096, 4096, 128, (4096, 4096), 128),
    (4096, 11008, 128, (4096, 12288), 128),
    (4096, 14336, 128, (4096, 22528), 128),
    (4096, 22016, 256, (4096, 22528), 128),
    (14336, 4096, 128, (11008, 4096), 128),
    # Only 4096 x 32768 was compiled for groups of 32, and it for nothing else.
    (4096, 32000, 128, (4096, 32768), 32),
    (576, 192, 64, (4096, 32768), 32),
    (11008, 4096, 32, (4096, 32768), 32),
]


@pytest.mark.parametrize("device, choices", [(PHX, PHX_CHOICES), (STX, STX_CHOICES)], ids=["phx", "stx"])
def test_kernel_choice(device, choices):
    for k, n, group, shape, kernel_group in choices:
        tiling = tile_matmul(device, 1, k, n, 4, group)
        assert (tiling.kernel.k, tiling.kernel.n) == shape, (k, n, group)
        assert tiling.kernel_group == kernel_group, (k, n, group)
        assert tiling.replication == group // kernel_group


@pytest.mark.parametrize(
    "device, m, blocks",
    [
        (PHX, 0, ()),
        (PHX, 1, (1,)),
        (PHX, 2, (8,)),
        (PHX, 8, (8,)),
        (PHX, 9, (32,)),
        (PHX, 33, (32, 1)),
        (PHX, 68, (32, 32, 8)),
        (STX, 1, (1,)),
        (STX, 2, (128,)),
        (STX, 129, (128, 1)),
        (STX, 300, (128, 128, 128)),
        (STX, 2048, (2048,)),
        (STX, 4097, (2048, 2048, 1)),
    ],
)
def test_row_blocks(device, m, blocks):
    assert tile_matmul(device, m, 4096, 4096, 4, 128).row_blocks == blocks


def test_a_dispatch_for_every_block_of_rows_k_and_n():
    # 41 rows are 32 + 9 on phx and one block of 128 on stx; K takes three blocks, N three of 4096.
    assert tile_matmul(PHX, 41, 11008 * 2 + 128, 9000, 4, 128).dispatch_count == 2 * 3 * 3
    assert tile_matmul(STX, 41, 11008 * 2 + 128, 9000, 4, 128).dispatch_count == 1 * 3 * 3
    assert tile_matmul(PHX, 0, 4096, 4096, 4, 128).dispatch_count == 0


def _per_layer(device, shapes, group=128):
    return sum(tile_matmul(device, 1, k, n, 4, group).dispatch_count for k, n in shapes)


def test_dispatches_of_llama_2_7b():
    q_k_v = [(4096, 4096)] * 3
    rest = [(4096, 4096), (4096, 11008), (4096, 11008), (11008, 4096)]
    for device in (PHX, STX):
        assert 32 * _per_layer(device, q_k_v + rest) == 224
        assert 32 * _per_layer(device, [(4096, 12288), *rest]) == 160
        assert _per_layer(device, [(4096, 32000)], group=32) == 1


def test_llama_3_8b_fits_badly():
    gate = tile_matmul(PHX, 1, 4096, 14336, 4, 128)
    assert gate.useful == 14336 / 32768
    assert tile_matmul(STX, 1, 4096, 14336, 4, 128).useful == 14336 / 22528
    down = tile_matmul(PHX, 1, 14336, 4096, 4, 128)
    assert (down.k_blocks, down.useful) == (2, 14336 / 22016)
    assert tile_matmul(PHX, 1, 4096, 1024, 4, 128).useful == 1 / 4


@pytest.mark.parametrize(
    "bits, k, group, named",
    [
        (4, 4096, 16, "group size 16 cannot be tiled on phx: its kernels run groups of 32 and 128; use 32, 64 or 128"),
        (4, 4096, 48, "group size 48"),
        (4, 4096, 192, "group size 192"),
        (4, 576, 128, "in_features 576 is not a multiple of group size 128"),
        (8, 4096, 128, "8-bit weights cannot run on phx"),
        (4, 0, 128, "K=0"),
    ],
)
def test_what_cannot_be_tiled_is_named_in_one_line(bits, k, group, named):
    with pytest.raises(TargetError) as caught:
        tile_matmul(PHX, 1, k, 4096, bits, group)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_tiling_reads_well():
    assert str(tile_matmul(PHX, 33, 14336, 4096, 3, 256)) == (
        "phx (emulated): (33, 14336) x (14336, 4096), 3-bit, group 256\n"
        "  kernel    K x N = 11008 x 4096, group 128, each scale and zero 2 times\n"
        "  blocks    rows 1 of M = 32 + 1 of M = 1; K 2; N 1, K blocks added on the host\n"
        "  dispatch  4, each with a weight block of 87 x 32 sub-volumes of 8512 bytes (23.70 MB)\n"
        "  useful    65.1% of the multiply-accumulates; the rest is padding"
    )
