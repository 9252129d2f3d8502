"""Text from images, by the program tesseract: a child process per call, whose
crash, hang or hunger for memory stays in this plugin."""

import csv
import io
import subprocess
from typing import Dict, List, TypedDict

from stockade import Context, tool


class Word(TypedDict):
    """One word and where it stands, in pixels."""

    text: str
    confidence: float
    box: List[int]


class Text(TypedDict):
    """What was read."""

    text: str
    words: List[Word]
    language: str


class OcrError(Exception):
    """Tesseract could not read the image."""


class Plugin:
    """Reads text."""

    @tool(title="Read text")
    def analyze(self, image_bytes: bytes, ctx: Context, language: str = "eng") -> Text:
        """Reads the text of an image.

        Args:
            image_bytes: PNG, JPEG or TIFF
            language: a language of tesseract, for instance eng or deu
        """
        command = ["tesseract", "stdin", "stdout", "-l", language, "tsv"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            # A client that goes takes its process along.
            ctx.on_cancel(process.kill)
            out, err = process.communicate(image_bytes)
        ctx.check()
        if process.returncode != 0:
            raise OcrError(err.decode(errors="replace").strip() or "tesseract failed")
        words, lines = self._read(out.decode())
        return {"text": "\n".join(lines), "words": words, "language": language}

    @tool
    def languages(self) -> List[str]:
        """Languages that are installed."""
        listed = subprocess.run(
            ["tesseract", "--list-langs"], capture_output=True, text=True, check=True
        )
        return sorted(listed.stdout.split("\n")[1:-1])

    @staticmethod
    def _read(table: str) -> "tuple[List[Word], List[str]]":
        """Words and lines of tesseract's table."""
        words: List[Word] = []
        lines: Dict[tuple, List[str]] = {}
        reader = csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in reader:
            text = (row["text"] or "").strip()
            if not text:
                continue
            left, top = int(row["left"]), int(row["top"])
            box = [left, top, left + int(row["width"]), top + int(row["height"])]
            words.append({"text": text, "confidence": float(row["conf"]) / 100, "box": box})
            lines.setdefault((row["block_num"], row["par_num"], row["line_num"]), []).append(text)
        return words, [" ".join(line) for line in lines.values()]
