"""Build `mini`, vbkit's embedded model, from public weights and data.

    python recipes/mini/build.py --minilm DIR --efficientnet FILE --data DIR --work DIR \
        --out plugins/vbkit_mini/model

Stages, each kept in --work and skipped when it is there:

1. backbone: EfficientNet-Lite0's published weights, renamed for timm, checked on ImageNet images.
2. features: pictures through that backbone; captions and class names through MiniLM.
3. projection: clips into MiniLM's sentence space, by symmetric contrastive learning (InfoNCE, as in
   CLIP, Radford et al., 2021, section 2.3) on Flickr8k, with ImageNet class names beside it.
4. vocabulary: visual words of the projected features, by hierarchical k-means.
5. corpus: pictures, clips and texts as `vbkit pretrain` reads them.
6. joint: masked words, masked visual words, alignment and captions. The encoder's adapters, its
   visual input, the heads and the decoder learn; what embeds text by itself stays all-MiniLM-L6-v2.
7. captions: the decoder alone goes on.
8. reward: the decoder by the worth of what it writes (self-critical training); then the mean of
   the decoders before and after.
9. bundle: float16 safetensors, tokenizer, configuration, model card with validation numbers.

Nothing is chosen on Flickr8k's `val` split, which stage 9 measures on; what was tuned was tuned on
training images. `recipes/mini/README.md` says where weights and data come from.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoTokenizer, BertModel

import vbkit
from vbkit.evaluation.evaluate import EVALUATIONS, evaluate
from vbkit.model import VideoBertConfig, VideoBertForPreTraining, VideoBertModel, VideoBertProcessor
from vbkit.model.modeling import bert_to_videobert
from vbkit.model.processing import VIDEO_TOKEN
from vbkit.model.vocabulary import VOCABULARY_FILE, VisualVocabulary, build_vocabulary
from vbkit.training.config import ExampleOptions, PretrainConfig
from vbkit.training.corpus import CorpusInfo, CorpusItem, write_corpus
from vbkit.training.pretraining import pretrain

IMAGE_SIZE = 224
BACKBONE = {
    "name": "efficientnet_lite0",
    "weights": "backbone.safetensors",
    "pooling": "mean_std",
    "spatial": "mean_max_std",
    "fit": "squash",
}
HELD_OUT, HELD_OUT_CLIPS = 300, 20
"""Training images, and captioned clips, that training is watched on and does not learn from."""
NEGATIVE_SHARE = 0.2
CROPS = tuple(f"random{number}" for number in range(6))
VIEWS = ("squash", "flip", *CROPS)
"""How a training picture is seen: whole, mirrored, and in random parts."""
CLASS_VIEWS = ("squash", "centre", "crop", *CROPS[:3])
ENSEMBLE = 2
CONFIG = {
    "visual_feature_size": 3840,
    "visual_reduction_size": 384,
    "projection_hidden_size": 1024,
    "adapter_size": 128,
    "adapter_context_size": 128,
    "visual_dropout_prob": 0.2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build vbkit's embedded model `mini`.")
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2 folder")
    parser.add_argument("--efficientnet", type=Path, required=True, help="Lite0 weights (.pth)")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/ and more")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is in between")
    parser.add_argument("--out", type=Path, required=True, help="the bundle")
    parser.add_argument("--previous", type=Path, help="an earlier form of mini to go on from")
    parser.add_argument("--joint-steps", type=int, default=2500)
    parser.add_argument("--caption-steps", type=int, default=900)
    parser.add_argument("--reward-steps", type=int, default=450)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    numbers = stage_backbone(args.efficientnet, args.data, args.work)
    stage_features(args.minilm, args.data, args.work)
    stage_projection(args.work, args.data)
    start = stage_start(args.minilm, args.data, args.work, args.previous)
    stage_vocabulary(start, args.data, args.work)
    stage_corpus(start, args.data, args.work)
    # What has learnt already unlearns at the higher rate.
    rate = 3e-4 if args.previous else 1e-3
    joint = stage_pretrain(start, args.work, args.joint_steps, rate)
    captions = stage_captions(joint, args.work, args.caption_steps)
    rewarded = stage_reward(captions, args.work, args.reward_steps)
    averaged = stage_average(captions, rewarded, args.work)
    stage_bundle(averaged, args.work, args.out)
    numbers |= evaluate_all(args.data, args.work, args.out)
    write_card(args.out, numbers)
    print(json.dumps(numbers, indent=2))


# --- data -------------------------------------------------------------------------------------


def read_flickr(data: Path) -> tuple[list[str], dict[str, list[int]], list[str], list[list[int]]]:
    """Image names, their indices by split, all captions, and each image's caption indices."""
    images: dict[str, int] = {}
    splits: dict[str, list[int]] = {"train": [], "val": []}
    captions: list[str] = []
    of_image: list[list[int]] = []
    with (data / "flickr8k" / "captions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["image"] not in images:
                images[row["image"]] = len(images)
                splits[row["split"]].append(images[row["image"]])
                of_image.append([])
            of_image[images[row["image"]]].append(len(captions))
            captions.append(row["caption"].strip())
    return list(images), splits, captions, of_image


def imagenet_files(data: Path) -> tuple[list[Path], list[str]]:
    """One picture a class, in the order of the classifier's outputs, and the classes' names."""
    files = sorted((data / "imagenet_sample").glob("*.jpg"))
    return files, [re.sub(r"^n\d+_", "", file.stem).replace("_", " ") for file in files]


def load_picture(path: Path, view: str) -> Tensor:
    """(H, W, 3) uint8 square.

    `squash` as the engine does it, `flip` mirrored, `crop` the largest square in the middle,
    `centre` a square of seven eighths of that, `randomN` a part of 40 % to 100 % of the area, of
    about the picture's shape and mirrored half the time, the same at each call.
    """
    image = Image.open(path).convert("RGB")
    if view.startswith("random"):
        rng = random.Random(f"{path.name} {view}")
        area, shape = rng.uniform(0.4, 1.0), math.exp(rng.uniform(-0.25, 0.25))
        width = min(1.0, math.sqrt(area * shape)) * image.width
        height = min(1.0, math.sqrt(area / shape)) * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC,
                             box=(left, top, left + width, top + height))
        view = rng.choice(("squash", "flip"))
    elif view in ("centre", "crop"):
        scale = (256 if view == "centre" else IMAGE_SIZE) / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)),
                             Image.Resampling.BICUBIC)
        left, top = (image.width - IMAGE_SIZE) // 2, (image.height - IMAGE_SIZE) // 2
        image = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    else:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    picture = pil_to_tensor(image).permute(1, 2, 0)
    return picture.flip(1) if view == "flip" else picture


