"""VideoBERT: Hugging Face conventions, parity with BERT, and independence of padding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL
from transformers import AutoConfig, AutoModel, AutoProcessor, BertConfig, BertModel

import vbkit_mini
from vbkit.engine.bundle import Bundle, load_model
from vbkit.errors import ModelError
from vbkit.model import (
    VideoBertConfig,
    VideoBertForPreTraining,
    VideoBertModel,
    VideoBertProcessor,
)
from vbkit.model.modeling import bert_to_videobert
from vbkit.plugins import default_manager


def small(**changes) -> VideoBertConfig:
    return VideoBertConfig(**{**SMALL, **changes})


def waken(model: VideoBertModel) -> None:
    """Give adapters, which begin at 0, something to say."""
    for layer in model.layers:
        torch.nn.init.normal_(layer.mlp_adapter.up.weight)
        if layer.mlp_adapter.context is not None:
            torch.nn.init.normal_(layer.mlp_adapter.context.weight)


@pytest.fixture
def model() -> VideoBertModel:
    torch.manual_seed(0)
    return VideoBertModel(small()).eval()


def words(*rows: int) -> torch.Tensor:
    return torch.randint(110, 300, rows, generator=torch.Generator().manual_seed(3))


def test_visual_dropout_hides_features_in_training_alone() -> None:
    torch.manual_seed(0)
    model = VideoBertModel(small(visual_dropout_prob=1.0, hidden_dropout_prob=0.0,
                                 attention_probs_dropout_prob=0.0))
    features = torch.randn(2, 1, 3, 6)

    def hidden(rows: torch.Tensor) -> torch.Tensor:
        return model(words(1, 4), visual_features=rows).last_hidden_state

    assert torch.equal(*map(hidden, features))  # nothing of them is left
    clips = [model.embed_clips(rows) for rows in features]
    assert not torch.allclose(*clips)  # the shared space has a dropout of its own
    model.eval()
    assert not torch.allclose(*map(hidden, features), atol=1e-3)


def test_text_alone_equals_bert_with_its_weights() -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2,
                                num_attention_heads=4, intermediate_size=48,
                                max_position_embeddings=40), add_pooling_layer=False).eval()
    model = VideoBertModel(small()).eval()
    missing, unexpected = model.load_state_dict(bert_to_videobert(bert.state_dict()), strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} <= {
        "visual_embeddings", "clip_projection", "feature_mean", "feature_std"}
    ids, mask = words(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        theirs = bert(ids, mask).last_hidden_state
        ours = model(ids, mask).last_hidden_state
    assert torch.allclose(theirs[mask.bool()], ours[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("changes", [
    {}, {"position_encoding": "sinusoidal"}, {"position_encoding": "relative"},
    {"visual_reduction_size": 4}, {"adapter_size": 4},
    {"adapter_size": 4, "adapter_context_size": 3},
])
def test_padding_changes_nothing(changes) -> None:
    torch.manual_seed(0)
    model = VideoBertModel(small(**changes)).eval()
    if model.relative_bias is not None:
        torch.nn.init.normal_(model.relative_bias.bias.weight)
    for name, parameter in model.named_parameters():
        if "adapter" in name:  # which begin at 0
            torch.nn.init.normal_(parameter)
    ids, features = words(1, 5), torch.randn(1, 3, 6)
    padded_ids = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    mask = torch.tensor([[1] * 5 + [0] * 4])
    padded = torch.cat([features, torch.randn(1, 2, 6)], 1)
    with torch.no_grad():
        alone = model(ids, visual_features=features)
        together = model(padded_ids, mask, padded, visual_mask=torch.tensor([[1, 1, 1, 0, 0]]))
    assert torch.allclose(alone.text_hidden, together.text_hidden[:, :5], atol=1e-5)
    assert torch.allclose(alone.visual_hidden, together.visual_hidden[:, :3], atol=1e-5)


def test_clips_and_words_see_each_other(model: VideoBertModel) -> None:
    ids, features = words(1, 5), torch.randn(1, 3, 6)
    with torch.no_grad():
        one = model(ids, visual_features=features)
        other = model(ids, visual_features=features + 1.0)
        reworded = model(ids.flip(1), visual_features=features)
    assert not torch.allclose(one.text_hidden, other.text_hidden, atol=1e-4)
    assert not torch.allclose(one.visual_hidden, reworded.visual_hidden, atol=1e-4)


def test_attention_weights_are_those_of_the_fused_kernel(model: VideoBertModel) -> None:
    ids, mask = words(2, 6), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    with torch.no_grad():
        fused = model(ids, mask).last_hidden_state
        output = model(ids, mask, output_attentions=True, output_hidden_states=True)
    assert torch.allclose(fused[mask.bool()], output.last_hidden_state[mask.bool()], atol=1e-5)
    assert len(output.attentions) == 2
    assert len(output.hidden_states) == 3
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(2, 4, 6), atol=1e-5)
    assert output.attentions[0][1, :, :, 3:].abs().max() == 0


@pytest.mark.parametrize("visual_input", ["features", "words", "both"])
def test_visual_input_of_each_kind_trains_and_survives_saving(tmp_path, visual_input) -> None:
    torch.manual_seed(0)
    model = VideoBertForPreTraining(small(visual_vocab_size=10, visual_input=visual_input))
    labels = words(2, 5).masked_fill(torch.tensor([[1, 0, 0, 0, 1]]).bool(), -100)
    inputs = {
        "input_ids": words(2, 5), "visual_features": torch.randn(2, 3, 6),
        "visual_words": torch.randint(0, 10, (2, 3)), "labels": labels,
        "visual_labels": torch.randint(0, 10, (2, 3)), "alignment_labels": torch.tensor([1, 0]),
    }
    output = model(**inputs)
    output.loss.backward()
    assert output.word_logits.shape == (int((labels != -100).sum()), 300)
    assert output.visual_word_logits.shape == (6, 10)
    assert output.alignment_logits.shape == (2,)
    assert all(parameter.grad is not None for name, parameter in model.named_parameters()
               if not name.startswith(("videobert.clip_projection", "logit_scale")))
    model.eval().save_pretrained(tmp_path)
    again = VideoBertForPreTraining.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).word_logits, again(**inputs).word_logits)


def test_nothing_masked_is_a_loss_of_zero() -> None:
    model = VideoBertForPreTraining(small())
    output = model(words(1, 4), labels=torch.full((1, 4), -100))
    assert output.loss.item() == 0.0


def test_what_is_asked_for_and_not_given_is_an_error(model: VideoBertModel) -> None:
    with pytest.raises(ValueError, match="needs visual_words"):
        VideoBertModel(small(visual_vocab_size=4, visual_input="both"))(
            words(1, 4), visual_features=torch.randn(1, 2, 6))
    with pytest.raises(ValueError, match="at most 40"):
        model(words(1, 41))
    with pytest.raises(ValueError, match="at most 8"):
        model(words(1, 4), visual_features=torch.randn(1, 9, 6))
    with pytest.raises(ValueError, match="another backbone"):
        model.embed_clips(torch.randn(2, 5))


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_attention_heads": 5}, "multiple"),
    ({"visual_input": "pixels"}, "pixels"),
    ({"visual_input": "words"}, "visual_vocab_size"),
    ({"position_encoding": "rotary"}, "rotary"),
    ({"shared_size": 16}, "text_tower"),
])
def test_a_wrong_configuration_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_relative_positions_know_order_and_no_place() -> None:
    torch.manual_seed(0)
    model = VideoBertModel(small(position_encoding="relative")).eval()
    assert not any("positions" in name for name, _ in model.named_parameters())
    torch.nn.init.normal_(model.relative_bias.bias.weight)
    ids = words(1, 6)
    with torch.no_grad():
        there, back = (model(x).last_hidden_state for x in (ids, ids.flip(1)))
    assert not torch.allclose(there, back.flip(1), atol=1e-3)
    is_video = torch.zeros(1, 6, dtype=torch.bool)
    here = model.relative_bias(torch.arange(6)[None], is_video)
    assert torch.equal(here, model.relative_bias(torch.arange(20, 26)[None], is_video))


def test_adapters_leave_the_text_tower_alone() -> None:
    torch.manual_seed(0)
    plain = VideoBertModel(small()).eval()
    adapted = VideoBertModel(small(adapter_size=8)).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    ids, mask = words(2, 7), torch.ones(2, 7, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(plain(ids).last_hidden_state, adapted(ids).last_hidden_state)
        waken(adapted)
        assert not torch.allclose(plain(ids).last_hidden_state, adapted(ids).last_hidden_state)
        assert torch.equal(plain.embed_text(ids, mask), adapted.embed_text(ids, mask))


def test_a_hidden_clip_says_nothing() -> None:
    torch.manual_seed(0)
    model = VideoBertModel(small(visual_vocab_size=5, visual_input="both", adapter_size=4,
                                 adapter_context_size=3)).eval()
    waken(model)
    ids, features, named = words(1, 4), torch.randn(1, 3, 6), torch.tensor([[1, 2, 3]])
    hidden = torch.tensor([[False, True, False]])
    with torch.no_grad():
        one = model(ids, visual_features=features, visual_words=named, visual_masked=hidden)
        features[0, 1] += 1.0
        other = model(ids, visual_features=features, visual_words=torch.tensor([[1, 4, 3]]),
                      visual_masked=hidden)
        seen = model(ids, visual_features=features, visual_words=named)
    assert torch.equal(one.last_hidden_state, other.last_hidden_state)
    assert not torch.allclose(one.last_hidden_state, seen.last_hidden_state)


def test_words_that_are_not_seen_reach_the_text_through_the_context() -> None:
    torch.manual_seed(0)
    model = VideoBertModel(small(visual_vocab_size=5, visual_input="words", adapter_size=4,
                                 adapter_context_size=3)).eval()
    waken(model)
    with torch.no_grad():
        one, other = (model(words(1, 4), visual_words=torch.tensor([row])).last_hidden_state
                      for row in ([1, 2], [3, 4]))
    assert not torch.allclose(one[:, :4], other[:, :4], atol=1e-3)


def test_the_contrast_falls_when_texts_go_with_their_videos() -> None:
    torch.manual_seed(0)
    model = VideoBertForPreTraining(small(visual_vocab_size=0)).train(False)
    texts, features = words(6, 5), torch.randn(6, 1, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(text_ids=texts, visual_features=features).losses["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_alignment_is_learnt_from_pairs_and_does_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    model = VideoBertForPreTraining(small()).eval()
    ids, features = words(8, 4), torch.randn(8, 2, 6)
    mixed = {"input_ids": torch.cat([ids, ids]),
             "visual_features": torch.cat([features, features.roll(1, 0)]),
             "alignment_labels": torch.tensor([1] * 8 + [0] * 8)}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        output = model(**mixed)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert ((output.alignment_logits > 0) == mixed["alignment_labels"].bool()).all()
    with torch.no_grad():
        padded = model(
            torch.cat([ids, torch.zeros(8, 2, dtype=torch.long)], 1),
            torch.tensor([[1] * 4 + [0] * 2] * 8), torch.cat([features, features], 1),
            visual_mask=torch.tensor([[1, 1, 0, 0]] * 8))
        assert torch.allclose(padded.alignment_logits, model(
            ids, visual_features=features).alignment_logits, atol=1e-4)


def test_sinusoidal_positions_are_not_trained() -> None:
    model = VideoBertModel(small(position_encoding="sinusoidal"))
    table = model.text_embeddings.positions.weight
    assert not table.requires_grad
    assert table[0, 0] == 0
    assert table[0, 1] == 1


# --- the embedded model -----------------------------------------------------------------------


def test_auto_classes_load_mini(engine) -> None:
    path = engine.bundle.path
    config = AutoConfig.from_pretrained(path)
    assert isinstance(config, VideoBertConfig)
    model = AutoModel.from_pretrained(path).eval().float()
    processor = AutoProcessor.from_pretrained(path)
    assert isinstance(processor, VideoBertProcessor)
    batch = processor(["a dog runs"])
    with torch.no_grad():
        vectors = model.embed_text(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(vectors, engine.encode_text(["a dog runs"]), atol=1e-4)


def test_mini_needs_no_network() -> None:
    code = """
