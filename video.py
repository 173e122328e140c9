"""Videos of evaluation episodes: recorded frame by frame, overlaid with text, tiled, and converted for TensorBoard.

Files are H.264 in mp4, which every browser plays. ffmpeg encodes them while the episode runs, so a video is never in
memory as a whole. If a video fails, a warning is printed and training continues.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, pairwise, zip_longest
from pathlib import Path

import cv2
import numpy as np

VIDEO_SIZE = 256  # height and width of a recorded frame, pixels
GRID_WIDTH, GRID_TILES = 1280, 64  # largest width in pixels, and number of skills, of the video of all skills
WIDEST_GRID = 2.5  # columns for each row: up to 5 x 2
CLIP_SIZE, CLIP_FRAMES = 192, 64  # TensorBoard clips: size of a tile in pixels, and largest number of frames
SHORTEST_FRAME = 2  # of a GIF, in hundredths of a second; browsers show shorter ones longer
SMALLEST_TEXT = 0.4  # of the size that the text has in a picture of 512 pixels
FAILURES = (OSError, RuntimeError, ValueError, ImportError, MemoryError, cv2.error)  # of a video; they only warn


class VideoRecorder:
    """Write one mp4 file at a time. Without a folder, every method does nothing.

    Args:
        folder: where the videos are written, or None. It is made when the first one is written.
        fps: playback speed, frames per second.
        size: height and width at which the caller should draw the frames, pixels.

    Attributes:
        written: the last video that was finished.
    """

    def __init__(self, folder: Path | None, fps: float, *, size: int = VIDEO_SIZE) -> None:
        self.folder, self.fps, self.size = folder, fps, size
        self.written: Path | None = None
        self._path: Path | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._shape: tuple[int, ...] = ()

    @property
    def recording(self) -> bool:
        """Whether a video has been started and not stopped."""
        return self._path is not None

    def start(self, name: str) -> None:
        """Start `<name>.mp4`."""
        if self.folder is not None:
            self._path, self._writer = self.folder / f"{name}.mp4", None

    def record(self, frame: np.ndarray, text: Sequence[str] = ()) -> None:
        """Append a frame, uint8 RGB `(H, W, 3)`, overlaid with lines of text."""
        if self._path is None:
            return
        try:
            if self._writer is None:
                self._writer, self._shape = _open_writer(_partial(self._path), frame.shape, self.fps), frame.shape
            if frame.shape != self._shape:
                raise ValueError(f"a frame of shape {frame.shape} after frames of shape {self._shape}")
            assert self._writer.stdin is not None
            self._writer.stdin.write((overlay(frame, text) if text else frame).tobytes())
        except BrokenPipeError as error:
            self.give_up(_complaint(self._writer) or error)
        except FAILURES as error:
            self.give_up(error)

    def stop(self) -> Path | None:
        """Finish the file and return its path, or None if nothing was recorded."""
        path, writer = self._path, self._writer
        if path is None or writer is None:
            self._path = None
            return None
        try:
            complaint = _complaint(writer)
            if complaint:
                raise OSError(complaint)
            os.replace(_partial(path), path)
            self._path = self._writer = None
            self.written = path
            return path
        except FAILURES as error:
            self.give_up(error)
            return None

    @contextmanager
    def recorded(self, name: str) -> Iterator[None]:
        """Record `<name>.mp4` within the block. If the block raises, there is no file."""
        self.start(name)
        try:
            yield
        except BaseException:
            self.drop()
            raise
        self.stop()

    def tile(self, name: str, videos: Sequence[Path]) -> Path | None:
        """Write `<name>.mp4` with the videos side by side and return its path; None if there are none or it fails.

        A video that ends early holds its last frame. Only the first GRID_TILES videos are shown.
        """
        videos = videos[:GRID_TILES]
        if self.folder is None or not videos:
            return None
        columns = grid_columns(len(videos))
        size = min(self.size, GRID_WIDTH // columns) // 2 * 2 or 2  # H.264 needs even sizes
        self.start(name)
        shown = [np.empty(0, np.uint8)] * len(videos)
        try:
            for frames in zip_longest(*map(read_video, videos)):
                shown = [old if new is None else new for old, new in zip(shown, frames, strict=True)]
                tiles = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in shown]
                tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
                rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
                self.record(np.concatenate(rows))
        except FAILURES as error:
            self.give_up(error)
        except BaseException:
            self.drop()
            raise
        return self.stop()

    def give_up(self, error: BaseException | str) -> None:
        """Print a warning and delete what was written of the video."""
        _warn(self._path, error)
        self.drop()

    def drop(self) -> None:
        """Stop recording and delete what was written."""
        path, writer = self._path, self._writer
        self._path = self._writer = None
        if writer is not None:
            writer.kill()
            writer.communicate()
        if path is not None and path.parent.is_dir():
            _partial(path).unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished videos of a process that was killed."""
    for path in folder.glob(".*.partial.mp4"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def grid_columns(count: int) -> int:
    """Return the columns of a grid of tiles: such that none is empty if it is not too wide then, else almost square."""
    square = math.ceil(math.sqrt(count))
    full = (columns for columns in range(square, count + 1) if count % columns == 0)
    return next((columns for columns in full if columns <= WIDEST_GRID * count / columns), square)


def overlay(frame: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a copy of the frame with the lines in its upper left corner, white with black edges.

    Letters grow with the picture. In a small one they stay legible, unless a line would not fit then.
    """
    image = np.ascontiguousarray(frame).copy()
    font, height, width = cv2.FONT_HERSHEY_SIMPLEX, *image.shape[:2]
    scale = max(height / 512, SMALLEST_TEXT)
    widest = max(lines, key=len, default="")
    while scale > 0.01 and cv2.getTextSize(widest, font, 0.85 * scale, 1)[0][0] > width - 16 * scale:
        scale *= 0.9
    for number, line in enumerate(lines, start=1):
        where = (int(8 * scale), int(30 * scale * number))
        edges = [(where[0] + x, where[1] + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
        for color, places in (((0, 0, 0), edges), ((255, 255, 255), [where])):
            for place in places:
                cv2.putText(image, line, place, font, 0.85 * scale, color, 1, cv2.LINE_AA)
    return image


def read_video(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, uint8 RGB `(H, W, 3)`. Raises OSError if it cannot be read."""
    capture = cv2.VideoCapture(str(path.absolute()))  # a relative name such as run:1.mp4 looks like a protocol
    try:
        if not capture.isOpened():
            raise OSError(f"{path} cannot be read")
        while (frame := capture.read()[1]) is not None:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def gif_clip(path: Path, fps: float) -> tuple[bytes, int, int] | None:
    """Return a video as an animated GIF, with its height and width. If that fails, warn and return None.

    The GIF plays as long as the video, with at most CLIP_FRAMES of its frames, shrunk to CLIP_SIZE per tile.
    """
    try:
        count = sum(1 for _ in read_video(path))  # two passes save memory
        stride = max(math.ceil(count / CLIP_FRAMES), math.ceil(fps * SHORTEST_FRAME / 100))
        height, width = (length * CLIP_SIZE // VIDEO_SIZE for length in next(read_video(path)).shape[:2])
        animation = cv2.Animation()
        animation.frames = [
            cv2.cvtColor(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
            for frame in islice(read_video(path), None, None, stride)
        ]
        shown = [*range(0, count, stride), count]  # the last frame ends with the video
        times = [round(100 * number / fps) for number in shown]
        animation.durations = [10 * max(end - start, SHORTEST_FRAME) for start, end in pairwise(times)]
        # Level 3 does not dither areas of one color: half the size of OpenCV's default, and the text is legible.
        encoded, data = cv2.imencodeanimation(".gif", animation, [cv2.IMWRITE_GIF_DITHER, 3])
        if not encoded:
            raise OSError("OpenCV could not encode the animation")
    except (*FAILURES, StopIteration) as error:
        _warn(path, error)
        return None
    return data.tobytes(), height, width


def _open_writer(path: Path, shape: tuple[int, ...], fps: float) -> subprocess.Popen[bytes]:
    import imageio_ffmpeg  # a run without videos needs no encoder

    path.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{shape[1]}x{shape[0]}", "-r", str(fps), "-i", "-"),
        *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", "25", "-movflags", "+faststart"),
        *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"),  # yuv420p needs even sizes
        f"file:{path}",  # else a name such as run:1.mp4 would be taken for a protocol
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def _complaint(writer: subprocess.Popen[bytes] | None) -> str:
    """Wait for ffmpeg to end. Return its last line if it failed, else an empty text."""
    if writer is None:
        return ""
    _, complaint = writer.communicate()
    lines = complaint.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"ffmpeg ended with code {writer.returncode}") if writer.returncode else ""


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial.mp4")


def _warn(path: Path | None, error: BaseException | str) -> None:
    print(f"warning: the video {path} was not written: {error}", file=sys.stderr)
