"""SAC and DQN in one file of eager PyTorch, after the recipes that CleanRL documents; run by `run_single_file`.

One loop, one environment, transitions in NumPy arrays drawn uniformly, everything a call of PyTorch of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Transitions:
    """The last ``capacity`` steps."""

    def __init__(self, capacity: int, obs_space: Any, action_space: Any, device: torch.device) -> None:
        obs_dtype = np.float32 if obs_space.dtype.kind == "f" else obs_space.dtype
        self._arrays = (
            np.zeros((capacity, *obs_space.shape), obs_dtype),
            np.zeros((capacity, *action_space.shape), action_space.dtype),
            np.zeros(capacity, np.float32),
            np.zeros(capacity, np.float32),
            np.zeros((capacity, *obs_space.shape), obs_dtype),
        )
        self._capacity, self._device, self._count = capacity, device, 0

    def add(self, *step: Any) -> None:
        """Observation, action, reward, whether it was the last, and the observation that follows."""
        for array, value in zip(self._arrays, step):
            array[self._count % self._capacity] = value
        self._count += 1

    def sample(self, num_rows: int) -> list[Tensor]:
        """The same of some steps."""
        rows = np.random.randint(0, min(self._count, self._capacity), num_rows)
        return [torch.as_tensor(array[rows], device=self._device) for array in self._arrays]


def _mlp(num_inputs: int, sizes: list[int], num_outputs: int | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip([num_inputs, *sizes], sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, *([] if num_outputs is None else [nn.Linear(sizes[-1], num_outputs)]))


class Critic(nn.Module):
    """Q of an observation and an action."""

    def __init__(self, num_inputs: int, sizes: list[int]) -> None:
        super().__init__()
        self.mlp = _mlp(num_inputs, sizes, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Any:
        return self.mlp(torch.cat([obs, action], 1)).squeeze(-1)


class Actor(nn.Module):
    """A squashed Gaussian whose standard deviation depends on the observation."""

    def __init__(self, num_inputs: int, num_actions: int, sizes: list[int]) -> None:
        super().__init__()
        self.mlp = _mlp(num_inputs, sizes)
        self.mean, self.log_std = nn.Linear(sizes[-1], num_actions), nn.Linear(sizes[-1], num_actions)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.mlp(obs)
        log_std = -5 + 3.5 * (torch.tanh(self.log_std(hidden)) + 1)
        normal = torch.distributions.Normal(self.mean(hidden), log_std.exp())
        draw = normal.rsample()
        action = torch.tanh(draw)
        return action, (normal.log_prob(draw) - torch.log(1 - action.square() + 1e-6)).sum(1)


class Sac:
    """Twin critics, a learned temperature, an update of everything after each step."""

    def __init__(self, settings: dict[str, Any], envs: Any) -> None:
        self.s, self.device = settings, torch.device(settings["device"])
        num_obs, num_actions = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
        sizes, rate = settings["hidden_sizes"], settings["learning_rate"]
        self.actor = Actor(num_obs, num_actions, sizes).to(self.device)
        critics = [Critic(num_obs + num_actions, sizes).to(self.device) for _ in range(4)]
        self.critics, self.targets = critics[:2], critics[2:]
        for critic, target in zip(self.critics, self.targets):
            target.load_state_dict(critic.state_dict())
        self.log_alpha = torch.zeros(1, requires_grad=True, device=self.device)
        self.target_entropy = -float(num_actions)
        self.critic_adam = torch.optim.Adam([p for critic in self.critics for p in critic.parameters()], lr=rate)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=rate)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=rate)

    def act(self, obs: Any) -> Any:
        """Actions ``[1, actions]``."""
        return self.actor(torch.as_tensor(obs, dtype=torch.float32, device=self.device))[0].detach().cpu().numpy()

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor) -> None:
        """One step of each optimizer, and of the targets."""
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_action, log_prob = self.actor(next_obs)
            following = torch.min(*(target(next_obs, next_action) for target in self.targets)) - alpha * log_prob
            target = reward + (1 - terminated) * self.s["discount"] * following
        critic_loss = sum((F.mse_loss(critic(obs, action), target) for critic in self.critics), torch.zeros(()))
        _step(self.critic_adam, critic_loss)
        own_action, log_prob = self.actor(obs)
        value = torch.min(*(critic(obs, own_action) for critic in self.critics))
        _step(self.actor_adam, (alpha * log_prob - value).mean())
        with torch.no_grad():
            log_prob = self.actor(obs)[1]
        _step(self.alpha_adam, (-self.log_alpha.exp() * (log_prob + self.target_entropy)).mean())
        for critic, follower in zip(self.critics, self.targets):
            for ours, theirs in zip(critic.parameters(), follower.parameters()):
                theirs.data.copy_(self.s["tau"] * ours.data + (1 - self.s["tau"]) * theirs.data)


class Dqn:
    """The Nature CNN, a copy as target, squared errors, an update every few steps."""

    def __init__(self, settings: dict[str, Any], envs: Any) -> None:
        self.s, self.device = settings, torch.device(settings["device"])
        self.num_actions = int(envs.single_action_space.n)
        self.network, self.target = (self._make().to(self.device) for _ in range(2))
        self.target.load_state_dict(self.network.state_dict())
        self.adam = torch.optim.Adam(self.network.parameters(), lr=settings["learning_rate"])
        self.num_updates = 0

    def _make(self) -> nn.Module:
        sizes = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)]
        convolutions = [part for layer in sizes for part in (layer, nn.ReLU())]
        return nn.Sequential(*convolutions, nn.Flatten(), _mlp(64 * 49, [512], self.num_actions))

    def act(self, obs: Any) -> Any:
        """Actions ``[1]``."""
        if np.random.random() < self.s["epsilon"]:
            return np.random.randint(self.num_actions, size=1)
        with torch.no_grad():
            return self.network(torch.as_tensor(obs, device=self.device) / 255.0).argmax(1).cpu().numpy()

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor) -> None:
        """One step, and now and then of the target."""
        with torch.no_grad():
            best = self.target(next_obs / 255.0).max(1).values
            target = reward + (1 - terminated) * self.s["discount"] * best
        chosen = self.network(obs / 255.0).gather(1, action.unsqueeze(1)).squeeze(1)
        _step(self.adam, F.mse_loss(chosen, target))
        self.num_updates += 1
        if self.num_updates % self.s["target_interval"] == 0:
            self.target.load_state_dict(self.network.state_dict())


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def run(settings: dict[str, Any], envs: Any) -> Iterator[int]:
    """Train for ever; yields the number of steps after each round of ``num_steps``, updates included."""
    learner: Any = {"sac": Sac, "dqn": Dqn}[settings["algo"]](settings, envs)
    spaces = envs.single_observation_space, envs.single_action_space
    replay = Transitions(settings["capacity"], *spaces, torch.device(settings["device"]))
    clip: Callable[[float], float] = np.sign if settings["env_id"] == "Pong" else float
    obs, total = envs.reset(seed=settings["seed"])[0], 0
    while True:
        for _ in range(settings["num_steps"]):
            explores = total < settings["min_steps"]
            action = envs.action_space.sample() if explores else learner.act(obs)
            next_obs, reward, terminated, truncated, info = envs.step(action)
            final = info["final_obs"][0] if terminated[0] or truncated[0] else next_obs[0]
            replay.add(obs[0], action[0], clip(reward[0]), terminated[0], final)
            obs, total = next_obs, total + 1
        if total >= settings["min_steps"]:
            for _ in range(round(settings["num_steps"] * settings["updates_per_step"])):
                learner.update(*replay.sample(settings["batch_size"]))
        yield total
