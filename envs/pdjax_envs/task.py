"""The task contract and the environment built from a task and a physics engine.

A task defines how episodes start, what actions and observations mean, and when it is solved. An
environment adds the physics engine, the time limit and the end of an episode. Both are pure
functions for one environment; batch them with `jax.vmap`. Nothing resets by itself: the caller
decides when a new episode starts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp

from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene


class Episode(NamedTuple):
    """The values that are drawn once per episode and then stay fixed.

    Attributes:
      overrides: model values of this environment, see `Scene.override_rows`.
      params: the task's own quantities (sizes, goals, ...).
    """

    overrides: Overrides
    params: Any


class Start(NamedTuple):
    """The first state of an episode: `qpos` (nq,), `qvel` (nv,) and the `episode` itself."""

    episode: Episode
    qpos: Array
    qvel: Array


RewardTerms = Callable[[Episode, PhysicsState], dict[str, Array]]


_NO_SCENE = cast(Scene, None)  # typed as a scene, so that code need not check for one


def _no_picture() -> NoReturn:
    raise NotImplementedError("this task has no model to draw; give it make_visual_model")


def _qpos_and_qvel(episode: Episode, physics: PhysicsState) -> dict[str, Array]:
    del episode
    return {"qpos": physics.qpos, "qvel": physics.qvel}


def _start_at(state: Mapping[str, Any]) -> Start:
    return Start(Episode({}, ()), state["qpos"], state["qvel"])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A task as pure functions for one environment.

    Give it a `scene`, which any of pdjax's physics engines can simulate, or an `engine`, which
    brings physics of its own.

    Attributes:
      name: the name that users type.
      summary: one line for listings.
      scene: the model, substeps, overrides and derived fields that the native engine takes; leave
        it out if you give an `engine`.
      engine: the task's own physics: pure JAX functions for one environment. Results record its
        `name`. None, the default, means one of pdjax's engines.
      make_visual_model: () -> the model with meshes for rendering, in which objects keep their
        names. By default the task cannot be drawn.
      observation: (name, size) of each part of the observation, in order.
      meanings: part of observation or action -> its meaning, with unit and frame.
      action: (name, size) of each part of the action, in order; all numbers are in [-1, 1].
      control_mode: what the actions mean, under ManiSkill's name for it.
      episode_steps: time limit in control steps.
      control_hz: control steps per second.
      sample_start: key -> Start, a fresh random initial state.
      get_state: (episode, physics) -> named arrays that determine the rest of the episode, under
        the names of the task's original package. They always include `qpos` and `qvel`; by default
        they are nothing else.
      make_start: a dict from `get_state` -> Start, so that an episode can start from any of its
        states. By default the episode has neither overrides nor params.
      control: (episode, physics, action in [-1, 1]) -> ctrl (nu,); by default the action itself.
      observe: (episode, physics) -> observation (obs_dim,) float32.
      rewards: kind ("sparse", "dense") -> function (episode, physics) -> named terms. Their sum is
        the reward that the task's original package defines.
      success: (episode, physics) -> bool.
      has_success: whether the task can be solved; without success, policies are judged by return.
      adapt: (scene, name of an engine) -> the scene for that engine, which may lack a feature of
        the model.
      objects: names of the bodies that the robot moves, see `shifts`.
      resize: (start, factor) -> the start with `objects` that many times as large. It adjusts only
        what the task itself knows about their size: places, `Episode.params`, model values of other
        bodies; see `shifts`. A string instead says why the size cannot change.
      held_out: key -> Start, like `sample_start` but with objects that no demonstration shows; None
        if the task has no such objects.
      camera: part of the observation whose first three numbers are a position that a camera would
        measure -> 1, or -1 if the position is subtracted; see `shifts`.
      features: observation -> (feature_dim,) numbers of about [-3, 3], or None. They describe
        relations between objects in the observation on the scale that decides success. A learner
        may read them beside the observation, in which millimetres drown among metres.
      stages: what an episode passes through on its way to success, in order: a participle or place
        ("lifted", "at the hole") -> function observation -> bool. They tell where failed episodes
        end, see `pdjax eval --failures`; no policy reads them.
      expert: () -> the scripted demonstrator, or None.
      files: what the task's Python file reads beside itself, such as an MJCF file and its meshes;
        a run keeps a copy of a task that is named FILE.py:FUNCTION.
      family: name of the task whose demonstrations and base policies this task shares; by default
        its own name.
    """

    name: str
    observation: tuple[tuple[str, int], ...]
    action: tuple[tuple[str, int], ...]
    episode_steps: int
    control_hz: float
    sample_start: Callable[[Array], Start]
    observe: Callable[[Episode, PhysicsState], Array]
    success: Callable[[Episode, PhysicsState], Array]
    scene: Scene = _NO_SCENE
    engine: Engine | None = None
    has_success: bool = True
    summary: str = ""
    make_visual_model: Callable[[], Any] = _no_picture
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    control_mode: str = "own"
    get_state: Callable[[Episode, PhysicsState], dict[str, Array]] = _qpos_and_qvel
    make_start: Callable[[Mapping[str, Any]], Start] = _start_at
    control: Callable[[Episode, PhysicsState, Array], Array] = lambda _, __, action: action
    rewards: Mapping[str, RewardTerms] = dataclasses.field(default_factory=dict)
    adapt: Callable[[Scene, str], Scene] = lambda scene, engine: scene
    objects: tuple[str, ...] = ()
    resize: Callable[[Start, Array], Start] | str = (
        "the task does not define what their size changes"
    )
    held_out: Callable[[Array], Start] | None = None
    camera: Mapping[str, int] = dataclasses.field(default_factory=dict)
    features: Callable[[Array], Array] | None = None
    stages: Mapping[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)
    expert: Callable[[], "Expert"] | None = None
    files: tuple[Path, ...] = ()
    family: str = ""

    def __post_init__(self):
        object.__setattr__(self, "family", self.family or self.name)

    @property
    def obs_dim(self) -> int:
        """The length of an observation."""
        return sum(size for _, size in self.observation)

    @property
    def act_dim(self) -> int:
        """The length of an action."""
        return sum(size for _, size in self.action)


