"""Compares the time of a gradient step of SAC: ours, PyTorch's and Brax's.

    pip install torch                # for the rows of PyTorch; a CPU build is enough here
    python benchmarks/update.py      # batch 1,024, networks 3 x 256, sizes of PegInsertionSide
    python benchmarks/update.py --batch-size 256 --no-torch

They take turns in one process, on one batch that lies on the device:

- ours: `SAC.update` of preset `pd`, a scan of updates in one program, as in training;
- torch, torch.compile: the same mathematics (`torch_sac.py`), one step after another from Python,
  after a check that its losses are the same;
- brax: the losses and optimiser steps of `brax.training.agents.sac`, joined as in its `sgd_step`,
  in a scan as well, at the same widths and batch.

The program also measures which share of the rate of a plain matrix product our update reaches, and
appends a row to `benchmarks/results/update.jsonl`.
"""

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import alternate, append_row, median, ratio

from pdjax.config import files as configs
from pdjax.config.schema import Config
from pdjax.devices import rates as roofline
from pdjax.devices.rates import timed
from pdjax.learner.gradient_step import SACState
from pdjax.learner.sac import make_hyperparams, make_sac
from pdjax.types import Batch

OBS, ACTION, HORIZON = 50, 7, 4  # PegInsertionSide, chunks of four
CHUNK = ACTION * HORIZON


def make_batch(size: int) -> Batch:
    """Returns random transitions."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(size, *shape)), jnp.float32)  # noqa: E731
    bounded = lambda: jnp.tanh(draw(CHUNK))  # noqa: E731
    return Batch(
        draw(OBS),
        bounded(),
        bounded(),
        draw(),
        jnp.full(size, 0.97),
        draw(OBS),
        bounded(),
        jnp.ones(size),
    )


class Ours:
    """Our learner on one batch."""

    def __init__(self, config: Config, batch: Batch):
        self.sac = make_sac(config.sac, config.decorator, OBS, CHUNK, CHUNK)
        self.hyperparams, self.batch = make_hyperparams(config, CHUNK), batch
        self.state = jax.jit(self.sac.init)(jax.random.key(0))

    def one(self, state: SACState, key: Any):
        """Takes a gradient step."""
        return self.sac.update(state, self.batch, self.hyperparams, key)

    def program(self, steps: int) -> Callable[[], Any]:
        """Makes a program that scans over `steps` gradient steps."""
        keys = jax.random.split(jax.random.key(1), steps)
        run = jax.jit(lambda state, keys: jax.lax.scan(self.one, state, keys))
        return lambda: run(self.state, keys)


def make_brax(config: Config, batch: Batch, steps: int) -> Callable[[], Any]:
    """Joins Brax's losses and steps as its `train.sgd_step` does."""
    import optax
    from brax.training import gradients, types
    from brax.training.agents.sac import losses, networks

    sac = config.sac
    network = networks.make_sac_networks(OBS, CHUNK, hidden_layer_sizes=sac.hidden)
    of: Any = losses.make_losses(network, 1.0, sac.gamma, CHUNK)  # alpha, critic, actor
    rates = sac.temperature_lr, sac.critic_lr, sac.actor_lr
    clip = optax.clip_by_global_norm(sac.max_grad_norm)
    txs = [optax.chain(clip, optax.adam(rate)) for rate in rates]
    alpha_update, critic_update, actor_update = (
        gradients.gradient_update_fn(loss, tx, pmap_axis_name=None)
        for loss, tx in zip(of, txs, strict=True)
    )
    extras: Any = {"state_extras": {"truncation": jnp.zeros_like(batch.reward)}}
    transitions = types.Transition(
        batch.obs,
        batch.residual_action,
        batch.reward,
        batch.discount,
        batch.next_obs,
        extras=extras,
    )
    policy_key, q_key = jax.random.split(jax.random.key(0))
    params = (jnp.zeros(()), network.q_network.init(q_key), network.policy_network.init(policy_key))
    opts = tuple(tx.init(part) for tx, part in zip(txs, params, strict=True))

    def one(carry, key):
        (alpha, q, policy), target, (alpha_opt, q_opt, policy_opt) = carry
        key_alpha, key_critic, key_actor = jax.random.split(key, 3)
        _, new_alpha, alpha_opt = alpha_update(
            alpha, policy, None, transitions, key_alpha, optimizer_state=alpha_opt
        )
        temperature = jnp.exp(alpha)
        loss, new_q, q_opt = critic_update(
            q, policy, None, target, temperature, transitions, key_critic, optimizer_state=q_opt
        )
        _, new_policy, policy_opt = actor_update(
            policy, None, q, temperature, transitions, key_actor, optimizer_state=policy_opt
        )
        target = jax.tree.map(lambda x, y: x * (1 - sac.tau) + y * sac.tau, target, new_q)
        return ((new_alpha, new_q, new_policy), target, (alpha_opt, q_opt, policy_opt)), loss

    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda carry, keys: jax.lax.scan(one, carry, keys))
    return lambda: run((params, params[1], opts), keys)


