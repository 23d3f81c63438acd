"""Models of transformers, diffusers and PEFT from folders with ``.vqm`` files, without a network."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the packages are imported
torch = pytest.importorskip("torch", reason="torch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'vqformat[transformers]'")  # fmt: skip

from vqformat import safe_open  # noqa: E402
from vqformat.cli import main  # noqa: E402
from vqformat.converters import convert_folder, extract_folder  # noqa: E402
from vqformat.errors import FormatError  # noqa: E402
from vqformat.torch import load_model, save_model, stream_model  # noqa: E402
from vqformat.transformers import from_pretrained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed: pip install 'vqformat[peft]'")
needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="diffusers is not installed: pip install 'vqformat[diffusers]'")  # fmt: skip

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Each with the Auto class of its head
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "bert": (lambda: transformers.BertConfig(vocab_size=100, **_SIZES), "AutoModelForMaskedLM"),
    "gpt2": (lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=32,
                                             bos_token_id=0, eos_token_id=0), "AutoModelForCausalLM"),
    "llama": (lambda: transformers.LlamaConfig(vocab_size=100, **_SIZES), "AutoModelForCausalLM"),
    "t5": (lambda: transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=100,
                                         decoder_start_token_id=0), "AutoModelForSeq2SeqLM"),
    "vit": (lambda: transformers.ViTConfig(image_size=8, patch_size=4, **_SIZES), "AutoModelForImageClassification"),
}  # fmt: skip
architectures = pytest.mark.parametrize("name", MODELS)


@cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    config, auto = MODELS[name]
    return getattr(transformers, auto).from_config(config()).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture with ``model.vqm``; that of safetensors is beside it."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def make(name: str) -> Path:
        built(name).save_pretrained(folder / f"{name}-safetensors")
        convert_folder(folder / f"{name}-safetensors", folder / name, lossless=True)
        return folder / name

    return make


def auto(name: str) -> Any:
    return getattr(transformers, MODELS[name][1])


def assert_same_model(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert not found.training
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (found, expected))
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert type(ours[name]) is type(tensor)
            assert (ours[name].device, ours[name].dtype) == (tensor.device, tensor.dtype), name
            assert torch.equal(ours[name], tensor), name


def outputs(model: Any, name: str) -> Any:
    with torch.no_grad():
        match name:
            case "vit":
                return model(torch.ones(1, 3, 8, 8)).logits
            case "t5":
                return model(input_ids=torch.tensor([[1, 2]]), decoder_input_ids=torch.tensor([[0, 3]])).logits
        return model(torch.tensor([[1, 2, 3]])).logits


class TestTransformers:
    @architectures
    def test_the_model_is_the_one_that_was_saved(self, name: str, folders: Any) -> None:
        model, info = from_pretrained(folders(name), auto(name), output_loading_info=True)

        assert_same_model(model, auto(name).from_pretrained(folders(f"{name}").with_name(f"{name}-safetensors")))
        assert torch.equal(outputs(model, name), outputs(built(name), name))
        assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_a_model_in_shards_is_the_one_that_was_saved(self, folders: Any, tmp_path: Path) -> None:
        folder = tmp_path / "sharded"
        report = convert_folder(folders("gpt2"), folder, lossless=True, max_shard_size="30kB")

        assert len(report.reports["model.vqm"].files) > 2
        assert not (folder / "model.vqm").exists()
        model, info = from_pretrained(folder, auto("gpt2"), output_loading_info=True)
        assert_same_model(model, built("gpt2"))
        assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        extract_folder(folder, tmp_path / "back")
        assert_same_model(auto("gpt2").from_pretrained(tmp_path / "back"), built("gpt2"))

    @architectures
    def test_what_extract_gives_back_is_loaded_by_the_library(self, name: str, folders: Any, tmp_path: Path) -> None:
        extract_folder(folders(name), tmp_path / "back")

        assert_same_model(auto(name).from_pretrained(tmp_path / "back"), built(name))

    @architectures
    def test_live_models_need_no_leniency(self, name: str, tmp_path: Path) -> None:
        save_model(built(name), tmp_path / "model.vqm", lossless=True)
        model = copy.deepcopy(built(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()

        assert load_model(model, tmp_path / "model.vqm") == ([], [])
        streamed = stream_model(copy.deepcopy(built(name)), tmp_path / "model.vqm")

        assert_same_model(model, built(name))
        assert torch.equal(outputs(streamed, name), outputs(built(name), name))

    @architectures
    def test_the_body_of_a_model_with_a_head(self, name: str, folders: Any) -> None:
        body = from_pretrained(folders(name), transformers.AutoModel)

        expected = transformers.AutoModel.from_pretrained(folders(name).with_name(f"{name}-safetensors"))
        own = "pooler"  # of some bodies, which the file does not have: it is drawn at random
        ours, theirs = body.state_dict(), expected.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs if own not in key)

    def test_a_class_of_its_own(self, folders: Any) -> None:
        assert_same_model(from_pretrained(folders("bert"), transformers.BertForMaskedLM), built("bert"))

    def test_dtype_and_values_of_the_configuration(self, folders: Any) -> None:
        model = from_pretrained(folders("llama"), transformers.AutoModelForCausalLM, dtype=torch.bfloat16,
                                output_attentions=True, attn_implementation="eager")  # fmt: skip

        expected = transformers.AutoModelForCausalLM.from_pretrained(
            folders("llama").with_name("llama-safetensors"), dtype=torch.bfloat16, output_attentions=True,
            attn_implementation="eager")  # fmt: skip
        assert_same_model(model, expected)
        assert model.config.name_or_path == model.name_or_path == str(folders("llama"))
        ignored = {"_name_or_path": ""}
        assert model.config.to_dict() | ignored == expected.config.to_dict() | ignored

    def test_the_device_map(self, folders: Any) -> None:
        pytest.importorskip("accelerate", reason="not installed: pip install accelerate")
        model = from_pretrained(folders("gpt2"), transformers.AutoModelForCausalLM, device_map={"": "meta"})

        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}

    def test_the_generation_config(self, folders: Any, tmp_path: Path) -> None:
        model = copy.deepcopy(built("gpt2"))
        model.generation_config.max_new_tokens = 7
        model.save_pretrained(tmp_path / "model")
        convert_folder(tmp_path / "model", tmp_path / "out")

        assert from_pretrained(tmp_path / "out", auto("gpt2")).generation_config.max_new_tokens == 7

    def test_shards_become_one_file(self, folders: Any, tmp_path: Path) -> None:
        built("llama").save_pretrained(tmp_path / "model", max_shard_size="30KB")
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
        assert main(["convert", "-q", "--lossless", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) == 0
        assert main(["extract", "-q", str(tmp_path / "out"), "-o", str(tmp_path / "back")]) == 0

        assert_same_model(from_pretrained(tmp_path / "out", auto("llama")), built("llama"))
        assert_same_model(auto("llama").from_pretrained(tmp_path / "back"), built("llama"))
        assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(
            path.name for path in (tmp_path / "model").iterdir())  # fmt: skip

    def test_one_weight_is_decoded_at_a_time(self, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, now, most = folders("bert"), threading.Semaphore(1), []
        decode = safe_open.__getitem__

        def counting(self: Any, name: str) -> Any:
            assert now.acquire(blocking=False), "two at a time"
            most.append(name)
            array = decode(self, name)
            now.release()
            return array

        monkeypatch.setattr(safe_open, "__getitem__", counting)
        from_pretrained(folder, auto("bert"))

        assert len(most) == len(set(most)) == 42

    def test_a_subfolder(self, folders: Any) -> None:
        folder = folders("vit")

        assert_same_model(from_pretrained(folder.parent, auto("vit"), subfolder="vit"), built("vit"))

    def test_a_folder_without_a_vqm_says_what_to_do(self, folders: Any) -> None:
        with pytest.raises(FileNotFoundError, match=r"no 'model.vqm' .*vqm convert FOLDER -o NEW_FOLDER"):
            from_pretrained(folders("vit").with_name("vit-safetensors"), auto("vit"))

    def test_a_damaged_file_is_refused(self, folders: Any, tmp_path: Path) -> None:
        data = bytearray((folders("vit") / "model.vqm").read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "config.json").write_bytes((folders("vit") / "config.json").read_bytes())
        (tmp_path / "model.vqm").write_bytes(data)

        with pytest.raises((FormatError, RuntimeError)):
            from_pretrained(tmp_path, auto("vit"))


def test_a_missing_package_is_named(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders("vit")
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(ImportError, match=r"needs transformers; run: pip install transformers"):
        from_pretrained(folder, object)


@needs_peft
def test_an_adapter(folders: Any, tmp_path: Path) -> None:
    import peft

    from vqformat.peft import from_pretrained as adapted

    model = peft.get_peft_model(copy.deepcopy(built("llama")), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    convert_folder(tmp_path / "adapter", tmp_path / "out", lossless=True)

    found = adapted(copy.deepcopy(built("llama")), tmp_path / "out")

    assert type(found) is type(model)
    assert torch.equal(outputs(found, "llama"), outputs(model.eval(), "llama"))
    assert not torch.equal(outputs(found, "llama"), outputs(built("llama"), "llama"))
    assert not any(parameter.requires_grad for parameter in found.parameters())


@needs_diffusers
class TestDiffusers:
    @pytest.fixture(scope="class")
    def pipeline(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        import diffusers

        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1,
                                     block_out_channels=(32,), norm_num_groups=8, down_block_types=("DownBlock2D",),
                                     up_block_types=("UpBlock2D",))  # fmt: skip
        folder = tmp_path_factory.mktemp("pipeline")
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "model")
        convert_folder(folder / "model", folder / "out", lossless=True)
        return folder

    def test_a_model(self, pipeline: Path) -> None:
        import diffusers

        from vqformat.diffusers import from_pretrained

        found = from_pretrained(pipeline / "out", diffusers.UNet2DModel, subfolder="unet")

        assert_same_model(found, diffusers.UNet2DModel.from_pretrained(pipeline / "model" / "unet"))

    def test_a_pipeline(self, pipeline: Path) -> None:
        import diffusers

        from vqformat.diffusers import from_pretrained

        found = from_pretrained(pipeline / "out", diffusers.DDPMPipeline, dtype=torch.float16)

        expected = diffusers.UNet2DModel.from_pretrained(pipeline / "model" / "unet", torch_dtype=torch.float16)
        assert_same_model(found.unet, expected)
        assert isinstance(found.scheduler, diffusers.DDPMScheduler)

    @pytest.mark.parametrize("value", [["diffusers", "UNet2DModel", 1], ["os", "system"], ["diffusers", "utils"],
                                       ["transformers", "pipeline"], ["diffusers", ["x"]]])  # fmt: skip
    def test_only_models_are_made_of_what_a_pipeline_names(self, value: Any, pipeline: Path, tmp_path: Path) -> None:
        import diffusers

        from vqformat.diffusers import from_pretrained

        shutil.copytree(pipeline / "out", tmp_path / "out")
        index = json.loads((tmp_path / "out" / "model_index.json").read_text())
        (tmp_path / "out" / "model_index.json").write_text(json.dumps({**index, "unet": value}))

        with pytest.raises((ValueError, OSError)):  # the library's own error where the entry is none
            from_pretrained(tmp_path / "out", diffusers.DDPMPipeline)

    def test_a_text_encoder_of_transformers(self, pipeline: Path, tmp_path: Path) -> None:
        import diffusers

        from vqformat.diffusers import from_pretrained

        built("bert").save_pretrained(tmp_path / "model" / "unet")
        convert_folder(tmp_path / "model", tmp_path / "out", lossless=True)
        index = {"_class_name": "DDPMPipeline", "unet": ["transformers", "BertForMaskedLM"], "scheduler": [None, None]}
        (tmp_path / "out" / "model_index.json").write_text(json.dumps(index))

        found = from_pretrained(tmp_path / "out", diffusers.DDPMPipeline, scheduler=None)

        assert_same_model(found.unet, built("bert"))