# --- stages -----------------------------------------------------------------------------------


def timm_network(weights: Path, classes: int) -> nn.Module:
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes)
    state = load_file(weights)
    if not classes:
        state = {name: tensor for name, tensor in state.items() if name in network.state_dict()}
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return network.eval()


def stage_backbone(checkpoint: Path, data: Path, work: Path) -> dict[str, float]:
    import timm

    target, report = work / "efficientnet_lite0.safetensors", work / "backbone.json"
    if not report.exists():
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The published file has other names, but the same tensors in the same order.
        published = torch.load(checkpoint, map_location="cpu", weights_only=True)
        own = network.state_dict()
        if [t.shape for t in published.values()] != [t.shape for t in own.values()]:
            raise SystemExit(f"{checkpoint} is not EfficientNet-Lite0")
        renamed = dict(zip(own, published.values(), strict=True))
        save_file({k: v.contiguous() for k, v in renamed.items()}, target)
        network.load_state_dict(renamed)
        network = network.eval().to(memory_format=torch.channels_last)
        files, _ = imagenet_files(data)
        right = []
        with torch.inference_mode():
            for start in range(0, len(files), 50):
                pictures = torch.stack([load_picture(f, "centre") for f in files[start:start + 50]])
                logits = network((pictures.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
                right.append(logits.argmax(1) == torch.arange(start, start + len(pictures)))
        accuracy = 100 * float(torch.cat(right).float().mean())
        if accuracy < 70:
            raise SystemExit(f"the converted backbone is {accuracy:.1f} % right on ImageNet")
        report.write_text(json.dumps({"imagenet_sample_top1": round(accuracy, 1)}))
    return json.loads(report.read_text())


def stage_features(minilm: Path, data: Path, work: Path) -> None:
    target = work / "features.safetensors"
    if target.exists():
        return
    from vbkit.engine.bundle import choose_device, choose_precision
    from vbkit.model.backbones import load_backbone
    from vbkit.plugins import default_manager

    backbone = load_backbone(default_manager(), BACKBONE["name"],
                             str(work / "efficientnet_lite0.safetensors"),
                             pooling="mean_std", spatial="mean_max_std",
                             fit="squash")
    device = choose_device("cpu")
    backbone.prepare(device, choose_precision("auto", device))
    names, _, captions, _ = read_flickr(data)
    flickr = [data / "flickr8k" / "images" / name for name in names]
    imagenet, classes = imagenet_files(data)
    out: dict[str, Tensor] = {}
    jobs = {f"flickr_{view}": flickr for view in VIEWS} | {
        f"imagenet_{view}": imagenet for view in CLASS_VIEWS}
    for name, files in jobs.items():
        started, rows = time.time(), []
        for start in range(0, len(files), 64):
            pictures = torch.stack(
                [load_picture(file, name.split("_")[1]) for file in files[start:start + 64]])
            with torch.inference_mode():
                rows.append(backbone(pictures[:, None])[:, : CONFIG["visual_feature_size"]].half())
        out[name] = torch.cat(rows)
        print(f"{name}: {len(files)} pictures in {time.time() - started:.0f} s", flush=True)
    model, processor = text_encoder(minilm)
    processor.tokenizer.save_pretrained(work / "tokenizer")
    out["flickr_text"] = embed_texts(model, processor, captions).half()
    out["imagenet_text"] = embed_texts(model, processor,
                                       [f"a photo of a {name}" for name in classes]).half()
    save_file(out, target)


def text_encoder(minilm: Path) -> tuple[VideoBertModel, VideoBertProcessor]:
    bert = BertModel.from_pretrained(minilm, add_pooling_layer=False)
    model = VideoBertModel(VideoBertConfig()).eval()
    missing, unexpected = model.load_state_dict(bert_to_videobert(bert.state_dict()), strict=False)
    visual = ("visual_embeddings.", "clip_projection.", "feature_")
    if unexpected or any(not name.startswith(visual) for name in missing):
        raise SystemExit(f"{minilm} is not all-MiniLM-L6-v2")
    return model, VideoBertProcessor(load_tokenizer(minilm))


def load_tokenizer(minilm: Path):
    """MiniLM's tokenizer, with its first unused word turned into `[>]`."""
    folder = Path(minilm)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    if VIDEO_TOKEN not in vocabulary:
        index = vocabulary.pop("[unused0]")
        vocabulary[VIDEO_TOKEN] = index
        spec["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        spec["added_tokens"].append({
            "id": index, "content": VIDEO_TOKEN, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        })
        spec["added_tokens"].sort(key=lambda token: token["id"])
    spec["truncation"] = spec["padding"] = None
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "tokenizer.json").write_text(json.dumps(spec))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        kept = {key: settings[key] for key in
                ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")}
        (Path(temporary) / "tokenizer_config.json").write_text(json.dumps(
            kept | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}))
        return AutoTokenizer.from_pretrained(temporary)


