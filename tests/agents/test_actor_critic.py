"""The actor-critic agent: seeds, actions within bounds, copies that follow, saving, and models of the user's own."""

from __future__ import annotations

import importlib.util
import math
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch import nn

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, NoiseSpec, Spaces
from rlsurreal.utils.namedarraytuple import leaves, tree_map
from rlsurreal.utils.spaces import null_value, policy_space
from rlsurreal.utils.torch_tree import to_torch

torch.set_num_threads(1)
OBSERVATION = gs.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "discrete": gs.Discrete(3, start=2),
    "multi_discrete": gs.MultiDiscrete([2, 5, 3], start=[0, 1, -1]),
    "multi_binary": gs.MultiBinary((2, 2)),
    "box": gs.Box(np.array([-3, 10], np.float32), np.array([1, 11], np.float32)),
    "double": gs.Box(-0.1, 0.3, (2, 2), np.float64),
    "half_bounded": gs.Box(np.array([0, -np.inf, -1]), np.array([np.inf, 2, 1]), dtype=np.float32),
    "nested": gs.Dict(
        {
            "move": gs.Box(-2, 5, (2,)),
            "rest": gs.Tuple([gs.Discrete(4, start=-1), gs.Dict({"keys": gs.MultiBinary(3)})]),
        }
    ),
}


class Asks(gym.Env[np.ndarray, Any]):
    """Random observations far from 0; refuses actions that are not in its action space."""

    def __init__(self, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = OBSERVATION, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self._observation(), 1.0, self.steps == 7, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.normal(0, 10, 3).astype(np.float32)


def make_agent(action: gym.Space = ACTIONS["discrete"], *, seed: int = 0, **settings: Any) -> ActorCriticAgent:
    model = {"hidden_sizes": (16,), "recurrent_size": 8, **settings.pop("model", {})}
    agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=model), **settings)
    agent.initialize(Spaces(observation=OBSERVATION, action=policy_space(action)), seed=seed)
    return agent


def random_noise(spec: NoiseSpec, num_envs: int, seed: int = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return Noise(
        torch.randn(num_envs, spec.normal, generator=generator), torch.rand(num_envs, spec.uniform, generator=generator)
    )


def random_inputs(agent: ActorCriticAgent, num_envs: int, seed: int = 0) -> AgentInputs:
    observation = torch.randn(num_envs, 3, generator=torch.Generator().manual_seed(seed))
    if not agent.uses_previous:
        return AgentInputs(observation)
    null = to_torch(tree_map(lambda a: np.repeat(a[None], num_envs, 0), null_value(agent.spaces.action)))
    return AgentInputs(observation, null, torch.zeros(num_envs))


def assert_same(one: Any, other: Any) -> None:
    for x, y in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(x, y)


def differ(one: ActorCriticAgent, other: ActorCriticAgent) -> bool:
    """Whether the drawn weights differ (biases start from 0 in all)."""
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return any(not torch.equal(x, y) for x, y in pairs)


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("recurrent", [None, "lstm"])
def test_weights_depend_on_the_seed_alone(recurrent):
    first = make_agent(seed=3, model={"recurrent": recurrent})
    torch.manual_seed(12345)
    np.random.seed(6)
    assert not differ(first, make_agent(seed=3, model={"recurrent": recurrent}))
    assert differ(first, make_agent(seed=4, model={"recurrent": recurrent}))


def test_building_leaves_other_random_streams_alone(monkeypatch):
    def refuse(_seed: int) -> None:
        raise AssertionError("the accelerator's random streams were seeded, and nobody restores them")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    make_agent(seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_weights_are_drawn_on_the_cpu_wherever_tensors_are_made_by_default():
    usual = make_agent(seed=3)
    with torch.device("meta"):
        elsewhere = make_agent(seed=3)
    assert not differ(usual, elsewhere)


@pytest.mark.parametrize(
    "kwargs", [{"hiden_sizes": (8,)}, {"hidden_sizes": (8,), "dropout": 0.1}, {"observation_space": OBSERVATION}]
)
def test_wrong_model_arguments_are_named_with_those_there_are(kwargs):
    wrong = next(name for name in kwargs if name != "hidden_sizes")
    with pytest.raises(ValueError, match=rf"fit ActorCritic: .*'{wrong}'; .*hidden_sizes"):
        agent = ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs=kwargs))
        agent.initialize(Spaces(observation=OBSERVATION, action=gs.Discrete(2)), seed=0)


