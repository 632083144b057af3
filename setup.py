"""What pyproject.toml cannot say: recipes/ is in the wheel as flatgd/recipes."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["flatgd*"]), "flatgd.recipes"],
    package_dir={"flatgd.recipes": "recipes"},
)