class Expert(NamedTuple):
    """A scripted demonstrator for one environment.

    Attributes:
      init: key -> carry at the start of an episode.
      act: (carry, observation, key) -> (action in [-1, 1], carry).
      disturb: (action, observation, key, noise) -> the action to execute instead. `noise` sets the
        size of these mishaps, from which the demonstrator recovers.
    """

    init: Callable[[Array], Any]
    act: Callable[[Any, Array, Array], tuple[Array, Any]]
    disturb: Callable[[Array, Array, Array, float], Array]


class EnvState(NamedTuple):
    """The state of one environment between two control steps.

    Attributes:
      physics: the engine's state.
      episode: the values drawn at the start of the episode.
      steps: () int32, control steps taken in the episode.
      extra: the state of wrappers around the environment, see `shifts`.
    """

    physics: PhysicsState
    episode: Episode
    steps: Array
    extra: Any = ()


class ControlStep(NamedTuple):
    """The result of one control step.

    Attributes:
      obs: (obs_dim,) float32, after the step.
      reward: () float32.
      terminated: () bool, the episode ended at success.
      truncated: () bool, the episode reached its time limit without terminating.
      success: () bool, the task is solved now.
      bad_action: () bool, the action had numbers beyond [-1, 1], which were clipped, or NaN, which
        were replaced by 0.
      overflow: () bool, see `PhysicsState.overflow`.
    """

    obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    bad_action: Array
    overflow: Array


