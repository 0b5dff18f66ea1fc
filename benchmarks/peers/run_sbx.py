"""SBX's PPO and SAC (Stable-Baselines3 in JAX).  Runs in its own environment: SETTINGS-AS-JSON."""

import sbx
from sb3_work import main

if __name__ == "__main__":
    main({"ppo": sbx.PPO, "sac": sbx.SAC}, sbx.__version__)
