"""Which process this is, from the environment of whoever started it."""

from __future__ import annotations

import pytest
import torch

from w2sdiff.errors import InputError
from w2sdiff.jobs.accelerate import Process, process


def launched(rank, count, **more):
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    return {name: str(value) for name, value in ranks.items()} | more


def test_without_a_launcher_it_is_the_only_one():
    assert process({}) == Process(0, 1, "auto")
    assert process(launched(0, 1)) == Process(0, 1, "auto")
    assert process({}).is_main


def test_each_process_has_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [process(launched(rank, 3)).device for rank in range(3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]  # the third shares
    assert process(launched(1, 3, ACCELERATE_USE_CPU="true")).device == "cpu"


def test_the_rank_on_the_machine_decides_the_device_and_the_other_one_who_speaks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    second_machine = process({"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"})
    assert second_machine == Process(8, 16, "cuda:0")
    assert not second_machine.is_main


def test_mpi_is_understood_as_accelerate_does():
    names = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    found = process(names | {"ACCELERATE_USE_CPU": "true"})
    assert found == Process(1, 2, "cpu")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "first"}, "a whole number in RANK, got 'first'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "a rank below the number of processes, got 2 of 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "got -1 of 2"),
    ],
)
def test_nonsense_in_the_environment_is_refused(environment, words):
    with pytest.raises(InputError, match=words):
        process(environment)


def test_no_process_group_is_opened():
    process(launched(0, 2))
    assert not torch.distributed.is_initialized()
