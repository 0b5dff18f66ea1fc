"""PPO in one file of PyTorch, after the recipe that CleanRL documents.  Its own environment: SETTINGS-AS-JSON.

CleanRL is scripts to copy from, not a library to import; this is such a script, written here: one loop, storage as
tensors ``[T, B]``, one forward pass a step, advantages in a Python loop over time, shuffled minibatches,
`clip_grad_norm_` and Adam.  Gymnasium's `SyncVectorEnv` with the recipe's wrappers (statistics of episodes, clipped
actions), or EnvPool.  Eager; or, as LeanRL changed it, with `torch.compile` around the policy, the advantages and a
minibatch with its backward pass and Adam.  SAC and DQN are in `single_file_replayed`.
"""

import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import single_file_replayed
import torch
from gate import Gate
from torch import Tensor, nn
from torch.distributions import Categorical, Normal


def make_envs(settings: dict[str, Any]) -> Any:
    """A vector environment of Gymnasium or EnvPool."""
    env_id, num_envs = settings["env_id"], settings["num_envs"]
    if settings["vector"] == "envpool":
        import envpool

        pong = {"episodic_life": True, "reward_clip": True}
        task_id, options = ("Pong-v5", pong) if env_id == "Pong" else (env_id, {})
        return envpool.make(task_id, "gymnasium", num_envs=num_envs, seed=settings["seed"], **options)

    def make_one() -> gym.Env[Any, Any]:
        if env_id == "Pong":
            import ale_py
            from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

            gym.register_envs(ale_py)
            env = gym.wrappers.RecordEpisodeStatistics(gym.make("PongNoFrameskip-v4"))
            return FrameStackObservation(AtariPreprocessing(env, terminal_on_life_loss=True), 4)
        env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))
        return gym.wrappers.ClipAction(env) if isinstance(env.action_space, gym.spaces.Box) else env

    mode = gym.vector.AutoresetMode.SAME_STEP
    return gym.vector.SyncVectorEnv([make_one] * num_envs, autoreset_mode=mode)


def layer(module: Any, gain: float = 2**0.5) -> Any:
    """Orthogonal weights, zero biases."""
    nn.init.orthogonal_(module.weight, gain)
    nn.init.zeros_(module.bias)
    return module


