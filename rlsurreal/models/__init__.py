"""Networks (`torch.nn.Module`), and nothing else."""

from rlsurreal.models.actor_critic import ActorCritic
from rlsurreal.models.conv import ImpalaResNet, NatureCnn
from rlsurreal.models.encoders import ObservationEncoder
from rlsurreal.models.heads import PolicyHead, ValueHead
from rlsurreal.models.mlp import Mlp, init_orthogonal
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.recurrent import Recurrent, RecurrentState

__all__ = [
    "ActorCritic",
    "ImpalaResNet",
    "Mlp",
    "NatureCnn",
    "ObservationEncoder",
    "PolicyHead",
    "Recurrent",
    "RecurrentState",
    "RunningNorm",
    "ValueHead",
    "init_orthogonal",
]
