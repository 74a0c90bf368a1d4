"""Vertical federated learning: owners that hold different columns of the same people, and a party with the labels.

Split learning (O. Gupta, R. Raskar, "Distributed learning of deep neural network over multiple agents", 2018): every
owner has a bottom model, the label holder the top model. What passes between them are embeddings and their gradients.

    tables, labels      a party's own data
    keys, messages      who the parties are to each other, and all that they say
    aligning, batches   which rows are common, and in which order they are used
    bottom, top         the models and their steps
    fusion, cut         what the label holder sees of embeddings, and owners of gradients
    label_privacy, attacks, leakage     what labels are protected by, and what leaks all the same
    feature_owner, label_holder         the two kinds of party, which know nothing of Ray

``fedray.Vertical`` puts them together. Imports PyTorch, and no Ray.
"""

from fedray.vertical.bottom import Activations
from fedray.vertical.cut import Isotropic, MaxNorm, NoNoise
from fedray.vertical.fusion import Concat, MaskedSum
from fedray.vertical.models import adam, head, head_of, linear, mlp, mlp_of, sgd
from fedray.vertical.plans import LabelPrivacy
from fedray.vertical.records import EpochRecord, Leak

__all__ = [
    "Activations",
    "Concat",
    "EpochRecord",
    "Isotropic",
    "LabelPrivacy",
    "Leak",
    "MaskedSum",
    "MaxNorm",
    "NoNoise",
    "adam",
    "head",
    "head_of",
    "linear",
    "mlp",
    "mlp_of",
    "sgd",
]