class MlpAgent(nn.Module):
    """Two networks, and a standard deviation that does not depend on the state."""

    def __init__(self, num_inputs: int, num_actions: int, sizes: list[int]) -> None:
        super().__init__()
        widths = [num_inputs, *sizes]

        def make(num_outputs: int, gain: float) -> nn.Sequential:
            hidden = [part for a, b in zip(widths, sizes) for part in (layer(nn.Linear(a, b)), nn.Tanh())]
            return nn.Sequential(*hidden, layer(nn.Linear(sizes[-1], num_outputs), gain))

        self.actor, self.critic = make(num_actions, 0.01), make(1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(num_actions))

    def value(self, x: Tensor) -> Any:
        return self.critic(x).squeeze(-1)

    def forward(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = Normal(self.actor(x), self.log_std.exp())
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(-1), policy.entropy().sum(-1), self.value(x)


class CnnAgent(nn.Module):
    """One Nature CNN with two heads."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            layer(nn.Conv2d(4, 32, 8, 4)),
            nn.ReLU(),
            layer(nn.Conv2d(32, 64, 4, 2)),
            nn.ReLU(),
            layer(nn.Conv2d(64, 64, 3)),
            nn.ReLU(),
            nn.Flatten(),
            layer(nn.Linear(64 * 49, 512)),
            nn.ReLU(),
        )
        self.actor, self.critic = layer(nn.Linear(512, num_actions), 0.01), layer(nn.Linear(512, 1), 1.0)

    def value(self, x: Tensor) -> Any:
        return self.critic(self.body(x / 255.0)).squeeze(-1)

    def forward(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = self.body(x / 255.0)
        policy = Categorical(logits=self.actor(hidden))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden).squeeze(-1)


class Ppo:
    """The script's two halves."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.s = settings
        self.device = torch.device(settings["device"])
        self.envs = make_envs(settings)
        self.is_image = settings["env_id"] == "Pong"
        space = getattr(self.envs, "single_observation_space", self.envs.observation_space)
        actions = getattr(self.envs, "single_action_space", self.envs.action_space)
        if self.is_image:
            self.agent: Any = CnnAgent(int(actions.n)).to(self.device)
        else:
            self.agent = MlpAgent(space.shape[0], actions.shape[0], settings["hidden_sizes"]).to(self.device)
        self.adam = torch.optim.Adam(self.agent.parameters(), lr=settings["learning_rate"], eps=1e-5)
        self.act: Any = self.agent
        if settings.get("compile"):
            torch.distributions.Distribution.set_default_validate_args(False)  # it reads values
            rate = torch.tensor(settings["learning_rate"])
            self.adam = torch.optim.Adam(self.agent.parameters(), lr=rate, eps=1e-5)
            self.act = torch.compile(self.agent)
            self.advantages = torch.compile(self.advantages)  # type: ignore[method-assign]
            self.minibatch = torch.compile(self.minibatch)  # type: ignore[method-assign]
        shape = (settings["num_steps"], settings["num_envs"])
        zeros = lambda *more: torch.zeros(*shape, *more, device=self.device)  # noqa: E731
        self.obs, self.actions = zeros(*space.shape), zeros(*actions.shape)
        self.log_probs, self.rewards, self.dones, self.values = zeros(), zeros(), zeros(), zeros()
        self.next_obs = self.tensor(self.envs.reset()[0])
        self.next_done = torch.zeros(settings["num_envs"], device=self.device)

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def rollout(self) -> None:
        """Fill the storage."""
        for t in range(self.s["num_steps"]):
            self.obs[t], self.dones[t] = self.next_obs, self.next_done
            with torch.no_grad():
                action, log_prob, _, value = self.act(self.next_obs)
            self.actions[t], self.log_probs[t], self.values[t] = action, log_prob, value
            answer = action.cpu().numpy()
            if self.s["vector"] == "envpool" and not self.is_image:
                answer = np.clip(answer, -1, 1).astype(np.float64)
            obs, reward, terminated, truncated, _ = self.envs.step(answer)
            self.rewards[t] = self.tensor(np.sign(reward) if self.is_image else reward)
            self.next_obs, self.next_done = self.tensor(obs), self.tensor(terminated | truncated)

    def advantages(self) -> tuple[Tensor, Tensor]:
        """Generalized advantage estimates and returns."""
        with torch.no_grad():
            next_value = self.agent.value(self.next_obs)
            result, last = torch.zeros_like(self.rewards), torch.zeros_like(next_value)
            for t in reversed(range(self.s["num_steps"])):
                is_last = t == self.s["num_steps"] - 1
                going_on = 1.0 - (self.next_done if is_last else self.dones[t + 1])
                following = next_value if is_last else self.values[t + 1]
                delta = self.rewards[t] + self.s["discount"] * following * going_on - self.values[t]
                last = delta + self.s["discount"] * self.s["gae_lambda"] * going_on * last
                result[t] = last
            return result, result + self.values

    def update(self) -> int:
        """All epochs; the number of minibatches."""
        advantages, returns = self.advantages()
        flat = [x.flatten(0, 1) for x in (self.obs, self.actions, self.log_probs, advantages, returns)]
        size, num_rows = self.s["minibatch_size"], len(flat[0])
        for _ in range(self.s["num_epochs"]):
            order = np.random.permutation(num_rows)
            for start in range(0, num_rows, size):
                self.minibatch(*(x[order[start : start + size]] for x in flat))
        return int(self.s["num_epochs"] * (num_rows // size))

    def minibatch(self, obs: Tensor, action: Tensor, old: Tensor, advantage: Tensor, returns: Tensor) -> None:
        """One step of Adam."""
        _, log_prob, entropy, value = self.agent(obs, action)
        ratio = (log_prob - old).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = ratio.clamp(1 - self.s["clip_range"], 1 + self.s["clip_range"])
        policy_loss = torch.max(-advantage * ratio, -advantage * clipped).mean()
        value_loss = 0.5 * (value - returns).square().mean()
        loss = policy_loss - self.s["entropy_coeff"] * entropy.mean() + self.s["value_loss_coeff"] * value_loss
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), self.s["max_grad_norm"])
        self.adam.step()


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate = Gate(torch.__version__.partition("+")[0])
    if settings["algo"] != "ppo":
        for total in single_file_replayed.run(settings, make_envs(settings)):  # for ever
            gate.tick(total)
    ppo = Ppo(settings)
    total = 0
    if settings["what"] == "update":
        ppo.rollout()
    while True:
        gate.tick(total)
        if settings["what"] == "update":
            total += ppo.update()
        else:
            ppo.rollout()
            ppo.update()
            total += settings["num_envs"] * settings["num_steps"]


if __name__ == "__main__":
    main()
