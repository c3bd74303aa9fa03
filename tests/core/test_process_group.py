"""What the core asks torch.distributed, on every version of torch."""

import pytest

from gather_core.process_group import store_of


class OldGroup:
    """A ProcessGroup of torch 2.8, which does not tell its store itself."""


def test_the_store_of_a_group_is_found_where_the_group_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._C._distributed_c10d import HashStore
    from torch.distributed import distributed_c10d

    group, store = OldGroup(), HashStore()
    monkeypatch.setitem(distributed_c10d._world.pg_map, group, ("gloo", store))  # type: ignore[misc]
    assert store_of(group) is store