import socket
def refuse(*arguments): raise AssertionError("a connection was tried")
socket.socket.connect = socket.getaddrinfo = refuse
import vbkit
print(tuple(vbkit.Engine(device="cpu").encode_text(["a dog runs"]).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 384)"


def test_model_and_heads_are_small_enough_to_ship() -> None:
    plugins = Path(vbkit_mini.__file__).parent.parent
    folders = [*plugins.glob("vbkit_*/model"), *plugins.glob("vbkit_*/weights")]
    assert len(folders) == 5
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert size <= 70_000_000


def test_processor_lays_out_text_and_video(engine) -> None:
    processor = engine.bundle.processor
    batch = processor(["a dog", "a dog runs on the beach"],
                      clip_features=[torch.ones(2, 4), torch.ones(3, 4)])
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["[CLS]", "a", "dog", "[>]", *["[PAD]"] * 4]
    assert batch["visual_features"].shape == (2, 3, 4)
    assert batch["visual_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    alone = processor(clip_features=[torch.ones(2, 4)])
    assert processor.tokenizer.convert_ids_to_tokens(alone["input_ids"][0]) == ["[CLS]", "[>]"]


def test_a_bundle_may_name_another_text_tower(tmp_path, engine) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=30522, hidden_size=24, num_hidden_layers=1,
                         num_attention_heads=2, intermediate_size=32)).save_pretrained(
        tmp_path / "bert")
    engine.bundle.processor.tokenizer.save_pretrained(tmp_path / "bert")
    settings = tmp_path / "bert" / "tokenizer_config.json"
    plain = {key: value for key, value in json.loads(settings.read_text()).items()
             if key != "processor_class"}
    settings.write_text(json.dumps(plain))
    transformer = Transformer(str(tmp_path / "bert"))
    tower = SentenceTransformer(modules=[transformer, Pooling(24)], device="cpu")
    tower.save(str(tmp_path / "bundle" / "tower"))
    VideoBertModel(small(vocab_size=30522, shared_size=24, text_tower="tower")).save_pretrained(
        tmp_path / "bundle")
    engine.bundle.processor.tokenizer.save_pretrained(tmp_path / "bundle")

    import vbkit

    other = vbkit.Engine(str(tmp_path / "bundle"), device="cpu")
    texts = ["a dog runs", "rain falls on the town"]
    expected = tower.encode(texts, normalize_embeddings=True, convert_to_tensor=True)
    assert torch.allclose(other.encode_text(texts), expected, atol=1e-5)


def test_bundles_that_do_not_fit_are_refused_with_what_to_do(tmp_path, engine) -> None:
    manager = default_manager()
    with pytest.raises(ModelError, match="did you mean mini"):
        Bundle(manager, "minni")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        Bundle(manager, str(tmp_path / "empty"))
    path = tmp_path / "model"
    VideoBertModel(small()).save_pretrained(path)
    state = load_file(path / "model.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if "mlp_in" not in name}
    save_file(lacking, path / "model.safetensors")
    with pytest.raises(ModelError, match="lacks"):
        load_model(path, torch.device("cpu"))
    (path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="model"):
        load_model(path, torch.device("cpu"))
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="not VideoBERT"):
        load_model(path, torch.device("cpu"))
