import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfmtok.cli import COMMANDS, main


def test_help_names_every_command_and_imports_none_of_them():
    code = "import sys; from vfmtok.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in sys.modules if m in ('torch', 'lmdb', 'PIL', 'timm', 'pyarrow')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert all(name in result.stdout for name in COMMANDS)
    assert result.stdout.endswith("[]\n")


def test_help_of_a_command_waits_for_no_torch():
    code = "import sys; from vfmtok.cli import main\ntry: main(['reproduce', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in sys.modules if m in ('torch', 'timm', 'torch_fidelity')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert "VIRTUAL_imagenet256" in "".join(result.stdout.split()) and result.stdout.endswith("[]\n"), result.stderr


def test_preparing_imports_neither_torch_nor_pyarrow(tmp_path):
    code = f"import sys; from vfmtok.cli import main\ncode = main(['prepare', 'sample', {str(tmp_path / 'out')!r}])\n"
    code += "print(code, sorted(m for m in sys.modules if m in ('torch', 'timm', 'pyarrow')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.stdout.endswith("0 []\n"), result.stderr


def test_an_error_is_one_line_and_the_exit_code_2(capsys, tmp_path):
    assert main(["stats", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vfmtok stats: error: no dataset at") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["stats"], ["prepare"], ["--", "prepare", "a", "b"]])
def test_wrong_usage_is_one_line_and_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("output", "reason"), [("/dev/full", "No space left"), ("a closed pipe", "Broken pipe")])
def test_output_that_cannot_be_printed_is_one_line(tmp_path, output, reason, unbuffered):
    main(["prepare", "sample", str(tmp_path / "out")])
    if output == "/dev/full":
        write = os.open(output, os.O_WRONLY)
    else:
        read, write = os.pipe()
        os.close(read)
    command = [sys.executable, "-m", "vfmtok", "prepare", "sample", tmp_path / "out"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    root = Path(__file__).parents[1]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, cwd=root)
    os.close(write)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "cannot print the output" in result.stderr and reason in result.stderr


def test_other_errors_of_the_system_are_not_taken_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr("vfmtok.commands.prepare.run", lambda args: (tmp_path / "absent").read_bytes())
    with pytest.raises(FileNotFoundError):
        main(["prepare", "sample", "out"])


def test_without_any_output_it_still_works(tmp_path):
    command = f"exec {sys.executable} -m vfmtok prepare sample {tmp_path / 'out'} >&-"
    result = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 0 and "Traceback" not in result.stderr
