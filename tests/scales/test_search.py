"""The scale search against llm-awq's, written out over tokens in float64."""

import pytest
import torch
from torch import nn

from scales.calls import Call
from scales.search import (
    ScaleChoice,
    candidate,
    candidates,
    confirm,
    module_error,
    output_loss,
    quantize_by_rows,
    rank,
    relative_loss,
    sample_rows,
    substituted,
)
from scales.statistics import InputStatistics
from tests.scales.reference import (
    RATIOS,
    literal_candidate,
    literal_losses,
    outlier_inputs,
    random_weight,
    round_to_grid,
)

PLAIN_CALL = Call((), {})


def same(vector: torch.Tensor) -> torch.Tensor:
    """How scales are spread where each entry belongs to one input channel."""
    return vector


def statistics_of(x: torch.Tensor) -> InputStatistics:
    seen = InputStatistics.empty(x.shape[-1])
    seen.add(x.float())
    seen.complete()
    return seen


@pytest.mark.parametrize("ratio", RATIOS)
def test_candidate_is_a_power_of_the_statistic_centred_on_one(ratio):
    mean_abs = torch.rand(64, generator=torch.Generator().manual_seed(0)).mul(10).exp()
    found = candidate(mean_abs, ratio)
    expected = mean_abs.double() ** ratio
    expected /= (expected.max() * expected.min()) ** 0.5
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert found.max() * found.min() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("ratio", RATIOS)
def test_dead_channels_get_one_and_do_not_move_the_others(ratio):
    mean_abs = torch.tensor([0.0, 0.5, 0.0, 8.0, 2.0])
    live = mean_abs > 0
    found = candidate(mean_abs, ratio)
    assert (found[~live] == 1).all()
    assert torch.equal(found[live], candidate(mean_abs[live], ratio))


def test_a_layer_that_never_sees_anything_keeps_scale_one():
    assert torch.equal(candidate(torch.zeros(8), 0.5), torch.ones(8))


@pytest.mark.parametrize("mean_abs", [(7e4, 6e4, 1e-3), (1e10, 1e-10, 1.0), (1e-30, 1e-20, 1.0), (1e15, 2e15, 1e14)])
@pytest.mark.parametrize("ratio", RATIOS)
def test_candidates_stay_finite_and_positive_where_half_precision_would_not(mean_abs, ratio):
    found = candidate(torch.tensor(mean_abs), ratio)
    assert found.isfinite().all() and (found > 0).all()


@pytest.mark.parametrize("tokens", [1, 7, 500])
@pytest.mark.parametrize("k", [96, 256, 608])  # in one panel, and in several with a rest
def test_the_gram_loss_is_the_squared_output_error_over_tokens(tokens, k):
    x = outlier_inputs(tokens, k)
    error = random_weight(40, k) - round_to_grid(random_weight(40, k))
    literal = sum(float((token @ error.double().t()).square().sum()) for token in x)
    assert output_loss(error, statistics_of(x).gram) == pytest.approx(literal, rel=1e-4)


@pytest.mark.parametrize("rows", [(48,), (32, 8, 20)])
@pytest.mark.parametrize("seed", range(6))
def test_rank_agrees_with_a_search_over_tokens(seed, rows):
    x = outlier_inputs(200, 64, seed)
    weights = [random_weight(n, 64, seed + place) for place, n in enumerate(rows)]
    seen = statistics_of(x)
    ranked = rank(candidates(seen.mean_abs), [(weight, seen.gram) for weight in weights], same, round_to_grid)
    losses = literal_losses(x, weights)
    winner = RATIOS[losses.index(min(losses))]
    assert winner > 0, "the inputs were made so that scaling helps"
    assert ranked[0].ratio == winner
    torch.testing.assert_close(ranked[0].vector.double(), literal_candidate(x, winner), rtol=1e-4, atol=0)
    in_order = [losses[RATIOS.index(choice.ratio)] for choice in ranked]
    # Neighbours may change places where float64 sees less between them than float32 resolves.
    assert all(first <= 1.001 * second for first, second in zip(in_order, in_order[1:], strict=False))


def test_all_ratios_are_ranked_and_identity_is_one_of_them():
    x = outlier_inputs(50, 32)
    seen = statistics_of(x)
    ranked = rank(candidates(seen.mean_abs), [(random_weight(8, 32), seen.gram)], same, round_to_grid)
    assert sorted(choice.ratio for choice in ranked) == RATIOS
    (identity,) = [choice for choice in ranked if choice.ratio == 0]
    assert torch.equal(identity.vector, torch.ones(32))


