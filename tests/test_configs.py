"""Every accelerate config is read by accelerate's own parser, and holds no hyper-parameter."""

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from conftest import ROOT

FILES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
MACHINE = {
    "compute_environment", "debug", "distributed_type", "gpu_ids", "machine_rank", "mixed_precision", "num_machines",
    "num_processes", "use_cpu",
}  # fmt: skip


def test_all_are_found():
    assert [path.stem for path in FILES] == ["cpu", "gpu", "multi_gpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path):
    config = ClusterConfig.from_yaml_file(str(path))
    keys = {line.split(":")[0] for line in path.read_text().splitlines() if not line.startswith("#")}
    assert keys == MACHINE & keys and config.num_machines == 1
    assert config.distributed_type == {"multi_gpu": "MULTI_GPU"}.get(path.stem, "NO")
    assert f"accelerate launch --config_file accelerate_configs/{path.name} -m trainkit recipes/" in path.read_text()
