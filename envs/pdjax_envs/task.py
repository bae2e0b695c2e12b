"""The task contract and the environment built from a task and a physics engine.

A task says how episodes start, what actions and observations mean and when it has succeeded; an
environment adds the engine, the time limit and the episode's end. Both are pure functions for one
environment; `jax.vmap` makes them many. Nothing resets by itself here: who steps an environment
decides when a new episode starts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp

from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene


class Episode(NamedTuple):
    """What is drawn once per episode and then stays fixed.

    Attributes:
      overrides: per-environment model values, see `Scene.override_rows`.
      params: the task's own quantities (sizes, goals, ...).
    """

    overrides: Overrides
    params: Any


class Start(NamedTuple):
    """An episode's first state: `qpos` (nq,), `qvel` (nv,) and its `episode`."""

    episode: Episode
    qpos: Array
    qvel: Array


RewardTerms = Callable[[Episode, PhysicsState], dict[str, Array]]


_NO_SCENE = cast(Scene, None)  # typed as a scene, since what reads one is only used with one


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

    Either `scene` says what one of our engines simulates, or `engine` steps the task with physics
    of its own.

    Attributes:
      name: as users spell it.
      summary: one line for listings.
      scene: model, substeps, overrides and derived fields, as the native engine takes them; left
        out where `engine` is given.
      engine: the task's own physics; its `name` is what results record. None (the default) for an
        engine of ours. `Engine.reset` and `Engine.step` are pure JAX functions for one environment.
      make_visual_model: () -> model with meshes for rendering; objects keep their names. By default
        the task cannot be drawn.
      observation: (name, size) of each part of the observation, in order.
      meanings: part of the observation -> what it is, with unit and frame.
      action: (name, size) of each part of the action, in order; all in [-1, 1].
      control_mode: ManiSkill's name for the meaning of the actions.
      episode_steps: time limit in control steps.
      control_hz: control steps per second.
      sample_start: key -> Start, a fresh random initial state.
      get_state: (episode, physics) -> named arrays that determine the episode from here on, in the
        names of the task's original package; `qpos` and `qvel` are always among them and by default
        all of it.
      make_start: such a dict -> Start; an episode may start from any of its states. By default its
        episode has neither overrides nor params.
      control: (episode, physics, action in [-1, 1]) -> ctrl (nu,); by default the action itself.
      observe: (episode, physics) -> observation (obs_dim,) float32.
      rewards: kind ("sparse", "dense") -> function (episode, physics) -> named terms, whose sum is
        the reward as the task's original package defines it.
      success: (episode, physics) -> bool.
      adapt: (scene, engine's name) -> the scene for an engine that lacks a feature of the model.
      objects: names of the bodies that the robot moves, see `shifts`.
      resize: (start, factor) -> the start with `objects` that many times as large, in what the task
        itself holds of their size (places, `Episode.params`, model values of other bodies), see
        `shifts`; or why their size has to stay, in words.
      held_out: key -> Start, like `sample_start` but with objects that no demonstration shows; None
        where there are none.
      camera: parts of the observation whose first three numbers are a position that a camera would
        measure -> 1, or -1 where it is subtracted, see `shifts`.
      features: observation -> (feature_dim,) about [-3, 3], or None: relations between objects that
        are in the observation, on the scale that decides success. A learner may read them beside
        the observation, in which millimetres drown among metres.
      expert: () -> the scripted demonstrator, or None.
      family: name of the task whose demonstrations and base policies this one shares; by default
        its own.
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
    summary: str = ""
    make_visual_model: Callable[[], Any] = _no_picture
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    control_mode: str = "own"
    get_state: Callable[[Episode, PhysicsState], dict[str, Array]] = _qpos_and_qvel
    make_start: Callable[[Mapping[str, Any]], Start] = _start_at
    control: Callable[[Episode, PhysicsState, Array], Array] = lambda episode, physics, action: (
        action
    )
    rewards: Mapping[str, RewardTerms] = dataclasses.field(default_factory=dict)
    adapt: Callable[[Scene, str], Scene] = lambda scene, engine: scene
    objects: tuple[str, ...] = ()
    resize: Callable[[Start, Array], Start] | str = "it does not say what their size changes"
    held_out: Callable[[Array], Start] | None = None
    camera: Mapping[str, int] = dataclasses.field(default_factory=dict)
    features: Callable[[Array], Array] | None = None
    expert: Callable[[], "Expert"] | None = None
    family: str = ""

    def __post_init__(self):
        object.__setattr__(self, "family", self.family or self.name)

    @property
    def obs_dim(self) -> int:
        """Numbers in one observation."""
        return sum(size for _, size in self.observation)

    @property
    def act_dim(self) -> int:
        """Numbers in one action."""
        return sum(size for _, size in self.action)


class Expert(NamedTuple):
    """A scripted demonstrator for one environment.

    Attributes:
      init: key -> carry at the start of an episode.
      act: (carry, observation, key) -> (action in [-1, 1], carry).
      disturb: (action, observation, key, noise) -> action to execute instead: mishaps of a size
        given by `noise` that it recovers from.
    """

    init: Callable[[Array], Any]
    act: Callable[[Any, Array, Array], tuple[Array, Any]]
    disturb: Callable[[Array, Array, Array, float], Array]


class EnvState(NamedTuple):
    """One environment between two control steps.

    Attributes:
      physics: the engine's state.
      episode: what was drawn at the start of the episode.
      steps: () int32, control steps taken in the episode.
      extra: what a wrapper around the environment carries, see `shifts`.
    """

    physics: PhysicsState
    episode: Episode
    steps: Array
    extra: Any = ()


class ControlStep(NamedTuple):
    """What one control step brought.

    Attributes:
      obs: (obs_dim,) float32, after the step.
      reward: () float32.
      terminated: () bool, the episode ended at success.
      truncated: () bool, the time limit was reached and the episode has not terminated.
      success: () bool, whether the task is solved now.
      bad_action: () bool, the action held numbers beyond [-1, 1], which were clipped, or NaN, which
        were taken as 0.
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
      engine: name of the physics engine.
      model: the engine's model; pass it to the functions below.
      reset: (model, key) -> (EnvState, observation), from a fresh random start.
      start_from: (model, Start) -> (EnvState, observation).
      step: (model, EnvState, action) -> (EnvState, ControlStep).
    """

    task: Task
    engine: str
    model: Any
    reset: Callable[[Any, Array], tuple[EnvState, Array]]
    start_from: Callable[[Any, Start], tuple[EnvState, Array]]
    step: Callable[[Any, EnvState, Array], tuple[EnvState, ControlStep]]


def make_env(
    task: Task, engine: Engine, reward: str = "success", terminate_on_success: bool = True
) -> Env:
    """Joins a task and an engine that was made for the task's scene.

    Args:
      task: the task.
      engine: made for `task.adapt(task.scene, engine.name)`.
      reward: `success` (1 where the task is solved, else 0), or a kind in `task.rewards`.
      terminate_on_success: whether success ends the episode; else only the time limit does.
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

    return Env(task, engine.name, engine.model, *map(in_float32, (reset, start_from, step)))


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with matrix products of whole float32 numbers on every device.

    By default accelerators round what they multiply, to 10 bits (TF32) or 7 (bfloat16): enough for
    networks, but a millimetre for a pose a metre away.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return call


def admit(action: Array) -> tuple[Array, Array]:
    """An action as environments take it, and whether it was changed (`ControlStep.bad_action`)."""
    bad_action = ~jnp.all(jnp.abs(action) <= 1)  # also where it is NaN
    return jnp.clip(jnp.where(jnp.isnan(action), 0, action), -1, 1), bad_action


def judge(
    task: Task,
    state: EnvState,
    reward: str,
    terminate_on_success: bool,
    bad_action: Array,
    done: Array | bool = False,
) -> ControlStep:
    """What a control step that led to `state` brought.

    Args:
      task: the task.
      state: after the step.
      reward: see `make_env`, as is `terminate_on_success`.
      terminate_on_success: whether success ends the episode.
      bad_action: see `admit`.
      done: () bool, the episode has ended for another reason than success.
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
    """`first` where the scalar `use_first` holds, else `second`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(use_first, a, b), first, second)
