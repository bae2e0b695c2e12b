"""Writes one page per task to `docs/tasks/`, generated from the tasks themselves.

    MUJOCO_GL=egl python docs/make_task_pages.py             # pages and pictures
    python docs/make_task_pages.py --no-pictures

The text of a page is the docstring of the task's module, so that code and page cannot disagree. A
test compares the committed pages with the output of this script.
"""

import argparse
import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pdjax_envs import registry
from pdjax_envs.physics.engine import PhysicsState
from pdjax_envs.task import Task

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tasks"
FIDELITY = ROOT / "experiments" / "results" / "fidelity.jsonl"
SPEED = ROOT / "benchmarks" / "results" / "physics.jsonl"
WIDTH, HEIGHT = 640, 480  # pixels


def page(task: Task) -> str:
    """Returns the Markdown page of a task."""
    module = importlib.import_module(registry.BUILT_IN[task.name])
    scene = task.scene
    lines = [
        f"# {task.name}",
        "",
        f"![{task.summary}]({task.name}.jpg)",
        "",
        inspect.cleandoc(module.__doc__ or ""),
        "",
        "## Episode",
        "",
        f"- Length: {task.episode_steps} control steps at {task.control_hz:g} Hz, each with"
        f" {scene.n_substeps} physics steps of {1000 * scene.model.opt.timestep:g} ms.",
        f"- Start: {_doc(module.sample_start)}",
        f"- State (`get_state`, `make_start`): {_state(task)}.",
        f"- Rewards: {', '.join(f'`{kind}`' for kind in ('success', *task.rewards))}.",
        f"- Model values that differ between environments: {_overrides(task)}.",
        f"- Scripted expert: {'yes' if task.expert else 'no'}.",
        "",
        f"## Observation: {task.obs_dim} numbers",
        "",
        *_table(task.observation, task.meanings),
        "",
        f"## Action: {task.act_dim} numbers in [-1, 1], `{task.control_mode}`",
        "",
        *_actions(task),
        "",
        *_fidelity(task),
        *_speed(task),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _doc(function) -> str:
    return " ".join(inspect.cleandoc(function.__doc__).split())


def _state(task: Task) -> str:
    start = jax.eval_shape(task.sample_start, jax.random.key(0))

    def state(start):
        return task.get_state(start.episode, PhysicsState(start.qpos, start.qvel, {}, False, ()))

    shapes = jax.eval_shape(state, start)
    return ", ".join(f"`{name}` {tuple(leaf.shape)}" for name, leaf in shapes.items())


def _overrides(task: Task) -> str:
    fields: dict[tuple[str, ...], list[str]] = {}  # names of objects -> their fields
    for field, names in task.scene.override_rows.items():
        fields.setdefault(names, []).append(f"`{field}`")
    return "; ".join(f"{', '.join(found)} of {', '.join(names)}" for names, found in fields.items())


def _table(parts: tuple[tuple[str, int], ...], meanings: Mapping[str, str]) -> list[str]:
    lines, begin = ["| numbers | part | meaning |", "|---|---|---|"], 0
    for name, size in parts:
        span = str(begin) if size == 1 else f"{begin} - {begin + size - 1}"
        lines.append(f"| {span} | `{name}` | {meanings[name]} |")
        begin += size
    return lines


def _actions(task: Task) -> list[str]:
    if all(size == 1 for _, size in task.action):  # one number per actuator
        return ["Targets of the actuators, in order: " + ", ".join(n for n, _ in task.action) + "."]
    return _table(task.action, dict.fromkeys(dict(task.action), ""))


def _speed(task: Task) -> list[str]:
    """Returns the newest result of the physics benchmark for the task, if there is one."""
    rows = [json.loads(line) for line in SPEED.read_text().splitlines()] if SPEED.is_file() else []
    for row in reversed(rows):
        found = [entry for entry in row["rows"] if entry["task"] == task.name]
        if not found:
            continue
        lines = [
            "## Speed",
            "",
            f"Control steps per second on {row['cores']} cores ({row['cpu']}),"
            f" commit {row['commit']}:",
            "",
            "| environments | " + " | ".join(found[0]["control_steps_per_s"]) + " |",
            "|---|" + "---|" * len(found[0]["control_steps_per_s"]),
        ]
        for entry in found:
            rates = " | ".join(f"{rate:,.0f}" for rate in entry["control_steps_per_s"].values())
            lines.append(f"| {entry['num_envs']} | {rates} |")
        return lines
    return []


def _fidelity(task: Task) -> list[str]:
    """Returns what `experiments/fidelity.py` last found of each policy of the task."""
    text = FIDELITY.read_text() if FIDELITY.is_file() else ""
    rows = {row["run"]: row for row in map(json.loads, text.splitlines())}
    rows = [row for row in rows.values() if row["task"] == task.name]
    if not rows:
        return []
    lines = [
        "## The same policies in the original",
        "",
        f"{rows[-1]['episodes']} episodes from the same starts, in mani-skill2's simulator and here"
        " (`experiments/fidelity.py`). Medians: control steps until success; at the lift, the angle"
        " between the object and the finger pads, and by how much each finger is farther out than"
        " half the object's width; in the hand during 24 control steps after it, turn and slip.",
        "",
        "| policy | simulator | success | steps | yaw, degrees | opening, mm | turn, degrees"
        " | slip, mm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in ("base", "refined"):
            for world in ("original", "port"):
                lines.append(
                    _fidelity_row(f"{row['policy']}, {name}", world, row[f"{name}_{world}"])
                )
    return [*lines, ""]


def _fidelity_row(policy: str, world: str, found: Mapping[str, Any]) -> str:
    low, high = (100 * value for value in found["ci"])
    success = f"{100 * found['success']:.0f} % [{low:.0f}, {high:.0f}]"
    keys = (("steps", ".0f"), ("yaw", ".1f"), ("opening", ".1f"), ("turn", ".2f"), ("slip", ".2f"))
    values = ["-" if found.get(key) is None else f"{found[key]:{form}}" for key, form in keys]
    return f"| {policy} | {world} | {success} | {' | '.join(values)} |"


def draw(task: Task, path: Path) -> None:
    """Draws a picture of a fresh start."""
    import mujoco
    from PIL import Image

    from pdjax_envs.physics.engine import apply_overrides

    model, start = task.make_visual_model(), task.sample_start(jax.random.key(1))
    apply_overrides(model, task.scene, start.episode.overrides)
    data = mujoco.MjData(model)
    data.qpos[:] = start.qpos
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        renderer.update_scene(data, camera="view")
        Image.fromarray(renderer.render()).save(path, quality=85)


def main() -> None:
    """Writes all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-pictures", action="store_true")
    args = parser.parse_args()
    PAGES.mkdir(exist_ok=True)
    for name in registry.BUILT_IN:
        task = registry.make_task(name)
        (PAGES / f"{name}.md").write_text(page(task))
        if not args.no_pictures:
            draw(task, PAGES / f"{name}.jpg")


if __name__ == "__main__":
    main()
