"""The operations of the native decoder, one by one, against float64 on every instruction set."""

import ctypes
import math

import pytest
import torch

from qlinear.backends.cpu import native, native_decoder
from tests.qlinear.exact import assert_rounded, random

EPSILON = 1e-5
ROUNDING = 2**-8  # of one bfloat16


@pytest.mark.parametrize("n", [1, 15, 16, 33, 64, 576, 1000])
def test_norm(library, n):
    x, weight, y = 3 * random(n), random(n, seed=1), torch.empty(n, dtype=torch.bfloat16)
    library.awq_rms_norm(x.data_ptr(), weight.data_ptr(), EPSILON, n, y.data_ptr())
    exact = x.double() / (x.double().square().mean() + EPSILON).sqrt() * weight.double()
    assert_rounded(y, exact)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("n", [1, 15, 16, 33, 64, 576, 1000])
def test_layer_norm(library, n, biased):
    """Far from a mean of 0, which would hide that it has to be taken away."""
    x, weight, bias, y = 3 * random(n) + 5, random(n, seed=1), random(n, seed=2), torch.empty(n, dtype=torch.bfloat16)
    library.awq_layer_norm(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr() if biased else None, EPSILON, n, y.data_ptr()
    )
    above = x.double() - x.double().mean()
    exact = above / (above.square().mean() + EPSILON).sqrt() * weight.double() + (bias.double() if biased else 0)
    assert_rounded(y, exact)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("normed", ["plain", "normed", "normed-last"])
