"""Where files that processes map may lie, and how much memory may be taken: as the system says it."""

import logging
import tempfile
from pathlib import Path

import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.stores import StoreError, open_store
from logitbank.stores import folders as places
from logitbank.stores.folders import local_folder, network_kind
from logitbank.stores.read import memory
from logitbank.stores.read.memory import available_memory, check_memory, machine_memory
from tests.sharing import make_store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in a home that the system says to be on NFS, and a temporary folder that is not."""
    home, mounts = tmp_path / "my home", tmp_path / "mounts"
    escaped = str(home).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nautofs {escaped} autofs rw 0 0\nserver:/home {escaped} nfs4 rw 0 0\n")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(places, "_MOUNTS", mounts)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("LOGITBANK_CACHE", str(home / "cache"))
    monkeypatch.delenv("LOGITBANK_LOCAL", raising=False)
    places._instead_of.cache_clear()
    return home


def test_slabs_never_go_to_a_home_on_nfs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(make_store(tmp_path / "s.zarr", ("a",)))
    answers = StoredAnswers(store, tail="uniform")
    answers.logits(torch.arange(5), 0)
    (own,) = (tmp_path / "tmp").iterdir()
    assert len(list((own / "slabs").glob("*.slab"))) == 1
    assert not home.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "network file system (nfs4)" in caplog.text
    assert "LOGITBANK_LOCAL" in caplog.text
    answers.close()
    monkeypatch.setenv("LOGITBANK_LOCAL", str(tmp_path / "disk"))
    answers = StoredAnswers(store, tail="uniform")
    answers.logits(torch.arange(5), 0)
    assert len(list((tmp_path / "disk" / "slabs").glob("*.slab"))) == 1
    answers.close()


def test_a_named_folder_on_a_network_file_system_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITBANK_LOCAL", str(home / "x"))
    with pytest.raises(StoreError, match=r"LOGITBANK_LOCAL is .*my home/x.*\(nfs4\); name a folder on a disk"):
        local_folder("slabs")


def test_a_temporary_folder_that_others_may_write_is_refused(home: Path, tmp_path: Path) -> None:
    local_folder("slabs")
    places._instead_of.cache_clear()
    (own,) = (tmp_path / "tmp").iterdir()
    own.chmod(0o777)
    with pytest.raises(StoreError, match="open to others; set LOGITBANK_LOCAL"):
        local_folder("slabs")


def test_the_last_and_longest_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text("a / nfs rw 0 0\nb /x ext4 rw 0 0\nc /x/y lustre rw 0 0\nd /x/y/z tmpfs rw 0 0\n")
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "mounts")
    found = [network_kind(Path(path)) for path in ("/w", "/x", "/xy", "/x/y/w", "/x/y/z/w")]
    assert found == ["nfs", "", "nfs", "lustre", ""]
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "none")
    assert network_kind(Path("/w")) == ""


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory() > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 2**20
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    assert available_memory() == machine_memory() == 2**20
    with pytest.raises(StoreError, match="needs 0.0 GiB of memory"):
        check_memory(2**20 + 1, "a view")


def test_the_second_version_counts_every_group_above_and_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    (tmp_path / "job" / "memory.current").write_text("700000\n")
    (tmp_path / "job" / "memory.stat").write_text("anon 500000\ninactive_file 150000\n")
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    assert machine_memory() == 1_000_000
    assert available_memory() == 450_000
    (tmp_path / "job" / "step" / "memory.max").write_text("400000\n")
    (tmp_path / "job" / "step" / "memory.current").write_text("500000\n")
    assert machine_memory() == 400_000
    assert available_memory() == 0


def test_the_first_version_counts_the_groups_below_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("7:cpu,cpuacct:/other\n4:hugetlb,memory:/slurm/job_1\n0::/\n")
    (tmp_path / "memory" / "slurm" / "job_1").mkdir(parents=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    group = tmp_path / "memory" / "slurm" / "job_1"
    (group / "memory.limit_in_bytes").write_text("500000\n")
    (group / "memory.usage_in_bytes").write_text("200000\n")
    (group / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 50000\n")
    assert machine_memory() == 500_000
    assert available_memory() == 350_000
    (tmp_path / "own").write_text("4:memory:/docker/1234\n")  # as a container may see it: its own group is the top
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("600000\n")
    assert machine_memory() == 600_000
