"""Perturbations: each changes what it says and nothing else."""

import copy
from functools import cache, partial

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry, scaling, shifts
from pdjax_envs.maniskill import panda, peg_insertion_side, stack_cube, turn_faucet
from pdjax_envs.names import UnknownName
from pdjax_envs.physics.engine import apply_overrides, row_ids
from pdjax_envs.task import Episode, Start
from tests.probe import physics_at

NUM = 48
TASKS = ("PegInsertionSide", "PushChair", "StackCube", "TurnFaucet", "AdroitRelocate")
OF_THE_WORLD = ("mass", "friction", "size", "held_out")


@cache
def make(name, shift=""):
    return registry.make(name, "native", shift=shift)


@cache
def resets(env):
    reset = jax.jit(jax.vmap(env.reset, (None, 0)))
    return reset(env.model, jax.random.split(jax.random.key(0), NUM))


@cache
def starts_of(env):
    """What `resets` begins with, where a shift changes the world: quicker to compile."""
    return jax.jit(jax.vmap(env.task.sample_start))(jax.random.split(jax.random.key(0), NUM))


def play(env, actions):
    """Observations and positions (steps + 1, NUM, ...) under actions (steps, act_dim)."""
    state, obs = resets(env)
    step = jax.jit(jax.vmap(env.step, (None, 0, None)))
    seen, positions = [obs], [state.physics.qpos]
    for action in actions:
        state, out = step(env.model, state, action)
        seen.append(out.obs)
        positions.append(state.physics.qpos)
    return np.stack(seen), np.stack(positions)


def some_actions(env, steps=5):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (steps, env.task.act_dim)).astype(np.float32)


@pytest.mark.parametrize("shift", ["mass", "friction"])
@pytest.mark.parametrize("name", TASKS)
def test_the_episode_itself_stays_the_same_in_another_world(name, shift):
    plain, shifted = starts_of(make(name)), starts_of(make(name, shift))
    np.testing.assert_array_equal(plain.qpos, shifted.qpos)
    moved = {"mass": scaling.HEAVY, "friction": ["geom_friction"]}[shift]
    for field, value in plain.episode.overrides.items():
        if field not in moved:
            np.testing.assert_array_equal(shifted.episode.overrides[field], value)


@pytest.mark.parametrize("shift", [name for name in shifts.SHIFTS if name not in OF_THE_WORLD])
@pytest.mark.parametrize("name", TASKS)
def test_the_episode_itself_stays_the_same_seen_otherwise(name, shift):
    plain, shifted = resets(make(name))[0], resets(make(name, shift))[0]
    np.testing.assert_array_equal(plain.physics.qpos, shifted.physics.qpos)
    jax.tree.map(np.testing.assert_array_equal, plain.episode, shifted.episode)


def c_models(env):
    """(our model, the same with what MuJoCo derives itself) of each environment."""
    start = starts_of(env)
    for index in range(NUM):
        ours = copy.copy(env.task.scene.model)
        overrides = {k: np.asarray(v[index]) for k, v in start.episode.overrides.items()}
        apply_overrides(ours, env.task.scene, overrides)
        theirs = copy.copy(ours)
        mujoco.mj_setConst(theirs, mujoco.MjData(theirs))
        yield ours, theirs


@pytest.mark.parametrize("shift", ["mass", "size"])
@pytest.mark.parametrize("name", TASKS)
def test_derived_values_are_what_mujoco_derives(name, shift):
    env = make(name, shift)
    for ours, theirs in c_models(env):
        bodies = [theirs.body(body).id for body in env.task.objects]
        rows = row_ids(theirs, "dof_M0", env.task.scene.override_rows["dof_M0"])
        for field, where in (
            ("body_subtreemass", bodies),
            ("body_invweight0", bodies),
            ("dof_M0", rows),
            ("dof_invweight0", rows),
        ):
            found, expected = getattr(ours, field)[where], getattr(theirs, field)[where]
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=field)


