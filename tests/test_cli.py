"""The command line: what it teaches, what it does, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SAMPLE, post
from PIL import Image
from typer.testing import CliRunner

from sd_mlflow import cli, packaging
from sd_mlflow.demo import free_port
from sd_mlflow.parameters import PARAMETERS

HORSE = "a photograph of a horse"
#: The file's name says the format, and a command line answers with files.
NOT_FLAGS = {"image_format", "orient", "return_metadata"}
COMMANDS = {
    "package": "Example: sd-mlflow package sd-emoji --out model",
    "inspect": "Example: sd-mlflow inspect model",
    "serve": "Example: sd-mlflow serve model --port 5001",
    "generate": 'Example: sd-mlflow generate "a photograph of an astronaut riding a horse" --out x.png --seed 7',
    "batch": "Example: sd-mlflow batch prompts.csv --out pictures --num-inference-steps 20",
    "bench": "Example: sd-mlflow bench --quick",
    "register": "Example: sd-mlflow register model --name stable-diffusion-v1-4",
    "traffic": "Example: sd-mlflow traffic my-pictures blue=90 green=10",
    "invoke": 'Example: sd-mlflow invoke my-pictures --prompt "a red fox in the snow" --seed 7 --out pictures',
    "delete": "Example: sd-mlflow delete my-pictures --deployment blue",
}


def help_of(*command: str) -> str:
    """The help text, its frames and line breaks taken out."""
    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line with which the command line refuses `arguments`; there must be no traceback."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1
    return lines[0]


def done(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line prints, on either stream, when it does what `arguments` ask."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    return captured.out + captured.err


def test_the_help_names_every_command_and_there_is_an_example_of_each() -> None:
    listed = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    listed |= {group.name for group in cli.app.registered_groups if group.name}
    assert listed == {*COMMANDS, "deploy"}
    assert all(command in help_of() for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_teaches_by_an_example(command: str) -> None:
    assert COMMANDS[command] in help_of(command)


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=PARAMETERS)
def test_generate_has_a_flag_for_a_row_of_the_table_with_its_description(parameter: Any) -> None:
    text, flag = help_of("generate"), f"--{parameter.name.replace('_', '-')}"
    assert (flag in text) == (parameter.name not in NOT_FLAGS)
    if parameter.name not in NOT_FLAGS:
        assert parameter.description in text
        if parameter.maximum is not None:
            assert f"{parameter.minimum:g} to {parameter.maximum:.0f}." in text


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate_writes_the_format_that_the_file_name_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, emoji_package: Path, suffix: str, kind: str
) -> None:
    file = tmp_path / "new folder" / f"x.{suffix}"
    flags = ("--model", emoji_package, "--num-inference-steps", 1, "--seed", 7, "--height", 64, "--width", 96)
    said = done(capsys, "generate", HORSE, "--out", file, *flags)
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == (kind, (96, 64))
    assert f"{file} seed 7" in said


def test_generate_draws_sd_emoji_without_a_package_and_numbers_several_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--num-inference-steps", 1, "--num-images-per-prompt", 2, "--seed", 7)
    said = done(capsys, "generate", "a [bold]horse[/bold] [/x]", "--out", tmp_path / "x.png", *flags)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x-2.png", "x.png"]
    assert "x.png seed 7" in said
    assert "x-2.png seed 8" in said


def test_generate_keeps_to_the_settings_of_the_package(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, emoji_package: Path
) -> None:
    package = tmp_path / "package"
    shutil.copytree(emoji_package, package)
    (package / "artifacts" / "settings.json").write_text('{"max_images_per_request": 1, "device": "cpu"}')
    line = refused(
        capsys, "generate", HORSE, "--model", package, "--num-images-per-prompt", 2, "--out", tmp_path / "x.png"
    )
    assert line == "Error: images in a request: 2, at most 1 are allowed here"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((HORSE, "--out", "x.gif"), "--out must end in .png, .jpg, .jpeg, .webp; got 'x.gif'"),
        ((HORSE, "--out", "x"), "--out must end in"),
        ((HORSE, "--out", "x.png", "--num-inference-steps", 900), "num_inference_steps must be between 1 and 150"),
        ((HORSE, "--out", "x.png", "--guidance-scale", "nan"), "guidance_scale must be"),
        ((HORSE, "--out", "x.png", "--height", 100), "height must be a multiple of 8"),
        ((HORSE, "--out", "x.png", "--scheduler", "[/x]"), "scheduler must be one of .*; got '\\[/x\\]'"),
        (("  ", "--out", "x.png"), "text_prompt must not be blank"),
        ((HORSE, "--out", "x.png", "--model", "nothing-here"), "nothing-here/.* has no manifest.json: package"),
    ],
    ids=["suffix", "no suffix", "steps", "guidance", "height", "scheduler", "prompt", "model"],
)
def test_generate_says_in_one_line_what_is_wrong_before_it_loads_a_model(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[object, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(says, refused(capsys, "generate", *arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sd-emoji", "--setting", "max_prompts"), "--setting must be NAME=VALUE, got 'max_prompts'"),
        (
            ("sd-emoji", "--setting", "max_prompt_per_request=4"),
            "unknown setting 'max_prompt_per_request'; did you mean max_prompts_per_request",
        ),
        (("sd-emoji", "--setting", "max_prompts_per_request=none"), "setting max_prompts_per_request: .*'none'"),
        (("./no-such-folder",), "no-such-folder"),
    ],
    ids=["no value", "unknown", "bad value", "no source"],
)
def test_package_says_in_one_line_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert re.search(says, refused(capsys, "package", *arguments, "--out", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_package_leaves_a_folder_that_exists_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    assert "exists already" in refused(capsys, "package", "sd-emoji", "--out", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_package_says_what_it_wrote_and_what_is_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "model"
    said = done(capsys, "package", "sd-emoji", "--out", out, "--setting", "max_prompts_per_request=4")
    assert re.search(r"Packaged sd-emoji in bfloat16, digest [0-9a-f]{12}: ", said)
    assert f"Next: sd-mlflow serve {out}" in said
    assert (out / "artifacts" / "settings.json").read_text() == '{\n "max_prompts_per_request": "4"\n}\n'


def test_inspect_lists_every_file_and_says_that_they_are_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, emoji_package: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = done(capsys, "inspect", emoji_package)
    folder = emoji_package / packaging.CHECKPOINT_PATH
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert all(file in said for file in files - {"manifest.json"})
    assert "sd-emoji, bfloat16, digest" in said
    assert "safety checker: its own" in said
    assert "every file is as it was packaged" in said


def test_inspect_names_the_file_that_was_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, emoji_package: Path
) -> None:
    folder = tmp_path / packaging.CHECKPOINT_PATH
    shutil.copytree(emoji_package / packaging.CHECKPOINT_PATH, folder)
    (folder / "model_index.json").write_text("{}")
    assert "model_index.json is not the file that was packaged" in refused(capsys, "inspect", tmp_path)


@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_a_folder_that_is_no_package_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert "has no manifest.json" in refused(capsys, command, tmp_path)


def test_serve_without_its_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, emoji_package: Path
) -> None:
    monkeypatch.setattr("sd_mlflow.scoring.local.find_spec", lambda name: None)
    assert "pip install 'sd_mlflow[serve]'" in refused(capsys, "serve", emoji_package)


def test_serve_refuses_a_port_that_is_taken(
    capsys: pytest.CaptureFixture[str], azure_server: str, emoji_package: Path
) -> None:
    port = azure_server.rpartition(":")[2]
    assert f"port {port} cannot be used" in refused(capsys, "serve", emoji_package, "--port", port)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=lambda ending: ending.name)
def test_serve_says_its_url_answers_and_leaves_nothing_behind(
    tmp_path: Path, emoji_package: Path, ending: signal.Signals
) -> None:
    process, url = serve(emoji_package, tmp_path / "output")
    answer = post(url, SAMPLE)
    below = children_of(process.pid)
    process.send_signal(ending)
    said = process.communicate(timeout=60)[1]
    assert answer.status == 200
    assert process.returncode == 0
    assert "Stopped" in said
    assert "Traceback" not in said
    assert len(below) >= 2  # gunicorn and its worker
    assert not [child for child in below if alive(child)]


def test_serve_says_so_when_the_server_stops_by_itself(tmp_path: Path, emoji_package: Path) -> None:
    process, _ = serve(emoji_package, tmp_path / "output")
    below = children_of(process.pid)
    os.kill(below[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1] == "Error: the server stopped by itself; what it said is above"
    assert not [child for child in below if alive(child)]


def serve(package: Path, output: Path) -> tuple[subprocess.Popen[str], str]:
    """`sd-mlflow serve` as a process of its own, and the URL that it says once it answers."""
    command = [sys.executable, "-m", "sd_mlflow.cli", "serve", str(package), "--port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with output.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = ""
    while "Try:" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return process, re.findall(r"Serving .*: POST (http://127\.0\.0\.1:\d+/score)", said)[0]


def alive(process: int) -> bool:
    """Whether `process` runs; one that has ended, and whose parent has not asked, does not."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(") ")[2][0] != "Z"


def children_of(parent: int) -> list[int]:
    """The processes below `parent`, at any depth."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    below = [pid for pid, ppid in pairs if ppid == parent]
    return below + [pid for child in below for pid in children_of(child)]


@pytest.mark.parametrize("code", ["import sd_mlflow", "from sd_mlflow.cli import main; main(['--help'])"])
def test_neither_the_package_nor_the_help_loads_torch_or_mlflow(code: str) -> None:
    after = "import atexit, sys; atexit.register(lambda: print('loaded', {'torch', 'mlflow'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", f"{after}; {code}"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "loaded set()"
