"""Leaves the kernels out where they are not wanted or cannot be built. All else is in pyproject.toml."""

import os
import sysconfig

from setuptools import Distribution, setup


class _Distribution(Distribution):
    def parse_config_files(self, *args, **kwargs):
        super().parse_config_files(*args, **kwargs)
        is_pure = os.environ.get("VQFORMAT_PURE") == "1"  # for a wheel that any platform can install
        has_no_abi3 = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # free-threaded: setuptools refuses cp310-abi3
        if is_pure or has_no_abi3:
            self.ext_modules = []
            self.command_options.get("bdist_wheel", {}).pop("py_limited_api", None)


setup(distclass=_Distribution)
