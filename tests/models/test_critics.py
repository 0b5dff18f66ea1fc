"""Ensembles of critics against as many separate networks."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rlsurreal.agents import ModelSpec
from rlsurreal.models import CriticEnsemble, Mlp
from rlsurreal.utils.namedarraytuple import leaves, tree_map
from rlsurreal.utils.spaces import map_spaces, policy_space
from rlsurreal.utils.torch_tree import named_tensors

torch.set_num_threads(1)
T, B, K, Z = 4, 3, 3, 7
VECTOR, ACTION = gs.Box(-np.inf, np.inf, (5,)), gs.Box(-1, 1, (2,))
IMAGE = gs.Box(0, 255, (2, 36, 40), np.uint8)
NESTED = gs.Dict({"camera": gs.Box(0, 255, (1, 12, 12), np.uint8), "body": gs.Tuple([VECTOR, gs.Discrete(2)])})
ACTIONS = {
    "box": ACTION,
    "matrix": gs.Box(-1, 1, (2, 2)),
    "discrete": gs.Discrete(4),
    "nested": gs.Dict({"arm": gs.Box(-1, 1, (3,)), "grip": gs.Discrete(2)}),
}
ATOMS = pytest.mark.parametrize("num_atoms", [None, Z])


def random_element(space: Any, *leading: int) -> Any:
    def leaf(space: Any) -> Tensor:
        if isinstance(space, gs.Discrete):
            return torch.randint(0, int(space.n), leading)
        if space.dtype == np.uint8:
            return torch.randint(0, 256, (*leading, *space.shape), dtype=torch.uint8)
        return torch.randn(*leading, *space.shape).tanh()

    return map_spaces(leaf, policy_space(space) if space in ACTIONS.values() else space)


def critics_for(observation: Any = VECTOR, action: Any = ACTION, **options: Any) -> CriticEnsemble:
    torch.manual_seed(0)
    return CriticEnsemble(observation, action, **{"num_critics": K, "hidden_sizes": (16, 8), **options})


def separate(critics: CriticEnsemble, k: int, layer_norm: bool = False) -> nn.Sequential:
    """Critic ``k`` as a network of its own."""
    weights: Any = [layer.weight[k] for layer in critics.layers]  # type: ignore[index]
    biases: Any = [layer.bias[k, 0] for layer in critics.layers]  # type: ignore[index]
    mlp = Mlp(len(weights[0]), [w.shape[1] for w in weights[:-1]], activation="relu", layer_norm=layer_norm)
    linears: Any = [*mlp.layers, nn.Linear(*weights[-1].shape)]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, weights, biases, strict=True):
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
        for norm, own in zip(critics.norms or [], mlp.norms or [], strict=True):
            own.weight.copy_(norm.weight[k, 0])  # type: ignore[index, operator, union-attr]
            own.bias.copy_(norm.bias[k, 0])  # type: ignore[index, operator, union-attr]
    return nn.Sequential(mlp, linears[-1])


@pytest.mark.parametrize("num_critics", [1, 2, 5])
@pytest.mark.parametrize("layer_norm", [False, True])
@ATOMS
def test_equals_separate_networks(num_critics: int, layer_norm: bool, num_atoms: Any) -> None:
    critics = critics_for(num_critics=num_critics, layer_norm=layer_norm, num_atoms=num_atoms)
    with torch.no_grad():
        for norm in critics.norms or []:
            for parameter in norm.parameters():
                parameter += torch.randn_like(parameter)
    observation, action = random_element(VECTOR, T, B), random_element(ACTION, T, B).requires_grad_()
    values = critics(observation, action)
    assert values.shape == (num_critics, T, B, *([num_atoms] if num_atoms else []))
    coefficients = torch.randn_like(values)
    (values * coefficients).sum().backward()
    assert action.grad is not None
    action_grad, action.grad = action.grad, None
    for k in range(num_critics):
        network = separate(critics, k, layer_norm)
        expected = network(torch.cat([observation, action], -1))
        expected = expected if num_atoms else expected[..., 0]
        torch.testing.assert_close(values[k], expected, atol=1e-6, rtol=1e-5)
        (expected * coefficients[k]).sum().backward()
        linears: Any = [*network[0].layers, network[1]]  # type: ignore[misc]
        for layer, linear in zip(critics.layers, linears, strict=True):
            weight, bias = [parameter.grad[k] for parameter in layer.parameters()]  # type: ignore[index]
            torch.testing.assert_close(weight.T, linear.weight.grad, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(bias[0], linear.bias.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(action_grad, action.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("observation", [VECTOR, IMAGE, NESTED], ids=["vector", "image", "nested"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@ATOMS
def test_every_space_and_any_leading_dimensions(observation: Any, action: Any, num_atoms: Any) -> None:
    critics = critics_for(observation, action, num_atoms=num_atoms, normalize_observation=True)
    seen, done = random_element(observation, 2, T, B), random_element(action, 2, T, B)
    before = tree_map(torch.clone, seen)
    assert critics.normalizer is not None
    critics.normalizer.update(seen, torch.ones(2, T, B, dtype=torch.bool))
    values = critics(seen, done)
    last = (num_atoms,) if num_atoms else ()
    assert values.shape == (K, 2, T, B, *last) and values.dtype == torch.float32
    one = critics(tree_map(lambda x: x[1, 2, 0], seen), tree_map(lambda x: x[1, 2, 0], done))
    torch.testing.assert_close(one, values[:, 1, 2, 0], atol=1e-5, rtol=1e-5)
    values.square().sum().backward()
    for name, parameter in critics.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".convolutions." in name, (
            name
        )  # residuals start at 0, and so does what is before
    for a, b in zip(leaves(seen), leaves(before), strict=True):
        assert torch.equal(a, b)


def test_no_rows_at_all() -> None:
    assert critics_for(num_atoms=Z)(torch.zeros(T, 0, 5), torch.zeros(T, 0, 2)).shape == (K, T, 0, Z)


def test_a_critics_loss_reaches_that_critic_only() -> None:
    critics = critics_for(layer_norm=True)
    critics(random_element(VECTOR, B), random_element(ACTION, B))[1].sum().backward()
    for name, parameter in critics.named_parameters():
        assert parameter.grad is not None
        assert [bool(part.any()) for part in parameter.grad] == [False, True, False], name


def test_critics_start_apart_and_as_pytorchs_own_layers() -> None:
    critics = critics_for(num_critics=4, hidden_sizes=(300, 200))
    for layer, fan_in in zip(critics.layers, (7, 300, 200)):
        for parameter in layer.parameters():
            assert 0.8 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
            assert len({tuple(part.flatten().tolist()) for part in parameter}) == 4
    spread = torch.stack([nn.Linear(300, 200).weight.std() for _ in range(4)])
    weight: Any = critics.layers[1].weight
    torch.testing.assert_close(weight.flatten(1).std(1), spread, atol=0, rtol=0.02)


# ---------------------------------------------------------------- dropout


def test_dropout_by_definition() -> None:
    critics = critics_for(dropout=0.4, layer_norm=True)
    assert critics.num_noise == 16 + 8 and critics_for().num_noise == 0
    observation, action = random_element(VECTOR, T, B), random_element(ACTION, T, B)
    noise = torch.rand(K, T, B, critics.num_noise)
    values = critics(observation, action, noise)
    for k in range(K):
        mlp, last = separate(critics, k, layer_norm=True)
        x = torch.cat([observation, action], -1)
        for layer, norm, part in zip(mlp.layers, mlp.norms, noise[k].split([16, 8], -1)):  # type: ignore[arg-type]
            x = torch.relu(norm(layer(x) * (part >= 0.4) / 0.6))
        torch.testing.assert_close(values[k], last(x)[..., 0], atol=1e-5, rtol=1e-5)
    plain = critics_for(layer_norm=True)
    torch.testing.assert_close(critics(observation, action), plain(observation, action))


def test_dropout_keeps_the_mean() -> None:
    critics = critics_for(dropout=0.3, hidden_sizes=(64,), activation="leaky_relu")
    observation, action = random_element(VECTOR, 1), random_element(ACTION, 1)
    noise = torch.rand(K, 20000, critics.num_noise)
    values = critics(observation.expand(20000, -1), action.expand(20000, -1), noise)
    # The outputs are nearly linear in what is dropped, because the activation is applied to 0 or to x / 0.7.
    torch.testing.assert_close(values.mean(1), critics(observation, action)[:, 0], atol=0.02, rtol=0.02)


# ---------------------------------------------------------------- the rest


def test_images_have_one_encoder() -> None:
    critics = critics_for(IMAGE)
    assert sum(isinstance(part, nn.Conv2d) for part in critics.modules()) == 3
    assert all(parameter.shape[0] == K for parameter in critics.layers.parameters())


@pytest.mark.parametrize("observation", [VECTOR, IMAGE], ids=["vector", "image"])
@ATOMS
def test_bfloat16_is_near_and_hands_out_float32(observation: Any, num_atoms: Any) -> None:
    options: Any = {"num_atoms": num_atoms, "layer_norm": True, "dropout": 0.1}
    exact, rough = critics_for(observation, **options), critics_for(observation, precision="bfloat16", **options)
    seen, done, noise = random_element(observation, B), random_element(ACTION, B), torch.rand(K, B, exact.num_noise)
    true, near = exact(seen, done, noise), rough(seen, done, noise)
    assert near.dtype == torch.float32 and 0 < (near - true).abs().max() < 0.05 * (1 + true.abs().max())
    near.sum().backward()
    assert {p.grad.dtype for p in rough.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("observation", [VECTOR, NESTED], ids=["vector", "nested"])
def test_traced_gradients_equal_eager_ones(precision: Any, observation: Any) -> None:
    """The graph is traced with other inputs than it is run with: nothing of them is in it."""
    critics = critics_for(observation, normalize_observation=True, layer_norm=True, dropout=0.1, precision=precision)
    names = [name for name, _ in critics.named_parameters()]

    def gradients(tensors: dict[str, Tensor], *inputs: Any) -> Any:
        own = {name: x.detach().requires_grad_() if name in names else x for name, x in tensors.items()}
        values = torch.func.functional_call(critics, own, inputs, tie_weights=False)
        return torch.autograd.grad(values.square().sum(), [own[name] for name in names])

    def example() -> tuple[Any, ...]:
        noise = torch.rand(K, B, critics.num_noise)
        return named_tensors(critics), random_element(observation, B), random_element(ACTION, B), noise

    graph = make_fx(gradients, tracing_mode="fake")(*example())
    arguments = example()
    for a, b in zip(graph(*arguments), gradients(*arguments), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_compiles_without_graph_breaks() -> None:
    critics = critics_for(NESTED, dropout=0.1)
    inputs = random_element(NESTED, B), random_element(ACTION, B), torch.rand(K, B, critics.num_noise)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(critics, fullgraph=True, backend="eager")(*inputs), critics(*inputs))


def test_built_by_name_and_pickled() -> None:
    options = {"num_critics": 2, "num_atoms": Z, "layer_norm": True}
    spec = pickle.loads(pickle.dumps(ModelSpec(cls=CriticEnsemble, kwargs=options)))
    critics = spec.build(observation_space=NESTED, action_space=ACTION, seed=3)
    inputs = random_element(NESTED, B), random_element(ACTION, B)
    expected = critics(*inputs)
    loaded = CriticEnsemble(NESTED, ACTION, **options)  # type: ignore[arg-type]
    loaded.load_state_dict(critics.state_dict())
    for other in (
        pickle.loads(pickle.dumps(critics)),
        spec.build(observation_space=NESTED, action_space=ACTION, seed=3),
        loaded,
    ):
        assert torch.equal(other(*inputs), expected)


@pytest.mark.parametrize(("options", "match"), [
    ({"precision": "float16"}, "precision is 'float16'"), ({"activation": "swish"}, "activation is 'swish'"),
    ({"encoder": "resnet"}, "encoder is 'resnet'"), ({"num_critics": 0}, "num_critics is 0"),
    ({"num_atoms": 0}, "num_atoms is 0"), ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
    ({"dropout": -0.1}, "dropout is -0.1"),
])  # fmt: skip
def test_refuses_what_it_does_not_know(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        critics_for(**options)