def test_missing_model_argument_is_named():
    class Needy(nn.Module):
        def __init__(self, observation_space: Any, distribution: Any, *, width: int) -> None:
            super().__init__()

    with pytest.raises(ValueError, match="Needy.*'width'"):
        ModelSpec(cls=Needy).build(observation_space=OBSERVATION, distribution=None, seed=0)


def test_wrong_value_of_a_model_argument_is_explained_by_the_model():
    with pytest.raises(ValueError, match="transformer"):
        make_agent(model={"recurrent": "transformer"})


def test_squashing_needs_bounds():
    with pytest.raises(ValueError, match="squash"):
        make_agent(ACTIONS["half_bounded"], squash=True)


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("std", ["free", "state"])
def test_every_action_is_in_the_environments_space(action, squash, std):
    if squash and action is ACTIONS["half_bounded"]:
        pytest.skip("cannot be squashed")
    agent = ActorCriticAgent(
        model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (8,), "recurrent": "gru", "recurrent_size": 4}),
        squash=squash,
        std=std,
        init_std=5.0,  # far over the bounds
    )
    sampler = SerialSampler(env=GymnasiumEnv(factory=Asks, kwargs={"action_space": action}), batch=BatchSpec(20, 3))
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    samples = sampler.obtain()
    assert (samples.env.reward[:-1][samples.env.valid[:-1]] == 1).all()
    assert samples.agent.agent_info.log_prob[:-1].isfinite().all()
    if squash and action is ACTIONS["box"]:
        assert samples.agent.action[:-1].abs().max() <= 1
    sampler.close()


def test_recorded_information_belongs_to_the_recorded_action():
    agent = make_agent(ACTIONS["nested"], squash=True)
    inputs = random_inputs(agent, 5)
    step, state = agent.act(inputs, None, random_noise(agent.noise_spec, 5))
    (params, value), _ = agent.module(inputs, None)
    assert state is None
    assert_same(step.agent_info.params, params)
    assert torch.equal(step.agent_info.value, value) and torch.equal(agent.value(inputs, None), value)
    assert torch.equal(step.agent_info.log_prob, agent.distribution.log_prob(params, step.action))


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_without_noise_actions_are_the_most_likely_ones(action):
    agent = make_agent(action)
    inputs = random_inputs(agent, 4)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        first = agent.act(inputs, None, None)[0]
        torch.manual_seed(2)
        assert_same(agent.act(inputs, None, None)[0], first)
    for seed in range(50):
        step, _ = agent.act(inputs, None, random_noise(agent.noise_spec, 4, seed))
        assert (step.agent_info.log_prob <= first.agent_info.log_prob + 1e-6).all()


def test_chance_comes_from_the_noise_alone():
    agent = make_agent(ACTIONS["nested"])
    inputs = random_inputs(agent, 64)
    steps = []
    for torch_seed, noise_seed in ((1, 5), (2, 5), (2, 6)):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(torch_seed)
            steps.append(agent.act(inputs, None, random_noise(agent.noise_spec, 64, noise_seed))[0])
    assert_same(steps[0], steps[1])
    assert not torch.equal(steps[0].action.move, steps[2].action.move)
    assert not torch.equal(steps[0].action.rest.f0, steps[2].action.rest.f0)


