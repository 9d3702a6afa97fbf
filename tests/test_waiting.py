"""How OpenMP's threads wait: chosen by cores and load before PyTorch is loaded, and left alone where the user chose."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vfmtok import waiting
from vfmtok.waiting import PASSIVE, VARIABLES, chosen, thread_count


@pytest.mark.parametrize(
    "cores, load, environment, passive",
    [
        (2, 0.1, {}, False),  # nobody else computes
        (2, 1.0, {}, True),
        (2, 2.3, {}, True),
        (16, 1.0, {}, True),  # threads take all cores
        (16, 1.0, {"OMP_NUM_THREADS": "8"}, False),  # there is room for both
        (16, 9.0, {"OMP_NUM_THREADS": "8"}, True),
        (2, 5.0, {"OMP_NUM_THREADS": "1"}, False),  # a single thread waits for none
        (1, 5.0, {}, False),
        (4, 4.0, {"OMP_NUM_THREADS": "3,2"}, True),  # the outer level
        (4, 4.0, {"OMP_NUM_THREADS": "many"}, True),  # OpenMP ignores it
    ],
)
def test_choice(cores, load, environment, passive):
    assert chosen(cores, load, environment) == (PASSIVE if passive else {})


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_wins(name):
    assert chosen(2, 5.0, {name: "ACTIVE"}) == {}


def test_threads():
    assert [thread_count(4, {"OMP_NUM_THREADS": told}) for told in ("", "0", "2", "3,2", "x")] == [4, 4, 2, 3, 4]


def started(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "OMP_NUM_THREADS")}
    prelude = "import os, sys; from vfmtok import waiting; waiting.busy_processes = lambda: 3.0; "
    prelude += "waiting.usable_cores = lambda: 2\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], env=inherited | environment, capture_output=True, text=True, check=True
    )


SHOW = "print([os.environ.get(name) for name in waiting.VARIABLES], 'torch' in sys.modules)"


def test_a_command_sets_the_environment_before_torch_is_loaded_and_says_so():
    done = started(f"waiting.choose('vq_train.py')\n{SHOW}", {})
    assert done.stdout == "['PASSIVE', None, '0'] False\n"
    assert done.stderr.startswith("vq_train.py: 2 cores, load 3.0") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("environment", [{"GOMP_SPINCOUNT": "5000"}, {"OMP_NUM_THREADS": "1"}])
def test_nothing_to_choose_is_not_spoken_of(environment):
    done = started(f"waiting.choose('vq_train.py')\n{SHOW}", environment)
    assert done.stdout == f"[None, {environment.get('GOMP_SPINCOUNT')!r}, None] False\n" and done.stderr == ""


def test_one_process_of_several_speaks():
    done = started(f"waiting.choose('vq_train.py')\n{SHOW}", {"RANK": "1"})
    assert done.stdout.startswith("['PASSIVE'") and done.stderr == ""


def test_it_is_too_late_once_torch_is_loaded():
    done = started(f"sys.modules['torch'] = sys\nwaiting.choose('x')\n{SHOW}", {})
    assert done.stdout == "[None, None, None] True\n" and done.stderr == ""


@pytest.mark.parametrize(
    "script, words",
    [(f"{name}.py", ["--help"]) for name in ("vq_train", "train_c2i", "vqgan_test", "test_net")]
    + [("vfmtok/__main__.py", ["codes", "nowhere", "nothing"])],
)
def test_every_program_chooses_before_it_loads_pytorch(script, words, root):
    code = "waiting.choose = lambda program: (print(program, 'torch' in sys.modules), sys.exit(0))\n"
    code += (
        f"import runpy; sys.argv = {[script, *words]!r}; runpy.run_path({str(root / script)!r}, run_name='__main__')"
    )
    name = "vfmtok codes" if script.startswith("vfmtok") else script
    assert started(code, {}).stdout == f"{name} False\n"


def test_the_runtime_that_pytorch_brings_reads_it():
    """OpenMP shows its settings when it is loaded."""
    code = "waiting.choose('x'); import torch; print(torch.__config__.parallel_info())"
    done = started(code, {"OMP_DISPLAY_ENV": "TRUE"})
    if "OPENMP DISPLAY ENVIRONMENT BEGIN" not in done.stderr:
        pytest.skip("this PyTorch has no OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr.replace("='", " = '")


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not say how long its cores were idle")
def test_a_load_that_is_over_is_not_counted(monkeypatch):
    """The average of a minute stays high behind whatever ended, such as the installation before a training."""
    monkeypatch.setattr(os, "getloadavg", lambda: (40.0, 0.0, 0.0))
    found = waiting.busy_processes()
    assert 0 <= found <= waiting.usable_cores() + 0.1  # of these cores, and not 40


@pytest.mark.parametrize("busy", [0, 1, 2])
def test_busy_cores_are_counted_and_idle_ones_are_not(monkeypatch, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    monkeypatch.setattr(waiting, "_idle_seconds", lambda: [3.0] * busy + [time.monotonic()] * (2 - busy))
    assert waiting.busy_processes(looks=1) == pytest.approx(busy, abs=0.1)


def test_what_ends_while_one_looks_is_not_counted(monkeypatch):
    """A process that has just ended may still give back its memory."""
    busy = [2.0, 0.1, 2.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    monkeypatch.setattr(waiting, "_busy_cores", lambda seconds: busy.pop(0))
    assert waiting.busy_processes() == 0.1 and busy == [2.0]


def test_where_cores_say_nothing_the_load_counts(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.6, 0.0, 0.0))
    monkeypatch.setattr(waiting, "_idle_seconds", list)
    assert waiting.busy_processes(seconds=0.0) == 1.6
