"""Motion over frames: each frame is compared with a slowly adapting background.

The background lives in the process. When the process is replaced it is gone, and
the next frame starts a fresh one: `baseline` says so, and the call's outcome has
another generation.
"""

import io
from typing import List, Optional, TypedDict

import numpy
from PIL import Image
from stockade import tool

# Frames are compared at this size: faster, and noise of single pixels is gone.
SIZE = (160, 120)
# How fast the background follows.
ADAPTATION = 0.1


class Motion(TypedDict):
    """What one frame showed."""

    motion: bool
    changed: float
    box: Optional[List[float]]
    baseline: str
    frames: int


class Plugin:
    """Keeps one background per camera."""

    def __init__(self):
        self.backgrounds = {}
        self.frames = {}

    @tool
    def detect(
        self, frame: bytes, camera: str = "default", threshold: int = 25, area: float = 0.002
    ) -> Motion:
        """Compares a frame with what the camera showed before.

        Args:
            frame: PNG or JPEG
            camera: frames of one camera belong together
            threshold: how much brighter or darker a pixel must be, of 255
            area: the share of the picture that must change
        """
        image = Image.open(io.BytesIO(frame)).convert("L").resize(SIZE, Image.BILINEAR)
        now = numpy.asarray(image, dtype=numpy.float32)
        background = self.backgrounds.get(camera)
        self.frames[camera] = self.frames.get(camera, 0) + 1
        if background is None:
            self.backgrounds[camera] = now.copy()
            return self._told(camera, numpy.zeros(now.shape, dtype=bool), area, "fresh")
        changed = numpy.abs(now - background) > threshold
        background += ADAPTATION * (now - background)
        return self._told(camera, changed, area, "kept")

    @tool
    def reset(self, camera: str = "default") -> bool:
        """Forgets the background of a camera; true when there was one."""
        self.frames.pop(camera, None)
        return self.backgrounds.pop(camera, None) is not None

    def _told(self, camera: str, changed: numpy.ndarray, area: float, baseline: str) -> Motion:
        share = float(changed.mean())
        box = None
        if share >= area:
            rows, columns = numpy.nonzero(changed)
            height, width = changed.shape
            box = [
                float(columns.min()) / width,
                float(rows.min()) / height,
                float(columns.max() + 1) / width,
                float(rows.max() + 1) / height,
            ]
        return {
            "motion": share >= area,
            "changed": share,
            "box": box,
            "baseline": baseline,
            "frames": self.frames[camera],
        }
