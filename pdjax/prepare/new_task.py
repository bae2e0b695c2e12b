"""Writes the Python file and the model of a new task: a small one that works, to be changed.

Not pure: it writes files.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from pdjax.config.options import ConfigError
from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax_envs import writing
from pdjax_envs.reading import short

TEMPLATE = "own_task"  # name of the files in pdjax_envs/templates; its task is OwnTask


def write(path: Path) -> dict[str, Any]:
    """Writes FILE.py and FILE.xml and says what to do with them.

    Args:
      path: the Python file; its name becomes the task's.

    Returns:
      The `files`, and the `task` to give to other commands, for JSON.

    Raises:
      ConfigError: one of the files exists or cannot be written, or the name is no Python name.
    """
    model = path.with_suffix(".xml")
    check_file(path, (".py",), "choose another name")
    check_file(model, (".xml",), "choose another name")
    if not path.stem.isidentifier():
        raise ConfigError(
            f"{short(path.name)} is no name of a Python module, expected letters, digits and _;"
            " choose another name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = resources.files("pdjax_envs") / "templates"
    own = "".join(word[:1].upper() + word[1:] for word in path.stem.split("_"))
    for file in (path, model):
        text = (folder / f"{TEMPLATE}{file.suffix}").read_text(encoding="utf-8")
        writing.write_text(file, text.replace(TEMPLATE, path.stem).replace("OwnTask", own))
    task = f"{path}:make_task"
    terminal.say(f"wrote {path} and {model}: a task that works, to be changed")
    terminal.say(f"next: pdjax envs check {task}")
    return {"files": [str(path), str(model)], "task": task}
