"""The files that shared memory lies in: they have no name, and nobody else gets at them."""

import os
from dataclasses import replace
from typing import Any

import pytest

from gather_core.errors import TransportError
from gather_transports import shared_file
from gather_transports.owned_descriptor import Descriptor
from shm_ranks import new_file


@pytest.mark.fault(35)
def test_a_file_that_others_may_read_is_refused() -> None:
    with new_file() as fd:
        os.fchmod(fd, 0o644)
        with pytest.raises(TransportError, match="mode 0644 instead of 0600"):
            shared_file.attach_file(shared_file.address_of(fd), writable=False)


@pytest.mark.fault(35)
def test_a_file_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_file() as fd:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        with pytest.raises(TransportError, match=r"belongs to user \d+, not to 4242"):
            shared_file.attach_file(shared_file.address_of(fd), writable=False)


@pytest.mark.fault(35)
def test_a_descriptor_that_is_something_else_by_now_is_refused_and_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_file() as fd:
        address = shared_file.address_of(fd)
    read_end, write_end = os.pipe()
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    try:
        with pytest.raises(TransportError, match="is not the memory that was announced"):
            shared_file.attach_file(replace(address, fd=read_end), writable=False)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_files_have_no_name_and_belong_to_this_user_alone(tmp_path: Any) -> None:
    for folder in ("", str(tmp_path)):
        fd = shared_file.create_file(folder)
        try:
            assert os.fstat(fd).st_mode & 0o777 == 0o600
            assert os.fstat(fd).st_nlink == 0
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_the_newest_flags_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    with new_file() as fd:
        assert os.fstat(fd).st_mode & 0o777 == 0o600


def test_a_descriptor_is_closed_behind_its_last_user() -> None:
    descriptor = Descriptor(shared_file.create_file(""))
    with descriptor as fd:
        descriptor.close()
        with pytest.raises(TransportError, match="the transport is closed"), descriptor:
            pass
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    descriptor.close()
