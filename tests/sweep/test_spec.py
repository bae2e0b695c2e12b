"""Which sweeps are refused before anything starts, each in one short line."""

import time

import pytest

from pdjax.config.options import ConfigError
from pdjax.sweep import spec

HEAD = "config: peg_fast\nset: [base_policy.path=base]\n"
GRID = "\n".join(
    f"  {key}: [{', '.join(f'{(n + 1) / 100}' for n in range(20))}]"
    for key in ("sac.gamma", "sac.tau", "sac.actor_lr", "sac.critic_lr", "decorator.residual_scale")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}space:\n{GRID}", "the grid has 3,200,000 trials, expected at most 10,000"),
        (f"{HEAD}space: {{seed: {list(range(1_001))}}}", "has 1,001 values .* at most 1,000"),
        (f"{HEAD}space: {{1: [2]}}", "unknown key 1 in space; known: .*`pdjax train --help` lists"),
        (f"{HEAD}space: {{sac.gama: [0.5]}}", r"did you mean sac.gamma\?"),
        (f"{HEAD}space: {{sac.gamma: 0.5}}", "got 0.5, expected a list, or one of grid, choice"),
        (f"{HEAD}space: {{sac.batch_size: [1e18]}}", "that 32 bits can hold"),
        (f"{HEAD}space: {'[' * 500}", "has more than 50 levels"),
        (f"{HEAD}space: {{sac.gamma: [{{a: {'x' * 9_000}}}]}}", "sac.gamma got {'a': 'xxx"),
        (f"{HEAD}samples: 1e9\nspace: {{sac.gamma: [0.5]}}", "samples got '1e9', expected integer"),
        (f"{HEAD}members: 3000000000\nspace: {{sac.gamma: [0.5]}}", "3,000,000,000 members, exp"),
        (f"{HEAD}space: {{sac.gamma: [0.5]}}\nspace: {{}}", "the key 'space' twice"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_short_line_at_once(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        spec.read(tmp_path / "s.yaml")
    assert time.process_time() - start < 10
    assert len(str(caught.value)) <= 293


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match="cannot read sweep aaa"):
        spec.read(spec.find("a" * 5_000))
