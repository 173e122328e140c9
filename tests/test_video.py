"""Videos: what is written can be read back and played, and a failure only warns."""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageSequence

import video
from tests.support.browser import CHROMIUM, FLAGS
from video import VideoRecorder

FPS = 25.0
SIZE = 64
ORANGE, TEAL, VIOLET = (
    (220, 120, 30),
    (20, 140, 150),
    (120, 40, 200),
)  # swapped channels show
TOLERANCE = 12  # H.264 and GIF palettes change colors a little


def plain(color: Sequence[int], height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def clip(frames: int, color: Sequence[int] = ORANGE) -> list[np.ndarray]:
    """Return frames of one color with a bright bar whose height is the frame's number."""
    pictures = [plain(color) for _ in range(frames)]
    for number, picture in enumerate(pictures):
        picture[: round(SIZE * number / frames), -8:] = 255
    return pictures


def write(folder: Path, name: str, frames: Sequence[np.ndarray], fps: float = FPS) -> Path:
    recorder = VideoRecorder(folder, fps)
    recorder.start(name)
    for frame in frames:
        recorder.record(frame)
    path = recorder.stop()
    assert path is not None
    return path


def read(path: Path) -> list[np.ndarray]:
    """Read all frames, RGB, with OpenCV only."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (picture := capture.read()[1]) is not None:
        frames.append(picture[..., ::-1])
    return frames


def has_color(picture: np.ndarray, color: Sequence[int]) -> bool:
    """Return whether the middle of the picture has that color."""
    middle = picture[picture.shape[0] // 4 : -picture.shape[0] // 4, picture.shape[1] // 4 : -picture.shape[1] // 4]
    return bool(np.abs(middle.reshape(-1, 3).mean(0) - color).max() < TOLERANCE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# -- recording ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", [ORANGE, TEAL])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_opencv_reads_back_what_was_recorded(
    height: int, width: int, color: tuple[int, int, int], tmp_path: Path
) -> None:
    path = write(tmp_path / "video", "4000_skill3", [plain(color, height, width)] * 17)
    assert path == tmp_path / "video" / "4000_skill3.mp4"
    assert names(tmp_path) == ["4000_skill3.mp4", "video"]
    frames = read(path)
    assert [frame.shape for frame in frames] == [(height, width, 3)] * 17
    assert all(has_color(frame, color) for frame in frames)


def test_frames_keep_their_order(tmp_path: Path) -> None:
    frames = read(write(tmp_path, "a", clip(16)))
    bars = [(frame[:, -4].min(axis=1) > 200).sum() for frame in frames]
    np.testing.assert_allclose(bars, [SIZE * number / 16 for number in range(16)], atol=2)


def test_read_video_gives_the_same_frames(tmp_path: Path) -> None:
    path = write(tmp_path, "a", clip(5))
    np.testing.assert_array_equal(list(video.read_video(path)), read(path))


def test_read_video_of_no_video_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        next(video.read_video(tmp_path / "none.mp4"))


@pytest.mark.parametrize("fps", [12.5, 25.0, 100 / 3])
def test_frames_per_second(fps: float, tmp_path: Path) -> None:
    capture = cv2.VideoCapture(str(write(tmp_path, "a", clip(10), fps)))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-3)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 10


def test_format_is_the_one_that_browsers_play(tmp_path: Path) -> None:
    """H.264 with 4:2:0 chroma; some browsers play nothing else."""
    capture = cv2.VideoCapture(str(write(tmp_path, "a", clip(3))))
    codes = (int(capture.get(name)) for name in (cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_CODEC_PIXEL_FORMAT))
    assert [code.to_bytes(4, "little") for code in codes] == [b"h264", b"I420"]


def test_recorder_knows_whether_it_records(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, FPS)
    assert not recorder.recording
    recorder.start("a")
    assert recorder.recording
    recorder.record(plain(TEAL))
    assert recorder.stop() is not None
    assert not recorder.recording
    recorder.record(plain(TEAL))  # between two videos: ignored
    assert recorder.stop() is None
    assert names(tmp_path) == ["a.mp4"]


def test_recorders_work_side_by_side(tmp_path: Path) -> None:
    """As in an evaluation of several skills."""
    colors = (ORANGE, TEAL, VIOLET)
    recorders = [VideoRecorder(tmp_path, FPS) for _ in colors]
    for number, recorder in enumerate(recorders):
        recorder.start(str(number))
    for _ in range(5):
        for recorder, color in zip(recorders, colors, strict=True):
            recorder.record(plain(color))
    paths = [recorder.stop() for recorder in recorders]
    assert paths == [tmp_path / f"{number}.mp4" for number in range(3)]
    for path, color in zip(paths, colors, strict=True):
        assert path is not None
        assert [has_color(frame, color) for frame in read(path)] == [True] * 5


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, FPS)
    recorder.start("a")
    assert recorder.stop() is None
    assert names(tmp_path) == []


def test_without_a_folder_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "a", clip(3))
    monkeypatch.chdir(tmp_path)
    recorder = VideoRecorder(None, FPS)
    recorder.start("b")
    assert not recorder.recording
    recorder.record(plain(TEAL), ["text"])
    assert recorder.stop() is None
    assert recorder.tile("c", [path]) is None
    assert names(tmp_path) == ["a.mp4"]
    assert capsys.readouterr() == ("", "")


# -- text --------------------------------------------------------------------------------------------------------------


def test_overlay_writes_into_the_upper_left_of_a_copy() -> None:
    frame = plain(TEAL, 256, 256)
    one, two = (video.overlay(frame, lines) for lines in (["skill 3  step 12"], ["skill 3  step 12", "r_int 0.512"]))
    np.testing.assert_array_equal(frame, plain(TEAL, 256, 256))
    for image, top, bottom in ((one, 10, 20), (two, 20, 40)):
        assert (image.shape, image.dtype) == (frame.shape, np.uint8)
        rows, columns = np.nonzero((image != frame).any(-1))
        assert top < rows.max() < bottom
        assert columns.min() < 10
        assert columns.max() < 150
    np.testing.assert_array_equal(one[:16], two[:16])  # the first line is the same


@pytest.mark.parametrize(("size", "legible"), [(512, True), (256, True), (128, True), (96, False), (48, False)])
def test_text_of_small_videos(size: int, legible: bool) -> None:
    """Lines have ten pixels at least, and are never cut off."""
    frame, line = plain(TEAL, size, size), "r_int -0.512  sum -1123.4"
    rows, columns = np.nonzero((video.overlay(frame, [line]) != frame).any(-1))
    assert columns.max() < size - 1
    assert np.ptp(rows) + 1 >= (10 if legible else 6)


def test_overlay_is_white_on_black_edges() -> None:
    """It is readable on any background: every black pixel is next to a letter."""
    text = video.overlay(plain(TEAL, 256, 256), ["skill 3  step 123", "r_int -0.512  sum -123.4"])
    white, black = (text > 110).all(-1), (text < 60).all(-1)
    assert white.sum() > 100
    assert black.sum() > 100
    distance = cv2.distanceTransform(np.where(white, 0, 1).astype(np.uint8), cv2.DIST_L2, 3)
    assert (distance[black] < 3).mean() > 0.95


def test_overlay_shows_the_text_it_is_given() -> None:
    frame = plain(TEAL, 256, 256)
    assert not np.array_equal(video.overlay(frame, ["skill 3"]), video.overlay(frame, ["skill 4"]))
    np.testing.assert_array_equal(video.overlay(frame, []), frame)


def test_overlay_accepts_a_view() -> None:
    """For example a mirrored picture, whose memory is not contiguous."""
    frame = plain(TEAL, 128, 128)
    np.testing.assert_array_equal(video.overlay(frame[::-1, ::-1], ["a"]), video.overlay(frame, ["a"]))


def test_recorded_text_is_in_the_video(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, FPS)
    recorder.start("a")
    frame = plain(TEAL, 256, 256)
    recorder.record(frame, ["skill 3  step 1"])
    recorder.record(frame)
    np.testing.assert_array_equal(frame, plain(TEAL, 256, 256))
    path = recorder.stop()
    assert path is not None
    with_text, without = (picture.astype(int) for picture in read(path))
    changed = np.abs(with_text - without).max(-1)
    assert (changed[:24, :128] > 60).mean() > 0.05
    assert (changed[40:] > 60).mean() == 0


# -- failures ----------------------------------------------------------------------------------------------------------


def warned(capfd: pytest.CaptureFixture[str], name: str) -> bool:
    """Return whether stderr has one warning, which names the video, besides ffmpeg's own output."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    return len(lines) == 1 and name in lines[0]


def test_folder_that_cannot_be_made_gives_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "video").write_text("a file, not a folder")
    recorder = VideoRecorder(tmp_path / "video", FPS)
    recorder.start("a")
    for frame in clip(3):
        recorder.record(frame)
    assert recorder.stop() is None
    assert warned(capfd, "a.mp4")
    assert names(tmp_path) == ["video"]


