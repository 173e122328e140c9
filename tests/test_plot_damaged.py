"""plot.py on damaged files of runs: each is named in one line and its run left out, and nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from matplotlib.figure import Figure

import plot
from evaluation.runs import SKILL_MEASURES, SKILL_NUMBERS
from running.columns import EVAL_COLUMNS, EVAL_SKILL_COLUMNS, SKILL_COLUMNS
from running.csv_files import csv_lines, header
from running.derivation import make_config
from tests.support.damage import damaged_json, damaged_table
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.paths import Mount
from tests.support.program import Answer, call

FILES = ("config.json", "eval.csv", "skills.csv")
FLAGS = vars(make_config({"num_skills": 2}))


def whole_run() -> dict[str, bytes]:
    """Return the files of a run with two skills and two evaluations."""
    columns, bound, accuracy = EVAL_COLUMNS + EVAL_SKILL_COLUMNS, "mutual_information_bound", "discriminator_accuracy"
    evaluations = [
        {"episode": step, "step": step, "episode_reward": 1.0, accuracy: 0.5, bound: 0.1} for step in (0, 1000)
    ]
    skills = [
        {"step": step, "skill_id": skill, "episode_extrinsic_reward": 3.0, bound: 0.1, "state_distance_between": 1.5}
        for step in (0, 1000)
        for skill in (0, 1)
    ]
    return {
        "config.json": json.dumps({"flags": FLAGS}).encode(),
        "eval.csv": csv_lines([header(columns), *evaluations], columns, "eval.csv"),
        "skills.csv": csv_lines([header(SKILL_COLUMNS), *skills], SKILL_COLUMNS, "skills.csv"),
    }


def write_run(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def run_plot(place: Path, *words: str) -> Answer:
    return call([str(place), "--out", str(place.parent / "out"), *words], plot.main)


def drawn(place: Path) -> set[str]:
    out = place.parent / "out"
    return {path.name for path in out.iterdir()} if out.exists() else set()


FIGURE = {f"cartpole_swingup.{kind}" for kind in ("png", "pdf", "csv")}


# -- one damaged file --------------------------------------------------------------------------------------------------


def with_flags(**flags: Any) -> bytes:
    return json.dumps({"flags": FLAGS | flags}).encode()


def with_column(file: str, column: str, value: str) -> bytes:
    """Return a file of the run with `value` in the last row of a column."""
    header, *rows = whole_run()[file].decode().split()
    cells = rows[-1].split(",")
    cells[header.split(",").index(column)] = value
    return "\n".join([header, *rows[:-1], ",".join(cells), ""]).encode()


def without_measures(data: bytes, *, last: int) -> bytes:
    """Return eval.csv as the logger writes it if no episode of the last evaluations had a step."""
    header, *rows = data.decode().split()
    kept = len(EVAL_COLUMNS)
    empty = [",".join([*row.split(",")[:kept], *[""] * (header.count(",") + 1 - kept)]) for row in rows[-last:]]
    return "\n".join([header, *rows[:-last], *empty, ""]).encode()


def last_row(file: str) -> bytes:
    return whole_run()[file].splitlines(keepends=True)[-1]


def without_column(file: str, column: str) -> bytes:
    return whole_run()[file].replace(column.encode(), b"another", 1)


ODD_SEEDS: tuple[Any, ...] = (None, 1.5, -1, 10**400, "1", [1], {})
ODD_NAMES: tuple[Any, ...] = (None, 3, [], {}, True, "a\0", "\ud800")
ODD_COUNTS: tuple[Any, ...] = (None, -1, "2", 10**400)
DAMAGE: dict[str, tuple[str, bytes]] = {
    **{f"config: {text[:30]}": ("config.json", text.encode()) for text in ("", "{", "[]", "null", "3", '"flags"')},
    **{f"flags: {text[:30]}": ("config.json", f'{{"flags": {text}}}'.encode()) for text in ("null", "[]", "3", '"x"')},
    "no flags": ("config.json", b"{}"),
    "deep": ("config.json", b'{"flags": ' + b"[" * 10**5),
    "deep flag": ("config.json", b'{"flags": {"env": ' + b"[" * 500 + b"]" * 500 + b"}}"),
    "binary config": ("config.json", bytes(range(256))),
    **{f"seed {value!r}": ("config.json", with_flags(seed=value)) for value in ODD_SEEDS},
    "seed infinite": ("config.json", with_flags(seed=float("inf"))),
    **{f"env {value!r}": ("config.json", with_flags(env=value)) for value in ODD_NAMES},
    **{f"num_skills {value!r}": ("config.json", with_flags(num_skills=value)) for value in ODD_COUNTS},
    **{f"finetune_from {value!r}": ("config.json", with_flags(finetune_from=value)) for value in ODD_NAMES[1:]},
    "an unhashable flag": ("config.json", with_flags(lr={})),
    **{f"eval without {name}": ("eval.csv", without_column("eval.csv", name)) for name in ("step", "episode_reward")},
    "eval without the bound": ("eval.csv", without_column("eval.csv", "mutual_information_bound")),
    **{
        f"step {word}": ("eval.csv", with_column("eval.csv", "step", word))
        for word in ("inf", "nan", "-1", "1e30", "x")
    },
    **{f"reward {w}": ("eval.csv", with_column("eval.csv", "episode_reward", w)) for w in ("inf", "nan", "1e300", "x")},
    "binary eval": ("eval.csv", bytes(range(256))),
    "eval without header": ("eval.csv", b"\n\n"),
    "a torn row": ("eval.csv", whole_run()["eval.csv"][:-12]),
    **{f"skills without {name}": ("skills.csv", without_column("skills.csv", name)) for name in SKILL_NUMBERS},
    **{f"skills without {name}": ("skills.csv", without_column("skills.csv", name)) for name in SKILL_MEASURES},
    **{
        f"skill {w}": ("skills.csv", with_column("skills.csv", "skill_id", w))
        for w in ("inf", "", "-1", "1e20", "x", "0.5", "3")
    },
    "skills with words": ("skills.csv", with_column("skills.csv", "episode_extrinsic_reward", "many")),
    "an infinite distance": ("skills.csv", with_column("skills.csv", "state_distance_between", "inf")),
    "binary skills": ("skills.csv", bytes(range(256))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    """Alone it is bad input; beside a whole run it is left out."""
    name, data = DAMAGE[damage]
    folder = write_run(tmp_path / "runs" / "damaged", {**whole_run(), name: data})
    answer = run_plot(folder.parent)
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert answer.lines[0].startswith("plot.py: error: no evaluations in ")
    assert str(folder / name) in answer.lines[0]
    assert "name a run's folder" not in answer.lines[0]
    assert len(answer.lines[0]) < 1000
    assert not drawn(folder.parent)


def test_other_runs_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, files = tmp_path / "runs", whole_run()
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **settings: None)
    write_run(runs / "whole", files)
    for number, (name, data) in enumerate(DAMAGE.values()):
        write_run(runs / str(number), {**files, name: data})
    answer = run_plot(runs)
    assert answer.code == 0
    assert all(line.startswith(f"left out: {runs}/") for line in answer.lines)
    assert len(answer.lines) == len(DAMAGE)
    assert drawn(runs) == FIGURE


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_named(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_run(tmp_path / "runs" / "a", {**whole_run()})
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(name)
    answer = run_plot(folder.parent)
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert str(folder / name if (name, kind) != ("eval.csv", "loop") else folder.parent) in answer.lines[0]


TOLERATED: dict[str, tuple[str, bytes | None]] = {
    "no config": ("config.json", None),
    "no skills": ("skills.csv", None),
    "empty skills": ("skills.csv", b""),
    "a flag of another version": ("config.json", with_flags(xyzzy=[{}])),
    "flags are missing": ("config.json", b'{"flags": {"num_skills": 2, "env": "cartpole_swingup"}}'),
    "more skills than memory": ("config.json", with_flags(num_skills=10**12)),
    "the same step twice": ("eval.csv", whole_run()["eval.csv"] + last_row("eval.csv")),
    "steps out of order": ("eval.csv", whole_run()["eval.csv"] + last_row("eval.csv").replace(b"1000", b"500")),
    "a byte order mark": ("eval.csv", b"\xef\xbb\xbf" + whole_run()["eval.csv"]),
    "large values": ("eval.csv", with_column("eval.csv", "episode_reward", "-1e30")),
    "one evaluation": ("eval.csv", b"\n".join(whole_run()["eval.csv"].split()[:2])),
    "an evaluation without a step": ("eval.csv", without_measures(whole_run()["eval.csv"], last=1)),
    "only evaluations without a step": ("eval.csv", without_measures(whole_run()["eval.csv"], last=2)),
}


@pytest.mark.parametrize("case", TOLERATED)
def test_what_is_tolerated(tmp_path: Path, case: str) -> None:
    name, data = TOLERATED[case]
    folder = write_run(tmp_path / "runs" / "cartpole_swingup" / "a", {**whole_run(), name: data or b""})
    if data is None:
        (folder / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = run_plot(tmp_path / "runs")
    warning = f"warning: {folder} has no config.json: it is taken for plain DrQ with seed 0"
    assert answer == (0, [warning] if case == "no config" else [])
    assert drawn(tmp_path / "runs") == FIGURE


@pytest.mark.parametrize("name", ["$x^{$", "a\nb", "x" * 250, "\U0001f600", "\udcff", "%s", "_a"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    """Of the run's folder and of its task: they are texts, not formulas, and name files."""
    folder = write_run(tmp_path / "runs" / name, {**whole_run(), "config.json": with_flags(env=name * 3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = run_plot(folder.parent)
    assert answer == (0, [])
    assert len(drawn(folder.parent)) == 3


def test_runs_without_a_common_frame(tmp_path: Path) -> None:
    for seed in range(6):
        rows = f"0,{2000 * seed},1.0\n1,{2000 * seed + 1000},2.0\n"
        config = json.dumps({"flags": vars(make_config({"num_skills": 0, "seed": seed}))}).encode()
        write_run(
            tmp_path / "runs" / str(seed),
            {"config.json": config, "eval.csv": f"{','.join(EVAL_COLUMNS)}\n{rows}".encode()},
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_plot(tmp_path / "runs") == (0, [])


# -- published curves --------------------------------------------------------------------------------------------------

PUBLISHED = "env,seed,step,episode_reward\ncartpole_swingup,1,0,5\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks the columns"),
        ("env,seed,step\ncartpole_swingup,1,0\n", "lacks the column episode_reward"),
        (f"{PUBLISHED}cartpole_swingup,1,many,5\n", "line 3: step is 'many'"),
        (f"{PUBLISHED}cartpole_swingup,1,100,\n", "line 3: episode_reward is ''"),
        (f"{PUBLISHED}cartpole_swingup,1,100,nan\n", "line 3: episode_reward is nan"),
        (f"{PUBLISHED}cartpole_swingup,1,inf,5\n", "line 3: step is inf"),
        (f"{PUBLISHED}cartpole_swingup,1\n", "line 3, has 2 cells"),
        ("\0\0\0\0", "lacks the columns"),
    ],
)
def test_a_reference_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    folder = write_run(tmp_path / "runs" / "a", whole_run())
    (tmp_path / "r.csv").write_text(text)
    answer = run_plot(folder.parent, "--reference", str(tmp_path / "r.csv"))
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert answer.lines[0].startswith(f"plot.py: error: --reference {tmp_path / 'r.csv'}")
    assert words in answer.lines[0]
    assert not drawn(folder.parent)


@pytest.mark.parametrize("name", ["folder", "nowhere"])
def test_a_reference_that_is_no_file(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "runs" / "a", whole_run())
    (tmp_path / "folder").mkdir()
    answer = run_plot(folder.parent, "--reference", str(tmp_path / name))
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert f"--reference {tmp_path / name}" in answer.lines[0]


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["size=4k", "size=64k", "size=64k,nr_inodes=2"])
def test_a_full_disk(mount: Mount, tmp_path: Path, size: str) -> None:
    """The message names a file, and every file that is there is whole."""
    folder, disk = write_run(tmp_path / "runs" / "a", whole_run()), mount(size)
    answer = call([str(folder), "--out", str(disk / "new" / "plots")], plot.main)
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert answer.lines[0].startswith(f"plot.py: error: {disk / 'new'}")
    assert "No space left on device; free space, or name another folder with --out" in answer.lines[0]
    assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert not list(disk.iterdir()) or list(disk.rglob("*.png"))


