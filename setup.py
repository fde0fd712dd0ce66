"""What setup.cfg cannot say: each folder of export/zoo is installed as it is, whatever networks it holds."""

from pathlib import Path
from typing import Any

from setuptools import Distribution, setup


class WithZoo(Distribution):
    """setup.cfg's files, and those of the zoo."""

    def parse_config_files(self, *args: Any, **options: Any) -> None:
        super().parse_config_files(*args, **options)
        files = sorted(path for path in Path("export", "zoo").rglob("*") if path.is_file())
        zoo = [(f"share/qrobust/{path.parent.as_posix()}", [path.as_posix()]) for path in files]
        self.data_files = [*(self.data_files or ()), *zoo]


setup(distclass=WithZoo)