@pytest.mark.parametrize(
    "second",
    [pytest.param(plain(TEAL, 32, 32), id="smaller"), pytest.param(plain(TEAL, 32, 128), id="as many pixels")],
)
def test_frame_of_another_shape_gives_a_warning(
    second: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = VideoRecorder(tmp_path, FPS)
    recorder.start("a")
    for _ in range(1000):
        recorder.record(plain(TEAL))
        if names(tmp_path):
            break
    assert "partial" in names(tmp_path)[0]
    recorder.record(second)
    recorder.record(plain(TEAL))
    assert recorder.stop() is None
    assert warned(capfd, "a.mp4")
    assert names(tmp_path) == []


def test_name_that_is_taken_by_a_folder_gives_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").mkdir()
    recorder = VideoRecorder(tmp_path, FPS)
    recorder.start("a")
    recorder.record(plain(TEAL))
    assert recorder.stop() is None
    assert warned(capfd, "a.mp4")
    assert names(tmp_path) == ["a.mp4"]


def assert_no_video(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Record a video, which fails with a warning and leaves nothing."""
    recorder = VideoRecorder(folder, FPS)
    recorder.start("a")
    recorder.record(plain(TEAL))
    recorder.record(plain(TEAL))
    assert recorder.stop() is None
    assert warned(capfd, "a.mp4")
    assert names(folder) == []


def test_missing_ffmpeg_gives_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no_such_program"))
    assert_no_video(tmp_path, capfd)


def test_missing_encoder_gives_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos need the package imageio-ffmpeg; a run without videos does not."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert_no_video(tmp_path, capfd)


@pytest.mark.parametrize("frames", [5, 60])
def test_full_disk_gives_a_warning(
    frames: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg may write only 4 KiB here, so it fails when the file is closed, or before."""
    limited, folder, random = tmp_path / "ffmpeg", tmp_path / "video", np.random.default_rng(0)
    limited.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 8\nexec {imageio_ffmpeg.get_ffmpeg_exe()} \"$@\"\n")
    limited.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(limited))
    recorder = VideoRecorder(folder, FPS)
    recorder.start("a")
    for _ in range(frames):
        recorder.record(random.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    assert recorder.stop() is None
    assert warned(capfd, "a.mp4")
    assert names(folder) == []


def test_the_next_video_is_recorded_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = VideoRecorder(tmp_path, FPS)
    with monkeypatch.context() as broken:
        broken.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no_such_program"))
        recorder.start("a")
        recorder.record(plain(TEAL))
        assert not recorder.recording
    recorder.start("b")
    for frame in clip(3):
        recorder.record(frame)
    assert recorder.stop() == tmp_path / "b.mp4"
    assert len(read(tmp_path / "b.mp4")) == 3
    assert names(tmp_path) == ["b.mp4"]


def test_a_grid_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor the process that writes it."""
    good, record = write(tmp_path, "good", clip(3)), VideoRecorder.record
    before = names(tmp_path)
    frames: list[np.ndarray] = []

    def interrupted(self: VideoRecorder, frame: np.ndarray) -> None:
        if frames:
            raise KeyboardInterrupt
        frames.append(frame)
        record(self, frame)

    monkeypatch.setattr(VideoRecorder, "record", interrupted)
    recorder = VideoRecorder(tmp_path, FPS)
    with pytest.raises(KeyboardInterrupt):
        recorder.tile("grid", [good])
    assert not recorder.recording
    assert names(tmp_path) == before


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_video_that_cannot_be_read_gives_a_warning(
    content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """When it is tiled with a good one, and when it is converted to a clip."""
    good, bad = write(tmp_path, "good", clip(3)), tmp_path / "bad.mp4"
    if content is not None:
        bad.write_bytes(content)
    before = names(tmp_path)
    assert VideoRecorder(tmp_path, FPS).tile("grid", [good, bad]) is None
    assert warned(capfd, "grid.mp4")
    assert video.gif_clip(bad, FPS) is None
    assert warned(capfd, "bad.mp4")
    assert names(tmp_path) == before


# -- all skills side by side -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "rows", "columns", "tile"), [(1, 1, 1, 256), (2, 1, 2, 256), (3, 2, 2, 256), (10, 2, 5, 256)]
)
def test_tile_shows_all_videos_until_the_longest_ends(
    number: int, rows: int, columns: int, tile: int, tmp_path: Path
) -> None:
    """Each is TEAL until its last frame, which is ORANGE and is held. Tiles without a video are black."""
    lengths = [2 + 3 * skill % 7 for skill in range(number)]
    videos = [
        write(tmp_path, f"{skill}", [plain(TEAL)] * (length - 1) + [plain(ORANGE)])
        for skill, length in enumerate(lengths)
    ]
    path = VideoRecorder(tmp_path, FPS).tile("grid", videos)
    assert path == tmp_path / "grid.mp4"
    frames = read(path)
    assert len(frames) == max(lengths)
    assert {frame.shape for frame in frames} == {(rows * tile, columns * tile, 3)}
    for time, frame in enumerate(frames):
        cells = [half for strip in np.split(frame, rows) for half in np.split(strip, columns, axis=1)]
        wanted = [TEAL if time < length - 1 else ORANGE for length in lengths]
        wanted += [(0, 0, 0)] * (len(cells) - number)
        assert all(has_color(cell, color) for cell, color in zip(cells, wanted, strict=True))
    assert not [name for name in names(tmp_path) if "partial" in name]


def test_a_grid_is_full_or_almost_square() -> None:
    columns = {
        1: 1,
        2: 2,
        3: 2,
        4: 2,
        5: 3,
        6: 3,
        7: 3,
        8: 4,
        9: 3,
        10: 5,
        11: 4,
        12: 4,
        14: 4,
        15: 5,
        18: 6,
        26: 6,
        64: 8,
    }
    assert {count: video.grid_columns(count) for count in columns} == columns


def test_tile_of_many_videos_stays_within_the_width_and_even(tmp_path: Path) -> None:
    """26 videos make 6 columns. 213 pixels would fit the width, but H.264 needs even sizes."""
    one = write(tmp_path, "one", clip(2))
    path = VideoRecorder(tmp_path, FPS).tile("grid", [one] * 26)
    assert path is not None
    assert [frame.shape for frame in read(path)] == [(5 * 212, 6 * 212, 3)] * 2


def test_tile_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert VideoRecorder(tmp_path, FPS).tile("grid", []) is None
    assert names(tmp_path) == []


# -- clips for TensorBoard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "kept"),
    [
        (10, 25.0, 10),
        (video.CLIP_FRAMES, 25.0, 64),
        (65, 25.0, 33),
        (250, 100 / 3, 63),
        (60, 30.0, 60),
        (51, 100.0, 26),
    ],
)
def test_gif_clip_plays_as_long_as_the_video(frames: int, fps: float, kept: int, tmp_path: Path) -> None:
    gif = video.gif_clip(write(tmp_path, "a", clip(frames, VIOLET), fps), fps)
    assert gif is not None
    data, height, width = gif
    pictures = [
        (np.array(picture.convert("RGB")), picture.info["duration"])
        for picture in ImageSequence.Iterator(Image.open(io.BytesIO(data)))
    ]
    assert len(pictures) == kept <= video.CLIP_FRAMES
    side = SIZE * video.CLIP_SIZE // video.VIDEO_SIZE
    assert {picture.shape for picture, _ in pictures} == {(height, width, 3)} == {(side, side, 3)}
    assert all(has_color(picture, VIOLET) for picture, _ in pictures)
    assert sum(duration for _, duration in pictures) / 1000 == pytest.approx(
        frames / fps, abs=0.015
    )  # the last frame takes 20 ms at least
    bars = [int((picture[:, -2].min(axis=1) > 200).sum()) for picture, _ in pictures]
    assert bars == sorted(bars)
    assert len(set(bars)) > 8

    decoded, animation = cv2.imdecodeanimation(np.frombuffer(data, np.uint8))
    assert decoded
    assert len(animation.frames) == kept


def test_gif_clip_of_a_grid_shrinks_every_tile(tmp_path: Path) -> None:
    """A tile has CLIP_SIZE pixels, so that its text stays legible."""
    path = write(tmp_path, "a", [plain(TEAL, 2 * video.VIDEO_SIZE, 3 * video.VIDEO_SIZE)] * 2)
    gif = video.gif_clip(path, FPS)
    assert gif is not None
    assert gif[1:] == (2 * video.CLIP_SIZE, 3 * video.CLIP_SIZE)


# -- in a browser ------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><video muted autoplay src="{source}"></video><script>
const v = document.querySelector("video");
const report = () => {{ document.body.textContent = JSON.stringify(
    {{time: v.currentTime, width: v.videoWidth, height: v.videoHeight, error: v.error && v.error.message}}); }};
v.ontimeupdate = () => {{ if (v.currentTime > 0) report(); }};
v.onerror = report;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_video_plays_in_a_browser(tmp_path: Path) -> None:
    path = write(tmp_path, "4000_skill0", clip(50))
    page = tmp_path / "page.html"
    page.write_text(PAGE.format(source=path.name))
    command = [
        *(str(CHROMIUM), *FLAGS),
        *("--autoplay-policy=no-user-gesture-required", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--virtual-time-budget=10000", "--dump-dom", page.as_uri()),
    ]
    child = subprocess.run(command, capture_output=True, text=True)
    played = re.search(r"\{.*\}", html.unescape(child.stdout.partition("<body>")[2]))
    assert played, child.stdout + child.stderr
    report = json.loads(played.group())
    assert report["error"] is None
    assert report["time"] > 0
    assert (report["width"], report["height"]) == (SIZE, SIZE)


@pytest.mark.parametrize("folder", ["run:1", "lr:0.001", "100% of it", "a b"])
def test_folders_that_look_like_protocols(folder: str, tmp_path: Path) -> None:
    """A folder's name is never taken for one of ffmpeg's protocols."""
    recorder = VideoRecorder(Path(folder), 10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with recorder.recorded("video"):
            recorder.record(np.zeros((32, 32, 3), np.uint8))
        assert len(list(video.read_video(Path(folder, "video.mp4").resolve()))) == 1


def test_ffmpegs_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """An ffmpeg that ends at once closes the pipe; the warning says what ffmpeg says, or its exit code."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    recorder = VideoRecorder(tmp_path, 10.0)
    with recorder.recorded("video"):
        for _ in range(100):
            recorder.record(np.zeros((256, 256, 3), np.uint8))
    assert "ffmpeg ended with code 1" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