@pytest.mark.parametrize("head_dim, rotary_dim", [(2, 2), (24, 24), (64, 64), (80, 40), (96, 72), (256, 256)])
def test_rope_norms_and_rotates(library, head_dim, rotary_dim, normed, interleaved):
    x, weight, angles = random(head_dim).bfloat16(), random(head_dim, seed=1), 9 * random(rotary_dim // 2, seed=2)
    cosines, sines, y = 1.5 * angles.cos(), 1.5 * angles.sin(), torch.empty(head_dim, dtype=torch.bfloat16)
    job = native_decoder.RopeJob(
        None if normed == "plain" else weight.data_ptr(), cosines.data_ptr(), sines.data_ptr(), EPSILON, head_dim,
        rotary_dim, interleaved, normed == "normed-last",
    )  # fmt: skip
    library.awq_rope(ctypes.byref(job), x.data_ptr(), y.data_ptr())
    exact = x.double()

    def norm(x):
        return x / (x.square().mean() + EPSILON).sqrt() * weight.double()

    if normed == "normed":
        exact = norm(exact)
    if interleaved:
        rotated, rest = exact[:rotary_dim], exact[rotary_dim:]
        a, b = rotated[0::2], rotated[1::2]
    else:
        a, b, rest = exact.split([rotary_dim // 2, rotary_dim // 2, head_dim - rotary_dim])
    cosine, sine = cosines.double(), sines.double()
    turned = torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest])
    assert_rounded(y, norm(turned) if normed == "normed-last" else turned)


@pytest.mark.parametrize("n", [1, 16, 37, 1536])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gate(library, activation, n):
    gate, up, y = 4 * random(n), random(n, seed=1), torch.empty(n, dtype=torch.bfloat16)
    gate[0] = -100.0  # where exp(-x) is past float32
    gate, up = gate.bfloat16(), up.bfloat16()
    library.awq_gate(gate.data_ptr(), up.data_ptr(), n, native_decoder.ACTIVATIONS[activation], y.data_ptr())
    x = gate.double()
    if activation == "silu":
        exact = x * torch.sigmoid(x)
    else:
        exact = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    # tanh near -1 leaves float32 few digits of 1 + tanh: an absolute error, of up to |x| * 2^-23 or so
    excess = (y.double() - exact * up.double()).abs() - ROUNDING * (exact * up.double()).abs() - 3e-6
    assert excess.max() <= 0


CURVE = (0.7, 1.3, 0.5, -1e-6)  # of xIELU: both alphas, beta, epsilon


@pytest.mark.parametrize("n", [1, 16, 37, 1536])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "relu2", "xielu"])
def test_activate(library, activation, n):
    x, curve, y = 4 * random(n), torch.tensor(CURVE), torch.empty(n, dtype=torch.bfloat16)
    x[: n // 2] *= 0.02  # near 0, where xIELU is a series
    x = x.bfloat16()
    given = curve.data_ptr() if activation == "xielu" else None
    library.awq_activate(x.data_ptr(), n, native_decoder.PLAIN_ACTIVATIONS[activation], given, y.data_ptr())
    x = x.double()
    above, below, beta, epsilon = curve.double()
    exact = {
        "silu": x * torch.sigmoid(x),
        "gelu_pytorch_tanh": 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu2": x.clamp(min=0) ** 2,
        "xielu": torch.where(x > 0, above * x * x, below * (torch.expm1(x.clamp(max=epsilon)) - x)) + beta * x,
    }[activation]
    excess = (y.double() - exact).abs() - ROUNDING * exact.abs() - 3e-6
    assert excess.max() <= 0


@pytest.mark.parametrize("at", [0, 15, 16, 36])
def test_what_is_no_number_stays_none(library, at):
    n = 37
    x, ones, y = random(n), torch.ones(n, dtype=torch.bfloat16), torch.empty(n, dtype=torch.bfloat16)
    x[at] = math.nan
    x, curve = x.bfloat16(), torch.tensor(CURVE)
    expected = torch.arange(n) == at
    for number in native_decoder.ACTIVATIONS.values():
        library.awq_gate(x.data_ptr(), ones.data_ptr(), n, number, y.data_ptr())
        assert torch.equal(y.isnan(), expected)
    for name, number in native_decoder.PLAIN_ACTIVATIONS.items():
        library.awq_activate(x.data_ptr(), n, number, curve.data_ptr() if name == "xielu" else None, y.data_ptr())
        assert torch.equal(y.isnan(), expected), name


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("n, k", [(1, 32), (5, 8), (35, 72), (130, 576)])
def test_dense(library, n, k, biased):
    """A row's bits are its own, whatever rows are beside it."""
    w, x = random(n, k).bfloat16(), random(9, k, seed=1).bfloat16()
    bias = random(n, seed=2)
    weight = native.Weight(None, bias.data_ptr() if biased else None, n, k, 0, 0)
    matrix = ctypes.byref(native_decoder.Matrix(weight, w.data_ptr()))
    exact = x.double() @ w.double().t() + (bias.double() if biased else 0)
    found = []
    for rows in (1, 2, 3, 4, 9):
        y = torch.empty(rows, n, dtype=torch.bfloat16)
        library.awq_dense(matrix, x.data_ptr(), rows, y.data_ptr())
        assert_rounded(y, exact[:rows])
        found.append(y)
    assert all(torch.equal(y, found[-1][: len(y)]) for y in found)


def cache_of(keys, values):
    """Keys and values (positions, head_dim) in the cache's layout, and its width."""
    positions, head_dim = keys.shape
    width, room = -(-head_dim // 16) * 16, -(-positions // 128) * 128
    padded = torch.zeros(2, room, width, dtype=torch.bfloat16)
    padded[0, :positions, :head_dim], padded[1, :positions, :head_dim] = keys, values
    tiles = padded[0].view(room // 16, 16, width // 2, 2).transpose(1, 2).contiguous()
    pairs = padded[1].view(room // 2, 2, width).transpose(1, 2).contiguous()
    return tiles, pairs, width


@pytest.mark.parametrize("cap", [0.0, 5.0], ids=["uncapped", "capped"])
@pytest.mark.parametrize(
    "shape",  # head_dim, group, first, tokens, window, begin, end
    [
        (64, 3, 0, 1, 0, 0, 1),
        (64, 1, 299, 1, 0, 0, 300),
        (24, 4, 40, 5, 0, 0, 45),
        (64, 8, 130, 8, 0, 0, 138),
        (128, 1, 0, 33, 0, 0, 33),
        (16, 2, 200, 20, 7, 194, 220),  # a window that begins within a tile
        (80, 3, 500, 1, 300, 256, 501),  # the last split of a token's past
        (64, 2, 500, 1, 0, 0, 256),  # the first, which the token itself is not in
    ],
)
def test_attention(library, shape, cap):
    head_dim, group, first, tokens, window, begin, end = shape
    rows, scale = tokens * group, head_dim**-0.5
    keys, values = 2 * random(end, head_dim).bfloat16(), random(end, head_dim, seed=1).bfloat16()
    tiles, pairs, width = cache_of(keys, values)
    q = torch.zeros(rows, width, dtype=torch.bfloat16)
    q[:, :head_dim] = random(rows, head_dim, seed=2)
    maxima, sums, out = torch.empty(rows), torch.empty(rows), torch.empty(rows, width)
    job = native_decoder.AttentionJob(
        q.data_ptr(), tiles.data_ptr(), pairs.data_ptr(), rows, group, first, window, begin, end, width, scale, cap,
        maxima.data_ptr(), sums.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    library.awq_attend(ctypes.byref(job))

    scores = q[:, :head_dim].double() @ keys.double().t() * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    position = first + torch.arange(rows).unsqueeze(1) // group
    other = torch.arange(end).unsqueeze(0)
    hidden = (other > position) | (other < begin) | ((other <= position - window) if window else False)
    scores = scores.masked_fill(hidden, -math.inf)
    exact = scores.softmax(-1) @ values.double()
    torch.testing.assert_close(maxima.double(), scores.amax(-1), rtol=1e-5, atol=1e-5)
    # weights are rounded to bfloat16, independently of each other: errors add up as their squares do
    error = (out[:, :head_dim] / sums.unsqueeze(1)).double() - exact
    size = (scores.softmax(-1).square() @ values.double().square()).sqrt()
    assert (error.abs() <= 3 * ROUNDING * size + 1e-5).all()


@pytest.mark.parametrize("before, after", [(0, 0), (100, 3)])
def test_attention_reads_nothing_outside_its_positions(library, before, after):
    end = 40 + before
    keys, values = random(end + after, 32).bfloat16(), random(end + after, 32, seed=1).bfloat16()
    q = random(1, 32, seed=2).bfloat16()
    results = []
    for outside in (0.0, 1e30):
        for tensor in (keys, values):
            tensor[:before] = outside
            tensor[end:] = outside
        tiles, pairs, width = cache_of(keys, values)
        maxima, sums, out = torch.empty(1), torch.empty(1), torch.empty(1, width)
        job = native_decoder.AttentionJob(
            q.data_ptr(), tiles.data_ptr(), pairs.data_ptr(), 1, 1, end - 1, 40, before, end, width, 1.0, 0.0,
            maxima.data_ptr(), sums.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        library.awq_attend(ctypes.byref(job))
        results.append((maxima, sums, out))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


ROUTINGS = [  # experts, top_k, groups, top_groups, softmax, normalized, corrected
    (8, 2, 1, 1, True, True, False),
    (1, 1, 1, 1, True, False, False),
    (60, 4, 1, 1, True, False, True),
    (128, 8, 1, 1, True, True, False),
    (35, 35, 5, 5, False, True, True),
    (36, 5, 12, 4, False, True, True),
    (40, 6, 4, 2, True, False, False),
]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_route(library, routing, parts):
    experts, top_k, groups, top_groups, softmax, normalized, corrected = routing
    logits, correction = 2 * random(parts, experts), 0.3 * random(experts, seed=1)
    scores, compared = logits.flatten().clone(), torch.empty(experts)
    chosen, weights = torch.empty(top_k, dtype=torch.int32), torch.empty(top_k)
    part = native_decoder.Matrix(native.Weight(None, None, experts, 64, 0, 0), 1)
    router = native_decoder.Router(
        native_decoder.Projection((native_decoder.Matrix * native_decoder.PARTS)(*[part] * parts), parts),
        correction.data_ptr() if corrected else None, top_k, groups, top_groups, 1.7, 0.01, not softmax, normalized,
    )  # fmt: skip
    job = native_decoder.RouteJob(
        ctypes.pointer(router), scores.data_ptr(), compared.data_ptr(), chosen.data_ptr(), weights.data_ptr()
    )
    library.awq_route(ctypes.byref(job))

    exact = logits.double().sum(0)
    exact = exact.exp() / exact.exp().sum() if softmax else 1 / (1 + (-exact).exp())
    found = exact + correction.double() if corrected else exact
    worth = found.view(groups, -1).sort(descending=True).values[:, :2].sum(1)
    for group in worth.argsort()[: groups - top_groups]:
        found = torch.where(torch.arange(experts) // (experts // groups) == group, -math.inf, found)
    expected = found.argsort(descending=True)[:top_k]
    weighed = 1.7 * exact[expected] / (exact[expected].sum().clamp(min=0.01) if normalized else 1)
    assert chosen.tolist() == expected.tolist()
    torch.testing.assert_close(weights.double(), weighed, rtol=1e-5, atol=1e-7)


def test_route_divides_by_no_less_than_the_least_sum(library):
    """Scores that are all far from 1; with the sum alone the weights would be 0.5 each."""
    scores, compared = torch.tensor([-9.0, -9.5, -9.0]), torch.empty(3)
    chosen, weights = torch.empty(2, dtype=torch.int32), torch.empty(2)
    part = native_decoder.Matrix(native.Weight(None, None, 3, 64, 0, 0), 1)
    router = native_decoder.Router(
        native_decoder.Projection((native_decoder.Matrix * native_decoder.PARTS)(part), 1),
        None,
        2,
        1,
        1,
        1.0,
        0.5,
        1,
        1,
    )
    job = native_decoder.RouteJob(
        ctypes.pointer(router), scores.data_ptr(), compared.data_ptr(), chosen.data_ptr(), weights.data_ptr()
    )
    library.awq_route(ctypes.byref(job))
    assert chosen.tolist() == [0, 2]
    torch.testing.assert_close(weights, torch.full((2,), 2 / (1 + math.exp(9))), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [1, 16, 37, 576])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_mix(library, n, count):
    rows, weights, y = random(12, n).bfloat16(), random(count, seed=1), torch.empty(n, dtype=torch.bfloat16)
    places = torch.randperm(12, generator=torch.Generator().manual_seed(2))[:count].to(torch.int32)
    job = native_decoder.MixJob(rows.data_ptr(), places.data_ptr(), weights.data_ptr(), count, n)
    library.awq_mix(ctypes.byref(job), y.data_ptr())
    assert_rounded(y, weights.double() @ rows[places.long()].double())