@torch.inference_mode()
def embed_texts(model: VideoBertModel, processor: VideoBertProcessor, texts: list[str]) -> Tensor:
    ids = processor.tokenize(texts)
    order = sorted(range(len(texts)), key=lambda index: len(ids[index]))
    out = torch.empty(len(texts), model.config.shared_size)
    tokenizer = processor.tokenizer
    for start in range(0, len(order), 128):
        chunk = order[start:start + 128]
        rows = [[tokenizer.cls_token_id, *ids[i][:254], tokenizer.sep_token_id] for i in chunk]
        out[chunk] = model.embed_text(*processor.pad(rows))
    return out


def stage_projection(work: Path, data: Path) -> None:
    target = work / "projection.safetensors"
    if target.exists():
        return
    features = load_file(work / "features.safetensors")
    members = []
    for seed in range(ENSEMBLE):
        member = work / f"projection-{seed}.safetensors"
        if not member.exists():
            save_file(train_projection(features, data, seed), member)
        members.append(load_file(member))
    _, splits, _, _ = read_flickr(data)
    pictures = torch.cat([features[f"flickr_{view}"][splits["train"]] for view in VIEWS]).float()
    save_file(reduced(members, pictures, CONFIG["visual_reduction_size"]), target)


def train_projection(
    features: dict[str, Tensor],
    data: Path,
    seed: int,
    epochs: int = 60,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    dropout: float = 0.5,
    imagenet_weight: float = 0.3,
) -> dict[str, Tensor]:
    """Train a `clip_projection` towards captions as the text tower embeds them.

    The text tower is frozen, so its embeddings are computed once.
    """
    _, splits, _, of_image = read_flickr(data)
    train = torch.tensor(splits["train"][HELD_OUT:])
    views = torch.stack([features[f"flickr_{view}"] for view in VIEWS]).float()
    classes = torch.stack([features[f"imagenet_{view}"] for view in CLASS_VIEWS]).float()
    texts, class_texts = features["flickr_text"].float(), features["imagenet_text"].float()
    captions = torch.tensor([of_image[int(i)][:5] for i in train])

    torch.manual_seed(seed)
    config = VideoBertConfig(**CONFIG | {
        "num_hidden_layers": 0, "vocab_size": 200, "visual_reduction_size": 0,
        "projection_hidden_size": CONFIG["projection_hidden_size"] // ENSEMBLE,
        "projection_dropout": dropout})
    model = VideoBertModel(config).train()
    model.feature_mean.copy_(views[0, train].mean(0))
    model.feature_std.copy_(views[0, train].std(0) + 1e-3)
    nn.init.zeros_(model.clip_projection.mlp_out.weight)
    log_scale = nn.Parameter(torch.tensor(20.0).log())
    optimizer = torch.optim.AdamW(
        [{"params": model.clip_projection.parameters(), "weight_decay": 0.05},
         {"params": [log_scale], "weight_decay": 0.0}], lr=learning_rate)
    steps = epochs * (-(-len(train) // batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps,
                                                   pct_start=0.1)

    def contrast(pictures: Tensor, sentences: Tensor) -> Tensor:
        vectors = model.clip_projection(F.dropout(model.standardise(pictures), dropout))
        logits = log_scale.exp() * vectors @ sentences.T
        same = torch.arange(len(pictures))
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    for epoch in range(epochs):
        order, total = torch.randperm(len(train)), 0.0
        for start in range(0, len(train), batch):
            rows = order[start:start + batch]
            view = torch.randint(0, len(VIEWS), (len(rows),))
            chosen = captions[rows, torch.randint(0, 5, (len(rows),))]
            loss = contrast(views[view, train[rows]], texts[chosen])
            total += float(loss.detach()) * len(rows)
            index = torch.arange(len(class_texts))
            view = torch.randint(0, len(CLASS_VIEWS), index.shape)
            loss = loss + imagenet_weight * contrast(classes[view, index], class_texts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"projection, epoch {epoch + 1}/{epochs}: loss {total / len(train):.3f}", flush=True)
    return {name: value.detach().clone() for name, value in model.state_dict().items()
            if name.startswith(("clip_projection.", "feature_"))} | {
                "logit_scale": log_scale.detach().clone()}


def reduced(members: list[dict[str, Tensor]], pictures: Tensor, width: int) -> dict[str, Tensor]:
    """The mean of projections that were trained apart, behind one `reduction` of `width`.

    All that reads features is one matrix, which is replaced by the product of two that changes its
    outputs on `pictures` least: its singular value decomposition, weighted by their covariance.
    """
    linear = torch.stack([m["clip_projection.linear.weight"] for m in members]).mean(0)
    reading = torch.cat([linear, *(m["clip_projection.mlp_in.weight"] for m in members)])
    first = members[0]
    x = (pictures - first["feature_mean"]) / first["feature_std"]
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    scale = values.clamp(min=1e-6).sqrt()
    left, singular, right = torch.linalg.svd(reading @ (vectors * scale), full_matrices=False)
    reduction = (singular[:width, None] * right[:width]) @ (vectors / scale).T
    size = float((x @ reduction.T).std())
    weight = left[:, :width] * size
    rows = len(linear)
    return {
        "feature_mean": first["feature_mean"],
        "feature_std": first["feature_std"],
        "reduction.weight": (reduction / size).contiguous(),
        "clip_projection.linear.weight": weight[:rows].contiguous(),
        "clip_projection.linear.bias": sum(
            m["clip_projection.linear.bias"] for m in members) / len(members),
        "clip_projection.mlp_in.weight": weight[rows:].contiguous(),
        "clip_projection.mlp_in.bias": torch.cat([m["clip_projection.mlp_in.bias"]
                                                  for m in members]),
        "clip_projection.mlp_out.weight": torch.cat([
            m["clip_projection.mlp_out.weight"] for m in members], 1) / len(members),
        "clip_projection.mlp_out.bias": sum(
            m["clip_projection.mlp_out.bias"] for m in members) / len(members),
        "logit_scale": torch.stack([m["logit_scale"] for m in members]).mean(),
    }


def stage_start(minilm: Path, data: Path, work: Path, previous: Path | None = None) -> Path:
    """The bundle that pretraining starts from: MiniLM, the clip projection, a decoder at random.

    With an earlier form of `mini`, its adapters, heads and decoder in their place.
    """
    out = work / "start"
    if (out / "model.safetensors").exists():
        return out
    features = load_file(work / "features.safetensors")
    _, splits, captions, of_image = read_flickr(data)
    text_model, processor = text_encoder(minilm)
    ids = processor.tokenize(captions)
    train = [ids[caption] for image in splits["train"] for caption in of_image[image]]
    words = sorted({piece for row in train for piece in row} | {processor.tokenizer.sep_token_id})
    config = VideoBertConfig(
        **CONFIG, backbone=BACKBONE, num_decoder_layers=1, decoder_intermediate_size=1024,
        max_decoder_positions=40, decoder_shortlist_size=len(words))
    torch.manual_seed(0)
    model = VideoBertForPreTraining(config)
    model.videobert.load_state_dict({
        name: tensor for name, tensor in text_model.state_dict().items()
        if name.startswith(("text_embeddings.", "layers."))}, strict=False)
    state = load_file(work / "projection.safetensors")
    model.logit_scale.data.copy_(state.pop("logit_scale"))
    model.videobert.load_state_dict(state, strict=False)
    model.decoder.set_shortlist(torch.tensor(words))
    frequency = torch.bincount(torch.tensor([piece for row in train for piece in row]),
                               minlength=config.vocab_size).float()
    with torch.no_grad():
        model.word_head.decoder.bias.copy_((frequency + 0.01).log() - frequency.sum().log())
        model.decoder.bias.copy_(model.word_head.decoder.bias[words])
        start_visual_input(model.videobert, features["flickr_squash"].float(),
                           splits["train"][HELD_OUT:], ids, of_image, frequency)
    if previous is not None:
        take_over(model, previous, features["flickr_squash"][splits["train"][HELD_OUT:]].float())
    out.mkdir(exist_ok=True)
    processor.save_pretrained(out)
    (out / "config.json").write_text(json.dumps(
        config.to_dict() | {"architectures": ["VideoBertForPreTraining"]}, indent=2,
        sort_keys=True) + "\n")
    network = timm_network(work / "efficientnet_lite0.safetensors", classes=0)
    save_file({name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
               for name, tensor in network.state_dict().items()}, out / "backbone.safetensors",
              metadata={"format": "pt"})
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()
               if name != "word_head.decoder.weight"}, out / "model.safetensors")
    return out


