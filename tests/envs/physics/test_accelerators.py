"""Programs for accelerators, lowered without one: nothing in them that a GPU or TPU would not run.

Runs in a process of its own: MJX must be asked for before JAX's CPU backend starts.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from pdjax.config import files as configs
from pdjax.training import build as training_build
from pdjax.training import compiled
from pdjax_envs.physics import mjx_flags
from tests.commands.test_cli import make_base_policy
from tests.envs.physics.test_mjx import run_child
from tests.envs.physics.test_warp import needs_warp


def build(engine):
    """A run with a diffusion policy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        make_base_policy(path)
        overrides = [f"base_policy.path={path}", f"task.physics={engine}", "sac.hidden=[32]"]
        return training_build.build(configs.load("peg_fast", overrides))


def functions(run):
    """Name -> (function, example arguments): an epoch, an evaluation, a step of one environment."""
    state = jax.eval_shape(compiled.make_init(run))
    env_state, _ = jax.eval_shape(run.env.reset, run.env.model, jax.random.key(0))
    action = jax.ShapeDtypeStruct((run.env.task.act_dim,), "float32")

    def evaluate(frozen, actor, key):
        def choose(obs, base_action):
            return run.sac.act_deterministic(actor, obs, base_action)

        return run.rollout.evaluate(frozen, choose, 0.1, key, 16)

    return {
        "epoch": (run.trainer.train_epoch, (run.frozen, state)),
        "evaluation": (evaluate, (run.frozen, state.sac.actor, jax.random.key(0))),
        "step": (run.env.step, (run.env.model, env_state, action)),
    }


def findings(text):
    """What a lowered program has that matters here."""
    lines = [line for line in text.splitlines() if " stablehlo." in line]
    products = [line for line in lines if "stablehlo.dot_general" in line]
    text = "\n".join(line.split(" loc(")[0] for line in lines)
    kernels = set(re.findall(r"custom_call @(\w+)", text))
    return {
        "callbacks": len(re.findall(r"custom_call @\w*(?:callback|python|host)", text)),
        "double": len(re.findall(r"[x<]f64", text)),
        "dynamic": len(re.findall(r"tensor<[^>]*\?", text)),
        "products": len(products),
        "exact": sum("precision = [HIGH" in line for line in products),
        # XLA itself allocates memory that is not initialised, which JAX 0.12 asks for in scans.
        "kernels": sorted(kernels - {"AllocateBuffer"}),
    }


def _child(engine, *platforms):
    if engine != "native":
        mjx_flags.prepare()
    found = {}
    for name, (function, arguments) in functions(build(engine)).items():
        for platform in platforms:
            if engine == "mjx":
                text = jax.export.export(jax.jit(function), platforms=[platform])(
                    *arguments
                ).mlir_module()
            else:  # with calls that jax.export does not promise to keep
                traced = jax.jit(function).trace(*arguments)
                text = traced.lower(lowering_platforms=(platform,)).as_text()
            found[f"{name} {platform}"] = findings(text)
    print(json.dumps(found))


def check(found):
    """Nothing that an accelerator cannot do, and physics in (nearly) whole float32 numbers."""
    for name, program in found.items():
        assert not program["callbacks"], name
        assert not program["double"], name
        assert not program["dynamic"], name
    for name, program in found.items():
        if name.startswith("step"):
            assert program["exact"] == program["products"], name
        else:  # networks may round
            assert program["exact"] < program["products"], name


def test_mjx_lowers_for_gpus_and_tpus():
    found = json.loads(run_child("_child", "mjx", "cuda", "tpu", limit_s=400, program=__file__))
    assert len(found) == 6
    check(found)
    assert found["step tpu"]["products"] > 0
    assert found["epoch tpu"]["kernels"] == []


@needs_warp
def test_warp_lowers_for_gpus():
    found = json.loads(run_child("_child", "warp", "cuda", limit_s=400, program=__file__))
    check(found)
    assert any("callable" in kernel for kernel in found["step cuda"]["kernels"])


def test_the_check_finds_what_it_looks_for():
    found = json.loads(run_child("_child", "native", "cpu", limit_s=400, program=__file__))
    with pytest.raises(AssertionError, match="epoch cpu"):
        check(found)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
