"""Q-networks: every combination of options, one step and whole sequences."""

from __future__ import annotations

import itertools
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
from rlsurreal.models import NoisyLinear, QNetwork
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import map_spaces
from rlsurreal.utils.torch_tree import named_tensors

torch.set_num_threads(1)
T, B, A, Z, N = 5, 3, 4, 7, 6
VECTOR = gs.Box(-np.inf, np.inf, (4,))
IMAGE = gs.Box(0, 255, (2, 36, 40), np.uint8)
NESTED = gs.Dict({"camera": gs.Box(0, 255, (1, 12, 12), np.uint8), "body": gs.Tuple([VECTOR, gs.Discrete(2)])})
OUTPUTS = pytest.mark.parametrize(
    "outputs", [{}, {"num_atoms": Z}, {"num_cosines": 8}], ids=["values", "atoms", "implicit"]
)
DUELING = pytest.mark.parametrize("dueling", [False, True], ids=["plain", "dueling"])
NOISY = pytest.mark.parametrize("noisy", [False, True], ids=["still", "noisy"])


def random_leaf(space: Any, *leading: int) -> Tensor:
    if isinstance(space, gs.Discrete):
        return torch.randint(0, int(space.n), leading)
    if space.dtype == np.uint8:
        return torch.randint(0, 256, (*leading, *space.shape), dtype=torch.uint8)
    return torch.randn(*leading, *space.shape)


def random_inputs(space: Any, *leading: int) -> AgentInputs:
    observation = map_spaces(lambda s: random_leaf(s, *leading), space)
    return AgentInputs(observation, torch.randint(0, A, leading), torch.randn(*leading))


def network_for(space: Any = VECTOR, **options: Any) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork(space, A, **{"recurrent_size": 8, **options})


def extras(network: QNetwork, *leading: int) -> dict[str, Tensor]:
    """Noise and taus, where they are wanted."""
    found = {}
    if network.num_noise:
        found["noise"] = torch.randn(*leading, network.num_noise)
    if network.num_cosines:
        found["taus"] = torch.rand(*leading, N)
    return found


def last_dims(network: QNetwork) -> tuple[int, ...]:
    return (A, Z) if network.num_atoms else (A, N) if network.num_cosines else (A,)


@pytest.mark.parametrize("space", [VECTOR, IMAGE, NESTED], ids=["vector", "image", "nested"])
@pytest.mark.parametrize("recurrent", [None, "lstm", "gru"])
@OUTPUTS
@DUELING
@NOISY
def test_every_combination_acts_and_learns(
    space: Any, recurrent: Any, outputs: dict[str, int], dueling: bool, noisy: bool
) -> None:
    options: Any = {"recurrent": recurrent, "dueling": dueling, "noisy": noisy, "hidden_sizes": (16, 16), **outputs}
    network = network_for(space, **options)
    assert (network.num_noise > 0) == noisy and network.recurrent == (recurrent is not None)
    assert network.normalizer is None and network.num_atoms == outputs.get("num_atoms")
    inputs, first = random_inputs(space, T, B), torch.rand(T, B) < 0.3
    before = tree_map(torch.clone, inputs)
    more = extras(network, T, B)
    start = tree_map(torch.randn_like, network.initial_state(B))
    values, final = network(inputs, start, first if recurrent else None, **more)
    assert values.shape == (T, B, *last_dims(network)) and values.dtype == torch.float32
    values.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or ".convolutions." in name, (
            name
        )  # residuals start at 0, and so does what is before
    with torch.no_grad():  # the same, row by row
        state = start
        for t in range(T):
            state = tree_map(lambda s, t=t: torch.where(first[t][:, None], 0.0, s), state)
            step, state = network(inputs[t], state, **{name: x[t] for name, x in more.items()})
            torch.testing.assert_close(step, values[t], atol=1e-5, rtol=1e-5)
    for a, b in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(leaves(inputs), leaves(before), strict=True):
        assert torch.equal(a, b)


