"""Loading a trained agent from a run's folder, its checkpoint folder, or a checkpoint file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
from errors import UserError
from evaluation.chosen_skills import check_skill
from evaluation.load import load
from tests.support.disk import load_piece, saved
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import SMALL_RUN, SeededEnv, assert_same, start_run


def test_what_is_loaded(pretrained: Path) -> None:
    loaded = load(pretrained, "cpu")
    assert loaded.config.num_skills == 4
    assert loaded.config.device == "cpu"
    assert loaded.agent.skills() == [0, 1, 2, 3]
    assert loaded.frame == 40 * 3
    assert loaded.label.parts == (pretrained.parts[-3], "cartpole_swingup", "skills")
    assert loaded.fps == SeededEnv.metadata["render_fps"]
    assert loaded.max_episode_steps == 10


def test_a_run_its_checkpoint_folder_and_a_file_give_the_same_agent(pretrained: Path) -> None:
    (file,) = pretrained.glob("checkpoint/state_*.pt")
    obs = np.random.default_rng(0).integers(256, size=(4, 9, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    loaded = [load(place, "cpu") for place in (pretrained, pretrained / "checkpoint", file)]
    actions = [one.agent.assess(obs, np.arange(4)).action for one in loaded]
    for action, one in zip(actions[1:], loaded[1:], strict=True):
        np.testing.assert_array_equal(action, actions[0])
        assert one.label == loaded[0].label


def test_the_untrained_agent_is_that_of_the_new_run(pretrained: Path, tmp_path: Path) -> None:
    loaded = load(pretrained, "cpu")
    run = start_run(f"{SMALL_RUN} --num_skills 4 --work_dir {tmp_path}")
    expected = run.agent.state_dict()["modules"]
    run.close()
    assert_same(loaded.untrained_agent().state_dict()["modules"], expected)
    trained = loaded.agent.state_dict()["modules"]
    assert not torch.equal(trained["actor"]["policy.0.weight"], expected["actor"]["policy.0.weight"])


@pytest.mark.parametrize("place", ["nowhere", "empty", "file", "pickle"])
@pytest.mark.usefixtures("fake_envs")
def test_what_is_no_run_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"no checkpoint")
    torch.save({"flags": {}}, tmp_path / "pickle")
    with pytest.raises(UserError, match=str(tmp_path / place)):
        load(tmp_path / place, "cpu")


@pytest.mark.parametrize(
    ("known", "words"), [([0, 1, 2], "the skills 0 to 2"), ([5], "skill 5 only"), ([-1], "no skills")]
)
def test_a_skill_that_the_run_does_not_have(known: list[int], words: str) -> None:
    check_skill("skills", known[0], known)
    with pytest.raises(UserError, match=f"--skills: the run has {words}; got 9"):
        check_skill("skills", 9, known)


# -- crafted checkpoints -----------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def weights(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state["agent"]["modules"]["actor"]
    return found


def first_weight(state: dict[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = next(iter(weights(state).values()))
    return tensor


def counter(name: str, value: Any) -> Change:
    return lambda state: state["counters"].update({name: value})


def skill(value: Any) -> Change:
    return lambda state: state["agent"].update(skill=value)


ODD_STEPS: tuple[Any, ...] = (float("inf"), -1, 2**63, None, "1", 1.0)
ODD_SKILLS: tuple[Any, ...] = (4, -2, "0", None, 1.0, 10**30)
CRAFTED: dict[str, Change] = {
    **{f"step {value!r}": counter("step", value) for value in ODD_STEPS},
    **{f"skill {value!r}": skill(value) for value in ODD_SKILLS},
    "no step": lambda s: s["counters"].pop("step"),
    "no frames": lambda s: s["counters"].pop("frames_before"),
    "negative frames": lambda s: s["counters"].update(frames_before=-3),
    "no counters": lambda s: s.pop("counters"),
    "a list of counters": lambda s: s.update(counters=[1, 2]),
    "no flags": lambda s: s.pop("flags"),
    "a list of flags": lambda s: s.update(flags=["lr"]),
    "a flag of a huge number": lambda s: s["flags"].update(lr=10**5000),
    "deep layers": lambda s: s["flags"].update(hidden_depth=10**9),
    "three bounds": lambda s: s["flags"].update(log_std_bounds=(1.0, 2.0, 3.0)),
    "bounds in the wrong order": lambda s: s["flags"].update(log_std_bounds=(2.0, -10.0)),
    "a fine-tuned run without a skill": lambda s: s["flags"].update(finetune_from="/x"),
    "many discriminators": lambda s: s["flags"].update(discriminator_ensemble=1000),
    "huge pictures": lambda s: s["flags"].update(image_size=10**7),
    "many pictures": lambda s: s["flags"].update(frame_stack=10**12),
    "wide layers": lambda s: s["flags"].update(hidden_dim=10**9),
    "many skills": lambda s: s["flags"].update(num_skills=10**9),
    "no agent": lambda s: s.pop("agent"),
    "an agent in words": lambda s: s.update(agent="agent"),
    "no networks": lambda s: s["agent"].update(modules={}),
    "a missing tensor": lambda s: weights(s).popitem(),
    "an unknown tensor": lambda s: weights(s).update(xyzzy=torch.zeros(3)),
    "a word for a tensor": lambda s: weights(s).update({next(iter(weights(s))): "word"}),
    "another shape": lambda s: weights(s).update({next(iter(weights(s))): torch.zeros(7)}),
    "a huge shape": lambda s: weights(s).update({next(iter(weights(s))): torch.zeros(1).expand(10**9, 10**6)}),
    "a NaN weight": lambda s: first_weight(s).fill_(float("nan")),
    "an infinite weight": lambda s: first_weight(s).fill_(float("inf")),
    "an infinite temperature": lambda s: s["agent"]["log_alpha"].fill_(float("inf")),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_checkpoint_is_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """In one line that names the file or what it asks for, and nothing is made."""
    (file,) = pretrained.glob("checkpoint/state_*.pt")
    state = load_piece(file)
    CRAFTED[case](state)
    path, out = tmp_path / "state_4.pt", tmp_path / "new" / "out"
    path.write_bytes(saved(state))
    assert evaluate.main([str(path), "--device", "cpu", "--no_video", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate.py: error: ")
    assert str(path) in line or "not enough memory" in line
    assert list(tmp_path.iterdir()) == [path]
