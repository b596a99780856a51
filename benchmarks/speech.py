"""Word error rate, invented words and real-time factor of speech to text.

    python -m benchmarks.speech labels.csv --model tiny.en

`labels.csv` has the columns `video` (path, relative to it) and `transcript` (what is said; empty
where it is not known). Needs `pip install "vbkit[asr]" jiwer`.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def words(text: str) -> str:
    """Lower case, without punctuation, digits spelled, letters and digits apart (`F2`: f two)."""
    text = re.sub(r"(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])", " ", text.lower().replace("'", ""))
    text = re.sub(r"\b\d\b", lambda found: DIGITS[int(found.group())], text)
    return " ".join(re.findall(r"\w+", text))


def main() -> None:
    import jiwer

    from vbkit.errors import MediaError
    from vbkit.media import FileSound
    from vbkit_whisper import WhisperOptions
    from vbkit_whisper.transcriber import Whisper

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--match", default="", help="only videos whose name holds this are scored")
    arguments = parser.parse_args()
    whisper = Whisper(WhisperOptions(
        model=arguments.model, precision=arguments.precision, cpu_threads=arguments.threads), "cpu")
    said, heard = [], []
    sound = listening = 0.0
    with arguments.labels.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = arguments.labels.parent / row["video"]
        try:
            seconds = sum(len(piece.samples) / piece.rate for piece in FileSound(path).pieces())
            began = time.perf_counter()
            found = whisper.transcribe(FileSound(path))
        except MediaError as error:
            print(f"{row['video']}: {error}")
            continue
        took = time.perf_counter() - began
        text = " ".join(segment.text for segment in found.segments)
        print(f"{row['video']}: {seconds:.1f} s of sound in {took:.2f} s: {text}")
        sound, listening = sound + seconds, listening + took
        if row["transcript"] and arguments.match in row["video"]:
            said.append(words(row["transcript"]))
            heard.append(words(text))
    if said:
        found = jiwer.process_words(said, heard)
        print(f"word error rate {found.wer:.3f} of {len(said)} videos, "
              f"{sum(len(text.split()) for text in said)} words: {found.substitutions} other, "
              f"{found.deletions} missing, {found.insertions} added")
    print(f"real-time factor {listening / sound:.3f} ({sound:.0f} s of sound)")


if __name__ == "__main__":
    main()
