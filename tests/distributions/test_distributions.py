"""Every distribution against torch.distributions, sampled frequencies and finite differences."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as td
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    Joint,
    MultiCategorical,
    make_distribution,
)
from rlsurreal.distributions.gaussian import GaussianParams
from rlsurreal.structs import Noise, NoiseSpec
from rlsurreal.utils.namedarraytuple import leaves, tree_map
from rlsurreal.utils.spaces import null_value, policy_space

torch.set_num_threads(1)

DISTRIBUTIONS: dict[str, Distribution] = {
    "categorical": Categorical(5),
    "one_action": Categorical(1),
    "multi_equal": MultiCategorical((3, 3), (2,)),
    "multi_uneven": MultiCategorical((2, 4, 3, 1), (2, 2)),
    "bernoulli": Bernoulli((3,)),
    "gaussian_free": Gaussian((3,)),
    "gaussian_state": Gaussian((2, 2), std="state", init_std=0.5),
    "gaussian_scalar": Gaussian((), std="state"),
    "squashed_free": Gaussian((3,), squash=True, init_std=0.5),
    "squashed_state": Gaussian((2,), squash=True, std="state"),
}
DISTRIBUTIONS["joint"] = Joint(
    ("move", "arm", "bits"),
    (Categorical(4), Joint(("f0", "f1"), (Gaussian((2,)), Gaussian((3,), squash=True)), "Tuple"), Bernoulli((2,))),
)
ALL = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
CONTINUOUS = [name for name in DISTRIBUTIONS if name.startswith(("gaussian", "squashed"))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(distribution: Distribution, *leading: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*leading, distribution.num_features, generator=generator(seed), dtype=dtype) * 0.7


def free(distribution: Distribution, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (0.3 * torch.randn(distribution.num_free, generator=generator(seed), dtype=dtype)) + distribution.free_init()


def params(distribution: Distribution, *leading: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    return distribution.params(
        features(distribution, *leading, seed=seed, dtype=dtype), free(distribution, seed, dtype).to(dtype)
    )


def draw_noise(distribution: Distribution, *leading: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Noise:
    spec = distribution.noise_spec
    return Noise(
        torch.randn(*leading, spec.normal, generator=generator(seed), dtype=dtype) if spec.normal else None,
        torch.rand(*leading, spec.uniform, generator=generator(seed + 1), dtype=dtype) if spec.uniform else None,
    )


def reference(distribution: Any, p: Any) -> td.Distribution:
    """The same distribution by torch.distributions, over flat actions."""
    if isinstance(distribution, Categorical):
        return td.Categorical(logits=p.logits)
    if isinstance(distribution, Bernoulli):
        return td.Independent(td.Bernoulli(logits=p.logits), 1)
    normal = td.Normal(p.mean, p.log_std.exp())
    base = td.TransformedDistribution(normal, [td.TanhTransform(cache_size=1)]) if distribution.squash else normal
    return td.Independent(base, 1)


# ---------------------------------------------------------------- all of them


@ALL
def test_pickles_and_compares(distribution: Distribution) -> None:
    assert pickle.loads(pickle.dumps(distribution)) == distribution
    assert hash(pickle.loads(pickle.dumps(distribution))) == hash(distribution)
    with pytest.raises(AttributeError):
        distribution.num_actions = 7  # type: ignore[attr-defined]


@ALL
@pytest.mark.parametrize("leading", [(), (4,), (3, 2)])
def test_shapes_and_types(distribution: Distribution, leading: tuple[int, ...]) -> None:
    p = params(distribution, *leading, dtype=torch.float32)
    q = params(distribution, *leading, seed=1, dtype=torch.float32)
    noise = draw_noise(distribution, *leading, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of slow, non-contiguous searches
        action = distribution.sample(p, noise)
    mode, (action_2, log_prob_2) = distribution.mode(p), distribution.sample_with_log_prob(p, noise)
    for leaf, leaf_2, leaf_mode in zip(leaves(action), leaves(action_2), leaves(mode)):
        assert torch.equal(leaf, leaf_2) and leaf.shape == leaf_mode.shape and leaf.dtype == leaf_mode.dtype
    for number in (distribution.log_prob(p, action), log_prob_2, distribution.entropy(p), distribution.kl(p, q)):
        assert number.shape == leading and number.dtype == torch.float32 and number.isfinite().all()
    encoded = distribution.encode(action)
    assert encoded.shape == (*leading, distribution.num_encoded) and encoded.dtype == torch.float32
    torch.testing.assert_close(distribution.log_prob(p, action), log_prob_2, atol=1e-3, rtol=1e-3)


@ALL
def test_rows_do_not_depend_on_each_other(distribution: Distribution) -> None:
    p, noise = params(distribution, 6), draw_noise(distribution, 6)
    action = distribution.sample(p, noise)
    for i in range(6):
        alone = distribution.sample(p[i], noise[i])
        for leaf, leaf_alone in zip(leaves(action), leaves(alone)):
            torch.testing.assert_close(leaf[i], leaf_alone)
        torch.testing.assert_close(distribution.log_prob(p, action)[i], distribution.log_prob(p[i], alone))


@ALL
def test_kl_and_entropy_are_means_over_samples(distribution: Distribution) -> None:
    num_samples = 200_000
    p, q = params(distribution), params(distribution, seed=1)
    many_p = tree_map(lambda x: x.expand(num_samples, *x.shape), p)
    many_q = tree_map(lambda x: x.expand(num_samples, *x.shape), q)
    action, log_p = distribution.sample_with_log_prob(many_p, draw_noise(distribution, num_samples))
    log_q = distribution.log_prob(many_q, action)
    for got, estimate in ((distribution.entropy(p), -log_p), (distribution.kl(p, q), log_p - log_q)):
        standard_error = estimate.std() / math.sqrt(num_samples)
        assert abs(got - estimate.mean()) < 5 * standard_error + 1e-9
    assert distribution.kl(p, p) == pytest.approx(0, abs=1e-12)


def test_entropy_of_a_squashed_gaussian_is_as_near_as_it_says() -> None:
    distribution = Gaussian(shape=(1,), squash=True, max_std=20.0)
    z = torch.linspace(-9, 9, 100_001, dtype=torch.float64)
    weight = (-0.5 * z.square()).softmax(0)
    for std, allowed in ((0.1, 1e-4), (2.0, 1e-4), (5.0, 0.02), (10.0, 0.14)):
        for mean in torch.linspace(-4, 4, 17, dtype=torch.float64).tolist():
            log_slope = 2 * (math.log(2) - (x := mean + std * z) - torch.nn.functional.softplus(-2 * x))
            exact = 0.5 * math.log(2 * math.pi * math.e) + math.log(std) + float(weight @ log_slope)
            params = GaussianParams(torch.tensor([mean]).double(), torch.tensor([math.log(std)]).double())
            assert float(distribution.entropy(params)) == pytest.approx(exact, abs=allowed)


@ALL
def test_gradients_by_finite_differences(distribution: Distribution) -> None:
    x, y = features(distribution, 2).requires_grad_(), free(distribution).requires_grad_()
    inputs = (x, y) if distribution.num_free else (x,)
    q, noise = params(distribution, 2, seed=1), draw_noise(distribution, 2)
    action = distribution.sample(params(distribution, 2), noise)
    functions = {
        "log_prob": lambda p: distribution.log_prob(p, action),
        "entropy": lambda p: distribution.entropy(p),
        "kl from": lambda p: distribution.kl(p, q),
        "kl to": lambda p: distribution.kl(q, p),
        "sample_with_log_prob": lambda p: distribution.sample_with_log_prob(p, noise)[1],
    }
    for name, function in functions.items():
        assert torch.autograd.gradcheck(lambda *a, f=function: f(distribution.params(*a)), inputs), name


@ALL
def test_unchanged_policy_has_ratio_1(distribution: Distribution) -> None:
    """Bit for bit, from the recorded action in float32, far out in the tails too."""
    p = params(distribution, 64, dtype=torch.float32)
    noise = draw_noise(distribution, 64, dtype=torch.float32)
    if noise.normal is not None:
        noise = noise._replace(normal=noise.normal * 10)
    action = distribution.sample(p, noise)
    recorded = tree_map(lambda a: torch.from_numpy(a.numpy().copy()), action)
    ratio = (distribution.log_prob(p, recorded) - distribution.log_prob(p, action)).exp()
    assert (ratio == 1).all()


# ---------------------------------------------------------------- discrete


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "one_action"])
def test_discrete_equals_torch(name: str) -> None:
    distribution = DISTRIBUTIONS[name]
    p, q = params(distribution, 7), params(distribution, 7, seed=1)
    action = distribution.sample(p, draw_noise(distribution, 7))
    expected = reference(distribution, p)
    torch.testing.assert_close(distribution.log_prob(p, action), expected.log_prob(action.double()))
    torch.testing.assert_close(distribution.entropy(p), expected.entropy())
    torch.testing.assert_close(distribution.kl(p, q), td.kl_divergence(expected, reference(distribution, q)))


@pytest.mark.parametrize("name", ["multi_equal", "multi_uneven"])
def test_multi_categorical_is_its_factors(name: str) -> None:
    distribution = DISTRIBUTIONS[name]
    assert isinstance(distribution, MultiCategorical)
    x, y, noise = features(distribution, 7), features(distribution, 7, seed=1), draw_noise(distribution, 7)
    p, q = distribution.params(x), distribution.params(y)
    action = distribution.sample(p, noise)
    assert action.shape == (7, *distribution.shape) and action.dtype == torch.int64
    flat, mode = action.reshape(7, -1), distribution.mode(p).reshape(7, -1)
    sums = {"log_prob": torch.zeros(7), "entropy": torch.zeros(7), "kl": torch.zeros(7)}
    start = 0
    for i, size in enumerate(distribution.sizes):
        part, columns = Categorical(size), slice(start, start + size)
        a, b = part.params(x[:, columns]), part.params(y[:, columns])
        assert torch.equal(flat[:, i], part.sample(a, Noise(uniform=noise.uniform[:, i : i + 1])))
        assert torch.equal(mode[:, i], part.mode(a))
        assert torch.equal(distribution.encode(action)[:, columns], part.encode(flat[:, i]))
        sums["log_prob"] = sums["log_prob"] + part.log_prob(a, flat[:, i])
        sums["entropy"] = sums["entropy"] + part.entropy(a)
        sums["kl"] = sums["kl"] + part.kl(a, b)
        start += size
    torch.testing.assert_close(distribution.log_prob(p, action), sums["log_prob"])
    torch.testing.assert_close(distribution.entropy(p), sums["entropy"])
    torch.testing.assert_close(distribution.kl(p, q), sums["kl"])


def test_sampled_frequencies() -> None:
    """A fine grid of uniform numbers gives each action its probability to within one grid step."""
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    categorical, bernoulli = Categorical(5), Bernoulli((1,))
    p = params(categorical)
    actions = categorical.sample(tree_map(lambda x: x.expand(100_000, -1), p), Noise(uniform=grid[:, None]))
    assert (torch.bincount(actions, minlength=5) / 1e5 - p.logits.exp()).abs().max() < 2e-5
    q = params(bernoulli)
    bits = bernoulli.sample(tree_map(lambda x: x.expand(100_000, -1), q), Noise(uniform=grid[:, None]))
    assert bits.dtype == torch.int8
    assert abs(bits.double().mean() - q.logits.sigmoid()) < 2e-5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.99999994])
@pytest.mark.parametrize("num_actions", [1, 2, 18, 5000])
def test_inverse_cdf_stays_in_range_and_never_draws_probability_0(uniform: float, num_actions: int) -> None:
    """First, last and inner actions forbidden, by -inf and by underflow, in float32."""
    distribution = Categorical(num_actions)
    x = torch.randn(200, num_actions, generator=generator(num_actions)) * 3
    if num_actions > 2:
        x[:100, ::3] = -math.inf
        x[:, :2] = -200.0
        x[::2, -1] = -math.inf
    p = distribution.params(x)
    action = distribution.sample(p, Noise(uniform=torch.full((200, 1), uniform)))
    assert action.min() >= 0 and action.max() < num_actions
    assert (p.logits.exp().gather(-1, action[:, None]) > 0).all()
    assert distribution.log_prob(p, action).isfinite().all()


def test_bits_of_probability_0_and_1() -> None:
    distribution = Bernoulli((2,))
    p = distribution.params(torch.tensor([-200.0, 200.0]))
    for uniform in (0.0, 0.99999994):
        assert distribution.sample(p, Noise(uniform=torch.full((2,), uniform))).tolist() == [0, 1]
    assert distribution.log_prob(p, torch.tensor([0, 1], dtype=torch.int8)) == 0


def test_forbidden_bits_are_0_and_cost_nothing() -> None:
    distribution = Bernoulli((3,))
    x = torch.tensor([[0.5, -math.inf, -1.0]], requires_grad=True)
    p = distribution.params(x)
    action = distribution.sample(p, Noise(uniform=torch.zeros(1, 3)))
    assert action.tolist() == [[1, 0, 1]]
    kept = td.Bernoulli(logits=torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(distribution.log_prob(p, action)[0], kept.log_prob(torch.ones(2)).sum())
    torch.testing.assert_close(distribution.entropy(p)[0], kept.entropy().sum())
    total = (distribution.log_prob(p, action) + distribution.entropy(p) + distribution.kl(p, p)).sum()
    (gradient,) = torch.autograd.grad(total, x)
    assert gradient.isfinite().all() and gradient[0, 1] == 0


@pytest.mark.parametrize("name", ["categorical", "multi_uneven"])
def test_forbidden_actions_leave_entropy_kl_and_gradients_finite(name: str) -> None:
    distribution = DISTRIBUTIONS[name]
    x, y = features(distribution, 3), features(distribution, 3, seed=1)
    for tensor in (x, y):
        tensor[:, -2] = -math.inf
    x.requires_grad_()
    p, q = distribution.params(x), distribution.params(y)
    total = (distribution.entropy(p) + distribution.kl(p, q) + distribution.kl(q, p)).sum()
    (gradient,) = torch.autograd.grad(total, x)
    assert total.isfinite() and gradient.isfinite().all()
    if name == "categorical":
        kept = [0, 1, 2, 4]
        expected = td.Categorical(logits=x[:, kept]).entropy()
        torch.testing.assert_close(distribution.entropy(p), expected)


def test_nan_logits_give_an_action_in_range() -> None:
    p = Categorical(3).params(torch.full((2, 3), math.nan))
    assert set(Categorical(3).sample(p, Noise(uniform=torch.full((2, 1), 0.7))).tolist()) <= {0, 1, 2}


# ---------------------------------------------------------------- continuous


@pytest.mark.parametrize("name", CONTINUOUS)
def test_gaussian_equals_torch(name: str) -> None:
    distribution = DISTRIBUTIONS[name]
    assert isinstance(distribution, Gaussian)
    p, q = params(distribution, 7), params(distribution, 7, seed=1)
    noise = draw_noise(distribution, 7)
    action = distribution.sample(p, noise)
    x = p.mean + p.log_std.exp() * noise.normal
    torch.testing.assert_close(action.reshape(7, -1), x.tanh() if distribution.squash else x)
    expected = reference(distribution, p)
    torch.testing.assert_close(distribution.log_prob(p, action), expected.log_prob(action.reshape(7, -1)))
    torch.testing.assert_close(
        distribution.sample_with_log_prob(p, noise)[1], expected.log_prob(x.tanh() if distribution.squash else x)
    )
    normals = [td.Independent(td.Normal(r.mean, r.log_std.exp()), 1) for r in (p, q)]
    torch.testing.assert_close(distribution.kl(p, q), td.kl_divergence(*normals))
    if not distribution.squash:
        torch.testing.assert_close(distribution.entropy(p), expected.entropy())
    assert torch.equal(distribution.mode(p).reshape(7, -1), p.mean.tanh() if distribution.squash else p.mean)


def test_squashed_density_integrates_to_1() -> None:
    distribution = Gaussian((1,), squash=True, std="state")
    p = distribution.params(torch.tensor([0.4, -0.5], dtype=torch.float64))
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[:, None]
    density = distribution.log_prob(tree_map(lambda x: x.expand(200_001, 1), p), grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("std", "tolerance"), [(0.1, 1e-6), (1.0, 1e-4), (2.0, 2e-3), (10.0, 0.3)])
@pytest.mark.parametrize("mean", [0.0, 0.7, -3.0])
def test_squashed_entropy_by_integration(std: float, tolerance: float, mean: float) -> None:
    distribution = Gaussian((1,), squash=True, std="state")
    p = distribution.params(torch.tensor([mean, math.log(std)], dtype=torch.float64))
    x = torch.linspace(mean - 12 * std, mean + 12 * std, 100_001, dtype=torch.float64)
    log_normal = td.Normal(mean, std).log_prob(x)
    log_density = log_normal - 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))
    expected = -torch.trapezoid(log_normal.exp() * log_density, x)
    assert distribution.entropy(p).item() == pytest.approx(expected.item(), abs=tolerance)


def test_squashed_in_the_tails_in_float32() -> None:
    """Actions that round to the border have finite densities and gradients, and ratios that are right."""
    distribution = Gaussian((1,), squash=True, std="state")
    x = torch.tensor([[8.0, 0.0], [-30.0, 0.0], [100.0, 1.0], [0.0, -2.0]], requires_grad=True)
    p = distribution.params(x)
    noise = Noise(normal=torch.zeros(4, 1))
    action, log_prob = distribution.sample_with_log_prob(p, noise)
    assert action.abs().max() <= 1
    again = distribution.log_prob(p, action.detach())
    gradient = torch.autograd.grad((log_prob + again).sum(), x)[0]
    assert log_prob.isfinite().all() and again.isfinite().all() and gradient.isfinite().all()
    double = distribution.params(x.detach().double())
    exact = distribution.sample_with_log_prob(double, Noise(normal=torch.zeros(4, 1, dtype=torch.float64)))[1]
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
    # A changed policy: the ratio at the recorded action is that of two Gaussians at its inverse, whatever its rounding.
    changed = distribution.params(x.detach() + torch.tensor([0.1, 0.05]))
    inverse = action.detach().double().clamp(-1 + 2**-24, 1 - 2**-24).atanh()
    gaussians = [td.Normal(r.mean.double(), r.log_std.double().exp()) for r in (changed, p)]
    expected = (gaussians[0].log_prob(inverse) - gaussians[1].log_prob(inverse)).squeeze(-1)
    got = distribution.log_prob(changed, action.detach()) - again
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-3, atol=1e-3)


def test_std_parameters_and_bounds() -> None:
    free_std = Gaussian((2,), init_std=0.5)
    p = free_std.params(torch.zeros(3, 2), free_std.free_init())
    torch.testing.assert_close(p.log_std.exp(), torch.full((3, 2), 0.5))
    state_std = Gaussian((2,), std="state", init_std=0.5, min_std=0.1, max_std=2.0)
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, -50.0, 50.0]])
    torch.testing.assert_close(
        state_std.params(x).log_std.exp(), torch.tensor([[0.5, 0.5 * math.e], [0.1, 2.0]]), rtol=1e-5, atol=0
    )
    with torch.no_grad():
        assert torch.equal(state_std.params(x).log_std, state_std.params(x.requires_grad_()).log_std)
    wrong: dict[str, Any]
    for wrong in ({"std": "softplus"}, {"init_std": 11.0}, {"min_std": 0.0}, {"max_std": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Gaussian((2,), **wrong)


def test_no_std_parameter_is_trapped_beyond_its_bound() -> None:
    distribution = Gaussian((4,), min_std=0.1, max_std=2.0)
    free_parameters = torch.tensor([-5.0, -5.0, 5.0, 5.0], requires_grad=True)
    p = distribution.params(torch.zeros(4), free_parameters)
    (gradient,) = torch.autograd.grad(p.log_std @ torch.tensor([1.0, -1.0, 1.0, -1.0]), free_parameters)
    # A descent step moves against the gradient: it may lead back between the bounds, and not further out.
    assert gradient.tolist() == [0.0, -1.0, 1.0, 0.0]


# ---------------------------------------------------------------- joint, and from spaces


def test_joint_sums_its_parts_and_slices_in_field_order() -> None:
    parts = (Gaussian((2,)), MultiCategorical((2, 3), (2,)), Gaussian((1,), std="state"), Bernoulli((2,)))
    joint = Joint(("a", "b", "c", "d"), parts)
    assert joint.noise_spec == NoiseSpec(normal=3, uniform=4)
    assert (joint.num_features, joint.num_free, joint.num_encoded) == (2 + 5 + 2 + 2, 2, 2 + 5 + 1 + 2)
    x, y, f, noise = features(joint, 6), features(joint, 6, seed=1), free(joint), draw_noise(joint, 6)
    p, q = joint.params(x, f), joint.params(y, f)
    action = joint.sample(p, noise)
    pieces = [
        (parts[0].params(x[:, :2], f), parts[0].params(y[:, :2], f), Noise(normal=noise.normal[:, :2])),
        (parts[1].params(x[:, 2:7]), parts[1].params(y[:, 2:7]), Noise(uniform=noise.uniform[:, :2])),
        (parts[2].params(x[:, 7:9]), parts[2].params(y[:, 7:9]), Noise(normal=noise.normal[:, 2:])),
        (parts[3].params(x[:, 9:]), parts[3].params(y[:, 9:]), Noise(uniform=noise.uniform[:, 2:])),
    ]
    log_prob, entropy, kl = torch.zeros(6), torch.zeros(6), torch.zeros(6)
    for part, (p_i, q_i, noise_i), a in zip(parts, pieces, leaves(action)):
        assert torch.equal(a, part.sample(p_i, noise_i))
        log_prob, entropy = log_prob + part.log_prob(p_i, a), entropy + part.entropy(p_i)
        kl = kl + part.kl(p_i, q_i)
    torch.testing.assert_close(joint.log_prob(p, action), log_prob)
    torch.testing.assert_close(joint.entropy(p), entropy)
    torch.testing.assert_close(joint.kl(p, q), kl)
    torch.testing.assert_close(joint.encode(action), torch.cat([d.encode(a) for d, a in zip(parts, action)], -1))


SPACES = {
    "discrete": gs.Discrete(4, start=2),
    "multi_discrete": gs.MultiDiscrete([3, 2, 5]),
    "multi_discrete_2d": gs.MultiDiscrete(np.array([[3, 2], [2, 2]])),
    "multi_binary": gs.MultiBinary(3),
    "box": gs.Box(-2, 2, (3,), np.float64),
    "box_2d": gs.Box(-2, 2, (2, 3), np.float32),
    "unbounded": gs.Box(-np.inf, np.inf, (2,)),
    "nested": gs.Dict({"a-b": gs.Discrete(3), "t": gs.Tuple([gs.Box(0, 1, (2,)), gs.MultiBinary(2)])}),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_actions_look_like_elements_of_the_space(space: Any) -> None:
    distribution = make_distribution(policy_space(space))
    example = null_value(policy_space(space))
    action = distribution.sample(
        params(distribution, dtype=torch.float32), draw_noise(distribution, dtype=torch.float32)
    )
    assert type(action) is type(example) or not isinstance(action, tuple)
    for leaf, expected in zip(leaves(action), leaves(example)):
        assert leaf.shape == expected.shape and leaf.numpy().dtype == expected.dtype
    assert len(leaves(action)) == len(leaves(example))


def test_make_distribution_passes_options_and_refuses_what_does_not_fit() -> None:
    nested = gs.Tuple([gs.Box(-1, 1, (2,)), gs.Dict({"x": gs.Box(-1, 1, (1,))})])
    joint = make_distribution(nested, squash=True, std="state", init_std=0.3, min_std=0.01, max_std=2.0)
    assert isinstance(joint, Joint) and isinstance(joint.parts[1], Joint)
    assert joint.parts[0] == Gaussian((2,), True, "state", 0.3, 0.01, 2.0)
    assert joint.parts[1].parts[0] == Gaussian((1,), True, "state", 0.3, 0.01, 2.0)
    for space in (gs.Box(-np.inf, np.inf, (2,)), gs.Box(-2, 2, (2,))):
        with pytest.raises(ValueError, match="squash=True needs actions within"):
            make_distribution(space, squash=True)
    for unfit in (gs.Box(0, 255, (2,), np.uint8), gs.Text(3), gs.Dict({})):
        with pytest.raises(ValueError, match="action space"):
            make_distribution(unfit)


@ALL
def test_traces_without_graph_breaks(distribution: Distribution) -> None:
    def act(x: Tensor, f: Tensor, noise: Noise) -> tuple[Any, Tensor, Tensor]:
        p = distribution.params(x, f)
        action = distribution.sample(p, noise)
        return action, distribution.log_prob(p, action), distribution.entropy(p)

    inputs = (features(distribution, 3), free(distribution), draw_noise(distribution, 3))
    torch._dynamo.reset()
    for got, expected in zip(torch.compile(act, fullgraph=True, backend="eager")(*inputs), act(*inputs)):
        for a, b in zip(leaves(got), leaves(expected)):
            torch.testing.assert_close(a, b)