def test_identity_wins_where_nothing_is_gained():
    """A quantizer that loses nothing: every candidate is as good, and the first is the one that changes nothing."""
    seen = statistics_of(torch.ones(4, 32))
    ranked = rank(candidates(seen.mean_abs), [(torch.ones(8, 32), seen.gram)], same, lambda weight: weight)
    assert ranked[0].ratio == 0


def test_a_large_layer_is_ranked_on_some_of_its_rows():
    """3072 x 2048: the choice is that of all rows, or one that costs no more than the noise of rounding does."""
    x, weight = outlier_inputs(300, 2048), random_weight(3072, 2048)
    seen = statistics_of(x)
    taken = []

    def quantize(part: torch.Tensor) -> torch.Tensor:
        taken.append(len(part))
        return round_to_grid(part)

    ranked = rank(candidates(seen.mean_abs), [(weight, seen.gram)], same, quantize)
    assert taken == 6 * [512] + 20 * [128] + 5 * [512]  # once all rows, to see which are harmed most
    assert sorted(choice.ratio for choice in ranked) == RATIOS

    root = torch.linalg.qr(x, mode="r").R
    losses = {}
    for ratio in {ranked[0].ratio, *(step / 20 for step in range(2, 14, 2))}:
        scale = literal_candidate(x, ratio)
        error = weight.double() - round_to_grid(weight.double() * scale) / scale
        losses[ratio] = float((error @ root.t()).square().sum())
    assert losses[ranked[0].ratio] <= 1.01 * min(losses.values())


@pytest.mark.parametrize("seed", range(4))
def test_a_few_rows_with_most_of_the_loss_decide(seed):
    """As those that write a model's outlier channels do; there are too few for evenly spaced rows to meet them."""
    x, weight = outlier_inputs(200, 64, seed), random_weight(900, 64, seed)
    weight[[5, 333, 778]] *= 200
    seen = statistics_of(x)
    ranked = rank(candidates(seen.mean_abs), [(weight, seen.gram)], same, round_to_grid)
    losses = literal_losses(x, [weight])
    assert losses[RATIOS.index(ranked[0].ratio)] == min(losses)


def test_layers_of_one_input_count_for_all_of_their_rows():
    """A large layer, of which some rows are looked at, beside a small one that would have it the other way."""
    seen = statistics_of(torch.ones(3, 2048))
    large, small = torch.ones(4096, 2048), torch.full((1000, 2048), 2.0)
    choices = [ScaleChoice(ratio, torch.full((2048,), 1 + ratio)) for ratio in (0.25, 0.5)]

    def quantize(scaled: torch.Tensor) -> torch.Tensor:
        """Off by 0.1 at the first choice's large and at the second one's small weights, once unscaled again."""
        wrong = torch.isin(scaled, torch.tensor([1.25, 3.0]))
        return scaled + 0.1 * wrong * torch.where(scaled == 1.25, 1.25, 1.5)

    assert rank(choices, [(large, seen.gram), (small, seen.gram)], same, quantize)[0].ratio == 0.5
    assert rank(choices, [(large[:100], seen.gram), (small, seen.gram)], same, quantize)[0].ratio == 0.25


@pytest.mark.parametrize(("shape", "rows"), [((700, 96), 700), ((4096, 1024), 4096), ((5000, 2048), 256)])
def test_sampled_rows_are_spread_evenly_over_large_layers_only(shape, rows):
    weight = torch.arange(shape[0]).float().view(-1, 1).expand(shape)
    found = sample_rows(weight)[:, 0]
    assert len(found) == rows and found[0] == shape[0] // rows // 2
    gaps = found.diff()
    assert gaps.min() >= shape[0] // rows and gaps.max() <= -(-shape[0] // rows)


def test_the_relative_loss_of_a_sample_is_about_that_of_all_rows():
    x, weight = outlier_inputs(300, 2048), random_weight(3072, 2048)
    rounded = round_to_grid(weight)
    root = torch.linalg.qr(x, mode="r").R.t()
    literal = ((weight - rounded).double() @ root).square().sum() / (weight.double() @ root).square().sum()
    assert len(sample_rows(weight)) < len(weight)
    found = relative_loss(sample_rows(rounded), sample_rows(weight), statistics_of(x).gram)
    assert found == pytest.approx(float(literal), rel=0.1)
    assert relative_loss(weight * 0, weight * 0, statistics_of(x).gram) == 0


def test_rounding_by_rows_is_rounding():
    weight = random_weight(300, 8192)  # more than is rounded at a time
    assert torch.equal(quantize_by_rows(weight, round_to_grid), round_to_grid(weight))