def test_discrete_actions_have_the_policys_frequencies():
    agent = make_agent(gs.Discrete(3))
    with torch.no_grad():
        agent.module.policy_head.linear.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
        agent.module.policy_head.linear.weight.zero_()
    step, _ = agent.act(random_inputs(agent, 20_000), None, random_noise(agent.noise_spec, 20_000))
    weights = [math.exp(x) for x in (0.0, 1.0, -1.0)]
    for k, weight in enumerate(weights):
        assert (step.action == k).float().mean().item() == pytest.approx(weight / sum(weights), abs=0.015)


def test_state_is_an_argument_and_a_result():
    agent = make_agent(model={"recurrent": "lstm"})
    inputs, noise = random_inputs(agent, 2), random_noise(agent.noise_spec, 2)
    null = agent.initial_state(2)
    assert agent.uses_previous and all((leaf == 0).all() for leaf in leaves(null))
    step, state = agent.act(inputs, null, noise)
    assert all((leaf == 0).all() for leaf in leaves(null)), "the caller's state was written to"
    again, _ = agent.act(inputs, null, noise)
    assert_same(step, again)
    later, _ = agent.act(inputs, state, noise)
    assert not torch.equal(later.agent_info.value, step.agent_info.value)


def test_agents_without_memory_need_no_state():
    agent = make_agent()
    assert agent.initial_state(4) is None and not agent.uses_previous


# ---------------------------------------------------------------- copies


