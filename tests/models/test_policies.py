"""Policies of the families of DDPG and SAC: one step, whole sequences, and how they begin."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rlsurreal.agents import ModelSpec
from rlsurreal.models import CriticEnsemble, DeterministicPolicy, StochasticPolicy
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import map_spaces
from rlsurreal.utils.torch_tree import named_tensors

torch.set_num_threads(1)
T, B = 5, 3
VECTOR, ACTION = gs.Box(-np.inf, np.inf, (4,)), gs.Box(-1, 1, (2,))
IMAGE = gs.Box(0, 255, (2, 36, 40), np.uint8)
NESTED = gs.Dict({"camera": gs.Box(0, 255, (1, 12, 12), np.uint8), "body": gs.Tuple([VECTOR, gs.Discrete(2)])})
POLICIES = pytest.mark.parametrize("cls", [DeterministicPolicy, StochasticPolicy])


def random_inputs(space: Any, *leading: int, action: Any = ACTION) -> AgentInputs:
    def leaf(space: Any) -> Tensor:
        if isinstance(space, gs.Discrete):
            return torch.randint(0, int(space.n), leading)
        if space.dtype == np.uint8:
            return torch.randint(0, 256, (*leading, *space.shape), dtype=torch.uint8)
        return torch.randn(*leading, *space.shape)

    return AgentInputs(map_spaces(leaf, space), torch.rand(*leading, *action.shape) * 2 - 1, torch.randn(*leading))


def policy_for(cls: Any, space: Any = VECTOR, action: Any = ACTION, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(space, action, **{"hidden_sizes": (16, 8), "recurrent_size": 8, **options})


def outputs(result: Tree) -> Tensor:
    return torch.cat(leaves(result), -1)


@POLICIES
@pytest.mark.parametrize("space", [VECTOR, IMAGE, NESTED], ids=["vector", "image", "nested"])
@pytest.mark.parametrize("recurrent", [None, "lstm", "gru"])
def test_every_space_acts_and_learns(cls: Any, space: Any, recurrent: Any) -> None:
    policy = policy_for(cls, space, recurrent=recurrent, normalize_observation=True)
    assert policy.recurrent == (recurrent is not None)
    inputs, first = random_inputs(space, T, B), torch.rand(T, B) < 0.3
    policy.normalizer.update(inputs.observation, torch.ones(T, B, dtype=torch.bool))
    before = tree_map(torch.clone, inputs)
    start = tree_map(torch.randn_like, policy.initial_state(B))
    result, final = policy(inputs, start, first if recurrent else None)
    assert all(leaf.shape == (T, B, 2) and leaf.dtype == torch.float32 for leaf in leaves(result))
    (outputs(result) + 1).square().sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".convolutions." in name, (
            name
        )  # residuals start at 0, and so does what is before
    with torch.no_grad():  # the same, row by row
        state = start
        for t in range(T):
            state = tree_map(lambda s, t=t: torch.where(first[t][:, None], 0.0, s), state)
            step, state = policy(inputs[t], state)
            torch.testing.assert_close(outputs(step), outputs(result)[t], atol=1e-5, rtol=1e-5)
    for a, b in zip([*leaves(state), *leaves(inputs)], [*leaves(final), *leaves(before)], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@POLICIES
@pytest.mark.parametrize("shape", [(3,), (2, 2), ()])
def test_shapes(cls: Any, shape: tuple[int, ...]) -> None:
    action = gs.Box(-1, 1, shape)
    policy = policy_for(cls, NESTED, action)
    inputs = random_inputs(NESTED, 2, T, B, action=action)
    result, state = policy(inputs)
    one, _ = policy(inputs[1, 2, 0])
    if cls is StochasticPolicy:
        spec = policy.distribution.noise_spec
        result, one = (
            policy.distribution.sample(params, Noise(torch.zeros(*params.mean.shape[:-1], spec.normal)))
            for params in (result, one)
        )
    assert state is None and result.shape == (2, T, B, *shape) and (result.abs() <= 1).all()
    torch.testing.assert_close(one, result[1, 2, 0], atol=1e-5, rtol=1e-5)


def test_deterministic_actions_by_hand() -> None:
    policy = policy_for(DeterministicPolicy, layer_norm=True)
    with torch.no_grad():
        policy.linear.weight *= 1000
    x = torch.randn(B, 4)
    hidden = x
    for layer, norm in zip(policy.trunk.mlp.layers, policy.trunk.mlp.norms):
        hidden = torch.relu(norm(layer(hidden)))
    action, _ = policy(AgentInputs(x))
    torch.testing.assert_close(action, torch.tanh(policy.linear(hidden)))
    assert action.abs().max() > 0.5


def test_log_std_is_of_the_observation_and_bounded() -> None:
    policy = policy_for(StochasticPolicy)
    params, _ = policy(AgentInputs(torch.randn(B, 4)))
    assert policy.distribution.squash and policy.distribution.num_free == 0
    assert not torch.equal(params.log_std[0], params.log_std[1]) and params.log_std.abs().max() < 1
    for bias, expected in ((100.0, 2.0), (-100.0, -20.0), (-19.0, -19.0)):
        with torch.no_grad():
            policy.linear.weight.zero_()
            policy.linear.bias.copy_(torch.tensor([0.5, -0.5, bias, bias]))
        params, _ = policy(AgentInputs(torch.randn(B, 4)))
        torch.testing.assert_close(params.mean, torch.tensor([0.5, -0.5]).expand(B, 2))
        torch.testing.assert_close(params.log_std, torch.full((B, 2), expected))
        action, log_prob = policy.distribution.sample_with_log_prob(params, Noise(torch.randn(B, 2)))
        assert (action.abs() <= 1).all() and log_prob.isfinite().all()


def test_how_they_begin() -> None:
    """Hidden layers as PyTorch's own; last layers likewise for SAC, and near 0 for DDPG."""
    for cls, expected in ((DeterministicPolicy, 3e-3), (StochasticPolicy, 200**-0.5)):
        policy = policy_for(cls, hidden_sizes=(300, 200))
        bounds = [(layer, layer.in_features**-0.5) for layer in policy.trunk.mlp.layers]
        for layer, bound in [*bounds, (policy.linear, expected)]:
            assert 0.9 * bound < layer.weight.abs().max() <= bound and layer.bias.any()
        action, _ = policy(AgentInputs(torch.randn(100, 4) * 10))
        if cls is DeterministicPolicy:
            assert action.abs().max() < 0.2
    assert DeterministicPolicy(VECTOR, ACTION).trunk.out_features == 256