@pytest.mark.parametrize(
    ("shift", "power", "low", "high"), [("mass", 1, 0.5, 2.0), ("size", 3, 0.9, 1.1)]
)
@pytest.mark.parametrize("name", ["StackCube", "AdroitRelocate"])
def test_factors_fill_their_range_evenly(name, shift, power, low, high):
    env = make(name, shift)
    body = env.task.scene.model.body(env.task.objects[0]).id
    masses = np.array([ours.body_mass[body] for ours, _ in c_models(env)])
    factors = (masses / env.task.scene.model.body_mass[body]) ** (1 / power)
    places = np.log(factors / low) / np.log(high / low)  # on a logarithmic scale
    assert -1e-5 <= places.min() < 0.1 and 0.9 < places.max() <= 1 + 1e-5
    assert abs(places.mean() - 0.5) < 0.13


def both_sizes(name):
    """Nominal and resized environment, and 48 equal starts of each."""
    plain, other = make(name), make(name, "size")
    return plain, other, starts_of(plain), starts_of(other)


def values_of(env, start, field, names):
    """(NUM, rows, ...) values of a model field; those that the scene does not override are its."""
    rows, model = env.task.scene.override_rows.get(field, ()), env.task.scene.model
    index, values = row_ids(model, field, names), getattr(model, field)
    values = np.broadcast_to(values, (NUM, *values.shape)).copy()
    if rows:
        values[:, row_ids(model, field, rows)] = start.episode.overrides[field]
    return values[:, index]


# Shapes that must grow, the bodies that they make, and which of qpos a size may move.
GROWING = {
    "PegInsertionSide": (("peg",), ("peg",), [11]),
    "PushChair": (("chair_leg1", "chair_caster2", "chair_back"), ("chair", "chair_seat"), [24]),
    "StackCube": (("cube_a", "cube_b"), ("cube_a", "cube_b"), [11, 18]),
    "TurnFaucet": (("spout", "handle_a"), ("handle",), []),
    "AdroitRelocate": (("sphere",), ("Object",), []),
}


@pytest.mark.parametrize("name", TASKS)
def test_objects_grow_in_all_directions_and_stay_in_place(name):
    plain, other, before, after = both_sizes(name)
    shapes, bodies, heights = GROWING[name]
    sizes = [values_of(*pair, "geom_size", shapes) for pair in ((plain, before), (other, after))]
    factors = sizes[1][:, 0, 0] / sizes[0][:, 0, 0]
    assert np.ptp(factors) > 0.15
    for field, names, power in (
        ("geom_size", shapes, 1),
        ("geom_pos", shapes, 1),
        ("geom_rbound", shapes, 1),
        ("body_ipos", bodies, 1),
        ("body_mass", bodies, 3),
        ("body_inertia", bodies, 5),
    ):
        old, new = values_of(plain, before, field, names), values_of(other, after, field, names)
        scale = factors.reshape(-1, *[1] * (old.ndim - 1)) ** power
        np.testing.assert_allclose(new, old * scale, rtol=1e-5, atol=1e-9, err_msg=field)
    moved = np.abs(after.qpos - before.qpos)
    if name == "StackCube":  # a cube may have to make room, by less than a tenth of their distance
        assert np.sum(np.any(moved[:, 16:18], axis=1)) <= 2 and np.max(moved[:, 16:18]) < 0.006
        moved[:, 16:18] = 0
    assert not np.any(np.delete(moved, heights, axis=1))
    for index in heights:
        np.testing.assert_allclose(after.qpos[:, index], factors * before.qpos[:, index], rtol=1e-5)


