"""What an installed package holds, built without its checkout."""

import os
import subprocess
import sys

import pytest
import tiny_run


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(folder.parent), "build_py", "-d", str(folder)]
    done = subprocess.run(command, cwd=tiny_run.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_templates_and_resources_are_installed_and_scripts_are_not(installed):
    assert (installed / "joulesweep" / "report" / "templates" / "report.html.j2").is_file()
    for name in ("gpus.csv", "cpu_watts.csv", "carbon_intensity.csv", "published/maina.csv"):
        assert (installed / "joulesweep" / "resources" / name).is_file()
    assert [path.name for path in installed.iterdir()] == ["joulesweep"]


def test_an_installed_package_reads_its_own_tables_and_templates(installed):
    code = (
        "from joulesweep.reference import footprint; from joulesweep.report import markup; import joulesweep\n"
        "print(joulesweep.__file__, len(footprint.intensities()) > 100, len(markup.table({'a': ''}, [['1']])) > 10)"
    )
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "joulesweep" / "__init__.py"), "True", "True"]