def change(agent: ActorCriticAgent, seed: int = 0) -> None:
    """Move every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in agent.tensors().values():
            tensor += torch.rand(tensor.shape, generator=generator).to(tensor.dtype)


def test_copies_take_what_was_published_and_nothing_else():
    learner = make_agent(seed=0, model={"normalize_observation": True})
    copies = [make_agent(seed=seed, model={"normalize_observation": True}) for seed in (1, 2)]
    inputs, noise = random_inputs(learner, 6), random_noise(learner.noise_spec, 6)
    change(learner)
    link = learner.share()
    assert learner.share() is link
    for copy in copies:
        copy.follow(link)
        assert copy.version == 0
        assert_same(copy.act(inputs, None, noise)[0], learner.act(inputs, None, noise)[0])
    published = learner.act(inputs, None, noise)[0]
    change(learner, seed=1)
    copies[0].pull()
    assert_same(copies[0].act(inputs, None, noise)[0], published)
    learner.publish(1)
    assert copies[0].version == 0, "a copy changes only when it pulls"
    assert_same(copies[0].act(inputs, None, noise)[0], published)
    learner.publish(2)
    copies[0].pull()
    assert (copies[0].version, copies[1].version, learner.version) == (2, 0, 2)
    assert_same(copies[0].act(inputs, None, noise)[0], learner.act(inputs, None, noise)[0])
    for name, tensor in learner.tensors().items():  # statistics of the normalizer among them
        assert torch.equal(copies[0].tensors()[name], tensor), name


def test_copies_keep_no_gradients_and_the_learner_does():
    learner, copy = make_agent(), make_agent()
    copy.follow(learner.share())
    assert all(parameter.requires_grad for parameter in learner.module.parameters())
    assert not any(parameter.requires_grad for parameter in copy.module.parameters())


def test_publishing_before_sharing_is_not_lost():
    learner, copy = make_agent(seed=0), make_agent(seed=1)
    learner.publish(7)
    copy.follow(learner.share())
    assert copy.version == 7 and not differ(learner, copy)


def test_publishing_other_parameters_under_the_same_version_is_not_lost():
    learner, copy = make_agent(seed=0), make_agent(seed=1)
    copy.follow(learner.share())
    change(learner)
    learner.publish(0)
    copy.pull()
    assert copy.version == 0 and not differ(learner, copy)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_saved_and_loaded_agents_act_alike(recurrent):
    saved, loaded = (
        make_agent(ACTIONS["nested"], seed=seed, model={"recurrent": recurrent, "normalize_observation": True})
        for seed in (0, 1)
    )
    saved.update_normalizer(torch.randn(5, 4, 3) * 3 + 1, torch.ones(5, 4, dtype=torch.bool))
    saved.publish(9)
    state = pickle.loads(pickle.dumps(saved.state_dict()))
    inputs, noise = random_inputs(saved, 6), random_noise(saved.noise_spec, 6)
    expected = saved.act(inputs, saved.initial_state(6), noise)
    change(saved)
    loaded.load_state_dict(state)
    assert loaded.version == 9
    assert_same(loaded.act(inputs, loaded.initial_state(6), noise)[0], expected[0])


def test_saved_state_does_not_change_with_the_agent():
    agent = make_agent()
    state = agent.state_dict()
    before = {name: tensor.clone() for name, tensor in state["module"].items()}
    change(agent)
    assert all(torch.equal(before[name], tensor) for name, tensor in state["module"].items())


def test_loading_reaches_the_copies():
    saved, learner, copy = make_agent(seed=0), make_agent(seed=1), make_agent(seed=2)
    saved.publish(5)
    copy.follow(learner.share())
    learner.load_state_dict(saved.state_dict())
    copy.pull()
    assert copy.version == 5 and not differ(copy, saved)


@pytest.mark.parametrize(("there", "here", "message"), [
    ((16,), (8,), r"layers.0.weight is \(16, 3\) there and \(8, 3\) here \(and \d more\); .* settings of agent.model"),
    ((16,), (16, 16), r"there is no actor.mlp.layers.\d.weight there"),
    ((16, 16), (16,), r"there is no actor.mlp.layers.\d.weight here"),
])  # fmt: skip
def test_a_checkpoint_of_another_network_says_what_differs(there, here, message):
    saved, agent = (make_agent(model={"hidden_sizes": sizes}) for sizes in (there, here))
    with pytest.raises(ValueError, match=f"the checkpoint's network has other shapes: .*{message}"):
        agent.load_state_dict(saved.state_dict())


# ---------------------------------------------------------------- normalizing, and models of the user's own


def test_normalizer_takes_in_valid_rows_only():
    agent = make_agent(model={"normalize_observation": True})
    observation = torch.randn(6, 4, 3) * 5 + 2
    valid = torch.rand(6, 4) < 0.7
    agent.update_normalizer(torch.where(valid.unsqueeze(-1), observation, torch.nan), valid)
    rows = [observation[t, b].tolist() for t in range(6) for b in range(4) if valid[t, b]]
    means, stds = np.mean(rows, 0), np.std(rows, 0)
    normalized = agent.module.normalizer(observation)
    expected = (observation - torch.tensor(means)) / torch.tensor(stds)
    torch.testing.assert_close(normalized, expected.float(), atol=1e-4, rtol=1e-4)


def test_model_of_the_users_own_acts_and_keeps_no_normalizer():
    path = Path(__file__).parents[2] / "examples" / "3_custom_env_and_model.py"
    spec = importlib.util.spec_from_file_location("example_3", path)
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    agent = ActorCriticAgent(model=ModelSpec(cls=example.DifferenceModel, kwargs={"hidden_size": 5}))
    sampler = SerialSampler(env=GymnasiumEnv(factory=example.Reach), batch=BatchSpec(10, 2))
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    samples = sampler.obtain()
    assert isinstance(agent.module, example.DifferenceModel) and agent.module.policy[0].out_features == 5
    (params, value), _ = agent.module(AgentInputs(samples.env.observation[:10]))
    torch.testing.assert_close(value, samples.agent.agent_info.value[:10])
    torch.testing.assert_close(params.mean, samples.agent.agent_info.params.mean[:10])
    agent.update_normalizer(samples.env.observation[:10], samples.env.valid[:10])  # nothing to update
    sampler.close()
    with pytest.raises(ValueError, match="fit DifferenceModel: .*'hidden'; .*: hidden_size$"):
        ModelSpec(cls=example.DifferenceModel, kwargs={"hidden": 5}).build(
            observation_space=None, distribution=None, seed=0
        )
