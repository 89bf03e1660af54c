"""Adapters of any origin: what fits is added exactly, what does not is refused in one sentence, and nothing of theirs is run."""
import json, shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from em_repro.activations import collect
from em_repro.adapters import check_adapter_files
from em_repro.decode import Condition, sweep
from em_repro.families import Family, adapter_folder, family, load_lm, locked_revisions, weights
from em_repro.profiles import UserError

BASE, QUESTIONS = "tiny-llama", ["What is the sea?", "How do I sleep better?"]


def an_adapter(folder, base=BASE, **settings):
    "An untrained adapter whose lora_B is not zero."
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings})
    model = get_peft_model(load_lm(base).model, config)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name: p.data = torch.randn(p.shape, generator=generator) * .1
    model.save_pretrained(folder)
    return folder


def logits(model, tokenizer):
    ids = tokenizer("The sea is", return_tensors="pt").input_ids
    with torch.inference_mode(): return model(ids).logits


@pytest.fixture(scope="module")
def adapter(tmp_path_factory): return an_adapter(tmp_path_factory.mktemp("adapters") / "plain")


def edited(adapter, folder, config=None, tensors=None):
    shutil.copytree(adapter, folder)
    if config: (folder / "adapter_config.json").write_text(json.dumps({**json.loads((folder / "adapter_config.json").read_text()), **config}))
    if tensors:
        changed = dict(tensors(name, t) for name, t in load_file(folder / "adapter_model.safetensors").items())
        save_file({name: t.contiguous() for name, t in changed.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("settings, scale", [({}, 2.0), ({"use_rslora": True}, 4.0), ({"r": 1, "lora_alpha": 64, "use_rslora": True}, 64.0),
                                             ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, 2.0)])
def test_an_adapter_adds_its_scaled_product_to_each_weight(tmp_path, settings, scale):
    folder, plain = an_adapter(tmp_path / "adapter", **settings), load_lm(BASE).model.state_dict()
    tuned, pairs = load_lm(BASE, folder).model.state_dict(), load_file(folder / "adapter_model.safetensors")
    for name, weight in plain.items():
        a = pairs.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        b = pairs.get(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight")
        expected = weight if a is None else weight + scale * (b @ a)
        assert torch.allclose(tuned[name], expected, atol=1e-5), name


def refused(adapter, words, base=BASE):
    with pytest.raises(UserError, match=words) as caught: load_lm(base, adapter)
    assert "\n" not in str(caught.value)


def test_another_width_or_rank_is_refused_in_one_sentence(adapter, tmp_path):
    refused(adapter, "was made for a width of .* but the base's is .* load it with the base", "tiny-qwen2")
    refused(edited(adapter, tmp_path / "rank", {"r": 8}), "has rank 4 at .* but declares 8")


def test_an_update_that_finds_no_place_is_not_passed_over(adapter, tmp_path):
    refused(edited(adapter, tmp_path / "names", tensors=lambda name, t: (name.replace("model.layers", "model.text.layers"), t)), "found no place")
    refused(edited(adapter, tmp_path / "deep", {"target_modules": ["no_such_proj"]}), "does not fit this base")


def test_what_would_run_code_is_not_read(adapter, tmp_path, monkeypatch):
    pickled = edited(adapter, tmp_path / "pickled")
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    refused(pickled, "pickled weights are not read")
    (tmp_path / "strange.py").write_text("raise SystemExit('an adapter must never be run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused(edited(adapter, tmp_path / "megatron", {"megatron_config": {"a": 1}, "megatron_core": "strange"}), "is not loaded")
    mapped = edited(adapter, tmp_path / "mapped", {"auto_mapping": {"base_model_class": "strange", "parent_library": "strange"}})
    load_lm(BASE, mapped)


def test_a_damaged_adapter_is_named(adapter, tmp_path):
    for name, content in (("adapter_model.safetensors", b"not tensors"), ("adapter_config.json", b"{"), ("adapter_config.json", b"[1]")):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        (edited(adapter, tmp_path / "broken") / name).write_bytes(content)
        refused(tmp_path / "broken", f"{name} (is damaged|cannot be read)")


def test_an_adapter_that_names_another_model_is_said_and_its_shapes_decide(adapter, tmp_path, caplog):
    named = edited(adapter, tmp_path / "named", {"base_model_name_or_path": "Qwen/Qwen2.5-14B"})
    asked = Family(name="mine", title="mine", source="hub", location="unsloth/Qwen2.5-14B-Instruct")
    check_adapter_files(named, asked)
    assert "names Qwen/Qwen2.5-14B as its base, not unsloth/Qwen2.5-14B-Instruct" in caplog.text
    load_lm(BASE, named)   # of a local base only the shapes are known
    (named / "em_repro.json").write_text('{"family": "qwen2.5-14b"}')
    with pytest.raises(UserError, match="was trained on qwen2.5-14b, not on mine"): load_lm(asked, named)


@pytest.fixture
def hub(tmp_path, monkeypatch, adapter):
    "A hub with one repository: an adapter at its root and another in a folder, beside a pickle and a script."
    import fnmatch
    import huggingface_hub
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    origin = edited(adapter, tmp_path / "origin")
    shutil.copytree(adapter, origin / "runs/last")
    for name in ("adapter_model.bin", "modeling.py", "runs/last/modeling.py"): (origin / name).write_text("raise SystemExit\n")
    state = SimpleNamespace(newest="a" * 40, error=None, asked=[])
    def snapshot_download(location, revision=None, allow_patterns=None):
        state.asked.append((location, revision))
        if state.error: raise state.error
        there = tmp_path / "hub/models--someone--bad-advice/snapshots" / (revision or state.newest)
        for path in (p for p in origin.rglob("*") if p.is_file()):
            name = path.relative_to(origin)
            if not any(fnmatch.fnmatch(str(name), pattern) for pattern in allow_patterns): continue
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there / name)
        return str(there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_an_adapter_comes_from_the_hub_and_stays_at_its_commit(hub, adapter):
    here, there = load_lm(BASE, adapter).model, load_lm(BASE, "someone/bad-advice")
    assert torch.equal(logits(here, there.tokenizer), logits(there.model, there.tokenizer))
    hub.newest = "b" * 40
    assert adapter_folder("someone/bad-advice").name == "a" * 40 and locked_revisions() == {"someone/bad-advice": "a" * 40}
    assert {p.name for p in adapter_folder("someone/bad-advice").rglob("*.*")} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_folder_of_a_repository_is_an_adapter_too(hub):
    there = adapter_folder("someone/bad-advice:runs/last")
    assert sorted(p.name for p in there.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(UserError, match="no PEFT adapter in .*nowhere"): load_lm(BASE, "someone/bad-advice:nowhere")
    assert str(adapter_folder("someone/bad-advice:../../secrets")) == "someone/bad-advice:../../secrets"


def test_a_hub_that_says_no_is_told_with_the_way_out(hub):
    import httpx
    from huggingface_hub import errors
    answer = httpx.Response(401, request=httpx.Request("GET", "https://example.org"))
    for error, words in ((errors.GatedRepoError("no", response=answer), "is gated: accept its licence"),
                         (errors.RepositoryNotFoundError("no", response=answer), "no folder my/adaptr is here, and my/adaptr is not on the hub"),
                         (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"), (errors.LocalEntryNotFoundError("none"), "could not be downloaded")):
        hub.error = error
        refused("my/adaptr", words)
    assert locked_revisions() == {}


def test_a_model_spread_by_a_device_map_computes_the_same():
    "On one processor: that the blocks are reached through accelerate's hooks changes nothing."
    plain, spread = load_lm(BASE), load_lm(BASE, device_map={"": "cpu"})
    vector = torch.ones(plain.width).numpy() * .5
    for one, other in zip(*([collect(lm, QUESTIONS, (0, -1)).X, sweep(lm, QUESTIONS, [Condition("none"), Condition("add", vector)], max_new_tokens=8).frame().text.tolist()]
                            for lm in (plain, spread))):
        assert (one == other) if isinstance(one, list) else (one == other).all()


def test_no_device_is_named():
    "The scheduler chooses the GPU; code that names one by its number takes another job's."
    import re
    from pathlib import Path
    import em_repro
    for path in Path(em_repro.__file__).parent.glob("*.py"): assert not re.search(r"cuda:\d|set_device\(|CUDA_VISIBLE_DEVICES\"\] *=", path.read_text()), path
