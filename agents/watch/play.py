"""`palimpsest play`: the frames of an episode as a GIF, a video, a window or lines in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from palimpsest.agents.drawing import colour_table
from palimpsest.agents.watch.config import PlayCommand
from palimpsest.agents.watch.frames import Frames
from palimpsest.agents.watch.player import Moment, load_watched, make_watched, moments
from palimpsest.memory.base import Panel

BLOCKS = " ▁▂▃▄▅▆▇█"
NO_PICTURE = "This environment does not render: only the memory is drawn."


class Output(Protocol):
    """Where frames go."""

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame [H, W, 3] uint8."""

    def close(self) -> None:
        """Finish."""


class Gif:
    """An animated GIF that repeats for ever; its last frame stays longer.

    All frames have one palette, so that what stands still costs no bytes: the first frame's colours, those of the
    panels, and a coarse cube for what comes later.

    Args:
        path: the file.
        fps: frames per second.
    """

    LAST_MS = 1500

    def __init__(self, path: Path, fps: int) -> None:
        self.path, self.fps = path, fps
        self.frames: list[Image.Image] = []
        self.palette: Image.Image | None = None

    def add(self, frame: np.ndarray) -> None:
        """Keep a frame in the colours of the palette."""
        image = Image.fromarray(frame)
        if self.palette is None:
            self.palette = _palette(image)
        self.frames.append(image.quantize(palette=self.palette, dither=Image.Dither.NONE))

    def close(self) -> None:
        """Write the file, if there is a frame."""
        if not self.frames:
            return
        durations = [round(1000 / self.fps)] * len(self.frames)
        durations[-1] = max(durations[-1], self.LAST_MS)
        first, *others = self.frames
        first.save(self.path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _palette(first: Image.Image) -> Image.Image:
    """An image whose palette has at most 255 colours; one is left for what stands still."""
    own = np.reshape(first.quantize(95, dither=Image.Dither.NONE).getpalette() or [], (-1, 3))
    panels = [colour_table(diverging)[::8] for diverging in (False, True)]
    cube = np.stack(np.meshgrid(*[np.linspace(0, 255, 4)] * 3), -1).reshape(-1, 3)
    greys = np.repeat(np.linspace(0, 255, 24)[:, None], 3, 1)
    colours = np.unique(np.concatenate([own, *panels, cube, greys]).astype(np.uint8), axis=0)
    # Pillow takes what is near for the nearest: the ground stays white where nothing else is nearly so
    lightest = colours.min(1)
    colours = colours[(lightest < 244) | (lightest == 255)]
    image = Image.new("P", (1, 1))
    image.putpalette(colours.tobytes())
    return image


class Video:
    """An MP4 by imageio-ffmpeg.

    Args:
        path: the file.
        fps: frames per second.
        size: width and height, both even.

    Raises:
        ValueError: imageio-ffmpeg is not installed.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        self.writer = video_writer()(str(path), size, fps=fps, macro_block_size=2)
        self.writer.send(None)

    def add(self, frame: np.ndarray) -> None:
        """Encode a frame."""
        self.writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()


class Window:
    """A window of pygame, which minigrid needs anyway. Closing it ends the command.

    Args:
        size: width and height.
        fps: frames per second.
        title: of the window.
    """

    def __init__(self, size: tuple[int, int], fps: int, title: str) -> None:
        import pygame

        self.pygame, self.fps = pygame, fps
        pygame.display.init()
        self.screen = pygame.display.set_mode(size)
        pygame.display.set_caption(title)
        self.clock = pygame.time.Clock()

    def add(self, frame: np.ndarray) -> None:
        """Show a frame for its time; KeyboardInterrupt where the window was closed."""
        self.pygame.surfarray.blit_array(self.screen, frame.swapaxes(0, 1))
        self.pygame.display.flip()
        self.clock.tick(self.fps)
        if any(event.type == self.pygame.QUIT for event in self.pygame.event.get()):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the window."""
        self.pygame.display.quit()


def video_writer() -> Callable[..., Any]:
    """`imageio_ffmpeg.write_frames`; ValueError that names the extra if it is not installed."""
    try:
        from imageio_ffmpeg import write_frames
    except ImportError:
        raise ValueError('an .mp4 needs imageio-ffmpeg: pip install "palimpsest-rl[video]", or write a .gif') from None
    return write_frames


def play(command: PlayCommand) -> None:
    """Play as the command says, and say what was written.

    Raises:
        ValueError: no such run, an environment or argument that does not fit, or a file name of another kind.
        OSError: a file cannot be written.
    """
    out = command.out
    if out is not None:
        check_output(out)
    run = load_watched(command.run, command.device)
    if out is None and not (command.human or command.ansi):
        out = (command.run if command.run.is_dir() else command.run.parent) / "episode.gif"
    draws = out is not None or command.human
    env, name, renders = make_watched(run, command.env, command.env_args, mode="rgb_array" if draws else "ansi")
    title = f"{name.rpartition('/')[2]}   memory: {run.model.policy.memory_name}"
    played = moments(
        run.model, env, command.episodes, command.first_seed, command.deterministic, command.max_steps, renders
    )
    try:
        count = show(played, title, command, out)
    finally:
        env.close()
    if out is not None:
        print(f"{out}: {count} steps, {command.episodes} episode{'s' * (command.episodes > 1)}")


def show(played: Iterator[Moment], title: str, command: PlayCommand, out: Path | None) -> int:
    """Send every moment where the command says; the number of moments."""
    count = 0
    with ExitStack() as closing:
        frames: Frames | None = None
        outputs: list[Output] = []
        for moment in played:
            count += 1
            if command.ansi:
                print(as_text(moment), end="\n\n", flush=True)
                if not command.human:
                    time.sleep(1 / command.fps if out is None else 0)
            if out is None and not command.human:
                continue
            if frames is None:
                if moment.world is None:
                    print(NO_PICTURE)
                frames = Frames(moment, title, NO_PICTURE)
                outputs = list(_outputs(frames, title, command, out))
                for output in outputs:
                    closing.callback(output.close)
            frame = frames.draw(moment)
            for output in outputs:
                output.add(frame)
    return count


def _outputs(frames: Frames, title: str, command: PlayCommand, out: Path | None) -> Iterator[Output]:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield Gif(out, command.fps) if out.suffix.lower() == ".gif" else Video(out, command.fps, frames.size)
    if command.human:
        yield Window(frames.size, command.fps, title)


def check_output(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is played; ValueError."""
    suffix = out.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"--out must end in .gif or .mp4; got {str(out)!r}")
    if out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a folder; name a file in it")
    if suffix == ".mp4":
        video_writer()


def as_text(moment: Moment) -> str:
    """A moment in lines: the world, a line per panel, the choices, the value."""
    scores = moment.scores
    choices = "  ".join(
        f"{'>' if taken else ''}{name} {value:.2f}"
        for name, value, taken in zip(scores.names, scores.values, scores.chosen)
    )
    lines = [f"episode {moment.episode}, step {moment.step}"]
    if isinstance(moment.world, str):
        lines.append(moment.world)
    lines += [f"{panel.title:<34.34} {sparks(panel)}" for panel in moment.panels]
    lines.append(f"{scores.title:<34.34} {choices}")
    lines.append(f"value {moment.value:.3g}   reward {moment.reward:+.3g}   return {moment.total:+.3g}   {moment.end}")
    return "\n".join(line.rstrip() for line in lines)


def sparks(panel: Panel, width: int = 64) -> str:
    """A character per number; of a picture the lengths of its lines. Neighbours are averaged where there are many."""
    values = np.nan_to_num(panel.values.numpy())
    if values.ndim == 2:
        values = np.sqrt(np.square(values).sum(1))
    low, high = panel.span if panel.span is not None and panel.values.ndim == 1 else (0.0, float(np.abs(values).max()))
    parts = np.array_split(np.abs(values), min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    levels = np.clip((means - low) / ((high - low) or 1) * (len(BLOCKS) - 1), 0, len(BLOCKS) - 1)
    return "".join(BLOCKS[round(level)] for level in levels.tolist())