def test_rank_with_value_heads_that_several_query_heads_share():
    """The search runs over the 32 shared entries, the loss over all 64 channels that they are spread to."""
    x = outlier_inputs(200, 64)
    weight, seen = random_weight(48, 64), statistics_of(x)
    shared = x.abs().mean(0).view(2, 2, 16).mean(1).flatten()

    def spread(vector: torch.Tensor) -> torch.Tensor:
        return vector.view(2, 1, 16).expand(2, 2, 16).reshape(64)

    best = rank(candidates(shared.float()), [(weight, seen.gram)], spread, round_to_grid)[0]
    losses = []
    for ratio in RATIOS:
        scale = shared**ratio
        scale = spread(scale / (scale.max() * scale.min()) ** 0.5)
        rounded = round_to_grid(weight.double() * scale) / scale
        losses.append(float((x @ (weight.double() - rounded).t()).square().sum()))
    assert best.vector.shape == (32,)
    assert best.ratio == RATIOS[losses.index(min(losses))] > 0


class OneRow(nn.Module):
    """Its output is one row of its linear's: what the others do does not matter to it, only to the linear."""

    def __init__(self, weight: torch.Tensor, row: int):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight.data = weight.clone()
        self.row = row

    def forward(self, x):
        return self.linear(x)[..., self.row].relu()


def samples_of(module: nn.Module, x: torch.Tensor) -> list:
    return [(part, PLAIN_CALL, module(part).detach()) for part in x.float().split(50)]


def literal_module_error(module: OneRow, x: torch.Tensor, choice: ScaleChoice) -> float:
    scale, weight = choice.vector.double(), module.linear.weight.data.double()
    rounded = round_to_grid(weight * scale) / scale
    difference = (x @ rounded[module.row]).relu() - (x @ weight[module.row]).relu()
    return float(difference.square().sum())


@pytest.mark.parametrize("row", range(6))
def test_confirm_picks_by_the_output_of_the_module(row):
    x = outlier_inputs(200, 64)
    module = OneRow(random_weight(6, 64), row)
    vector = statistics_of(x).mean_abs
    finalists = [ScaleChoice(ratio, candidate(vector, ratio)) for ratio in (0.3, 0.75, 0.0)]
    errors = [literal_module_error(module, x, choice) for choice in finalists]
    found = confirm(finalists, module, [module.linear], samples_of(module, x), same, round_to_grid)
    assert found is finalists[errors.index(min(errors))]


def test_confirm_does_not_always_follow_the_ranking():
    x = outlier_inputs(200, 64)
    vector = statistics_of(x).mean_abs
    finalists = [ScaleChoice(ratio, candidate(vector, ratio)) for ratio in (0.3, 0.75, 0.0)]
    found = set()
    for row in range(6):
        module = OneRow(random_weight(6, 64), row)
        found.add(confirm(finalists, module, [module.linear], samples_of(module, x), same, round_to_grid).ratio)
    assert len(found) > 1


def test_confirm_considers_identity_even_when_it_ranks_last():
    """The module undoes scales, as query and key norms do: each one but identity only does harm."""
    x = outlier_inputs(100, 64)
    module = OneRow(random_weight(6, 64), 0)
    weight = module.linear.weight.data

    def exact_if_unscaled(scaled: torch.Tensor) -> torch.Tensor:
        return scaled if torch.equal(scaled, weight) else round_to_grid(scaled)

    vector = statistics_of(x).mean_abs
    ranked = [ScaleChoice(ratio, candidate(vector, ratio)) for ratio in reversed(RATIOS)]
    assert confirm(ranked, module, [module.linear], samples_of(module, x), same, exact_if_unscaled).ratio == 0


def test_searching_changes_nothing():
    x = outlier_inputs(100, 64)
    module = OneRow(random_weight(6, 64), 0)
    parameter, before = module.linear.weight, module.linear.weight.detach().clone()
    samples, seen = samples_of(module, x), statistics_of(x)
    gram, vector = seen.gram.clone(), seen.mean_abs.clone()
    ranked = rank(candidates(vector), [(parameter.data, seen.gram)], same, round_to_grid)
    confirm(ranked, module, [module.linear], samples, same, round_to_grid)
    assert module.linear.weight is parameter and torch.equal(parameter, before)
    assert torch.equal(seen.gram, gram) and torch.equal(seen.mean_abs, vector)
    assert module_error(module, samples) == 0


def test_substituted_weights_go_away_again_also_after_an_exception():
    linears = [nn.Linear(4, 3), nn.Linear(4, 2)]
    before = [linear.weight.detach().clone() for linear in linears]
    others = [torch.ones(3, 4), torch.zeros(2, 4)]
    with substituted(linears, others):
        assert all(torch.equal(linear.weight, other) for linear, other in zip(linears, others, strict=True))
    with pytest.raises(KeyboardInterrupt), substituted(linears, others):
        raise KeyboardInterrupt
    assert all(torch.equal(linear.weight, weight) for linear, weight in zip(linears, before, strict=True))
