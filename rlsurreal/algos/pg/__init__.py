"""Policy gradients: what A2C and PPO share is in `on_policy`."""
