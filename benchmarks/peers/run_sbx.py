"""SBX's PPO (Stable-Baselines3 in JAX).  Runs in its own environment: SETTINGS-AS-JSON."""

import sbx
from sb3_work import main

if __name__ == "__main__":
    main(sbx.PPO, sbx.__version__)
