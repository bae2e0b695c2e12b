"""Which OpenGL library draws, and what is said where none does; pictures: `test_gymnasium`."""

import sys

import pytest

from pdjax_envs import drawing


@pytest.mark.parametrize(
    ("chosen", "installed", "found"),
    [
        ("", {"EGL", "OSMesa"}, "egl"),
        ("", {"OSMesa"}, "osmesa"),
        ("osmesa", {"EGL", "OSMesa"}, "osmesa"),
        ("GLFW ", set(), "glfw"),
    ],
)
def test_the_library_is_the_users_or_one_that_needs_no_screen(
    monkeypatch, chosen, installed, found
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", chosen)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: name in installed or None)
    assert drawing._backend() == found


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(drawing.RenderError, match=r"install EGL \(Debian: libegl1\) or OSMesa"):
        drawing._backend()


def test_a_library_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(drawing, "_backend", lambda: "nonsense")
    with pytest.raises(drawing.RenderError, match=r"with nonsense \(No module named .*MUJOCO_GL"):
        drawing._open(None, 10, 10)
