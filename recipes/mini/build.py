"""Build `mini`, vbkit's embedded model, from public weights and data.

    python recipes/mini/build.py --minilm DIR --efficientnet FILE --data DIR --work DIR \
        --out plugins/vbkit_mini/model

Stages, each kept in --work and skipped when it is there:

1. backbone: EfficientNet-Lite0's published weights, renamed for timm, checked on ImageNet images.
2. features: pictures through that backbone; captions and class names through MiniLM.
3. projection: clips into MiniLM's sentence space, by symmetric contrastive learning (InfoNCE, as in
   CLIP, Radford et al., 2021, section 2.3) on Flickr8k, with ImageNet class names beside it.
4. joint: the encoder's visual input, by masked words on Flickr8k, the encoder frozen, so that text
   alone stays exactly all-MiniLM-L6-v2.
5. bundle: float16 safetensors, tokenizer, configuration, model card with validation numbers.

Nothing is chosen on Flickr8k's `val` split, which stage 5 measures on; what was tuned was tuned on
1,000 of the training images. `recipes/mini/README.md` says where weights and data come from.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoTokenizer, BertModel

from vbkit.model import VideoBertConfig, VideoBertForPreTraining, VideoBertModel, VideoBertProcessor
from vbkit.model.modeling import bert_to_videobert
from vbkit.model.processing import VIDEO_TOKEN

IMAGE_SIZE = 224
BACKBONE = {
    "name": "efficientnet_lite0",
    "weights": "backbone.safetensors",
    "pooling": "mean_std",
    "fit": "squash",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build vbkit's embedded model `mini`.")
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2 folder")
    parser.add_argument("--efficientnet", type=Path, required=True, help="Lite0 weights (.pth)")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/ and more")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is in between")
    parser.add_argument("--out", type=Path, required=True, help="the bundle")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    numbers = stage_backbone(args.efficientnet, args.data, args.work)
    stage_features(args.minilm, args.data, args.work)
    stage_projection(args.work, args.data)
    stage_joint(args.minilm, args.data, args.work)
    numbers |= evaluate(args.data, args.work)
    stage_bundle(args.minilm, args.work, args.out, numbers)
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
    `centre` a square of seven eighths of that.
    """
    image = Image.open(path).convert("RGB")
    if view in ("centre", "crop"):
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
                             pooling="mean_std", fit="squash")
    device = choose_device("cpu")
    backbone.prepare(device, choose_precision("auto", device))
    names, _, captions, _ = read_flickr(data)
    flickr = [data / "flickr8k" / "images" / name for name in names]
    imagenet, classes = imagenet_files(data)
    out: dict[str, Tensor] = {}
    jobs = {"flickr_squash": flickr, "flickr_flip": flickr,
            "imagenet_squash": imagenet, "imagenet_centre": imagenet, "imagenet_crop": imagenet}
    for name, files in jobs.items():
        started, rows = time.time(), []
        for start in range(0, len(files), 64):
            pictures = torch.stack(
                [load_picture(file, name.split("_")[1]) for file in files[start:start + 64]])
            with torch.inference_mode():
                rows.append(backbone(pictures[:, None])[:, :1280].half())
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
    state = train_projection(load_file(work / "features.safetensors"), data)
    save_file(state, target)


