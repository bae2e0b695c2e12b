#!/bin/sh
# Makes an interpreter with the original ManiSkill2 (mani-skill2 0.5.3, SAPIEN 2.2.2):
#
#     sh experiments/simulators/maniskill2.sh DIRECTORY [PYTHON]
#
# PYTHON is 3.8 to 3.11, by default python3. SAPIEN 2 is linked to Vulkan's loader, even for state
# observations; where the system has none, the one that comes with SAPIEN 3 is put beside it.
set -eu
"${2:-python3}" -m venv "$1"
"$1/bin/pip" install --quiet "mani-skill2==0.5.3" "numpy<2"
if ! ldconfig -p 2>/dev/null | grep -q "libvulkan.so.1"; then
    "$1/bin/pip" download --quiet --no-deps --dest "$1/wheels" "sapien==3.0.3"
    "$1/bin/python" - "$1" <<'PYTHON'
import pathlib, sys, sysconfig, zipfile

(wheel,) = pathlib.Path(sys.argv[1], "wheels").glob("sapien-*.whl")
with zipfile.ZipFile(wheel) as files:
    (loader,) = [name for name in files.namelist() if "/libvulkan.so" in name]
    place = pathlib.Path(sysconfig.get_path("purelib"), "sapien.libs", "libvulkan.so.1")
    place.write_bytes(files.read(loader))
PYTHON
fi
"$1/bin/python" -c "import sapien.core, mani_skill2" && echo "made $1/bin/python"