@POLICIES
def test_normalisation_is_in_front(cls: Any) -> None:
    policy, plain = policy_for(cls, normalize_observation=True), policy_for(cls)
    assert plain.normalizer is None
    x = torch.randn(T, B, 4) * 7 + 30
    policy.normalizer.update(x, torch.ones(T, B, dtype=torch.bool))
    expected, _ = plain(AgentInputs((x - x.mean((0, 1))) / x.std((0, 1), correction=0)))
    torch.testing.assert_close(outputs(policy(AgentInputs(x))[0]), outputs(expected), atol=1e-4, rtol=1e-4)
    assert any("mean" in name for name in policy.state_dict())


def test_the_encoder_of_critics_may_be_a_policys_too() -> None:
    critics, policy = CriticEnsemble(IMAGE, ACTION), policy_for(DeterministicPolicy, IMAGE)
    policy.trunk.encoder = critics.encoder
    inputs = random_inputs(IMAGE, B)
    before, _ = policy(inputs)
    with torch.no_grad():
        for parameter in critics.encoder.parameters():
            parameter *= 2
    assert not torch.equal(policy(inputs)[0], before)
    both = nn.ModuleList([critics, policy])
    assert sum(p.dim() == 4 for p in both.parameters()) == 3


@POLICIES
@pytest.mark.parametrize("recurrent", [None, "gru"])
@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_bfloat16_is_near_and_hands_out_float32(cls: Any, recurrent: Any, space: Any) -> None:
    exact, rough = (
        policy_for(cls, space, recurrent=recurrent, precision=precision) for precision in ("float32", "bfloat16")
    )
    inputs = random_inputs(space, B)
    (true, _), (near, state) = (policy(inputs, policy.initial_state(B)) for policy in (exact, rough))
    assert all(leaf.dtype == torch.float32 for leaf in [*leaves(near), *leaves(state)])
    assert 0 < (outputs(near) - outputs(true)).abs().max() < 0.02 * (1 + outputs(true).abs().max())
    outputs(near).sum().backward()
    assert {p.grad.dtype for p in rough.parameters() if p.grad is not None} == {torch.float32}


