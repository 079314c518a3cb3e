"""Text encoders saved under the tensor names that readers other than the newest transformers expect."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

PREFIX = "text_model."
OUTSIDE = "text_projection"  # all that a CLIP text encoder has beside its text model


def text_model_name(name: str) -> str:
    """A CLIP text tensor's or module's name with `text_model.`, whether transformers writes it so or not."""
    return name if name.startswith((PREFIX, OUTSIDE)) else PREFIX + name


def restore_original_names(folder: Path) -> None:
    """Renames the tensors in a saved CLIP text encoder's safetensors files, its shards' index too.

    transformers 5 leaves out `text_model.` and reads both; kohya's tools, ComfyUI and older readers do not.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata()
            tensors = {text_model_name(name): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        beside = file.with_name(f"{file.name}.partial")
        save_file(tensors, beside, metadata=metadata)
        beside.replace(file)
    for file in sorted(folder.glob("*.safetensors.index*.json")):  # a variant's name comes after "index"
        index = json.loads(file.read_text())
        index["weight_map"] = {text_model_name(name): part for name, part in index["weight_map"].items()}
        beside = file.with_name(f"{file.name}.partial")
        beside.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        beside.replace(file)