def test_a_resized_cube_is_the_cube_that_mujoco_compiles(monkeypatch):
    env = make("StackCube", "size")
    model, nominal = env.task.scene.model, stack_cube.HALF_SIZE
    for ours, _ in list(c_models(env))[:6]:
        half_size = ours.geom("cube_a").size[0]
        monkeypatch.setattr(stack_cube, "HALF_SIZE", half_size)
        theirs = stack_cube._make_model(visual=False)
        monkeypatch.setattr(stack_cube, "HALF_SIZE", nominal)
        for field, names in env.task.scene.override_rows.items():
            rows = row_ids(model, field, names)
            found, expected = getattr(ours, field)[rows], getattr(theirs, field)[rows]
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=field)
        # And it collides at that size: corner beside corner, 0.1 mm deep and 0.1 mm apart.
        for gap in (-1e-4, 1e-4):
            contacts = []
            for compiled in (ours, theirs):
                data = mujoco.MjData(compiled)
                data.qpos[9:16] = 0, 0, 0.5, 1, 0, 0, 0
                data.qpos[16:19] = 0.5, 0, 0.5
                data.qpos[16] = 2 * half_size + gap
                data.qpos[19:23] = 1, 0, 0, 0
                mujoco.mj_forward(compiled, data)
                contacts.append(data.ncon)
            assert contacts[0] == contacts[1] == (4 if gap < 0 else 0)


def test_a_resized_faucet_is_the_faucet_that_mujoco_compiles():
    env = make("TurnFaucet", "size")
    model, start = env.task.scene.model, starts_of(env)
    for index in range(6):
        faucet = turn_faucet.FAMILY[int(start.episode.params.model_id[index])]
        overrides = {k: np.asarray(v[index]) for k, v in start.episode.overrides.items()}
        factor = overrides["geom_size"][0, 0] / faucet.size[0, 0]
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        larger = {name: factor * getattr(faucet, name) for name in ("pivot", "size", "place")}
        turn_faucet._add_faucet(spec, faucet._replace(**larger))
        theirs = spec.compile()
        ours = copy.copy(model)
        apply_overrides(ours, env.task.scene, overrides)
        for field, names in env.task.scene.override_rows.items():
            # Bounds are those of the family's largest; the place is the episode's.
            names = tuple(name for name in names if name != "faucet")
            found = getattr(ours, field)[row_ids(ours, field, names)]
            expected = getattr(theirs, field)[row_ids(theirs, field, names)]
            if field == "geom_rbound":
                assert np.all(found >= expected - 1e-6)
            elif field not in ("body_iquat", "body_inertia"):  # equal up to the order of axes
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=field)
        data = mujoco.MjData(ours)
        mujoco.mj_forward(ours, data)
        middle = data.body("handle").xipos
        np.testing.assert_allclose(start.episode.params.target_link_pos[index], middle, atol=1e-6)


def test_a_resized_peg_keeps_its_clearance():
    _, other, before, after = both_sizes("PegInsertionSide")
    params = after.episode.params
    factors = np.asarray(params.peg_half_length / before.episode.params.peg_half_length)
    np.testing.assert_allclose(params.hole_half_width - params.peg_half_width, 0.003, atol=1e-8)
    shapes = values_of(other, after, "geom_size", ("peg",))[:, 0]
    np.testing.assert_allclose(shapes[:, 0], params.peg_half_length, rtol=1e-6)
    np.testing.assert_allclose(shapes[:, 1], params.peg_half_width, rtol=1e-6)
    # The box around the hole: walls' faces are where the hole says.
    names = ("wall_left", "wall_right")
    size = values_of(other, after, "geom_size", names)[:, :, 1]
    pos = values_of(other, after, "geom_pos", names)[:, :, 1]
    np.testing.assert_allclose(
        pos[:, 0] - size[:, 0], params.hole_offset[:, 0] + params.hole_half_width, atol=1e-6
    )
    np.testing.assert_allclose(
        pos[:, 1] + size[:, 1], params.hole_offset[:, 0] - params.hole_half_width, atol=1e-6
    )
    np.testing.assert_allclose(pos[:, 0] + size[:, 0], params.peg_half_length, atol=1e-6)  # outside
    bound = values_of(other, after, "geom_rbound", names)
    largest = np.linalg.norm(values_of(other, after, "geom_size", names), axis=-1)
    assert np.all(largest <= bound + 1e-6) and factors.max() > 1.08
    assert shifts.SIZE[1] <= peg_insertion_side.LARGEST


