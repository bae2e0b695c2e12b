"""The pages in docs/ say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from pdjax.config import files as configs
from pdjax.sweep import spec as sweep_spec
from pdjax.training.epoch import make_schedule
from pdjax_envs import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("maker", ROOT / "docs/make_task_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_tasks_page_is_what_its_code_says(maker, name):
    written = (maker.PAGES / f"{name}.md").read_text()
    expected = maker.page(registry.make_task(name))
    assert written == expected, "run `python docs/make_task_pages.py`"
    assert (maker.PAGES / f"{name}.jpg").is_file()


@pytest.mark.parametrize("name", ["slurm_train.sh", "kubernetes_train.yaml", "tpu_pod.sh"])
def test_what_a_cluster_file_sets_can_be_trained(name):
    text = (ROOT / "docs/clusters" / name).read_text().replace("\\\n", " ")
    changes = re.findall(r"\s([a-z_]+\.[a-z_]+=\w+)", text)
    config = configs.load("fast/peg_diffusion", changes)
    assert len(changes) > 5 and make_schedule(config).updates > 0
    assert config.train.replay_capacity // config.train.num_envs > config.sac.n_step
    assert not config.train.num_envs % 32 and not config.sac.batch_size % 32  # on 32 devices


def test_cluster_files_of_kubernetes_are_yaml():
    for path in (ROOT / "docs/clusters").glob("*.yaml"):
        kinds = [document["kind"] for document in yaml.safe_load_all(path.read_text())]
        assert len(kinds) == 2


def test_the_sweep_in_the_docs_is_one(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    members, sweep = blocks
    (tmp_path / "members.yaml").write_text(members)
    assert len(configs.load_members(str(tmp_path / "members.yaml"))) == 4
    (tmp_path / "sweep.yaml").write_text(sweep)
    assert sweep_spec.read(tmp_path / "sweep.yaml").settings.samples == 20