class Env(NamedTuple):
    """An environment as pure functions for one instance.

    Attributes:
      task: the task.
      engine: the name of the physics engine.
      model: the engine's model, the first argument of the functions below.
      reset: (model, key) -> (EnvState, observation), from a fresh random start.
      start_from: (model, Start) -> (EnvState, observation).
      step: (model, EnvState, action) -> (EnvState, ControlStep).
      open: (num_envs, act_horizon, **more of the spec) -> `workers.WorkerPool`, for an environment
        that is no pure function: it lives in worker processes, and the three functions above cannot
        be called. None = it is.
      terminate_on_success: whether success ends the episode; only read with `open`.
      reward: see `make_env`; only read with `open`.
    """

    task: Task
    engine: str
    model: Any
    reset: Callable[[Any, Array], tuple[EnvState, Array]]
    start_from: Callable[[Any, Start], tuple[EnvState, Array]]
    step: Callable[[Any, EnvState, Array], tuple[EnvState, ControlStep]]
    open: Callable[..., Any] | None = None
    terminate_on_success: bool = True
    reward: str = "success"


def make_env(
    task: Task, engine: Engine, reward: str = "success", terminate_on_success: bool = True
) -> Env:
    """Builds an environment from a task and an engine.

    Args:
      task: the task.
      engine: `task.engine`, or an engine made for `task.adapt(task.scene, engine.name)`.
      reward: `success` (1 if the task is solved, else 0), or a kind in `task.rewards`.
      terminate_on_success: whether success ends the episode; otherwise only the time limit does.
    """

    def reset(model, key):
        return start_from(model, task.sample_start(key))

    def start_from(model, start):
        physics = engine.reset(model, start.episode.overrides, start.qpos, start.qvel)
        state = EnvState(physics, start.episode, jnp.zeros((), jnp.int32))
        return state, task.observe(start.episode, physics)

    def step(model, state, action):
        action, bad_action = admit(action)
        ctrl = task.control(state.episode, state.physics, action)
        physics = engine.step(model, state.episode.overrides, state.physics, ctrl)
        state = state._replace(physics=physics, steps=state.steps + 1)
        return state, judge(task, state, reward, terminate_on_success, bad_action)

    reset, start_from, step = map(in_float32, (reset, start_from, step))
    return Env(task, engine.name, engine.model, reset, start_from, step)


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function with matrix products in full float32 on every device.

    By default accelerators round the factors of a product to 10 bits (TF32) or 7 (bfloat16). That
    is enough for networks, but means an error of a millimetre for a pose a metre away.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return call


def admit(action: Array) -> tuple[Array, Array]:
    """Returns the action to execute and whether it had to change (`ControlStep.bad_action`)."""
    bad_action = ~jnp.all(jnp.abs(action) <= 1)  # NaN compares as False, so it counts too
    return jnp.clip(jnp.where(jnp.isnan(action), 0, action), -1, 1), bad_action


def judge(
    task: Task,
    state: EnvState,
    reward: str,
    terminate_on_success: bool,
    bad_action: Array,
    done: Array | bool = False,
) -> ControlStep:
    """Returns the result of the control step that led to `state`.

    Args:
      task: the task.
      state: the state after the step.
      reward: see `make_env`.
      terminate_on_success: see `make_env`.
      bad_action: see `admit`.
      done: () bool, the episode has ended for a reason other than success.
    """
    episode, physics = state.episode, state.physics
    success = task.success(episode, physics)
    terms = {"success": success} if reward == "success" else task.rewards[reward](episode, physics)
    terminated = done | (success & terminate_on_success)
    return ControlStep(
        obs=task.observe(episode, physics),
        reward=sum(terms.values(), start=jnp.zeros(())),
        terminated=terminated,
        truncated=~terminated & (state.steps >= task.episode_steps),
        success=success,
        bad_action=bad_action,
        overflow=physics.overflow,
    )


def select(use_first: Array, first: Any, second: Any) -> Any:
    """Returns `first` if the scalar `use_first` is true, else `second`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(use_first, a, b), first, second)