def test_success_and_grasps_go_by_the_cubes_true_size():
    _, other, _, starts = both_sizes("StackCube")
    task = other.task
    index = int(np.argmax(starts.episode.params.half_size))
    start = jax.tree.map(lambda leaf: leaf[index], starts)
    size = float(start.episode.params.half_size)
    assert size > 0.0215

    def success(height):
        qpos = start.qpos.at[9:12].set(start.qpos[16:19] + jnp.array([0.0, 0.0, height]))
        return bool(task.success(start.episode, physics_at(qpos, start.qvel)))

    # 5 mm of tolerance about the cubes' own height; 4 cm + 5 mm would do for nominal cubes only.
    assert success(2 * size) and success(2 * size + 0.0049)
    assert not success(2 * size + 0.0051) and not success(0.038)
    tool, _ = panda.tcp_pose(start.qpos[:7])
    for fingers, expected in ((size + 0.0009, True), (size + 0.0011, False)):
        qpos = start.qpos.at[7:9].set(fingers).at[9:16].set(jnp.array([*tool, 1, 0, 0, 0]))
        turned = panda.tcp_pose(start.qpos[:7])[1]
        qpos = qpos.at[12:16].set(turned)
        physics = physics_at(qpos, start.qvel)
        assert bool(stack_cube.grasped(start.episode, physics)) is expected


def test_larger_cubes_do_not_overlap():
    start = Start(
        Episode({}, stack_cube.CubeParams(jnp.float32(0.02))), jnp.zeros(23), jnp.zeros(21)
    )
    apart = np.array([0.06, 0.02, 0.0])
    qpos = start.qpos.at[9:12].set(0.02).at[16:19].set(0.02 + apart)
    found = stack_cube.resize(start._replace(qpos=qpos), jnp.float32(1.1))
    moved = np.asarray(found.qpos[16:18] - found.qpos[9:11])
    np.testing.assert_allclose(np.linalg.norm(moved), 1.1 * stack_cube.APART, rtol=1e-5)
    np.testing.assert_allclose(moved[1] / moved[0], 1 / 3, rtol=1e-4)
    far = start._replace(qpos=qpos.at[16].set(0.2))
    same = stack_cube.resize(far, jnp.float32(1.1)).qpos
    np.testing.assert_allclose(same[16:18], far.qpos[16:18], rtol=1e-6)


@pytest.mark.parametrize("name", ["TurnFaucet", "PushChair"])
def test_held_out_objects_are_those_of_the_separate_task(name):
    shifted, separate, plain = make(name, "held_out"), make(f"{name}HeldOut"), make(name)
    found, expected, nominal = (starts_of(env) for env in (shifted, separate, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    kinds = [np.unique(start.episode.params[0]) for start in (found, nominal)]
    wanted = {"TurnFaucet": (range(10, 14), range(10)), "PushChair": (range(5, 8), range(5))}[name]
    assert [kind.tolist() for kind in kinds] == [list(kind) for kind in wanted]
    robot = slice(0, 9)  # everything else is as it was
    np.testing.assert_array_equal(found.qpos[:, robot], nominal.qpos[:, robot])


def test_shifts_of_the_world_meet_in_any_order():
    one, other = (
        starts_of(make("TurnFaucet", shift))
        for shift in ("held_out+mass+size", "size+mass+held_out")
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), one, other)
    assert np.all(one.episode.params.model_id >= 10)
    alone = starts_of(make("TurnFaucet", "held_out+size"))
    heavier = one.episode.overrides["body_mass"] / alone.episode.overrides["body_mass"]
    assert np.all(np.abs(np.log(heavier)) > 1e-3)


def test_everything_is_rougher_or_smoother_together():
    env = make("StackCube", "friction")
    found = np.asarray(starts_of(env).episode.overrides["geom_friction"])  # (NUM, geoms, 3)
    names = env.task.scene.override_rows["geom_friction"]
    assert {"floor", "cube_a", "cube_b", "panda_leftfinger_pad"} <= set(names)
    nominal = env.task.scene.model.geom_friction[row_ids(env.task.scene.model, "geom_size", names)]
    factors = found[..., 0] / nominal[:, 0]
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(len(names)), rtol=1e-6)
    assert 0.4 <= factors.min() < 0.5 and 1.1 < factors.max() <= 1.2
    same = np.broadcast_to(nominal[:, 1:], found[..., 1:].shape)
    np.testing.assert_allclose(found[..., 1:], same, rtol=1e-6)


