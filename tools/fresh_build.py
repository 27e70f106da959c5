"""The step of a build that copies the package: into an empty directory.

`pip install .` builds in the clone, where setuptools leaves `build/lib`: a module that is gone since would be in the
next wheel.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    """Copies the package, after it has removed the copy of an earlier build."""

    def run(self) -> None:
        """Copy the package."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "g4convert", ignore_errors=True)
        super().run()
