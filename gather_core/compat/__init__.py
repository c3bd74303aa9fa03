"""Functions that take the place of existing ones: same names and arguments; what is wrong on one rank is raised on all.

`all_gather_list` is DPR's and fairseq's, on their wire; the others are torch.distributed's, each over a Gatherer.
"""

from gather_core.compat.drop_ins import (
    all_gather_list,
    all_gather_object,
    broadcast_object_list,
    gather_object,
)

__all__ = ["all_gather_list", "all_gather_object", "broadcast_object_list", "gather_object"]
