"""A ball through a video: needs a GPU, a model file, and may fail in the middle.

A video is any file of several frames that Pillow reads (GIF, APNG, WebP). The
model says which colour the ball has and how far it may jump between frames. The
arithmetic runs on the GPU when torch is there, else in numpy.
"""

import io
import json
import os
from typing import Optional

import numpy
from PIL import Image, ImageSequence


class TrackingError(Exception):
    """A frame could not be followed."""


class Plugin:
    """Follows one ball."""

    def __init__(self):
        with open(os.path.join(os.path.dirname(__file__), "models/ball.json")) as file:
            model = json.load(file)
        self.color = numpy.array(model["color"], dtype=numpy.float32)
        self.tolerance = float(model["tolerance"])
        self.jump = float(model["jump"])
        self.torch = self._torch()

    def validate(self):
        """A model that fits nothing is noticed before the first video."""
        if self.color.shape != (3,) or self.tolerance <= 0:
            raise ValueError("models/ball.json needs a color of three numbers and a tolerance")

    def track_video(self, video: bytes, device: str = "cuda", fail_at: Optional[int] = None):
        """Follows the ball through every frame of a video.

        Args:
            video: GIF, APNG or WebP
            device: cuda or cpu
            fail_at: for tests: this frame (the first is 1) cannot be followed
        """
        positions = []
        last = None
        for number, frame in enumerate(ImageSequence.Iterator(Image.open(io.BytesIO(video))), 1):
            if number == fail_at:
                raise TrackingError(f"frame {number}: lost the ball")
            pixels = numpy.asarray(frame.convert("RGB"), dtype=numpy.float32)
            found = self._locate(pixels, device)
            if found is not None and last is not None:
                distance = float(numpy.hypot(found[0] - last[0], found[1] - last[1]))
                if distance > self.jump:
                    found = None
            last = found or last
            positions.append(None if found is None else [round(value, 1) for value in found])
        return {
            "positions": positions,
            "frames": len(positions),
            "device": device if self.torch is not None else "cpu",
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","),
        }

    def _locate(self, pixels, device):
        """The middle of everything that has the ball's colour."""
        if self.torch is not None:
            array = self.torch.as_tensor(pixels, device=device)
            color = self.torch.as_tensor(self.color, device=device)
            near = ((array - color) ** 2).sum(-1).sqrt() < self.tolerance
            rows, columns = (axis.cpu().numpy() for axis in self.torch.nonzero(near, as_tuple=True))
        else:
            near = numpy.sqrt(((pixels - self.color) ** 2).sum(-1)) < self.tolerance
            rows, columns = numpy.nonzero(near)
        if len(rows) == 0:
            return None
        return float(columns.mean()), float(rows.mean())

    @staticmethod
    def _torch():
        try:
            import torch
        except ImportError:
            return None
        return torch if torch.cuda.is_available() else None