def test_sensor_noise_is_fresh_each_step_and_leaves_the_world_alone():
    plain, noisy = make("StackCube"), make("StackCube", "sensor_noise")
    actions = some_actions(plain, steps=20)
    (obs, qpos), (seen, same) = play(plain, actions), play(noisy, actions)
    np.testing.assert_array_equal(qpos, same)
    noise = seen - obs
    np.testing.assert_allclose(noise.std(), shifts.SENSOR_NOISE, rtol=0.05)
    np.testing.assert_allclose(noise.mean(), 0, atol=2e-4)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


def test_a_camera_error_moves_all_objects_alike_for_an_episode():
    plain, shifted = make("StackCube"), make("StackCube", "camera")
    actions = some_actions(plain)
    (obs, qpos), (seen, same) = play(plain, actions), play(shifted, actions)
    np.testing.assert_array_equal(qpos, same)
    error = seen - obs
    offset = error[:1, :, 32:35]
    assert np.all(np.abs(offset) > 0) and np.all(np.abs(offset) < 5 * shifts.CAMERA_ERROR)
    assert len(np.unique(offset[0], axis=0)) == NUM  # each episode its own
    for part in (32, 39, 46, 49):  # both cubes, and both as seen from the tool
        found = error[..., part : part + 3]
        np.testing.assert_allclose(found, np.broadcast_to(offset, found.shape), atol=1e-6)
    others = [*range(32), *range(35, 39), *range(42, 46), *range(52, 55)]
    np.testing.assert_array_equal(error[..., others], 0)


def test_actions_come_one_step_late():
    plain, late = make("StackCube"), make("StackCube", "action_delay")
    actions = some_actions(plain)
    seen, positions = play(late, actions)
    # Before the first action there is none to be late: it is executed at once, and once more.
    obs, qpos = play(plain, np.concatenate([actions[:1], actions[:-1]]))
    np.testing.assert_array_equal(positions, qpos)
    np.testing.assert_array_equal(seen, obs)


def test_shifts_meet():
    both = resets(make("StackCube", "mass+camera"))
    mass, camera = resets(make("StackCube", "mass")), resets(make("StackCube", "camera"))
    jax.tree.map(np.testing.assert_array_equal, both[0].episode, mass[0].episode)
    np.testing.assert_array_equal(both[1], camera[1])


@jax.debug_key_reuse(True)
def test_all_shifts_at_once_where_nothing_is_batched_and_no_key_is_used_twice():
    env = make("StackCube", "+".join(name for name in shifts.SHIFTS if name != "held_out"))
    state, obs = jax.jit(env.reset)(env.model, jax.random.key(0))
    state, out = jax.jit(env.step)(env.model, state, jnp.zeros(4))
    assert out.obs.shape == obs.shape


@pytest.mark.parametrize(
    ("name", "shift", "message"),
    [
        ("StackCube", "mas", "unknown shift 'mas'; did you mean mass?"),
        ("StackCube", "mass+", "unknown shift ''; known: mass, friction"),
        ("brax:fast", "mass", "task brax:fast has no shift 'mass': it names no objects to move"),
        ("StackCube", "held_out", "it keeps no objects from the demonstrations"),
        ("TurnFaucetHeldOut", "held_out", "has no shift 'held_out'"),
        ("AdroitDoor", "size", "door, latch and frame fit only each other"),
        ("AdroitPen", "size", "mjx replaces its cylinders by shapes of other sizes"),
        ("brax:fast", "size", "it names no objects to move"),
        ("brax:fast", "camera", "it observes no objects by camera"),
    ],
)
def test_unknown_shifts_are_refused(name, shift, message):
    with pytest.raises(UnknownName) as raised:
        registry.make(name, shift=shift)
    assert message in str(raised.value)