@POLICIES
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_traced_gradients_equal_eager_ones(cls: Any, precision: Any, recurrent: Any) -> None:
    """The graph is traced with other inputs than it is run with: nothing of them is in it."""
    policy = policy_for(cls, NESTED, normalize_observation=True, precision=precision, recurrent=recurrent)
    names = [name for name, _ in policy.named_parameters()]

    def gradients(tensors: dict[str, Tensor], inputs: AgentInputs, state: Tree) -> Any:
        own = {name: x.detach().requires_grad_() if name in names else x for name, x in tensors.items()}
        result, _ = torch.func.functional_call(policy, own, (inputs, state), tie_weights=False)
        return torch.autograd.grad(outputs(result).square().sum(), [own[name] for name in names])

    def example() -> tuple[Any, ...]:
        state = tree_map(torch.randn_like, policy.initial_state(B))
        return named_tensors(policy), random_inputs(NESTED, B), state

    graph = make_fx(gradients, tracing_mode="fake")(*example())
    arguments = example()
    for a, b in zip(graph(*arguments), gradients(*arguments), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@POLICIES
def test_compiles_without_graph_breaks(cls: Any) -> None:
    policy, inputs = policy_for(cls, NESTED), random_inputs(NESTED, B)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled, _ = torch.compile(policy, fullgraph=True, backend="eager")(inputs)
        torch.testing.assert_close(outputs(compiled), outputs(policy(inputs)[0]))


@POLICIES
def test_built_by_name_and_pickled(cls: Any) -> None:
    options = {"hidden_sizes": (16,), "recurrent": "lstm", "normalize_observation": True}
    spec = pickle.loads(pickle.dumps(ModelSpec(cls=cls, kwargs=options)))
    policy: Any = spec.build(observation_space=NESTED, action_space=ACTION, seed=3)
    inputs, state = random_inputs(NESTED, B), policy.initial_state(B)
    expected = outputs(policy(inputs, state)[0])
    loaded = cls(NESTED, ACTION, **options)
    loaded.load_state_dict(policy.state_dict())
    for other in (
        pickle.loads(pickle.dumps(policy)),
        spec.build(observation_space=NESTED, action_space=ACTION, seed=3),
        loaded,
    ):
        assert torch.equal(outputs(other(inputs, state)[0]), expected)
    assert math.prod(expected.shape) == B * (2 if cls is DeterministicPolicy else 4)


@POLICIES
def test_refuses_what_it_does_not_know(cls: Any) -> None:
    for options, match in [
        ({"precision": "float16"}, "precision is 'float16'"), ({"activation": "swish"}, "activation is 'swish'"),
        ({"encoder": "resnet"}, "encoder is 'resnet'"), ({"recurrent": "rnn"}, "recurrent is 'rnn'"),
        ({"action": gs.MultiDiscrete([3, 2])}, r"action_space is MultiDiscrete"),
        ({"action": gs.Box(-2, 2, (2,))}, "action_space is Box.*bound them in the environment"),
        ({"action": gs.Box(-np.inf, np.inf, (2,))}, "action_space is Box"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            policy_for(cls, **options)


def test_a_stochastic_policy_for_discrete_actions_is_categorical() -> None:
    policy = StochasticPolicy(gs.Box(-1, 1, (3,)), gs.Discrete(4), hidden_sizes=(5,))
    params, _ = policy(AgentInputs(torch.randn(2, 6, 3)))
    assert params.logits.shape == (2, 6, 4)
    torch.testing.assert_close(params.logits.exp().sum(-1), torch.ones(2, 6))
    with pytest.raises(ValueError, match="action_space is Discrete"):
        DeterministicPolicy(gs.Box(-1, 1, (3,)), gs.Discrete(4))