@torch.no_grad()
def take_over(model: VideoBertForPreTraining, previous: Path, pictures: Tensor,
              ridge: float = 100.0) -> None:
    """What an earlier form learnt, its maps of reduced features by least squares on `pictures`."""
    state = {name: tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in load_file(previous / "model.safetensors").items()}
    then = VideoBertForPreTraining(VideoBertConfig.from_pretrained(previous))
    then.load_state_dict(state, strict=False)
    before, now = then.videobert.reduce(pictures), model.videobert.reduce(pictures)
    bridge = torch.linalg.solve(now.T @ now + ridge * torch.eye(now.shape[1]), now.T @ before).T
    read = ("videobert.visual_embeddings.features.weight", "videobert.context.weight")
    kept = ("videobert.feature_", "videobert.reduction", "videobert.clip_projection",
            "logit_scale", "visual_word_head")
    model.load_state_dict(
        {name: tensor @ bridge if name in read else tensor for name, tensor in state.items()
         if not name.startswith(kept)}, strict=False)


def stage_vocabulary(start: Path, data: Path, work: Path) -> None:
    """Visual words of the training pictures as the clip projection has them."""
    if (work / "vocabulary" / VOCABULARY_FILE).exists():
        return
    engine = vbkit.Engine(model=str(start), precision="float32")
    features = load_file(work / "features.safetensors")
    _, splits, _, _ = read_flickr(data)
    pictures = torch.cat([features["flickr_squash"][splits["train"]],
                          features["flickr_flip"][splits["train"]],
                          features["imagenet_squash"]]).float()
    vectors = engine.encoder.embed_clips(pictures)
    vocabulary = build_vocabulary(lambda: vectors.split(4096), depth=3, branching=8, seed=0,
                                  space="embeddings", backbone=engine.bundle.visual_key)
    vocabulary.save(work / "vocabulary")


