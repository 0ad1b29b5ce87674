"""Jobs by their short names: `npusim.run(...)` is `npusim.run.run(...)`."""

import subprocess
import sys

import pytest

import npusim
from npusim.errors import UserError
from npusim.run import run, run_timing


def test_a_job_is_called_by_its_modules_name(repository):
    result = npusim.run("tiny", repository / "hwconfigs" / "tiny_8x8.yaml", verify="none")
    assert result.timing.cycles == run_timing("tiny", repository / "hwconfigs" / "tiny_8x8.yaml").timing.cycles
    assert npusim.run.run is run


def test_every_job_is_callable_and_refuses_as_its_function_does(tmp_path):
    assert all(callable(getattr(npusim, name)) for name in npusim.JOBS)
    with pytest.raises(UserError, match="no such file"):
        npusim.compare(tmp_path, tmp_path)


def test_other_names_are_refused_and_nothing_heavy_is_imported_before_the_first_job():
    with pytest.raises(AttributeError, match="'npusim' has no attribute 'rum'"):
        _ = npusim.rum
    code = "import sys, npusim; assert not {'torch', 'numba', 'numpy'} & set(sys.modules); assert callable(npusim.run)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
