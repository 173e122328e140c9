"""The folder of a run: its name and the link to the latest run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import train
from tests.support.runs import SMALL_RUN


@pytest.mark.usefixtures("fake_envs")
def test_name_notes_and_latest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is taken gets a number; `latest` leads to the newest run."""
    line = f"{SMALL_RUN} --num_train_steps 5 --eval_frequency 0 --work_dir {tmp_path}"
    for name in ("first", "first"):
        assert train.main(shlex.split(f"{line} --run_name {name} --notes 'a thought'")) == 0
    assert capsys.readouterr().err.count("warning: --run_name first is taken; this run is first-run2\n") == 1
    folder = tmp_path / "cartpole_swingup"
    assert sorted(path.name for path in folder.iterdir()) == ["first", "first-run2", "latest"]
    assert (folder / "latest").resolve() == (folder / "first-run2").resolve()
    assert json.loads((folder / "latest" / "config.json").read_text())["flags"]["notes"] == "a thought"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x\ny"])
def test_names_that_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(["--run_name", name])
    assert "--run_name" in capsys.readouterr().err
