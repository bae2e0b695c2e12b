"""Success that must last: an environment that pays and ends at success which stays for a while.

By its published definition a task is solved at the first control step at which it is; a policy that
learns from that need not leave the task solved.
"""

from typing import Any

import jax.numpy as jnp

from pdjax_envs.task import Array, ControlStep, Env, EnvState, Start


def hold_success(env: Env, steps: int, reward: str, terminate: bool) -> Env:
    """Returns an environment in which success counts once it has lasted.

    Args:
      env: the environment, in which success ends no episode.
      steps: control steps in a row that the task must be solved, the current one included; 1
        changes nothing but the end of the episode.
      reward: what the environment pays; `success` then pays for success that has lasted, any other
        kind stays as it is.
      terminate: whether success that has lasted ends the episode.

    Returns:
      The environment; `ControlStep.success` still says whether the task is solved now.
    """

    def begin(state: EnvState, obs: Array) -> tuple[EnvState, Array]:
        return state._replace(extra=(state.extra, jnp.zeros((), jnp.int32))), obs

    def reset(model: Any, key: Array) -> tuple[EnvState, Array]:
        return begin(*env.reset(model, key))

    def start_from(model: Any, start: Start) -> tuple[EnvState, Array]:
        return begin(*env.start_from(model, start))

    def step(model: Any, state: EnvState, action: Array) -> tuple[EnvState, ControlStep]:
        inner, held = state.extra
        state, out = env.step(model, state._replace(extra=inner), action)
        held = jnp.where(out.success, held + 1, 0)
        lasts = held >= steps
        terminated = out.terminated | (lasts & terminate)
        out = out._replace(
            reward=lasts.astype(out.reward.dtype) if reward == "success" else out.reward,
            terminated=terminated,
            truncated=out.truncated & ~terminated,
        )
        return state._replace(extra=(state.extra, held)), out

    return env._replace(reset=reset, start_from=start_from, step=step)
