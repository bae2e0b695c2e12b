"""Shapes: every public function of the learner names them, and the tests check every call."""

import ast
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from pdjax import learner
from pdjax.config.schema import DecoratorConfig, SACConfig
from pdjax.learner import decorator, losses, sac
from pdjax.types import Batch

SOURCES = sorted(Path(learner.__path__[0]).glob("*.py"))


def test_a_wrong_shape_is_caught():
    base, residual = jnp.zeros((4, 6)), jnp.zeros((4, 3))
    assert decorator.decorate(base, residual, 0.1).shape == (4, 6)
    with pytest.raises(TypeCheckError):
        decorator.decorate(base, residual[:3], 0.1)  # one environment too few
    with pytest.raises(TypeCheckError):
        decorator.decorate(base, residual, jnp.full(4, 0.1))  # no scalar
    with pytest.raises(TypeCheckError):
        losses.critic_loss(jnp.zeros((2, 5)), jnp.zeros(5), jnp.zeros(4))
    with pytest.raises(TypeCheckError):
        losses.critic_loss(jnp.zeros(5), jnp.zeros(5), jnp.zeros(5))  # no axis of critics


def test_a_wrong_type_is_caught(key):
    assert decorator.gate(jax.random.clone(key), 0.5, 4).shape == (4,)
    with pytest.raises(TypeCheckError):
        decorator.gate(jax.random.PRNGKey(0), 0.5, 4)  # an untyped key
    with pytest.raises(TypeCheckError):
        decorator.decorate(jnp.zeros((4, 6), int), jnp.zeros((4, 6)), 0.1)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: lambda *x: jax.jit(f)(*x)])
def test_a_wrong_shape_is_caught_while_tracing(transform):
    base, residual = jnp.zeros((2, 4, 6)), jnp.zeros((2, 3, 6))
    right = transform(lambda base: decorator.decorate(base, 0 * base, 0.1))
    assert right(base).shape == (2, 4, 6)
    with pytest.raises(TypeCheckError):
        transform(lambda base, residual: decorator.decorate(base, residual, 0.1))(base, residual)


def test_a_batch_whose_fields_disagree_is_caught_by_an_update(key):
    config = SACConfig(hidden=(8,))
    built = sac.make_sac(config, DecoratorConfig(), 5, 6, 6)
    hyperparams = sac.make_hyperparams(sac.Config(sac=config), 6)
    state = jax.eval_shape(built.init, key)
    right = Batch(
        obs=jnp.zeros((4, 5)),
        base_action=jnp.zeros((4, 6)),
        residual_action=jnp.zeros((4, 6)),
        reward=jnp.zeros(4),
        discount=jnp.zeros(4),
        next_obs=jnp.zeros((4, 5)),
        next_base_action=jnp.zeros((4, 6)),
        weight=jnp.zeros(4),
    )
    update = jax.random.clone(key)
    assert jax.eval_shape(built.update, state, right, hyperparams, update)
    wrong = {
        # without a check, both would broadcast to (4, 4) or (1,) and train on nonsense
        "reward": jnp.zeros((4, 1)),
        "weight": jnp.zeros(1),
    }
    for name, leaf in wrong.items():
        with pytest.raises(TypeCheckError):
            jax.eval_shape(built.update, state, right._replace(**{name: leaf}), hyperparams, update)


def test_outside_the_tests_nothing_is_checked():
    """Importing the learner as users do loads no checker and wraps no function."""
    program = (
        "import sys; from pdjax.learner import decorator, sac;"
        "assert 'beartype' not in sys.modules;"
        "assert not hasattr(decorator.decorate, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert hasattr(decorator.decorate, "__wrapped__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_public_functions_name_the_shapes_of_their_arrays(path):
    for function in ast.parse(path.read_text()).body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            given = [argument.annotation for argument in function.args.args]
            for annotation in [*given, function.returns]:
                assert annotation is not None, function.name
                assert "Array" not in names_outside_brackets(annotation), function.name


def names_outside_brackets(annotation):
    """Names in an annotation that no subscript such as Float[...] qualifies."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) != "tuple":
        return set()
    found = {annotation.id} if isinstance(annotation, ast.Name) else set()
    return found.union(*map(names_outside_brackets, ast.iter_child_nodes(annotation)))


def test_a_bare_array_is_found():
    found = ast.parse("x: tuple[Float[Array, 'batch'], Array]").body[0]
    assert "Array" in names_outside_brackets(found.annotation)
    found = ast.parse("x: tuple[Float[Array, 'batch'], Float[Array, '']]").body[0]
    assert "Array" not in names_outside_brackets(found.annotation)