def make_torch(ours: Ours, config: Config, steps: int, compiled: bool) -> Callable[[], Any]:
    """Makes PyTorch's loop, after a check that its first losses equal ours."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch_sac import TorchSAC

    learner = TorchSAC(
        ours.state,
        config.sac,
        float(ours.hyperparams.residual_scale),
        float(ours.hyperparams.target_entropy),
        compiled,
    )
    batch = {name: torch.tensor(np.asarray(value)) for name, value in ours.batch._asdict().items()}
    key = jax.random.key(7)
    _, metrics = jax.jit(ours.one)(ours.state, jax.random.clone(key))
    shape = ours.batch.residual_action.shape
    next_key, actor_key, _ = jax.random.split(key, 3)  # as `gradient_step.update` splits it
    noises = [torch.tensor(np.array(jax.random.normal(k, shape))) for k in (next_key, actor_key)]
    losses = [float(loss) for loss in learner.update(batch, noises)]
    np.testing.assert_allclose(losses, [metrics["critic_loss"], metrics["actor_loss"]], rtol=1e-3)

    def run():
        for _ in range(steps):
            learner.update(batch)

    return run


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--steps", type=int, default=32, help="gradient steps in a turn")
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    config = configs.preset("pd")
    sac = dataclasses.replace(config.sac, hidden=tuple(args.hidden), batch_size=args.batch_size)
    config = dataclasses.replace(config, sac=sac)
    ours = Ours(config, make_batch(args.batch_size))
    programs = {"ours": ours.program(args.steps), "brax": make_brax(config, ours.batch, args.steps)}
    if not args.no_torch and importlib.util.find_spec("torch"):
        for name, compiled in (("torch", False), ("torch.compile", True)):
            programs[name] = make_torch(ours, config, args.steps, compiled)
    multiply, matrices, product_flops = roofline.product()
    programs["matmul"] = lambda: [multiply(*matrices) for _ in range(args.steps)]
    for program in programs.values():
        timed(program)
    rates = alternate(
        {
            name: partial(lambda run: args.steps / timed(run)[0], run)
            for name, run in programs.items()
        },
        args.repeats,
    )
    product_rates = rates.pop("matmul")
    flops = roofline.count_flops(ours.one, ours.state, jax.random.key(0))
    row = {
        "batch_size": args.batch_size,
        "hidden": args.hidden,
        "updates_per_s": {name: median(found) for name, found in rates.items()},
        "ours_over": {
            name: ratio(rates["ours"], found) for name, found in rates.items() if name != "ours"
        },
        "gflop_per_update": flops / 1e9,
        "share_of_matmul": ratio(
            [flops * x for x in rates["ours"]], [product_flops * x for x in product_rates]
        ),
    }
    for name, value in row["updates_per_s"].items():
        more = "" if name == "ours" else f", ours {row['ours_over'][name]['median']:.2f}x"
        print(f"{name}: {value:.1f} updates/s{more}")
    print(f"ours: {row['share_of_matmul']['median']:.0%} of the rate of a matrix product")
    if not args.dry:
        append_row("update", row)


if __name__ == "__main__":
    main()
