"""The clip search against a loop over rows, groups, candidates and tokens in float64."""

import pytest
import torch

from scales.clip import blocks_behind, search_clip
from tests.scales.reference import outlier_inputs, random_weight, round_to_grid

GROUP = 32
SHRINKS = [1 - step / 20 for step in range(10)]


def blocks_of(x: torch.Tensor, group_size: int = GROUP) -> torch.Tensor:
    return blocks_behind((x.t() @ x).float(), group_size, torch.ones(x.shape[1]))


def literal_losses(group: torch.Tensor, x: torch.Tensor) -> list[float]:
    """For each candidate: the squared error of this group's part of the output, summed over tokens."""
    losses = []
    for shrink in SHRINKS:
        limit = group.abs().max() * shrink
        clipped = group.clamp(-limit, limit)
        error = round_to_grid(clipped.unsqueeze(0), group_size=GROUP).squeeze(0) - group
        losses.append(float(sum((token @ error) ** 2 for token in x)))
    return losses


@pytest.mark.parametrize("tokens", [3, 60])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_and_group_gets_the_clip_of_the_literal_search(seed, tokens):
    weight = random_weight(5, 3 * GROUP, seed)
    x = outlier_inputs(tokens, 3 * GROUP, seed)
    clips = search_clip(weight, blocks_of(x), round_to_grid)
    assert clips.shape == (5, 3, 1) and clips.dtype == torch.float32
    chosen = set()
    for row in range(5):
        for index in range(3):
            part = slice(index * GROUP, (index + 1) * GROUP)
            group = weight[row, part].double()
            losses = literal_losses(group, x[:, part])
            shrink = float(clips[row, index, 0] / group.abs().max())
            place = min(range(10), key=lambda step: abs(SHRINKS[step] - shrink))
            assert shrink == pytest.approx(SHRINKS[place], rel=1e-6)
            assert losses[place] <= min(losses) * (1 + 1e-3)
            chosen.add(place)
    assert len(chosen) > 3, "the weights were made so that clipping helps, some more than others"


def test_blocks_are_the_groups_own_products_of_the_scaled_input():
    x = outlier_inputs(50, 3 * GROUP)
    scale = torch.rand(3 * GROUP, generator=torch.Generator().manual_seed(0)) + 0.1
    found = blocks_behind((x.t() @ x).float(), GROUP, scale)
    for index, part in enumerate((x / scale.double()).split(GROUP, dim=1)):
        torch.testing.assert_close(found[index].double(), part.t() @ part, rtol=1e-4, atol=1e-5)


def test_groups_do_not_see_each_other():
    """Only the diagonal blocks of the Gram matrix belong to one group's part of the output."""
    weight, x = random_weight(4, 2 * GROUP), outlier_inputs(50, 2 * GROUP)
    both = search_clip(weight, blocks_of(x), round_to_grid)
    for index in range(2):
        part = slice(index * GROUP, (index + 1) * GROUP)
        alone = search_clip(weight[:, part].contiguous(), blocks_of(x[:, part]), round_to_grid)
        assert torch.equal(both[:, index], alone[:, 0])


def test_many_rows_are_searched_as_few_are():
    """More weights than are held at a time: 5 million."""
    x = outlier_inputs(80, 1024)
    weight = random_weight(16, 1024).repeat(320, 1)
    few = search_clip(weight[:16], blocks_of(x, 128), lambda w: (w * 4).round() / 4)
    many = search_clip(weight, blocks_of(x, 128), lambda w: (w * 4).round() / 4)
    assert torch.equal(many.view(320, 16, 8), few.view(1, 16, 8).expand(320, -1, -1))


def test_what_rounds_exactly_is_not_clipped():
    weight = torch.randint(-3, 5, (6, GROUP), generator=torch.Generator().manual_seed(0)).float()
    weight[:, 0], weight[:, 1] = -3, 4
    clips = search_clip(weight, blocks_of(outlier_inputs(50, GROUP)), round_to_grid)
    assert torch.equal(clips, torch.full((6, 1, 1), 4.0))


def test_weights_and_inputs_of_zero():
    weight = random_weight(4, 2 * GROUP)
    weight[:, :GROUP] = 0
    x = outlier_inputs(50, 2 * GROUP)
    x[:, GROUP:] = 0
    clips = search_clip(weight, blocks_of(x), round_to_grid)
    assert (clips[:, 0] == 0).all()
    # No input, no error: nothing is gained by clipping, so nothing is clipped.
    assert torch.equal(clips[:, 1, 0], weight[:, GROUP:].abs().amax(1))


def test_searching_changes_nothing():
    weight, blocks = random_weight(4, GROUP), blocks_of(outlier_inputs(50, GROUP))
    before = weight.clone(), blocks.clone()
    search_clip(weight, blocks, round_to_grid)
    assert torch.equal(weight, before[0]) and torch.equal(blocks, before[1])
