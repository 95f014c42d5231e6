"""Packages that a wheel holds. pyproject.toml cannot say that `resources/` lies within the package there."""

from setuptools import find_packages, setup

# scripts/ stays with the checkout, whose rules start it: an installed `scripts` would meet those of other projects.
setup(
    packages=[*find_packages(include=["joulesweep*"]), "joulesweep.resources"],
    package_dir={"joulesweep.resources": "resources"},
)
