"""Every scheme, one file a family. A new scheme is a `Scheme` and a line in this dictionary."""

from __future__ import annotations

from midhaul.kit import Scheme
from midhaul.schemes.baseline import LOCAL, POOLED
from midhaul.schemes.co_learning import CO_LEARNING, CO_LEARNING_LOGITS
from midhaul.schemes.exchange import FEDDF, FEDMD
from midhaul.schemes.federated import FEDADAM, FEDAVG, FEDPROX
from midhaul.schemes.federated_body import FEDBABU
from midhaul.schemes.federated_foundation import FEDIT, FLEXLORA, HETLORA
from midhaul.schemes.federated_meta import ANIL, FOMAML, MAML, META_SGD, REPTILE
from midhaul.schemes.federated_split import FEDERATED_SPLIT, FEDERATED_SPLIT_V1, FEDERATED_SPLIT_V3
from midhaul.schemes.federated_transfer import FEDERATED_TRANSFER, FEDPER, FEDREP
from midhaul.schemes.group_knowledge import FEDGKT
from midhaul.schemes.group_split import GROUP_SPLIT
from midhaul.schemes.local_loss_split import CSE_FSL
from midhaul.schemes.mixed_split import FEDERATED_SPLIT_MIXED
from midhaul.schemes.mutual_transfer import FEDMKT
from midhaul.schemes.offsite_tuning import OFFSITE_TUNING
from midhaul.schemes.personal_meta import PER_FEDAVG, PER_FEDAVG_HF, PFEDME
from midhaul.schemes.sparse_transfer import SPARSE_TRANSFER
from midhaul.schemes.split import SPLIT, SPLIT_U
from midhaul.schemes.split_lora import SPLIT_LORA
from midhaul.schemes.stacked_adapters import FLORA
from midhaul.schemes.transfer import TRANSFER
from midhaul.schemes.vertical import VERTICAL
from midhaul.schemes.width import FEDROLEX, HETEROFL
from midhaul.schemes.zeroth_order import FEDKSEED

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        LOCAL,
        POOLED,
        FEDAVG,
        FEDPROX,
        FEDADAM,
        TRANSFER,
        SPARSE_TRANSFER,
        OFFSITE_TUNING,
        FEDERATED_TRANSFER,
        FEDPER,
        FEDREP,
        HETEROFL,
        FEDROLEX,
        FEDBABU,
        FEDDF,
        FEDMD,
        SPLIT,
        SPLIT_U,
        VERTICAL,
        FEDERATED_SPLIT,
        FEDERATED_SPLIT_V1,
        FEDERATED_SPLIT_V3,
        FEDERATED_SPLIT_MIXED,
        GROUP_SPLIT,
        CSE_FSL,
        SPLIT_LORA,
        FEDGKT,
        MAML,
        FOMAML,
        META_SGD,
        ANIL,
        REPTILE,
        PER_FEDAVG,
        PER_FEDAVG_HF,
        PFEDME,
        FEDIT,
        FLORA,
        FLEXLORA,
        HETLORA,
        FEDKSEED,
        FEDMKT,
        CO_LEARNING,
        CO_LEARNING_LOGITS,
    )
}
