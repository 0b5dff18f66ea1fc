"""The complete model: every kind of observation and action, one step and whole sequences."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.distributions import Distribution, make_distribution
from rlsurreal.models import ActorCritic, ImpalaResNet, MinAtarCnn, NatureCnn, ObservationEncoder
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import map_spaces, policy_space

torch.set_num_threads(1)
T, B = 5, 3
OBSERVATIONS = {
    "vector": gs.Box(-np.inf, np.inf, (4,)),
    "matrix": gs.Box(-1, 1, (2, 3)),
    "number": gs.Box(-1, 1, ()),
    "bytes": gs.Box(0, 255, (8,), np.uint8),
    "image": gs.Box(0, 255, (2, 36, 40), np.uint8),
    "small_image": gs.Box(0, 255, (3, 10, 10), np.uint8),
    "discrete": gs.Discrete(5, start=2),
    "multi_discrete": gs.MultiDiscrete([3, 2]),
    "multi_binary": gs.MultiBinary(4),
    "nested": gs.Dict(
        {
            "camera": gs.Box(0, 255, (1, 12, 12), np.uint8),
            "body": gs.Tuple([gs.Box(-1, 1, (3,)), gs.Discrete(2), gs.Dict({"on": gs.MultiBinary((2, 2))})]),
        }
    ),
}
ACTIONS = {
    "discrete": gs.Discrete(4),
    "box": gs.Box(-2, 2, (2,)),
    "nested": gs.Dict({"keys": gs.MultiBinary(3), "mouse": gs.Tuple([gs.Box(-1, 1, (2,)), gs.MultiDiscrete([2, 3])])}),
}
RECURRENT = pytest.mark.parametrize("recurrent", [None, "lstm", "gru"])
SHARED = pytest.mark.parametrize("shared", [False, True])


def random_leaf(space: Any, *leading: int) -> Tensor:
    if isinstance(space, gs.Box):
        if space.dtype == np.uint8:
            return torch.randint(0, 256, (*leading, *space.shape), dtype=torch.uint8)
        return torch.randn(*leading, *space.shape)
    if isinstance(space, gs.Discrete):
        return torch.randint(0, int(space.n), leading)
    if isinstance(space, gs.MultiDiscrete):
        return torch.stack([torch.randint(0, int(n), leading) for n in space.nvec], -1)
    return torch.randint(0, 2, (*leading, *space.shape), dtype=torch.int8)


def random_inputs(observation: Any, action: Any, *leading: int) -> AgentInputs:
    return AgentInputs(
        map_spaces(lambda s: random_leaf(s, *leading), observation),
        map_spaces(lambda s: random_leaf(s, *leading), policy_space(action)),
        torch.randn(*leading),
    )


def model_for(
    observation: Any = OBSERVATIONS["vector"], action: Any = ACTIONS["discrete"], **options: Any
) -> tuple[ActorCritic, Distribution]:
    torch.manual_seed(0)
    distribution = make_distribution(policy_space(action))
    return ActorCritic(observation, distribution, **options), distribution


def assert_trees_close(got: Tree, expected: Tree, tolerance: float = 1e-5) -> None:
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS.keys())
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_every_space_acts_and_learns(observation: Any, action: Any, recurrent: Any) -> None:
    model, distribution = model_for(
        observation, action, recurrent=recurrent, recurrent_size=16, normalize_observation=True
    )
    assert model.normalizer is not None and model.recurrent == (recurrent is not None)
    inputs = random_inputs(observation, action, T, B)
    before = tree_map(torch.clone, inputs)
    model.normalizer.update(inputs.observation, torch.ones(T, B, dtype=torch.bool))
    spec = distribution.noise_spec
    with torch.no_grad():
        (params, value), state = model(inputs[0], model.initial_state(B))
        taken = distribution.sample(params, Noise(torch.randn(B, spec.normal), torch.rand(B, spec.uniform)))
    assert value.shape == (B,) and value.isfinite().all() and (state is None) == (recurrent is None)
    for leaf, expected in zip(leaves(taken), leaves(inputs.prev_action), strict=True):
        assert leaf.shape == expected.shape[1:] and leaf.dtype == expected.dtype
    first = torch.rand(T, B) < 0.2
    (params, value), _ = model(inputs, model.initial_state(B), first)
    log_prob = distribution.log_prob(params, tree_map(lambda a: a.expand(T, *a.shape), taken))
    (log_prob.sum() + value.sum()).backward()
    assert log_prob.shape == value.shape == (T, B)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert_trees_close(inputs, before, 0)  # no image scaled in the caller's memory


@RECURRENT
@SHARED
def test_sequence_equals_steps(recurrent: Any, shared: bool) -> None:
    observation, action = OBSERVATIONS["nested"], ACTIONS["nested"]
    model, _ = model_for(observation, action, recurrent=recurrent, recurrent_size=8, shared=shared)
    inputs, first = random_inputs(observation, action, T, B), torch.rand(T, B) < 0.3
    start = tree_map(torch.randn_like, model.initial_state(B))
    with torch.no_grad():
        result, final = model(inputs, start, first)
        state = start
        for t in range(T):
            state = tree_map(lambda s, t=t: torch.where(first[t][:, None], 0.0, s), state)
            value = model.value(inputs[t], state)
            (params, step_value), state = model(inputs[t], state)
            assert_trees_close(params, result[0][t])
            torch.testing.assert_close(step_value, result[1][t], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(value, step_value)
        assert_trees_close(state, final)
        torch.testing.assert_close(model.value(inputs, start, first), result[1])


def test_feed_forward_takes_any_leading_dimensions() -> None:
    model, _ = model_for(OBSERVATIONS["nested"])
    inputs = random_inputs(OBSERVATIONS["nested"], ACTIONS["discrete"], T, B)
    (params, value), state = model(inputs)
    assert state is None
    flat = tree_map(lambda x: x.flatten(0, 1), inputs)
    (flat_params, flat_value), _ = model(flat)
    torch.testing.assert_close(flat_value, value.flatten())
    torch.testing.assert_close(flat_params.logits, params.logits.flatten(0, 1))
    (one_params, one_value), _ = model(inputs[1, 2])
    torch.testing.assert_close(one_value, value[1, 2])
    torch.testing.assert_close(one_params.logits, params.logits[1, 2])


def test_previous_action_and_reward_matter_to_recurrent_models_only() -> None:
    for recurrent in (None, "lstm"):
        model, _ = model_for(recurrent=recurrent)
        inputs = random_inputs(OBSERVATIONS["vector"], ACTIONS["discrete"], B)
        value = model.value(inputs, model.initial_state(B))
        for changed in ({"prev_reward": inputs.prev_reward + 1}, {"prev_action": (inputs.prev_action + 1) % 4}):
            other = model.value(inputs._replace(**changed), model.initial_state(B))
            assert torch.equal(value, other) == (recurrent is None)
    model, _ = model_for()
    model(AgentInputs(torch.zeros(B, 4)))  # needs neither


def test_what_is_shared() -> None:
    """Vectors: nothing; images and recurrent models: all but the heads; unless told otherwise."""
    for observation, recurrent, told, expected in [
        ("vector", None, None, False), ("vector", "gru", None, True), ("image", None, None, True),
        ("nested", None, None, True), ("vector", None, True, True), ("image", None, False, False),
    ]:  # fmt: skip
        model, _ = model_for(OBSERVATIONS[observation], recurrent=recurrent, shared=told)
        assert model.shared == expected
        inputs = random_inputs(OBSERVATIONS[observation], ACTIONS["discrete"], T, B)
        first = torch.zeros(T, B, dtype=torch.bool)
        model.value(inputs, model.initial_state(B), first).sum().backward()
        touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert touched == {"value_head", "actor" if expected else "critic"}


def test_hidden_sizes() -> None:
    def sizes(trunk: Any) -> list[int]:
        return [layer.out_features for layer in trunk.mlp.layers]

    model, _ = model_for()
    assert sizes(model.actor) == sizes(model.critic) == [64, 64]
    model, _ = model_for(hidden_sizes=(8,), critic_hidden_sizes=(32, 16))
    assert sizes(model.actor) == [8] and sizes(model.critic) == [32, 16]
    assert sizes(model_for(OBSERVATIONS["image"])[0].actor) == []
    assert sizes(model_for(OBSERVATIONS["nested"])[0].actor) == [256]
    with pytest.raises(ValueError, match="critic_hidden_sizes"):
        model_for(critic_hidden_sizes=(8,), shared=True)


def test_actor_and_critic_start_different_and_the_policy_nearly_constant() -> None:
    model, _ = model_for()
    assert model.critic is not None
    assert not torch.equal(model.actor.mlp.layers[0].weight, model.critic.mlp.layers[0].weight)  # type: ignore[arg-type]
    (params, _), _ = model(AgentInputs(torch.randn(100, 4) * 3))
    assert (params.logits.exp() - 0.25).abs().max() < 0.02


def test_normalisation_is_in_front() -> None:
    """The model sees mean 0 and standard deviation 1, in both passes, and not before there are statistics."""
    plain, _ = model_for()
    model, _ = model_for(normalize_observation=True)
    x = torch.randn(T, B, 4) * 7 + 30
    torch.testing.assert_close(model.value(AgentInputs(x)), plain.value(AgentInputs(x)))
    assert model.normalizer is not None
    model.normalizer.update(x, torch.ones(T, B, dtype=torch.bool))
    expected = plain(AgentInputs((x - x.mean((0, 1))) / x.std((0, 1), correction=0)))[0]
    assert_trees_close(model(AgentInputs(x))[0][0], expected[0], 1e-4)
    torch.testing.assert_close(model.value(AgentInputs(x)), expected[1], atol=1e-4, rtol=1e-4)
    assert any("mean" in name for name in model.state_dict())


def test_copies_and_pickles() -> None:
    model, _ = model_for(OBSERVATIONS["nested"], ACTIONS["nested"], recurrent="lstm", normalize_observation=True)
    inputs = random_inputs(OBSERVATIONS["nested"], ACTIONS["nested"], B)
    expected = model(inputs, model.initial_state(B))[0][1]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(inputs, other.initial_state(B))[0][1], expected)
    other, _ = model_for(OBSERVATIONS["nested"], ACTIONS["nested"], recurrent="lstm", normalize_observation=True)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(inputs, other.initial_state(B))[0][1], expected)


def test_traces_without_graph_breaks() -> None:
    model, _ = model_for(OBSERVATIONS["nested"], ACTIONS["nested"], normalize_observation=True)
    inputs = random_inputs(OBSERVATIONS["nested"], ACTIONS["nested"], B)
    torch._dynamo.reset()
    got = torch.compile(model, fullgraph=True, backend="eager")(inputs)
    assert_trees_close(got[0][0], model(inputs)[0][0])


# ---------------------------------------------------------------- encoder


def test_encoder_writes_each_leaf_as_documented() -> None:
    space = gs.Dict({"a": gs.Box(0, 255, (2,), np.uint8), "b": gs.Discrete(3), "c": gs.MultiDiscrete([2, 2]),
                     "d": gs.MultiDiscrete(np.array([[2], [3]])), "e": gs.MultiBinary(2)})  # fmt: skip
    encoder = ObservationEncoder(space)
    observation = map_spaces(lambda s: torch.zeros(s.shape or (), dtype=torch.long), space)._replace(
        a=torch.tensor([51, 255], dtype=torch.uint8), b=torch.tensor(1), c=torch.tensor([1, 0]),
        d=torch.tensor([[1], [2]]), e=torch.tensor([1, 0], dtype=torch.int8),
    )  # fmt: skip
    expected = [0.2, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0]
    assert encoder(observation).tolist() == pytest.approx(expected)
    assert encoder.out_features == len(expected) and encoder.num_images == 0


@pytest.mark.parametrize(("shape", "dtype", "encoder", "expected"), [
    ((3, 36, 36), np.uint8, "auto", NatureCnn), ((3, 35, 36), np.uint8, "auto", ImpalaResNet),
    ((3, 36, 36), np.uint8, "impala", ImpalaResNet), ((3, 36, 36), np.float32, "nature", NatureCnn),
    ((7, 10, 10), np.uint8, "minatar", MinAtarCnn), ((7, 10, 10), np.float32, "minatar", MinAtarCnn),
    ((3, 36, 36), np.float32, "auto", None), ((3, 36, 36), np.uint8, "mlp", None), ((36, 36), np.uint8, "auto", None),
])  # fmt: skip
def test_choice_of_encoder(shape: tuple[int, ...], dtype: Any, encoder: Any, expected: type | None) -> None:
    made = ObservationEncoder(gs.Box(0, 1, shape, dtype), encoder)
    assert made.num_images == (expected is not None)
    if expected is not None:
        assert type(made.encoders[0]) is expected


@pytest.mark.parametrize(
    ("space", "encoder"),
    [
        (gs.Box(-1, 1, (4,), np.float16), "auto"),
        (gs.Box(0, 1, (4, 10, 10), np.bool_), "minatar"),
        (gs.Box(-9, 9, (4, 10, 10), np.int32), "minatar"),
        (gs.Box(-9, 9, (4, 10, 10), np.float16), "minatar"),
    ],
)
def test_every_type_of_number_is_encoded_in_float32(space: gs.Box, encoder: Any) -> None:
    made = ObservationEncoder(space, encoder)
    space.seed(0)
    observation = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    encoded = made(observation)
    assert encoded.dtype == torch.float32 and torch.equal(encoded, made(observation.float()))


def test_encoder_refuses_what_it_does_not_know() -> None:
    for space, encoder, match in [
        (gs.Box(0, 255, (84, 84, 3), np.uint8), "auto", "wrap the environment in rlsurreal.envs.ChannelsFirst"),
        (gs.Box(0, 255, (3, 10, 10), np.uint8), "nature", "use encoder='impala'"),
        (gs.Box(0, 1, (3,)), "resnet", "encoder is 'resnet'"),
        (gs.Text(3), "auto", "no encoder for observation space"),
        (gs.Dict({}), "auto", "no entries"),
        (gs.Box(0, 255, (4, 96, 96, 3), np.uint8), "auto", "put what is stacked into the channels"),
        (gs.Box(0, 255, (84, 84), np.uint8), "nature", "encoder is 'nature', and no entry of .* is an image"),
        (gs.Discrete(3), "impala", "encoder is 'impala', and no entry of"),
    ]:
        with pytest.raises(ValueError, match=match):
            ObservationEncoder(space, encoder)  # type: ignore[arg-type]


def test_in_bfloat16_outputs_have_all_their_digits() -> None:
    """A value of 200.3 would be 200 or 201; logits near 6 would be 1/32 apart."""
    model = ActorCritic(OBSERVATIONS["vector"], make_distribution(gs.Discrete(3)), precision="bfloat16")
    inputs = AgentInputs(torch.rand(64, *OBSERVATIONS["vector"].shape))
    with torch.no_grad():
        for head, bias in ((model.value_head, 200.3), (model.policy_head, 6.01)):
            head.linear.bias.fill_(bias)
        (params, value), _ = model(inputs, None, None)
    assert not torch.equal(value, value.to(torch.bfloat16).float())
    spread = value - 200.3
    assert spread.abs().max() < 3 and len(value.unique()) > 40
    assert not torch.equal(params.logits, params.logits.to(torch.bfloat16).float())


@pytest.mark.parametrize("recurrent", [None, "lstm", "gru"])
@pytest.mark.parametrize("observation", ["vector", "image"])
def test_bfloat16_is_near_and_hands_out_float32(observation: str, recurrent: Any) -> None:
    distribution = make_distribution(gs.Discrete(3))
    models = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        options: Any = {"recurrent": recurrent, "recurrent_size": 8, "precision": precision}
        models.append(ActorCritic(OBSERVATIONS[observation], distribution, **options))
    space = OBSERVATIONS[observation]
    raw = torch.rand(T, B, *space.shape)
    image = (255 * raw).to(torch.uint8) if space.dtype == np.uint8 else raw
    inputs = AgentInputs(image, torch.ones(T, B, dtype=torch.int64), torch.rand(T, B))
    first = torch.zeros(T, B, dtype=torch.bool)
    results = [model(inputs, model.initial_state(B), first if recurrent else None) for model in models]
    exact, rough = (leaves(params) + [value] + leaves(state) for (params, value), state in results)
    assert {leaf.dtype for leaf in rough} == {torch.float32}
    for near, true in zip(rough, exact, strict=True):
        assert 0 < (near - true).abs().max() < 0.02 * (1 + true.abs().max())
    steps = [model(inputs[0], model.initial_state(B)) for model in models]
    assert {leaf.dtype for (_, value), state in steps for leaf in [value, *leaves(state)]} == {torch.float32}
    rough[-1].sum().backward()
    assert {p.grad.dtype for p in models[1].parameters() if p.grad is not None} == {torch.float32}
