"""Which skill explains a given trajectory best."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import evaluate
from diayn import DIAYNAgent
from errors import UserError
from evaluation import load as loading
from evaluation.evaluate_skills import evaluate_skills
from evaluation.imitate import read_trajectory, stack_frames
from evaluation.load import load
from running.derivation import make_config
from tests.support.fake_env import IMAGE_SIZE
from tests.support.paths import Mount
from tests.support.runs import SeededEnv, rows
from video import read_video

RunEvaluate = Callable[[str], Path]
CONFIG = make_config({"image_size": IMAGE_SIZE})


def test_likelihoods_and_videos(run_evaluate: RunEvaluate, pretrained: Path) -> None:
    """log q of every skill, from the networks alone and the observations that training would have seen."""
    out = run_evaluate("--no_video --skills 1 --save_trajectories")
    (given,) = out.glob("*.npz")
    with np.load(given) as data:
        env = SeededEnv(ragged=True)
        env.reset(seed=int(data["seed"]))
        observations = np.stack([env.step(action)[0] for action in data["actions"]])
        np.testing.assert_array_equal(stack_frames(data["frames"], 3), observations)
    with torch.no_grad():
        agent = load(pretrained, "cpu").agent
        assert isinstance(agent, DIAYNAgent)
        assert agent.discriminator.encoder is not None
        features = agent.discriminator.encoder(torch.from_numpy(observations))
        log_q = agent.discriminator(features).log_softmax(dim=1)
    out = run_evaluate(f"--imitate {given} --video_size 48")
    table = rows(out / "imitation.csv")
    assert [float(row["log_q_mean"]) for row in table] == pytest.approx(log_q.mean(dim=0).tolist(), rel=1e-4)
    assert [float(row["log_q_sum"]) for row in table] == pytest.approx(log_q.sum(dim=0).tolist(), rel=1e-4)
    best = int(log_q.mean(dim=0).argmax())
    frames = list(read_video(out / "imitation.mp4"))
    assert frames[0].shape == (48, 2 * 48, 3)
    assert (out / f"skill{best}.mp4").exists()
    assert len(list(read_video(out / "given.mp4"))) == len(observations)


def test_the_best_skill_is_recorded_from_the_same_start(
    run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    (given,) = run_evaluate("--no_video --skills 1 --seed 5 --save_trajectories").glob("*.npz")
    recorded: list[tuple[Any, Any]] = []

    def spy(agent: Any, eval_envs: Any, names: Any, seeds: Any, **settings: Any) -> Any:
        recorded.append((dict(names), list(seeds)))
        return evaluate_skills(agent, eval_envs, names, seeds, **settings)

    monkeypatch.setattr(loading, "evaluate_skills", spy)
    likelihoods = [-3.0, -2.0, -1.0, -4.0]
    monkeypatch.setattr(DIAYNAgent, "log_likelihood", lambda self, obs: np.tile(likelihoods, (len(obs), 1)))
    run_evaluate(f"--imitate {given} --video_size 32")
    assert recorded == [({2: "skill2"}, [int(np.load(given)["seed"])])]


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(5, 3, 40, 60), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", frames=frames)
    resized, seed = read_trajectory(tmp_path / "t.npz", CONFIG)
    assert resized.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert seed is None
    size = (IMAGE_SIZE, IMAGE_SIZE)
    expected = cv2.resize(frames[2].transpose(1, 2, 0).copy(), size, interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(resized[2].transpose(1, 2, 0), expected)


def test_frames_of_another_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, frames=np.zeros((5, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8), env="walker_walk")
    with pytest.raises(UserError, match="its frames are of walker_walk"):
        read_trajectory(path, CONFIG)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((5, 3, 24, 24)), id="float"),
        pytest.param(np.zeros((1, 3, 24, 24), np.uint8), id="no step"),
        pytest.param(np.zeros(2, np.uint8), id="no pictures"),
    ],
)
def test_what_is_no_frames_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    np.savez(tmp_path / "t.npz", frames=frames)
    with pytest.raises(UserError, match="frames must be uint8"):
        read_trajectory(tmp_path / "t.npz", CONFIG)


def test_what_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", actions=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name, words in (("other.npz", "holds no trajectory"), ("text.npz", "holds no"), ("nowhere.npz", "No such")):
        with pytest.raises(UserError, match=words):
            read_trajectory(tmp_path / name, CONFIG)


# -- crafted files -----------------------------------------------------------------------------------------------------

FRAMES = np.zeros((5, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)


def npz(**members: Any) -> bytes:
    """Return an .npz file. Bytes are written as they are, as a member that NumPy cannot write."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in members.items():
            if not isinstance(value, bytes):
                array = io.BytesIO()
                np.save(array, np.asarray(value), allow_pickle=True)
                value = array.getvalue()
            file.writestr(f"{name}.npy", value)
    return memory.getvalue()