def train_projection(
    features: dict[str, Tensor],
    data: Path,
    held_out: int = 0,
    epochs: int = 40,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    dropout: float = 0.5,
    imagenet_weight: float = 0.3,
) -> dict[str, Tensor]:
    """Train `clip_projection`; the last `held_out` training images are left out, for tuning."""
    _, splits, _, of_image = read_flickr(data)
    train = torch.tensor(splits["train"])[torch.randperm(len(splits["train"]))]
    train = train[: len(train) - held_out]
    views = torch.stack([features["flickr_squash"], features["flickr_flip"]]).float()
    classes = torch.stack([features[f"imagenet_{v}"] for v in ("squash", "centre", "crop")]).float()
    texts, class_texts = features["flickr_text"].float(), features["imagenet_text"].float()
    captions = torch.tensor([of_image[int(i)][:5] for i in train])

    model = VideoBertModel(VideoBertConfig(num_hidden_layers=0, vocab_size=200))
    model.feature_mean.copy_(views[0, train].mean(0))
    model.feature_std.copy_(views[0, train].std(0) + 1e-3)
    projection = model.clip_projection
    nn.init.zeros_(projection.mlp_out.weight)
    log_scale = nn.Parameter(torch.tensor(20.0).log())
    optimizer = torch.optim.AdamW(
        [{"params": projection.parameters(), "weight_decay": 0.05},
         {"params": [log_scale], "weight_decay": 0.0}], lr=learning_rate)
    steps = epochs * (-(-len(train) // batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps,
                                                   pct_start=0.1)

    def contrast(pictures: Tensor, sentences: Tensor) -> Tensor:
        x = F.dropout(model.standardise(pictures), dropout)
        hidden = F.dropout(F.gelu(projection.mlp_in(x)), dropout)
        vectors = F.normalize(projection.linear(x) + projection.mlp_out(hidden), dim=-1)
        logits = log_scale.exp() * vectors @ sentences.T
        same = torch.arange(len(pictures))
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    for epoch in range(epochs):
        order, total = torch.randperm(len(train)), 0.0
        for start in range(0, len(train), batch):
            rows = order[start:start + batch]
            view = torch.randint(0, 2, (len(rows),))
            chosen = captions[rows, torch.randint(0, 5, (len(rows),))]
            loss = contrast(views[view, train[rows]], texts[chosen])
            total += float(loss.detach()) * len(rows)
            index = torch.arange(len(class_texts))
            view = torch.randint(0, 3, index.shape)
            loss = loss + imagenet_weight * contrast(classes[view, index], class_texts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"projection, epoch {epoch + 1}/{epochs}: loss {total / len(train):.3f}", flush=True)
    state = {f"clip_projection.{name}": value.detach().clone()
             for name, value in projection.state_dict().items()}
    return state | {"feature_mean": model.feature_mean, "feature_std": model.feature_std}


def stage_joint(minilm: Path, data: Path, work: Path, epochs: int = 1, batch: int = 64,
                captions_per_image: int = 2, learning_rate: float = 1e-3) -> None:
    """Train the visual input, and a word head to train it by; the encoder itself stays frozen.

    The visual input starts as the least-squares map from a picture's features to the mean of its
    captions' word embeddings, so that the frozen encoder is given something that it can read.
    """
    target = work / "joint.safetensors"
    if target.exists():
        return
    text_model, processor = text_encoder(minilm)
    model = VideoBertForPreTraining(VideoBertConfig())
    model.videobert.load_state_dict(text_model.state_dict())
    model.videobert.load_state_dict(load_file(work / "projection.safetensors"), strict=False)
    features = load_file(work / "features.safetensors")
    views = torch.stack([features["flickr_squash"], features["flickr_flip"]]).float()
    _, splits, captions, of_image = read_flickr(data)
    pairs = [(image, caption) for image in splits["train"]
             for caption in of_image[image][:captions_per_image]]
    ids = processor.tokenize(captions)
    frequency = torch.bincount(torch.tensor([i for row in ids for i in row]),
                               minlength=model.config.vocab_size).float()
    with torch.no_grad():
        model.word_head.decoder.bias.copy_((frequency + 0.01).log() - (frequency.sum()).log())
        start_visual_input(model.videobert, views[0], splits["train"], ids, of_image, frequency)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(
            ("videobert.visual_embeddings.", "word_head.dense", "word_head.norm",
             "word_head.decoder.bias")))
    model.word_head.decoder.weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    steps = epochs * (len(pairs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps,
                                                   pct_start=0.1)
    model.train()
    generator = torch.Generator().manual_seed(1)
    step, started, total = 0, time.time(), 0.0
    for _epoch in range(epochs):
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for start in range(0, len(pairs) - batch + 1, batch):
            chosen = [pairs[index] for index in order[start:start + batch]]
            images = torch.tensor([image for image, _ in chosen])
            view = torch.randint(0, 2, (batch,), generator=generator)
            rows = [[processor.tokenizer.cls_token_id, *ids[caption],
                     processor.video_token_id] for _, caption in chosen]
            input_ids, mask = processor.pad(rows)
            masked, labels = mask_words(input_ids, mask, model.config, generator)
            # Word logits only where a word is predicted: the vocabulary is the dear part.
            encoded = model.videobert(masked, mask, views[view, images][:, None])
            predicted = labels != -100
            loss = F.cross_entropy(model.word_head(encoded.text_hidden[predicted]),
                                   labels[predicted])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            total += float(loss.detach())
            if step % 20 == 0:
                rate = step * batch / (time.time() - started)
                print(f"joint, step {step}/{steps}: loss {total / 20:.3f}, {rate:.0f} pairs/s",
                      flush=True)
                total = 0.0
    state = model.state_dict()
    # The decoder shares the word embeddings' tensor: it is not stored twice.
    save_file({name: tensor.contiguous() for name, tensor in state.items()
               if name != "word_head.decoder.weight"}, target)


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
    x = model.standardise(pictures[train])
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


def mask_words(input_ids: Tensor, mask: Tensor, config: VideoBertConfig,
               generator: torch.Generator, rate: float = 0.2) -> tuple[Tensor, Tensor]:
    """BERT's masking (Devlin et al., 2019, section 3.1), never of a special token."""
    special = torch.zeros_like(input_ids, dtype=torch.bool)
    for token in (config.cls_token_id, config.sep_token_id, config.video_token_id):
        special |= input_ids == token
    chosen = (torch.rand(input_ids.shape, generator=generator) < rate) & mask.bool() & ~special
    labels = input_ids.masked_fill(~chosen, -100)
    dice = torch.rand(input_ids.shape, generator=generator)
    masked = input_ids.masked_fill(chosen & (dice < 0.8), config.mask_token_id)
    random = torch.randint(1000, config.vocab_size, input_ids.shape, generator=generator)
    return torch.where(chosen & (dice > 0.9), random, masked), labels


# --- evaluation and bundle --------------------------------------------------------------------


def retrieval(pictures: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 in per cent, both ways; `owner[t]` is text t's picture."""
    scores = pictures @ texts.T
    found = owner[scores.argsort(1, descending=True)] == torch.arange(len(pictures))[:, None]
    rank_text = found.float().argmax(1)
    rank_picture = (scores.T.argsort(1, descending=True) == owner[:, None]).float().argmax(1)
    out = {}
    for name, rank in (("image_to_text", rank_text), ("text_to_image", rank_picture)):
        for k in (1, 5, 10):
            out[f"{name}_r{k}"] = round(100 * float((rank < k).float().mean()), 1)
    return out


def evaluate(data: Path, work: Path) -> dict[str, float]:
    features = load_file(work / "features.safetensors")
    model = VideoBertForPreTraining(VideoBertConfig())
    model.load_state_dict(load_file(work / "joint.safetensors"), strict=False)
    model.eval()
    _, splits, captions, of_image = read_flickr(data)
    val = splits["val"]
    texts = [caption for image in val for caption in of_image[image]]
    owner = torch.tensor([row for row, image in enumerate(val) for _ in of_image[image]])
    with torch.inference_mode():
        vectors = model.videobert.embed_clips(features["flickr_squash"][val].float())
    numbers = retrieval(vectors, features["flickr_text"][texts].float(), owner)

    processor = VideoBertProcessor(AutoTokenizer.from_pretrained(work / "tokenizer"))
    ids = processor.tokenize(captions)
    generator = torch.Generator().manual_seed(7)
    right = {"with_picture": 0, "without_picture": 0}
    count = 0
    with torch.inference_mode():
        for start in range(0, len(val), 100):
            images = val[start:start + 100]
            rows = [[model.config.cls_token_id, *ids[of_image[image][0]], processor.video_token_id]
                    for image in images]
            input_ids, mask = processor.pad(rows)
            masked, labels = mask_words(input_ids, mask, model.config, generator)
            pictures = features["flickr_squash"][images].float()[:, None]
            both = model(masked, mask, pictures)
            closed = masked.masked_fill(masked == processor.video_token_id,
                                        model.config.sep_token_id)
            alone = model(closed, mask)
            where = labels != -100
            count += int(where.sum())
            for name, output in (("with_picture", both), ("without_picture", alone)):
                right[name] += int((output.word_logits[where].argmax(1) == labels[where]).sum())
    for name, hits in right.items():
        numbers[f"masked_word_accuracy_{name}"] = round(100 * hits / count, 1)
    return numbers


def stage_bundle(minilm: Path, work: Path, out: Path, numbers: dict[str, float]) -> None:
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    model = VideoBertModel(VideoBertConfig(backbone=BACKBONE))
    model.load_state_dict({name.removeprefix("videobert."): tensor for name, tensor in
                           load_file(work / "joint.safetensors").items()
                           if name.startswith("videobert.")})
    model.half().save_pretrained(out)
    VideoBertProcessor(load_tokenizer(minilm)).save_pretrained(out)
    backbone = {name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in load_file(work / "efficientnet_lite0.safetensors").items()
                if not name.startswith("classifier.")}
    save_file(backbone, out / "backbone.safetensors", metadata={"format": "pt"})
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