def stage_corpus(start: Path, data: Path, work: Path) -> None:
    """Flickr8k's training images and captions, clips with and without captions, and text alone."""
    target = work / "corpus"
    if (target / "corpus.json").exists() and CorpusInfo.read(target).complete:
        return
    engine = vbkit.Engine(model=str(start), precision="float32", cache=work / "cache")

    def items() -> Iterator[CorpusItem]:
        features = load_file(work / "features.safetensors")
        names, splits, captions, of_image = read_flickr(data)
        for place, image in enumerate(splits["train"]):
            views = torch.stack([features[f"flickr_{view}"][image] for view in VIEWS])
            yield CorpusItem(names[image], clip_features=wide(views[:, None]),
                             captions=[captions[i] for i in of_image[image]],
                             split="val" if place < HELD_OUT else "train")
        with (data / "captioned_clips" / "captions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        files = [data / "captioned_clips" / row["video"] for row in rows]
        for place, (row, found) in enumerate(zip(rows, engine.encode(
                files, needs={"clip_features", "clip_times"}, transcript="none"), strict=True)):
            if found.error is None and place >= HELD_OUT_CLIPS:
                yield CorpusItem(f"clip/{place}", clip_features=found.clip_features.numpy(),
                                 clip_times=found.clip_times, captions=[row["caption"]],
                                 split="train")
        silent = sorted((data / "moderation" / "fight_clips").rglob("*.mp4"))
        for place, found in enumerate(engine.encode(
                silent, needs={"clip_features", "clip_times"}, transcript="none")):
            if found.error is None:
                yield CorpusItem(f"silent/{place}", clip_features=found.clip_features.numpy(),
                                 clip_times=found.clip_times, split="train")
        with gzip.open(data / "text" / "captions.txt.gz", "rt", encoding="utf-8") as file:
            for place, line in enumerate(file):
                if line.strip():
                    yield CorpusItem(f"text/{place}", segments=[line.strip()], split="train")
        with (data / "youcook2" / "asr_sentences.csv").open(newline="") as file:
            spoken: dict[str, list[str]] = {}
            for row in csv.DictReader(file):
                spoken.setdefault(row["video_id"], []).append(row["Sentence"])
        for video, sentences in spoken.items():
            yield CorpusItem(f"speech/{video}", segments=sentences, split="train")

    write_corpus(items(), target, tokenizer=engine.bundle.processor.tokenizer,
                 backbone=engine.bundle.visual_key, precision="float32")


def wide(features: Tensor) -> np.ndarray:
    """A still picture's features with their deviations over time, which are 0."""
    return F.pad(features, (0, 1280)).numpy()


def stage_pretrain(start: Path, work: Path, steps: int, learning_rate: float) -> Path:
    """Words, visual words, alignment and captions; the text tower and the shared space stay."""
    out = work / "joint"
    layers = VideoBertConfig(**CONFIG).num_hidden_layers
    parts = ("attention.", "attention_norm", "mlp_in", "mlp_out", "mlp_norm")
    config = PretrainConfig(
        corpus=str(work / "corpus"), model=str(start), vocabulary=str(work / "vocabulary"),
        mixture={"joint": 8, "text": 0.5, "video": 0.2, "caption": 3},
        batch_size=128, batch_sizes={"video": 32}, precision="bfloat16",
        examples=ExampleOptions(max_text_tokens=24, max_caption_tokens=32, mask_rate=(0.3, 1.0),
                                negative_share=NEGATIVE_SHARE, join=0.0, max_clips=16,
                                visual_mask_rate=(0.0, 0.5)),
        loss_weights={"visual_words": 0.2, "alignment": 0.5},
        steps=steps, learning_rate=learning_rate, warmup=0.05, weight_decay=0.01,
        frozen=("videobert.text_embeddings", "videobert.reduction", "videobert.clip_projection",
                "logit_scale",
                *(f"videobert.layers.{n}.{part}" for n in range(layers) for part in parts)),
        log_every=50, eval_every=500, eval_batches=8, save_every=500, keep_checkpoints=1)
    return trained(config, out)


def trained(config: PretrainConfig, out: Path) -> Path:
    """What a run leaves in `out`; one that was killed goes on."""
    if not (out / "model.safetensors").exists():
        pretrain(config, out, device="cpu", resume=(out / "checkpoints").exists(),
                 logged=lambda numbers: print(json.dumps(dict(numbers)), flush=True))
    return out


def stage_captions(joint: Path, work: Path, steps: int) -> Path:
    """The decoder goes on by itself, until it is no longer better on held-out captions."""
    out = work / "captions"
    config = decoder_alone(work, joint, mixture={"caption": 1}, batch_size=128, steps=steps,
                           learning_rate=3e-4, eval_every=250, eval_batches=12, log_every=50)
    return trained(config, out)


def stage_reward(captions: Path, work: Path, steps: int) -> Path:
    """The decoder learns to write what is near to all captions of a picture."""
    out = work / "reward"
    config = decoder_alone(work, captions, mixture={"reward": 1}, batch_size=64, steps=steps,
                           learning_rate=1e-4, eval_every=50, eval_batches=4, log_every=25,
                           samples=5, schedule="cosine")
    return trained(config, out)


def stage_average(captions: Path, rewarded: Path, work: Path, share: float = 0.75) -> Path:
    """The mean of both decoders' weights (Wortsman et al., ICML 2022).

    What is rewarded is worded better, but ends up saying less.
    """
    out = work / "averaged"
    if (out / "model.safetensors").exists():
        return out
    shutil.copytree(captions, out, ignore=shutil.ignore_patterns("checkpoints", "*.jsonl",
                                                                 "tensorboard"))
    before, after = (load_file(folder / "model.safetensors") for folder in (captions, rewarded))
    save_file({name: torch.lerp(tensor, after[name], share) if tensor.is_floating_point()
               else tensor for name, tensor in before.items()}, out / "model.safetensors",
              metadata={"format": "pt"})
    return out


def decoder_alone(work: Path, start: Path, **settings: Any) -> PretrainConfig:
    return PretrainConfig(
        corpus=str(work / "corpus"), model=str(start), precision="bfloat16",
        examples=ExampleOptions(max_caption_tokens=32, max_clips=16), warmup=0.02,
        weight_decay=0.01, patience=3, keep_checkpoints=1,
        frozen=("videobert", "word_head", "visual_word_head", "alignment_head", "logit_scale"),
        **settings)


def start_visual_input(model: VideoBertModel, pictures: Tensor, train: list[int],
                       ids: list[list[int]], of_image: list[list[int]], frequency: Tensor,
                       ridge: float = 300.0) -> None:
    """Least squares from features to the caption's word embeddings, rare words weighing more."""
    weight = (frequency.sum() / (frequency + 1)).log()
    words = model.text_embeddings.words.weight
    targets = []
    for image in train:
        pieces = torch.tensor([piece for caption in of_image[image] for piece in ids[caption]])
        share = weight[pieces] / weight[pieces].sum()
        targets.append((words[pieces] * share[:, None]).sum(0))
    with torch.no_grad():
        x = model.reduce(pictures[train])
    y = torch.stack(targets)
    gram = x.T @ x + ridge * torch.eye(x.shape[1])
    solution = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    layer = model.visual_embeddings
    layer.features.weight.copy_(solution.T)
    layer.features.bias.copy_(y.mean(0))
    count = layer.positions.num_embeddings
    layer.positions.weight.copy_(model.text_embeddings.positions.weight[:count])
    layer.type_embedding.copy_(model.text_embeddings.type_embedding)
    layer.norm.load_state_dict(model.text_embeddings.norm.state_dict())


# --- bundle and evaluation --------------------------------------------------------------------


def stage_bundle(trained: Path, work: Path, out: Path) -> None:
    """What training left, in float16, with the cloze's words and without training's own files."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    # Only pretraining reads the visual-word head; going on from `mini` begins it anew.
    state = {name: tensor for name, tensor in load_file(trained / "model.safetensors").items()
             if not name.startswith("visual_word_head.")}
    # Few training pairs were shuffled; the bias is moved to where half of them are.
    state["alignment_head.bias"] -= math.log((1 - NEGATIVE_SHARE) / NEGATIVE_SHARE)
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor
               for name, tensor in state.items()}, out / "model.safetensors",
              metadata={"format": "pt"})
    settings = json.loads((trained / "config.json").read_text()) | {"dtype": "float16"}
    (out / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    VisualVocabulary.load(trained).save(out, dtype=torch.float16)
    for name in ("backbone.safetensors", "tokenizer.json", "tokenizer_config.json",
                 "processor_config.json"):
        shutil.copyfile(trained / name, out / name)
    cloze = json.loads((Path(__file__).parent.parent / "cloze" / "cloze.json").read_text())
    (out / "cloze.json").write_text(json.dumps(cloze) + "\n")


def evaluate_all(data: Path, work: Path, model: Path) -> dict[str, float]:
    """Numbers on Flickr8k's `val` split, by `vbkit evaluate`'s own code."""
    manifest = work / "val.jsonl"
    names, splits, captions, of_image = read_flickr(data)
    with manifest.open("w") as file:
        for image in splits["val"]:
            file.write(json.dumps({
                "id": names[image],
                "video": str((data / "flickr8k" / "images" / names[image]).resolve()),
                "caption": [captions[index] for index in of_image[image]]}) + "\n")
    engine = vbkit.Engine(model=str(model), cache=work / "cache")
    numbers: dict[str, float] = {}
    for task in EVALUATIONS:
        found = evaluate(engine, task, manifest)
        print(json.dumps(found.as_dict()), flush=True)
        for name, value in found.metrics.items():
            key = f"{task}_{name}" if name in ("accuracy", "roc_auc") else name
            if isinstance(value, float):
                share = task != "caption" and "perplexity" not in name and "rank" not in name
                numbers[key] = round(100 * value, 1) if share else round(value, 3)
    return numbers


def write_card(out: Path, numbers: dict[str, float]) -> None:
    card = (Path(__file__).parent / "model_card.md").read_text()
    for name, value in numbers.items():
        card = card.replace("{" + name + "}", str(value))
    if left := re.findall(r"\{\w+\}", card):
        raise SystemExit(f"the model card asks for unknown numbers: {left}")
    (out / "README.md").write_text(card)
    for file in out.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