def claiming(shape: str, dtype: str = "|u1", content: bytes = b"") -> bytes:
    """Return an array file whose header claims a shape and a type."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


CRAFTED = {
    "a negative seed": (npz(frames=FRAMES, seed=-1), "its seed is -1"),
    "a seed of several numbers": (npz(frames=FRAMES, seed=[1, 2]), "its seed is no number"),
    "a seed in a list": (npz(frames=FRAMES, seed=[1]), "its seed is no number"),
    "a fractional seed": (npz(frames=FRAMES, seed=np.float64(1.5)), "its seed is no number"),
    "a NaN seed": (npz(frames=FRAMES, seed=np.float64("nan")), "its seed is no number"),
    "a seed in words": (npz(frames=FRAMES, seed="one"), "its seed is no number"),
    "a pickled seed": (npz(frames=FRAMES, seed=np.array(10**40, object)), "its seed is no number"),
    "a seed without end": (npz(frames=FRAMES, seed=claiming("(10000000000,)", "<i8")), "its seed is no number"),
    "a task in numbers": (npz(frames=FRAMES, env=3), "its env is no text"),
    "a task without end": (npz(frames=FRAMES, env=claiming("()", "<U100000000")), "its env is no text"),
    "pickled frames": (npz(frames=np.array([None, {}], object)), "frames must be uint8"),
    "flat frames": (npz(frames=FRAMES.ravel()), "frames must be uint8"),
    "frames with two channels": (npz(frames=FRAMES[:, :2]), "frames must be uint8"),
    "frames without pixels": (npz(frames=FRAMES[:, :, :0]), "frames must be uint8"),
    "frames without rows and columns": (npz(frames=FRAMES[:, :, :0, :0]), "frames must be uint8"),
    "one frame": (npz(frames=FRAMES[:1]), "frames must be uint8"),
    "frames without end": (npz(frames=claiming("(1000000000, 3, 24, 24)")), "1000000000 frames need"),
    "frames beyond 64 bits": (npz(frames=claiming(f"({10**30}, 3, 24, 24)")), "frames need"),
    "pictures without end": (npz(frames=claiming("(2, 3, 1000000, 1000000)")), "2 frames need"),
    "a negative shape": (npz(frames=claiming("(-5, 3, 24, 24)")), "frames must be uint8"),
    "frames that are cut": (npz(frames=claiming("(5, 3, 24, 24)", content=bytes(100))), "holds no trajectory"),
    "a header in words": (npz(frames=claiming("many")), "holds no trajectory"),
    "no array": (npz(frames=b"text"), "holds no trajectory"),
    "no frames": (npz(seed=3), "holds no trajectory"),
    "damaged": (npz(frames=np.arange(10_000))[:200] + npz(frames=FRAMES)[200:], "holds no trajectory"),
    "empty": (b"", "holds no trajectory"),
    "a single array": (claiming("(1000000000, 3, 24, 24)"), "holds no trajectory"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_file_is_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """In one line, before anything is played or written."""
    data, words = CRAFTED[case]
    path, out = tmp_path / "t.npz", tmp_path / "new" / "out"
    path.write_bytes(data)
    assert evaluate.main([str(pretrained), "--device", "cpu", "--imitate", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evaluate.py: error: --imitate {path}")
    assert words in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damaged", range(40))
def test_any_flipped_byte(tmp_path: Path, damaged: int) -> None:
    data = bytearray(npz(frames=np.random.default_rng(0).integers(256, size=(3, 3, 24, 24), dtype=np.uint8), seed=1))
    rng = np.random.default_rng(damaged)
    for place in rng.integers(len(data), size=1 + damaged % 3):
        data[place] = rng.integers(256)
    (tmp_path / "t.npz").write_bytes(data)
    try:
        frames, _ = read_trajectory(tmp_path / "t.npz", CONFIG)
    except UserError as error:
        assert str(tmp_path / "t.npz") in str(error)  # noqa: PT017
    else:
        assert frames.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.npz")
    with pytest.raises(UserError, match="not a regular file"):
        read_trajectory(tmp_path / "t.npz", CONFIG)


def test_any_whole_seed_is_a_start(tmp_path: Path) -> None:
    for seed in (0, 2**32, 2**64 - 1):
        (tmp_path / "t.npz").write_bytes(npz(frames=FRAMES, seed=np.uint64(seed)))
        assert read_trajectory(tmp_path / "t.npz", CONFIG)[1] == seed


def test_nothing_stays_if_the_skill_cannot_be_played(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.npz").write_bytes(npz(frames=FRAMES))

    def interrupted(env: SeededEnv, action: np.ndarray) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SeededEnv, "step", interrupted)
    line = [str(pretrained), "--device", "cpu", "--imitate", str(tmp_path / "t.npz"), "--out", str(tmp_path / "out")]
    assert evaluate.main(line) == 130
    assert not (tmp_path / "out").exists()


def test_a_full_disk(pretrained: Path, tmp_path: Path, mount: Mount, capsys: pytest.CaptureFixture[str]) -> None:
    """There is room for the record at most, and not for the table; the record is taken back."""
    disk = mount("size=12k")
    (disk / "filler").write_bytes(bytes(8 << 10))
    (tmp_path / "t.npz").write_bytes(npz(frames=FRAMES))
    line = [str(pretrained), "--device", "cpu", "--no_video", "--imitate", str(tmp_path / "t.npz"), "--out", str(disk)]
    assert evaluate.main(line) == 2
    assert re.search(rf"^evaluate\.py: error: {disk}/\w+\.(csv|json): No space left on device", capsys.readouterr().err)
    assert [path.name for path in disk.iterdir()] == ["filler"]