def test_a_full_disk_leaves_the_old_figures(mount: Mount, tmp_path: Path) -> None:
    folder, disk = write_run(tmp_path / "runs" / "a", whole_run()), mount("size=16k")
    old = {f"cartpole_swingup.{kind}": b"old" for kind in ("png", "pdf", "csv")}
    write_run(disk / "plots", old)
    assert call([str(folder), "--out", str(disk / "plots")], plot.main).code == 2
    assert {path.name: path.read_bytes() for path in (disk / "plots").iterdir()} == old


# -- any damage --------------------------------------------------------------------------------------------------------


def damaged_runs() -> SearchStrategy[list[dict[str, bytes]]]:
    """Draw the files of one to three runs, some of them damaged."""
    tables = [damaged_table(whole_run()[name]) for name in ("eval.csv", "skills.csv")]
    damages = (damaged_json({"flags": FLAGS}), *tables)
    one = st.tuples(*(st.just(whole_run()[name]) | damage for name, damage in zip(FILES, damages, strict=True)))
    return st.lists(one.map(lambda data: dict(zip(FILES, data, strict=True))), min_size=1, max_size=3)


def assert_drawn_or_left_out(runs: list[dict[str, bytes]]) -> None:
    """Check that each run is drawn or left out in one line, without a traceback or a warning."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, files in enumerate(runs):
            write_run(Path(place) / "runs" / str(number), files)
        answer = run_plot(Path(place) / "runs")
        if answer.code == 2:
            assert len(answer.lines) == 1
            assert answer.lines[0].startswith("plot.py: error: no evaluations in ")
            assert not drawn(Path(place) / "runs")
        else:
            assert answer.code == 0
            assert all(line.startswith(("left out: ", "warning: ")) for line in answer.lines)
            assert len(answer.lines) < len(runs)
            assert len(drawn(Path(place) / "runs")) % 3 == 0


@pytest.fixture(scope="module")
def _undrawn() -> Iterator[None]:
    """Figures are composed but not drawn, and nothing waits for the disk, which both take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, file, **settings: None)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@fast_and_slow(100, 400)
@pytest.mark.usefixtures("_undrawn")
def test_any_damage(examples: int) -> None:
    check_all(examples, assert_drawn_or_left_out, runs=damaged_runs())


@pytest.mark.slow
def test_damage_that_is_drawn() -> None:
    check_all(100, assert_drawn_or_left_out, runs=damaged_runs())
