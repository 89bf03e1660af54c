"Adapters that tests make from others."
import shutil

from safetensors.torch import load_file, save_file


def changed(adapter, folder, change):
    "A copy of an adapter with its tensors changed."
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: change(name, tensor).contiguous() for name, tensor in tensors.items()},
              folder / "adapter_model.safetensors")
    return folder
