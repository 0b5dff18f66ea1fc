"""Networks (`torch.nn.Module`), and nothing else."""

from rlsurreal.models.actor_critic import ActorCritic
from rlsurreal.models.conv import ImpalaResNet, MinAtarCnn, NatureCnn
from rlsurreal.models.critics import CriticEnsemble, QEnsemble
from rlsurreal.models.encoders import ObservationEncoder
from rlsurreal.models.heads import PolicyHead, ValueHead
from rlsurreal.models.mlp import Mlp, init_orthogonal
from rlsurreal.models.noisy import NoisyLinear
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.policies import DeterministicPolicy, StochasticPolicy
from rlsurreal.models.q_network import QNetwork
from rlsurreal.models.recurrent import Recurrent, RecurrentState
from rlsurreal.models.recurrent_critics import RecurrentCritics

__all__ = [
    "ActorCritic",
    "CriticEnsemble",
    "DeterministicPolicy",
    "StochasticPolicy",
    "ImpalaResNet",
    "MinAtarCnn",
    "Mlp",
    "NatureCnn",
    "NoisyLinear",
    "ObservationEncoder",
    "PolicyHead",
    "QEnsemble",
    "QNetwork",
    "Recurrent",
    "RecurrentCritics",
    "RecurrentState",
    "RunningNorm",
    "ValueHead",
    "init_orthogonal",
]
