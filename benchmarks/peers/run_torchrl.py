"""TorchRL's collectors, and PPO with its losses as its own scripts put them together.  SETTINGS-AS-JSON."""

import json
import sys
from functools import partial
from typing import Any

import gymnasium as gym
import null_env
import torch
import torchrl
from gate import Gate
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import DoubleToFloat, ExplorationType, GymEnv, GymWrapper, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE


def make_one(env_id: str) -> Any:
    """One environment."""
    if env_id == "Pong":
        import ale_py
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        gym.register_envs(ale_py)
        env = FrameStackObservation(AtariPreprocessing(gym.make("PongNoFrameskip-v4")), 4)
        return GymWrapper(env, categorical_action_encoding=True)
    if env_id == null_env.ID:
        return GymWrapper(null_env.NullEnv())
    return GymEnv(env_id, categorical_action_encoding=True)


def make_envs(env_id: str, num_envs: int) -> Any:
    """Several in one process, with float32 observations and the sums of rewards."""
    envs = SerialEnv(num_envs, partial(make_one, env_id))
    transforms = [RewardSum()] if env_id == "Pong" else [RewardSum(), DoubleToFloat()]
    result = TransformedEnv(envs)
    for transform in transforms:
        result.append_transform(transform)
    return result


class Pooled(nn.Module):
    """Every eighth pixel of an image."""

    def forward(self, image: Tensor) -> Tensor:
        return image[..., 2::8, 2::8][..., :10, :10].flatten(-3).float() / 255


def make_modules(env_id: str, sizes: list[int]) -> tuple[Any, Any]:
    """Policy and value, two networks."""
    env = make_envs(env_id, 1)
    key = "pixels" if "pixels" in env.observation_spec.keys() else "observation"  # noqa: SIM118
    shape, action = env.observation_spec[key].shape[1:], env.action_spec_unbatched
    num_inputs = 400 if env_id == "Pong" else shape[0]
    is_box = action.dtype.is_floating_point
    num_outputs = action.shape[-1] if is_box else int(action.space.n)

    def network(outputs: int, *more: nn.Module) -> nn.Module:
        mlp = MLP(in_features=num_inputs, out_features=outputs, num_cells=sizes, activation_class=nn.Tanh)
        return nn.Sequential(*([Pooled()] if env_id == "Pong" else []), mlp, *more)

    if is_box:
        module = network(num_outputs, AddStateIndependentNormalScale(num_outputs))
        names, distribution = ["loc", "scale"], TanhNormal
        bounds = {"low": action.space.low, "high": action.space.high}
    else:
        module, names, distribution, bounds = network(num_outputs), ["logits"], torch.distributions.Categorical, {}
    policy = ProbabilisticActor(
        TensorDictModule(module, in_keys=[key], out_keys=names),
        in_keys=names,
        spec=action,
        distribution_class=distribution,
        distribution_kwargs=bounds,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )
    return policy, ValueOperator(network(1), in_keys=[key])


def make_collector(settings: dict[str, Any], policy: Any) -> Any:
    """In this process, or in several that wait for each other."""
    env_id, num_envs = settings["env_id"], settings["num_envs"]
    options = {"policy": policy, "frames_per_batch": num_envs * settings["num_steps"], "total_frames": -1}
    if settings["vector"] == "serial":
        return Collector(make_envs(env_id, num_envs), **options)
    workers = settings["num_workers"]
    make = partial(make_envs, env_id, num_envs // workers)
    return MultiSyncCollector([make] * workers, cat_results=0, **options)


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate = Gate(torchrl.__version__)
    policy, value = make_modules(settings["env_id"], settings["hidden_sizes"])
    policy, value = policy.to(settings["device"]), value.to(settings["device"])
    collector = make_collector(settings, policy)
    learn = make_update(settings, policy, value) if settings["what"] == "train" else None
    total = 0
    gate.tick(total)
    for data in collector:
        if learn is not None:
            learn(data)
            collector.update_policy_weights_()
        total += data.numel()
        gate.tick(total)


def make_update(settings: dict[str, Any], policy: Any, value: Any) -> Any:
    """All epochs of PPO on one batch."""
    advantage = GAE(gamma=settings["discount"], lmbda=settings["gae_lambda"], value_network=value, average_gae=False)
    loss_module = ClipPPOLoss(
        policy,
        value,
        clip_epsilon=settings["clip_range"],
        entropy_coeff=settings["entropy_coeff"],
        critic_coeff=settings["value_loss_coeff"],
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    adam = torch.optim.Adam(loss_module.parameters(), lr=settings["learning_rate"], eps=1e-5)
    size = settings["minibatch_size"]
    rows = settings["num_envs"] * settings["num_steps"]
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(rows), sampler=SamplerWithoutReplacement(), batch_size=size
    )

    def update(data: Any) -> None:
        for _ in range(settings["num_epochs"]):
            with torch.no_grad():
                data = advantage(data)
            buffer.extend(data.reshape(-1))
            for _ in range(rows // size):
                losses = loss_module(buffer.sample())
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), settings["max_grad_norm"])
                adam.step()
                adam.zero_grad()

    return update


if __name__ == "__main__":
    main()
