"""The state of a MuJoCo model by names, as the functions of a short task read it.

Which derived quantities an engine must return follows from what the functions read: each is called
once on shapes alone (`make_prober`). Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.names import UnknownName, unknown
from pdjax_envs.physics.engine import Array, PhysicsState
from pdjax_envs.reading import InputError, short
from pdjax_envs.user_code import guard

FIELDS = ("xpos", "xquat", "site_xpos", "site_xmat", "geom_xpos", "sensordata")


class State:
    """The physics of one environment, by the names in its model.

    Positions are in the world's frame, m. Methods raise `UnknownName` for a name that the model
    does not have.

    Attributes:
      model: the compiled model; do not change it.
      overrides: model field -> (rows, ...), what is randomised in this episode.
    """

    def __init__(self, model: mujoco.MjModel, physics: PhysicsState, overrides: Mapping[str, Any]):
        self.model, self.overrides, self._physics = model, overrides, physics

    def qpos(self, joint: str = "") -> Array:
        """Returns a joint's position, m or rad: () for a hinge or a slide; "" = all, (nq,)."""
        return self._of_joint(joint, self._physics.qpos, "qposadr", (7, 4, 1, 1))

    def qvel(self, joint: str = "") -> Array:
        """Returns a joint's velocity, m/s or rad/s: () for a hinge or a slide; "" = all, (nv,)."""
        return self._of_joint(joint, self._physics.qvel, "dofadr", (6, 3, 1, 1))

    def body(self, name: str) -> Array:
        """Returns a body's position (3,)."""
        return self._field("xpos")[self._id("body", name)]

    def body_quat(self, name: str) -> Array:
        """Returns a body's orientation, a quaternion (4,), w x y z."""
        return self._field("xquat")[self._id("body", name)]

    def site(self, name: str) -> Array:
        """Returns a site's position (3,)."""
        return self._field("site_xpos")[self._id("site", name)]

    def site_axes(self, name: str) -> Array:
        """Returns a site's rotation matrix (3, 3), whose columns are its axes."""
        return self._field("site_xmat")[self._id("site", name)].reshape(3, 3)

    def geom(self, name: str) -> Array:
        """Returns a geom's position (3,)."""
        return self._field("geom_xpos")[self._id("geom", name)]

    def sensor(self, name: str) -> Array:
        """Returns a sensor's value (size,)."""
        sensor = self.model.sensor(self._id("sensor", name))
        begin, size = int(sensor.adr[0]), int(sensor.dim[0])
        return self._field("sensordata")[begin : begin + size]

    def _of_joint(self, joint: str, values: Array, adr: str, sizes: tuple[int, ...]) -> Array:
        if not joint:
            return values
        index = self._id("joint", joint)
        begin = int(getattr(self.model.joint(index), adr)[0])
        size = sizes[int(self.model.jnt_type[index])]
        return values[begin] if size == 1 else values[begin : begin + size]

    def _id(self, kind: str, name: str) -> int:
        kind_id = getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}")
        index = mujoco.mj_name2id(self.model, kind_id, name)
        if index < 0:
            count = getattr(self.model, {"joint": "njnt"}.get(kind, f"n{kind}"))
            names = [mujoco.mj_id2name(self.model, kind_id, i) for i in range(count)]
            raise unknown(kind, name, [known for known in names if known])
        return index

    def _field(self, name: str) -> Array:
        return self._physics.fields[name]


class _Noticing(dict[str, Any]):
    """Fields that notice which of them is read."""

    def __init__(self, values: Mapping[str, Any], read: set[str]):
        super().__init__(values)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)


class _Prober:
    """Calls functions of a state on shapes alone, and checks what they return."""

    def __init__(self, model: mujoco.MjModel, overrides: Mapping[str, Any]):
        self._model, self._overrides, self._read = model, overrides, set[str]()

    @property
    def fields(self) -> tuple[str, ...]:
        """The derived fields that the functions have read."""
        return tuple(name for name in FIELDS if name in self._read)

    def vector(self, what: str, function: Callable[[State], Any]) -> int:
        """Returns how many numbers a function returns.

        Raises:
          InputError: it fails or returns something else than a number or a vector.
        """
        found = self._shape(what, function)
        if getattr(found, "ndim", 2) > 1 or not found.size:
            raise InputError(f"{what} returns {short(found)}, expected a number or a vector")
        return found.size

    def flag(self, what: str, function: Callable[[State], Any]) -> None:
        """Checks that a function returns one truth value."""
        found = self._shape(what, function)
        if getattr(found, "shape", None) != () or found.dtype != bool:
            shown = getattr(found, "dtype", None) or short(found)
            raise InputError(
                f"{what} returns {shown}, expected True or False, as a comparison does (x < 0.02)"
            )

    def terms(self, what: str, function: Callable[[State], Any]) -> None:
        """Checks that a function returns named numbers."""
        found = self._shape(what, function)
        if not isinstance(found, dict) or any(getattr(v, "shape", 1) != () for v in found.values()):
            raise InputError(f"{what} returns {short(found)}, expected a dict of numbers")

    def _shape(self, what: str, function: Callable[[State], Any]) -> Any:
        data = mujoco.MjData(self._model)
        shapes = {name: np.shape(getattr(data, name)) for name in FIELDS}

        def call(qpos: Array, qvel: Array, fields: dict[str, Array]) -> Any:
            noticing = _Noticing(fields, self._read)
            physics = PhysicsState(qpos, qvel, noticing, jnp.zeros((), bool), ())
            state = State(self._model, physics, self._overrides)
            try:
                return jax.tree.map(jnp.asarray, function(state))
            except jax.errors.ConcretizationTypeError:
                raise InputError(
                    f"{what} decides by a number of the state, which has no value yet: write"
                    " jnp.where(a, b, c), a & b, a | b instead of if, and, or"
                ) from None

        number = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        fields = {name: number(shape) for name, shape in shapes.items()}
        inputs = number((self._model.nq,)), number((self._model.nv,)), fields
        try:
            return guard(lambda: jax.eval_shape(call, *inputs), what)
        except UnknownName as error:
            raise UnknownName(f"{what}: {error}") from None


def make_prober(model: mujoco.MjModel, overrides: Mapping[str, Any]) -> _Prober:
    """Returns what learns which derived fields some functions of a `State` read.

    Args:
      model: the compiled model.
      overrides: model field -> (rows, ...), an example of what is randomised in an episode.
    """
    return _Prober(model, overrides)