@OUTPUTS
def test_any_leading_dimensions(outputs: dict[str, int]) -> None:
    network = network_for(NESTED, dueling=True, noisy=True, hidden_sizes=(16,), **outputs)
    inputs, more = random_inputs(NESTED, 2, T, B), extras(network, 2, T, B)
    values, state = network(inputs, **more)
    assert state is None and values.shape == (2, T, B, *last_dims(network))
    one, _ = network(inputs[1, 2, 0], **{name: x[1, 2, 0] for name, x in more.items()})
    torch.testing.assert_close(one, values[1, 2, 0], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- dueling


@OUTPUTS
@NOISY
def test_dueling_is_a_common_value_and_advantages_of_mean_zero(outputs: dict[str, int], noisy: bool) -> None:
    network = network_for(dueling=True, noisy=noisy, **outputs)
    inputs, more = random_inputs(VECTOR, B), extras(network, B)
    values, _ = network(inputs, **more)
    assert network.value_stream is not None
    common = values.mean(1)  # over the actions, [B] or [B, Z]
    with torch.no_grad():
        for parameter in network.value_stream.layers[-1].parameters():
            parameter.zero_()
    advantages, _ = network(inputs, **more)
    torch.testing.assert_close(advantages.mean(1), torch.zeros_like(common), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantages + common.unsqueeze(1), values, atol=1e-6, rtol=1e-5)
    assert common.abs().min() > 1e-5 and advantages.abs().max() > 1e-3


def test_dueling_by_hand() -> None:
    network = network_for(dueling=True, hidden_sizes=())
    x = torch.randn(B, 4)
    advantage: Any = network.action_stream.layers[0]
    assert network.value_stream is not None
    value: Any = network.value_stream.layers[0]
    for row, got in zip(x, network(AgentInputs(x))[0]):
        a, v = advantage.weight @ row + advantage.bias, value.weight @ row + value.bias
        torch.testing.assert_close(got, torch.stack([v[0] + a[i] - sum(a) / A for i in range(A)]))


# ---------------------------------------------------------------- noise


def test_noise_is_of_the_rows_own_and_of_the_head_only() -> None:
    network = network_for(noisy=True, dueling=True, hidden_sizes=(16, 8))
    noisy = {name.split(".")[0] for name, part in network.named_modules() if isinstance(part, NoisyLinear)}
    assert noisy == {"action_stream", "value_stream"}
    assert network.num_noise == (16 + 8) + (8 + A) + (16 + 8) + (8 + 1)
    inputs = AgentInputs(torch.randn(1, 4).expand(B, 4))
    noise = torch.randn(B, network.num_noise)
    values, _ = network(inputs, noise=noise)
    assert not torch.equal(values[0], values[1])
    changed = noise.clone()
    changed[1] += 1
    other, _ = network(inputs, noise=changed)
    assert torch.equal(other[0], values[0]) and not torch.equal(other[1], values[1])
    shared, _ = network(inputs, noise=noise[:1])
    torch.testing.assert_close(shared, values[:1].expand(B, -1))
    still, _ = network(inputs)
    torch.testing.assert_close(network(inputs, noise=torch.zeros_like(noise))[0], still)


def test_every_number_of_the_noise_matters() -> None:
    network = network_for(noisy=True, dueling=True, hidden_sizes=(16, 8), activation="tanh")
    noise = torch.randn(B, network.num_noise, requires_grad=True)
    network(AgentInputs(torch.randn(B, 4)), noise=noise)[0].square().sum().backward()
    assert noise.grad is not None and (noise.grad != 0).all()


def test_one_draw_of_the_weights_serves_all_quantiles_of_a_row() -> None:
    network = network_for(noisy=True, num_cosines=8)
    inputs, noise = random_inputs(VECTOR, B), torch.randn(B, network.num_noise)
    taus = torch.rand(B, N)
    together, _ = network(inputs, noise=noise, taus=taus)
    for i in range(N):
        one, _ = network(inputs, noise=noise, taus=taus[:, i : i + 1])
        torch.testing.assert_close(one[..., 0], together[..., i], atol=1e-6, rtol=1e-5)


def test_still_networks_take_empty_noise() -> None:
    network = network_for()
    inputs = random_inputs(VECTOR, B)
    assert torch.equal(network(inputs, noise=torch.zeros(B, 0))[0], network(inputs)[0])


# ---------------------------------------------------------------- implicit quantiles


def test_implicit_quantiles_by_hand() -> None:
    """Equation 4 of the paper, one row and one tau at a time."""
    network = network_for(num_cosines=8, hidden_sizes=(16,))
    assert network.quantiles is not None
    embed = network.quantiles.linear
    (hidden, output), x, taus = network.action_stream.layers, torch.randn(B, 4), torch.rand(B, N)
    values, _ = network(AgentInputs(x), taus=taus)
    for b, n in itertools.product(range(B), range(N)):
        cosines = torch.tensor([math.cos(math.pi * i * taus[b, n].item()) for i in range(8)])
        features = x[b] * torch.relu(embed(cosines))
        torch.testing.assert_close(values[b, :, n], output(torch.relu(hidden(features))), atol=1e-5, rtol=1e-5)


def test_without_taus_the_middles_of_32_parts() -> None:
    network = network_for(num_cosines=8, noisy=True, dueling=True)
    inputs, noise = random_inputs(VECTOR, T, B), torch.randn(T, B, network.num_noise)
    values, _ = network(inputs, noise=noise)
    taus = torch.tensor([(2 * i + 1) / 64 for i in range(32)]).expand(T, B, 32)
    torch.testing.assert_close(values, network(inputs, noise=noise, taus=taus)[0], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- sizes


def sizes(part: Any) -> list[tuple[int, int]]:
    return [tuple(reversed(layer.weight.shape)) for layer in part.modules() if isinstance(layer, nn.Linear)]


def test_default_sizes() -> None:
    network = network_for(dueling=True)
    assert network.num_noise == 0
    assert sizes(network.trunk) == [(4, 256)]
    assert sizes(network.action_stream) == [(256, 256), (256, A)] and sizes(network.value_stream) == [
        (256, 256),
        (256, 1),
    ]
    network = network_for(IMAGE, dueling=True, num_atoms=Z)  # 36 x 40 leaves 1 x 1 x 64
    assert sizes(network.trunk) == []
    assert sizes(network.action_stream) == [(64, 512), (512, A * Z)]
    assert sizes(network.value_stream) == [(64, 512), (512, Z)]
    network = network_for(gs.Box(0, 255, (4, 84, 84), np.uint8), recurrent="lstm", recurrent_size=512)
    assert sizes(network.trunk) == [(3136, 512)] and sizes(network.action_stream) == [(512, 512), (512, A)]


def test_layer_norm_is_everywhere_before_activations() -> None:
    network = network_for(layer_norm=True, hidden_sizes=(16, 8))
    x = torch.randn(B, 4)
    (first,), norms = network.trunk.mlp.layers, [*network.trunk.mlp.norms, *network.action_stream.norms]  # type: ignore[misc]
    second, last = network.action_stream.layers
    hidden = torch.relu(norms[1](second(torch.relu(norms[0](first(x))))))
    torch.testing.assert_close(network(AgentInputs(x))[0], last(hidden))


def test_layers_after_the_encoder_start_as_pytorchs_own() -> None:
    network = network_for(hidden_sizes=(300, 200))
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound and layer.bias.any()


# ---------------------------------------------------------------- the rest


def test_normalisation_is_in_front() -> None:
    network, plain = network_for(normalize_observation=True), network_for()
    x = torch.randn(T, B, 4) * 7 + 30
    assert network.normalizer is not None
    network.normalizer.update(x, torch.ones(T, B, dtype=torch.bool))
    expected = plain(AgentInputs((x - x.mean((0, 1))) / x.std((0, 1), correction=0)))[0]
    torch.testing.assert_close(network(AgentInputs(x))[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recurrent", [None, "gru"])
@OUTPUTS
def test_bfloat16_is_near_and_hands_out_float32(recurrent: Any, outputs: dict[str, int]) -> None:
    options: Any = {"recurrent": recurrent, "dueling": True, "noisy": True, "layer_norm": True, **outputs}
    exact = network_for(IMAGE, **options)
    rough = network_for(IMAGE, precision="bfloat16", **options)
    inputs, more = random_inputs(IMAGE, T, B), extras(exact, T, B)
    first = torch.zeros(T, B, dtype=torch.bool) if recurrent else None
    results = [network(inputs, network.initial_state(B), first, **more) for network in (rough, exact)]
    for near, true in zip(*([values, *leaves(state)] for values, state in results), strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - true).abs().max() < 0.05 * (1 + true.abs().max())
    results[0][0].sum().backward()
    assert {p.grad.dtype for p in rough.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recurrent", [None, "lstm"])
@OUTPUTS
def test_traced_gradients_equal_eager_ones(precision: Any, recurrent: Any, outputs: dict[str, int]) -> None:
    """The graph is traced with other inputs than it is run with: nothing of them is in it."""
    options: Any = {"dueling": True, "noisy": True, "hidden_sizes": (16, 16), "precision": precision, **outputs}
    network = network_for(NESTED, normalize_observation=True, recurrent=recurrent, **options)
    names = [name for name, _ in network.named_parameters()]

    def gradients(tensors: dict[str, Tensor], inputs: AgentInputs, state: Tree, more: dict[str, Tensor]) -> Any:
        own = {name: x.detach().requires_grad_() if name in names else x for name, x in tensors.items()}
        values, _ = torch.func.functional_call(network, own, (inputs, state), more, tie_weights=False)
        return torch.autograd.grad(values.square().sum(), [own[name] for name in names])

    def example() -> tuple[Any, ...]:
        state = tree_map(torch.randn_like, network.initial_state(B))
        return named_tensors(network), random_inputs(NESTED, B), state, extras(network, B)

    graph = make_fx(gradients, tracing_mode="fake")(*example())
    arguments = example()
    for a, b in zip(graph(*arguments), gradients(*arguments), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_compiles_without_graph_breaks() -> None:
    network = network_for(NESTED, dueling=True, noisy=True, num_cosines=8, hidden_sizes=(16, 16))
    inputs, more = random_inputs(NESTED, B), extras(network, B)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs, **more)[0], network(inputs, **more)[0])


def test_built_by_name_and_pickled() -> None:
    options = {"dueling": True, "noisy": True, "num_cosines": 8, "recurrent": "gru", "hidden_sizes": (16, 16)}
    spec = pickle.loads(pickle.dumps(ModelSpec(cls=QNetwork, kwargs=options)))
    network: Any = spec.build(observation_space=NESTED, num_actions=A, seed=3)
    inputs, more, state = random_inputs(NESTED, B), extras(network, B), network.initial_state(B)
    expected = network(inputs, state, **more)[0]
    loaded = QNetwork(NESTED, A, **options)  # type: ignore[arg-type]
    loaded.load_state_dict(network.state_dict())
    for other in (
        pickle.loads(pickle.dumps(network)),
        spec.build(observation_space=NESTED, num_actions=A, seed=3),
        loaded,
    ):
        assert torch.equal(other(inputs, state, **more)[0], expected)
    assert not torch.equal(
        spec.build(observation_space=NESTED, num_actions=A, seed=4)(inputs, state, **more)[0], expected
    )


@pytest.mark.parametrize(("options", "match"), [
    ({"precision": "float16"}, "precision is 'float16'"), ({"activation": "swish"}, "activation is 'swish'"),
    ({"encoder": "resnet"}, "encoder is 'resnet'"), ({"recurrent": "rnn"}, "recurrent is 'rnn'"),
    ({"num_atoms": 0}, "num_atoms is 0; it must be at least 1, or None"), ({"num_cosines": 0}, "num_cosines is 0"),
    ({"noisy": True, "noisy_std": 0.0}, "noisy_std is 0.0; it must be positive"),
    ({"num_atoms": 51, "num_cosines": 64}, "num_atoms is 51 and num_cosines 64.*leave one out"),
])  # fmt: skip
def test_refuses_what_it_does_not_know(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        network_for(**options)
    with pytest.raises(ValueError, match="num_actions is 0"):
        QNetwork(VECTOR, 0)
    with pytest.raises(AssertionError, match="num_cosines"):
        network_for()(random_inputs(VECTOR, B), taus=torch.rand(B, N))
